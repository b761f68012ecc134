# SPDX-License-Identifier: Apache-2.0
"""The files that lists of prefixes are in: read once, and again when they have changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from clearway.daemon.filewatch import FileWatch, Signature, signature
from clearway.model import Config, ConfigError, ListContent, Problem, read_list
from clearway.model.errors import Where

PROBLEMS_MAX = 10


class ListFiles:
    """What has been read, by path. load() is for one thread; what it gives is for any."""

    def __init__(self) -> None:
        self._read: Mapping[str, tuple[Signature | None, ListContent]] = {}

    def load(self, config: Config) -> dict[str, ListContent]:
        """What is in the files that a configuration names. Raises ConfigError when one of them cannot be
        read, or is no list; then what had been read before is still held.
        """
        found, problems = {}, []
        for where, path in _named(config):
            try:
                found[path] = self._current(path)
            except OSError as error:
                what = f"{path} cannot be read: {error.strerror or error}"
                problems.append(Problem(where, what, "give the path of a list that is there"))
            except ConfigError as error:
                problems += [
                    Problem(where, f"{problem}"[: -len(f"; {problem.fix}")], problem.fix)
                    for problem in error.problems[:PROBLEMS_MAX]
                ]
        if problems:
            raise config.origin.error(problems)
        self._read = found
        return {path: content for path, (_seen, content) in found.items()}

    def _current(self, path: str) -> tuple[Signature | None, ListContent]:
        """As it is now; what changes while it is read is noticed afterwards."""
        seen = signature(Path(path))
        held = self._read.get(path)
        if held is not None and seen is not None and held[0] == seen:
            return held
        return seen, read_list(Path(path).read_bytes(), path)

    def held(self) -> dict[str, ListContent]:
        """What has been read last, by path."""
        return {path: content for path, (_seen, content) in self._read.items()}

    def seen(self, path: str) -> Signature | None:
        """Of the file that is held."""
        return found[0] if (found := self._read.get(path)) else None


class ListWatch:
    """Notices that files of lists have changed; looks at them itself."""

    def __init__(self, files: ListFiles) -> None:
        self._files = files
        self._watches: dict[str, FileWatch] = {}

    def look(self, config: Config) -> list[str]:
        """The paths of those that have changed and rested since."""
        paths = {path for _where, path in _named(config)}
        self._watches = {
            path: self._watches.get(path) or FileWatch(self._files.seen(path)) for path in sorted(paths)
        }
        return [path for path, watch in self._watches.items() if watch.look(signature(Path(path)))]


def _named(config: Config) -> Iterator[tuple[Where, str]]:
    if config.scrub is None:
        return
    for key, lists in (("blocklists", config.scrub.blocklists), ("allowlists", config.scrub.allowlists)):
        for index, one in enumerate(lists):
            if one.file is not None:
                yield ("scrub", key, index, "file"), one.file
