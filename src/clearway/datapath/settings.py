# SPDX-License-Identifier: Apache-2.0
"""Settings of the network namespace (sysctl) that a data path needs changed while it is there.

What they were is noted among the pins, so that whoever removes the instance puts them back: also after the
daemon that changed them was killed.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from clearway.datapath.pins import Pins

SYSCTL = Path("/proc/sys")
SLASH = "-"
"""Stands for / in the name of a note; no setting that is changed here has one in its name."""


def read(name: str) -> str:
    """A setting by its path below /proc/sys. OSError when it is not there."""
    return (SYSCTL / name).read_text().strip()


def change(where: Pins, name: str, ours: str) -> None:
    """The setting is `ours` from now on. OSError when it is not there, or may not be changed."""
    before = read(name)
    if before == ours:
        return
    where.settings.mkdir(exist_ok=True, mode=0o700)
    (where.settings / f"{name.replace('/', SLASH)}:{before}:{ours}").mkdir(exist_ok=True)
    (SYSCTL / name).write_text(ours)


def changed(where: Pins) -> dict[str, tuple[str, str]]:
    """What it was and what it was changed to, by the setting's path below /proc/sys."""
    if not where.settings.is_dir():
        return {}
    notes = (note.name.split(":") for note in where.settings.iterdir())
    return {name.replace(SLASH, "/"): (before, ours) for name, before, ours in notes}


def put_back(where: Pins) -> None:
    """Settings are what they were, but for those that somebody else has changed meanwhile."""
    for name, (before, ours) in changed(where).items():
        with suppress(OSError):
            if read(name) == ours:
                (SYSCTL / name).write_text(before)
