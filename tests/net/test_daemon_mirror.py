# SPDX-License-Identifier: Apache-2.0
"""What the daemon knows of Linux' devices and neighbours, against real ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from clearway.datapath import Datapath
from clearway.lab import Daemon, Lab, wait_until
from clearway.lab.namespace import Namespace
from clearway.linux import neighbours, rtnetlink
from clearway.linux.namespace import find, identity, inside
from clearway.linux.netlink import NETLINK_ROUTE, Conversation, Listener, OverrunError
from clearway.linux.watch import Watch
from tests.net.devices import ifindex_of


@pytest.fixture(scope="module", params=["tc"])
def hook(request: pytest.FixtureRequest) -> str:
    """The mirror is the same on both hooks."""
    return str(request.param)


# ---- two hosts and a cable, without clearway ----


@pytest.fixture(scope="module")
def cable(lab_names: Iterator[str]) -> Iterator[tuple[Namespace, Namespace]]:
    """10.77.0.1 and 10.77.0.2, fd77::1 and fd77::2, both on `cable`."""
    name = next(lab_names)
    near, far = Namespace(f"cw-{name}-near"), Namespace(f"cw-{name}-far")
    with ExitStack() as stack:
        for namespace in (near, far):
            namespace.create()
            stack.callback(namespace.delete)
        near.ip("link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", far.name)
        for number, namespace in enumerate((near, far), start=1):
            namespace.ip_batch(
                [
                    f"address add 10.77.0.{number}/24 dev cable",
                    f"address add fd77::{number}/64 dev cable nodad",
                    "link set cable up",
                ]
            )
        near.ip("route", "add", "10.78.0.0/16", "via", "10.77.0.2")
        yield near, far


@pytest.fixture
def watch(cable: tuple[Namespace, Namespace]) -> Iterator[Watch]:
    with cable[0].entered():
        watching = Watch()
    yield watching
    watching.close()


def noticed(watch: Watch, what: str) -> bool:
    """Is there, within a moment, a sentence that contains `what`?"""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if any(what in sentence for sentence in watch.read()):
            return True
        time.sleep(0.02)
    return False


def quiet(watch: Watch, seconds: float = 0.5) -> list[str]:
    time.sleep(seconds)
    return watch.read()


def test_changes_of_links_and_addresses_are_noticed(cable: tuple[Namespace, Namespace], watch: Watch) -> None:
    near = cable[0]
    near.ip("link", "add", "extra", "type", "veth", "peer", "name", "extra2")
    assert noticed(watch, "extra is new")
    near.ip("address", "add", "10.79.0.1/24", "dev", "extra")
    assert noticed(watch, "10.79.0.1 is new")
    near.ip("link", "set", "extra", "address", "02:00:00:00:00:55")
    assert noticed(watch, "extra has link address 02:00:00:00:00:55")
    near.ip("link", "delete", "extra")
    assert noticed(watch, "extra is gone")
    assert "extra" not in watch.picture.ifindexes()
    assert not any(str(address.ip) == "10.79.0.1" for address in watch.picture.addresses.values())


def test_neighbours_are_noticed_but_not_their_ageing(
    cable: tuple[Namespace, Namespace], watch: Watch
) -> None:
    near = cable[0]
    near.ip(
        "neighbour", "replace", "10.77.0.9", "dev", "cable", "lladdr", "02:00:00:00:00:01", "nud", "reachable"
    )
    for state in ("stale", "delay", "probe", "reachable"):
        near.ip("neighbour", "change", "10.77.0.9", "dev", "cable", "nud", state)
    assert quiet(watch) == []
    near.ip("neighbour", "change", "10.77.0.9", "dev", "cable", "lladdr", "02:00:00:00:00:02")
    assert noticed(watch, "neighbour 10.77.0.9 is at 02:00:00:00:00:02")
    near.ip("neighbour", "delete", "10.77.0.9", "dev", "cable")
    assert noticed(watch, "neighbour 10.77.0.9 does not answer")


@pytest.mark.parametrize(
    ("add", "remove"),
    [
        (["route", "add", "192.0.2.0/24", "dev", "cable"], ["route", "del", "192.0.2.0/24"]),
        (["-6", "route", "add", "2001:db8::/64", "dev", "cable"], ["-6", "route", "del", "2001:db8::/64"]),
        (["rule", "add", "from", "192.0.2.1", "table", "7"], ["rule", "del", "from", "192.0.2.1"]),
    ],
    ids=["IPv4 route", "IPv6 route", "rule"],
)
def test_routes_and_rules_are_noticed(
    cable: tuple[Namespace, Namespace], watch: Watch, add: list[str], remove: list[str]
) -> None:
    watch.routes.drain()
    for change in (add, remove):
        assert not watch.routes.drain()
        cable[0].ip(*change)
        wait_until("the change is announced", watch.routes.drain, timeout=5)


def test_nftables_rules_are_noticed(cable: tuple[Namespace, Namespace], watch: Watch) -> None:
    assert not watch.nftables.drain()
    cable[0].run("nft", "add", "table", "ip", "noticed")
    wait_until("the change is announced", watch.nftables.drain, timeout=5)
    cable[0].run("nft", "delete", "table", "ip", "noticed")


def test_veth_takes_redirected_frames_once_its_peer_does_gro(
    cable: tuple[Namespace, Namespace], watch: Watch
) -> None:
    before = watch.xdp_transmit()
    if before is None:
        pytest.skip("this kernel does not tell what XDP does on a device (Linux 6.3)")
    ifindex = watch.picture.ifindexes()["cable"]
    assert before[ifindex] is False
    watch.features.drain()
    cable[1].run("ethtool", "-K", "cable", "gro", "on")
    wait_until("the change is announced", watch.features.drain, timeout=5)
    assert (watch.xdp_transmit() or {})[ifindex] is True
    cable[1].run("ethtool", "-K", "cable", "gro", "off")


def test_lost_announcements_are_made_good_by_listing_again(
    cable: tuple[Namespace, Namespace], watch: Watch
) -> None:
    near = cable[0]
    with near.entered():
        small = Listener(NETLINK_ROUTE, (rtnetlink.RTNLGRP_NEIGH,), receive_buffer=2048)
    watch.mirror.close()
    watch.mirror = small
    entries = [f"10.77.1.{host}" for host in range(1, 101)]
    near.ip_batch([f"neighbour replace {ip} dev cable lladdr 02:00:00:00:00:01" for ip in entries])
    sentences = watch.read()
    assert sentences == ["announcements were lost, so everything was listed again"]
    known = {str(hop.ip) for hop in watch.picture.neighbours}
    near.ip("neighbour", "flush", "dev", "cable", "nud", "all")
    assert set(entries) <= known


def test_overrun_is_never_silent(cable: tuple[Namespace, Namespace]) -> None:
    near = cable[0]
    with near.entered():
        small = Listener(NETLINK_ROUTE, (rtnetlink.RTNLGRP_NEIGH,), receive_buffer=2048)
    near.ip_batch(
        [f"neighbour replace 10.77.1.{n} dev cable lladdr 02:00:00:00:00:01" for n in range(1, 101)]
    )
    with pytest.raises(OverrunError):
        small.read()
    small.close()
    near.ip("neighbour", "flush", "dev", "cable", "nud", "all")


def test_next_hops_are_kept_resolved_and_released(cable: tuple[Namespace, Namespace]) -> None:
    """Neighbours of both families and a gateway; not this host itself, nor what is nowhere."""
    with cable[0].entered():
        kernel = Conversation(NETLINK_ROUTE)
    links = {link.ifindex: link for link in rtnetlink.links(kernel)}
    wanted = [ip_address(text) for text in ("10.78.0.9", "fd77::2", "10.77.0.1", "198.51.100.1")]

    def ours() -> dict[str, bytes | None]:
        table = rtnetlink.neighbours(kernel)
        return {str(n.ip): n.mac for n in table if n.managed and n.protocol == neighbours.OUR_PROTOCOL}

    kept = neighbours.keep(kernel, wanted, links)
    assert {str(hop.ip) for hop in kept.hops} == {"10.77.0.2", "fd77::2"}
    assert [sentence.partition(":")[0] for sentence in kept.unreachable] == ["198.51.100.1"]
    wait_until("both are resolved", lambda: len([mac for mac in ours().values() if mac]) == 2)
    assert neighbours.keep(kernel, wanted[1:2], links).unreachable == ()
    assert set(ours()) == {"fd77::2"}
    neighbours.release_all(kernel)
    assert ours() == {}
    kernel.close()


def test_permanent_neighbour_stays_as_it_is(cable: tuple[Namespace, Namespace]) -> None:
    near = cable[0]
    near.ip(
        "neighbour", "replace", "10.77.0.7", "dev", "cable", "lladdr", "02:00:00:00:00:07", "nud", "permanent"
    )
    before = near.ip("neighbour", "show", "10.77.0.7")
    with near.entered():
        kernel = Conversation(NETLINK_ROUTE)
    links = {link.ifindex: link for link in rtnetlink.links(kernel)}
    neighbours.keep(kernel, [ip_address("10.77.0.7")], links)
    neighbours.release_all(kernel)
    kernel.close()
    assert "PERMANENT" in before
    assert near.ip("neighbour", "show", "10.77.0.7") == before
    near.ip("neighbour", "delete", "10.77.0.7", "dev", "cable")


def test_namespace_is_found_and_visited(cable: tuple[Namespace, Namespace]) -> None:
    with cable[0].entered():
        number = identity()
    place = find(number)
    assert place is not None
    home = identity()
    with inside(place):
        assert identity() == number
    assert identity() == home
    assert find(1) is None


# ---- a daemon in a lab ----


def mirror_number(daemon: Daemon) -> int:
    return int(daemon.json("status")["mirror"])


def rows(daemon: Daemon) -> dict[int, tuple[int, str, str]]:
    """device_v1: ifindex -> device that transmits, its IPv4 and its IPv6 address."""
    with Datapath.open(daemon.instance) as there:
        keys, values = there.table("device_v1").items()
    return {
        int(key): (
            int(value["lower"]),
            str(ip_address(int(value["address4"]))),
            str(ip_address(bytes(value["address6"]))),
        )
        for key, value in zip(keys, values, strict=True)
    }


def test_data_path_knows_every_device_and_its_address(lab: Lab, daemon: Daemon) -> None:
    found = rows(daemon)
    for name in ("client1", "uplink"):
        ifindex = ifindex_of(lab, name)
        assert found[ifindex] == (ifindex, lab.node_address(name, 4), lab.node_address(name, 6))


def test_device_that_comes_and_goes_is_known_and_forgotten(lab: Lab, daemon: Daemon) -> None:
    lab.node.ip("link", "add", "extra", "type", "veth", "peer", "name", "extra2")
    lab.node.ip("address", "add", "192.0.2.1/24", "dev", "extra")
    ifindex = ifindex_of(lab, "extra")
    wait_until("it is known", lambda: rows(daemon).get(ifindex) == (ifindex, "192.0.2.1", "::"), timeout=5)
    lab.node.ip("link", "delete", "extra")
    wait_until("it is forgotten", lambda: ifindex not in rows(daemon), timeout=5)


def bumped(daemon: Daemon, change: Callable[[], object]) -> bool:
    """Does the mirror's number grow because of the change? It has to have been still before."""
    before = mirror_number(daemon)
    while True:
        time.sleep(0.6)
        now = mirror_number(daemon)
        if now == before:
            break
        before = now
    change()
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        if mirror_number(daemon) != before:
            return True
        time.sleep(0.1)
    return False


def test_flows_are_told_of_another_link_address_and_of_nothing_else(lab: Lab, daemon: Daemon) -> None:
    ip = "10.2.1.77"

    def neighbour(*change: str) -> Callable[[], object]:
        return lambda: lab.node.ip("neighbour", "replace", ip, "dev", "server1", *change)

    assert not bumped(daemon, neighbour("lladdr", "02:00:00:00:00:01", "nud", "reachable"))
    assert not bumped(daemon, neighbour("lladdr", "02:00:00:00:00:01", "nud", "stale"))
    assert bumped(daemon, neighbour("lladdr", "02:00:00:00:00:02", "nud", "reachable"))
    assert bumped(daemon, lambda: lab.node.ip("neighbour", "delete", ip, "dev", "server1"))


def test_endpoints_are_resolved_before_the_first_packet(lab: Lab, daemon: Daemon, family: int) -> None:
    shown = lab.node.ip(f"-{family}", "neighbour", "show", "proto", str(neighbours.OUR_PROTOCOL))
    for server in lab.servers:
        [entry] = [line for line in shown.splitlines() if line.startswith(f"{server.address(family)} ")]
        assert "managed" in entry
        assert "lladdr" in entry
