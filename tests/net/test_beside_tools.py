# SPDX-License-Identifier: Apache-2.0
"""Tools of every day on a router taken by `clearway up`: what they show, and what they do to it."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from clearway.lab.run import stop, wait_until
from tests.net.gateway import Gateway, made
from tests.net.streams import Pump, Stream

NETWORKS = {4: ("10.71.0.{}", "10.72.0.{}"), 6: ("fd71::{}", "fd72::{}")}
IPTABLES = {4: "iptables-nft", 6: "ip6tables-nft"}
ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
RULES = ("-P FORWARD DROP", f"-A FORWARD {ESTABLISHED}", "-A FORWARD -i lan -j ACCEPT")
RATE = 4_000_000  # bits a second of a queue that shapes
BULK_S = 0.6


@pytest.fixture(scope="module")
def gateway(
    lab_names: Iterator[str], hook: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """It routes, and translates nothing."""
    with made(f"cw-{next(lab_names)}", tmp_path_factory.mktemp("state")) as gateway:
        gateway.router.sysctl(
            {"ipv6/conf/all/keep_addr_on_down": 1, "ipv6/conf/default/keep_addr_on_down": 1}
        )
        gateway.link("lan", gateway.client, "eth0", NETWORKS, 0)
        gateway.default_route(gateway.client, NETWORKS, 0)
        plug_in_wan(gateway)
        for command in IPTABLES.values():
            for rule in RULES:
                gateway.router.run(command, *rule.split())
        gateway.clearway("up", "lan", "wan", "--hook", hook)
        yield gateway


def plug_in_wan(gateway: Gateway) -> None:
    gateway.link("wan", gateway.server, "eth0", NETWORKS, 1)
    gateway.default_route(gateway.server, NETWORKS, 1)


def server(family: int) -> str:
    return NETWORKS[family][1].format(2)


@pytest.fixture(scope="module")
def streams(gateway: Gateway) -> Iterator[dict[int, Stream]]:
    """A connection of each family, which lasts."""
    with Pump() as pump:
        ends = {family: (server(family), 5001) for family in NETWORKS}
        yield {
            family: pump.add(
                [Stream(f"TCP {family}", socket.SOCK_STREAM, gateway.client, to, gateway.server, to)]
            )[0]
            for family, to in ends.items()
        }


@pytest.fixture
def both(gateway: Gateway, streams: dict[int, Stream]) -> list[Stream]:
    """The connections, which are carried."""
    gateway.carried(*streams.values())
    return list(streams.values())


@pytest.fixture
def tcp(gateway: Gateway, streams: dict[int, Stream], family: int) -> Stream:
    """That of the family, which is carried."""
    gateway.carried(streams[family])
    return streams[family]


# ---- what they show ----

TRACERS = (
    ("traceroute", "-n", "-q1", "-w1"),
    ("tracepath", "-n"),
    ("mtr", "-n", "--report", "-c1", "-i0.1", "-G0.5"),
)


def test_hops_are_shown(gateway: Gateway, tcp: Stream, family: int) -> None:
    for tool in TRACERS:
        said = gateway.client.run(*tool, server(family)).stdout
        hops = re.findall(r"^ *(\d+)[:.]?(?:\|--)? +(\S+)", said, re.MULTILINE)
        assert ("1", NETWORKS[family][0].format(1)) in hops
        assert ("2", server(family)) in hops


def test_ping_and_ss_say_what_they_said(gateway: Gateway, tcp: Stream, family: int) -> None:
    assert "5 received" in gateway.client.run("ping", "-c5", "-i0.02", server(family)).stdout
    assert str(tcp.port) not in gateway.router.run("ss", "-tn").stdout
    assert re.search(rf"ESTAB .*:{tcp.port}\b", gateway.client.run("ss", "-tn").stdout)


def test_iptables_shows_linux_part_and_clearway_the_sum(gateway: Gateway, tcp: Stream, family: int) -> None:
    chain = f"ip{'' if family == 4 else '6'}"

    def listed() -> int:
        said = gateway.router.run(IPTABLES[family], "-L", "FORWARD", "-v", "-x", "-n").stdout
        return int(re.findall(r"^ *(\d+) +\d+ ACCEPT .*ctstate", said, re.MULTILINE)[0])

    def summed() -> dict[str, Any]:
        rules = gateway.json("get", "rules")["linux"]
        [rule] = [one for one in rules if one["family"] == chain and "RELATED,ESTABLISHED" in one["rule"]]
        return dict(rule)

    before, sum_before = listed(), summed()
    wait_until("it is carried on", lambda: summed()["packets"] > sum_before["packets"] + 100)
    then = summed()
    assert listed() - before < 20  # who asks whether the neighbour is there is told to Linux
    assert then["packets"] - then["carried_packets"] <= listed()


def test_devices_and_their_queues_count(gateway: Gateway, both: list[Stream], hook: str) -> None:
    """A queue counts what TC sends; XDP's frames pass it by, as docs/transparent.md says."""
    router = gateway.router
    router.run("tc", "qdisc", "add", "dev", "wan", "root", "pfifo")

    def link() -> int:
        return int(router.run("cat", "/proc/thread-self/net/dev").stdout.split("wan:")[1].split()[9])

    def queue() -> int:
        said = router.run("tc", "-s", "qdisc", "show", "dev", "wan", "root").stdout
        return int(re.findall(r"bytes (\d+) pkt", said)[0])

    try:
        gateway.carried(*both)
        of_link, of_queue = link(), queue()
        time.sleep(0.4)
        assert link() - of_link >= 50
        assert (queue() - of_queue >= 50) == (hook == "tc")
    finally:
        router.run("tc", "qdisc", "delete", "dev", "wan", "root")


def test_conntrack_tells_of_what_is_deleted_and_the_connection_goes_on(
    gateway: Gateway, tcp: Stream, family: int, tmp_path: Path
) -> None:
    """Linux picks it up again in its middle, and so does clearway."""
    told = tmp_path / "told"
    of_it = ("-p", "tcp", "-f", f"ipv{family}")
    listening = gateway.router.spawn("conntrack", "-E", "-o", "timestamp", *of_it, output=told)
    try:
        time.sleep(0.3)
        said = gateway.router.run("conntrack", "-D", *of_it, "--sport", str(tcp.port))
        assert f"sport={tcp.port}" in said.stdout
        wait_until("its end is told", lambda: re.search(rf"DESTROY.*sport={tcp.port} ", told.read_text()))
        wait_until("it is known anew", lambda: re.search(rf"NEW.*sport={tcp.port} ", told.read_text()))
    finally:
        stop(listening)
    gateway.carried(tcp)
    assert re.search(rf"ESTABLISHED .*sport={tcp.port} .*\[ASSURED\]", gateway.conntrack(family))


def test_nft_monitor_tells_of_rules_and_of_nothing_else(
    gateway: Gateway, both: list[Stream], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    listening = gateway.router.spawn("nft", "monitor", output=told)
    try:
        time.sleep(0.3)
        gateway.router.run("nft", "add", "table", "inet", "mine")
        gateway.router.run("nft", "delete", "table", "inet", "mine")
        gateway.carried(*both)
    finally:
        stop(listening)
    lines = [
        line for line in told.read_text().splitlines() if line and not line.startswith("# new generation")
    ]
    assert lines == ["add table inet mine", "delete table inet mine"]


# ---- what they do ----


def rate(gateway: Gateway, family: int) -> float:
    """Bits a second that a connection to the server gets through."""
    to = (server(family), 5002)
    piece, arrived = bytes(16384), 0
    with (
        gateway.server.listen(to, timeout=5) as listening,
        gateway.client.connect(to) as here,
        listening.accept()[0] as there,
    ):
        here.setblocking(False)
        there.setblocking(False)
        begin = time.monotonic()
        while time.monotonic() < begin + BULK_S:
            with suppress(BlockingIOError):
                here.send(piece)
            with suppress(BlockingIOError):
                arrived += len(there.recv(1 << 20))
            time.sleep(0.0002)
        return arrived / (time.monotonic() - begin) * 8


def test_queue_that_shapes_shapes_what_is_carried(gateway: Gateway, both: list[Stream], hook: str) -> None:
    shaping = ("root", "tbf", "rate", str(RATE), "burst", "10kb", "latency", "50ms")
    said = "tc shapes or filters what leaves"

    def why() -> str:
        return str(gateway.interfaces()["wan"]["reason"])

    assert rate(gateway, 4) > 4 * RATE
    gateway.router.run("tc", "qdisc", "add", "dev", "wan", *shaping)
    try:
        wait_until("TC sends what leaves", lambda: (said in why()) == (hook == "xdp"), timeout=2)
        for family in NETWORKS:
            before = gateway.forwarded()
            assert RATE / 2 < rate(gateway, family) < RATE * 1.1
            assert gateway.forwarded() - before > RATE / 2 * BULK_S / 8 / 1500
        gateway.carried(*both)
    finally:
        gateway.router.run("tc", "qdisc", "delete", "dev", "wan", "root")
    wait_until("XDP sends again", lambda: said not in why(), timeout=2)
    gateway.carried(*both)


def test_interface_that_is_made_again_is_taken_again(gateway: Gateway, both: list[Stream], hook: str) -> None:
    gateway.router.ip("link", "delete", "wan")
    wait_until("it is gone", lambda: gateway.interfaces()["wan"]["state"] != "attached")
    plug_in_wan(gateway)
    wait_until("it is attached", lambda: gateway.interfaces()["wan"]["state"] == "attached")
    assert gateway.interfaces()["wan"]["hook"] == hook
    gateway.carried(*both)


def test_interface_of_another_name_is_another(gateway: Gateway, both: list[Stream]) -> None:
    """Rules and configuration name it `lan`: by another name it lets no new connections in."""
    gateway.router.ip("link", "set", "lan", "name", "inner")
    try:
        wait_until("it is gone", lambda: gateway.interfaces()["lan"]["state"] != "attached")
        heard = [len(one.back.arrived) for one in both]
        wait_until(
            "Linux carries them",
            lambda: all(len(one.back.arrived) > was + 50 for one, was in zip(both, heard, strict=True)),
        )
        for family in NETWORKS:
            with pytest.raises(TimeoutError):
                gateway.client.connect((server(family), 5003), timeout=0.3)
    finally:
        gateway.router.ip("link", "set", "inner", "name", "lan")
    gateway.carried(*both)
