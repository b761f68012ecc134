# SPDX-License-Identifier: Apache-2.0
"""`clearway demo`, in a hurry: it shows what it says, and leaves nothing behind, also when interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from clearway.lab.daemon import traces
from clearway.lab.demo import Pace, demo
from clearway.lab.lab import LABS
from clearway.lab.namespace import existing
from clearway.lab.results import METRICS, SYSTEMS


def left_behind(pid: int) -> list[str]:
    """What a demo run by this process has not removed."""
    name = f"demo-{pid}"
    left = [namespace.name for namespace in existing(f"cw-{name}-")]
    left += [str(path) for path in LABS.glob(f"{name}*")]
    for instance in (f"cw-{name}", *(f"cw-{name}-{system}" for system in SYSTEMS)):
        left += [str(path) for path in traces(instance)]
    return left


@pytest.mark.timeout(200)
def test_demo_finds_everything_in_order(lab_names: Iterator[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = demo("json", Pace(rounds=1, load_seconds=1, flood_seconds=0.2))
    report = json.loads(capsys.readouterr().out)
    assert (code, report["failures"]) == (0, [])
    assert (
        set(report["answers"]["ipv4"]) == set(report["answers"]["ipv6"]) == {"server1", "server2", "server3"}
    )
    assert report["failover"]["total_broken"] == 0
    assert set(report["failover"]["answers_afterwards"]) == {"server1", "server2"}
    for metric in METRICS:
        assert {name for name, cell in report["comparison"][metric.key].items() if cell["value"] > 0} == set(
            SYSTEMS
        )
    assert left_behind(os.getpid()) == []


@pytest.mark.parametrize(
    ("number", "code", "when"),
    [
        (signal.SIGINT, 130, "a lab: 2 clients"),
        (signal.SIGTERM, 143, "clearway run"),
        (signal.SIGINT, 130, "IPv6: "),
    ],
)
def test_interrupted_demo_leaves_nothing(
    lab_names: Iterator[str], number: signal.Signals, code: int, when: str
) -> None:
    """Some moments after the progress says so: while a daemon starts, while it serves, while wrk runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "clearway", "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if when in line:
                break
        time.sleep(0.5)
        process.send_signal(number)
        output, complaint = process.communicate(timeout=30)
    assert process.returncode == code, complaint
    assert "Traceback" not in complaint
    assert output == ""
    assert left_behind(process.pid) == []
