# SPDX-License-Identifier: Apache-2.0
"""Connections that Linux' conntrack holds are carried as Linux would, as long as what was proved of its rules
holds, and only as far as that goes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import astuple, replace
from ipaddress import ip_network
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import IPOption_RR
from scapy.layers.inet6 import IPv6ExtHdrHopByHop
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from clearway.compiler.classifier import Condition, Sets, compile_classifier
from clearway.datapath import features
from clearway.linux import nftables
from clearway.proof import Mangle
from tests.packet.addresses import (
    BACK,
    FRONT,
    NARROW,
    NARROW_MTU,
    SPARE,
    Net,
    device_mac,
    neighbour_mac,
)
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.flowtable import PROTOCOLS as NUMBERS
from tests.packet.flowtable import Tuple, packed
from tests.packet.frames import frame, hop_limit, icmp_error, l3, network, ports, tcp
from tests.packet.marks import PROTOCOLS
from tests.packet.node import HANDED_OVER, Node, Outcome
from tests.packet.test_fragments import datagram, fragments, whole_packet

BOTH = 1 | 2 | 16 | 32  # TRUST_IPV4 | TRUST_IPV6 | TRUST_NAT_IPV4 | TRUST_NAT_IPV6
MARKED, OTHER = 4, 8
REFUSED_S = 0.03  # ADOPT_REFUSED_MS, and a jiffy
UNTOLD_S = 0.11  # ADOPT_UNTOLD_MS, and a jiffy
PATIENCE = 20.0  # seconds; its turn comes four times in each


@pytest.fixture(autouse=True)
def nothing_left(node: Node) -> Iterator[None]:
    """Linux knows no connection before and after a test, and nothing is proved."""
    if not features.has_adoption():
        pytest.skip("this kernel does not show a program which ruleset is in force (Linux 6.17)")
    clean(node)
    yield
    clean(node)


def clean(node: Node) -> None:
    node.world.node.run("conntrack", "-F")
    node.datapath.set_trust(0, 0)
    for place in range(16, 96):
        node.datapath.classifiers.drop(place)
    table = node.datapath.table("refused_v1")
    keys, rows = table.items()
    table.update(keys, np.zeros_like(rows))


def refuse_somebody(node: Node, row: int) -> None:
    """The row is one of a connection that nobody has."""
    table = node.datapath.table("refused_v1")
    keys, rows = table.rows(1)
    keys[0], rows[0] = row, 0xDEAD << 32 | 0xFF
    table.update(keys, rows)


def trust(node: Node, what: int = BOTH, policies: int = 0) -> None:
    with node.world.node.entered():
        node.datapath.set_trust(nftables.generation(), what, policies)
    node.datapath.bump_mirror()


class Held(Conversation):
    """A connection from an inside host to a server, which Linux holds."""

    def __init__(self, node: Node, net: Net, proto: str = "tcp", source: str = "", **conntrack: Any) -> None:
        """source: the address and port that Linux has translated the client's to."""
        super().__init__(node, net, proto=proto, inside=True, client=net.inside)
        if source:
            self.leaves = Tuple(proto, source, 50_000, net.server, 80)
        self.hold(**conntrack)

    def hold(self, status: str = "ASSURED,SEEN_REPLY", state: str = "ESTABLISHED", **options: str) -> None:
        a, b = self.arrives, self.leaves
        words = ["-I", "-p", self.proto, "-t", "100", "-u", status]
        words += ["-s", a.src, "-d", a.dst, "--sport", str(a.sport), "--dport", str(a.dport)]
        words += ["-r", b.dst, "-q", b.src]
        words += ["--reply-port-src", str(b.dport), "--reply-port-dst", str(b.sport)]
        if self.proto == "tcp":
            words += ["--state", state]
        for name, value in options.items():
            words += [f"--{name}", value]
        self.node.world.node.run("conntrack", *words)

    def client(self, flags: str = "A", **segment: Any) -> Outcome:
        self._sight(self.client_frame(flags, **segment), self.client_device)
        return super().client(flags, **segment)

    def server(self, flags: str = "A", **segment: Any) -> Outcome:
        self._sight(self.server_frame(flags, **segment), self.server_device)
        return super().server(flags, **segment)

    def _sight(self, frame: bytes, device: str) -> None:
        """The first packet of its kind is Linux' in any case."""
        if not self.node.flows.entries():
            self.node.run(frame, device)

    def forget(self) -> None:
        a = self.arrives
        words = ["-p", self.proto, "-s", a.src, "-d", a.dst, "--sport", str(a.sport), "--dport", str(a.dport)]
        family = "ipv6" if self.net.family == 6 else "ipv4"
        self.node.world.node.run("conntrack", "-D", "-f", family, *words)

    def timeout(self) -> int:
        """Seconds that Linux gives the connection."""
        family = "ipv6" if self.net.family == 6 else "ipv4"
        [line] = self.node.world.node.run("conntrack", "-L", "-f", family).stdout.splitlines()
        return int(line.split()[2])


def tuples(out: Outcome) -> tuple[str, int, str, int]:
    layer = network(out.packet)
    sport, dport = ports(out.packet)
    return str(layer.src), sport, str(layer.dst), dport


def key_of(node: Node, way: Tuple) -> np.void:
    """struct tuple."""
    row = np.zeros(1, node.datapath.struct("tuple"))
    row["src"], row["dst"] = packed(way.src), packed(way.dst)
    row["sport"], row["dport"] = way.sport, way.dport
    row["proto"], row["family"] = NUMBERS[way.proto], 6 if ":" in way.src else 4
    key: np.void = row[0]
    return key


@PROTOCOLS
def test_both_directions_are_carried_as_they_are(node: Node, net: Net, proto: str) -> None:
    trust(node)
    talk = Held(node, net, proto)
    there, back = talk.client(payload=b"x"), talk.server(payload=b"y")
    assert (there.reason, back.reason) == ("forward_adopted", "forward_resolved")
    assert (there.packet.src, there.packet.dst) == (device_mac(FRONT), neighbour_mac(FRONT, 60))
    assert (back.packet.src, back.packet.dst) == (device_mac(BACK), neighbour_mac(BACK, 50))
    assert hop_limit(there.packet) == 63
    assert [talk.client(payload=b"x").reason, talk.server(payload=b"y").reason] == ["forward_flow"] * 2


@PROTOCOLS
def test_translation_is_linux_own(node: Node, net: Net, proto: str) -> None:
    trust(node)
    talk = Held(node, net, proto, source=net.node(FRONT))
    there, back = talk.client(payload=b"x"), talk.server(payload=b"y")
    assert tuples(there) == (net.node(FRONT), 50_000, net.server, 80)
    assert tuples(back) == (net.server, 80, net.inside, 40_000)
    assert talk.server(payload=b"y").reason == "forward_flow"


@PROTOCOLS
def test_the_answering_direction_may_be_first(node: Node, net: Net, proto: str) -> None:
    trust(node)
    talk = Held(node, net, proto, source=net.node(FRONT))
    back, there = talk.server(payload=b"y"), talk.client(payload=b"x")
    assert (back.reason, there.reason) == ("forward_adopted", "forward_resolved")
    assert tuples(back) == (net.server, 80, net.inside, 40_000)
    assert tuples(there) == (net.node(FRONT), 50_000, net.server, 80)


def test_nothing_is_adopted_without_proof(node: Node, net: Net) -> None:
    talk = Held(node, net)
    assert talk.client(payload=b"x").reason == "punt_unproven"
    assert node.flows.entries() == 0


def test_proof_of_one_family_is_not_of_the_other(node: Node, net: Net) -> None:
    trust(node, 2 | 32 if net.family == 4 else 1 | 16)
    assert Held(node, net).client(payload=b"x").reason == "punt_unproven"


def test_the_very_next_packet_after_a_rule_change_goes_to_linux(node: Node, net: Net) -> None:
    trust(node)
    talk = Held(node, net)
    assert [talk.client(payload=b"x").reason for _ in range(2)] == ["forward_adopted", "forward_flow"]
    node.world.node.run("nft", "add", "table", "inet", "changes")
    try:
        assert talk.client(payload=b"x").reason == "punt_unproven"
        assert talk.server(payload=b"y").reason == "punt_unproven"
        trust(node)
        assert [talk.client(payload=b"x").reason for _ in range(2)] == ["forward_resolved", "forward_flow"]
    finally:
        node.world.node.run("nft", "delete", "table", "inet", "changes")


@pytest.mark.parametrize(
    "conntrack",
    [{"status": "SEEN_REPLY"}, {"status": "UNSET"}, {"state": "FIN_WAIT"}, {"state": "SYN_RECV"}],
    ids=lambda given: "-".join(given.values()),
)
def test_only_what_is_established_is_adopted(node: Node, net: Net, conntrack: dict[str, str]) -> None:
    trust(node)
    assert Held(node, net, **conntrack).client(payload=b"x").reason == "punt_not_ours"


def test_unknown_connections_stay_linux_own(node: Node, net: Net) -> None:
    trust(node)
    talk = Conversation(node, net, inside=True, client=net.inside)
    assert [talk.first().reason, talk.client(payload=b"x").reason] == ["punt_not_ours"] * 2


def test_without_rules_of_nat_linux_translates_nothing(node: Node, net: Net) -> None:
    """Not even the connections that it has translated when there were some."""
    trust(node, 1 | 2)
    assert Held(node, net, source=net.node(FRONT)).client(payload=b"x").reason == "punt_kept"
    assert Held(node, net, "udp").client(payload=b"x").reason == "forward_adopted"


def policy(node: Node, action: str, net: Net, direction: str = "out") -> None:
    """Of IPsec, about others than those who talk here."""
    ends = ("src", net.remote_prefix, "dst", net.remote_prefix)
    node.world.node.run("ip", "xfrm", "policy", action, *ends, "dir", direction)


@pytest.mark.parametrize("direction", ["out", "fwd"])
def test_the_very_next_packet_after_a_policy_is_added_goes_to_linux(
    node: Node, net: Net, direction: str
) -> None:
    trust(node)
    talk = Held(node, net)
    assert [talk.client(payload=b"x").reason for _ in range(2)] == ["forward_adopted", "forward_flow"]
    policy(node, "add", net, direction)
    try:
        assert talk.client(payload=b"x").reason == "punt_unproven"
        trust(node, policies=1)  # it is known, and not about this connection
        assert talk.client(payload=b"x").reason.startswith("forward")
    finally:
        policy(node, "delete", net, direction)
    node.datapath.bump_mirror()
    assert talk.client(payload=b"x").reason == "punt_unproven"


def test_policies_of_packets_in_are_nobodys_who_forwards(node: Node, net: Net) -> None:
    trust(node)
    talk = Held(node, net)
    policy(node, "add", net, "in")
    try:
        assert talk.client(payload=b"x").reason == "forward_adopted"
    finally:
        policy(node, "delete", net, "in")


@pytest.mark.parametrize("direction", ["out", "fwd"])
def test_what_no_policy_is_about_may_be_blocked(node: Node, net: Net, direction: str) -> None:
    trust(node)
    talk = Held(node, net)
    assert talk.client(payload=b"x").reason == "forward_adopted"
    node.world.node.run("ip", "xfrm", "policy", "setdefault", direction, "block")
    try:
        assert talk.client(payload=b"x").reason == "punt_unproven"
    finally:
        node.world.node.run("ip", "xfrm", "policy", "setdefault", direction, "accept")


@pytest.mark.parametrize("flags", ["S", "SA", "FA", "RA", "R"])
def test_what_changes_a_connection_is_linux_to_judge(node: Node, net: Net, flags: str) -> None:
    trust(node)
    talk = Held(node, net)
    assert talk.client(payload=b"x").reason == "forward_adopted"
    assert talk.client(flags).reason == "punt_adopted"
    assert node.flows.entries() == 0


def behind_options(above: Packet, talk: Held) -> bytes:
    """IPv4 options, or an IPv6 header for every hop."""
    src, dst = talk.arrives.src, talk.arrives.dst
    if talk.net.family == 4:
        return frame(BACK, src, dst, above, options=IPOption_RR(routers=["0.0.0.0"]))
    return frame(BACK, src, dst, IPv6ExtHdrHopByHop() / above)


@pytest.mark.parametrize(("flags", "ends"), [("A", False), ("S", True), ("FA", True), ("R", True)])
def test_what_changes_a_connection_counts_behind_options_too(
    node: Node, net: Net, flags: str, ends: bool
) -> None:
    trust(node)
    talk = Held(node, net)
    assert talk.client(payload=b"x").reason == "forward_adopted"
    sent = behind_options(tcp(talk.arrives.sport, talk.arrives.dport, flags), talk)
    out = node.send(sent, BACK)
    assert (out.reason, out.frame) == ("punt_ip_options", sent)
    assert node.flows.entries() == (0 if ends else 2)


def test_options_before_what_is_malformed_are_linux_to_judge(node: Node, net: Net) -> None:
    trust(node)
    talk = Held(node, net)
    assert talk.client(payload=b"x").reason == "forward_adopted"
    cut = Raw(bytes(tcp(talk.arrives.sport, talk.arrives.dport, "FA"))[:16])
    if net.family == 4:
        sent = frame(
            BACK, talk.arrives.src, talk.arrives.dst, cut, proto=6, options=IPOption_RR(routers=["0.0.0.0"])
        )
    else:
        sent = frame(BACK, talk.arrives.src, talk.arrives.dst, IPv6ExtHdrHopByHop(nh=6) / cut)
    assert node.send(sent, BACK).reason == "punt_ip_options"
    assert node.flows.entries() == 2


def test_flags_may_hide_in_the_next_fragment(node: Node, net: Net) -> None:
    """Linux puts the segment together; whose it is the first eight bytes tell."""
    trust(node)
    talk = Held(node, net)
    assert talk.client(payload=b"x").reason == "forward_adopted"
    segment = tcp(talk.arrives.sport, talk.arrives.dport, "FA")
    pieces = fragments(BACK, whole_packet(talk.arrives.src, talk.arrives.dst, segment), size=8)
    assert [node.send(piece, BACK).reason for piece in pieces] == ["punt_malformed", *["punt_fragment"] * 2]
    assert node.flows.entries() == 0


def test_expired_and_fragments_are_linux_to_judge(node: Node, net: Net) -> None:
    trust(node)
    talk = Held(node, net, "udp")
    assert talk.client(payload=b"x").reason == "forward_adopted"
    assert talk.client(payload=b"x", ttl=1).reason == "punt_adopted"
    arrives = talk.arrives
    whole = whole_packet(arrives.src, arrives.dst, datagram("udp", arrives.sport, arrives.dport))
    assert {node.send(piece, BACK).reason for piece in fragments(BACK, whole)} == {"punt_adopted"}
    assert talk.client(payload=b"x").reason == "forward_flow"


def test_over_the_mtu_is_linux_to_answer(node: Node, net: Net) -> None:
    trust(node)
    talk = Held(node, net)
    talk.client(payload=b"x")
    with node.world.route("add", net.server, "via", net.router(NARROW), "dev", NARROW):
        out = talk.client(payload=b"x" * (NARROW_MTU - 20))
        assert (out.reason, out.frame) == ("punt_adopted", out.sent)


def test_errors_about_it_are_linux_to_translate(node: Node, net: Net) -> None:
    trust(node)
    talk = Held(node, net, source=net.node(FRONT))
    sent = talk.client(payload=b"x")
    error = frame(FRONT, net.server, net.node(FRONT), icmp_error("too-big", l3(sent.frame)))
    assert node.send(error, FRONT).reason == "punt_icmp"


def test_deleted_by_linux_is_deleted_here(node: Node, net: Net) -> None:
    trust(node)
    talk = Held(node, net)
    talk.client(payload=b"x")
    talk.forget()
    node.datapath.bump_mirror()  # or two seconds later
    assert talk.client(payload=b"x").reason == "punt_not_ours"
    assert node.flows.entries() == 0


def test_what_linux_does_not_tell_of_is_asked_about_sooner(node: Node, net: Net) -> None:
    """Connections that are older than our listening."""
    trust(node)
    told = Held(node, net)
    node.world.node.sysctl({"netfilter/nf_conntrack_events": 0})
    try:
        untold = Held(node, net, "udp")
    finally:
        node.world.node.sysctl({"netfilter/nf_conntrack_events": 2})
    for talk in (told, untold):
        node.run(talk.client_frame("A", payload=b"x"), talk.client_device)
        assert talk.client(payload=b"x").reason in {"forward_adopted", "forward_flow"}
    time.sleep(UNTOLD_S)
    assert told.client(payload=b"x").reason == "forward_flow"
    assert untold.client(payload=b"x").reason == "forward_resolved"


def test_release_ends_an_adopted_connection_and_no_other(node: Node, net: Net) -> None:
    node.apply([service(net)])
    trust(node)
    talk, ours = Held(node, net, source=net.node(FRONT)), Conversation(node, net).open()
    talk.client(payload=b"x")
    assert node.datapath.release(key_of(node, talk.arrives))
    assert not node.datapath.release(key_of(node, ours.arrives))
    assert node.flows.connection().destination_out == net.endpoint
    assert node.datapath.ended()["linux"] >= 1


def test_another_translation_is_another_connection(node: Node, net: Net) -> None:
    trust(node)
    talk = Held(node, net, source=net.node(FRONT))
    talk.client(payload=b"x")
    talk.forget()
    talk.leaves = Tuple("tcp", net.node(FRONT), 50_001, net.server, 80)
    talk.hold()
    node.datapath.bump_mirror()
    assert talk.client(payload=b"x").reason == "punt_adopted"
    assert tuples(talk.client(payload=b"x")) == (net.node(FRONT), 50_001, net.server, 80)


@PROTOCOLS
def test_linux_timeout_is_kept_alive(node: Node, net: Net, proto: str) -> None:
    trust(node)
    talk = Held(node, net, proto)
    talk.client(payload=b"x")
    assert talk.timeout() <= 100  # Linux has just given it
    talk.server(payload=b"y")
    node.datapath.bump_mirror()  # or two seconds later
    talk.client(payload=b"x")
    assert talk.timeout() > (400_000 if proto == "tcp" else 110)


def test_without_answers_linux_timeout_is_that_of_unacknowledged_data(node: Node, net: Net) -> None:
    trust(node)
    talk = Held(node, net)
    talk.client(payload=b"x")
    node.flows.let_time_pass(talk, seconds=3)
    node.datapath.bump_mirror()
    talk.client(payload=b"x")
    assert 100 < talk.timeout() <= 300


@pytest.mark.parametrize("view", [0, 1, 2], ids=["before", "between", "after"])
def test_what_a_rule_may_meet_is_kept(node: Node, net: Net, view: int) -> None:
    """Each view sees other addresses of a connection whose source is translated."""
    trust(node, BOTH | OTHER)
    talk = Held(node, net, source=net.node(FRONT))
    source = {0: net.inside, 1: net.inside, 2: net.node(FRONT)}[view]
    rule = compile_classifier([Condition(source=(ip_network(source),))], Sets(), net.family, [1])
    place = 16 | 8 | view << 1 | (net.family == 6)
    node.datapath.classifiers.put(place, rule.lines)
    assert talk.client(payload=b"x").reason == "punt_kept"
    assert node.flows.entries() == 0
    node.datapath.classifiers.drop(place)
    node.datapath.bump_mirror()
    assert talk.client(payload=b"x").reason == "forward_adopted"


LOOSE, STRICT, DEVICE = 1, 2, 3  # enum back


def way_back(node: Node, net: Net, back: int, source: str) -> None:
    """Rules want such a way back to that sender."""
    told = compile_classifier([Condition(source=(ip_network(source),))], Sets(), net.family, [back])
    node.datapath.classifiers.put(16 | 3 << 1 | (net.family == 6), told.lines)
    trust(node)


@pytest.mark.parametrize("back", [LOOSE, STRICT], ids=["loose", "strict"])
@pytest.mark.parametrize("source", ["", "translated"])
def test_a_way_back_is_asked_for_where_rules_ask(node: Node, net: Net, back: int, source: str) -> None:
    way_back(node, net, back, net.inside)
    talk = Held(node, net, source=net.node(FRONT) if source else "")
    assert talk.client(payload=b"x").reason == "forward_adopted"
    assert talk.server(payload=b"y").reason == "forward_resolved"  # of this one they do not ask it


@pytest.mark.parametrize(("back", "carried"), [(0, True), (LOOSE, True), (STRICT, False), (DEVICE, False)])
def test_the_way_back_is_looked_up_as_rules_do(node: Node, net: Net, back: int, carried: bool) -> None:
    """A policy rule about what comes in by the device is not asked: the strict filter of the kernel itself
    (rp_filter) finds the sender behind it, and those of rules do not.
    """
    way_back(node, net, back, net.inside)
    talk = Held(node, net)
    six = ["-6"] if net.family == 6 else []
    whole = f"{net.inside}/{128 if net.family == 6 else 32}"
    node.world.node.run("ip", *six, "route", "add", whole, "dev", BACK, "table", "77")
    node.world.node.run("ip", *six, "rule", "add", "iif", BACK, "lookup", "77", "pref", "77")
    try:
        with node.world.route("add", whole, "dev", SPARE):
            node.datapath.bump_mirror()
            assert (talk.client(payload=b"x").reason == "forward_adopted") is carried
        node.datapath.bump_mirror()
        assert talk.client(payload=b"x").reason.startswith("forward") is (back != DEVICE)
    finally:
        node.world.node.run("ip", *six, "rule", "del", "pref", "77")
        node.world.node.run("ip", *six, "route", "flush", "table", "77")


@pytest.mark.parametrize("back", [LOOSE, STRICT], ids=["loose", "strict"])
def test_a_way_back_that_goes_away_counts_with_the_next_packet(node: Node, net: Net, back: int) -> None:
    way_back(node, net, back, net.server)
    talk = Held(node, net)
    assert talk.server(payload=b"y").reason == "forward_adopted"
    assert talk.server(payload=b"y").reason == "forward_flow"
    whole = f"{net.server}/{128 if net.family == 6 else 32}"
    with node.world.route("add", "unreachable", whole):
        assert talk.server(payload=b"y").reason in {"punt_kept", "punt_not_ours"}


EF = Mangle(tos_keep=3, tos_flip=46 << 2)


def changing(node: Node, net: Net, mangle: Mangle, source: str = "", view: int = 1) -> None:
    """Rules change packets of that sender, of all without one."""
    node.datapath.put_mangles([astuple(Mangle()), astuple(mangle)])
    condition = Condition(source=(ip_network(source),)) if source else Condition()
    told = compile_classifier([condition], Sets(), net.family, [1])
    node.datapath.classifiers.put(64 | view << 1 | (net.family == 6), told.lines)
    trust(node)


def send(talk: Held, tos: int = 0, ttl: int = 64, *, back: bool = False) -> Outcome:
    made = talk.server_frame(ttl=ttl, payload=b"y") if back else talk.client_frame(ttl=ttl, payload=b"x")
    packet = Ether(made)
    layer = network(packet)
    if talk.net.family == 6:
        layer.tc = tos
    else:
        layer.tos = tos
        del layer.chksum
    device = talk.server_device if back else talk.client_device
    talk._sight(bytes(packet), device)
    return talk.node.send(bytes(packet), device)


def tos_of(packet: Packet) -> int:
    layer = network(packet)
    return int(layer.tos if layer.version == 4 else layer.tc)


@PROTOCOLS
@pytest.mark.parametrize("translated", [False, True])
def test_dscp_is_set_as_rules_do(node: Node, net: Net, proto: str, translated: bool) -> None:
    """Of the direction that they are about. ECN stays as it is."""
    changing(node, net, EF, net.inside)
    talk = Held(node, net, proto, source=net.node(FRONT) if translated else "")
    for reason in ("forward_adopted", "forward_flow"):
        there = send(talk, tos=0x03)
        assert (there.reason, tos_of(there.packet), hop_limit(there.packet)) == (reason, 46 << 2 | 3, 63)
    for reason in ("forward_resolved", "forward_flow"):
        back = send(talk, tos=0x29, back=True)
        assert (back.reason, tos_of(back.packet), hop_limit(back.packet)) == (reason, 0x29, 63)
    assert tos_of(send(talk, tos=0xFF).packet) == 46 << 2 | 3


@pytest.mark.parametrize("view", [0, 1, 2], ids=["before", "between", "after"])
def test_changes_are_of_a_view(node: Node, net: Net, view: int) -> None:
    changing(node, net, EF, net.node(FRONT) if view == 2 else net.inside, view)
    talk = Held(node, net, source=net.node(FRONT))
    assert [tos_of(send(talk, tos=1).packet) for _ in range(2)] == [46 << 2 | 1] * 2


HOPS = (  # what rules make of TTLs: as packets arrive, as they leave; 0: it is Linux' to answer
    (Mangle(hops_add=33, hops_keep=0), {64: 33, 2: 33, 255: 33}),
    (Mangle(hops_add=255, hops_keep=0), {64: 255}),
    (Mangle(hops_add=-4), {64: 60, 5: 1, 4: 0, 2: 0}),
    (Mangle(hops_add=4, hops_most=254), {64: 68, 249: 253, 255: 254}),
)


@pytest.mark.parametrize(("mangle", "becomes"), HOPS, ids=["set", "most", "dec", "inc"])
def test_ttl_is_changed_as_rules_do(node: Node, net: Net, mangle: Mangle, becomes: Mapping[int, int]) -> None:
    changing(node, net, mangle)
    talk = Held(node, net)
    assert send(talk, ttl=200).reason == "forward_adopted"
    for arrives, leaves in becomes.items():
        out = send(talk, ttl=arrives)
        assert (out.reason == "forward_flow") is bool(leaves)
        assert not leaves or hop_limit(out.packet) == leaves
        if not leaves:
            assert out.reason == "punt_adopted"


def test_another_change_counts_with_the_next_packet(node: Node, net: Net) -> None:
    changing(node, net, EF)
    talk = Held(node, net)
    assert [tos_of(send(talk).packet) for _ in range(2)] == [46 << 2] * 2
    changing(node, net, Mangle(tos_keep=0, tos_flip=0x20, hops_add=9, hops_keep=0))
    out = send(talk, tos=2)
    assert (out.reason, tos_of(out.packet), hop_limit(out.packet)) == ("forward_resolved", 0x20, 9)
    node.datapath.classifiers.drop(64 | 1 << 1 | (net.family == 6))
    node.datapath.bump_mirror()
    assert [tos_of(send(talk, tos=2).packet) for _ in range(2)] == [2, 2]


def test_routing_sees_what_is_set_before_it(node: Node, net: Net) -> None:
    """A way that is only for the new class is not known when rules are asked about the way out."""
    change = Mangle(tos_keep=3, tos_flip=0x10)
    changing(node, net, replace(change, early=True), view=0)
    talk = Held(node, net)
    assert tos_of(send(talk).packet) == 0x10
    six = ["-6"] if net.family == 6 else []
    words = ["tos", "0x10", "lookup", "78", "pref", "78"]
    node.world.node.run("ip", *six, "rule", "add", *words)
    where = ["default", "via", net.router(SPARE), "dev", SPARE, "table", "78"]
    node.world.node.run("ip", *six, "route", "add", *where)
    try:
        node.datapath.bump_mirror()
        assert send(talk).reason == "punt_kept"
        changing(node, net, change, view=0)
        assert tos_of(send(talk).packet) == 0x10
    finally:
        node.world.node.run("ip", *six, "rule", "del", "pref", "78")
        node.world.node.run("ip", *six, "route", "flush", "table", "78")


def test_a_kept_direction_ends_the_adoption(node: Node, net: Net) -> None:
    trust(node)
    talk = Held(node, net)
    rule = compile_classifier([Condition(source=(ip_network(net.server),))], Sets(), net.family, [1])
    node.datapath.classifiers.put(16 | (net.family == 6), rule.lines)
    assert talk.client(payload=b"x").reason == "forward_adopted"
    assert talk.server(payload=b"y").reason == "punt_kept"
    assert node.flows.entries() == 0


def test_the_first_packet_of_its_kind_is_left_to_linux_unasked(node: Node, net: Net) -> None:
    trust(node)
    held = Held(node, net)
    plain = Conversation(node, net, inside=True, client=net.inside)
    assert [plain.client(payload=b"x").reason for _ in range(2)] == ["punt_not_ours", "forward_adopted"]
    assert held.client(payload=b"x").reason == "forward_flow"


def test_refused_ones_are_asked_about_again(node: Node, net: Net) -> None:
    trust(node)
    talk = Conversation(node, net, inside=True, client=net.inside)
    assert [talk.client(payload=b"x").reason for _ in range(3)] == ["punt_not_ours"] * 3
    held = Held(node, net)
    time.sleep(REFUSED_S)
    assert held.client(payload=b"x").reason == "forward_flow"  # adopted with its packet before


def test_connections_that_share_a_row_are_adopted(node: Node, net: Net) -> None:
    """Each takes the row from the other, so that it always seems to be the first packet of its kind."""
    trust(node)
    held = Held(node, net)
    frame, device = held.client_frame("A"), held.client_device
    node.run(frame, device)
    [row] = np.flatnonzero(node.datapath.table("refused_v1").items()[1]).tolist()
    refuse_somebody(node, row)
    deadline = time.monotonic() + PATIENCE
    while node.send(frame, device).reason == "punt_not_ours" and time.monotonic() < deadline:
        refuse_somebody(node, row)
    assert held.client(payload=b"x").reason == "forward_flow"


def test_who_is_refused_again_is_asked_about_less_often(node: Node, net: Net) -> None:
    """20 ms, 40 ms, ... 320 ms."""
    trust(node)
    talk = Conversation(node, net, inside=True, client=net.inside)
    frame, device = talk.client_frame("A"), talk.client_device
    times = []
    for _ in range(7):
        node.run(frame, device)  # sighted, or asked about
        node.run(frame, device)
        [said] = [n for n in node.datapath.table("refused_v1").items()[1].tolist() if n]
        times.append(said >> 8 & 7)
        time.sleep(REFUSED_S + 0.02 * 2 ** times[-1])
    assert times == [0, 1, 2, 3, 4, 4, 4]


def test_a_service_claims_what_was_adopted(node: Node, net: Net) -> None:
    trust(node)
    talk = Held(node, net)
    assert talk.client(payload=b"x").reason == "forward_adopted"
    node.apply(nat=[masquerade(net)], midstream="pick-up")
    talk.forget()
    out = talk.client(payload=b"x")
    assert (out.reason, tuples(out)[0]) == ("forward_new", net.node(FRONT))


def test_where_out_leads_back_stays_in_linux(node: Node, net: Net) -> None:
    """Linux may tell the sender of a shorter way (ICMP redirect)."""
    trust(node)
    talk = Held(node, net)
    with node.world.route("add", net.server, "via", net.router(BACK), "dev", BACK):
        assert talk.client(payload=b"x").reason == "punt_not_ours"


def test_listened_interfaces_go_through_tc(node: Node, net: Net, hook: str) -> None:
    trust(node)
    talk = Held(node, net)
    mac = list(bytes.fromhex(device_mac(BACK).replace(":", "")))
    ifindex = node.world.ifindex[BACK]
    node.write("port_v1", ifindex, {"ifindex": ifindex, "mac": mac, "listened": 1})
    expected = HANDED_OVER if hook == "xdp" else "forward_adopted"
    assert talk.client(payload=b"x").reason == expected
