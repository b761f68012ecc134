# SPDX-License-Identifier: Apache-2.0
"""What Linux' rules say of services and NAT is respected: nothing passes that they are not known to let pass,
and Linux takes over what only it can follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network

import pytest

from clearway.compiler.classifier import Condition, Sets, compile_classifier
from clearway.datapath import features
from clearway.linux import nftables
from clearway.model import PortRange
from tests.packet.addresses import BACK, Net
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.frames import echo, frame
from tests.packet.marks import PROTOCOLS
from tests.packet.node import Node

HONOUR, ASK = 64, 128 | 256  # TRUST_HONOUR, TRUST_ASK_IPV4 | TRUST_ASK_IPV6
FIRST, LATER = 32, 48  # places of classifiers
BEFORE, BETWEEN, AFTER = range(3)
STRANGE = 1_000_000  # no ruleset here has had so many changes
NAT_CHAINS = """
table inet cw-own {
  chain p { type nat hook prerouting priority -90; }
  chain q { type nat hook postrouting priority 110; }
}
"""


@pytest.fixture(autouse=True)
def honoured(node: Node) -> Iterator[None]:
    """Rules count, and nothing is known of them yet; Linux can take over."""
    if not features.has_adoption():
        pytest.skip("this kernel does not show a program which ruleset is in force (Linux 6.17)")
    datapath = node.datapath
    datapath.honour_rules()
    datapath.set_table(True)
    yield
    row = datapath.table("trust_v2")
    row.update(*row.rows(1))
    for place in range(32, 64):
        datapath.classifiers.drop(place)
    node.world.node.run("conntrack", "-F")
    datapath.bump_mirror()


def know(node: Node, what: int = HONOUR | ASK) -> None:
    with node.world.node.entered():
        node.datapath.set_trust(nftables.generation(), what)
    node.datapath.bump_mirror()


@contextmanager
def kept(node: Node, net: Net, place: int, view: int, condition: Condition) -> Iterator[None]:
    """A rule that keeps in Linux what meets the condition."""
    where = place | view << 1 | (net.family == 6)
    lines = compile_classifier([condition], Sets(), net.family, [1]).lines
    node.datapath.classifiers.put(where, lines)
    node.datapath.bump_mirror()
    try:
        yield
    finally:
        node.datapath.classifiers.drop(where)
        node.datapath.bump_mirror()


def of_source(address: str) -> Condition:
    return Condition(source=(ip_network(address),))


def of_destination(address: str) -> Condition:
    return Condition(destination=(ip_network(address),))


def of_dport(port: int) -> Condition:
    return Condition(dport=(PortRange(port, port),))


Make = Callable[[Node, Net, str], Conversation]


def to_service(node: Node, net: Net, proto: str) -> Conversation:
    node.apply(services=[service(net, protocol=proto)])
    return Conversation(node, net, proto=proto)


def to_full_nat(node: Node, net: Net, proto: str) -> Conversation:
    node.apply(services=[service(net, protocol=proto, mode="full-nat")])
    return Conversation(node, net, proto=proto)


def to_nat(node: Node, net: Net, proto: str) -> Conversation:
    node.apply(nat=[masquerade(net)])
    return Conversation(node, net, proto=proto, inside=True)


CLAIMS = pytest.mark.parametrize("make", [to_service, to_full_nat, to_nat])


@CLAIMS
@PROTOCOLS
def test_what_rules_let_pass_is_carried(node: Node, net: Net, proto: str, make: Make) -> None:
    know(node)
    talk = make(node, net, proto)
    assert talk.first().verdict == "forward"
    assert talk.server("SA", payload=b"").verdict == "forward"
    assert talk.client(payload=b"x").verdict == "forward"
    assert node.world.node.run("conntrack", "-L").stdout == ""


@CLAIMS
def test_unknown_rules_let_nothing_pass(node: Node, net: Net, make: Make) -> None:
    talk = make(node, net, "tcp")
    assert talk.first().reason == "drop_unproven"
    assert node.flows.entries() == 0


def test_linux_gets_what_it_can_carry_by_now(node: Node, net: Net) -> None:
    know(node)
    talk = to_service(node, net, "tcp")
    with kept(node, net, FIRST, BEFORE, Condition()):
        node.datapath.set_table(False)
        assert talk.first().reason == "drop_unproven"
        node.datapath.set_table(True)
        assert talk.first().reason == "punt_kept"


@CLAIMS
@PROTOCOLS
def test_what_goes_on_waits_for_the_new_rules(node: Node, net: Net, proto: str, make: Make) -> None:
    know(node)
    talk = make(node, net, proto).open()
    node.datapath.set_trust(STRANGE, HONOUR | ASK)
    node.datapath.bump_mirror()
    there, back = talk.client(payload=b"x"), talk.server(payload=b"y")
    assert (there.reason, back.reason) == ("drop_unproven", "drop_unproven")
    know(node)
    there, back = talk.client(payload=b"x"), talk.server(payload=b"y")
    assert (there.verdict, back.verdict) == ("forward", "forward")


def test_clearways_own_change_holds_nobody_up(node: Node, net: Net) -> None:
    know(node)
    talk = to_service(node, net, "tcp").open()
    with node.world.node.entered():
        now = nftables.generation()
    node.datapath.expect(now, now + 1)
    assert talk.client(payload=b"x").reason in {"forward_flow", "forward_resolved"}
    node.world.node.run("nft", "-f", "-", stdin=NAT_CHAINS)
    try:
        assert talk.client(payload=b"x").reason == "forward_resolved"
        node.world.node.run("nft", "add", "chain", "inet", "cw-own", "more")  # and the next one is somebody's
        assert talk.client(payload=b"x").reason == "drop_unproven"
    finally:
        node.world.node.run("nft", "delete", "table", "inet", "cw-own")


@CLAIMS
def test_without_rules_nobody_is_asked(node: Node, net: Net, make: Make) -> None:
    know(node, HONOUR)
    everything = Condition()
    with kept(node, net, FIRST, BEFORE, everything), kept(node, net, LATER, BEFORE, everything):
        talk = make(node, net, "tcp").open()
        assert talk.client(payload=b"x").verdict == "forward"


@pytest.mark.parametrize("place", [FIRST, LATER])
def test_rules_see_addresses_as_they_are_where_they_stand(node: Node, net: Net, place: int) -> None:
    """Of the direction that opens: a service's, with full NAT."""
    know(node)
    talk = to_full_nat(node, net, "tcp")
    seen = {
        BEFORE: (of_source(net.client), of_destination(net.vip), of_dport(80)),
        BETWEEN: (of_source(net.client), of_destination(net.endpoint), of_dport(8080)),
        AFTER: (of_source(net.node(BACK)), of_destination(net.endpoint), of_dport(8080)),
    }
    for view, conditions in seen.items():
        for condition in conditions:
            with kept(node, net, place, view, condition):
                assert talk.first().reason == "punt_kept"
    strangers = ((BEFORE, net.endpoint), (BETWEEN, net.vip), (AFTER, net.vip))
    for view, stranger in strangers:
        with kept(node, net, place, view, of_destination(stranger)):
            assert talk.first().verdict == "forward"
            node.flows.clear()


def test_answers_are_asked_about_before_the_first_packet_passes(node: Node, net: Net) -> None:
    know(node)
    talk = to_service(node, net, "tcp")
    for view, source in ((BEFORE, net.endpoint), (BETWEEN, net.endpoint), (AFTER, net.vip)):
        with kept(node, net, LATER, view, of_source(source)):
            assert talk.first().reason == "punt_kept"
        with kept(node, net, FIRST, view, of_source(source)):
            assert talk.first().verdict == "forward"
            node.flows.clear()


def test_a_port_that_nobody_knew_before_is_asked_about(node: Node, net: Net) -> None:
    """Rules behind translation see the port that source NAT has chosen."""
    know(node)
    node.apply(nat=[masquerade(net, ports="2000-2001")])
    talk = Conversation(node, net, inside=True)
    ports = Condition(sport=(PortRange(2000, 2001),))
    with kept(node, net, FIRST, AFTER, ports):
        assert talk.first().reason == "punt_kept"
        assert node.flows.entries() == 0
    assert talk.first().verdict == "forward"


@CLAIMS
def test_the_middle_of_a_connection_is_linux_to_judge(node: Node, net: Net, make: Make) -> None:
    know(node)
    talk = make(node, net, "tcp")
    assert talk.client(payload=b"x").reason == "punt_kept"
    know(node, HONOUR)
    assert talk.client(payload=b"x").verdict == "forward"


def test_what_linux_balances_stays_linux(node: Node, net: Net) -> None:
    """Packets of UDP do not tell whether they are the first."""
    know(node)
    talk = to_service(node, net, "udp")
    a = talk.arrives
    node.world.node.run(
        *("conntrack", "-I", "-p", "udp", "-t", "100", "-s", a.src, "-d", a.dst),
        *("--sport", str(a.sport), "--dport", str(a.dport), "-r", net.endpoint, "-q", a.src),
        *("--reply-port-src", "8080", "--reply-port-dst", str(a.sport)),
    )
    assert talk.client().reason == "punt_kept"


@CLAIMS
@PROTOCOLS
def test_linux_takes_over_what_a_rule_keeps_by_now(node: Node, net: Net, proto: str, make: Make) -> None:
    know(node)
    talk = make(node, net, proto).open()
    with kept(node, net, LATER, BETWEEN, Condition()):
        assert talk.server(payload=b"y").reason == "drop_kept"  # nobody could translate it
        assert talk.client(payload=b"x").reason == "punt_kept"
        assert node.flows.entries() == 0
        family = f"ipv{net.family}"
        [line] = node.world.node.run("conntrack", "-L", "-f", family).stdout.splitlines()
        a, b = talk.arrives, talk.reply
        for words in (
            f"src={a.src} dst={a.dst} sport={a.sport} dport={a.dport}",
            f"src={b.src} dst={b.dst} sport={b.sport} dport={b.dport}",
        ):
            assert words in line
        assert "ASSURED" in line


def test_what_closes_a_kept_connection_waits_for_linux(node: Node, net: Net) -> None:
    """conntrack takes no connection up by its FIN (tcp_conntracks)."""
    know(node)
    talk = to_service(node, net, "tcp").open()
    with kept(node, net, LATER, BETWEEN, Condition()):
        assert talk.client("FA").reason == "drop_kept"
        assert talk.client("R").reason == "drop_kept"


@CLAIMS
def test_bypass_asks_nobody(node: Node, net: Net, make: Make) -> None:
    if make is to_nat:
        node.apply(nat=[masquerade(net, netfilter="bypass")])
        talk = Conversation(node, net, inside=True)
    else:
        mode = "full-nat" if make is to_full_nat else "nat"
        node.apply(services=[service(net, mode=mode, netfilter="bypass")])
        talk = Conversation(node, net)
    talk.open()  # nothing is known of the rules
    assert talk.client(payload=b"x").verdict == "forward"
    assert talk.server(payload=b"y").verdict == "forward"


def test_pings_are_linux_to_translate_where_rules_are(node: Node, net: Net) -> None:
    node.apply(nat=[masquerade(net)])
    ping = frame(BACK, net.inside, net.server, echo(net.family, 7))
    know(node)
    assert node.send(ping, BACK).reason == "punt_kept"
    know(node, HONOUR)
    assert node.send(ping, BACK).verdict == "forward"


def test_other_family_is_not_concerned(node: Node, net: Net) -> None:
    know(node, HONOUR | (256 if net.family == 4 else 128))
    with kept(node, net, FIRST, BEFORE, Condition()):
        assert to_service(node, net, "tcp").first().verdict == "forward"
