# SPDX-License-Identifier: Apache-2.0
"""What the commands say of real traffic, and that nobody holds the daemon up."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from clearway.api.views import EndpointView, FlowView, InterfaceView, NatView, ServiceView
from clearway.lab import Daemon, Lab
from clearway.lab.run import run


@pytest.fixture(scope="module", params=["tc"])
def hook(request: pytest.FixtureRequest) -> str:
    """What is said does not depend on the hook."""
    return str(request.param)


def test_commands_tell_what_real_connections_do(lab: Lab, daemon: Daemon, family: int) -> None:
    near = lab.client.ns.connect((lab.vip(family), 80))
    lab.client.ns.run("ping", "-c", "1", lab.outside.address(family))
    address = lab.client.address(family)
    found = daemon.json(
        "get", "flows", "--address", address, "--service", f"web{family}", "--state", "established"
    )
    flows = [FlowView(**flow) for flow in found["flows"]]
    mine = [flow for flow in flows if flow.client_port == near.getsockname()[1]]
    assert len(mine) == 1
    assert (mine[0].family, mine[0].destination, mine[0].protocol) == (family, lab.vip(family), "tcp")
    [endpoint] = [
        EndpointView(**item)
        for item in daemon.json("get", "endpoints", "--service", f"web{family}")["endpoints"]
        if item["endpoint"] == mine[0].endpoint
    ]
    assert endpoint.address in {server.address(family) for server in lab.servers}
    assert endpoint.opened >= 1
    pings = daemon.json(
        "get", "flows", "--protocol", "icmp" if family == 4 else "icmpv6", "--address", address
    )
    assert {flow["nat"] for flow in pings["flows"]} == {f"out{family}"}
    services = [ServiceView(**item) for item in daemon.json("get", "services")["services"]]
    assert next(item for item in services if item.name == f"web{family}").opened >= 1
    nat = [NatView(**item) for item in daemon.json("get", "nat")["nat"]]
    assert next(item for item in nat if item.name == f"out{family}").state == "active"
    assert {InterfaceView(**i).state for i in daemon.json("get", "interfaces")["interfaces"]} == {"attached"}
    near.close()


def test_shares_of_endpoints_add_up(daemon: Daemon) -> None:
    shares: dict[str, float] = {}
    for item in daemon.json("get", "endpoints")["endpoints"]:
        shares[item["service"]] = shares.get(item["service"], 0.0) + item["share"]
    assert all(total == pytest.approx(1, abs=0.001) for total in shares.values())


@pytest.mark.parametrize(
    "command",
    ["status", "get services", "get endpoints", "get flows", "get nat", "get interfaces", "get reasons"],
)
def test_tables_work_with_real_numbers(daemon: Daemon, command: str) -> None:
    assert daemon.cli(*command.split()).stdout.count("\n") > 1


def test_flow_table_is_aged_all_the_time(daemon: Daemon) -> None:
    ago: list[float] = []
    for _ in range(5):
        sweep: dict[str, Any] = daemon.json("status")["sweep"]
        ago.append(sweep["ago"])
        time.sleep(0.3)
    assert max(ago) < 5
    assert len(set(ago)) > 1


def test_slow_request_delays_neither_ageing_nor_others(lab: Lab, daemon: Daemon) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_REQUEST, f"/run/{daemon.instance}/api.sock"], stdout=subprocess.PIPE
    ) as slow:
        assert slow.stdout is not None
        slow.stdout.readline()
        begun = time.monotonic()
        daemon.cli("get", "services")
        assert time.monotonic() - begun < 5
        assert daemon.json("status")["sweep"]["ago"] < 5
        slow.kill()


SLOW_REQUEST = """
import socket, sys, time
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
s.sendall(b"POST /v1/apply HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 1000\\r\\n\\r\\nservices:")
print("sent", flush=True); time.sleep(60)
"""


def test_second_daemon_is_told_who_is_there(lab: Lab, daemon: Daemon) -> None:
    second = daemon.cli("run", "-c", str(daemon.config_path), check=False)
    assert second.returncode == 4
    assert f"already running (pid {daemon.json('status')['pid']} holds" in second.stderr
    assert second.stderr.count("\n") == 1
    other_run = {**daemon.environment, "CLEARWAY_RUN_DIR": str(daemon.directory / "run2")}
    argv = daemon.argv("run", "-c", str(daemon.config_path))
    second = run(argv, env=other_run, check=False)
    assert second.returncode == 4
    assert f"another process holds /sys/fs/bpf/{daemon.instance}" in second.stderr
