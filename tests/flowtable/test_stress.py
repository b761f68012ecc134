# SPDX-License-Identifier: Apache-2.0
"""Two CPUs at once on the same few connections, for some seconds: millions of operations, any of which may
come between any two steps of another.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from clearway.datapath.flowtable import as_bytes
from tests.flowtable.crowd import WORKERS, Crowd, Seen
from tests.flowtable.kernel import Kernel

Array = npt.NDArray[Any]

KEYS, RESIDENTS = 160, 16
SMALL, ROOMY, LARGE = 64, 128, 600
"""Connections that tables are made for."""
SECONDS = 4
QUIET_S = 1.2
"""After that half a connection is not just being born any more."""
EVERYTHING = {
    "hit": 4,
    "peek": 4,
    "both": 4,
    "open": 4,
    "open_room": 4,
    "end": 2,
    "end_answer": 2,
    "rewrite": 4,
    "carry": 4,
    "twice": 2,
}
WRONG = 0.02
"""Share by which counters may be wrong when entries move all the time, while packets are so large that every
few of them fill a counter.
"""
PASSED_BY = 1e-6
"""Share of look-ups that may miss an entry because it moves to another bucket or table, and back, both times
that they look there.
"""


@dataclass(frozen=True)
class Outcome:
    """What workers saw, and what there is after the last sweep."""

    seen: Seen
    ended: dict[str, int]
    entries: int
    flows: Array
    residents: Array
    """Of `flows`, in their order."""
    twice: int
    """Keys that are there twice."""
    away: tuple[list[int], list[int]]
    """Kernel.away()"""

    @property
    def half_ended(self) -> int:
        return self.ended.get("orphan", 0)

    @property
    def whole_ended(self) -> int:
        return sum(self.ended.values()) - self.half_ended


def outcome(kernel: Kernel, family: int, crowd: Crowd) -> Outcome:
    """Waits until halves can be told, and sweeps."""
    time.sleep(QUIET_S)
    kernel.datapath.sweep(thorough=True)
    flows = kernel.datapath.flows()
    places = flows["client_port"].astype(np.int64) - 1024 - crowd.keys - 2
    residents = flows[(places >= 0) & (places % 8 == 0)]
    return Outcome(
        seen=crowd.seen(),
        ended=kernel.ended(),
        entries=kernel.entries(),
        flows=flows,
        residents=residents[np.argsort(residents["client_port"])],
        twice=duplicates(kernel, family),
        away=kernel.away(family),
    )


def duplicates(kernel: Kernel, family: int) -> int:
    """Keys that are in force more than once, in all tables."""
    rows = []
    with kernel.datapath.flow_tables() as tables:
        for table in tables:
            if table.family == family:
                entries = table.entries()
                columns = [as_bytes(entries.slot[name]) for name in ("key_src", "key_dst")]
                ports = [
                    entries.flow[name].astype(">u2").view(np.uint8).reshape(-1, 2)
                    for name in ("key_sport", "key_dport")
                ]
                proto = (entries.flow["state"] & 0xFF).astype(np.uint8)[:, np.newaxis]
                rows.append(np.concatenate([*columns, *ports, proto], axis=1))
    keys = np.concatenate(rows)
    return len(keys) - len(np.unique(keys, axis=0))


def counters(found: Outcome) -> Iterator[tuple[Array, Array]]:
    """What residents' counters say and what went by, both directions, packets and bytes."""
    for side, name in ((0, ""), (1, "reply_")):
        for what in ("packets", "bytes"):
            wanted = getattr(found.seen, what)[side][:RESIDENTS].astype(np.int64)
            yield found.residents[f"{name}{what}"].astype(np.int64), wanted


# ---- everything at once, in a table that is too small ----


@pytest.fixture(scope="module")
def crowded(loaded: Kernel, family: int) -> Outcome:
    loaded.reset(SMALL, udp_stream=0.1, tcp_closed=0.1)
    crowd = Crowd(loaded, family, keys=KEYS, residents=RESIDENTS)
    crowd.settle()
    crowd.run(SECONDS, [EVERYTHING] * WORKERS, lambda: loaded.datapath.sweep(thorough=True))
    return outcome(loaded, family, crowd)


def test_every_operation_met_every_other(crowded: Outcome) -> None:
    """That what follows says something."""
    seen = crowded.seen
    assert min(seen.done[name] for name in EVERYTHING) > 1000
    assert min(seen.created, seen.exists, seen.taken, seen.full, seen.ended, seen.rewritten) > 1000
    assert {"reopened", "evicted_closed", "evicted_half_open"} <= crowded.ended.keys()


def test_lookup_sees_one_entry_and_no_mixture(crowded: Outcome) -> None:
    assert crowded.seen.mixed == 0


def test_connection_that_nobody_ends_is_always_found(crowded: Outcome) -> None:
    assert (crowded.seen.vanished, crowded.seen.halves) == (0, 0)


def test_two_lives_of_one_key_are_never_in_force_at_once(crowded: Outcome) -> None:
    assert (crowded.seen.twice, crowded.twice) == (0, 0)


def test_entries_pair_up_when_it_is_quiet(crowded: Outcome) -> None:
    assert crowded.flows["paired"].all()
    assert crowded.entries == 2 * len(crowded.flows)


def test_first_buckets_count_who_stands_in_the_second(crowded: Outcome) -> None:
    counted, there = crowded.away
    assert counted == there


def test_connections_add_up(crowded: Outcome) -> None:
    """Opened = ended + present."""
    assert crowded.seen.created == crowded.whole_ended + len(crowded.flows)


def test_counters_go_with_entries_that_make_room(crowded: Outcome) -> None:
    for counted, wanted in counters(crowded):
        assert len(counted) == RESIDENTS
        assert (abs(counted - wanted) <= wanted * WRONG).all()


# ---- nobody makes room: no entry ever moves ----


@pytest.fixture(scope="module")
def steady(loaded: Kernel, family: int) -> Outcome:
    loaded.reset(SMALL, udp_stream=0.1, tcp_closed=0.1)
    crowd = Crowd(loaded, family, keys=KEYS, residents=RESIDENTS)
    crowd.settle()
    weights = {
        name: weight
        for name, weight in EVERYTHING.items()
        if name not in ("open_room", "rewrite", "end_answer")
    }
    crowd.run(SECONDS / 2, [weights] * WORKERS, lambda: loaded.datapath.sweep(thorough=True))
    return outcome(loaded, family, crowd)


def test_counters_are_exact_while_others_come_and_go(steady: Outcome) -> None:
    for counted, wanted in counters(steady):
        assert counted.tolist() == wanted.tolist()
        assert (counted > 100).all()


def test_connections_end_whole(steady: Outcome) -> None:
    assert steady.seen.created == steady.whole_ended + len(steady.flows)
    assert steady.half_ended == 0


# ---- the same tuples again and again ----


@pytest.fixture(scope="module")
def reborn(loaded: Kernel, family: int) -> Outcome:
    """One CPU looks at the few connections that the other one opens and ends."""
    loaded.reset(SMALL)
    crowd = Crowd(loaded, family, keys=8)
    crowd.run(SECONDS / 2, [{"hit": 1, "peek": 2, "both": 2, "twice": 1}, {"open": 1, "end": 1}])
    return outcome(loaded, family, crowd)


def test_lookup_tells_of_one_life_and_not_of_two(reborn: Outcome) -> None:
    assert reborn.seen.created > 1000 and reborn.seen.found > 1000
    assert (reborn.seen.mixed, reborn.seen.twice, reborn.twice) == (0, 0, 0)


def test_connections_that_are_reborn_add_up(reborn: Outcome) -> None:
    assert reborn.seen.created == reborn.whole_ended + len(reborn.flows)
    assert reborn.half_ended == 0


# ---- tables exchanged for larger and smaller ones meanwhile ----


@pytest.fixture(scope="module")
def resized(loaded: Kernel, family: int) -> Iterator[tuple[Outcome, list[int]]]:
    """And how many connections were moved, each time."""
    loaded.reset(SMALL, udp_stream=0.1, tcp_closed=0.1)
    crowd = Crowd(loaded, family, keys=64, residents=RESIDENTS, operations=512)
    crowd.settle()
    sizes, moved = [LARGE, ROOMY], [0]

    def exchange() -> None:
        moving = loaded.datapath.move_flows()
        if moving is not None:
            moved[-1] += moving.moved
            return
        loaded.datapath.resize(sizes[len(moved) % len(sizes)])
        moved.append(0)

    crowd.run(SECONDS, [EVERYTHING] * WORKERS, exchange)
    for _ in range(100):
        if loaded.datapath.move_flows() is None:
            break
    yield outcome(loaded, family, crowd), moved


def test_tables_were_exchanged_and_connections_moved(resized: tuple[Outcome, list[int]]) -> None:
    _, moved = resized
    assert len(moved) > 2 and sum(moved) >= RESIDENTS / 2


def test_no_connection_is_lost_when_tables_are_exchanged(resized: tuple[Outcome, list[int]]) -> None:
    found, _ = resized
    assert found.seen.vanished + found.seen.halves <= PASSED_BY * found.seen.found
    assert len(found.residents) == RESIDENTS


def test_nothing_is_mixed_or_twice_when_tables_are_exchanged(resized: tuple[Outcome, list[int]]) -> None:
    found, _ = resized
    assert (found.seen.mixed, found.seen.twice, found.twice) == (0, 0, 0)
    assert found.flows["paired"].all() and found.entries == 2 * len(found.flows)
    counted, there = found.away
    assert counted == there


def test_connections_add_up_when_tables_are_exchanged(resized: tuple[Outcome, list[int]]) -> None:
    found, _ = resized
    assert found.seen.created == found.whole_ended + len(found.flows)


def test_counters_go_with_connections_that_move(resized: tuple[Outcome, list[int]]) -> None:
    found, _ = resized
    for counted, wanted in counters(found):
        assert (abs(counted - wanted) <= wanted * WRONG).all()


def test_old_tables_are_given_back(resized: tuple[Outcome, list[int]], loaded: Kernel) -> None:
    with loaded.datapath.flow_tables() as tables:
        assert [table.family for table in tables] == [4, 6]
