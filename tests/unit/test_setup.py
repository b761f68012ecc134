# SPDX-License-Identifier: Apache-2.0
"""tools/setup: one line that says what is missing, when it cannot go on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def setup_on(machine: Path, step: str, **commands: str) -> subprocess.CompletedProcess[str]:
    """Runs `tools/setup STEP` where each of `commands` prints what is given here."""
    for name, prints in commands.items():
        (machine / name).write_text(f"#!/bin/sh\necho '{prints}'\n")
        (machine / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{machine}:{os.environ['PATH']}"}
    command = [str(ROOT / "tools/setup"), step]
    return subprocess.run(command, env=environment, check=False, text=True, capture_output=True)


@pytest.mark.parametrize("step", ["test", "demo", "bench"])
def test_says_that_root_is_needed(tmp_path: Path, step: str) -> None:
    done = setup_on(tmp_path, step, id="1000")
    assert done.returncode == 1
    assert done.stderr == "clearway: run this as root: BPF programs and network namespaces need it\n"


@pytest.mark.parametrize("release", ["5.10.0-30-amd64", "6.0.19", "4.19.0"])
def test_says_that_the_kernel_is_too_old(tmp_path: Path, release: str) -> None:
    done = setup_on(tmp_path, "test", id="0", uname=release)
    assert done.returncode == 1
    assert done.stderr == f"clearway: kernel {release} is too old: clearway needs 6.1 or newer\n"


def test_building_needs_neither_root_nor_a_kernel(tmp_path: Path) -> None:
    done = setup_on(tmp_path, "build", id="1000", uname="5.10.0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_unknown_step_is_answered_with_the_usage() -> None:
    done = subprocess.run([str(ROOT / "tools/setup"), "nothing"], check=False, text=True, capture_output=True)
    assert done.returncode == 2
    assert done.stdout.startswith("tools/setup STEP")
