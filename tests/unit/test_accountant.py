# SPDX-License-Identifier: Apache-2.0
"""When accounts are settled, with a data path that tells of made-up connections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from clearway.daemon import accountant
from clearway.daemon.accountant import Accountant
from clearway.daemon.accounts import Array
from clearway.datapath.flows import CONNECTION
from tests.unit.test_accounts import NAMES, NOBODY, SIMPLE, connection, place, rules_of, ruleset

ADOPTED = 1


class Told:
    """A data path, and its ring of ended connections. `ended`: those that nobody has read yet."""

    used = 0.0

    def __init__(self) -> None:
        self.links = {ifindex: SimpleNamespace(name=name) for ifindex, name in NAMES.items()}
        self.live, self.ended = NOBODY, NOBODY
        self.ends_while_read = NOBODY

    @contextmanager
    def adopted_records(self) -> Iterator[Told]:
        yield self

    def enum(self, name: str) -> dict[str, int]:
        return {"flow_state": {"FLOW_ADOPTED": ADOPTED}}[name]

    def flows(self) -> Array:
        """Something may end in the meantime."""
        self.ended, self.ends_while_read = np.concatenate([self.ended, self.ends_while_read]), NOBODY
        return self.live

    def peek(self) -> tuple[Array, int]:
        return self.ended, len(self.ended)

    def advance(self, position: int) -> None:
        self.ended = self.ended[position:]


class Running(Accountant):
    """Nobody reads but who asks."""

    def _run(self) -> None:
        pass

    def read_ended(self) -> None:
        """As the thread does now and then."""
        assert self._ring is not None
        self._credit_ended(self._ring)

    close = Accountant.stop


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def running(told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(accountant, "ended_connections", lambda records: records)
    monkeypatch.setattr(accountant, "wait_for_readers", lambda: None)
    made = Running(told, lambda: told.links, tmp_path, lambda records: None)  # type: ignore[arg-type, return-value]
    with closing(made):
        made.start()
        made.go_on_with(rules_of(ruleset(*SIMPLE)))
        yield made


def passed(running: Running) -> int:
    return running.sums()[place(5)].packets


def talk() -> Array:
    return connection(flags=ADOPTED)


def test_who_comes_again_within_a_jiffy_counts_at_once(told: Told, running: Running) -> None:
    """Nothing but its count could tell it from the one that has ended."""
    told.live, told.ended = talk(), talk()
    assert [passed(running) for _ in range(2)] == [16, 16]


def test_who_was_counted_and_comes_again_within_a_jiffy_counts_again(told: Told, running: Running) -> None:
    told.live = talk()
    assert passed(running) == 8
    told.ended = talk()
    assert [passed(running) for _ in range(2)] == [16, 16]


def test_end_while_the_table_is_read_counts_once(told: Told, running: Running) -> None:
    told.live, told.ends_while_read = talk(), talk()
    assert passed(running) == 8
    told.live = NOBODY
    assert passed(running) == 8


def test_connections_that_are_not_linux_own_are_not_counted(told: Told, running: Running) -> None:
    told.live = np.concatenate([talk(), connection(client="10.0.0.3")])
    assert passed(running) == 8
    assert told.live.dtype == CONNECTION


def met_from_lan(running: Running) -> int:
    """Packets that a rule about the interface `lan` has met."""
    return running.sums()[place(6)].packets


def test_what_was_carried_goes_by_the_names_that_interfaces_had(told: Told, running: Running) -> None:
    told.live, told.ended = talk(), connection(client="10.0.0.3", flags=ADOPTED)
    told.links[2] = SimpleNamespace(name="inner")
    running.read_ended()
    assert met_from_lan(running) == 6
    told.live["packets"] += 4
    assert met_from_lan(running) == 6
    told.links[2] = SimpleNamespace(name="lan")
    running.settle()
    told.live["packets"] += 1
    assert met_from_lan(running) == 7


def test_interface_that_is_new_has_its_name_at_once(told: Told, running: Running) -> None:
    """And the one that had it before keeps it for what it has carried."""
    told.live = talk()
    told.links = {9: SimpleNamespace(name="lan"), 3: told.links[3]}
    told.ended = connection(client="10.0.0.3", inside=9, reply_ifindex=9, flags=ADOPTED)
    assert met_from_lan(running) == 6
