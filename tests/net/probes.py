# SPDX-License-Identifier: Apache-2.0
"""What becomes of connections, seen from who opens them: TCP, an exchange over UDP, a ping; many at once."""

from __future__ import annotations

import errno
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from clearway.lab import Lab
from clearway.lab.namespace import Namespace, family_of

Kind = Literal["tcp", "udp", "ping"]
Verdict = Literal["connected", "refused", "timed out"]

TEXT = b"are you there?"
ECHO_REQUEST: dict[int, tuple[int, int]] = {
    socket.AF_INET: (8, socket.IPPROTO_ICMP),
    socket.AF_INET6: (128, socket.IPPROTO_ICMPV6),
}
TOS_OPTION: dict[int, tuple[int, int]] = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TOS),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
}
PACE = 0.0015  # seconds: refusals are limited to 1,000 a second, by Linux and by clearway
REFUSALS = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES, errno.ECONNRESET)
SETTINGS: dict[str, str | int] = {
    "ipv4/icmp_ratelimit": 0,
    "ipv6/icmp/ratelimit": 0,
    "ipv4/ping_group_range": "0 0",
}


@dataclass(frozen=True)
class Probe:
    """One attempt. sport: of a ping, nothing; size: of what is sent, in bytes."""

    sender: str
    source: Namespace
    to: str
    kind: Kind
    dport: int = 0
    sport: int = 0
    size: int = len(TEXT)
    tos: int = 0

    def __str__(self) -> str:
        port = "" if self.kind == "ping" else f" {self.sport} -> {self.dport}"
        more = f" tos {self.tos:#x}" if self.tos else ""
        return f"{self.sender} -> {self.to} {self.kind}{port} {self.size} bytes{more}"


def prepare(lab: Lab) -> None:
    """Hosts answer all that they refuse, and let pings be sent by plain sockets."""
    for namespace in (lab.node, *(host.ns for host in lab.hosts.values())):
        namespace.sysctl(SETTINGS)


class _Attempt:
    """A probe under way. It goes on whenever its socket has something to say, until it has a verdict."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.verdict: Verdict | None = None
        self._sent = False
        self._heard = 0
        family = family_of(probe.to)
        if probe.kind == "ping":
            self.socket = probe.source.open_socket(family, socket.SOCK_DGRAM, ECHO_REQUEST[family][1])
        else:
            kind = socket.SOCK_STREAM if probe.kind == "tcp" else socket.SOCK_DGRAM
            self.socket = probe.source.open_socket(family, kind)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(("", probe.sport))
        self.socket.setblocking(False)
        if probe.tos:
            self.socket.setsockopt(*TOS_OPTION[family], probe.tos)
        if probe.kind == "tcp":  # reset on close: no port stays in TIME_WAIT
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._try(lambda: self.socket.connect((probe.to, probe.dport)))

    def _try(self, what: Callable[[], object]) -> None:
        try:
            what()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            self.verdict = "refused"

    @property
    def waits_for(self) -> int:
        return selectors.EVENT_READ if self._sent else selectors.EVENT_WRITE

    def go_on(self) -> None:
        self._try(self._receive if self._sent else self._send)

    def _send(self) -> None:
        code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, "refused")
        self.socket.send(self._content())
        self._sent = True

    def _content(self) -> bytes:
        body = TEXT.ljust(self.probe.size, b".")
        if self.probe.kind != "ping":
            return body
        return struct.pack("!BBHHH", ECHO_REQUEST[family_of(self.probe.to)][0], 0, 0, 0, 1) + body

    def _receive(self) -> None:
        self._heard += len(self.socket.recv(1 << 16))
        if self._heard >= self.probe.size:
            self.verdict = "connected"


def attempt(probes: Iterable[Probe], timeout: float) -> dict[Probe, Verdict]:
    """One soon after the other; who has no answer `timeout` seconds after the last one has begun has none."""
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        attempts = []
        for probe in probes:
            one = _Attempt(probe)
            attempts.append(one)
            stack.callback(one.socket.close)
            if one.verdict is None:
                selector.register(one.socket, one.waits_for, one)
            _listen(selector, PACE)
        _listen(selector, timeout)
        return {one.probe: one.verdict or "timed out" for one in attempts}


def _listen(selector: selectors.BaseSelector, seconds: float) -> None:
    """Goes on with all that can go on, for some seconds or until there is none left."""
    deadline = time.monotonic() + seconds
    while selector.get_map() and (left := deadline - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            one = key.data
            one.go_on()
            if one.verdict is not None:
                selector.unregister(one.socket)
            elif key.events != one.waits_for:
                selector.modify(one.socket, one.waits_for, one)


class Echoes:
    """Sockets that send back whatever comes, over TCP and UDP."""

    def __init__(self, places: Iterable[tuple[Namespace, str]], ports: Sequence[int]) -> None:
        self._stack = ExitStack()
        self._selector = self._stack.enter_context(selectors.DefaultSelector())
        self._stopping, self._stop = socket.socketpair()
        self._stack.enter_context(self._stopping)
        self._selector.register(self._stopping, selectors.EVENT_READ)
        for namespace, address in places:
            for port in ports:
                self._listen(namespace, address, port)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _listen(self, namespace: Namespace, address: str, port: int) -> None:
        for kind, react in ((socket.SOCK_STREAM, self._accept), (socket.SOCK_DGRAM, self._answer)):
            opened = self._stack.enter_context(namespace.listen((address, port), kind=kind))
            opened.setblocking(False)
            self._selector.register(opened, selectors.EVENT_READ, react)

    def __enter__(self) -> Echoes:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.close()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._stack.close()

    def _work(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._stopping:
                    return
                try:
                    key.data(key.fileobj)
                except BlockingIOError:
                    continue
                except OSError:  # a datagram of before that was refused
                    continue

    def _accept(self, listening: socket.socket) -> None:
        accepted, _ = listening.accept()
        accepted.setblocking(False)
        self._selector.register(accepted, selectors.EVENT_READ, self._echo)

    def _answer(self, bound: socket.socket) -> None:
        datagram, peer = bound.recvfrom(1 << 16)
        bound.sendto(datagram, peer)

    def _echo(self, connection: socket.socket) -> None:
        try:
            received = connection.recv(1 << 16)
            if received:
                connection.send(received)
                return
        except OSError:
            pass
        self._selector.unregister(connection)
        connection.close()
