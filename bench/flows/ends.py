# SPDX-License-Identifier: Apache-2.0
"""How many ends of connections a second `clearway follow` tells without losing any."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.flows.node import SINGLE, Node, serve_node
from bench.flows.shapes import opening, refusal
from bench.flows.traffic import CLEARWAY, Generator
from bench.progress import Progress
from bench.results import Report
from clearway.lab import Daemon, LabError
from clearway.lab.run import spawn, stop

LOST = "ends of connections that are not told"
RATES = (25_000, 50_000, 100_000)  # a second
STATED = 50_000  # docs/cli.md
SECONDS = 5.0
AT_ONCE = 1_000  # connections: SYN, RST and again SYN, which ends what was there
LISTENING_S = 20.0
REST_S = 3.0  # what has ended is told meanwhile


def measure(report: Report, progress: Progress) -> None:
    """Connections over IPv4 that are refused and opened again, at several rates."""
    with serve_node(AT_ONCE * 4) as (node, daemon), node.inside.entered(), Generator(node, "tc") as generator:
        for rate in RATES:
            with progress.step(f"following {rate:,} ends a second"), TemporaryDirectory() as directory:
                ended, told = _follow(node, daemon, generator, rate, Path(directory, "told"))
                progress.note(f"  {ended:,} ended, {told:,} were told")
            case = f"IPv4, {rate:,} ends a second"
            report.add(LOST, "%", {case: [100 * (1 - told / ended)]})
    report.expect_at_most(f"IPv4, {STATED:,} ends a second", LOST, 0)


def _follow(node: Node, daemon: Daemon, generator: Generator, rate: int, told: Path) -> tuple[int, int]:
    """How many connections have ended, and of how many `clearway follow` told."""
    follower = spawn(daemon.argv("follow", "-o", "json"), output=told, env=daemon.environment)
    try:
        _wait_until_told(node, generator, told)
        before, lines, missed = node.datapath.ended()["reopened"], _lines(told), node.datapath.lost_records()
        _reopen(generator, rate)
        time.sleep(REST_S)
        ended = node.datapath.ended()["reopened"] - before
        if ended < 0.9 * rate * SECONDS:
            raise LabError(f"only {ended / SECONDS:,.0f} connections ended in a second, not {rate:,}")
        lines, missed = _lines(told) - lines, node.datapath.lost_records() - missed
        if lines + missed != ended:
            raise LabError(f"{ended:,} connections ended, {lines:,} were told, {missed:,} counted as lost")
        return ended, lines
    finally:
        stop(follower)


def _wait_until_told(node: Node, generator: Generator, told: Path) -> None:
    """Ends connections until the follower is there to tell."""
    ends = time.monotonic() + LISTENING_S
    while not _lines(told):
        if time.monotonic() > ends:
            raise LabError(f"clearway follow tells nothing: {told.read_text() or 'no output'}")
        _round(generator)
        time.sleep(0.2)
    time.sleep(REST_S)


def _reopen(generator: Generator, rate: int) -> None:
    """For SECONDS: so many connections a second, evenly."""
    began, done = time.monotonic(), 0
    while (passed := time.monotonic() - began) < SECONDS:
        if done + AT_ONCE <= rate * passed:
            _round(generator)
            done += AT_ONCE
        else:
            time.sleep(0.002)


def _round(generator: Generator) -> None:
    for shape in (opening(4, SINGLE), refusal(4)):
        generator.aim(shape, 0, AT_ONCE)
        generator.send(AT_ONCE, CLEARWAY)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")
