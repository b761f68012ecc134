# SPDX-License-Identifier: Apache-2.0
"""How many decisions a second can be told to who reads them in a loop."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field

from bench.firewall.first import frames_for
from bench.firewall.replay import Replay
from bench.flows.node import Node
from bench.progress import Progress
from bench.results import Report
from clearway.compiler import Tables
from clearway.lab import LabError
from clearway.model import config_from_data

HEARD = "logged decisions heard"
LOST = "logged decisions lost"
RATES = (20_000, 50_000, 100_000)  # a second
KEPT = RATES[0]
"""The rate at which none may be lost."""
SECONDS = 3.0
BATCH_S = 0.002  # packets come in batches that far apart
PAUSE_S = 0.005  # of the reader
FRAMES = 1000


@dataclass
class Refused:
    """First packets that the firewall refuses, at a rate, from a thread on a CPU of its own."""

    node: Node
    rate: int
    cpu: int
    sent: int = 0
    seconds: float = 0.0
    failed: list[BaseException] = field(default_factory=list)

    def run(self) -> None:
        try:
            os.sched_setaffinity(threading.get_native_id(), {self.cpu})
            with self.node.inside.entered(), Replay(self.node, "tc", FRAMES) as replay:
                replay.give(frames_for(FRAMES, FRAMES, 4))
                self._send(replay)
        except BaseException as error:
            self.failed.append(error)

    def _send(self, replay: Replay) -> None:
        began = time.perf_counter()
        while (passed := time.perf_counter() - began) < SECONDS:
            due = round(passed * self.rate) - self.sent
            if due > 0:
                replay.send(due)
                self.sent += due
            time.sleep(BATCH_S)
        self.seconds = passed


def measure(node: Node, report: Report, progress: Progress, cpu: int) -> None:
    """A rule with `log: true` refuses everything; Datapath.events() is read without doing anything else."""
    data = {"firewall": {"rules": [{"name": "refused", "action": "drop", "log": True}]}}
    node.put(node.compile(config_from_data(data)))
    for rate in RATES:
        with progress.step(f"{rate:,} logged decisions a second"):
            _read(node, Refused(node, rate, cpu), report)
    report.expect_at_most(_case(KEPT), LOST, 0)
    node.put(Tables())


def _case(rate: int) -> str:
    return f"IPv4, {rate:,} a second"


def _read(node: Node, refused: Refused, report: Report) -> None:
    lost, heard = node.datapath.lost_events(), 0
    thread = threading.Thread(target=refused.run)
    with node.datapath.events() as read:
        thread.start()
        while thread.is_alive():
            heard += len(read())
            time.sleep(PAUSE_S)
        thread.join()
        heard += len(read())
    if refused.failed:
        raise LabError(f"packets broke off: {refused.failed[0]}")
    lost = node.datapath.lost_events() - lost
    if heard + lost != refused.sent:
        raise LabError(f"of {refused.sent:,} decisions {heard:,} were heard and {lost:,} lost")
    case = _case(refused.rate)
    report.add(HEARD, "1/s", {case: [heard / refused.seconds]})
    report.add(LOST, "", {case: [lost]})
