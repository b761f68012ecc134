# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: the one this process lives in, and how to visit another."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_OWN = Path("/proc/thread-self/ns/net")
_NAMED = Path("/run/netns")  # where ip-netns(8) keeps them
_PROCESSES = Path("/proc")
_CLONE_NEWNET = 0x40000000


def local_port_range() -> tuple[int, int]:
    """The ports that this host's own connections may use, first and last, whatever their family."""
    first, last = _LOCAL_PORTS.read_text().split()
    return int(first), int(last)


def identity() -> int:
    """The number of this network namespace, as `lsns` shows it; unique while it lives."""
    return _OWN.stat().st_ino


def find(number: int) -> Path | None:
    """A path through which the namespace of that number can be entered; None when it is gone."""
    candidates = [_OWN]
    if _NAMED.is_dir():
        candidates += sorted(_NAMED.iterdir())
    candidates += [entry / "ns/net" for entry in _PROCESSES.iterdir() if entry.name.isdigit()]
    for candidate in candidates:
        with contextlib.suppress(OSError):
            if candidate.stat().st_ino == number:
                return candidate
    return None


@contextlib.contextmanager
def inside(path: Path) -> Iterator[None]:
    """Be in another network namespace for a while, with this thread. Raises OSError."""
    with path.open("rb") as there, _OWN.open("rb") as here:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(here.fileno())


def _enter(descriptor: int) -> None:
    # os.setns() comes with Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
