# SPDX-License-Identifier: Apache-2.0
"""Serves the API on a unix socket that only its owner may use, and says in the log who used it.

A request that is too big, too slow or no request at all costs its sender the connection and nobody anything
else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import h11
import structlog
import uvicorn
from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from clearway.api.app import TooBigError, TooSlowError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger()

BODY_LIMIT = 64 << 20  # bytes; some 500,000 endpoints
BODY_SECONDS = 30.0  # to send a whole request body
HEAD_SECONDS = 10.0  # to send the first request on a connection
IDLE_SECONDS = 2  # between two requests on a connection
STOP_SECONDS = 3  # for requests that are being answered when the daemon stops

_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid


class ApiServer:
    """Listens from construction on, answers from start() on."""

    def __init__(self, app: FastAPI, path: Path) -> None:
        self._path = path
        self._socket = _listen(path)
        config = uvicorn.Config(
            Guard(app),
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.01)
        if self._task.done():
            self._task.result()

    async def stop(self) -> None:
        """Answer what is being answered, then end. The socket file is gone afterwards."""
        self._path.unlink(missing_ok=True)
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._socket.close()


class _Server(uvicorn.Server):
    """Signals are the daemon's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(path: Path) -> socket.socket:
    """A socket at `path` with mode 0600 from its first moment on; an old one there is replaced."""
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
    finally:
        os.umask(before)
    listening.listen(128)
    listening.setblocking(False)
    return listening


class _Protocol(H11Protocol):
    """Knows who is at the other end, and does not wait for ever for a request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        peer = transport.get_extra_info("socket")
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, _gid = _UCRED.unpack(credentials)
        # ASGI has room for an address and a number: the user and the process.
        self.client = (f"uid {uid}", pid)
        self.loop.call_later(HEAD_SECONDS, self._close_if_silent)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused in the same form as everything else."""
        content = json.dumps({"errors": [{"message": msg}]}).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        for event in (
            h11.Response(status_code=HTTPStatus.BAD_REQUEST, headers=headers, reason=b"Bad Request"),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class Guard:
    """ASGI middleware: limits what a request may cost, and logs what it wanted and from whom."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun = time.monotonic()
        sent: dict[str, Any] = {"status": None}

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
            await send(message)

        try:
            await self._app(scope, _limited(receive), watched_send)
        except ClientDisconnect:
            log.info("a request was given up by its sender", path=scope["path"])
        except Exception as error:
            # Answered with 500 already, as far as that was still possible.
            log.exception("a request met a bug", path=scope["path"], exc_info=error)
        finally:
            _log_request(scope, sent["status"], time.monotonic() - begun)


def _limited(receive: Receive) -> Receive:
    """The same request, up to a size and within a time."""
    size = 0
    deadline = time.monotonic() + BODY_SECONDS
    complete = False

    async def limited() -> Message:
        nonlocal size, complete
        if complete:  # what comes now is only that the other end has gone
            return await receive()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                message = await receive()
        except TimeoutError:
            raise TooSlowError(f"the request was not complete after {BODY_SECONDS:g} s") from None
        size += len(message.get("body", b""))
        if size > BODY_LIMIT:
            raise TooBigError(f"the request is bigger than {BODY_LIMIT >> 20} MiB")
        complete = not message.get("more_body", False)
        return message

    return limited


def _log_request(scope: Scope, status: int | None, seconds: float) -> None:
    user, pid = scope.get("client") or ("unknown", 0)
    write = log.debug if scope["method"] == "GET" else log.info
    write(
        "request",
        method=scope["method"],
        path=scope["path"],
        status=status,
        by=user,
        pid=pid,
        ms=round(seconds * 1000, 1),
    )
