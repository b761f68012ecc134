# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: make, enter, run in, open sockets in, remove."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from clearway.lab.run import LabError, patience, run, spawn

NETNS_DIRECTORY = Path("/run/netns")
CLONE_NEWNET = 0x40000000  # linux/sched.h


def _setns(descriptor: int) -> None:
    # os.setns() exists since Python 3.12 only.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise LabError(f"cannot enter the network namespace: {os.strerror(code)}; are you root?")


@dataclass(frozen=True)
class Namespace:
    """A named network namespace, as `ip netns` lists it."""

    name: str

    @property
    def path(self) -> Path:
        return NETNS_DIRECTORY / self.name

    def create(self) -> None:
        """Make it, with its loopback up. LabError when it exists already or the caller is not root."""
        run(["ip", "netns", "add", self.name])
        self.ip("link", "set", "lo", "up")

    def delete(self) -> None:
        """Remove it and every device in it; the processes inside must have been ended before.

        That somebody else has removed it meanwhile is no error: two may clean up after a killed third.
        """
        done = run(["ip", "netns", "delete", self.name], check=False)
        if done.returncode != 0 and self.path.exists():
            raise LabError(f"cannot remove namespace {self.name}: {done.stderr.strip()}")

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Move the calling thread into the namespace for the time of the `with` block."""
        with contextlib.ExitStack() as stack:
            try:
                inside = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise LabError(f"there is no namespace {self.name}; is the lab up?") from error
            stack.callback(os.close, inside)
            outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, outside)
            _setns(inside)
            stack.callback(_setns, outside)
            yield

    def argv(self, *command: str) -> list[str]:
        """The command line that runs `command` inside. Not `ip netns exec`: it remounts /sys, which hides
        /sys/fs/bpf and with it every pin."""
        return ["nsenter", f"--net={self.path}", "--", *command]

    def run(
        self, *command: str, stdin: str | None = None, timeout: float = 30, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return run(self.argv(*command), stdin=stdin, timeout=timeout, check=check)

    def spawn(
        self, *command: str, output: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        return spawn(self.argv(*command), output=output, env=env)

    def ip(self, *arguments: str) -> str:
        return run(["ip", "-n", self.name, *arguments]).stdout

    def ip_batch(self, lines: Iterable[str]) -> None:
        """Many `ip` commands by one process."""
        run(["ip", "-n", self.name, "-batch", "-"], stdin="\n".join(lines) + "\n")

    def sysctl(self, settings: Mapping[str, str | int]) -> None:
        """Set network sysctls (names relative to net., with /) of this namespace."""
        with self.entered():
            for name, value in settings.items():
                Path("/proc/sys/net", name).write_text(f"{value}\n")

    def read(self, path: str) -> str:
        """A file as seen from inside, such as /proc/thread-self/net/snmp."""
        with self.entered():
            return Path(path).read_text()

    def open_socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, proto: int = 0
    ) -> socket.socket:
        """A socket that lives in the namespace; it may be used from any thread afterwards."""
        with self.entered():
            return socket.socket(family, kind, proto)

    def connect(
        self,
        address: tuple[str, int],
        *,
        timeout: float = 5,
        kind: int = socket.SOCK_STREAM,
        source: str | None = None,
    ) -> socket.socket:
        """A socket connected from inside to `address`; `timeout` (seconds) holds for later operations too."""
        opened = self.open_socket(family_of(address[0]), kind)
        try:
            opened.settimeout(timeout * patience())
            if source is not None:
                opened.bind((source, 0))
            opened.connect(address)
        except BaseException:
            opened.close()
            raise
        return opened

    def listen(
        self, address: tuple[str, int], *, kind: int = socket.SOCK_STREAM, timeout: float = 10
    ) -> socket.socket:
        """A bound socket inside (listening, if its kind can); `timeout` (seconds): accept and receive."""
        opened = self.open_socket(family_of(address[0]), kind)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.settimeout(timeout * patience())
            opened.bind(address)
            if kind == socket.SOCK_STREAM:
                opened.listen(128)
        except BaseException:
            opened.close()
            raise
        return opened

    def pids(self) -> list[int]:
        """Processes inside, without the calling one."""
        listed = run(["ip", "netns", "pids", self.name], check=False).stdout.split()
        return [int(pid) for pid in listed if int(pid) != os.getpid()]


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def existing(prefix: str) -> list[Namespace]:
    """The namespaces whose name begins with `prefix`."""
    if not NETNS_DIRECTORY.is_dir():
        return []
    return [
        Namespace(path.name) for path in sorted(NETNS_DIRECTORY.iterdir()) if path.name.startswith(prefix)
    ]


def end_processes(namespaces: Iterable[Namespace], *, timeout: float = 3) -> None:
    """End every process inside these namespaces: SIGTERM first, SIGKILL after `timeout` seconds."""
    names = list(namespaces)
    timeout *= patience()
    deadline = time.monotonic() + timeout
    sent: set[tuple[int, int]] = set()
    while pids := [pid for namespace in names for pid in namespace.pids()]:
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        for pid in pids:
            if (pid, number) not in sent:
                sent.add((pid, number))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        if time.monotonic() > deadline + timeout:
            raise LabError(f"processes {pids} do not end; they keep the lab's namespaces alive")
        time.sleep(0.02)
