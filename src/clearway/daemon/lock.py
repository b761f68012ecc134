# SPDX-License-Identifier: Apache-2.0
"""One daemon for one data path.

Two locks, both given back by the kernel when the process ends in whatever way: a file in the run directory,
whose content tells who holds it, and the directory of the pins itself, for a daemon that sees the same pins
through another /run (containers, mount namespaces).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from clearway.instance import Instance


class LockedError(Exception):
    """Somebody else works on this data path; one line that says who, and what to do."""


class DataPathLock:
    """Holds both locks from construction to release(). Raises LockedError; OSError without the permission."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._held: list[int] = []
        instance.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            self._file = self._take(instance.lock, os.O_RDWR | os.O_CREAT)
            os.ftruncate(self._file, 0)
            os.write(self._file, f"{os.getpid()}\n".encode())
            instance.pin_dir.mkdir(exist_ok=True)
            self._take(instance.pin_dir, os.O_RDONLY | os.O_DIRECTORY)
        except BaseException:
            self._let_go()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Take the lock file and, when nothing else is in it, the run directory away, then unlock."""
        self._instance.lock.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._instance.run_dir.rmdir()
        self._let_go()

    def _let_go(self) -> None:
        while self._held:
            os.close(self._held.pop())

    def _take(self, path: Path, flags: int) -> int:
        """Lock the file or directory that is at `path` now: it may be replaced while we wait for our turn."""
        while True:
            descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
            self._held.append(descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(_held_by(self._instance, path)) from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
            os.close(self._held.pop())


def holder(instance: Instance) -> int | None:
    """The process that runs this instance, as far as the lock file tells; None when there is none."""
    try:
        return int(instance.lock.read_text())
    except (OSError, ValueError):
        return None


def live_holder(instance: Instance) -> int | None:
    """The process that has the lock now: it runs, and it has the file open. None when there is none."""
    pid = holder(instance)
    if pid is None:
        return None
    try:
        lock = instance.lock.stat()
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(descriptor.stat(), lock):
                    return pid
    except OSError:
        return None  # no such process, or not ours to look at
    return None


def _held_by(instance: Instance, path: Path) -> str:
    pid = holder(instance) if path == instance.lock else None
    who = f"pid {pid}" if pid else "another process"
    return (
        f"instance {instance.name} is already running ({who} holds {path});"
        " stop that daemon first, or take another name with --instance"
    )
