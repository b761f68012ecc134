# SPDX-License-Identifier: Apache-2.0
"""`clearway follow`: every connection that ends, as it was; `clearway firewall log`: what rules decide."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from clearway.datapath import Datapath
from clearway.lab import Daemon, Lab, wait_until
from clearway.lab.run import patience, spawn, stop
from tests.net.configuration import data, standard

CONNECTIONS = 20


@pytest.fixture
def impatient(lab: Lab, hook: str, daemon: Daemon) -> Iterator[Daemon]:
    """The module's daemon, with connections that end soon after they are over."""
    changed = data(lab, hook)
    changed["conntrack"]["timeouts"] = {"tcp_time_wait": "1s", "tcp_closed": "1s"}
    daemon.config_path.write_text(json.dumps(changed))
    daemon.cli("apply", str(daemon.config_path))
    yield daemon
    daemon.config_path.write_text(standard(lab, hook))
    daemon.cli("apply", str(daemon.config_path))


@contextmanager
def following(
    daemon: Daemon, output: Path, *command: str, told: str = "records"
) -> Iterator[subprocess.Popen[str]]:
    """`command`: `follow` if there is none. `told`: the word of flow_tables that is set meanwhile."""
    argv = daemon.argv(*(command or ("follow",)), "-o", "json")
    process = spawn(argv, output=output, env=daemon.environment)
    try:
        wait_until("it is told", lambda: process.poll() is not None or is_followed(daemon, told))
        yield process
    finally:
        stop(process)


def is_followed(daemon: Daemon, told: str = "records") -> bool:
    """Whether ends of connections (or decisions: "events") are recorded."""
    with Datapath.open(daemon.instance) as datapath:
        values, _ = datapath.table("flows_v3").lookup([0])
    return bool(values[0][told])


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_connections_are_told_when_they_end(
    lab: Lab, impatient: Daemon, stack: ExitStack, family: int, tmp_path: Path
) -> None:
    output = tmp_path / "ended"
    stack.enter_context(following(impatient, output))
    began = time.time()
    for _ in range(CONNECTIONS):
        lab.client.ns.run("curl", "-sSg", "--max-time", "5", f"http://{lab.vip_url(family)}/")
    deadline = time.monotonic() + 20 * patience()
    client = lab.client.address(family)
    while len(mine := [flow for flow in lines(output) if flow["client"] == client]) < CONNECTIONS:
        assert time.monotonic() < deadline, f"{len(mine)} of {CONNECTIONS} connections were told"
        time.sleep(0.2)
    assert len(mine) == CONNECTIONS
    servers = {server.address(family) for server in lab.servers}
    for flow in mine:
        assert (flow["destination"], flow["protocol"]) == (lab.vip(family), "tcp")
        assert (flow["service"], flow["why"]) == (f"web{family}", "expired")
        assert flow["destination_out"] in servers and flow["endpoint"]
        assert flow["packets"] >= 5 and flow["reply_packets"] >= 4
        assert flow["reply_bytes"] > 300 and flow["bytes"] > 300
        assert began - 2 <= flow["began"] <= flow["ended"] <= time.time() + 2
    assert {flow["destination_out"] for flow in mine} == servers


def test_second_follower_is_refused(impatient: Daemon, stack: ExitStack, tmp_path: Path) -> None:
    first = stack.enter_context(following(impatient, tmp_path / "first"))
    assert first.poll() is None
    second = impatient.cli("follow", check=False)
    assert second.returncode == 1
    assert "somebody follows the ends of connections already" in second.stderr


def test_there_may_be_another_follower_afterwards(
    impatient: Daemon, stack: ExitStack, tmp_path: Path
) -> None:
    with following(impatient, tmp_path / "first"):
        pass
    wait_until("the first one is missed", lambda: not is_followed(impatient))
    second = stack.enter_context(following(impatient, tmp_path / "second"))
    assert second.poll() is None, (tmp_path / "second").read_text()


def test_pings_are_logged_with_their_type(
    lab: Lab, hook: str, impatient: Daemon, stack: ExitStack, family: int, tmp_path: Path
) -> None:
    rule = {"name": "pings", "action": "accept", "log": True, "protocol": ["icmp", "icmpv6"]}
    impatient.config_path.write_text(json.dumps(data(lab, hook) | {"firewall": {"rules": [rule]}}))
    impatient.cli("apply", str(impatient.config_path))
    output = tmp_path / "log"
    stack.enter_context(following(impatient, output, "firewall", "log", told="events"))
    server, client = lab.servers[0].address(family), lab.client.address(family)
    lab.client.ns.run("ping", "-c", "1", "-W", "5", server)
    wait_until("the ping is told", lambda: bool(output.read_text().strip()))
    (event,) = lines(output)
    assert (event["rule"], event["action"], event["icmp_type"]) == ("pings", "accept", "echo-request")
    assert (event["source"], event["destination"]) == (client, server)
