# SPDX-License-Identifier: Apache-2.0
"""What an import comes to: the firewall, and an account of every line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clearway.model import Firewall


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """A line of the text and what became of it."""

    line: int
    text: str
    says: str


@dataclass(frozen=True, slots=True)
class Imported:
    """`differences`: what was taken over but does not do quite the same; `notes`: what else is to be known.

    `exact`: the rules decide about every first packet of a connection as the text does, and clearway does
    with all others what the text does.
    """

    firewall: Firewall
    taken: tuple[Item, ...]
    not_taken: tuple[Item, ...]
    differences: tuple[Item, ...]
    notes: tuple[Item, ...]

    @property
    def exact(self) -> bool:
        return not self.not_taken and not self.differences

    def data(self) -> dict[str, Any]:
        """The `firewall:` section, without what is default anyway."""
        return self.firewall.model_dump(mode="json", exclude_defaults=True, exclude_none=True)

    def to_dict(self) -> dict[str, Any]:
        return {
            "firewall": self.data(),
            "taken": [_item(one, "how") for one in self.taken],
            "not_taken": [_item(one, "why") for one in self.not_taken],
            "differences": [_item(one, "what") for one in self.differences],
            "notes": [_item(one, "what") for one in self.notes],
            "exact": self.exact,
        }


def _item(one: Item, key: str) -> dict[str, Any]:
    return {"line": one.line, "text": one.text, key: one.says}
