# SPDX-License-Identifier: Apache-2.0
"""Plays a case in both labs and says where they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.oracle.case import Case, Run, Step
from tests.oracle.frames import read
from tests.oracle.lab import Arrived, Pair, Side, packets
from tests.oracle.network import SEGMENTS
from tests.oracle.observe import LEGACY, State, chosen, comparable, observe
from tests.oracle.traffic import Conversation, Injection

TIMEOUT_SLACK = 5
"""Seconds by which timeouts may differ: one lab comes after the other, `conntrack` tells whole seconds."""

TCP_TIMEOUTS = (10, 300, 432_000)
"""Seconds of a connection that was reset, of an established one with unacknowledged data, and without
(nf_conntrack_tcp_timeout_close, _unacknowledged, _established).
"""
UDP_TIMEOUTS = (30, 120)
"""Of one that was answered, in its first two seconds and later (nf_conntrack_udp_timeout, _stream)."""

TOLD = 80  # bytes of a frame that a message shows


@dataclass
class Played:
    """What became of a case. `sent`: what the plain lab's hosts have sent, for each step.

    `arrived`: frames in the plain lab, of all steps; a case with few of them says little. `carried`: packets
    that clearway has forwarded. `drawn`: Linux has chosen a port by chance, in each lab its own; there the
    case ended.
    """

    differences: list[str] = field(default_factory=list)
    sent: list[list[Injection]] = field(default_factory=list)
    arrived: int = 0
    carried: int = 0
    drawn: bool = False


def no_fault(_side: Side) -> None:
    """The lab as it is."""


def play(pair: Pair, case: Case, fault: Callable[[Side], None] = no_fault) -> Played:
    """Play it from a fresh start to the first step that differs or that chance decides, or to its end.

    `fault` is done to the accelerated lab after the rules have been loaded: how the oracle itself is tried.
    ValueError when the kernel refuses the case's rules.
    """
    played = Played()
    touched = any(isinstance(step, Run) and step.touches_network for step in case.steps)
    pair.reset(network_too=False)
    try:
        for run in case.rules:
            played.differences += _load(pair, run)
        fault(pair.fast)
        pair.proved()
        before = pair.carried()
        first = next(pair.idents)
        talks = Conversation(case.flows, first), Conversation(case.flows, first)
        for number, step in enumerate(case.steps):
            if played.differences or played.drawn:
                break
            played.differences += [
                f"step {number} ({step}): {text}" for text in _step(pair, talks, case, step, played)
            ]
        played.carried = pair.carried() - before
        if not played.differences and not played.drawn:
            played.differences += _compared(observe(pair.plain, case), observe(pair.fast, case))
    finally:
        _clean(pair, case, touched)
    return played


def _load(pair: Pair, run: Run) -> Iterator[str]:
    plain, fast = (side.command(run) for side in pair.sides)
    if plain.returncode != 0:
        raise ValueError(f"the kernel does not take {run}: {plain.stderr.strip()}")
    if fast.returncode != 0:
        yield f"{run} fails: {fast.stderr.strip()}"


def _clean(pair: Pair, case: Case, touched: bool) -> None:
    for tool in filter(case.runs, LEGACY):
        for side in pair.sides:
            side.router.run(f"{tool}-restore", stdin=NO_RULES)
    if touched:
        pair.reset(network_too=True)


NO_RULES = "".join(
    f"*{table}\n" + "".join(f":{chain} ACCEPT\n" for chain in chains) + "COMMIT\n"
    for table, chains in {
        "raw": ("PREROUTING", "OUTPUT"),
        "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
        "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
        "filter": ("INPUT", "FORWARD", "OUTPUT"),
    }.items()
)
"""What `iptables-restore` reads to take all rules away."""


def _step(
    pair: Pair, talks: tuple[Conversation, Conversation], case: Case, step: Step, played: Played
) -> Iterator[str]:
    if isinstance(step, Run):
        played.sent.append([])
        codes = [side.command(step).returncode for side in pair.sides]
        if codes[0] != codes[1]:
            yield f"exit code {codes[0]} in Linux, {codes[1]} with clearway"
        pair.proved()
    else:
        said = [talk.say(step) for talk in talks]
        played.sent.append(said[0])
        for side, injections in zip(pair.sides, said, strict=True):
            for injection in injections:
                side.inject(injection)
    both = pair.settled()
    played.arrived += sum(map(len, both[0].values()))
    played.drawn = all(chosen(frames, case.ports) for frames in map(_flat, both))
    yield from (_lengths_compared if played.drawn else _frames_compared)(*both)
    if not isinstance(step, Run):
        for talk, arrived in zip(talks, both, strict=True):
            talk.learn(step, packets(arrived))


def _flat(arrived: Arrived) -> list[bytes]:
    return [frame for frames in arrived.values() for frame in frames]


def _lengths_compared(plain: Arrived, fast: Arrived) -> Iterator[str]:
    for segment in SEGMENTS:
        linux, clearway = (sorted(map(len, arrived[segment])) for arrived in (plain, fast))
        if linux != clearway:
            yield f"on {segment} arrive frames of {linux} bytes in Linux, of {clearway} with clearway"


def _frames_compared(plain: Arrived, fast: Arrived) -> Iterator[str]:
    for segment in SEGMENTS:
        linux, clearway = comparable(plain[segment]), comparable(fast[segment])
        if linux != clearway:
            where = _first_difference(linux, clearway)
            yield f"on {segment} arrive {_told(linux)} in Linux, {_told(clearway)} with clearway{where}"


def _told(frames: list[bytes]) -> str:
    return "; ".join(_one(frame) for frame in frames) or "nothing"


def _one(frame: bytes) -> str:
    seen = read(frame[14:])
    shown = frame[:TOLD].hex() + ("..." if len(frame) > TOLD else "")
    return f"{seen.source} > {seen.destination} {seen.protocol} {seen.ports} {len(frame)} bytes {shown}"


def _first_difference(linux: list[bytes], clearway: list[bytes]) -> str:
    """Where two frames of one length differ; nothing to say about others."""
    for one, other in zip(linux, clearway, strict=False):
        if len(one) == len(other) and one != other:
            at = next(place for place in range(len(one)) if one[place] != other[place])
            return f"; byte {at} is {one[at]:#04x} in Linux, {other[at]:#04x} with clearway"
    return ""


def _compared(plain: State, fast: State) -> Iterator[str]:
    for what, linux, clearway in (
        ("connections", _texts(plain), _texts(fast)),
        ("counters", plain.counters, fast.counters),
        ("members of sets", plain.members, fast.members),
    ):
        if linux != clearway:
            yield f"{what}: {linux} in Linux, {clearway} with clearway"
    if _texts(plain) == _texts(fast):
        pairs = zip(plain.connections, fast.connections, strict=True)
        for (text, linux_left), (_, left) in pairs:
            if not _alike(text, linux_left, left):
                yield f"timeout of {text}: {linux_left} s in Linux, {left} s with clearway"


def _alike(text: str, linux_left: int, left: int) -> bool:
    """Whether timeouts are. Linux gives less time to an established connection whose last data is not
    acknowledged, and to one of UDP that is younger than two seconds: of packets that it does not see it knows
    neither.
    """
    given = TCP_TIMEOUTS if " ESTABLISHED " in text else UDP_TIMEOUTS if " udp " in text else ()
    both = (linux_left, left)
    if all(any(0 <= one - seconds <= TIMEOUT_SLACK for one in given) for seconds in both):
        return True
    return abs(linux_left - left) <= TIMEOUT_SLACK


def _texts(state: State) -> list[str]:
    return [text for text, _ in state.connections]
