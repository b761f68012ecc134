# SPDX-License-Identifier: Apache-2.0
"""Clients reach the outside under the node's address."""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack

import pytest

from clearway.lab import Daemon, Lab, wait_until
from tests.net.counters import added_up
from tests.net.traffic import Listeners, pattern, talk, transfer

PORT = 2222


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_outside_sees_the_node(
    lab: Lab, daemon: Daemon, stack: ExitStack, family: int, kind: socket.SocketKind
) -> None:
    """Two clients that use the same source port towards the same destination: both get through."""
    outside = (lab.outside.address(family), PORT)
    listeners = stack.enter_context(Listeners([lab.outside], family, PORT, kind))
    peers = set()
    for client in lab.clients:
        near = stack.enter_context(
            client.ns.open_socket(socket.AF_INET6 if family == 6 else socket.AF_INET, kind)
        )
        near.settimeout(5)
        near.bind((client.address(family), 40000))
        near.connect(outside)
        if kind == socket.SOCK_STREAM:
            accepted = listeners.accept()
            talk(near, accepted.socket)
            peers.add(accepted.peer)
        else:
            near.send(b"ask")
            at, _, datagram, peer = listeners.receive()
            assert datagram == b"ask"
            at.sendto(b"answer", peer)
            assert near.recv(64) == b"answer"
            peers.add(peer)
    assert {address for address, _ in peers} == {lab.node_address("uplink", family)}
    assert len(peers) == 2


def test_ports_stay_clear_of_the_node_own(lab: Lab, daemon: Daemon, stack: ExitStack, family: int) -> None:
    listeners = stack.enter_context(Listeners([lab.outside], family, PORT))
    first, last = map(int, lab.node.read("/proc/sys/net/ipv4/ip_local_port_range").split())
    for _ in range(20):
        stack.enter_context(lab.client.ns.connect((lab.outside.address(family), PORT)))
        assert not first <= listeners.accept().peer[1] <= last


def test_node_itself_reaches_the_outside_untouched(
    lab: Lab, daemon: Daemon, stack: ExitStack, family: int
) -> None:
    listeners = stack.enter_context(Listeners([lab.outside], family, PORT))
    near = stack.enter_context(lab.node.connect((lab.outside.address(family), PORT)))
    accepted = listeners.accept()
    assert accepted.peer == near.getsockname()[:2]
    talk(near, accepted.socket)


def test_ping_is_masqueraded(lab: Lab, daemon: Daemon, family: int) -> None:
    """Both clients at once, with the same identifier."""
    command = ("ping", "-c3", "-i0.2", "-W2", "-e", "77", lab.outside.address(family))
    pings = [client.ns.spawn(*command) for client in lab.clients]
    for ping in pings:
        output, _ = ping.communicate(timeout=10)
        assert ping.returncode == 0
        assert "3 received" in output
    unknown = lab.outside.ns.run("ping", "-c1", "-W1", lab.client.address(family), check=False)
    assert unknown.returncode != 0  # the outside has no way in


def test_bulk_both_ways(lab: Lab, daemon: Daemon, stack: ExitStack, family: int) -> None:
    listeners = stack.enter_context(Listeners([lab.outside], family, PORT))
    near = stack.enter_context(lab.client.ns.connect((lab.outside.address(family), PORT), timeout=20))
    far = listeners.accept().socket
    content = pattern(20_000_000)
    for sender, receiver in ((near, far), (far, near)):
        transfer(sender, receiver, content)


def test_connection_follows_a_neighbour_to_another_link_address(
    lab: Lab, daemon: Daemon, stack: ExitStack, family: int
) -> None:
    lab.outside.ns.sysctl({"ipv4/conf/eth0/arp_notify": 1, "ipv6/conf/eth0/ndisc_notify": 1})
    listeners = stack.enter_context(Listeners([lab.outside], family, PORT))
    near = stack.enter_context(lab.client.ns.connect((lab.outside.address(family), PORT), timeout=15))
    accepted = listeners.accept()
    talk(near, accepted.socket)
    was = re.findall(r"link/ether (\S+)", lab.outside.ns.ip("link", "show", "eth0"))[0]
    becomes = f"02:00:00:00:{family:02x}:{int(was[-2:], 16) ^ 1:02x}"
    lab.outside.ns.ip("link", "set", "eth0", "address", becomes)

    def node_knows() -> bool:
        return becomes in lab.node.ip("neighbour", "show", "dev", "uplink", "to", lab.outside.address(family))

    wait_until("the node's neighbour table has the new address", node_knows, timeout=15)
    talk(near, accepted.socket)


def test_every_packet_of_these_tests_found_one_reason(lab: Lab, daemon: Daemon) -> None:
    """Last, so that all of the above has been counted."""
    assert added_up(daemon)["received"] > 100
