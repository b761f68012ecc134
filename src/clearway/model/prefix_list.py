# SPDX-License-Identifier: Apache-2.0
"""Lists of prefixes by the million, as files have them: plain text, or JSON lines.

Plain: an address or a prefix a line; what follows # or ; is a comment. JSON lines: an object a line, with the
prefix under one of PREFIX_KEYS and, if it is to end, the time under EXPIRES.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import blake2b
from ipaddress import ip_network
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic_core import PydanticCustomError

from .errors import ConfigError, Origin, Problem, shown
from .prefixes import ROW_BYTES, Prefixes, prefix_row
from .values import IPAddress, network_of

PREFIX_KEYS = ("prefix", "cidr", "address", "ip")
EXPIRES = "expires"
METADATA = ("type", "metadata")
"""What marks a line that is about the list itself, as those of Spamhaus' DROP have one."""
PROBLEMS_MAX = 10
COMMENT = re.compile(r"[#;].*")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class PrefixRows:
    """Prefixes of one family. `rows`: (n, 5 or 17) bytes, the address in network order, then the length.
    `expires`: (n,) seconds since the epoch, 0: never.
    """

    rows: Array
    expires: Array

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class ListContent:
    """What is in a list, by family (4 and 6). Compares by content."""

    families: dict[int, PrefixRows]

    def __len__(self) -> int:
        return sum(map(len, self.families.values()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ListContent) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> bytes:
        digest = blake2b(digest_size=16)
        for family, found in self.families.items():
            digest.update(bytes([family]) + len(found).to_bytes(8))
            digest.update(found.rows.tobytes() + found.expires.tobytes())
        return digest.digest()

    @cached_property
    def expires(self) -> bool:
        """Does any entry?"""
        return any(bool(found.expires.any()) for found in self.families.values())

    def until(self, address: IPAddress) -> int | None:
        """When the entry expires that an address is in, of several the one that lives longest: seconds since
        the epoch, 0: never. None: it is in none.
        """
        found = self.families[address.version]
        lengths = found.rows[:, -1]
        ends: list[int] = []
        for length in np.unique(lengths).tolist():
            network = ip_network((address, length), strict=False).network_address.packed
            here = (found.rows[:, :-1] == np.frombuffer(network, np.uint8)).all(axis=1) & (lengths == length)
            ends += found.expires[here].tolist()
        return None if not ends else 0 if 0 in ends else max(ends)

    @classmethod
    def of(cls, prefixes: Prefixes) -> ListContent:
        return _content(prefixes.rows, [])


def read_list(content: bytes, source: str) -> ListContent:
    """What a file says. Raises ConfigError with the first lines that it cannot be."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _refused(source, [Problem((), "is not UTF-8 text", "save it as UTF-8", line)]) from None
    if text.lstrip()[:1] == "{":
        return _read_objects(text.split("\n"), source)
    plain = COMMENT.sub("", text) if "#" in text or ";" in text else text
    try:
        return _content(list(map(prefix_row, plain.split())), [])
    except (OSError, ValueError, KeyError):
        raise _refused(source, _problems(plain.split("\n"))) from None


def _content(rows: Sequence[bytes], expires: Sequence[int]) -> ListContent:
    """expires: of each row; empty if none does."""
    sizes = set(map(len, rows))
    families = {}
    for family, size in ROW_BYTES.items():
        mine = rows if sizes == {size} else [row for row in rows if len(row) == size]
        ends = [end for row, end in zip(rows, expires, strict=True) if len(row) == size] if expires else []
        families[family] = PrefixRows(
            np.frombuffer(b"".join(mine), np.uint8).reshape(-1, size),
            np.array(ends, np.int64) if ends else np.zeros(len(mine), np.int64),
        )
    return ListContent(families)


def _read_objects(lines: Sequence[str], source: str) -> ListContent:
    rows, expires, problems = [], [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if (found := _read_object(line)) is not None:
                rows.append(found[0])
                expires.append(found[1])
        except _LineError as error:
            problems.append(Problem((), error.what, error.fix, number))
            if len(problems) == PROBLEMS_MAX:
                break
    if problems:
        raise _refused(source, problems)
    return _content(rows, expires)


class _LineError(Exception):
    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


def _read_object(line: str) -> tuple[bytes, int] | None:
    """The row of a prefix, and when it expires; None: the line is about the list."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _LineError("is not a JSON object", 'write for example {"prefix": "192.0.2.0/24"}')
    if found.get(METADATA[0]) == METADATA[1]:
        return None
    word = next((found[key] for key in PREFIX_KEYS if key in found), None)
    if word is None:
        raise _LineError(f"has none of the keys {', '.join(PREFIX_KEYS)}", 'write "prefix": "192.0.2.0/24"')
    return _row(word), _moment(found.get(EXPIRES))


def _row(word: object) -> bytes:
    try:
        return prefix_row(word) if isinstance(word, str) else _asked(word)
    except (OSError, ValueError, KeyError):
        return _asked(word)


def _asked(word: object) -> bytes:
    """The row of what is written in an uncommon way, or why it is no prefix."""
    try:
        return Prefixes.of([network_of(word)]).rows[0]
    except PydanticCustomError as error:
        context = error.context or {}
        raise _LineError(str(context.get("what", error)), str(context.get("fix", ""))) from None


def _moment(value: object) -> int:
    """Seconds since the epoch, rounded up; 0: there is none. Numbers are such seconds, text is RFC 3339."""
    if value is None:
        return 0
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            value = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1 << 40:
            return -int(-value // 1)
    except ValueError:
        pass
    raise _LineError(
        f"{shown(value)} is not a time", 'write "2027-01-31T12:00:00Z", or seconds since the epoch'
    )


def _problems(lines: Sequence[str]) -> list[Problem]:
    return [
        Problem((), error.what, error.fix, number) for number, error in islice(_wrong(lines), PROBLEMS_MAX)
    ]


def _wrong(lines: Sequence[str]) -> Iterator[tuple[int, _LineError]]:
    for number, line in enumerate(lines, 1):
        for word in line.split():
            try:
                _row(word)
            except _LineError as error:
                yield number, error


def _refused(source: str, problems: list[Problem]) -> ConfigError:
    return Origin(source, {}).error(problems)
