# SPDX-License-Identifier: Apache-2.0
"""Waiting for packets that are under way."""

from __future__ import annotations

import platform
import time

import pytest

from clearway.daemon import grace


def test_waits_by_asking_the_kernel_where_it_can_be_asked() -> None:
    begin = time.monotonic()
    grace.wait_for_readers()
    assert time.monotonic() - begin < 5


def test_waits_longer_than_any_packet_where_the_kernel_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "unheard-of")
    begin = time.monotonic()
    grace.wait_for_readers()
    assert time.monotonic() - begin >= grace.LONGEST_RUN_S
