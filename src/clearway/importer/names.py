# SPDX-License-Identifier: Apache-2.0
"""Names that clearway takes, made of those that are in a ruleset."""

from __future__ import annotations

import re

LONGEST = 63


def plain(text: str, most: int = LONGEST) -> str:
    """Letters, digits, dots, dashes and underscores of a text; may be nothing."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-._")[:most].rstrip("-._")


class UniqueNames:
    """Gives every name to one only."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}

    def unique(self, name: str) -> str:
        """The name or, when it is taken, the name with a number from 2 on."""
        stem = name[: LONGEST - 6]
        candidate, number = name, self._next.get(stem, 2)
        while candidate in self._taken:
            candidate, number = f"{stem}-{number}", number + 1
        self._taken.add(candidate)
        self._next[stem] = number
        return candidate
