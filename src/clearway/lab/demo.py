# SPDX-License-Identifier: Apache-2.0
"""`clearway demo`: the main job, end to end, in a lab that is gone afterwards.

First the quickstart configuration at work: who answers, which address the outside sees, what a removed
server does to the connections of the others. Then the same traffic through Linux alone and through
clearway on TC and on XDP, each in a lab of its own, in turns so that all three see the same machine.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from clearway.lab.baseline import linux_alone
from clearway.lab.failover import remove_under_load
from clearway.lab.lab import Lab, reap
from clearway.lab.measure import distribution, http, packets, seen_from_outside
from clearway.lab.report import print_json, print_tables
from clearway.lab.results import SYSTEMS, Figures, Report
from clearway.lab.run import Interrupted, LabError, interruptible
from clearway.model import parse_config

TOOLS = ("ip", "nsenter", "ss", "nft", "ethtool", "conntrack", "nginx", "curl", "wrk")
CONNECTIONS = 32
CURL_REQUESTS = 150


@dataclass(frozen=True)
class Pace:
    """How long the comparison takes: about rounds * 3 systems * (3 * load_seconds + flood_seconds)."""

    rounds: int = 5
    load_seconds: int = 1
    flood_seconds: float = 0.7


def demo(output: str = "table", pace: Pace = Pace()) -> int:
    """Run it and print the report as a table or as JSON.

    Returns the exit code: 0, or 1 when something did not work, or 130 / 143 when it was interrupted. Progress
    goes to standard error. Raises LabError when the demo cannot run here.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise LabError(f"not installed: {', '.join(missing)}; install them (make demo does)")
    progress = Progress(Console(stderr=True))
    report = Report(platform.release(), os.cpu_count() or 1, CURL_REQUESTS)
    try:
        with interruptible():
            _run(report, progress, pace)
    except KeyboardInterrupt:
        return 130
    except Interrupted:
        return 143
    report.seconds = progress.elapsed
    (print_json if output == "json" else print_tables)(report, Console(file=sys.stdout))
    return 1 if report.failures() else 0


def quickstart(hook: str = "auto") -> str:
    """The text of examples/quickstart.yaml with every interface on `hook`.

    It lies beside this file in a wheel, in examples/ in a checkout.
    """
    here = Path(__file__).resolve()
    for path in (here.with_name("quickstart.yaml"), here.parents[3] / "examples" / "quickstart.yaml"):
        if path.is_file():
            return path.read_text().replace("hook: auto", f"hook: {hook}")
    raise LabError("examples/quickstart.yaml is missing; run from a checkout or install clearway again")


def _run(report: Report, progress: Progress, pace: Pace) -> None:
    reap()
    name = f"demo-{os.getpid()}"  # several may run at once
    with ExitStack() as stack:
        with progress.step("a lab: 2 clients, the node, 3 nginx servers, a host outside"):
            lab = stack.enter_context(Lab(name))
        _show(lab, report, progress)
    with ExitStack() as stack:
        labs = {}
        for system, title in SYSTEMS.items():
            with progress.step(f"a lab for {title}"):
                labs[system] = stack.enter_context(Lab(f"{name}-{system}"))
                labs[system].prepare_for(system)
                stack.enter_context(_carried_by(system, labs[system]))
        _compare(labs, report, progress, pace)
        with progress.step("everything removed"):
            stack.close()


def _show(lab: Lab, report: Report, progress: Progress) -> None:
    """The quickstart configuration as it stands, and a server that goes while wrk runs."""
    lab.prepare_for("tc")
    with ExitStack() as stack:
        with progress.step("clearway run -c examples/quickstart.yaml"):
            daemon = stack.enter_context(lab.daemon(quickstart()))
        report.hooks = ", ".join(
            sorted({str(row["hook"]) for row in daemon.json("get", "interfaces")["interfaces"]})
        )
        for family in (4, 6):
            with progress.step(
                f"IPv{family}: {CURL_REQUESTS} connections by curl, a datagram to the outside"
            ):
                answers = distribution(lab.client.ns, f"http://{lab.vip_url(family)}/", CURL_REQUESTS)
                report.answers[family] = dict(sorted(answers.items()))
                report.outside_sees[family] = seen_from_outside(lab.client.ns, lab.outside, family)
                report.outside_expected[family] = lab.node_address("uplink", family)
        with progress.step("wrk on all servers, and server3 is removed"):
            report.failover = remove_under_load(lab, daemon, "web", lab["server3"])
            answers = distribution(lab.client.ns, f"http://{lab.vip_url(4)}/", CURL_REQUESTS)
            report.answers_afterwards = dict(sorted(answers.items()))


def _compare(labs: Mapping[str, Lab], report: Report, progress: Progress, pace: Pace) -> None:
    """Each system in turn, round after round, every second round in the opposite order: whatever else the
    machine does then hits all alike."""
    report.figures = {system: Figures() for system in labs}
    for number in range(pace.rounds):
        with progress.step(f"round {number + 1} of {pace.rounds}: wrk and a UDP flood through each in turn"):
            for system in list(labs)[:: 1 if number % 2 == 0 else -1]:
                _measure(labs[system], report.figures[system], pace)


@contextmanager
def _carried_by(system: str, lab: Lab) -> Iterator[None]:
    """The node balances and masquerades by `system` for the time of the `with` block."""
    if system == "linux":
        with linux_alone(lab.node, parse_config(quickstart(), "examples/quickstart.yaml")):
            yield
    else:
        with lab.daemon(quickstart(hook=system)):
            yield


def _measure(lab: Lab, figures: Figures, pace: Pace) -> None:
    for results, connections, close in (
        (figures.keepalive, CONNECTIONS, False),
        (figures.fresh, CONNECTIONS, True),
        (figures.alone, 1, False),
    ):
        url, seconds = f"http://{lab.vip_url(4)}/load", pace.load_seconds
        found = http(lab.client.ns, lab.directory, url, seconds=seconds, connections=connections, close=close)
        results.append(found)
    source = lab.node_address("uplink", 4)
    figures.flood.append(packets(lab.client, lab.outside, source, seconds=pace.flood_seconds))


class Progress:
    """Says on standard error what is being done, and how long it took."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._start

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        before = self.elapsed
        try:
            with self._console.status(what):
                yield
        except BaseException:
            self._console.print(f"[red]✗[/red] {what}", highlight=False)
            raise
        self._console.print(
            f"[green]✓[/green] {what} [dim]({self.elapsed - before:.1f} s)[/dim]", highlight=False
        )
