# SPDX-License-Identifier: Apache-2.0
"""What clearway does not claim works on the node as if it were not there."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from clearway.lab import Daemon, Lab
from tests.net.counters import added_up
from tests.net.traffic import Listeners, pattern, talk, transfer


def test_node_answers_ping(lab: Lab, daemon: Daemon, family: int) -> None:
    for host in lab.hosts.values():
        for address in (host.plan.gateway(family), lab.vip(family)):
            ping = host.ns.run("ping", "-c2", "-i0.1", "-W2", address, check=False)
            assert "2 received" in ping.stdout, f"{host.name} pings {address}"


def test_node_pings_everybody(lab: Lab, daemon: Daemon, family: int) -> None:
    for host in lab.hosts.values():
        ping = lab.node.run("ping", "-c2", "-i0.1", "-W2", host.address(family), check=False)
        assert "2 received" in ping.stdout, host.name


def test_neighbours_are_found_from_nothing(lab: Lab, daemon: Daemon, family: int) -> None:
    """ARP and neighbour discovery, asked and answered by both sides."""
    for side in (lab.node, lab.client.ns):
        side.ip("neighbour", "flush", "all")
        assert lab.client.ns.run("ping", "-c1", "-W3", lab.client.plan.gateway(family)).returncode == 0
        assert lab.node.run("ping", "-c1", "-W3", lab.client.address(family)).returncode == 0


def test_service_works_with_an_empty_neighbour_table(lab: Lab, daemon: Daemon, family: int) -> None:
    for namespace in (lab.node, *(host.ns for host in lab.hosts.values())):
        namespace.ip("neighbour", "flush", "all")
    url = f"http://{lab.vip_url(family)}/"
    for _ in range(6):
        assert lab.client.ns.run("curl", "-sSg", "--max-time", "8", url).stdout.startswith("server")


def test_node_takes_and_makes_connections_of_its_own(
    lab: Lab, daemon: Daemon, stack: ExitStack, family: int
) -> None:
    for address in (lab.client.plan.gateway(family), lab.vip(family)):
        listening = stack.enter_context(lab.node.listen((address, 22)))
        near = stack.enter_context(lab.client.ns.connect((address, 22)))
        far, peer = listening.accept()
        stack.enter_context(far)
        far.settimeout(5)
        assert peer[0] == lab.client.address(family)
        talk(near, far)
    listeners = stack.enter_context(Listeners(lab.servers, family, 22))
    near = stack.enter_context(lab.node.connect((lab.servers[0].address(family), 22)))
    talk(near, listeners.accept().socket)


def test_linux_forwards_what_nobody_claims(lab: Lab, daemon: Daemon, stack: ExitStack, family: int) -> None:
    """From client to client: routed, not translated."""
    one, two = lab.clients
    listening = stack.enter_context(two.ns.listen((two.address(family), 2200)))
    near = stack.enter_context(one.ns.connect((two.address(family), 2200), timeout=15))
    far, peer = listening.accept()
    stack.enter_context(far)
    far.settimeout(15)
    assert peer[0] == one.address(family)
    content = pattern(5_000_000)
    for sender, receiver in ((near, far), (far, near)):
        transfer(sender, receiver, content)


def test_traceroute_through_the_node(lab: Lab, daemon: Daemon, family: int) -> None:
    one, two = lab.clients
    path = one.ns.run("tracepath", "-n", two.address(family), timeout=20).stdout
    hops = [line.split()[1] for line in path.splitlines() if line.split()[0] in ("1:", "2:")]
    assert one.plan.gateway(family) in hops
    assert two.address(family) in hops


def test_tcpdump_sees_what_linux_handles(lab: Lab, daemon: Daemon, family: int) -> None:
    kind = "icmp" if family == 4 else "icmp6"
    capture = lab.node.spawn(
        "tcpdump", "-lni", "client1", "-c4", kind, "and", "host", lab.client.address(family)
    )
    time.sleep(1)
    lab.client.ns.run("ping", "-c2", "-i0.2", lab.client.plan.gateway(family))
    output, _ = capture.communicate(timeout=10)
    assert output.count("echo request") == 2
    assert output.count("echo reply") == 2


@pytest.mark.parametrize("hook", ["tc"], scope="module", indirect=True)
def test_tcpdump_sees_services_on_tc(lab: Lab, daemon: Daemon, family: int) -> None:
    capture = lab.node.spawn(
        "tcpdump", "-lni", "client1", "-c1", "dst", "host", lab.vip(family), "and", "tcp"
    )
    time.sleep(1)
    lab.client.ns.run("curl", "-sSg", "--max-time", "5", f"http://{lab.vip_url(family)}/")
    output, _ = capture.communicate(timeout=10)
    assert lab.vip(family) in output


def test_every_packet_of_these_tests_found_one_reason(lab: Lab, daemon: Daemon) -> None:
    """Last, so that all of the above has been counted."""
    assert added_up(daemon)["received"] > 100
