# SPDX-License-Identifier: Apache-2.0
"""Daemons that die, endpoints that go, changes under load: who notices, and who must not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from clearway.lab import SERVER_PORT, Daemon, Lab
from clearway.lab.failover import received_bytes, remove_under_load
from clearway.lab.measure import distribution, load
from tests.net.configuration import RAW_PORT, TCP_PORT, data, service, standard
from tests.net.traffic import Listeners, pattern, talk

SSH_PORT = 2222


@pytest.fixture
def node(lab: Lab, hook: str, daemon: Daemon) -> Iterator[Daemon]:
    """The module's daemon; after the test it runs again, with the configuration it had."""
    yield daemon
    daemon.config_path.write_text(standard(lab, hook))
    if daemon.process is None or daemon.process.poll() is not None:
        daemon.start()
    daemon.cli("apply", str(daemon.config_path))


def test_kill_and_restart_of_the_daemon_goes_unnoticed(
    lab: Lab, node: Daemon, stack: ExitStack, family: int
) -> None:
    """Under load of kept-alive connections, of new ones, and of one that is silent most of the time."""
    listeners = stack.enter_context(Listeners(lab.servers, family, RAW_PORT))
    near = stack.enter_context(lab.client.ns.connect((lab.vip(family), TCP_PORT), timeout=10))
    far = listeners.accept().socket
    url = f"http://{lab.vip_url(family)}/"
    loads = [
        stack.enter_context(load(client.ns, lab.directory, f"{url}load", connections=16, close=close))
        for client, close in zip(lab.clients, (False, True), strict=True)
    ]
    time.sleep(1)
    node.kill()
    talk(near, far)
    assert set(distribution(lab.client.ns, url, 30)) == {"server1", "server2", "server3"}
    node.start()
    talk(near, far)
    time.sleep(0.5)
    for result in [running.end() for running in loads]:
        assert (result.broken, result.timeouts) == (0, 0)
        assert result.requests > 100


def test_long_connection_survives_changes(
    lab: Lab, node: Daemon, hook: str, stack: ExitStack, family: int
) -> None:
    """As an ssh session would notice them: another configuration, other routes."""
    listeners = stack.enter_context(Listeners([lab.outside], family, SSH_PORT))
    near = stack.enter_context(lab.client.ns.connect((lab.outside.address(family), SSH_PORT), timeout=15))
    accepted = listeners.accept()
    talk(near, accepted.socket)

    changed = data(lab, hook)
    changed["services"].append(service(lab, family, "late", 4444, 4444))
    node.config_path.write_text(json.dumps(changed))
    node.cli("apply", str(node.config_path))
    assert "late" in node.cli("get", "services").stdout
    talk(near, accepted.socket)

    lab.node.ip("route", "add", "192.0.2.0/24", "dev", "uplink")
    talk(near, accepted.socket)
    network = f"{lab.outside.address(family)}/{32 if family == 4 else 128}"
    lab.node.ip("route", "add", network, "dev", "uplink", "mtu", "1400")
    talk(near, accepted.socket, pattern(20_000))
    lab.node.ip("route", "del", network, "dev", "uplink")
    lab.node.ip("route", "del", "192.0.2.0/24", "dev", "uplink")
    talk(near, accepted.socket)


@pytest.mark.parametrize("max_flows", [200_000, 60_000], ids=["larger", "smaller"])
def test_flow_table_of_another_size_keeps_every_connection(
    lab: Lab, node: Daemon, stack: ExitStack, hook: str, family: int, max_flows: int
) -> None:
    """Under load of kept-alive and of new connections, and one that is silent meanwhile."""
    listeners = stack.enter_context(Listeners([lab.outside], family, SSH_PORT))
    near = stack.enter_context(lab.client.ns.connect((lab.outside.address(family), SSH_PORT), timeout=15))
    accepted = listeners.accept()
    talk(near, accepted.socket)
    url = f"http://{lab.vip_url(family)}/"
    loads = [
        stack.enter_context(load(client.ns, lab.directory, f"{url}load", connections=16, close=close))
        for client, close in zip(lab.clients, (False, True), strict=True)
    ]
    time.sleep(0.5)
    changed = data(lab, hook)
    changed["conntrack"] = {"max_flows": max_flows}
    # elsewhere first: the daemon follows its own file and might be quicker than the command
    proposed = lab.directory / "proposed.json"
    proposed.write_text(json.dumps(changed))
    planned = node.cli("plan", str(proposed)).stdout
    assert f"conntrack.max_flows: 65536 -> {max_flows}\n" in planned
    node.config_path.write_text(json.dumps(changed))
    node.cli("apply", str(node.config_path))
    talk(near, accepted.socket)
    time.sleep(2.5)
    for result in [running.end() for running in loads]:
        assert (result.broken, result.timeouts) == (0, 0)
    talk(near, accepted.socket)
    assert node.json("status")["max_flows"] == max_flows
    assert "in the new flow table" in node.log_path.read_text()


def test_stopped_daemon_leaves_the_data_path_carrying(lab: Lab, node: Daemon) -> None:
    assert node.stop() == 0
    for family in (4, 6):
        assert distribution(lab.client.ns, f"http://{lab.vip_url(family)}/", 30).total() == 30
    node.start()
    for family in (4, 6):
        assert distribution(lab.client.ns, f"http://{lab.vip_url(family)}/", 30).total() == 30


def test_drained_endpoint_keeps_its_connections(lab: Lab, node: Daemon, family: int) -> None:
    url = f"http://{lab.vip_url(family)}/"
    host = lab["server2"].address(family) if family == 4 else f"[{lab['server2'].address(family)}]"
    with load(lab.client.ns, lab.directory, f"{url}load", connections=24) as running:
        time.sleep(1)
        before = {server.name: received_bytes(server) for server in lab.servers}
        node.cli("endpoint", "drain", f"web{family}", f"{host}:{SERVER_PORT}")
        answers = distribution(lab.client.ns, url, 60)
        time.sleep(1)
        after = {server.name: received_bytes(server) for server in lab.servers}
        result = running.end()
    assert set(answers) == {"server1", "server3"}
    assert answers.total() == 60
    assert (result.broken, result.timeouts) == (0, 0)
    assert before["server2"], "wrk had no connection to server2"
    for name, connections in before.items():
        assert all(after[name].get(peer, 0) > count for peer, count in connections.items()), name


def test_removed_endpoint_takes_only_its_own_connections(lab: Lab, node: Daemon, family: int) -> None:
    found = remove_under_load(lab, node, f"web{family}", lab["server3"], family)
    assert found.of_removed > 0
    assert found.broken == {"server1": 0, "server2": 0}
    assert min(found.kept.values()) > 0
    assert found.total_broken == 0
    answers = distribution(lab.client.ns, f"http://{lab.vip_url(family)}/", 60)
    assert set(answers) == {"server1", "server2"}


def test_edited_file_is_applied_by_itself(lab: Lab, node: Daemon, family: int) -> None:
    changed = json.loads(node.config_path.read_text())
    for entry in changed["services"]:
        if entry["name"] == f"web{family}":
            del entry["endpoints"][1:]
    node.config_path.write_text(json.dumps(changed))
    deadline = time.monotonic() + 10
    while set(distribution(lab.client.ns, f"http://{lab.vip_url(family)}/", 10)) != {"server1"}:
        assert time.monotonic() < deadline, "the edited file was not taken within 10 s"
        time.sleep(0.2)


def test_refused_file_changes_nothing(lab: Lab, node: Daemon) -> None:
    node.config_path.write_text('{"services": [{"name": "broken"}]}')
    refused = node.cli("apply", str(node.config_path), check=False)
    assert refused.returncode != 0
    assert "services[0].address" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert distribution(lab.client.ns, f"http://{lab.vip_url(4)}/", 30).total() == 30
