# SPDX-License-Identifier: Apache-2.0
"""The table of what is accelerated says what is proved."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_committed_table_is_what_is_proved(lab_names: Iterator[str]) -> None:
    command = [sys.executable, "-m", "tools.corpus_table", "--check"]
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
