# SPDX-License-Identifier: Apache-2.0
"""Many cases (`make oracle`), or one again: python -m tests.oracle --hook tc --replay build/oracle/tc.json"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from clearway.lab.run import interruptible
from tests.oracle.case import Case
from tests.oracle.cases import cases
from tests.oracle.check import check
from tests.oracle.lab import Pair
from tests.oracle.play import Played, play

CASES = 10_000
BATCH = 250  # cases by one seed
LEGACY_SHARE = 4  # one case of so many is under iptables-legacy
EVERY = 5.0  # seconds between two lines of progress
POLL = 0.2  # seconds


class Progress:
    """A line now and then: how many cases, how fast, how long it will take."""

    def __init__(self, hook: str, total: int) -> None:
        self.hook, self.total, self.done, self.arrived, self.drawn = hook, total, 0, 0, 0
        self._begun = self._told = time.monotonic()

    def add(self, played: Played) -> None:
        self.done += 1
        self.arrived += played.arrived
        self.drawn += played.drawn
        if time.monotonic() - self._told > EVERY:
            self._told = time.monotonic()
            print(self, flush=True)

    def __str__(self) -> str:
        rate = self.done / (time.monotonic() - self._begun)
        left = (self.total - self.done) / rate / 60 if rate else 0
        return f"{self.hook}: {self.done:,} of {self.total:,} cases alike, {rate:.1f}/s, {left:.0f} min left"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("--hook", choices=["tc", "xdp"], help="one of them alone")
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--replay", type=Path, metavar="CASE.json")
    options = parser.parse_args()
    hooks = [options.hook] if options.hook else ["tc", "xdp"]
    with interruptible():
        if options.replay:
            return _replay(hooks, Case.from_json(options.replay.read_text()))
        if len(hooks) > 1:
            return _side_by_side(hooks, options.cases, options.seed)
        return _many(options.hook, options.cases, options.seed)


def _replay(hooks: list[str], case: Case) -> int:
    found = 0
    for hook in hooks:
        with Pair(hook) as pair:
            for difference in (differences := play(pair, case).differences) or ["no difference"]:
                print(f"{hook}: {difference}")
            found += len(differences)
    return 1 if found else 0


def _side_by_side(hooks: list[str], total: int, first_seed: int) -> int:
    """Each hook in a process of its own: a case waits more than it computes. A difference ends both."""
    shares = {hook: total // len(hooks) for hook in hooks}
    shares[hooks[0]] += total % len(hooks)
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(_oracle("--hook", hook, "--cases", str(share), "--seed", str(first_seed)))
            for hook, share in shares.items()
        ]
        while running:
            time.sleep(POLL)
            ended = [one for one in running if one.poll() is not None]
            if failed := [one.returncode for one in ended if one.returncode]:
                return failed[0]
            running = [one for one in running if one not in ended]
    return 0


@contextlib.contextmanager
def _oracle(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """This program with other arguments; ended, and waited for, with the context."""
    with subprocess.Popen([sys.executable, "-m", "tests.oracle", *arguments]) as process:
        try:
            yield process
        finally:
            process.terminate()


def _many(hook: str, total: int, first_seed: int) -> int:
    print(f"{hook}: seed {first_seed}", flush=True)
    progress = Progress(hook, total)
    old = total // LEGACY_SHARE
    with Pair(hook) as pair:
        try:
            for legacy, number in ((False, total - old), (True, old)):
                for place, size in enumerate(_batches(number)):
                    _batch(pair, legacy, size, first_seed + place, progress)
        except AssertionError as failure:
            print(failure, file=sys.stderr)
            return 1
        print(f"{hook}: clearway forwarded {pair.carried():,} packets itself")
    print(f"{progress}; {progress.arrived:,} frames arrived in each lab")
    print(f"{hook}: {progress.drawn:,} cases ended early: Linux drew a port by chance, in each lab its own")
    return 0


def _batches(number: int) -> Iterator[int]:
    while number > 0:
        yield min(number, BATCH)
        number -= BATCH


def _batch(pair: Pair, legacy: bool, size: int, number: int, progress: Progress) -> None:
    """AssertionError with the smallest case that shows what the first failing one has shown."""

    @seed(number)
    @settings(
        max_examples=size,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases(legacy=legacy))
    def run(case: Case) -> None:
        progress.add(check(pair, case))

    run()


if __name__ == "__main__":
    sys.exit(main())
