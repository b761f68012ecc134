# SPDX-License-Identifier: Apache-2.0
"""The daemon's log on stderr: one line an event, for people on a terminal, as JSON for machines."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import sys
from typing import TextIO, cast

import structlog

GONE = (errno.EIO, errno.EPIPE)  # the terminal is closed, nobody reads the pipe: that does not come back


class Unbreakable(io.TextIOBase):
    """A stream that never raises: what cannot be written is lost, and whoever writes goes on with its work.

    A daemon outlives the terminal that it was started from.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str, /) -> int:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            if error.errno in GONE:
                self._into_nothing()
        except ValueError:  # it is closed
            pass
        return len(text)

    def flush(self) -> None:
        """Nothing is left to do: every write is flushed."""

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    def _into_nothing(self) -> None:
        """What the stream still holds would make the interpreter's last flush fail, too."""
        with contextlib.suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.dup2(nothing, self._stream.fileno())
            finally:
                os.close(nothing)


def configure(*, as_json: bool, debug: bool) -> None:
    """Set structlog up, once, when the daemon starts; other libraries' warnings go the same way."""
    level = logging.DEBUG if debug else logging.INFO
    stream = Unbreakable(sys.stderr)
    last: structlog.typing.Processor
    if as_json:
        last = structlog.processors.JSONRenderer()
    else:
        last = structlog.dev.ConsoleRenderer(
            colors=stream.isatty(),
            pad_event_to=0,
            sort_keys=False,
            exception_formatter=structlog.dev.plain_traceback,
        )
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=False),
    ]
    if as_json:
        shared.append(structlog.processors.dict_tracebacks)
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", stream)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=last, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
