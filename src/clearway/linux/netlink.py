# SPDX-License-Identifier: Apache-2.0
"""Netlink as small as clearway needs it: requests with an answer, groups to listen to, attributes.

The asyncio loop watches the listeners, so they are plain non-blocking sockets, and an overrun is an exception
that cannot be missed. Why these two hundred lines and not a library: docs/decisions/0004.
Layouts: include/uapi/linux/netlink.h, lib/nlattr.c.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
NETLINK_GENERIC = 16

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_CREATE = 0x400

_NLMSG_NOOP = 1
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_CAPPED = 0x100
_NLMSGERR_ATTR_MSG = 1

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_EXT_ACK = 11
_SO_RCVBUFFORCE = 33  # beyond net.core.rmem_max; needs CAP_NET_ADMIN

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

_RECEIVE_BUFFER = 32 << 20  # bytes; some 100,000 neighbour events
_READ_SIZE = 1 << 18
_BATCH = 1 << 15
_READS_AT_ONCE = 64  # then the event loop gets a turn
_ANSWER_SECONDS = 5
_DUMP_ATTEMPTS = 10


class NetlinkError(Exception):
    """The kernel refused a request; `number` is its errno."""

    def __init__(self, number: int, detail: str) -> None:
        super().__init__(detail or os.strerror(number))
        self.number = number


class OverrunError(Exception):
    """The kernel dropped events because nobody read them in time: what is known must be asked for again."""


@dataclass(frozen=True, slots=True)
class Message:
    """One netlink message: its type, its flags, and what follows the header."""

    kind: int
    flags: int
    body: bytes


def aligned(length: int) -> int:
    """The next multiple of four: messages and attributes begin at one."""
    return (length + 3) & ~3


def messages(data: bytes) -> Iterator[tuple[int, Message]]:
    """The messages of one datagram, each with its sequence number."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        yield sequence, Message(kind, flags, data[offset + _HEADER.size : offset + length])
        offset += aligned(length)


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes from `offset` on, by type. Of a type that occurs twice the last one counts."""
    found: dict[int, bytes] = {}
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            break
        found[kind & _TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += aligned(length)
    return found


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(aligned(length) - length)


def u16(value: bytes) -> int:
    return int.from_bytes(value[:2], "little" if _LITTLE else "big")


def u32(value: bytes) -> int:
    return int.from_bytes(value[:4], "little" if _LITTLE else "big")


def text(value: bytes) -> str:
    """A string attribute; the kernel ends it with a zero."""
    return value.split(b"\0", 1)[0].decode("utf-8", "replace")


_LITTLE = struct.pack("=H", 1) == b"\1\0"


class Conversation:
    """A socket to ask the kernel something and wait for the answer. Use from one thread at a time."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._socket.settimeout(_ANSWER_SECONDS)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def ask(self, kind: int, body: bytes, flags: int = 0) -> list[Message]:
        """Send one request and return every message of the answer (none when it is only acknowledged).

        Without NLM_F_DUMP the request asks for an acknowledgement, which ends the answer. A dump that the
        kernel marks as inconsistent, because something changed meanwhile, is repeated.
        Raises NetlinkError when the kernel refuses, TimeoutError when it does not answer.
        """
        for _attempt in range(_DUMP_ATTEMPTS):
            answer, interrupted = self._ask_once(kind, body, flags)
            if not interrupted:
                return answer
        raise NetlinkError(errno.EINTR, f"a netlink dump was interrupted {_DUMP_ATTEMPTS} times")

    def tell(self, kind: int, bodies: Iterable[bytes]) -> None:
        """Send requests that nobody waits for the answers of; what the kernel refuses is refused silently."""
        batch = bytearray()
        for body in bodies:
            batch += _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST, 0, 0) + body
            batch += bytes(aligned(len(batch)) - len(batch))
            if len(batch) > _BATCH:
                self._flush(batch)
        if batch:
            self._flush(batch)

    def _flush(self, batch: bytearray) -> None:
        self._socket.send(batch)
        batch.clear()
        self._socket.setblocking(False)
        with contextlib.suppress(OSError):  # refusals: of what is gone by now
            while self._socket.recv(_READ_SIZE):
                pass
        self._socket.settimeout(_ANSWER_SECONDS)

    def _ask_once(self, kind: int, body: bytes, flags: int) -> tuple[list[Message], bool]:
        self._sequence += 1
        flags |= NLM_F_REQUEST if flags & NLM_F_DUMP == NLM_F_DUMP else NLM_F_REQUEST | NLM_F_ACK
        length = _HEADER.size + len(body)
        self._socket.send(_HEADER.pack(length, kind, flags, self._sequence, 0) + body)
        answer: list[Message] = []
        interrupted = False
        while True:
            for sequence, message in messages(self._socket.recv(_READ_SIZE)):
                if sequence != self._sequence:
                    continue  # the rest of an answer nobody waited for
                interrupted |= bool(message.flags & NLM_F_DUMP_INTR)
                if message.kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    _raise_refusal(message)
                    return answer, interrupted
                if message.kind != _NLMSG_NOOP:
                    answer.append(message)


def _raise_refusal(message: Message) -> None:
    """NetlinkError for an answer that says no; nothing for an acknowledgement."""
    if len(message.body) < 4:
        return
    number = -struct.unpack_from("=i", message.body)[0]
    if number <= 0:
        return
    detail = ""
    if message.kind == _NLMSG_ERROR:
        # After the error number: the request, whole or only its header, then what the kernel has to say.
        request = _HEADER.unpack_from(message.body, 4)[0]
        begin = 4 + (_HEADER.size if message.flags & _NLM_F_CAPPED else aligned(request))
        detail = text(attributes(message.body, begin).get(_NLMSGERR_ATTR_MSG, b""))
    raise NetlinkError(number, detail)


class Listener:
    """A socket that receives what the kernel announces to some groups. Never blocks."""

    def __init__(self, protocol: int, groups: Sequence[int], receive_buffer: int = _RECEIVE_BUFFER) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol
        )
        with contextlib.suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer)
        self._socket.bind((0, 0))
        for group in groups:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[Message]:
        """What has arrived, some thousand messages at most. OverrunError when the kernel had to drop some."""
        arrived: list[Message] = []
        for _ in range(_READS_AT_ONCE):
            try:
                data = self._socket.recv(_READ_SIZE)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise OverrunError from error
                raise
            arrived += (message for _sequence, message in messages(data))
        return arrived

    def drain(self) -> bool:
        """Throw away what has arrived; was there anything? A drop counts, too: something happened."""
        try:
            return bool(self.read())
        except OverrunError:
            return True
