# SPDX-License-Identifier: Apache-2.0
"""One operation in the middle of another, at each place where it may come in between: what two CPUs do to
each other once in a million times, one time after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pytest

from clearway.datapath.calls import MoveResult
from clearway.datapath.flowtable import FlowTable
from tests.flowtable.kernel import EPOCH, SYN, TCP, UDP, Entry, Kernel, Link, Way, address

T = TypeVar("T")

CONNECTIONS = 64
MOVES = 10
PACKET = 1000
CARRIED = (5 << 32, 7 << 40)
"""Packets and bytes: more than an entry counts by itself, so that the rest is looked up as well."""


def connection(family: int, client: int = 1, port: int = 1, proto: int = TCP, **said: Any) -> Link:
    """Which port does not depend on the client; what else is told of a connection follows from both."""
    return Link(
        Way(proto, address(family, 10, client), 1000 + client, address(family, 20, 1), 80),
        Way(proto, address(family, 30, port), 20000 + port, address(family, 40, 1), 8080),
        endpoint=client << 8 | port,
        nat=client << 8 | port,
        **said,
    )


@dataclass
class Case(Generic[T]):
    """An operation that was interrupted at one place, what it said, and what the other one said."""

    at: int
    first: T
    second: Any


class Bench:
    """A kernel with a few connections, and what was done to them."""

    def __init__(self, kernel: Kernel, family: int) -> None:
        self.kernel, self.family = kernel, family
        self.created = self.ended = 0
        self.link, self.other_way = connection(family), connection(family, port=2)
        self.rival = connection(family, client=2)
        self.hop = 0

    # ---- operations, to be called later ----

    def opening(self, link: Link, make_room: bool = False) -> Callable[[], str]:
        def run() -> str:
            result = self.kernel.open(link, make_room)
            self.created += result == "created"
            return result

        return run

    def ending(self, key: Way) -> Callable[[], bool]:
        def run() -> bool:
            ended = self.kernel.end(key)
            self.ended += ended
            return ended

        return run

    def looking(self, key: Way) -> Callable[[], Entry | None]:
        return lambda: self.kernel.look(key)

    def resolving(self, key: Way) -> Callable[[], bool]:
        def run() -> bool:
            self.hop = self.hop % 60000 + 1
            return self.kernel.resolve(key, self.hop)

        return run

    def carrying(self, key: Way) -> Callable[[], bool]:
        return lambda: self.kernel.carry(key, PACKET)

    # ---- cases ----

    def clear(self) -> None:
        self.kernel.clear()
        self.created = self.ended = 0

    def everywhere(
        self, prepare: Callable[[], None], first: Callable[[], T], second: Callable[[], Any]
    ) -> Iterator[Case[T]]:
        """first() interrupted by second() at each of its look-ups, each time from the beginning."""
        at = 0
        said: list[Any] = []

        def note() -> None:
            said.append(second())

        while True:
            at += 1
            said.clear()
            self.created = self.ended = 0
            prepare()
            result, held = self.kernel.interrupt(first, at, note)
            if not held:
                break
            yield Case(at, result, said[0])
        assert at > 5  # it was interrupted, in earnest

    # ---- what has to hold ----

    def whole(self) -> list[Link]:
        """Connections that there are, of those which these tests know; none is half, none is there twice."""
        present = []
        for link in (self.link, self.other_way, self.rival):
            entries = [self.kernel.look(key) for key in link.ways]
            if all(
                entry and entry.leaves == way.reversed()
                for entry, way in zip(entries, link.ways[::-1], strict=True)
            ):
                present.append(link)
        assert self.kernel.entries() == 2 * len(present)
        return present

    def adds_up(self) -> list[Link]:
        present = self.whole()
        assert len(present) == self.created - self.ended
        return present


@pytest.fixture
def bench(kernel: Kernel, family: int) -> Bench:
    kernel.reset(CONNECTIONS)
    return Bench(kernel, family)


def is_life(entry: Entry, link: Link, key: Way) -> bool:
    """Whether all that an entry says is that connection's."""
    side, nat = link.ways.index(key), link.nat or 0
    says = (entry.leaves, entry.nat, side or entry.rare)
    return says == (link.ways[1 - side].reversed(), nat >> 8 if side else nat & 0xFF, side or link.endpoint)


# ---- openings and ends ----


@pytest.mark.parametrize("other", ["link", "other_way", "rival"])
def test_two_openings_at_once_make_one_connection(bench: Bench, other: str) -> None:
    """Of the same connection, of the same client with another port, of another client with the same port."""
    second = bench.opening(getattr(bench, other))
    for case in bench.everywhere(bench.clear, bench.opening(bench.link), second):
        assert len(bench.adds_up()) == 1, case


def test_same_connection_opened_at_once_is_opened_wherever_it_stands(bench: Bench, family: int) -> None:
    """Each CPU has one of its two entries in front of the other one's, perhaps: one of them still wins."""
    for number in range(16):
        link = connection(family, client=number, port=number)
        for case in bench.everywhere(bench.clear, bench.opening(link), bench.opening(link)):
            assert bench.created == 1, (number, case)


@pytest.mark.parametrize("side", [0, 1], ids=["client", "reply"])
@pytest.mark.parametrize("proto", [TCP, UDP], ids=["tcp", "udp"])
def test_end_while_opening_leaves_all_or_nothing(bench: Bench, family: int, side: int, proto: int) -> None:
    bench.link = connection(family, proto=proto)
    for case in bench.everywhere(bench.clear, bench.opening(bench.link), bench.ending(bench.link.ways[side])):
        assert len(bench.adds_up()) in (0, 1), case


@pytest.mark.parametrize("first", [0, 1], ids=["by_client", "by_reply"])
@pytest.mark.parametrize("second", [0, 1], ids=["and_client", "and_reply"])
def test_connection_that_two_end_ends_once(bench: Bench, first: int, second: int) -> None:
    def prepare() -> None:
        bench.clear()
        bench.opening(bench.link)()

    keys = bench.link.ways
    for case in bench.everywhere(prepare, bench.ending(keys[first]), bench.ending(keys[second])):
        assert bench.adds_up() == [], case
        assert sorted((case.first, case.second)) == [False, True], case


@pytest.mark.parametrize("side", [0, 1], ids=["client", "reply"])
def test_connection_that_is_opened_again_while_it_ends_is_whole(bench: Bench, side: int) -> None:
    def prepare() -> None:
        bench.clear()
        bench.opening(bench.link)()

    for case in bench.everywhere(
        prepare, bench.ending(bench.link.ways[side]), bench.opening(bench.other_way)
    ):
        bench.adds_up()
        assert case.first or case.second == "created" or bench.whole() == [bench.link]


def test_sweep_leaves_alone_what_is_being_opened(bench: Bench, family: int) -> None:
    for case in bench.everywhere(
        bench.clear, bench.opening(bench.link), lambda: bench.kernel.sweep_here(family, thorough=True)
    ):
        assert (bench.adds_up(), case.first) == ([bench.link], "created"), case


@pytest.mark.parametrize("side", [0, 1], ids=["client", "reply"])
@pytest.mark.parametrize("what", ["resolving", "carrying"])
def test_connection_that_one_side_uses_survives_the_sweep(
    bench: Bench, family: int, side: int, what: str
) -> None:
    """The other side has been silent for longer than the timeout."""

    def prepare() -> None:
        bench.clear()
        bench.opening(bench.link)()
        bench.kernel.age(bench.link, *((0, 1000) if side == 0 else (1000, 0)))

    second = getattr(bench, what)(bench.link.ways[side])
    for case in bench.everywhere(prepare, lambda: bench.kernel.sweep_here(family, thorough=True), second):
        assert bench.adds_up() == [bench.link], case


def test_switch_of_the_configuration_while_the_sweep_compares_ends_nobody(bench: Bench, family: int) -> None:
    """Rows of the epoch before are cleared away, those of the next one say the same."""
    kernel, link = bench.kernel, bench.link.at(endpoint=1)

    def prepare() -> None:
        bench.clear()
        kernel.serve(link, EPOCH)
        kernel.datapath.set_epoch(EPOCH)
        bench.opening(link)()
        for key, state in zip(link.ways, kernel.states_of(link), strict=True):
            kernel.write(key, state=state | kernel.bits["FLOW_HAS_SERVICE"])

    def switch() -> None:
        kernel.serve(link, EPOCH + 1)
        kernel.datapath.set_epoch(EPOCH + 1)
        kernel.serve_no_more(EPOCH)

    for case in bench.everywhere(prepare, lambda: kernel.sweep_here(family, thorough=True), switch):
        assert (bench.adds_up(), case.first.expired) == ([bench.link], 0), case


# ---- look-ups ----


@pytest.mark.parametrize("side", [0, 1], ids=["client", "reply"])
def test_lookup_tells_of_one_life_and_not_of_two(bench: Bench, side: int) -> None:
    """The connection ends, and the client has another one with the same tuple, while it is looked up."""
    link, after = bench.link, bench.other_way if side == 0 else bench.rival

    def prepare() -> None:
        bench.clear()
        bench.opening(link)()
        for key in link.ways:
            bench.kernel.has_carried(key, *CARRIED)

    def second() -> None:
        bench.ending(link.client)()
        bench.opening(after)()

    key = link.ways[side]
    for case in bench.everywhere(prepare, bench.looking(key), second):
        assert bench.adds_up() == [after]
        assert case.first is None or is_life(case.first, link, key) or is_life(case.first, after, key), case


# ---- moves ----


class Exchanged:
    """A connection in a table that was exchanged: again and again, without exchanging it each time."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.kernel = bench, bench.kernel
        assert bench.opening(bench.link)() == "created"
        self.kernel.datapath.resize(2 * CONNECTIONS)
        with self.tables() as (_, old):
            self._rows = old.rows.copy()

    @contextmanager
    def tables(self) -> Iterator[tuple[FlowTable, FlowTable]]:
        """The current one, and the other one."""
        with self.kernel.datapath.flow_tables() as tables:
            current, old = [table for table in tables if table.family == self.bench.family]
            yield current, old

    def prepare(self) -> None:
        self.bench.clear()
        with self.tables() as (_, old):
            old.rows[:] = self._rows
        self.bench.created = 1

    def move(self) -> MoveResult:
        return self.kernel.move_here(self.bench.family)

    def finish(self) -> None:
        """Moves until nothing is left; then the old table is given back."""
        for _ in range(MOVES):
            if not self.move().left:
                break
        else:
            raise AssertionError("something never moves")
        with self.tables() as (_, old):
            old.rows["marks"]["mark"] = 0


@pytest.fixture
def exchanged(bench: Bench) -> Exchanged:
    return Exchanged(bench)


@pytest.mark.parametrize("side", [0, 1], ids=["client", "reply"])
def test_connection_that_moves_is_always_found(bench: Bench, exchanged: Exchanged, side: int) -> None:
    for case in bench.everywhere(exchanged.prepare, bench.looking(bench.link.ways[side]), exchanged.move):
        assert case.first is not None and case.first.paired, case
        assert bench.adds_up() == [bench.link]


@pytest.mark.parametrize("side", [0, 1], ids=["client", "reply"])
def test_connection_that_ends_while_it_moves_is_gone(bench: Bench, exchanged: Exchanged, side: int) -> None:
    ending = bench.ending(bench.link.ways[side])
    for case in bench.everywhere(exchanged.prepare, exchanged.move, ending):
        exchanged.finish()
        assert len(bench.adds_up()) == (not case.second), case


@pytest.mark.parametrize("side", [0, 1], ids=["client", "reply"])
def test_next_hop_that_changes_while_it_moves_stays_one(
    bench: Bench, exchanged: Exchanged, side: int
) -> None:
    key = bench.link.ways[side]
    for case in bench.everywhere(exchanged.prepare, exchanged.move, bench.resolving(key)):
        exchanged.finish()
        assert bench.adds_up() == [bench.link], case
        entry = bench.kernel.look(key)
        assert entry is not None
        assert entry.stamp in (0, entry.mtu) and entry.mtu == entry.egress, case


@pytest.mark.parametrize("side", [0, 1], ids=["client", "reply"])
def test_what_was_carried_moves_too(bench: Bench, exchanged: Exchanged, side: int) -> None:
    """All but the packet that goes by meanwhile: that may be lost to the counters. It is one by which the
    entry's own counter turns over.
    """
    key = bench.link.ways[side]
    packets, octets = CARRIED[0], CARRIED[1] + (1 << 31) - PACKET // 2

    def prepare() -> None:
        exchanged.prepare()
        bench.kernel.has_carried(key, packets, octets)

    for case in bench.everywhere(prepare, exchanged.move, bench.carrying(key)):
        entry = bench.kernel.look(key)
        assert entry is not None
        assert (entry.packets, entry.bytes) in ((packets, octets), (packets + 1, octets + PACKET)), case


def test_next_hop_that_is_half_written_does_not_move(bench: Bench, exchanged: Exchanged) -> None:
    """The writer was stopped in the middle: an odd mark says so."""
    exchanged.prepare()
    key = bench.link.client
    entry = bench.kernel.look(key)
    assert entry is not None
    bench.kernel.write(key, mark=entry.mark + 1, stamp=7, mtu=7)
    exchanged.move()
    found = bench.kernel.look(key)
    assert found is not None and found.paired
    assert found.stamp == 0 or found.stamp == found.mtu == found.egress


# ---- entries that make room by going to their other bucket ----


@dataclass
class Crowded:
    """A table where one more connection finds a place only if an entry moves to its other bucket."""

    newcomer: Link
    moves: Link
    side: int
    """Which of its entries it is."""
    rows: npt.NDArray[Any]

    @property
    def key(self) -> Way:
        return self.moves.ways[self.side]


@pytest.fixture
def crowded(bench: Bench) -> Crowded:
    kernel, family = bench.kernel, bench.family
    kernel.reset(20)
    links: list[Link] = []
    for number in range(2, 200):
        link = connection(family, client=number, port=number)
        with kernel.table(family) as table:
            before = table.rows.copy()
        places = {key: where(kernel, key) for known in links for key in known.ways}
        if (result := kernel.open(link, make_room=True)) == "full":
            kernel.clear()
            links.clear()
            continue
        assert result == "created"
        moved = [key for key, at in places.items() if where(kernel, key) != at]
        links.append(link)
        if len(moved) == 1:
            (moves,) = [known for known in links if moved[0] in known.ways]
            return Crowded(link, moves, moves.ways.index(moved[0]), before)
    raise AssertionError("no entry ever had to move")


def where(kernel: Kernel, key: Way) -> tuple[int, int]:
    entry = kernel.look(key)
    assert entry is not None
    return entry.bucket, entry.slot


@contextmanager
def crowd(bench: Bench, crowded: Crowded) -> Iterator[Callable[[], None]]:
    """What makes the table crowded again."""

    def prepare() -> None:
        bench.clear()
        with bench.kernel.table(bench.family) as table:
            table.rows[:] = crowded.rows
        bench.created = (
            int(np.count_nonzero(crowded.rows["marks"]["mark"] >> 16 >= bench.kernel.tag_first)) // 2
        )

    yield prepare


def test_entry_that_makes_room_is_always_found(bench: Bench, crowded: Crowded) -> None:
    with crowd(bench, crowded) as prepare:
        for case in bench.everywhere(
            prepare, bench.looking(crowded.key), bench.opening(crowded.newcomer, make_room=True)
        ):
            assert case.second == "created"
            assert case.first is not None and case.first.paired, case


@pytest.mark.parametrize("side", [0, 1], ids=["same_entry", "other_entry"])
def test_connection_that_ends_while_it_makes_room_is_gone(bench: Bench, crowded: Crowded, side: int) -> None:
    key = crowded.moves.ways[crowded.side ^ side]
    with crowd(bench, crowded) as prepare:
        for case in bench.everywhere(
            prepare, bench.opening(crowded.newcomer, make_room=True), bench.ending(key)
        ):
            assert bench.kernel.entries() == 2 * (bench.created - bench.ended), case
            found = [bench.kernel.look(way) for way in crowded.moves.ways]
            assert [entry is not None for entry in found] == [not case.second] * 2, case


def test_next_hop_that_changes_while_it_makes_room_stays_one(bench: Bench, crowded: Crowded) -> None:
    with crowd(bench, crowded) as prepare:
        for case in bench.everywhere(
            prepare, bench.opening(crowded.newcomer, make_room=True), bench.resolving(crowded.key)
        ):
            assert bench.kernel.entries() == 2 * (bench.created - bench.ended), case
            entry = bench.kernel.look(crowded.key)
            assert entry is not None and entry.paired and entry.stamp in (0, entry.mtu), case
            assert entry.mtu == entry.egress, case


def test_what_was_carried_goes_to_the_other_bucket_too(bench: Bench, crowded: Crowded) -> None:
    packets, octets = CARRIED[0], CARRIED[1] + (1 << 31) - PACKET // 2
    with crowd(bench, crowded) as prepare:

        def prepare_carried() -> None:
            prepare()
            bench.kernel.has_carried(crowded.key, packets, octets)

        for case in bench.everywhere(
            prepare_carried, bench.opening(crowded.newcomer, make_room=True), bench.carrying(crowded.key)
        ):
            entry = bench.kernel.look(crowded.key)
            assert entry is not None
            assert (entry.packets, entry.bytes) in ((packets, octets), (packets + 1, octets + PACKET)), case


# ---- a full table ----


@pytest.mark.parametrize("first", ["link", "newcomer"])
def test_newcomer_evicts_nobody_who_is_just_being_opened(kernel: Kernel, family: int, first: str) -> None:
    """A table of one bucket; what is half-open makes way."""
    kernel.reset(1)
    bench = Bench(kernel, family)
    bench.link = connection(family, sent=SYN, answered=0)
    newcomer = connection(family, client=9, port=9, sent=SYN, answered=0)
    others = [connection(family, client=number, port=number) for number in (3, 4)]
    bench.rival = newcomer

    def prepare() -> None:
        bench.clear()
        for other in others:
            assert kernel.open(other) == "created"
        with kernel.table(family) as table:
            marks = table.rows["marks"]["mark"][0]
            taken, free = np.argmax(marks != 0), np.argmin(marks)
            table.rows["slot"][0, free] = table.rows["slot"][0, taken]
            marks[free] = kernel.tag_first << 16  # somebody who takes the fifth place

    opening, room = bench.opening(bench.link, make_room=True), bench.opening(newcomer, make_room=True)
    for case in bench.everywhere(prepare, *((opening, room) if first == "link" else (room, opening))):
        entries = [kernel.look(key) for link in (bench.link, newcomer) for key in link.ways]
        there = [entry is not None and entry.paired for entry in entries]
        assert there in ([True, True, False, False], [False, False, True, True]), case
        assert all(kernel.look(key) for link in others for key in link.ways)
