# SPDX-License-Identifier: Apache-2.0
"""What all tests share: how they are handed out to several processes, and how a run ends."""

from __future__ import annotations

import signal
import threading

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """SIGTERM ends the run as Ctrl-C does, with every fixture torn down, instead of leaving namespaces."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt("SIGTERM")

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With --dist loadgroup a file's tests of one hook stay together: they share a lab and a daemon."""
    for item in items:
        called_with = getattr(item, "callspec", None)
        hook = called_with.params.get("hook", "") if called_with else ""
        item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} {hook}"))
