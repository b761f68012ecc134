# SPDX-License-Identifier: Apache-2.0
"""Does something at once, but not too often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Throttle:
    """Calls `action` at once for the first of many reasons, then at most once in `pause` seconds.

    Never late: whatever comes during a pause is acted on when the pause ends. For use in an event loop.
    """

    def __init__(self, action: Callable[[str], None], pause: float) -> None:
        self._action = action
        self._pause = pause
        self._timer: asyncio.TimerHandle | None = None
        self._held: str | None = None

    def __call__(self, why: str) -> None:
        if self._timer is not None:
            self._held = why
            return
        self._timer = asyncio.get_running_loop().call_later(self._pause, self._pause_over)
        self._action(why)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _pause_over(self) -> None:
        self._timer = None
        if self._held is not None:
            why, self._held = self._held, None
            self(why)
