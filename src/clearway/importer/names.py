# SPDX-License-Identifier: Apache-2.0
"""Names that clearway takes, made of those that are in a ruleset."""

from __future__ import annotations

import re
from collections.abc import Container

LONGEST = 63


def plain(text: str, most: int = LONGEST) -> str:
    """Letters, digits, dots, dashes and underscores of a text; may be nothing."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-._")[:most].rstrip("-._")


def unused(name: str, taken: Container[str]) -> str:
    """The name or, when it is taken, the name with a number."""
    number, candidate = 2, name
    while candidate in taken:
        candidate, number = f"{name[: LONGEST - 6]}-{number}", number + 1
    return candidate
