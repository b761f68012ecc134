# SPDX-License-Identifier: Apache-2.0
"""Narrow links beyond the node: ICMP errors find their way back through the translation, so that path MTU
discovery works; without them these transfers would hang."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from clearway.lab import Daemon, Host, Lab, Topology
from tests.net.configuration import FULL_NAT_TCP_PORT, RAW_PORT, TCP_PORT, UDP_PORT
from tests.net.counters import added_up
from tests.net.traffic import (
    IcmpError,
    Listeners,
    icmp_error,
    limited_hops,
    pattern,
    transfer,
)

NARROW = 1300
SIZE = 2_000_000
TOO_BIG = {4: (3, 4), 6: (2, 0)}  # ICMP type and code: RFC 792 with 1191, RFC 4443
EXPIRED = {4: (11, 0), 6: (3, 0)}
BOTH_MODES = pytest.mark.parametrize("port", [TCP_PORT, FULL_NAT_TCP_PORT], ids=["nat", "full-nat"])


@pytest.fixture(scope="module")
def topology() -> Topology:
    """client2, the only server and the outside lie behind a narrow link; client3 at one, next to the node."""
    path = (1500, NARROW, 1500)
    paths = {"client2": path, "server1": path, "outside": path, "client3": (NARROW, 1500)}
    return Topology(clients=3, servers=1, path_mtus=paths)


@pytest.fixture(autouse=True)
def nothing_learnt_before(lab: Lab) -> None:
    """Path MTUs of earlier tests would make hosts announce a small MSS, and nothing would be too big."""
    for host in lab.hosts.values():
        host.ns.ip("-4", "route", "flush", "cache")
        host.ns.ip("-6", "route", "flush", "cache")


def known_path_mtu(host: Host) -> set[int]:
    """The path MTUs that the host's connections have learnt."""
    listed = host.ns.run("ss", "-HtniO", "state", "connected").stdout.split()
    return {int(word.removeprefix("pmtu:")) for word in listed if word.startswith("pmtu:")}


@BOTH_MODES
@pytest.mark.parametrize("client", ["client1", "client2", "client3"])
def test_transfers_both_ways_shrink_to_the_narrow_link(
    lab: Lab, daemon: Daemon, stack: ExitStack, family: int, port: int, client: str
) -> None:
    listeners = stack.enter_context(Listeners(lab.servers, family, RAW_PORT))
    near = stack.enter_context(lab[client].ns.connect((lab.vip(family), port), timeout=15))
    far = listeners.accept().socket
    content = pattern(SIZE)
    for sender, receiver, who in ((near, far, lab[client]), (far, near, lab["server1"])):
        transfer(sender, receiver, content)
        assert NARROW in known_path_mtu(who)


@pytest.mark.parametrize("client", ["client1", "client2"])
def test_masqueraded_transfers_shrink_too(
    lab: Lab, daemon: Daemon, stack: ExitStack, family: int, client: str
) -> None:
    listeners = stack.enter_context(Listeners([lab.outside], family, 2222))
    near = stack.enter_context(lab[client].ns.connect((lab.outside.address(family), 2222), timeout=15))
    far = listeners.accept().socket
    content = pattern(SIZE)
    for sender, receiver in ((near, far), (far, near)):
        transfer(sender, receiver, content)


def udp_error(lab: Lab, client: Host, to: tuple[str, int], family: int, hops: int, size: int) -> IcmpError:
    """The ICMP error that comes back for one datagram that must not be fragmented."""
    with limited_hops(client, to, family, hops) as sender:
        level, option = (socket.IPPROTO_IP, 10) if family == 4 else (socket.IPPROTO_IPV6, 23)
        sender.setsockopt(
            level, option, 3
        )  # IP_MTU_DISCOVER, IPV6_MTU_DISCOVER: PROBE, so DF whatever is known
        sender.send(bytes(size))
        return icmp_error(sender)


def test_too_big_beyond_the_service_names_the_link(lab: Lab, daemon: Daemon, family: int) -> None:
    """From the router behind the node, about a packet the client never sent: translated back."""
    error = udp_error(lab, lab["client1"], (lab.vip(family), UDP_PORT), family, 64, 1400)
    assert (error.kind, error.code, error.info) == (*TOO_BIG[family], NARROW)


def test_too_big_beyond_the_masquerade_names_the_link(lab: Lab, daemon: Daemon, family: int) -> None:
    error = udp_error(lab, lab["client1"], (lab.outside.address(family), 9), family, 64, 1400)
    assert (error.kind, error.code, error.info) == (*TOO_BIG[family], NARROW)


@pytest.mark.parametrize("family", [4], ids=["ipv4"])
def test_answers_that_may_be_fragmented_are(lab: Lab, daemon: Daemon, stack: ExitStack, family: int) -> None:
    """From a service's address, which is the node's own. What a router before it has made of them is still
    too big for the link behind it.
    """
    link = ("link", "set", lab["client3"].plan.interface, "mtu")
    lab.node.ip(*link, str(NARROW - 200))
    stack.callback(lab.node.ip, *link, str(NARROW))
    server = stack.enter_context(lab["server1"].ns.open_socket(socket.AF_INET, socket.SOCK_DGRAM, 0))
    server.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: DONT, so no DF
    with lab["server1"].ns.entered():
        server.bind((lab["server1"].address(family), RAW_PORT))
    client = stack.enter_context(lab["client3"].ns.open_socket(socket.AF_INET, socket.SOCK_DGRAM, 0))
    for endpoint in (server, client):
        endpoint.settimeout(5)
    client.sendto(b"request", (lab.vip(family), UDP_PORT))
    _, peer = server.recvfrom(100)
    answer = pattern(NARROW + 100)
    server.sendto(answer, peer)
    assert client.recvfrom(2000) == (answer, (lab.vip(family), UDP_PORT))


@pytest.mark.parametrize("hop", [1, 2, 3])
def test_traceroute_sees_every_hop_to_a_service(lab: Lab, daemon: Daemon, family: int, hop: int) -> None:
    """Hop 1 is the node, which answers itself; the routers behind it know only the translated packet."""
    error = udp_error(lab, lab["client1"], (lab.vip(family), UDP_PORT), family, hop, 20)
    assert (error.kind, error.code) == EXPIRED[family]
    # What lies behind a service does not show: its routers speak with the service's address.
    assert error.offender == (lab["client1"].plan.gateway(family) if hop == 1 else lab.vip(family))


@pytest.mark.parametrize("hop", [1, 2, 3])
def test_traceroute_sees_every_hop_through_masquerade(
    lab: Lab, daemon: Daemon, family: int, hop: int
) -> None:
    error = udp_error(lab, lab["client1"], (lab.outside.address(family), 9), family, hop, 20)
    assert (error.kind, error.code) == EXPIRED[family]
    assert (error.offender == lab["client1"].plan.gateway(family)) == (hop == 1)


def test_refused_udp_is_reported_to_the_client(lab: Lab, daemon: Daemon, family: int) -> None:
    """Port unreachable comes from the endpoint itself, under its own address inside and out."""
    error = udp_error(lab, lab["client1"], (lab.vip(family), UDP_PORT), family, 64, 20)
    assert (error.kind, error.code) == ((3, 3) if family == 4 else (1, 4))


def test_every_packet_of_these_tests_found_one_reason(lab: Lab, daemon: Daemon) -> None:
    """Last, so that all of the above has been counted."""
    assert added_up(daemon)["received"] > 100
