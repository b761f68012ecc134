# SPDX-License-Identifier: Apache-2.0
"""What of a lab is compared: frames, and at the end of a case connections, counters and members of sets."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

from clearway.api.client import Client
from tests.oracle.case import Case
from tests.oracle.frames import (
    ECHO,
    ETHERTYPE,
    FLAGS,
    FRAGMENT,
    HOP_BY_HOP,
    ICMP,
    NUMBERS,
    TCP,
    checksum,
    read,
)
from tests.oracle.lab import Side

CONNECTION = re.compile(r"(?P<family>ipv[46]) +\d+ +(?P<protocol>\S+) +\d+ +(?P<timeout>\d+) +(?P<rest>.*)")
UNCOMPARED = re.compile(r"\b(?:packets|bytes|use|id)=\d+ ?")
PORT = re.compile(r"\b([sd]port=)(\d+)")
LEGACY = ("iptables-legacy", "ip6tables-legacy")


@dataclass(frozen=True)
class State:
    """`connections`: text and seconds left, sorted. `counters`: (packets, bytes) by where they stand.
    `members`: of named sets."""

    connections: list[tuple[str, int]]
    counters: dict[str, tuple[int, int]]
    members: dict[str, list[str]]


def observe(side: Side, case: Case) -> State:
    """Ask the router's tools."""
    ruleset = json.loads(side.router.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
    return State(connections(side, case), rule_counters(side, case, ruleset), _members(ruleset))


def connections(side: Side, case: Case) -> list[tuple[str, int]]:
    """`conntrack -L`, without what only a stack that sees each packet can count, and without ports that Linux
    has chosen by chance."""
    listed = side.router.run("conntrack", "-L", "-o", "extended").stdout
    found = (CONNECTION.fullmatch(line.strip()) for line in listed.splitlines())
    return sorted(
        (f"{one['family']} {one['protocol']} {_state_of(one['rest'], case.ports)}", int(one["timeout"]))
        for one in found
        if one
    )


def _state_of(listed: str, ports: Set[int]) -> str:
    """Whether Linux believes a RST depends on packets that it has not seen (daemon/resets.py)."""
    text = PORT.sub(lambda one: one[0] if int(one[2]) in ports else f"{one[1]}chosen", listed)
    text = UNCOMPARED.sub("", text).strip()
    words = text.split(" ", 1)
    return f"ESTABLISHED {words[1]}" if words[0] == "CLOSE" and "[ASSURED]" in text else text


def rule_counters(side: Side, case: Case, ruleset: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Counters of all rules; of the accelerated lab Linux' and clearway's own together.

    Named by the place of a rule among those of its chain that count: one without a counter shows nowhere.
    """
    found: dict[str, tuple[int, int]] = {}
    for chain, counted in _with_clearways(side.clearway) if side.clearway else _linux_own(ruleset):
        found[_next(found, chain)] = counted
    for tool in LEGACY:
        if case.runs(tool):
            found |= dict(_legacy(tool, side.router.run(f"{tool}-save", "-c").stdout))
    return found


def _linux_own(ruleset: list[dict[str, Any]]) -> Iterator[tuple[str, tuple[int, int]]]:
    for entry in ruleset:
        rule = entry.get("rule", {})
        for expression in rule.get("expr", ()):
            if isinstance(counter := expression.get("counter"), dict):
                chain = f"{rule['family']} {rule['table']} {rule['chain']}"
                yield chain, (counter["packets"], counter["bytes"])


def _with_clearways(clearway: Client) -> Iterator[tuple[str, tuple[int, int]]]:
    for one in clearway.get("rules", "linux")["linux"]:
        if one["kind"] == "rule":
            yield f"{one['family']} {one['table']} {one['chain']}", (one["packets"], one["bytes"])


def _next(found: dict[str, tuple[int, int]], chain: str) -> str:
    return f"{chain} {sum(place.rpartition(' ')[0] == chain for place in found)}"


def _legacy(tool: str, saved: str) -> Iterator[tuple[str, tuple[int, int]]]:
    table = ""
    for number, line in enumerate(saved.splitlines()):
        if line.startswith("*"):
            table = line[1:]
        if counted := re.match(r"\[(\d+):(\d+)\] -A (.*)", line):
            yield f"{tool} {table} {number} {counted[3]}", (int(counted[1]), int(counted[2]))


def _members(ruleset: list[dict[str, Any]]) -> dict[str, list[str]]:
    found = {}
    for entry in ruleset:
        one = entry.get("set") or entry.get("map")
        if one:
            elements = sorted(json.dumps(element, sort_keys=True) for element in one.get("elem", []))
            found[f"{one['family']} {one['table']} {one['name']}"] = elements
    return found


# ---- frames ----


def chosen(frames: Sequence[bytes], ports: Set[int]) -> bool:
    """Whether any has a port that Linux has chosen by chance. (Identifiers of echoes differ in all flows.)"""
    seen = (read(frame[14:]) for frame in frames)
    return any(not set(one.ports or ()) <= ports for one in seen if one.protocol in NUMBERS.values())


def comparable(frames: Sequence[bytes]) -> list[bytes]:
    """Frames without what Linux makes anew each time: the identification of IPv4 packets of its own, and of
    IPv6 fragments, which conntrack puts together and takes apart again."""
    return [_comparable(frame) for frame in frames]


def _comparable(frame: bytes) -> bytes:
    if frame[12:14] == ETHERTYPE[4]:
        return _without_ident(frame) if _may_be_routers(frame) else frame
    kind, at = frame[20], 54
    if kind == HOP_BY_HOP:
        kind, at = frame[at], at + 8 + frame[at + 1] * 8
    return frame[: at + 4] + bytes(4) + frame[at + 8 :] if kind == FRAGMENT else frame


def _may_be_routers(frame: bytes) -> bool:
    """An ICMP message other than a request, or a reset, over IPv4. (NAT gives them anybody's addresses.)"""
    at = 14 + (frame[14] & 15) * 4
    if frame[23] == ICMP:
        return frame[at] != ECHO[4][0]
    return frame[23] == TCP and len(frame) > at + 13 and bool(frame[at + 13] & FLAGS["R"])


def _without_ident(frame: bytes) -> bytes:
    """A wrong checksum stays wrong."""
    end = 14 + (frame[14] & 15) * 4
    if checksum(frame[14:end]) != 0:
        return frame
    bare = frame[14:18] + b"\0\0" + frame[20:24] + b"\0\0" + frame[26:end]
    return frame[:14] + bare[:10] + struct.pack("!H", checksum(bare)) + bare[12:] + frame[end:]
