# SPDX-License-Identifier: Apache-2.0
"""ICMP through a firewall: what is forwarded finds its way and its size as through a router."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from clearway.lab import Daemon, Lab, Topology
from tests.net.counters import added_up
from tests.net.test_path_mtu import EXPIRED, NARROW, TOO_BIG, known_path_mtu, udp_error
from tests.net.traffic import Listeners, pattern, transfer

PORT = 7000
SIZE = 1_000_000
RULES = [
    {"name": "ports", "action": "accept", "protocol": ["tcp", "udp"], "destination_ports": PORT},
    {"name": "ping", "action": "accept", "protocol": ["icmp", "icmpv6"], "icmp_types": "echo-request"},
]


@pytest.fixture(scope="module")
def topology() -> Topology:
    """server1 lies behind a narrow link, client2 at one, next to the node."""
    return Topology(
        clients=2, servers=1, path_mtus={"server1": (1500, NARROW, 1500), "client2": (NARROW, 1500)}
    )


@pytest.fixture(scope="module", params=["accept", "drop"])
def daemon(lab: Lab, hook: str, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """With what these tests do accepted by default, or by rules."""
    configuration = {
        "interfaces": [{"name": name, "hook": hook} for name in lab.interfaces],
        "firewall": {"default": request.param, "rules": RULES},
        "conntrack": {"max_flows": 65536},
    }
    with lab.daemon(json.dumps(configuration)) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_learnt_before(lab: Lab) -> None:
    for host in lab.hosts.values():
        host.ns.ip("-4", "route", "flush", "cache")
        host.ns.ip("-6", "route", "flush", "cache")


@pytest.mark.parametrize("hop", [1, 2, 3])
def test_traceroute_sees_every_hop(lab: Lab, daemon: Daemon, family: int, hop: int) -> None:
    error = udp_error(lab, lab.client, (lab["server1"].address(family), PORT), family, hop, 20)
    assert (error.kind, error.code) == EXPIRED[family]
    assert (error.offender == lab.client.plan.gateway(family)) == (hop == 1)
    assert error.offender != lab["server1"].address(family)


def test_closed_port_is_told(lab: Lab, daemon: Daemon, family: int) -> None:
    error = udp_error(lab, lab.client, (lab["server1"].address(family), PORT), family, 64, 20)
    assert (error.kind, error.code) == ((3, 3) if family == 4 else (1, 4))
    assert error.offender == lab["server1"].address(family)


def test_too_big_names_the_link_behind(lab: Lab, daemon: Daemon, family: int) -> None:
    error = udp_error(lab, lab.client, (lab["server1"].address(family), PORT), family, 64, 1400)
    assert (error.kind, error.code, error.info) == (*TOO_BIG[family], NARROW)
    assert error.offender != lab.client.plan.gateway(family)


def test_too_big_for_the_nodes_own_link(lab: Lab, daemon: Daemon, family: int) -> None:
    """Told by the node itself, of the packet that opens the connection. (The first one for a next hop is not
    compared with the MTU: ARCHITECTURE.md, limits.)"""
    lab.node.run("ping", "-c1", "-W3", lab["client2"].address(family))
    error = udp_error(lab, lab.client, (lab["client2"].address(family), PORT), family, 64, 1400)
    assert (error.kind, error.code, error.info) == (*TOO_BIG[family], NARROW)
    assert error.offender == lab.client.plan.gateway(family)


@pytest.mark.parametrize("there", ["server1", "client2"])
def test_transfers_both_ways_shrink_to_the_narrow_link(
    lab: Lab, daemon: Daemon, stack: ExitStack, family: int, there: str
) -> None:
    listeners = stack.enter_context(Listeners([lab[there]], family, PORT))
    near = stack.enter_context(lab.client.ns.connect((lab[there].address(family), PORT), timeout=15))
    far = listeners.accept().socket
    for sender, receiver, who in ((near, far, lab.client), (far, near, lab[there])):
        transfer(sender, receiver, pattern(SIZE))
        assert NARROW in known_path_mtu(who)


@pytest.mark.parametrize("size", [1400, 9000])
@pytest.mark.parametrize("there", ["server1", "client2", "outside"])
def test_ping_of_every_size(lab: Lab, daemon: Daemon, family: int, there: str, size: int) -> None:
    """In fragments, made by the sender, and over IPv4 also by the node and by the router behind it."""
    source = lab["client2"] if there == "outside" else lab.client
    to = lab[there].address(family)
    if there == "outside":  # it knows no way to the clients
        lab.outside.ns.ip(
            f"-{family}", "route", "replace", "default", "via", lab.outside.plan.gateway(family)
        )
    said = []
    for _ in range(2):  # the first one may only learn of the narrow link
        ping = source.ns.run(
            "ping", "-c2", "-i0.1", "-W1", "-Mdont", f"-s{size}", to, check=False, timeout=10
        )
        said.append(ping.stdout)
        if "2 received" in ping.stdout:
            return
    raise AssertionError("\n".join(said))


def test_what_does_not_fit_is_answered_before_the_neighbour_is_known(
    lab: Lab, daemon: Daemon, family: int
) -> None:
    lab.node.ip("neigh", "flush", "to", lab["client2"].address(family))
    ping = ("ping", "-c1", "-W1", "-Mdo", "-s1400", lab["client2"].address(family))
    said = lab.client.ns.run(*ping, check=False, timeout=10).stdout
    assert ("Packet too big: mtu=" if family == 6 else "Frag needed and DF set (mtu = ") + str(NARROW) in said


@pytest.mark.parametrize("size", [1400, 5000])
def test_fragments_of_datagrams(lab: Lab, daemon: Daemon, stack: ExitStack, family: int, size: int) -> None:
    """There and back, whatever has to be cut where."""
    listeners = stack.enter_context(Listeners([lab["client2"]], family, PORT, socket.SOCK_DGRAM))
    client = stack.enter_context(
        lab.client.ns.connect((lab["client2"].address(family), PORT), kind=socket.SOCK_DGRAM, timeout=1)
    )
    for end in (client, *listeners.sockets):
        if family == 4:
            end.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: DONT, so no DF
    content = pattern(size)
    for attempt in range(5):
        try:
            client.send(content)
            at, _, datagram, peer = listeners.receive(1)
            assert datagram == content
            at.sendto(content, peer)
            assert client.recv(1 << 16) == content
            return
        except (TimeoutError, OSError):  # of a size that was learnt just now
            assert attempt < 4


def test_every_packet_of_these_tests_found_one_reason(lab: Lab, daemon: Daemon) -> None:
    """Last, so that all of the above has been counted."""
    found = added_up(daemon)
    assert found["received"] > 100
