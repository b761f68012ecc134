# SPDX-License-Identifier: Apache-2.0
"""Clients and servers made of plain sockets that live in the lab's namespaces."""

from __future__ import annotations

import hashlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from clearway.lab import Host, Lab

CHUNK = 1 << 16


@dataclass(frozen=True)
class Accepted:
    """A connection as a server of the lab sees it."""

    server: str
    socket: socket.socket
    peer: tuple[str, int]


class Listeners:
    """A listening socket on each given host, all on one port."""

    def __init__(self, hosts: Iterable[Host], family: int, port: int, kind: int = socket.SOCK_STREAM) -> None:
        self._stack = ExitStack()
        self._sockets: dict[socket.socket, str] = {}
        for host in hosts:
            opened = host.ns.listen((host.address(family), port), kind=kind)
            self._sockets[self._stack.enter_context(opened)] = host.name

    @property
    def sockets(self) -> list[socket.socket]:
        return list(self._sockets)

    def __enter__(self) -> Listeners:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def accept(self, timeout: float = 5) -> Accepted:
        """The next connection, at whichever server it arrives. TimeoutError when none does."""
        listening = self._readable(timeout)
        accepted, peer = listening.accept()
        accepted.settimeout(10)
        self._stack.enter_context(accepted)
        return Accepted(self._sockets[listening], accepted, peer[:2])

    def receive(self, timeout: float = 5) -> tuple[socket.socket, str, bytes, tuple[str, int]]:
        """The next datagram: the socket that got it, its server, the datagram, and from where."""
        listening = self._readable(timeout)
        datagram, peer = listening.recvfrom(CHUNK)
        return listening, self._sockets[listening], datagram, peer[:2]

    def _readable(self, timeout: float) -> socket.socket:
        readable, _, _ = select.select(list(self._sockets), [], [], timeout)
        if not readable:
            raise TimeoutError(f"nothing arrived at {', '.join(self._sockets.values())} within {timeout:g} s")
        first: socket.socket = readable[0]
        return first


def pattern(size: int) -> bytes:
    """`size` bytes in which a missing, doubled or moved piece shows."""
    words = b"".join(struct.pack("!I", number) for number in range(size // 4 + 1))
    return words[:size]


def send_and_close_writing(sender: socket.socket, content: bytes) -> threading.Thread:
    """Send in the background, then shut down writing; join the thread to wait for it."""

    def work() -> None:
        sender.sendall(content)
        sender.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def receive_all(receiver: socket.socket, timeout: float = 30) -> bytes:
    """Everything up to the sender's FIN. TimeoutError when that takes longer than `timeout` seconds."""
    deadline = time.monotonic() + timeout
    pieces = []
    while piece := receiver.recv(CHUNK * 4):
        pieces.append(piece)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{sum(map(len, pieces))} bytes in {timeout:g} s and no end")
    return b"".join(pieces)


def transfer(sender: socket.socket, receiver: socket.socket, content: bytes) -> None:
    """All of `content` over an open connection, which stays open; it must arrive as it is."""
    sending = threading.Thread(target=sender.sendall, args=(content,), daemon=True)
    sending.start()
    assert same(_exactly(receiver, len(content)), content)
    sending.join(10)


def same(left: bytes, right: bytes) -> bool:
    """Equality whose failure pytest does not try to show byte by byte."""
    return hashlib.sha256(left).digest() == hashlib.sha256(right).digest()


def talk(near: socket.socket, far: socket.socket, text: bytes = b"are you there?") -> None:
    """One line each way over an open connection; both ends must get exactly that."""
    near.sendall(text)
    assert _exactly(far, len(text)) == text
    far.sendall(text[::-1])
    assert _exactly(near, len(text)) == text[::-1]


def _exactly(receiver: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size and (piece := receiver.recv(min(size - len(got), CHUNK * 4))):
        got += piece
    return bytes(got)


def through_service(
    lab: Lab, listeners: Listeners, client: Host, family: int, port: int
) -> tuple[socket.socket, Accepted]:
    """A connection from `client` through the service on `port`: both ends."""
    near = client.ns.connect((lab.vip(family), port), timeout=10)
    return near, listeners.accept()


@dataclass(frozen=True)
class IcmpError:
    """What the kernel told a socket about a datagram it had sent (struct sock_extended_err, ip(7))."""

    kind: int
    code: int
    info: int  # the next hop's MTU, where the error has one
    offender: str  # who sent the error


def icmp_error(sender: socket.socket, timeout: float = 3) -> IcmpError:
    """The next ICMP error about what `sender` sent. It arrives only if it quotes this socket's addresses and
    ports, so the quoted header was translated back correctly. TimeoutError when none comes."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            _, ancillary, _, _ = sender.recvmsg(512, 512, socket.MSG_ERRQUEUE)
        except BlockingIOError:
            time.sleep(0.02)
            continue
        for _level, _type, content in ancillary:
            _errno, _origin, kind, code, _pad, info, _data = struct.unpack_from("=IBBBBII", content)
            return IcmpError(kind, code, info, _address(content[16:]))
    raise TimeoutError(f"no ICMP error within {timeout:g} s")


def _address(sockaddr: bytes) -> str:
    (family,) = struct.unpack_from("=H", sockaddr)
    if family == socket.AF_INET:
        return socket.inet_ntop(family, sockaddr[4:8])
    return socket.inet_ntop(family, sockaddr[8:24])


def limited_hops(host: Host, address: tuple[str, int], family: int, hops: int) -> socket.socket:
    """A connected UDP socket whose datagrams live for `hops` hops and which hears of ICMP errors."""
    opened = host.ns.connect(address, kind=socket.SOCK_DGRAM)
    if family == 4:
        opened.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, 25, 1)  # IPV6_RECVERR
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
    opened.setblocking(False)
    return opened
