# SPDX-License-Identifier: Apache-2.0
"""A full table: who makes way for a newcomer, and who never does."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from clearway.datapath import DatapathError
from clearway.datapath.flowtable import SLOTS, FlowTable, Keys, as_bytes
from tests.flowtable.kernel import (
    ACK,
    FIN,
    FLOWS,
    ICMP,
    ICMPV6,
    RST,
    SYN,
    TCP,
    UDP,
    Kernel,
    Link,
    Way,
    address,
    keys_of,
)

Pair = tuple[int, int]
"""The buckets that an entry may stand in."""


@dataclass(frozen=True)
class Kind:
    """Connections of a kind: what was said, and how long ago, in seconds."""

    proto: int
    said: tuple[int, int]
    idle: float


OPEN, SYNS = (SYN | ACK, SYN | ACK), (SYN, 0)
FUTURE = -100
"""As if the last packet came only then: no test takes so long."""
KINDS = {
    "expired": [Kind(TCP, OPEN, 400), Kind(UDP, (ACK, ACK), 950), Kind(TCP, SYNS, 150)],
    "closed": [
        Kind(TCP, (SYN | ACK | FIN, SYN | ACK | FIN), 100),
        Kind(TCP, (SYN | ACK | RST, SYN | ACK), 200),
    ],
    "half_open": [
        Kind(TCP, SYNS, 10),
        Kind(TCP, (SYN, SYN | ACK), 60),
        Kind(UDP, (ACK, 0), 0),
        Kind(ICMP, (ACK, 0), 50),
    ],
    "idle": [Kind(UDP, (ACK, ACK), 5), Kind(UDP, (ACK, ACK), 50), Kind(ICMP, (ACK, ACK), 100)],
    "established": [
        Kind(TCP, OPEN, 10),
        Kind(TCP, (SYN | ACK, SYN | ACK | FIN), 20),
        Kind(TCP, OPEN, FUTURE),
    ],
    "busy": [Kind(UDP, (ACK, ACK), FUTURE), Kind(ICMP, (ACK, ACK), FUTURE)],
}
"""Some seconds are added, different ones for each connection: so far are these apart."""
ORDER = ("expired", "closed", "half_open", "idle")
"""In which they make way; established connections and busy ones never do."""
NEWCOMERS = 25
REFUSED = 2
"""Connections that may find no place by chance, in a table that is made for so many: one in 500 runs."""


class FullTable:
    """One family's table, every place of it taken."""

    def __init__(self, kernel: Kernel, family: int, kinds: Iterable[str]) -> None:
        self.kernel, self.family = kernel, family
        self.links: dict[Way, Link] = {}
        """By the key of either entry."""
        self.kinds: dict[Way, str] = {}
        self._random = random.Random(1)
        self._number = 0
        self._fill(list(kinds))

    def _fill(self, kinds: list[str]) -> None:
        """Until hardly anything finds a place; plug() takes the rest."""
        refused = 0
        while refused < 30:
            name = kinds[self._number % len(kinds)]
            link = self.link(self._random.choice(KINDS[name]))
            result = self.kernel.open(link)
            refused += result == "full"
            if result == "created":
                for key in link.ways:
                    self.links[key], self.kinds[key] = link, name
        self.plug()

    def link(self, kind: Kind) -> Link:
        """The next connection. Of a kind, those before have been idle for longer, however long this takes."""
        self._number += 1
        number = self._number
        proto = ICMPV6 if (self.family, kind.proto) == (6, ICMP) else kind.proto
        idle = kind.idle + (2 * FLOWS - number) / self.kernel.hz
        return Link(
            Way(proto, address(self.family, 10, number), 1000, address(self.family, 20, number % 5), 80),
            Way(proto, address(self.family, 30, number % 3), 2000, address(self.family, 40, number), 80),
            sent=kind.said[0],
            answered=kind.said[1],
            idle=(idle, idle),
        )

    def plug(self) -> None:
        """Takes every free place, for what never makes way, nor is moved: it is locked."""
        with self.kernel.table(self.family) as table:
            plug(self.kernel, table, np.ndindex(table.rows["marks"]["mark"].shape))

    def newcomer(self) -> tuple[Link, list[Way | None]]:
        """A connection that wants to come in, and which entries are to make way for its two, the answering
        direction's first. One where a place that becomes free for one might serve the other is passed over.
        """
        while True:
            link = self.link(KINDS["half_open"][0]).at(idle=(0, 0))
            with self.kernel.table(self.family) as table:
                answer, forward = buckets(table, link.reply), buckets(table, link.client)
                victims = [self.victim(table, among) for among in (answer, forward)]
                if self.are_apart(table, answer, forward, victims):
                    return link, victims

    def are_apart(self, table: FlowTable, answer: Pair, forward: Pair, victims: Sequence[Way | None]) -> bool:
        """Whether a newcomer's two entries have nothing to do with each other: neither do both want one
        place, nor could what stands in the way of one go to a place that becomes free for the other.
        """
        freed = {*answer}
        for victim in victims:
            freed |= {*buckets(table, self.other(victim))} if victim else set()
        reached = {*np.concatenate(table.choose(entries_in(table, forward))[:2]).tolist()}
        links = [self.links[victim].client for victim in victims if victim]
        return (
            len({*answer, *forward}) == 4
            and not freed & (reached | {*forward})
            and len(links) == len({*links})
        )

    def other(self, key: Way) -> Way:
        """The other entry's key."""
        first, second = self.links[key].ways
        return second if key == first else first

    def victim(self, table: FlowTable, among: Pair) -> Way | None:
        """By the policy as documentation has it, from what is known of the connections."""
        found = [key for key in ways_in(table, self.family, among) if self.kinds.get(key) in ORDER]
        return min(
            found, key=lambda key: (ORDER.index(self.kinds[key]), -self.links[key].idle[0]), default=None
        )

    def is_there(self, link: Link) -> bool:
        return any(self.kernel.look(key) for key in link.ways)


def plug(kernel: Kernel, table: FlowTable, places: Iterable[Pair]) -> None:
    """Takes the free ones among these, for what never makes way, nor is moved. places: buckets and slots."""
    marks = table.rows["marks"]["mark"]
    client, answer = (Way(TCP, bytes(4), port, bytes(4), 0) for port in (1, 2))
    state, _ = kernel.states_of(Link(client, answer, sent=OPEN[0], answered=OPEN[1]))
    for bucket, slot in places:
        if marks[bucket, slot] >> 16:
            continue
        entry = np.zeros((), table.rows.dtype["slot"].base)
        entry["flow"]["state"], entry["flow"]["seen"] = state, kernel.jiffies_ago(FUTURE)
        entry["flow"]["key_sport"], entry["flow"]["key_dport"] = bucket & 0xFFFF, slot
        table.rows["slot"][bucket, slot] = entry
        marks[bucket, slot] = kernel.tag_first << 16 | 1


def buckets(table: FlowTable, key: Way) -> Pair:
    first, second, _ = table.choose(keys_of([key]))
    return int(first[0]), int(second[0])


def entries_in(table: FlowTable, among: Pair) -> Keys:
    """The keys of what stands in two buckets."""
    slot = table.rows["slot"][list(among)].reshape(-1)
    flow = slot["flow"]
    return Keys(
        src=as_bytes(slot["key_src"]),
        dst=as_bytes(slot["key_dst"]),
        sport=flow["key_sport"],
        dport=flow["key_dport"],
        proto=flow["state"] & 0xFF,
    )


def ways_in(table: FlowTable, family: int, among: Pair) -> list[Way]:
    keys, width = entries_in(table, among), 4 if family == 4 else 16
    return [
        Way(
            int(keys.proto[row]),
            keys.src[row].tobytes()[:width],
            int(keys.sport[row]),
            keys.dst[row].tobytes()[:width],
            int(keys.dport[row]),
        )
        for row in range(2 * SLOTS)
    ]


def test_table_holds_what_it_was_made_for(kernel: Kernel, family: int) -> None:
    """Where both buckets are full an entry moves to its other one. Keys may follow each other."""
    links = [
        Link(
            Way(TCP, address(family, 10, 1), 1024 + number, address(family, 20, 1), 80),
            Way(TCP, address(family, 30, 1), 1024 + number, address(family, 40, 1), 80),
        )
        for number in range(FLOWS)
    ]
    there = [link for link in links if kernel.open(link, make_room=True) == "created"]
    assert len(there) >= FLOWS - REFUSED
    assert kernel.ended() == {}
    flows = kernel.datapath.flows()
    assert len(flows) == len(there) and flows["paired"].all()
    for link in there:
        entries = [kernel.look(key) for key in link.ways]
        assert all(entry and entry.paired and entry.hit for entry in entries)


def test_table_that_turns_out_too_small_can_be_enlarged(kernel: Kernel, family: int) -> None:
    """Newcomers take the places before the connections that are to move have come over."""
    kernel.reset(4 * FLOWS)
    datapath, there = kernel.datapath, []

    def open_some(begin: int, end: int) -> int:
        links = [
            Link(
                Way(TCP, address(family, 10, number), 1024, address(family, 20, 1), 80),
                Way(TCP, address(family, 30, 1), 1024 + number, address(family, 40, 1), 80),
                sent=OPEN[0],
                answered=OPEN[1],
            )
            for number in range(begin, end)
        ]
        opened = [link for link in links if kernel.open(link, make_room=True) == "created"]
        there.extend(opened)
        return len(opened)

    assert open_some(0, FLOWS) == FLOWS
    with pytest.raises(DatapathError, match="1,024 connections are in the flow table"):
        datapath.resize(FLOWS - 1)
    datapath.resize(FLOWS)
    assert open_some(FLOWS, 3 * FLOWS) > FLOWS / 2
    moving = datapath.move_flows()
    assert moving is not None and moving.left > FLOWS / 4
    assert len(datapath.flows()) == len(there)

    datapath.resize(3 * FLOWS)
    moving = datapath.move_flows()
    assert moving is not None and moving.left == 0
    assert (kernel.max_flows, datapath.move_flows()) == (3 * FLOWS, None)
    assert len(datapath.flows()) == len(there)
    for link in there:
        entries = [kernel.look(key) for key in link.ways]
        assert all(entry and entry.paired and entry.hit for entry in entries)
    assert kernel.ended() == {}


def test_last_place_of_a_bucket_that_both_entries_may_stand_in_serves_one(
    kernel: Kernel, family: int
) -> None:
    """The other one gets the place of what can move away."""

    def link(number: int) -> Link:
        return Link(
            Way(TCP, address(family, 10, number), 1024, address(family, 20, 1), 80),
            Way(TCP, address(family, 30, 1), 1024 + number, address(family, 40, 1), 80),
            sent=OPEN[0],
            answered=OPEN[1],
        )

    with kernel.table(family) as table:
        for newcomer in map(link, itertools.count()):
            answer, forward = buckets(table, newcomer.reply), buckets(table, newcomer.client)
            if len(shared := {*answer} & {*forward}) == 1:
                break
        around = {*answer, *forward}
        (alone,) = {*forward} - shared
        (both,) = shared
        movable = next(
            other
            for other in map(link, itertools.count(FLOWS))
            if (place := buckets(table, other.client))[0] == alone
            and not {place[1], *buckets(table, other.reply)} & around
        )
        assert kernel.open(movable) == "created"
        plug(kernel, table, itertools.product(around, range(SLOTS)))
        table.rows["marks"]["mark"][both, 0] = 0
    assert kernel.open(newcomer) == "full"
    assert kernel.open(newcomer, make_room=True) == "created"
    for there in (newcomer, movable):
        assert all(entry and entry.paired for entry in map(kernel.look, there.ways))
    assert kernel.ended() == {}


@pytest.mark.parametrize(
    "kinds",
    [
        ("expired", "closed", "half_open", "idle", "established"),
        ("closed", "half_open", "idle", "established", "busy"),
        ("half_open", "idle", "established"),
        ("idle", "established", "busy"),
        ("expired", "established"),
        ("closed", "established"),
    ],
    ids="-".join,
)
def test_newcomer_gets_the_place_that_is_missed_least(
    kernel: Kernel, family: int, kinds: tuple[str, ...]
) -> None:
    full = FullTable(kernel, family, kinds)
    met: Counter[str] = Counter()
    for _ in range(NEWCOMERS):
        link, victims = full.newcomer()
        before, there = Counter(kernel.ended()), kernel.entries()
        result = kernel.open(link, make_room=True)
        # Without a place for its first entry nothing is done for the second one.
        making_way = [victim for victim in victims if victim] if victims[0] else []
        assert result == ("created" if None not in victims else "full")
        ended = Counter(kernel.ended()) - before
        assert ended == Counter(f"evicted_{full.kinds[key]}" for key in making_way)
        for key in making_way:
            met[full.kinds[key]] += 1
            assert not full.is_there(full.links[key])
        assert kernel.entries() == there - 2 * len(making_way) + 2 * (result == "created")
        if result == "created":
            assert all(kernel.look(key) for key in link.ways)
            assert kernel.end(link.client)
        full.plug()
    assert met.total() > NEWCOMERS


@pytest.mark.parametrize("kinds", [("established",), ("busy",), ("established", "busy")], ids="-".join)
def test_who_is_in_use_is_never_evicted(kernel: Kernel, family: int, kinds: tuple[str, ...]) -> None:
    full = FullTable(kernel, family, kinds)
    there = kernel.entries()
    for _ in range(NEWCOMERS):
        link, victims = full.newcomer()
        assert victims == [None, None]
        assert kernel.open(link, make_room=True) == "full"
    assert (kernel.ended(), kernel.entries()) == ({}, there)


def test_half_used_connection_is_passed_over_for_one_that_is_idle(kernel: Kernel, family: int) -> None:
    """Its silent direction looks idle; its other one is in use, and somebody else has to make way."""
    full = FullTable(kernel, family, ("idle", "established"))
    for _ in range(NEWCOMERS):
        link, victims = full.newcomer()
        if victims[0] is None or victims[1] is None:
            continue
        used = full.links[victims[0]]
        with kernel.table(family) as table:
            answer = buckets(table, link.reply)
            among = [key for key in ways_in(table, family, answer) if full.kinds.get(key) == "idle"]
        others = {full.links[key] for key in among} - {used, full.links[victims[1]]}
        if not others:
            continue
        kernel.write(full.other(victims[0]), seen=kernel.jiffies_ago(FUTURE))
        assert kernel.open(link, make_room=True) == "created"
        assert full.is_there(used)
        assert sum(not full.is_there(other) for other in others) == 1
        return
    raise AssertionError("no newcomer met two that are idle")


def test_the_other_family_makes_no_way(kernel: Kernel, family: int) -> None:
    full = FullTable(kernel, family, ("expired",))
    there = kernel.entries()
    other = 10 - family
    for number in range(NEWCOMERS):
        link = Link(
            Way(TCP, address(other, 10, number), 1000, address(other, 20, 1), 80),
            Way(TCP, address(other, 30, 1), 2000, address(other, 40, number), 80),
        )
        assert kernel.open(link, make_room=True) == "created"
    assert kernel.entries() == there + 2 * NEWCOMERS
    assert kernel.ended() == {}
    assert all(full.is_there(link) for link in full.links.values())
