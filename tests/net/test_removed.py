# SPDX-License-Identifier: Apache-2.0
"""What is removed takes its connections with it, and none is told as that of what comes after it."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from clearway.lab import SERVER_PORT, Daemon, Lab, wait_until
from clearway.model import host_port
from tests.net.configuration import WEB_PORT, data
from tests.net.test_follow import following, lines

CONNECTIONS = 8
OUTSIDE_PORT = 2222
FRESH = {4: "203.0.113.97", 6: "2001:db8:97::1"}


def endpoints(daemon: Daemon, service: str) -> dict[str, int]:
    """Connections by endpoint."""
    found = daemon.json("get", "endpoints", "--service", service)["endpoints"]
    return {item["endpoint"]: item["flows"] for item in found}


def idle_connections(lab: Lab, stack: ExitStack, family: int) -> None:
    for _ in range(CONNECTIONS):
        stack.enter_context(lab.client.ns.connect((lab.vip(family), WEB_PORT)))


def told(output: Path, **wanted: str) -> list[dict[str, Any]]:
    return [flow for flow in lines(output) if all(flow[name] == value for name, value in wanted.items())]


def test_idle_connections_end_with_their_endpoint(
    lab: Lab, own_daemon: Daemon, stack: ExitStack, family: int, tmp_path: Path
) -> None:
    web, output = f"web{family}", tmp_path / "ended"
    stack.enter_context(following(own_daemon, output))
    idle_connections(lab, stack, family)
    before = endpoints(own_daemon, web)
    assert sum(before.values()) == CONNECTIONS
    victim = max(before, key=lambda endpoint: before[endpoint])

    own_daemon.cli("endpoint", "remove", web, victim)
    fresh = host_port(ip_address(lab.servers[0].address(family)), SERVER_PORT + 1)
    own_daemon.cli("service", "add", "fresh", "--address", FRESH[family], "--port", "83", "--endpoint", fresh)
    assert endpoints(own_daemon, "fresh") == {fresh: 0}
    assert own_daemon.json("get", "flows", "--service", "fresh")["matched"] == 0
    own_daemon.cli("endpoint", "drain", "fresh", fresh, "--wait", "0")

    gone = {"service": web, "endpoint": victim, "why": "endpoint gone"}
    wait_until("those of the endpoint end", lambda: len(told(output, **gone)) == before[victim])
    del before[victim]
    assert endpoints(own_daemon, web) == before
    assert own_daemon.json("get", "flows", "--service", web)["matched"] == sum(before.values())

    own_daemon.cli("service", "remove", web)
    wait_until("those of the service end", lambda: len(told(output, service=web)) == CONNECTIONS)
    for endpoint, count in before.items():
        assert len(told(output, service=web, endpoint=endpoint, why="endpoint gone")) == count


def test_connection_of_a_removed_rule_goes_on_and_keeps_its_name(
    lab: Lab, own_daemon: Daemon, hook: str, stack: ExitStack, family: int, tmp_path: Path
) -> None:
    rule, output = f"out{family}", tmp_path / "ended"
    stack.enter_context(following(own_daemon, output))
    near = lab.client.ns.connect((lab.outside.address(family), OUTSIDE_PORT), kind=socket.SOCK_DGRAM)
    stack.enter_context(near).send(b"ask")
    changed = data(lab, hook)
    changed["nat"] = [one for one in changed["nat"] if one["name"] != rule]
    apply(own_daemon, changed)
    own = f"{lab.client.address(family)}/{32 if family == 4 else 128}"
    changed["nat"] += [{"name": "new", "source": own, "interface": "uplink", "masquerade": True}]
    changed["conntrack"]["timeouts"] = {"udp": "2s"}
    apply(own_daemon, changed)

    rules = {one["name"]: one["flows"] for one in own_daemon.json("get", "nat")["nat"]}
    assert rules["new"] == 0
    client = lab.client.address(family)
    flows = own_daemon.json("get", "flows", "--protocol", "udp", "--address", client)["flows"]
    assert {flow["nat"] for flow in flows} <= {"gone"}
    wait_until("the connection ends", lambda: told(output, client=client, protocol="udp"))
    assert {(flow["nat"], flow["why"]) for flow in told(output, client=client, protocol="udp")} == {
        (rule, "expired")
    }


def apply(daemon: Daemon, configuration: dict[str, Any]) -> None:
    daemon.config_path.write_text(json.dumps(configuration))
    daemon.cli("apply", str(daemon.config_path))
