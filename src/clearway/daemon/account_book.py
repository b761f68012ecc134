# SPDX-License-Identifier: Apache-2.0
"""Accounts on disk, so that neither a restart nor a crash of the daemon loses a packet.

Two files: sums and how far the ring of ended connections is credited, written again with every batch; and
what goes with a settlement: what connections had carried by then, and the rules. The first one names the
second, so putting it in its place puts both in force. Only then is the ring's part given back: who begins
anew reads what is not credited, and nothing twice.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from clearway.daemon.accounts import Accounts, Credited, Rules, Sum
from clearway.daemon.linux_counters import Place
from clearway.daemon.state import BOOK
from clearway.linux import namespace
from clearway.linux.ruleset import Ruleset

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, BadZipFile)
"""What reading a damaged file comes to."""


class AccountBook:
    """In a directory. One writer."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sums = directory / f"{BOOK}.json"
        self._settled = ""
        self._number = 0

    def settle(self, accounts: Accounts, position: int) -> None:
        """Everything. OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        before, self._number = self._settled, self._number + 1
        self._settled = f"{BOOK}-{self._number}.npz"
        rules = json.dumps(_words(accounts.rules.ruleset) if accounts.rules else None)
        with (self._directory / self._settled).open("wb") as file:
            np.savez(
                file,
                keys=accounts.live.keys,
                amounts=accounts.live.amounts,
                left_keys=accounts.left.keys,
                left_amounts=accounts.left.amounts,
                rules=np.frombuffer(rules.encode(), np.uint8),
            )
        self.add(accounts, position)
        if before:
            (self._directory / before).unlink(missing_ok=True)

    def add(self, accounts: Accounts, position: int) -> None:
        """Sums alone: since the last settlement connections have ended, and no more. OSError."""
        content = {
            "identity": _identity(),
            "position": position,
            "settled": self._settled,
            "sums": [[asdict(place), asdict(carried)] for place, carried in accounts.sums.items()],
        }
        fresh = self._sums.with_suffix(".new")
        fresh.write_text(json.dumps(content))
        fresh.replace(self._sums)

    def read(self) -> tuple[Accounts, int] | None:
        """The accounts, and the position in the ring up to which they are; None: there are none, or they are
        of another boot or network namespace.
        """
        try:
            content = json.loads(self._sums.read_text())
            if content["identity"] != _identity():
                return None
            accounts = Accounts()
            accounts.sums = {Place(**place): Sum(**carried) for place, carried in content["sums"]}
            with np.load(self._directory / content["settled"]) as settled:
                accounts.live = Credited(settled["keys"], settled["amounts"])
                accounts.left = Credited(settled["left_keys"], settled["left_amounts"])
                rules = json.loads(settled["rules"].tobytes())
            accounts.rules = Rules.of(_ruleset(rules)) if rules else None
        except UNREADABLE:
            return None
        self._settled = content["settled"]
        self._number = int(self._settled.removeprefix(f"{BOOK}-").removesuffix(".npz"))
        return accounts, int(content["position"])


def _identity() -> list[str | int]:
    """Handles of nft mean something else after a boot, and in another network namespace."""
    return [BOOT_ID.read_text().strip(), namespace.identity()]


def _words(ruleset: Ruleset) -> dict[str, object]:
    filtering = {family: sorted(names) for family, names in ruleset.filtering.items()}
    return {**asdict(ruleset), "legacy": sorted(ruleset.legacy), "filtering": filtering}


def _ruleset(words: dict[str, Any]) -> Ruleset:
    filtering = {int(family): frozenset(names) for family, names in words["filtering"].items()}
    return Ruleset(**{**words, "legacy": frozenset(words["legacy"]), "filtering": filtering})
