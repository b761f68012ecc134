# SPDX-License-Identifier: Apache-2.0
"""What all tests share: how they are handed out to several processes, and how a run ends."""

from __future__ import annotations

import re
import signal
import threading

import pytest
from hypothesis import settings
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

settings.register_profile("clearway", deadline=None)  # the machine may be busy with something else
settings.load_profile("clearway")

HOOK = re.compile(r"\[(tc|xdp)[]-]")
"""In a test's name: the module's own parameter comes first."""


def pytest_configure(config: pytest.Config) -> None:
    """SIGTERM ends the run as Ctrl-C does, with every fixture torn down, instead of leaving namespaces."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt("SIGTERM")

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)


class ByLab(LoadScopeScheduling):  # type: ignore[misc]
    """A file's tests of one hook go to one process: they share a lab and a daemon."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        hook = HOOK.search(test)
        return f"{file} {hook[1] if hook else ''}"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByLab | None:
    return ByLab(config, log) if config.getvalue("dist") == "loadscope" else None
