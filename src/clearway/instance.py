# SPDX-License-Identifier: Apache-2.0
"""Where one node keeps its things. Several instances live on one machine, each with a name of its own.

Everything here is cheap to import: the command line starts with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_NAME = "clearway"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


class InstanceError(Exception):
    """A name that cannot be one of an instance; one line that says why."""


@dataclass(frozen=True)
class Instance:
    """The name of a node, and its directories."""

    name: str
    run_dir: Path  # socket and lock; gone after a reboot
    state_dir: Path  # what was changed through the API, and logs; survives
    pin_dir: Path  # the data path itself

    @property
    def socket(self) -> Path:
        return self.run_dir / "api.sock"

    @property
    def lock(self) -> Path:
        return self.run_dir / "lock"

    @property
    def state(self) -> Path:
        return self.state_dir / "state.json"

    @property
    def up_config(self) -> Path:
        """The configuration that `clearway up` starts a daemon with when there is no other."""
        return self.state_dir / "up.yaml"

    @property
    def log(self) -> Path:
        """Of a daemon that `clearway up` has started; that of the one before is beside it."""
        return self.state_dir / "daemon.log"

    @property
    def log_before(self) -> Path:
        return self.state_dir / "daemon.log.1"

    @property
    def nft_table(self) -> str:
        """The name of its tables of nftables (compiler/nft_table.py)."""
        return self.name if self.name == DEFAULT_NAME else f"{DEFAULT_NAME}-{self.name}"

    @property
    def config(self) -> Path:
        """The configuration file that `clearway run` takes when none is named."""
        return Path("/etc/clearway") / f"{self.name}.yaml"


def find_instance(name: str, environment: Mapping[str, str] = os.environ) -> Instance:
    """The instance called `name`. $CLEARWAY_RUN_DIR and $CLEARWAY_STATE_DIR replace its directories.

    Raises InstanceError for a name that would not do as the name of a directory (/run, /var/lib, bpffs).
    """
    if not _NAME.fullmatch(name):
        raise InstanceError(
            f"{name!r} cannot name an instance: take 1-32 letters, digits, - and _, the first no - or _"
        )
    return Instance(
        name=name,
        run_dir=Path(environment.get("CLEARWAY_RUN_DIR") or f"/run/{name}"),
        state_dir=Path(environment.get("CLEARWAY_STATE_DIR") or f"/var/lib/{name}"),
        pin_dir=Path("/sys/fs/bpf") / name,
    )
