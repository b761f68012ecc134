# SPDX-License-Identifier: Apache-2.0
"""What was changed through the API, kept across restarts.

The state file holds the configuration that is in force, complete, and the hash of the configuration file that
was on disk when it was made. At start: if the file is still the same, what was in force is in force again; if
the file was edited meanwhile, the file wins, because it is the later word.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

BOOK = "accounts"
_VERSION = 1


class StateError(Exception):
    """The state file cannot be used; one line that says why."""


@dataclass(frozen=True)
class State:
    """`config` is decoded JSON that the model takes back; `file_hash` is that of the configuration file.

    `network_namespace` is the number of the namespace that the data path is in (linux/namespace.py).
    """

    file_hash: str
    config: object
    network_namespace: int


def file_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read(path: Path) -> State | None:
    """The stored state; None when there is none. Raises StateError."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StateError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise StateError(f"{path} was not written by this version of clearway")
    found, namespace = content.get("file_sha256"), content.get("network_namespace")
    if not isinstance(found, str) or not isinstance(namespace, int) or "config" not in content:
        raise StateError(f"{path} is incomplete")
    return State(found, content["config"], namespace)


def prepare(path: Path, state: State) -> None:
    """Write a state down without putting it in force: what cannot be kept is not begun. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = {
        "version": _VERSION,
        "file_sha256": state.file_hash,
        "network_namespace": state.network_namespace,
        "config": state.config,
    }
    with _prepared(path).open("w") as file:
        file.write(json.dumps(content))  # json.dump() is not written in C
        file.flush()
        os.fsync(file.fileno())


def commit(path: Path) -> None:
    """Put what was prepared in force: after a crash it is the old state or the new one. Raises OSError."""
    _prepared(path).replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _prepared(path: Path) -> Path:
    return path.with_suffix(".new")


def remove(path: Path) -> None:
    """Take the state file and the accounts (account_book.py) away, and the directory if it is empty then."""
    path.unlink(missing_ok=True)
    _prepared(path).unlink(missing_ok=True)
    for book in path.parent.glob(f"{BOOK}*"):
        book.unlink(missing_ok=True)
    try:
        path.parent.rmdir()
    except OSError:
        return  # not there, or somebody keeps something else in it
