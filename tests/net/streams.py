# SPDX-License-Identifier: Apache-2.0
"""Connections that talk all the time, both ways, in numbers, so that whatever is lost shows."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from clearway.lab import wait_until
from clearway.lab.namespace import Namespace

EVERY = 0.004  # seconds between two messages of a direction
MESSAGE = struct.Struct("!Q192x")


class Direction:
    """What one end of a connection sends and the other one gets."""

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        self.sender, self.receiver = sender, receiver
        self.sent = 0
        self.arrived: list[int] = []
        self.closed = False
        self._rest = b""

    def send(self) -> None:
        try:
            # TCP takes all of a message or, once nothing goes on any more, not even a part that matters
            self.sent += self.sender.send(MESSAGE.pack(self.sent)) == MESSAGE.size
        except BlockingIOError:
            return
        except OSError:
            self.closed = True

    def receive(self) -> None:
        try:
            while piece := self.receiver.recv(1 << 16):
                self._rest += piece
                whole = len(self._rest) - len(self._rest) % MESSAGE.size
                self.arrived += [number for (number,) in MESSAGE.iter_unpack(self._rest[:whole])]
                self._rest = self._rest[whole:]
            self.closed = True
        except BlockingIOError:
            return
        except OSError:
            self.closed = True

    @property
    def complete(self) -> bool:
        """Has everything arrived that was sent, in its order?"""
        return self.arrived == list(range(self.sent))


class Stream:
    """A connection from one place to an address, where a socket of another place listens."""

    def __init__(
        self,
        name: str,
        kind: socket.SocketKind,
        near: Namespace,
        to: tuple[str, int],
        far: Namespace,
        at: tuple[str, int],
    ) -> None:
        self.name = name
        self._stack = ExitStack()
        with ExitStack() as undo:
            undo.callback(self._stack.close)
            listening = self._stack.enter_context(far.listen(at, kind=kind, timeout=5))
            here = self._stack.enter_context(near.connect(to, kind=kind, timeout=5))
            if kind == socket.SOCK_STREAM:
                there, _ = listening.accept()
                self._stack.enter_context(there)
            else:
                here.send(b"hello")
                _, peer = listening.recvfrom(100)
                there = listening
                there.connect(peer)
            for end in (here, there):
                end.setblocking(False)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            undo.pop_all()
        self.out, self.back = Direction(here, there), Direction(there, here)

    def close(self) -> None:
        self._stack.close()

    @property
    def port(self) -> int:
        """The one it comes from."""
        return int(self.out.sender.getsockname()[1])

    def talks(self) -> bool:
        return bool(self.out.arrived and self.back.arrived)

    @property
    def complete(self) -> bool:
        return self.out.complete and self.back.complete

    def __str__(self) -> str:
        return self.name


class Pump:
    """Makes streams talk, in a thread of its own."""

    def __init__(self) -> None:
        self._streams: list[Stream] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._quiet = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Pump:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()
        for stream in self._streams:
            stream.close()

    def add(self, streams: Iterable[Stream]) -> list[Stream]:
        added = []
        for stream in streams:
            with self._lock:
                self._streams.append(stream)
            added.append(stream)
        for stream in added:
            wait_until(f"{stream} talks", stream.talks, timeout=5)
        return added

    def remove(self, stream: Stream) -> None:
        with self._lock:
            self._streams.remove(stream)
        stream.close()

    def fall_silent(self, seconds: float) -> None:
        """Nothing is sent any more; what is under way has some time to arrive."""
        self._quiet.set()
        time.sleep(seconds)

    def _directions(self) -> Iterator[Direction]:
        for stream in self._streams:
            yield stream.out
            yield stream.back

    def _work(self) -> None:
        while not self._stop.wait(EVERY):
            with self._lock:
                for direction in self._directions():
                    if not self._quiet.is_set() and not direction.closed:
                        direction.send()
                for direction in self._directions():
                    direction.receive()
