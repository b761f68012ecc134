# SPDX-License-Identifier: Apache-2.0
"""Accounts outlive the daemon, and nothing else that they would be wrong for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clearway.daemon import account_book, state
from clearway.daemon.account_book import AccountBook
from clearway.daemon.accounts import Accounts
from tests.unit.test_accounts import NAMES, NOBODY, ONCE, SIMPLE, connection, rules_of, ruleset


@pytest.fixture
def accounts(tmp_path: Path) -> Accounts:
    made = Accounts()
    made.go_on_with(rules_of(ruleset(*SIMPLE)))
    made.settle(connection(), NOBODY, NAMES)
    return made


def test_what_was_kept_is_known(accounts: Accounts, tmp_path: Path) -> None:
    book = AccountBook(tmp_path)
    for position in (100, 200):
        book.settle(accounts, position)
    again = AccountBook(tmp_path).read()
    assert again is not None
    kept, position = again
    assert (kept.sums, position) == (ONCE, 200)
    kept.settle(connection(packets=4, bytes=400), NOBODY, NAMES)
    assert sum(one.packets for one in kept.sums.values()) == sum(one.packets for one in ONCE.values()) + 2
    assert len(list(tmp_path.iterdir())) == 2


def test_bridges_that_filtered_are_known(accounts: Accounts, tmp_path: Path) -> None:
    filtered = replace(ruleset(*SIMPLE), filtering={4: frozenset({"br0", "br1"}), 6: frozenset()})
    accounts.go_on_with(rules_of(filtered))
    AccountBook(tmp_path).settle(accounts, 100)
    again = AccountBook(tmp_path).read()
    assert again is not None
    assert again[0].rules is not None
    assert again[0].rules.ruleset == filtered


def test_batch_of_ends_goes_on_from_the_settlement(accounts: Accounts, tmp_path: Path) -> None:
    book = AccountBook(tmp_path)
    book.settle(accounts, 100)
    accounts.settle_ended(connection(packets=5, bytes=500), NAMES)
    book.add(accounts, 168)
    again = AccountBook(tmp_path).read()
    assert again is not None
    assert (again[0].sums, again[1]) == (accounts.sums, 168)


def test_settlement_that_was_cut_off_is_none(accounts: Accounts, tmp_path: Path) -> None:
    AccountBook(tmp_path).settle(accounts, 100)
    (tmp_path / "accounts-2.npz").write_bytes(b"half of")
    again = AccountBook(tmp_path)
    assert again.read() is not None
    again.settle(accounts, 200)
    assert AccountBook(tmp_path).read() is not None


@pytest.mark.parametrize("damage", ["", "{}", "[]"])
def test_damaged_book_is_none(accounts: Accounts, tmp_path: Path, damage: str) -> None:
    AccountBook(tmp_path).settle(accounts, 100)
    (tmp_path / "accounts.json").write_text(damage)
    assert AccountBook(tmp_path).read() is None


def test_settlement_that_is_damaged_is_none(accounts: Accounts, tmp_path: Path) -> None:
    AccountBook(tmp_path).settle(accounts, 100)
    whole = (tmp_path / "accounts-1.npz").read_bytes()
    for end in (0, 10, len(whole) // 2):
        (tmp_path / "accounts-1.npz").write_bytes(whole[:end])
        assert AccountBook(tmp_path).read() is None


def test_another_boot_begins_with_nothing(
    accounts: Accounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AccountBook(tmp_path).settle(accounts, 100)
    other = tmp_path / "boot_id"
    other.write_text("another")
    monkeypatch.setattr(account_book, "BOOT_ID", other)
    assert AccountBook(tmp_path).read() is None


def test_no_accounts_are_left_behind(accounts: Accounts, tmp_path: Path) -> None:
    directory = tmp_path / "state"
    AccountBook(directory).settle(accounts, 100)
    state.remove(directory / "state.json")
    assert not directory.exists()
