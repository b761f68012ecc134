# SPDX-License-Identifier: Apache-2.0
"""clearway's own table of nftables: when it is changed, and what the data path is told of it before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from clearway.compiler.nft_table import NftTable
from clearway.daemon import honour
from clearway.daemon.honour import LinuxTable, remove_table
from clearway.datapath import Datapath
from clearway.linux.nft import NftablesError

ONE = NftTable("ip", "clearway", {"service_1_a": "dnat ip to 10.0.0.2"}, ("goto service_1_a",), ())
TWO = NftTable("ip", "clearway", {"service_1_b": "dnat ip to 10.0.0.3"}, ("goto service_1_b",), ())
SIX = NftTable("ip6", "clearway", {}, (), ("masquerade",))


@dataclass
class Linux:
    """A ruleset's generation and tables, and all that happens, in order. `others`: changes of somebody else's
    that come in between.
    """

    generation: int = 7
    tables: set[str] = field(default_factory=set)
    happened: list[Any] = field(default_factory=list)
    others: int = 0
    refuses: bool = False

    def run(self, commands: str) -> None:
        self.happened.append(commands)
        if self.refuses:
            raise NftablesError("no room")
        for line in commands.splitlines():
            verb, what, name = line.split(" ", 2)
            if (verb, what) == ("add", "table"):
                self.tables.add(name)
            elif (verb, what) == ("delete", "table"):
                self.tables.discard(name)
        self.generation += 1 + self.others

    def expect(self, now: int, then: int) -> None:
        self.happened.append((now, then))

    def set_table(self, there: bool) -> None:
        self.happened.append(there)


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch) -> Iterator[Linux]:
    made = Linux()
    monkeypatch.setattr("clearway.linux.nftables.generation", lambda: made.generation)
    monkeypatch.setattr("clearway.linux.nftables.has_tables", lambda names: set(names) <= made.tables)
    monkeypatch.setattr(honour, "run_commands", made.run)
    yield made


@pytest.fixture
def table(linux: Linux) -> LinuxTable:
    return LinuxTable(cast(Datapath, linux), "clearway")


def test_nothing_is_done_where_nothing_is_wanted(linux: Linux, table: LinuxTable) -> None:
    assert table.bring({}, linux.generation) == 7
    assert linux.happened == [False]


def test_data_path_is_told_before_the_change(linux: Linux, table: LinuxTable) -> None:
    assert table.bring({4: ONE}, linux.generation) == 8
    before, told, commands, there = linux.happened
    assert before is False
    assert told == (7, 8)
    assert "delete table ip clearway" in commands  # whatever an earlier daemon has left there
    assert there is True


def test_the_same_is_not_told_again(linux: Linux, table: LinuxTable) -> None:
    table.bring({4: ONE}, linux.generation)
    linux.happened.clear()
    assert table.bring({4: ONE}, linux.generation) == 8
    assert linux.happened == []


def test_only_the_difference_is_changed(linux: Linux, table: LinuxTable) -> None:
    table.bring({4: ONE, 6: SIX}, linux.generation)
    linux.happened.clear()
    assert table.bring({4: TWO, 6: SIX}, linux.generation) == 9
    [before, _told, commands, _there] = linux.happened
    assert before is True  # the other services go on meanwhile
    assert "delete table" not in commands
    assert "ip6" not in commands
    assert "add chain ip clearway service_1_b\n" in commands
    assert "delete chain ip clearway service_1_a\n" in commands


def test_a_family_goes_by_itself(linux: Linux, table: LinuxTable) -> None:
    table.bring({4: ONE, 6: SIX}, linux.generation)
    assert table.bring({4: ONE}, linux.generation) == 9
    assert linux.tables == {"ip clearway"}


def test_changes_of_somebody_else_in_between_are_noticed(linux: Linux, table: LinuxTable) -> None:
    linux.others = 1
    assert table.bring({4: ONE}, linux.generation) is None
    assert (7, 7) in linux.happened  # what was expected does not hold


def test_what_somebody_has_flushed_is_made_again(linux: Linux, table: LinuxTable) -> None:
    table.bring({4: ONE}, linux.generation)
    linux.tables.clear()
    linux.generation += 1
    linux.happened.clear()
    assert table.bring({4: ONE}, linux.generation) == 10
    assert linux.tables == {"ip clearway"}
    assert linux.happened[0] is False
    [commands] = [one for one in linux.happened if isinstance(one, str)]
    assert "add rule ip clearway service_1_a" in commands


def test_a_change_elsewhere_leaves_it_alone(linux: Linux, table: LinuxTable) -> None:
    table.bring({4: ONE}, linux.generation)
    linux.generation += 5
    linux.happened.clear()
    assert table.bring({4: ONE}, linux.generation) == 13
    assert linux.happened == [True]


def test_refusal_leaves_nothing_expected(linux: Linux, table: LinuxTable) -> None:
    linux.refuses = True
    with pytest.raises(NftablesError):
        table.bring({4: ONE}, linux.generation)
    assert linux.happened[-1] == (7, 7)
    linux.refuses = False
    assert table.bring({4: ONE}, linux.generation) == 8


def test_removal_needs_something_to_remove(linux: Linux, table: LinuxTable) -> None:
    remove_table("clearway")
    assert linux.happened == []
    table.bring({6: SIX}, linux.generation)
    remove_table("clearway")
    assert linux.tables == set()


def test_nothing_is_done_under_rules_that_are_not_known(linux: Linux, table: LinuxTable) -> None:
    """Somebody has changed them since they were read: what is trusted does not hold for these."""
    assert table.bring({4: ONE}, linux.generation - 1) is None
    assert table.bring({}, linux.generation - 1) is None
    assert linux.happened == []
