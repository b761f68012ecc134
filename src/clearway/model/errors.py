# SPDX-License-Identifier: Apache-2.0
"""What is said about a configuration that is refused: one problem a line, in the words of the file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pydantic_core import PydanticCustomError

Where = tuple[str | int, ...]
"""Keys and list positions that lead to a value: ("services", 0, "port")."""

VALUE_REFUSED = "clearway_value"
PROBLEMS_FOUND = "clearway_problems"
"""Types of the errors that cross pydantic with our own words in their context (messages.py reads them)."""

SHOWN_LENGTH = 40
PLAIN_KEY = re.compile(r"[\w./-]+")


def path_text(where: Where) -> str:
    """("services", 0, "port") -> "services[0].port"; keys that would be misread are quoted."""
    text = ""
    for part in where:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if PLAIN_KEY.fullmatch(part) else shown(part)
            text += f".{name}" if text else name
    return text


def shown(value: object) -> str:
    """A value as a message quotes it: on one line, short, and never a Python notation."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int():
            # Not str() first: Python refuses to print integers of thousands of digits.
            return str(value) if abs(value) < 10**SHOWN_LENGTH else "a huge number"
        case float() if math.isfinite(value):
            return repr(value)
        case str():
            text = value if len(value) <= SHOWN_LENGTH else value[:SHOWN_LENGTH] + "..."
            return json.dumps(text)
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case _:
            return json.dumps(str(value)[:SHOWN_LENGTH])


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, what, and what to do about it."""

    where: Where
    what: str
    fix: str
    line: int | None = None

    @property
    def path(self) -> str:
        return path_text(self.where)

    def within(self, prefix: Where) -> Problem:
        return replace(self, where=prefix + self.where)

    def to_dict(self) -> dict[str, object]:
        return {"path": self.path, "line": self.line, "what": self.what, "fix": self.fix}

    def __str__(self) -> str:
        line = "" if self.line is None else f" (line {self.line})"
        return f"{self.path}{line}: {self.what}; {self.fix}"


class ConfigError(Exception):
    """A configuration that is refused, with every problem that was found. str() has one line a problem."""

    def __init__(self, problems: Iterable[Problem], source: str) -> None:
        self.problems = tuple(problems)
        self.source = source
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a configuration came from: its name, and the line of each key.

    Two origins are always equal, so that configurations compare by what they say.
    """

    source: str
    lines: Mapping[Where, int]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origin)

    def __hash__(self) -> int:
        return 0

    def line(self, where: Where) -> int | None:
        """The line of a key or, if the file does not have it, of what it should be in."""
        for length in range(len(where), -1, -1):
            line = self.lines.get(where[:length])
            if line is not None:
                return line
        return None

    def error(self, problems: Iterable[Problem]) -> ConfigError:
        """The problems as an error, each with its line; a problem of the whole file bears the file's name."""
        located = [
            replace(
                problem, where=problem.where or (self.source,), line=problem.line or self.line(problem.where)
            )
            for problem in problems
        ]
        return ConfigError(sorted(located, key=lambda problem: problem.line or 0), self.source)


def refuse(what: str, fix: str) -> PydanticCustomError:
    """The error for a validator of one value to raise."""
    return PydanticCustomError(VALUE_REFUSED, "{what}; {fix}", {"what": what, "fix": fix})


def refuse_all(problems: list[Problem]) -> PydanticCustomError:
    """The error for a validator of a whole model to raise; places are relative to the model."""
    return PydanticCustomError(
        PROBLEMS_FOUND, "{text}", {"text": "\n".join(map(str, problems)), "problems": problems}
    )
