# SPDX-License-Identifier: Apache-2.0
"""A real `clearway run` inside the lab's node, and the real CLI talking to it."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clearway.lab.namespace import Namespace
from clearway.lab.run import LabError, patience, run, spawn, stop

PINS = Path("/sys/fs/bpf")
RUNTIME = Path("/run")
START_TIMEOUT = 60.0  # seconds; loading verifies every program


class Daemon:
    """One instance of clearway in a namespace. `directory` holds its configuration, state and log."""

    def __init__(self, node: Namespace, instance: str, directory: Path, configuration: str) -> None:
        self.node = node
        self.instance = instance
        self.directory = directory
        self.config_path = directory / "clearway.yaml"
        self.log_path = directory / "daemon.log"
        directory.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(configuration)
        self.process: subprocess.Popen[str] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {"CLEARWAY_STATE_DIR": str(self.directory / "state")}

    def argv(self, *arguments: str) -> list[str]:
        return self.node.argv(sys.executable, "-m", "clearway", "--instance", self.instance, *arguments)

    def start(self) -> None:
        """Start `clearway run` and return when it says READY=1; LabError with its last words when it ends."""
        if self.process is not None and self.process.poll() is None:
            raise LabError(f"the daemon of {self.instance} is running already")
        with _notify_socket(self.directory / "notify.sock") as notify:
            environment = {**self.environment, "NOTIFY_SOCKET": notify.getsockname()}
            self.process = spawn(
                self.argv("run", "-c", str(self.config_path)), output=self.log_path, env=environment
            )
            self._wait_ready(notify)

    def _wait_ready(self, notify: socket.socket) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_TIMEOUT * patience()
        notify.settimeout(0.1)
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in notify.recv(4096).split(b"\n"):
                    return
            if self.process.poll() is not None:
                raise LabError(f"clearway run ended ({self.process.returncode}): {self.last_words()}")
        self.kill()
        raise LabError(f"clearway run was not ready within {START_TIMEOUT:g} s: {self.last_words()}")

    def last_words(self) -> str:
        """The end of the daemon's log, as one line."""
        lines = self.log_path.read_text().strip().splitlines() if self.log_path.exists() else []
        return " | ".join(lines[-3:]) or "it said nothing"

    def kill(self) -> None:
        """SIGKILL: what a crash looks like. Pins and links stay."""
        if self.process is not None:
            stop(self.process, gently=False)

    def stop(self) -> int:
        """SIGTERM; the data path goes on carrying traffic. Returns the exit code."""
        return 0 if self.process is None else stop(self.process)

    def cli(
        self, *arguments: str, check: bool = True, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run `clearway --instance ... ARGUMENTS` inside the node; LabError when it fails (with `check`)."""
        return run(self.argv(*arguments), env=self.environment, check=check, timeout=timeout)

    def json(self, *arguments: str) -> Any:
        """What a command prints with `-o json`."""
        return json.loads(self.cli(*arguments, "-o", "json").stdout)

    def down(self) -> None:
        """`clearway down`, after the daemon ended: no link, pin or socket of this instance is left."""
        self.stop()
        remove_instance(self.node, self.instance, self.environment)


def remove_instance(node: Namespace, instance: str, environment: dict[str, str]) -> None:
    """Take an instance's data path away: by `clearway down`, by hand what that should leave behind."""
    if not traces(instance):
        return
    argv = node.argv(sys.executable, "-m", "clearway", "--instance", instance, "down")
    with contextlib.suppress(LabError):
        run(argv, env=environment, timeout=30)
    for path in traces(instance):
        shutil.rmtree(path, ignore_errors=True)


def traces(instance: str) -> list[Path]:
    """What an instance has outside its state directory: pins and socket. Empty after `clearway down`."""
    return [path for path in (PINS / instance, RUNTIME / instance) if path.exists()]


@contextlib.contextmanager
def _notify_socket(path: Path) -> Iterator[socket.socket]:
    """Where systemd would listen for READY=1 (sd_notify(3))."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        try:
            yield listening
        finally:
            path.unlink()
