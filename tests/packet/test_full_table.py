# SPDX-License-Identifier: Apache-2.0
"""A full table, packet by packet: who makes way for a new connection, and who does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.packet.addresses import Net
from tests.packet.conversation import Conversation, service
from tests.packet.flowtable import Tuple
from tests.packet.node import Node

TIMEOUTS = {"tcp_established": "300s", "udp_stream": "300s", "udp": "300s"}


def expired(talk: Conversation) -> None:
    talk.open()
    talk.node.flows.let_time_pass(talk, seconds=400)


def half_open(talk: Conversation) -> None:
    talk.first()
    talk.server("SA")


def unanswered(talk: Conversation) -> None:
    talk.first()


def closed(talk: Conversation) -> None:
    talk.open()
    talk.client("R")


def time_wait(talk: Conversation) -> None:
    talk.open()
    talk.client("FA")
    talk.server("FA")
    talk.client("A")


def idle(talk: Conversation) -> None:
    talk.open()
    talk.node.flows.let_time_pass(talk, seconds=5)


def established(talk: Conversation) -> None:
    talk.open()


def half_closed(talk: Conversation) -> None:
    talk.open()
    talk.server("FA")


Way = Callable[[Conversation], None]
MAKE_WAY: dict[str, tuple[Way, str, str]] = {
    "expired": (expired, "tcp", "EVICTED_EXPIRED"),
    "closed": (closed, "tcp", "EVICTED_CLOSED"),
    "time_wait": (time_wait, "tcp", "EVICTED_CLOSED"),
    "half_open": (half_open, "tcp", "EVICTED_HALF_OPEN"),
    "unanswered_udp": (unanswered, "udp", "EVICTED_HALF_OPEN"),
    "idle_udp": (idle, "udp", "EVICTED_IDLE"),
}
STAY: dict[str, tuple[Way, str]] = {
    "established": (established, "tcp"),
    "half_closed": (half_closed, "tcp"),
    "busy_udp": (established, "udp"),
}


@pytest.fixture
def served(node: Node, net: Net) -> Node:
    node.apply([service(net), service(net, protocol="udp")], timeouts=TIMEOUTS)
    return node


def ended(node: Node, why: str) -> int:
    """Connections that have ended so."""
    _, values = node.datapath.table("ended_v2").items()
    number = node.datapath.enum("flow_end")[f"FLOW_END_{why}"]
    return int(values["connections"][:, number].sum())


def neighbours(newcomer: Conversation, proto: str) -> tuple[Conversation, Conversation]:
    """Two connections to the service. An entry of the one will stand where the newcomer's reply would, an
    entry of the other where its opening direction would, and nothing else in either place.
    """
    node, net = newcomer.node, newcomer.net
    reply, arrives = (set(node.flows.buckets(key)) for key in (reply_of(newcomer), newcomer.arrives))
    first = next(candidates(node, net, proto, reply, arrives))
    second = next(candidates(node, net, proto, arrives, reply))
    return first, second


def candidates(
    node: Node, net: Net, proto: str, places: set[int], others: set[int]
) -> Iterator[Conversation]:
    """Connections of which exactly one entry will stand in one of these buckets, and none in the others."""
    for port in range(1024, 40000):
        talk = Conversation(node, net, proto=proto, sport=port)
        buckets = [node.flows.buckets(key)[0] for key in (talk.arrives, reply_of(talk))]
        if len(places & {*buckets}) == 1 and not others & {*buckets}:
            yield talk


def reply_of(talk: Conversation) -> Tuple:
    """As it will be: the client's address and port stay as they are."""
    client, net = talk.arrives, talk.net
    return Tuple(client.proto, net.endpoint, 8080, client.src, client.sport)


def newcomer_of(node: Node, net: Net) -> Conversation:
    """A connection whose entries do not want each other's places."""
    for port in range(40000, 41000):
        talk = Conversation(node, net, sport=port)
        if len({*node.flows.buckets(talk.arrives), *node.flows.buckets(reply_of(talk))}) == 4:
            return talk
    raise AssertionError("every connection wants the same places twice")


@pytest.mark.parametrize("kind", MAKE_WAY)
def test_new_connection_takes_the_place_of_what_is_missed_least(served: Node, net: Net, kind: str) -> None:
    prepare, proto, why = MAKE_WAY[kind]
    newcomer = newcomer_of(served, net)
    others = neighbours(newcomer, proto)
    for other in others:
        prepare(other)
    served.flows.fill(net.family)
    before, entries = ended(served, why), served.flows.entries()
    assert newcomer.first().reason == "forward_new"
    assert ended(served, why) == before + 2
    for other in others:
        assert served.flows.entry(other.arrives) is None and served.flows.entry(other.reply) is None
    assert served.flows.entries() == entries - 2  # two connections went, one came
    newcomer.server("SA")
    assert newcomer.client("A").verdict == "forward"
    assert newcomer.server(payload=b"x").reason in ("forward_flow", "forward_state")


@pytest.mark.parametrize("kind", STAY)
def test_who_is_in_use_stays_and_the_new_connection_is_dropped(served: Node, net: Net, kind: str) -> None:
    prepare, proto = STAY[kind]
    newcomer = newcomer_of(served, net)
    others = neighbours(newcomer, proto)
    for other in others:
        prepare(other)
    served.flows.fill(net.family)
    entries = served.flows.entries()
    for _ in range(2):
        assert newcomer.first().reason == "drop_table_full"
    assert served.flows.entries() == entries
    for other in others:
        assert other.client(payload=b"x").verdict == "forward"
        assert other.server(payload=b"x").verdict == "forward"


def test_half_open_connections_go_before_idle_ones(served: Node, net: Net) -> None:
    newcomer = newcomer_of(served, net)
    first = neighbours(newcomer, "tcp")
    second = neighbours(newcomer, "udp")
    for tcp, udp in zip(first, second, strict=True):
        half_open(tcp)
        idle(udp)
    served.flows.fill(net.family)
    assert newcomer.first().reason == "forward_new"
    assert all(served.flows.entry(talk.arrives) is None for talk in first)
    assert all(served.flows.entry(talk.arrives) is not None for talk in second)
