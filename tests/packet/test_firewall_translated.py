# SPDX-License-Identifier: Apache-2.0
"""The firewall and what is translated: rules see addresses as the client sent them, or, those that ask for
it, as they are afterwards. Rules that change end translated connections, or leave them their translation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.packet.addresses import BACK, FRONT, SPARE, Net
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.firewall import DEFAULT, firewall, judged, rule
from tests.packet.frames import network, ports
from tests.packet.marks import PROTOCOLS
from tests.packet.node import Node

MODES = pytest.mark.parametrize("mode", ["nat", "full-nat"])


def served(
    node: Node, net: Net, *rules: Mapping[str, Any], proto: str = "tcp", mode: str = "nat", **keys: Any
) -> Conversation:
    """A client of a service that meets these rules."""
    node.apply([service(net, protocol=proto, mode=mode)], firewall=firewall(*rules, **keys))
    return Conversation(node, net, proto=proto)


def masqueraded(
    node: Node, net: Net, *rules: Mapping[str, Any], proto: str = "tcp", **keys: Any
) -> Conversation:
    """An inside host whose connections are masqueraded, and meet these rules."""
    node.apply(nat=[masquerade(net, ports="2000-2999")], firewall=firewall(*rules, **keys))
    return Conversation(node, net, proto=proto, inside=True)


@PROTOCOLS
@MODES
def test_rule_sees_the_service(node: Node, net: Net, proto: str, mode: str) -> None:
    seen = rule(
        protocol=proto,
        source=net.client,
        destination=net.vip,
        source_ports=40000,
        destination_ports=80,
        interface_in=FRONT,
        interface_out=BACK,
        direction="through",
    )
    talk = served(node, net, seen, proto=proto, mode=mode)
    out = talk.first()
    assert (out.reason, network(out.packet).dst, ports(out.packet)[1]) == ("forward_new", net.endpoint, 8080)
    assert "has_service" in node.flows.flags(talk.arrives)
    talk.server("SA")
    talk.client("A")
    assert talk.client("A", payload=b"x").reason == "forward_flow"
    assert network(talk.server("A", payload=b"x").packet).src == net.vip
    assert judged(node).packets == 1


@PROTOCOLS
@pytest.mark.parametrize("field", ["destination", "destination_ports"])
def test_rule_does_not_see_the_endpoint(node: Node, net: Net, proto: str, field: str) -> None:
    asked: dict[str, Any] = {"destination": net.endpoint, "destination_ports": 8080}
    talk = served(node, net, rule(protocol=proto, **{field: asked[field]}), proto=proto)
    assert talk.first().reason == "drop_firewall"
    assert node.flows.entries() == 0


@PROTOCOLS
@MODES
def test_rule_after_translation_sees_the_endpoint(node: Node, net: Net, proto: str, mode: str) -> None:
    source = net.client if mode == "nat" else net.node(BACK)
    seen = rule(
        protocol=proto,
        source=source,
        destination=net.endpoint,
        destination_ports=8080,
        interface_in=FRONT,
        interface_out=BACK,
        after_translation=True,
    )
    assert served(node, net, seen, proto=proto, mode=mode).first().reason == "forward_new"


@pytest.mark.parametrize("field", ["destination", "destination_ports", "source"])
def test_rule_after_translation_does_not_see_the_service(node: Node, net: Net, field: str) -> None:
    asked: dict[str, Any] = {"destination": net.vip, "destination_ports": 80, "source": net.client}
    seen = rule(protocol="tcp", after_translation=True, **{field: asked[field]})
    assert served(node, net, seen, mode="full-nat").first().reason == "drop_firewall"


@PROTOCOLS
def test_rule_sees_the_inside_host(node: Node, net: Net, proto: str) -> None:
    seen = rule(protocol=proto, source=net.inside, destination=net.server, source_ports=40000)
    talk = masqueraded(node, net, seen, proto=proto)
    out = talk.first()
    assert (out.reason, network(out.packet).src) == ("forward_new", net.node(FRONT))
    assert network(talk.server("SA").packet).dst == net.inside


@PROTOCOLS
def test_rule_after_translation_sees_the_translated_source(node: Node, net: Net, proto: str) -> None:
    seen = rule(protocol=proto, source=net.node(FRONT), destination=net.server, after_translation=True)
    assert masqueraded(node, net, seen, proto=proto).first().reason == "forward_new"
    node.flows.clear()
    seen = rule(protocol=proto, source=net.inside, after_translation=True)
    assert masqueraded(node, net, seen, proto=proto).first().reason == "drop_firewall"


def test_rule_after_translation_sees_the_address_of_a_pool(node: Node, net: Net) -> None:
    pool = net.pool.split("-")[0].rpartition("." if net.family == 4 else "::")[0]
    prefix = f"{pool}.0/24" if net.family == 4 else f"{pool}::/64"
    node.apply(
        nat=[masquerade(net, masquerade=False, pool=net.pool)],
        firewall=firewall(rule(source=prefix, after_translation=True)),
    )
    assert Conversation(node, net, inside=True).first().reason == "forward_new"


def test_rule_after_translation_sees_what_is_not_translated_as_it_is(node: Node, net: Net) -> None:
    seen = rule(source=net.client, destination=net.inside, after_translation=True)
    node.apply([service(net)], firewall=firewall(seen))
    assert Conversation(node, net, to=net.inside).first().reason == "forward_new"
    assert Conversation(node, net).first().reason == "drop_firewall"


@pytest.mark.parametrize("order", ["before first", "after first"])
@pytest.mark.parametrize("first", ["accept", "drop"])
def test_first_of_both_kinds_of_rules_decides(node: Node, net: Net, order: str, first: str) -> None:
    rules = [
        rule("before", destination=net.vip, protocol="tcp", destination_ports=80),
        rule("after", destination=net.endpoint, after_translation=True),
    ]
    if order == "after first":
        rules.reverse()
    rules[0]["action"], rules[1]["action"] = first, "drop" if first == "accept" else "accept"
    out = served(node, net, rule("none", protocol="gre"), *rules).first()
    assert out.verdict == ("forward" if first == "accept" else "drop")
    assert [judged(node, each["name"]).packets for each in rules] == [1, 0]


def test_refused_client_opens_no_connection_to_an_endpoint(node: Node, net: Net) -> None:
    node.apply([service(net, *net.endpoints[:4], maglev_size=1021)], firewall=firewall())
    for port in range(2000, 2020):
        assert Conversation(node, net, sport=port).first().reason == "drop_firewall"
    _, opened = node.datapath.table("opened_v1").items()
    assert int(opened["connections"].sum()) == 0
    assert node.flows.entries() == 0


def test_service_without_endpoints_has_its_own_reason(node: Node, net: Net) -> None:
    node.apply([{**service(net), "endpoints": []}], firewall=firewall())
    assert Conversation(node, net).first().verdict == "drop"


def test_connection_without_a_place_goes_on_as_it_began(node: Node, net: Net) -> None:
    """Stateless, each of its packets is judged: as of a connection that began with SYN. They count once."""
    ruled = rule(protocol="tcp", tcp_flags="syn/syn,ack")
    node.apply([service(net)], firewall=firewall(ruled), when_full="stateless")
    node.flows.fill(net.family)
    talk = Conversation(node, net)
    assert talk.first().reason == "forward_stateless"
    for _ in range(2):
        assert talk.client("A", payload=b"x").reason == "forward_stateless"
    assert judged(node).packets == 1


# ---- rules that change ----


@pytest.fixture(params=["service", "full-nat", "masquerade"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def apply(node: Node, net: Net, kind: str, proto: str, rules: Mapping[str, Any] | None) -> None:
    if kind == "masquerade":
        node.apply(nat=[masquerade(net, ports="2000-2999")], firewall=rules)
    else:
        mode = "nat" if kind == "service" else kind
        node.apply([service(net, protocol=proto, mode=mode)], firewall=rules)


def opened(node: Node, net: Net, kind: str, proto: str) -> Conversation:
    return Conversation(node, net, proto=proto, inside=kind == "masquerade").open()


@PROTOCOLS
@pytest.mark.parametrize("side", ["client", "server"])
def test_translated_connection_that_new_rules_forbid_ends(
    node: Node, net: Net, kind: str, proto: str, side: str
) -> None:
    apply(node, net, kind, proto, firewall(rule()))
    talk = opened(node, net, kind, proto)
    apply(node, net, kind, proto, firewall(rule(protocol="gre")))
    assert getattr(talk, side)("A", payload=b"x").reason == "drop_firewall"
    for _ in range(2):  # nor does what follows open it again
        assert talk.server("A", payload=b"x").reason == "drop_firewall"
        assert talk.client("A", payload=b"x").reason == "drop_firewall"
    assert judged(node, DEFAULT).packets == 5


@PROTOCOLS
@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_translated_connection_that_new_rules_allow_keeps_its_translation(
    node: Node, net: Net, kind: str, proto: str, side: str, after: bool
) -> None:
    apply(node, net, kind, proto, firewall(rule()))
    talk = opened(node, net, kind, proto)
    leaves = node.flows.connection().leaves
    way = talk.leaves if after else talk.arrives
    port: dict[str, Any] = {} if after else {"source_ports": way.sport}
    seen = rule(
        "exact",
        protocol=proto,
        source=way.src,
        destination=way.dst,
        destination_ports=way.dport,
        interface_in=talk.client_device,
        interface_out=talk.server_device,
        after_translation=after,
        **port,
    )
    apply(node, net, kind, proto, firewall(seen))
    assert getattr(talk, side)("A", payload=b"x").reason == "forward_resolved"
    assert getattr(talk, side)("A", payload=b"x").reason == "forward_flow"
    assert node.flows.connection().leaves == leaves
    assert judged(node, "exact").packets == 0


@PROTOCOLS
@pytest.mark.parametrize("side", ["client", "server"])
def test_connection_of_a_service_is_judged_when_there_is_a_firewall_now(
    node: Node, net: Net, kind: str, proto: str, side: str
) -> None:
    apply(node, net, kind, proto, None)
    talk = opened(node, net, kind, proto)
    apply(node, net, kind, proto, firewall(rule(interface_in=talk.client_device)))
    assert getattr(talk, side)("A", payload=b"x").reason == "forward_resolved"
    apply(node, net, kind, proto, firewall(rule(interface_in=SPARE)))
    assert getattr(talk, side)("A", payload=b"x").reason == "drop_firewall"


@PROTOCOLS
@pytest.mark.parametrize("side", ["client", "server"])
def test_translated_connection_goes_on_when_there_is_no_firewall_any_more(
    node: Node, net: Net, kind: str, proto: str, side: str
) -> None:
    apply(node, net, kind, proto, firewall(rule()))
    talk = opened(node, net, kind, proto)
    leaves = node.flows.connection().leaves
    apply(node, net, kind, proto, None)
    assert getattr(talk, side)("A", payload=b"x").reason == "forward_resolved"
    assert node.flows.connection().leaves == leaves


@PROTOCOLS
def test_connection_of_an_endpoint_that_goes_is_judged_when_it_opens_anew(
    node: Node, net: Net, proto: str
) -> None:
    node.apply([service(net, net.endpoints[0], protocol=proto)], firewall=firewall(rule()))
    talk = Conversation(node, net, proto=proto).open()
    node.apply(
        [service(net, net.endpoints[1], protocol=proto)],
        firewall=firewall(rule("no", "drop", destination=net.endpoints[1], after_translation=True), rule()),
    )
    assert talk.client("A", payload=b"x").reason == "drop_firewall"
    assert node.flows.entries() == 0


# ---- NAT beside what is not translated ----


def test_reply_of_a_plain_connection_is_not_translated(node: Node, net: Net) -> None:
    """A NAT rule claims the source of the answers; the connection came in without."""
    node.apply(nat=[masquerade(net)], firewall=firewall(rule(interface_in=FRONT)))
    talk = Conversation(node, net, to=net.inside).open()
    out = talk.server("A", payload=b"x")
    assert (out.verdict, network(out.packet).src) == ("forward", net.inside)


@PROTOCOLS
def test_reply_of_a_plain_connection_is_not_translated_without_the_firewall(
    node: Node, net: Net, proto: str
) -> None:
    """It is Linux' now, and no rule of NAT may take its answers for connections of their own."""
    node.apply(nat=[masquerade(net)], firewall=firewall(rule(interface_in=FRONT)))
    talk = Conversation(node, net, proto=proto, to=net.inside).open()
    node.apply(nat=[masquerade(net)])
    for _ in range(2):
        assert talk.server("A", payload=b"x").reason == "punt_not_ours"
    assert talk.client("A", payload=b"x").reason == "punt_not_ours"
    assert node.flows.entries() == 0


@pytest.mark.parametrize("flags", ["SA", "SF", "SR", "SFRA"])
def test_odd_segment_of_an_inside_host_is_judged(node: Node, net: Net, flags: str) -> None:
    """With SYN and something else it opens nothing, so NAT leaves it to Linux."""
    talk = masqueraded(node, net, rule(protocol="udp"))
    assert talk.client(flags).verdict == "drop"
