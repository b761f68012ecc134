# SPDX-License-Identifier: Apache-2.0
"""What the data path tells as it happens, by a ring that has one reader: a line of JSON each, for as long as
somebody takes them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from clearway.api.control import FilterError

Array = npt.NDArray[Any]
Reader = Callable[[], Array]

PAUSE = 0.05
"""Seconds between two looks at the ring."""
MANY = 1000
"""After so many records there is no pause: while they were told, others came."""
END_PATIENCE = 1.0
"""Seconds for the last records to be taken when the daemon stops."""
SIGN_OF_LIFE = 1.0
"""Seconds without a record until an empty line goes out, which shows whether anybody still listens."""


class Followers:
    """The ring has one reader, so there is one follower at a time. For use in an event loop."""

    def __init__(
        self,
        opened: Callable[[], AbstractContextManager[Reader]],
        tell: Callable[[Array], bytes],
        taken: str,
    ) -> None:
        """opened: begins recording, and ends it. tell: lines of records; called in a thread. taken: what is
        said to a second one.
        """
        self._opened = opened
        self._tell = tell
        self._taken = taken
        self._followed = False
        self._ending = asyncio.Event()

    async def end(self) -> None:
        """Nothing more is told: the daemon stops. Who does not take what he is told is not waited for."""
        self._ending.set()
        deadline = time.monotonic() + END_PATIENCE
        while self._followed and time.monotonic() < deadline:
            await asyncio.sleep(PAUSE)

    def begin_again(self) -> None:
        """The daemon goes on after all."""
        self._ending.clear()

    async def follow(self) -> AsyncGenerator[bytes, None]:
        """Lines, as long as somebody takes them. FilterError when somebody else does already."""
        if self._followed:
            raise FilterError(self._taken)
        found = self._lines()
        await anext(found)  # from here on nobody else may
        return found

    async def _lines(self) -> AsyncGenerator[bytes, None]:
        """The first line is empty."""
        self._followed = True
        try:
            with self._opened() as read:
                yield b"\n"
                quiet = 0.0
                while not self._ending.is_set():
                    records = read()
                    if len(records):
                        yield await asyncio.to_thread(self._tell, records)
                        quiet = 0.0
                    await asyncio.sleep(0 if len(records) >= MANY else PAUSE)
                    quiet += PAUSE
                    if quiet >= SIGN_OF_LIFE:
                        yield b"\n"
                        quiet = 0.0
        finally:
            self._followed = False


def as_lines(columns: dict[str, list[Any]]) -> bytes:
    """A line of JSON for each row. Values are JSON already, or numbers."""
    form = "{" + ", ".join(f'"{name}": %s' for name in columns) + "}\n"
    return "".join(form % row for row in zip(*columns.values(), strict=True)).encode()


def when(stamps: Array, jiffies: int, hz: int) -> Array:
    """Seconds since the epoch of moments that were noted as jiffies (64 bits), `jiffies` being now."""
    moments: Array = (time.time() - (jiffies - stamps.astype(np.int64)) / hz).round(3)
    return moments
