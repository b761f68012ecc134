# SPDX-License-Identifier: Apache-2.0
"""Ageing: each protocol and state has its timeout, both entries of a connection go together; and connections
end with their endpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from clearway.compiler import EndpointRow
from clearway.daemon.rows import endpoint_rows
from tests.packet.addresses import BACK, FRONT, Net
from tests.packet.conversation import Conversation, masquerade, service
from tests.packet.flowtable import Tuple
from tests.packet.frames import echo, frame
from tests.packet.marks import PROTOCOLS
from tests.packet.node import Node

TIMEOUTS = {
    "tcp_syn_sent": 100,
    "tcp_syn_received": 200,
    "tcp_established": 300,
    "tcp_half_closed": 400,
    "tcp_time_wait": 500,
    "tcp_closed": 600,
    "udp": 700,
    "udp_stream": 800,
    "icmp": 900,
}
"""Seconds; all different, so that a mix-up shows."""


def syn_sent(node: Node, net: Net) -> Conversation:
    talk = Conversation(node, net)
    talk.first()
    return talk


def syn_received(node: Node, net: Net) -> Conversation:
    talk = syn_sent(node, net)
    talk.server("SA")
    return talk


def established(node: Node, net: Net) -> Conversation:
    return Conversation(node, net).open()


def half_closed(node: Node, net: Net) -> Conversation:
    talk = established(node, net)
    talk.server("FA")
    return talk


def time_wait(node: Node, net: Net) -> Conversation:
    talk = half_closed(node, net)
    talk.client("FA")
    return talk


def closed(node: Node, net: Net) -> Conversation:
    talk = established(node, net)
    talk.client("R")
    return talk


def udp_once(node: Node, net: Net) -> Conversation:
    talk = Conversation(node, net, proto="udp")
    talk.first()
    return talk


def udp_stream(node: Node, net: Net) -> Conversation:
    return Conversation(node, net, proto="udp").open()


class Ping:
    """Ends of a masqueraded echo."""

    def __init__(self, node: Node, net: Net) -> None:
        node.send(frame(BACK, net.inside, net.server, echo(net.family, 2222)), BACK)
        self.arrives = Tuple("icmp", net.inside, 2222, net.server, 0)
        self.reply = Tuple("icmp", net.server, 0, net.node(FRONT), 2222)


KINDS: dict[str, Callable[[Node, Net], Conversation | Ping]] = {
    "tcp_syn_sent": syn_sent,
    "tcp_syn_received": syn_received,
    "tcp_established": established,
    "tcp_half_closed": half_closed,
    "tcp_time_wait": time_wait,
    "tcp_closed": closed,
    "udp": udp_once,
    "udp_stream": udp_stream,
    "icmp": Ping,
}


@pytest.fixture
def aged(node: Node, net: Net) -> Node:
    node.apply(
        [service(net), service(net, protocol="udp")],
        nat=[masquerade(net)],
        timeouts={name: f"{seconds}s" for name, seconds in TIMEOUTS.items()},
    )
    return node


@pytest.mark.parametrize("state", KINDS)
def test_flow_is_kept_until_its_timeout_and_no_longer(aged: Node, net: Net, state: str) -> None:
    talk = KINDS[state](aged, net)
    assert aged.flows.connection().state == state
    aged.flows.let_time_pass(talk, seconds=TIMEOUTS[state] - 20)
    assert (aged.datapath.sweep().expired, aged.flows.entries()) == (0, 2)
    aged.flows.let_time_pass(talk, seconds=TIMEOUTS[state] + 20)
    assert (aged.datapath.sweep().expired, aged.flows.entries()) == (1, 0)


@pytest.mark.parametrize("side", ["arrives", "reply"])
def test_a_packet_of_either_side_keeps_both_entries(aged: Node, net: Net, side: str) -> None:
    talk = established(aged, net)
    aged.flows.let_time_pass(talk, seconds=1000)
    aged.flows.write_entry(getattr(talk, side), seen=aged.datapath.clock().jiffies & 0xFFFFFFFF)
    assert (aged.datapath.sweep().expired, aged.flows.entries()) == (0, 2)


@pytest.mark.parametrize("side", ["arrives", "reply"])
def test_entry_without_its_pair_is_removed(aged: Node, net: Net, side: str) -> None:
    talk = established(aged, net)
    for key in (talk.arrives, talk.reply):
        aged.flows.let_age(key, seconds=3)
    aged.flows.delete_entry(getattr(talk, side))
    aged.datapath.sweep(thorough=True)
    assert aged.flows.entries() == 0


def test_entry_that_may_be_just_being_born_is_kept(aged: Node, net: Net) -> None:
    talk = syn_sent(aged, net)
    aged.flows.delete_entry(talk.arrives)
    aged.datapath.sweep(thorough=True)
    assert aged.flows.entries() == 1


@PROTOCOLS
def test_idle_connection_of_a_removed_endpoint_ends(aged: Node, net: Net, proto: str) -> None:
    talk = Conversation(aged, net, proto=proto).open()
    before = aged.datapath.ended()["endpoint_gone"]
    aged.apply([service(net, net.endpoints[1], protocol=proto)])
    assert talk.leaves.dst == net.endpoint
    assert (aged.datapath.sweep().expired, aged.flows.entries()) == (1, 0)
    assert aged.datapath.ended()["endpoint_gone"] == before + 1


def test_idle_connection_of_a_removed_service_ends(aged: Node, net: Net) -> None:
    established(aged, net)
    aged.apply()
    assert (aged.datapath.sweep().expired, aged.flows.entries()) == (1, 0)


def test_idle_connection_of_a_draining_endpoint_stays(aged: Node, net: Net) -> None:
    established(aged, net)
    aged.apply([service(net, endpoints=[{"address": net.endpoint, "port": 8080, "drain": True}])])
    assert (aged.datapath.sweep(thorough=True).expired, aged.flows.entries()) == (0, 2)


def test_idle_connection_of_an_endpoint_that_stays_is_kept(aged: Node, net: Net) -> None:
    talk = established(aged, net)
    aged.apply([service(net, *net.endpoints[:2])])
    assert talk.leaves.dst == net.endpoint
    assert (aged.datapath.sweep(thorough=True).expired, aged.flows.entries()) == (0, 2)


@pytest.mark.parametrize("other", ["address", "port"])
def test_endpoint_that_was_given_the_id_of_a_removed_one_has_none_of_its_connections(
    aged: Node, net: Net, other: str
) -> None:
    established(aged, net)
    use_endpoint_for(
        aged, endpoint_of(aged, "tcp"), **{other: net.endpoints[1] if other == "address" else 8081}
    )
    assert (aged.datapath.sweep().expired, aged.flows.entries()) == (1, 0)


def test_endpoint_that_serves_another_service_has_none_of_its_connections(aged: Node, net: Net) -> None:
    """What is told only where the pair is asked for as well."""
    established(aged, net)
    use_endpoint_for(aged, endpoint_of(aged, "tcp"), service=endpoint_of(aged, "udp").service)
    assert (aged.datapath.sweep(thorough=True).expired, aged.flows.entries()) == (1, 0)


def endpoint_of(node: Node, protocol: str) -> EndpointRow:
    """The only one of that protocol's service. Rows stand in the order of ids, which go round."""
    (service,) = (row.id for row in node.tables.services if row.protocol == protocol)
    (endpoint,) = (row for row in node.tables.endpoints if row.service == service)
    return endpoint


def use_endpoint_for(node: Node, row: EndpointRow, **changed: Any) -> None:
    """The row is another endpoint's from now on."""
    other = replace(row, **{"address": ip_address(changed.pop("address", row.address)), **changed})
    table = node.datapath.table("endpoint_v1")
    table.update(*endpoint_rows(table, node.datapath.enum("endpoint_state"), [other]))


def test_sweep_looks_at_every_connection_once(aged: Node, net: Net) -> None:
    for port in range(5000, 5020):
        Conversation(aged, net, sport=port).first()
    result = aged.datapath.sweep()
    assert (result.visited, result.expired) == (20, 0)


def test_sweep_removes_only_what_has_expired(aged: Node, net: Net) -> None:
    talks = [Conversation(aged, net, sport=port) for port in range(5000, 5020)]
    for talk in talks:
        talk.first()
    for talk in talks[::2]:
        aged.flows.let_time_pass(talk, seconds=1000)
    assert aged.datapath.sweep().expired == 10
    assert aged.flows.entries() == 20
    assert all(aged.flows.entry(talk.arrives) is not None for talk in talks[1::2])


def test_timeouts_of_a_new_configuration_count_at_once(aged: Node, net: Net) -> None:
    talk = established(aged, net)
    aged.flows.let_time_pass(talk, seconds=60)
    assert aged.datapath.sweep().expired == 0
    aged.apply([service(net)], timeouts={"tcp_established": "30s"})
    assert aged.datapath.sweep().expired == 1


def test_clock_that_wraps_does_not_age(aged: Node, net: Net) -> None:
    """A packet that came after the sweep began has a stamp in its future."""
    talk = established(aged, net)
    aged.flows.let_time_pass(talk, seconds=-5)
    assert (aged.datapath.sweep().expired, aged.flows.entries()) == (0, 2)
