# SPDX-License-Identifier: Apache-2.0
"""The nftables ruleset as JSON, read and changed by `nft` (man libnftables-json).

In a process of its own: libnftables ends the one that it is in where it does not like what it lists.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
SECONDS = 30
PACKAGE = "nftables"  # Debian's


class NftablesError(Exception):
    """The ruleset cannot be read or changed; one line."""


def available() -> bool:
    """Whether it is on this machine."""
    return found("nft") is not None


def found(program: str) -> str | None:
    """Where an administrator's program is; the daemon's own PATH may not lead there."""
    return shutil.which(program, path=PATH)


def list_ruleset(tables: Iterable[str] | None = None) -> str:
    """What `nft -j -a list ruleset` prints, of the calling thread's network namespace: of these tables, named
    with their families, or of all. NftablesError.
    """
    if tables is None:
        return _run(["-j", "-a", "list ruleset"])
    # no file: with -j, what is not JSON is taken for an empty one, without a word
    listed = _run(["-j", "-a", "".join(f"list table {table}\n" for table in tables)])
    return json.dumps({"nftables": [one for document in _documents(listed) for one in document["nftables"]]})


def run_commands(commands: str) -> None:
    """What `nft -f` does with a file of these. NftablesError, and nothing is done."""
    _run(["-f", "-"], commands)


def said_by(argv: Sequence[str], stdin: str = "") -> str:
    """What one of netfilter's programs prints. NftablesError when it fails, or does not end."""
    name = argv[0].rpartition("/")[2]
    try:
        done = subprocess.run(
            argv, input=stdin.encode(), capture_output=True, timeout=SECONDS, check=False, env={"LC_ALL": "C"}
        )
    except subprocess.TimeoutExpired:
        raise NftablesError(f"{name} does not end within {SECONDS} s") from None
    if done.returncode < 0:
        raise NftablesError(f"{name} was ended by {signal.Signals(-done.returncode).name}")
    if done.returncode:
        raise NftablesError(f"{name} failed: {' | '.join(_decoded(done.stderr).split(chr(10))).strip(' |')}")
    return _decoded(done.stdout)


def _documents(text: str) -> Iterator[dict[str, Any]]:
    """Of several commands, one after the other."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        document, at = decoder.raw_decode(text, at)
        yield document
        at = len(text) - len(text[at:].lstrip())


def _run(arguments: Sequence[str], stdin: str = "") -> str:
    program = found("nft")
    if program is None:
        raise NftablesError(f"nft is missing (Debian: {PACKAGE})")
    return said_by([program, *arguments], stdin)


def _decoded(said: bytes) -> str:
    """Comments and prefixes of logs may be any bytes. Of these only a newline ends a line."""
    return said.decode("utf-8", "replace")
