# SPDX-License-Identifier: Apache-2.0
"""Connections that have a mark go where Linux' routing would send their packets, with the marks that its
rules give them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from clearway.daemon.adoption import put_compiled
from clearway.proof import Region, Sources, classifiers, prove
from tests.packet.addresses import BACK, FRONT, NARROW, Net, device_mac
from tests.packet.node import Node, Outcome
from tests.packet.test_adopt import BOTH, MARKED, Held, nothing_left, trust

__all__ = ["nothing_left"]

RESTORE = "-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff"


def follow(node: Node, *rules: str) -> None:
    """These rules of iptables' table mangle are what Linux has."""
    chains = [f":{name} ACCEPT [0:0]" for name in ("PREROUTING", "FORWARD", "POSTROUTING")]
    text = "\n".join(["*mangle", *chains, *rules, "COMMIT"])
    compiled = classifiers(prove(Sources(saves={"ip": text, "ip6": text})), node.world.ifindex)
    put_compiled(node.datapath, Region.CARRIED, compiled, False)
    trust(node, BOTH | MARKED * compiled.speaks_of_marks)


@contextmanager
def uplink(node: Node, net: Net, mark: str, device: str) -> Iterator[None]:
    """What has this mark leaves by that device, if it does not go to the inside host."""
    family = f"-{net.family}"
    rule = ["fwmark", mark, "lookup", "77"]
    node.world.node.ip(
        family, "route", "add", "default", "via", net.router(device), "dev", device, "table", "77"
    )
    node.world.node.ip(family, "route", "add", net.inside, "dev", BACK, "table", "77")
    node.world.node.ip(family, "rule", "add", *rule)
    try:
        yield
    finally:
        node.world.node.ip(family, "rule", "del", *rule)
        node.world.node.ip(family, "route", "flush", "table", "77")


def by(out: Outcome) -> str:
    """The device that a carried packet leaves by."""
    assert out.verdict == "forward", out.reason
    return next(device for device in (FRONT, BACK, NARROW) if out.packet.src == device_mac(device))


@pytest.fixture
def setting(node: Node) -> Iterator[None]:
    """Settings of FRONT are put back."""
    yield
    for name in ("rp_filter", "src_valid_mark"):
        set_to(node, FRONT, name, 0)


def set_to(node: Node, device: str, name: str, value: int) -> None:
    node.world.node.run("sysctl", "-qw", f"net.ipv4.conf.{device}.{name}={value}")


def test_a_restored_mark_chooses_the_uplink(node: Node, net: Net) -> None:
    follow(node, RESTORE)
    with uplink(node, net, "0x7/0xff", NARROW):
        talk = Held(node, net, mark="7")
        assert by(talk.client(payload=b"x")) == NARROW
        assert by(talk.client(payload=b"x")) == NARROW
        assert by(talk.server(payload=b"y")) == BACK


@pytest.mark.parametrize("mark", ["0", "8", "0x107"])
def test_other_marks_go_by_the_main_table(node: Node, net: Net, mark: str) -> None:
    """0x107 & 0xff is 7: the rest is not restored."""
    follow(node, RESTORE)
    with uplink(node, net, "7", NARROW):
        assert by(Held(node, net, mark=mark).client(payload=b"x")) == (NARROW if mark == "0x107" else FRONT)


def test_a_mark_without_rules_about_it_means_nothing(node: Node, net: Net) -> None:
    follow(node)
    with uplink(node, net, "7", NARROW):
        assert by(Held(node, net, mark="7").client(payload=b"x")) == FRONT


def test_a_constant_mark_is_as_good(node: Node, net: Net) -> None:
    follow(node, f"-A PREROUTING -i {BACK} -j MARK --set-xmark 0x7/0xff")
    with uplink(node, net, "7", NARROW):
        talk = Held(node, net)
        assert by(talk.client(payload=b"x")) == NARROW
        assert by(talk.server(payload=b"y")) == BACK


def test_rules_of_routing_count_with_the_next_packet(node: Node, net: Net) -> None:
    follow(node, RESTORE)
    talk = Held(node, net, mark="7")
    assert by(talk.client(payload=b"x")) == FRONT
    with uplink(node, net, "7", NARROW):
        assert talk.client(payload=b"x").reason == "punt_adopted"  # of which rules would be told another way
        assert by(talk.client(payload=b"x")) == NARROW
    assert talk.client(payload=b"x").reason == "punt_adopted"
    assert by(talk.client(payload=b"x")) == FRONT


def test_another_mark_is_another_way(node: Node, net: Net) -> None:
    """And what was carried before is told under the mark that it was carried under."""
    follow(node, RESTORE)
    with uplink(node, net, "7", NARROW):
        talk = Held(node, net, mark="7")
        assert by(talk.client(payload=b"x")) == NARROW
        remark(node, net, 8)
        assert talk.client(payload=b"x").reason == "punt_adopted"
        assert by(talk.client(payload=b"x")) == FRONT
        [flow] = node.datapath.flows()
        assert flow["mark"] == 8


def remark(node: Node, net: Net, mark: int) -> None:
    family = "ipv6" if net.family == 6 else "ipv4"
    node.world.node.run("conntrack", "-U", "-f", family, "-p", "tcp", "--mark", str(mark))
    node.datapath.bump_mirror()  # or two seconds later


def test_who_would_get_another_mark_is_linux_own(node: Node, net: Net) -> None:
    follow(node, "-A POSTROUTING -m mark --mark 0x0 -j CONNMARK --set-xmark 0x5/0xffffffff")
    assert Held(node, net, mark="7").client(payload=b"x").reason == "punt_kept"


def test_who_has_the_mark_already_is_carried(node: Node, net: Net) -> None:
    follow(node, "-A POSTROUTING -m mark --mark 0x0 -j CONNMARK --set-xmark 0x5/0xffffffff")
    assert Held(node, net, mark="5").client(payload=b"x").reason == "forward_adopted"


def test_marks_are_kept_by_class(node: Node, net: Net) -> None:
    follow(node, "-A FORWARD -m connmark --mark 0x10/0x30 -j DROP")
    assert Held(node, net, mark="0x14").client(payload=b"x").reason == "punt_kept"


def test_marks_of_others_are_carried(node: Node, net: Net) -> None:
    follow(node, "-A FORWARD -m connmark --mark 0x10/0x30 -j DROP")
    assert Held(node, net, mark="0x34").client(payload=b"x").reason == "forward_adopted"


def test_packets_leave_with_the_mark_that_linux_would_send_them_with(node: Node, net: Net, hook: str) -> None:
    """For filters and queues of the device that they leave by. XDP's frames pass none."""
    follow(node, RESTORE, "-A POSTROUTING -j MARK --set-xmark 0x100/0x100")
    talk = Held(node, net, mark="7")
    assert talk.client(payload=b"x").verdict == "forward"
    run = node.run(talk.client_frame("A", payload=b"x"), talk.client_device)
    if hook == "tc":
        assert run.mark == 0x107
    assert talk.client(payload=b"x").reason == "forward_flow"


@pytest.mark.parametrize(
    ("filtered", "valid", "carried"),
    [(0, 0, True), (1, 0, False), (2, 0, True), (1, 1, True)],
    ids=["no filter", "strict", "loose", "strict, with the mark"],
)
@pytest.mark.usefixtures("setting")
def test_reverse_path_filter_is_linux_own(
    node: Node, net: Net, filtered: int, valid: int, carried: bool
) -> None:
    """The server's packets come in by one uplink, while the main table leads to it by the other. Over IPv6
    nobody asks.
    """
    set_to(node, FRONT, "rp_filter", filtered)
    set_to(node, FRONT, "src_valid_mark", valid)
    follow(node, RESTORE)
    talk = Held(node, net, mark="7")
    with (
        uplink(node, net, "7", FRONT),
        node.world.route("add", net.server, "via", net.router(NARROW), "dev", NARROW),
    ):
        assert by(talk.client(payload=b"x")) == FRONT
        out = talk.server(payload=b"y")
        assert (out.verdict == "forward") == (carried or net.family == 6), out.reason
