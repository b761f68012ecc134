# SPDX-License-Identifier: Apache-2.0
"""Talks to the daemon: HTTP over its unix socket, with what the standard library has. Quick to import."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

_CHUNK = 1 << 16


class UnreachableError(Exception):
    """No daemon answers at the socket; one line that says what to do."""


class NotRunningError(UnreachableError):
    """Nobody listens at the socket: no daemon runs, or it is starting still."""


class RefusedError(Exception):
    """The daemon said no. `errors` are its reasons, as it gave them (views.ErrorView)."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        self.errors = errors
        super().__init__("\n".join(str(error.get("message", error)) for error in errors))


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """One request a call. Raises UnreachableError and RefusedError.

    `timeout` is how long the daemon may be silent, in seconds.
    """

    def __init__(self, path: Path, timeout: float = 30) -> None:
        self._path = path
        self._timeout = timeout

    def get(self, *path: str, **query: str | int | None) -> Any:
        return self._json("GET", path, query)

    def delete(self, *path: str) -> Any:
        return self._json("DELETE", path, {})

    def post(self, *path: str, body: object = None, **query: str | int | None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        return self._json("POST", path, query, content, "application/json")

    def post_yaml(self, *path: str, text: bytes, **query: str | int | None) -> Any:
        return self._json("POST", path, query, text, "application/yaml")

    def put_text(self, *path: str, text: bytes, **query: str | int | None) -> Any:
        return self._json("PUT", path, query, text, "text/plain")

    def stream(self, *path: str, **query: str | int | None) -> Iterator[bytes]:
        """The answer in pieces, as they arrive."""
        connection, response = self._send("GET", path, query, None, "")
        try:
            while piece := self._read(response, _CHUNK):
                yield piece
        finally:
            connection.close()

    def lines(self, *path: str, **query: str | int | None) -> Iterator[bytes]:
        """The lines of an answer that has no end, each when it is there; empty ones are left out. What is
        refused is so at once.

        UnreachableError when the answer has an end: then the daemon has.
        """
        return self._lines(*self._send("GET", path, query, None, ""))

    def _lines(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> Iterator[bytes]:
        try:
            while line := self._line(response):
                if line.strip():
                    yield line
            raise UnreachableError("the daemon has stopped; follow again when it runs")
        finally:
            connection.close()

    def _line(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.readline()
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"the daemon broke off in the middle of its answer ({error})") from error

    def _json(
        self,
        method: str,
        path: tuple[str, ...],
        query: Mapping[str, str | int | None],
        content: bytes | None = None,
        kind: str = "",
    ) -> Any:
        connection, response = self._send(method, path, query, content, kind)
        try:
            return json.loads(self._read(response))
        except ValueError as error:
            raise UnreachableError(f"{self._path} answers, but not as clearway does: {error}") from error
        finally:
            connection.close()

    def _send(
        self,
        method: str,
        path: tuple[str, ...],
        query: Mapping[str, str | int | None],
        content: bytes | None,
        kind: str,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        # A command line may hold bytes that are no UTF-8 (PEP 383): that they name nothing, the daemon says.
        target = "/v1/" + "/".join(quote(part, safe="", errors="surrogateescape") for part in path)
        given = {key: value for key, value in query.items() if value is not None}
        asked = urlencode(given, errors="surrogateescape")
        connection = _UnixConnection(self._path, self._timeout)
        try:
            # A daemon that refuses a body does not wait for its end; its answer is there all the same.
            with contextlib.suppress(BrokenPipeError):
                connection.request(
                    method,
                    f"{target}?{asked}" if asked else target,
                    body=content,
                    headers={"Content-Type": kind} if content is not None else {},
                )
            response = connection.getresponse()
            if response.status >= 400:
                raise _refusal(response)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from error
        except RefusedError:
            connection.close()
            raise
        return connection, response

    def _read(self, response: http.client.HTTPResponse, size: int | None = None) -> bytes:
        try:
            return response.read(size)
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"the daemon broke off in the middle of its answer ({error})") from error

    def _unreachable(self, error: Exception) -> UnreachableError:
        match error:
            case FileNotFoundError() | ConnectionRefusedError():
                return NotRunningError(
                    f"no daemon is running at {self._path}; start it with `clearway up INTERFACE...` or"
                    " `clearway run`, or name another with --instance"
                )
            case PermissionError():
                return UnreachableError(f"{self._path} may not be used by this user; run as root")
            case TimeoutError():
                return UnreachableError(
                    f"the daemon at {self._path} did not answer within {self._timeout:g} s; see its log"
                )
        return UnreachableError(f"the daemon at {self._path} broke off ({error}); see its log")


def _refusal(response: http.client.HTTPResponse) -> RefusedError:
    content = response.read()
    try:
        errors = json.loads(content)["errors"]
    except (ValueError, KeyError, TypeError):
        errors = [{"message": f"the daemon answered {response.status} {response.reason}; see its log"}]
    return RefusedError(errors)
