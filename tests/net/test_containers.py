# SPDX-License-Identifier: Apache-2.0
"""Containers behind a bridge with docker's rules, on a host that `clearway up` has made faster."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from clearway.lab.namespace import Namespace
from tests.corpus.rulesets import read
from tests.net.gateway import Gateway, made
from tests.net.streams import Pump, Stream
from tests.net.traffic import pattern, transfer

BRIDGE = "br-9c1f04d7a3be"  # of tests/corpus/docker*
WEB, OTHER = "vethweb", "vethother"
PORTS = (WEB, OTHER)
INSIDE = {4: "172.18.0.{}", 6: "fd00:18::{}"}
OUTSIDE = {4: "203.0.113.{}", 6: "2001:db8:ffff::{}"}
LENGTHS = {4: (16, 24), 6: (64, 64)}
HOST, SERVER, CONTAINERS = 7, 1, {WEB: 2, OTHER: 3}
LOW = "02:00:00:00:00:01"  # a bridge takes the lowest link address of its ports
COUNTING = f"""
table inet counting {{
  chain arriving {{
    type filter hook prerouting priority -150
    iifname {BRIDGE} udp dport 5001 counter
    iifname eth0 udp sport 5001 counter
  }}
  chain passing {{
    type filter hook forward priority -10
    iifname {BRIDGE} udp dport 5001 counter
    iifname eth0 udp sport 5001 counter
  }}
}}
"""


@dataclass(frozen=True)
class Host:
    """The router of a gateway is the host of two containers: its client, and one that serves the web."""

    gateway: Gateway
    web: Namespace
    hook: str
    said: str = ""  # by `clearway up`

    def take(self, *interfaces: str) -> None:
        """These, and no others; a bridge has no XDP."""
        taken = [{"name": one, "hook": "tc" if one == BRIDGE else self.hook} for one in interfaces]
        self.gateway.clearway("apply", "-", stdin=json.dumps({"interfaces": taken}))

    def container(self, port: str) -> Namespace:
        return self.web if port == WEB else self.gateway.client

    def plug_in(self, port: str) -> None:
        """A container's cable, with its addresses and routes."""
        router, container = self.gateway.router, self.container(port)
        self.gateway.cable(port, container, "eth0", card=False)
        if port == WEB:
            router.ip("link", "set", port, "address", LOW)
        router.ip("link", "set", port, "master", BRIDGE)
        for family in (4, 6):
            address = f"{INSIDE[family].format(CONTAINERS[port])}/{LENGTHS[family][0]}"
            container.ip("addr", "add", address, "dev", "eth0", "nodad")
            container.ip("route", "add", "default", "via", INSIDE[family].format(1))

    def leaving(self, kind: socket.SocketKind, family: int) -> Stream:
        """From a container to the outside: masqueraded."""
        server = (OUTSIDE[family].format(SERVER), 5001)
        gateway = self.gateway
        return Stream(f"{kind.name} {family} out", kind, gateway.client, server, gateway.server, server)

    def published(self, family: int, port: int = 443) -> Stream:
        """From the outside to a port that a container has published."""
        to = (OUTSIDE[family].format(HOST), port)
        web = (INSIDE[family].format(CONTAINERS[WEB]), 8000 + port)
        return Stream(f"published {family}", socket.SOCK_STREAM, self.gateway.server, to, self.web, web)

    def among(self, family: int) -> Stream:
        """From container to container: the bridge's alone."""
        web = (INSIDE[family].format(CONTAINERS[WEB]), 9000)
        return Stream(f"among {family}", socket.SOCK_STREAM, self.gateway.client, web, self.web, web)


@pytest.fixture(scope="module")
def host(lab_names: Iterator[str], hook: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    name = f"cw-{next(lab_names)}"
    web = Namespace(f"{name}-{WEB}")
    with made(name, tmp_path_factory.mktemp("state"), (web,)) as gateway:
        router, host = gateway.router, Host(gateway, web, hook)
        router.ip("link", "add", BRIDGE, "type", "bridge")
        router.ip("link", "set", BRIDGE, "up")
        for port in PORTS:
            host.plug_in(port)
        gateway.cable("eth0", gateway.server, "eth0")
        for family in (4, 6):
            inside, outside = LENGTHS[family]
            router.ip("addr", "add", f"{INSIDE[family].format(1)}/{inside}", "dev", BRIDGE, "nodad")
            for namespace, number in ((router, HOST), (gateway.server, SERVER)):
                address = f"{OUTSIDE[family].format(number)}/{outside}"
                namespace.ip("addr", "add", address, "dev", "eth0", "nodad")
        for rules in (*(text for _how, text in read("docker-nftables").texts), COUNTING):
            router.run("nft", "-f", "-", stdin=rules)
        yield replace(host, said=gateway.clearway("up", "eth0", BRIDGE, "--hook", hook))


@pytest.fixture
def taken(host: Host) -> Host:
    """As somebody who knows it takes a host of containers."""
    host.take("eth0", BRIDGE)
    return host


@pytest.fixture
def pump() -> Iterator[Pump]:
    with Pump() as pumping:
        yield pumping


def test_whatever_is_taken_containers_are_reached_as_before(host: Host, pump: Pump) -> None:
    """Also a port of the bridge beside it, whose frames the bridge may still refuse."""
    gateway = host.gateway
    streams, among = [], []
    for family in (4, 6):
        kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        streams += [*(host.leaving(kind, family) for kind in kinds), host.published(family)]
        among.append(host.among(family))
    pump.add([*streams, *among])
    for interfaces in (("eth0", BRIDGE), ("eth0", BRIDGE, *PORTS)):
        host.take(*interfaces)
        gateway.carried(*streams)
    for ports in ((), PORTS):
        host.take("eth0", *ports)
        # what comes in from outside
        gateway.carried(*(one for one in streams if one.name.endswith("out")), directions=["back"])
        gateway.carried(*(one for one in streams if one.name.startswith("published")), directions=["there"])
    assert not {one.port for one in among} & gateway.counted().keys()
    pump.fall_silent(0.3)
    assert [str(one) for one in (*streams, *among) if not one.complete] == []


def test_rules_count_once_what_the_bridge_has_had_them_count(taken: Host, pump: Pump) -> None:
    """br_netfilter has frames meet prerouting before they are the host's."""

    def counted() -> list[int]:
        rules = taken.gateway.json("get", "rules")["linux"]
        return [one["packets"] for one in rules if one["table"] == "counting" and one["kind"] == "rule"]

    before = counted()
    streams = pump.add(taken.leaving(socket.SOCK_DGRAM, family) for family in (4, 6))
    taken.gateway.carried(*streams)
    pump.fall_silent(0.3)
    assert all(one.complete for one in streams)
    out = sum(1 + one.out.sent for one in streams)  # the first says hello
    back = sum(one.back.sent for one in streams)
    assert [now - was for was, now in zip(before, counted(), strict=True)] == [out, back, out, back]


def test_segments_that_a_container_leaves_to_its_device_arrive(taken: Host, family: int) -> None:
    """64 KB each, with checksums that nobody has finished."""
    gateway, to = taken.gateway, (OUTSIDE[family].format(SERVER), 5003)
    content = pattern(20_000_000)
    with (
        gateway.server.listen(to) as listening,
        gateway.client.connect(to) as near,
        listening.accept()[0] as far,
    ):
        far.settimeout(10)
        transfer(near, far, content)
        transfer(far, near, content)
        carried = gateway.counted()[near.getsockname()[1]]
    assert all(packets > 200 for packets in carried.values())


def test_container_that_goes_away_takes_nobody_along(taken: Host, pump: Pump) -> None:
    gateway = taken.gateway
    leaving = pump.add(taken.leaving(socket.SOCK_STREAM, family) for family in (4, 6))
    published = pump.add(taken.published(family) for family in (4, 6))
    gateway.carried(*leaving, *published)
    gateway.router.ip("link", "delete", OTHER)
    gateway.carried(*published)
    for stream in leaving:
        pump.remove(stream)
    taken.plug_in(OTHER)
    again = pump.add(taken.leaving(socket.SOCK_STREAM, family) for family in (4, 6))
    gateway.carried(*again, *published)
    pump.fall_silent(0.3)
    assert all(one.complete for one in (*again, *published))


def test_port_that_the_bridge_has_locked_is_locked(taken: Host, pump: Pump) -> None:
    """Though it is taken as well, and has the link address that frames to the host go to."""
    gateway = taken.gateway
    taken.take("eth0", BRIDGE, *PORTS)
    published = pump.add(taken.published(family) for family in (4, 6))
    gateway.carried(*published)
    port = ("bridge", "link", "set", "dev", WEB)
    gateway.router.run(*port, "locked", "on", "learning", "off")
    try:
        gateway.router.ip("link", "set", WEB, "type", "bridge_slave", "fdb_flush")
        time.sleep(0.05)
        heard = [len(one.back.arrived) for one in published]
        time.sleep(0.3)
        assert [len(one.back.arrived) for one in published] == heard
    finally:
        gateway.router.run(*port, "locked", "off", "learning", "on")
    gateway.carried(*published)
    pump.fall_silent(0.3)
    assert all(one.complete for one in published)


def test_up_says_what_it_could_not_take(host: Host) -> None:
    assert "eth0: taken\n" in host.said
    refused = re.search(rf"^{BRIDGE}: not taken yet: .*use hook: auto, tc", host.said, re.MULTILINE)
    assert bool(refused) == (host.hook == "xdp")
    assert (f"{BRIDGE}: taken" in host.said) == (host.hook == "tc")


def test_docker_may_change_its_firewall_backend(taken: Host, pump: Pump) -> None:
    gateway = taken.gateway
    streams = pump.add([taken.leaving(socket.SOCK_STREAM, 4), taken.published(4)])
    gateway.carried(*streams)
    [(_how, rules)] = read("docker").texts
    gateway.router.run("iptables-nft-restore", stdin=rules)
    gateway.router.run("nft", "delete", "table", "ip", "docker-bridges")
    gateway.carried(*streams)
    new = pump.add([taken.leaving(socket.SOCK_DGRAM, 4), taken.published(4, 80)])
    gateway.carried(*streams, *new)
    assert "MASQUERADE" in gateway.router.run("iptables-nft", "-t", "nat", "-S").stdout
    pump.fall_silent(0.3)
    assert all(one.complete for one in (*streams, *new))
