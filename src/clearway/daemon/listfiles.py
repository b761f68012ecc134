# SPDX-License-Identifier: Apache-2.0
"""The files that lists of prefixes are in: read once, and again when they have changed.

A file that is missing or broken is no reason to do without everything else: what was read of it before stays,
and what is wrong is told.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from clearway.daemon.filewatch import Signature, signature, signature_of
from clearway.model import Config, ConfigError, ListContent, Problem, read_list
from clearway.model.errors import Where

SIZE_MAX = 256 << 20
"""Bytes: a million entries with as many comments take less."""
UNREST = 5.0
"""Seconds; a file that changes all the time is taken that often."""


@dataclass(frozen=True)
class Read:
    """What is known of a file. `content`: what was last read; `problems`: why there is nothing newer."""

    seen: Signature | None
    content: ListContent | None
    problems: tuple[Problem, ...] = ()


class ListFiles:
    """What has been read, by path. load() is for one thread; the rest for any."""

    def __init__(self) -> None:
        self._read: Mapping[str, Read] = {}

    def load(self, config: Config, required: Callable[[str], bool]) -> dict[str, ListContent]:
        """What is in the files that a configuration names, as far as it could ever be read. Raises
        ConfigError when one that is required cannot be read now, or is no list.
        """
        found = {path: self._current(path) for _where, path in _named(config)}
        self._read = {**self._read, **found}  # what another configuration names is not forgotten for a plan
        problems = [
            replace(problem, where=where)
            for where, path in _named(config)
            if required(path)
            for problem in found[path].problems
        ]
        if problems:
            raise config.origin.error(problems)
        return {path: one.content for path, one in found.items() if one.content is not None}

    def forget_others(self, config: Config) -> None:
        """Keeps what this configuration, which is in force, names."""
        paths = {path for _where, path in _named(config)}
        self._read = {path: one for path, one in self._read.items() if path in paths}

    def _current(self, path: str) -> Read:
        """As it is now; what changes while it is read is noticed afterwards."""
        held = self._read.get(path)
        seen = signature(Path(path))
        if held is not None and seen == held.seen:
            return held
        try:
            octets, seen = _read_file(path)
            return Read(seen, read_list(octets, path))
        except OSError as error:
            what = f"{path} cannot be read: {error.strerror or error}"
            problems = [Problem((), what, "give the path of a list that is there")]
        except ConfigError as error:
            problems = [
                Problem((), str(problem).removesuffix(f"; {problem.fix}"), problem.fix)
                for problem in error.problems
            ]
        return Read(seen, held.content if held else None, tuple(problems))

    def seen(self, path: str) -> Signature | None:
        """Of the file when it was last read."""
        return found.seen if (found := self._read.get(path)) else None

    def waiting(self, config: Config) -> list[str]:
        """A sentence for each file that is not in force as it is."""
        found = []
        for _where, path in _named(config):
            one = self._read.get(path)
            if one is not None and one.problems:
                stays = "what it was before stays" if one.content else "nothing is taken of it"
                first = one.problems[0]
                found.append(f"list {first.what}; {first.fix}; until then {stays}")
        return found


def _read_file(path: str) -> tuple[bytes, Signature]:
    """OSError when it cannot be read, ConfigError when it is nothing to read a list from."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _no_list(path, "is no file", "give the path of a file")
        if found.st_size > SIZE_MAX:
            raise _no_list(path, f"is larger than {SIZE_MAX >> 20} MiB", "is this the right file?")
        if not (octets := file.read(SIZE_MAX + 1)):
            raise _no_list(path, "is empty", "write a comment (#) into a list that is to be empty")
        return octets, signature_of(found)


def _no_list(path: str, what: str, fix: str) -> ConfigError:
    return ConfigError([Problem((path,), what, fix)], path)


class ListWatch:
    """Notices that files of lists have changed; looks at them itself."""

    def __init__(self, files: ListFiles) -> None:
        self._files = files
        self._moving: dict[str, tuple[Signature | None, float]] = {}
        self._told: dict[str, Signature | None] = {}

    def look(self, config: Config, now: float) -> list[str]:
        """The paths of those that are not as they were read, and have rested from one look to the next, or
        not for UNREST seconds. Each change is told once. now: seconds of a monotonic clock.
        """
        return [path for path in {path for _where, path in _named(config)} if self._has_changed(path, now)]

    def _has_changed(self, path: str, now: float) -> bool:
        found = signature(Path(path))
        if found == self._told.get(path, self._files.seen(path)):
            self._moving.pop(path, None)
            return False
        last, since = self._moving.get(path, (self._files.seen(path), now))
        if found != last and now - since < UNREST:
            self._moving[path] = found, since
            return False
        self._moving.pop(path, None)
        self._told[path] = found
        return True


def _named(config: Config) -> Iterator[tuple[Where, str]]:
    if config.scrub is None:
        return
    for key, lists in (("blocklists", config.scrub.blocklists), ("allowlists", config.scrub.allowlists)):
        for index, one in enumerate(lists):
            if one.file is not None:
                yield ("scrub", key, index, "file"), one.file


def named_files(config: Config) -> frozenset[str]:
    return frozenset(path for _where, path in _named(config))
