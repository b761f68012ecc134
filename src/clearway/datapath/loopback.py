# SPDX-License-Identifier: Apache-2.0
"""Settings of the loopback device under which Linux fragments what clearway has translated.

Such a packet comes to Linux by the loopback device (bpf/clearway.bpf.c, leave_to_fragment), often with an
address of the node itself as its source. From any other device Linux takes that for a forgery; from this one
it does so unless `accept_local` is set, and where reverse paths are filtered strictly it must do that loosely
here (net/ipv4/fib_frontend.c, __fib_validate_source). Nobody but the node sends by its loopback device, so
nothing else is let in.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from clearway.datapath.pins import Pins

CONF = Path("/proc/sys/net/ipv4/conf")
STRICT, LOOSE = "1", "2"  # rp_filter; the greater one of `all` and the device counts


def let_in(where: Pins) -> None:
    """Changes the settings of the caller's network namespace; what they were is noted among the pins.

    OSError where they may not be changed.
    """
    _change(where, "accept_local", "1")
    if STRICT in (_read("all", "rp_filter"), _read("lo", "rp_filter")):
        _change(where, "rp_filter", LOOSE)


def put_back(where: Pins) -> None:
    """Settings are what they were, but for those that somebody else has changed meanwhile."""
    if not where.settings.is_dir():
        return
    for note in where.settings.iterdir():
        name, before, ours = note.name.split(":")
        with suppress(OSError):
            if _read("lo", name) == ours:
                (CONF / "lo" / name).write_text(before)


def _change(where: Pins, name: str, ours: str) -> None:
    before = _read("lo", name)
    if before == ours:
        return
    where.settings.mkdir(exist_ok=True, mode=0o700)
    (where.settings / f"{name}:{before}:{ours}").mkdir(exist_ok=True)
    (CONF / "lo" / name).write_text(ours)


def _read(device: str, name: str) -> str:
    return (CONF / device / name).read_text().strip()
