# SPDX-License-Identifier: Apache-2.0
"""What is laid out for the data path, looked up as that does (bpf/scrub.h), beside going by every prefix."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clearway.compiler import Clock, prefix_index
from clearway.compiler.prefix_index import (
    PREFIX_PROBES,
    PREFIX_TIME_SHIFT,
    PREFIX_WHOLE,
    PrefixImage,
    prefix_image,
)
from clearway.model import read_list
from clearway.model.hashing import mix64, mix64_again
from clearway.model.scrub import LISTS_MAX

ROOT = Path(__file__).resolve().parents[2]

CLOCK = Clock(jiffies=10_000_000, seconds=1000.0, hz=250)
LATER = 5000
BITS = {4: 32, 6: 128}


class Index:
    """An image, as numbers."""

    def __init__(self, image: PrefixImage, family: int) -> None:
        self.lines: list[list[int]] = image.lines.tolist()
        self.family = family
        self.index = image.index

    def find(self, address: int, seconds: float = CLOCK.seconds) -> int | None:
        """The number of the list that an address is in at that time."""
        wide = address << 96 if self.family == 4 else address
        granule = wide >> 64 + self.index["shift"]
        hashed = int(mix64_again(mix64(np.array([granule ^ self.index["seed"]], np.uint64)))[0])
        word = (hashed >> 32) * self.index["words"] >> 32
        bits = 1 << (hashed & 63) | 1 << (hashed >> 6 & 63) | 1 << (hashed >> 12 & 63)
        if self.lines[word // 8][word % 8] & bits != bits:
            return None
        home = self.index["bucket_line"] + ((hashed >> 32) * self.index["buckets"] >> 32)
        for line in self.lines[home : home + self.index["probes"]]:
            for key, value in zip(line[::2], line[1::2], strict=True):
                if value >> 32 and key == granule:
                    return self._among(value & 0xFFFF_FFFF, value >> 32, wide, seconds)
        return None

    def _among(self, at: int, count: int, wide: int, seconds: float) -> int | None:
        if count & PREFIX_WHOLE:
            return count & ~PREFIX_WHOLE if lives(at, seconds) else None
        for place in range(at, at + count):
            first, last, told = self._range(place)
            if first <= wide <= last:
                return told >> 32 if lives(told & 0xFFFF_FFFF, seconds) else None
        return None

    def _range(self, place: int) -> tuple[int, int, int]:
        if self.family == 6:
            line = self.lines[self.index["range_line"] + place]
            return line[0] << 64 | line[1], line[2] << 64 | line[3], line[4]
        line = self.lines[self.index["range_line"] + place // 4]
        edges, told = line[2 * (place % 4) : 2 * (place % 4) + 2]
        return (edges & 0xFFFF_FFFF) << 96, (edges >> 32) << 96 | (1 << 96) - 1, told


def lives(moment: int, seconds: float) -> bool:
    jiffies = CLOCK.jiffies + int((seconds - CLOCK.seconds) * CLOCK.hz)
    return not moment or moment > jiffies >> PREFIX_TIME_SHIFT


@dataclass(frozen=True)
class Entry:
    first: int
    length: int
    expires: int
    place: int
    """Of its list."""


def made_up(source: random.Random, family: int) -> Entry:
    bits = BITS[family]
    length = source.choice([0, 1, bits, bits, bits - 1, bits // 2, 24, 48, 64, source.randrange(bits + 1)])
    length = min(length, bits)
    near = source.choice(
        [
            source.getrandbits(bits),
            source.getrandbits(4),
            (1 << bits) - 1 - source.getrandbits(4),
            0x0A << bits - 8 | source.getrandbits(10),
        ]
    )
    expires = source.choice([0, 0, 900, LATER, 2 * LATER])
    return Entry(near >> bits - length << bits - length, length, expires, source.randrange(3))


def compiled(entries: list[Entry], family: int, seed: int) -> Index | None:
    make: Any = IPv4Address if family == 4 else IPv6Address
    lists = []
    for place in range(3):
        lines = [
            json.dumps({"prefix": f"{make(one.first)}/{one.length}", "expires": one.expires or None})
            for one in entries
            if one.place == place
        ]
        lists.append((10 - place, read_list("\n".join(lines).encode(), "list").families[family]))
    found = prefix_image(lists, family, CLOCK, seed)
    return None if found is None else Index(found, family)


def expected(entries: list[Entry], family: int, address: int, seconds: float) -> int | None:
    """By the entry that lives longest, then by the list that stands first."""
    shift = BITS[family]
    there = [
        one
        for one in entries
        if address >> shift - one.length == one.first >> shift - one.length
        and (one.expires == 0 or one.expires > CLOCK.seconds)
    ]
    if not there:
        return None
    best = max(there, key=lambda one: (one.expires or 1 << 62, -one.place))
    return 10 - best.place if best.expires == 0 or best.expires > seconds else None


@pytest.mark.parametrize("family", [4, 6])
def test_lists_are_looked_up_exactly(family: int) -> None:
    source = random.Random(family)
    for _ in range(150):
        entries = [made_up(source, family) for _ in range(source.choice([0, 1, 2, 10, 60]))]
        index = compiled(entries, family, source.getrandbits(64))
        size = 1 << BITS[family]
        asked = [source.randrange(size) for _ in range(10)]
        for one in entries:
            last = one.first | (1 << BITS[family] - one.length) - 1
            asked += [
                one.first,
                last,
                (one.first - 1) % (1 << BITS[family]),
                (last + 1) % (1 << BITS[family]),
            ]
        for address in asked:
            for seconds in (CLOCK.seconds, LATER + 60.0):
                found = index.find(address, seconds) if index else None
                assert found == expected(entries, family, address, seconds), (entries, address, seconds)


@pytest.mark.parametrize("family", [4, 6])
def test_many_entries_stand_near_their_homes_and_filter_the_others(family: int) -> None:
    source = random.Random(family)
    bits = BITS[family]
    addresses = {source.getrandbits(bits) for _ in range(30_000)}
    make: Any = IPv4Address if family == 4 else IPv6Address
    content = read_list("\n".join(str(make(one)) for one in addresses).encode(), "list")
    image = prefix_image([(0, content.families[family])], family, CLOCK)
    assert image is not None
    index = Index(image, family)
    assert image.index["probes"] <= PREFIX_PROBES
    assert all(index.find(address) == 0 for address in source.sample(sorted(addresses), 300))
    passed = sum(bin(word).count("1") for line in index.lines[: image.index["bucket_line"]] for word in line)
    share = passed / (64 * image.index["words"])
    assert share**3 < 0.02


def test_layout_is_that_of_the_data_path() -> None:
    headers = "".join((ROOT / "bpf" / name).read_text() for name in ("types.h", "scrub.h"))
    defined = dict(re.findall(r"^#define (\w+)\s+\(?([\w <]+?)u?\b", headers, re.MULTILINE))
    names = ("PREFIX_PROBES", "PREFIX_TIME_SHIFT", "GRANULES_OF_BUCKET")
    assert {name: int(defined[name]) for name in names} == {
        name: getattr(prefix_index, name) for name in names
    }
    assert int(defined["LISTS"]) == LISTS_MAX
    assert int(defined["RANGES_OF_LINE"]) == prefix_index.RANGES_OF_LINE[4]
    assert "#define PREFIX_WHOLE (1u << 31)" in headers and PREFIX_WHOLE == 1 << 31


def test_nothing_listed_takes_nothing() -> None:
    assert prefix_image([], 4, CLOCK) is None
    expired = read_list(b'{"ip": "192.0.2.1", "expires": 999}', "list")
    assert prefix_image([(0, expired.families[4])], 4, CLOCK) is None
