# SPDX-License-Identifier: Apache-2.0
"""A real nginx inside a namespace, with a configuration, logs and temporary files of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clearway.lab.namespace import Namespace
from clearway.lab.run import LabError, spawn, stop, wait_until
from clearway.lab.topology import SERVER_PORT

# keepalive_*: a connection ends when the client ends it, so that a broken one is the network's doing.
# /load is for wrk: not logged, a page-sized answer. Everything else says who serves and whom.
CONFIGURATION = """\
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
worker_rlimit_nofile 65536;
events {{ worker_connections 16384; }}
http {{
  log_format who '$msec $remote_addr $remote_port $request_uri $status';
  access_log {directory}/access.log who;
  client_body_temp_path {directory}/temp 1;
  proxy_temp_path {directory}/temp/proxy;
  fastcgi_temp_path {directory}/temp/fastcgi;
  uwsgi_temp_path {directory}/temp/uwsgi;
  scgi_temp_path {directory}/temp/scgi;
  client_max_body_size 0;
  default_type text/plain;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  server {{
    listen {port} backlog=8192;
    listen [::]:{port} ipv6only=on backlog=8192;
    add_header X-Server {name} always;
    location / {{ return 200 "{name} $remote_addr $remote_port\\n"; }}
    location /load {{ access_log off; return 200 "{name} {padding}\\n"; }}
    location /files/ {{ alias {directory}/files/; }}
  }}
}}
"""
PADDING = "x" * 500


@dataclass(frozen=True)
class Request:
    """One line of the access log."""

    time: float
    client: str
    port: int
    path: str
    status: int


class Nginx:
    """One server. `directory` belongs to it alone."""

    def __init__(self, namespace: Namespace, name: str, directory: Path) -> None:
        self.namespace = namespace
        self.name = name
        self.directory = directory
        self._process: subprocess.Popen[str] | None = None

    @property
    def access_log(self) -> Path:
        return self.directory / "access.log"

    @property
    def files(self) -> Path:
        """What is put here is served under /files/."""
        return self.directory / "files"

    def start(self) -> None:
        """Start it and wait until it listens. LabError with nginx' own words when it does not."""
        for needed in (self.directory / "temp", self.files):
            needed.mkdir(parents=True, exist_ok=True)
        configuration = self.directory / "nginx.conf"
        configuration.write_text(
            CONFIGURATION.format(directory=self.directory, port=SERVER_PORT, name=self.name, padding=PADDING)
        )
        output = self.directory / "output.log"
        # -e: before it reads the configuration nginx logs to a compiled-in path of the host.
        argv = [
            "nginx",
            "-e",
            str(self.directory / "error.log"),
            "-p",
            str(self.directory),
            "-c",
            str(configuration),
        ]
        self._process = spawn(self.namespace.argv(*argv), output=output)
        wait_until(f"nginx on {self.name} listening ({output})", self._listening)

    def _listening(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            said = (self.directory / "output.log").read_text().strip().splitlines()
            raise LabError(f"nginx on {self.name} ended: {said[-1] if said else 'no output'}")
        listening = ""
        for table in ("tcp", "tcp6"):
            listening += self.namespace.read(f"/proc/thread-self/net/{table}")
        return listening.count(f":{SERVER_PORT:04X} ") >= 2

    def stop(self) -> None:
        if self._process is not None:
            stop(self._process)
            self._process = None

    def requests(self) -> Iterator[Request]:
        """What the access log says, oldest first."""
        if not self.access_log.exists():
            return
        for line in self.access_log.read_text().splitlines():
            time, client, port, path, status = line.split()
            yield Request(float(time), client, int(port), path, int(status))
