# SPDX-License-Identifier: Apache-2.0
"""A routing daemon on a router taken by `clearway up`: it moves routes, and connections follow."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clearway.lab.namespace import Namespace
from clearway.lab.run import wait_until
from tests.net.gateway import LEAST, Gateway, made
from tests.net.streams import Pump, Stream

PORT = 5001
NETWORKS = {
    4: ("10.71.0.{}", "10.72.0.{}", "10.73.0.{}"),
    6: ("fd71::{}", "fd72::{}", "fd73::{}"),
}
SERVERS = {"ospf": {4: "10.99.0.1", 6: "fd99::1"}, "bgp": {4: "10.99.0.2", 6: "fd99::2"}}
"""By the protocol that tells the way to it."""
ALL_SERVERS = [address for addresses in SERVERS.values() for address in addresses.values()]
WAYS = ("wan", "aside")
LISTEN_S = 0.3
RULES = """
table inet router {
  chain forwarding {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname lan accept
  }
}
"""
COUNTING = """
table inet arriving {
  counter wan { }
  counter aside { }
  chain arriving {
    type filter hook input priority 0;
    iifname wan th dport 5001 counter name wan
    iifname aside th dport 5001 counter name aside
  }
}
"""
BIRD = """
router id {router_id};
protocol device {{ }}
protocol direct {{ ipv4; ipv6; }}
protocol kernel kernel4 {{ ipv4 {{ export where source ~ [RTS_OSPF, RTS_BGP]; }}; }}
protocol kernel kernel6 {{ ipv6 {{ export where source ~ [RTS_OSPF, RTS_BGP]; }}; }}
protocol ospf v2 ospf4 {{ ipv4; area 0 {{ {ways} {stub4} }}; }}
protocol ospf v3 ospf6 {{ ipv6; area 0 {{ {ways} {stub6} }}; }}
protocol bgp bgp4 {{ local as 65000; neighbor {peer4} as 65000; ipv4 {{ import all; export {told4}; }}; }}
protocol bgp bgp6 {{ local as 65000; neighbor {peer6} as 65000; ipv6 {{ import all; export {told6}; }}; }}
"""


@dataclass(frozen=True)
class Bird:
    """BIRD in a namespace. number: of its addresses on the cables."""

    namespace: Namespace
    directory: Path
    number: int

    def start(self, way: str) -> None:
        self._write(way)
        socket_, pid = self.directory / "control", self.directory / "pid"
        self.namespace.run("bird", "-c", str(self._file), "-s", str(socket_), "-P", str(pid))

    def lead(self, way: str) -> None:
        """Have its routes lead along the other cable, while it runs."""
        self._write(way)
        assert "Reconfigur" in self.says("configure")

    def says(self, *words: str) -> str:
        return self.namespace.run("birdc", "-s", str(self.directory / "control"), *words).stdout

    def sessions(self) -> dict[str, str]:
        """Of OSPF and BGP: since when, and in which state."""
        found = re.findall(
            r"^((?:ospf|bgp)\d) +\S+ +\S+ +(.*?) *$", self.says("show", "protocols"), re.MULTILINE
        )
        return dict(found)

    def since(self) -> dict[str, float]:
        """Seconds of the day; BIRD counts back, and may be a millisecond out."""
        clocks = {name: said.split()[1].split(":") for name, said in self.sessions().items()}
        return {name: int(h) * 3600 + int(m) * 60 + float(s) for name, (h, m, s) in clocks.items()}

    def is_ready(self) -> bool:
        neighbours = "".join(self.says("show", "ospf", "neighbors", name) for name in ("ospf4", "ospf6"))
        established = [said for said in self.sessions().values() if said.endswith("Established")]
        return neighbours.count("Full/PtP") == 2 * len(WAYS) and len(established) == 2

    @property
    def _file(self) -> Path:
        return self.directory / "bird.conf"

    def _write(self, way: str) -> None:
        server = self.number == 2
        words = {
            "router_id": f"10.0.0.{self.number}",
            "ways": " ".join(
                f'interface "{one}" {{ type ptp; hello 1; dead count 3; cost {10 if one == way else 20}; }};'
                for one in WAYS
            ),
        }
        for family in (4, 6):
            networks = NETWORKS[family]
            stub = f"stubnet {SERVERS['ospf'][family]}/{32 if family == 4 else 128};"
            words[f"stub{family}"] = stub if server else 'interface "lan" { stub; };'
            words[f"peer{family}"] = networks[1].format(3 - self.number)
            next_hop = networks[1 + WAYS.index(way)].format(2)
            told = f"net ~ [{SERVERS['bgp'][family]}/{32 if family == 4 else 128}]"
            words[f"told{family}"] = (
                f"filter {{ if {told} then {{ bgp_next_hop = {next_hop}; accept; }} reject; }}"
                if server
                else "none"
            )
        self._file.write_text(BIRD.format(**words))


@dataclass(frozen=True)
class Routers:
    gateway: Gateway
    birds: tuple[Bird, Bird]

    def lead(self, way: str) -> None:
        for bird in self.birds:
            bird.lead(way)

    def all_lead(self, way: str) -> bool:
        """Do the kernel's routes to all servers lead along this cable?"""
        routes = [
            *json.loads(self.gateway.router.ip("-j", "-4", "route", "show", "proto", "bird")),
            *json.loads(self.gateway.router.ip("-j", "-6", "route", "show", "proto", "bird")),
        ]
        return [route["dev"] for route in routes if route["dst"] in ALL_SERVERS] == [way] * len(ALL_SERVERS)

    def arrived(self) -> dict[str, int]:
        """Packets at the servers, by cable."""
        listed = json.loads(self.gateway.server.run("nft", "-j", "list", "counters").stdout)["nftables"]
        return {one["counter"]["name"]: one["counter"]["packets"] for one in listed if "counter" in one}


@pytest.fixture(scope="module")
def routers(
    lab_names: Iterator[str], hook: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Routers]:
    with made(f"cw-{next(lab_names)}", tmp_path_factory.mktemp("state")) as gateway:
        gateway.link("lan", gateway.client, "eth0", NETWORKS, 0)
        gateway.default_route(gateway.client, NETWORKS, 0)
        for side, way in enumerate(WAYS, start=1):
            gateway.link(way, gateway.server, way, NETWORKS, side)
        for addresses in SERVERS.values():
            for family, length in ((4, 32), (6, 128)):
                gateway.server.ip("addr", "add", f"{addresses[family]}/{length}", "dev", "lo", "nodad")
        for namespace, rules in ((gateway.router, RULES), (gateway.server, COUNTING)):
            namespace.run("nft", "-f", "-", stdin=rules)
            namespace.sysctl({"ipv4/conf/all/rp_filter": 0, "ipv4/conf/default/rp_filter": 0})
            for way in WAYS:
                namespace.sysctl({f"ipv4/conf/{way}/rp_filter": 0})
        birds = (
            Bird(gateway.router, tmp_path_factory.mktemp("router"), 1),
            Bird(gateway.server, tmp_path_factory.mktemp("server"), 2),
        )
        for bird in birds:
            bird.start("wan")
        gateway.clearway("up", "lan", *WAYS, "--hook", hook)
        routers = Routers(gateway, birds)
        for bird in birds:
            wait_until("sessions are established", bird.is_ready, timeout=30)
        wait_until("there are routes", lambda: routers.all_lead("wan"))
        gateway.proved(2)
        yield routers


def test_connections_follow_routes_that_the_daemon_moves(routers: Routers) -> None:
    """Of both families and protocols at once: OSPF tells a change every five seconds at most."""
    gateway = routers.gateway
    since = [bird.since() for bird in routers.birds]
    with Pump() as pump:
        streams = pump.add(
            Stream(
                f"{kind.name} to {server}",
                kind,
                gateway.client,
                (server, PORT),
                gateway.server,
                (server, PORT),
            )
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
            for server in ALL_SERVERS
        )
        gateway.carried(*streams)
        routers.lead("aside")
        wait_until("routes lead aside", lambda: routers.all_lead("aside"), every=0.01)
        moved = routers.arrived()
        time.sleep(LISTEN_S)
        then = routers.arrived()
        assert then["wan"] == moved["wan"]
        assert then["aside"] >= moved["aside"] + LEAST * len(streams)
        gateway.carried(*streams)
        pump.fall_silent(0.3)
        assert [str(one) for one in streams if not one.complete] == []
    assert all(bird.is_ready() for bird in routers.birds)
    for bird, before in zip(routers.birds, since, strict=True):
        assert bird.since() == pytest.approx(before, abs=0.5)
