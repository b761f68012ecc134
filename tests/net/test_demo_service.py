# SPDX-License-Identifier: Apache-2.0
"""examples/quickstart.yaml as a user meets it, from start to end; `make vm-test` has it on other kernels."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from clearway.lab import SERVER_PORT, Daemon, Lab
from clearway.lab.daemon import traces
from clearway.lab.demo import quickstart
from clearway.lab.measure import distribution, seen_from_outside
from tests.net.counters import added_up
from tests.net.node_state import node_state

pytestmark = pytest.mark.demo_service
SERVERS = {"server1", "server2", "server3"}
OPEN = 24  # connections


def test_quickstart_from_start_to_end(lab: Lab, hook: str) -> None:
    before = node_state(lab)
    with lab.daemon(quickstart(hook=hook)) as daemon:
        hooks = {row["hook"] for row in daemon.json("get", "interfaces")["interfaces"]}
        assert hooks == {hook}
        for family in (4, 6):
            answers = distribution(lab.client.ns, f"http://{lab.vip_url(family)}/", 60)
            assert (set(answers), answers.total()) == (SERVERS, 60)
            assert seen_from_outside(lab.client.ns, lab.outside, family) == lab.node_address("uplink", family)
        _remove_a_server_under_open_connections(lab, daemon)
        counted = added_up(daemon)
        assert counted["forward_flow"] > 0
        daemon.stop()
        daemon.cli("down")
        assert traces(daemon.instance) == []
    assert node_state(lab) == before


def _remove_a_server_under_open_connections(lab: Lab, daemon: Daemon) -> None:
    with ExitStack() as stack:
        opened = [stack.enter_context(lab.client.ns.connect((lab.vip(4), 80))) for _ in range(OPEN)]
        served_by = {connection: _ask(connection) for connection in opened}
        assert set(served_by.values()) == SERVERS
        daemon.cli("endpoint", "remove", "web", f"{lab['server3'].address(4)}:{SERVER_PORT}")
        for connection, server in served_by.items():
            if server == "server3":
                with pytest.raises(ConnectionResetError):
                    _ask(connection)
            else:
                assert _ask(connection) == server
    assert set(distribution(lab.client.ns, f"http://{lab.vip_url(4)}/", 60)) == {"server1", "server2"}


def _ask(connection: socket.socket) -> str:
    """Which server answers a request on a connection that stays open."""
    connection.sendall(b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n")
    answer = connection.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 200 OK\r\n")
    return answer.rpartition("\r\n\r\n")[2].split()[0]
