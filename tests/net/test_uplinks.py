# SPDX-License-Identifier: Apache-2.0
"""`clearway up` on a router with two uplinks, of which connections have one by their mark."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from clearway.lab.run import wait_until
from tests.net.gateway import LENGTHS, Gateway, made
from tests.net.test_transparent import ENOUGH, PORT, explained, is_carried, serve, talk

RULES = f"""
table inet uplinks {{
  chain marking {{
    type filter hook prerouting priority -150;
    iifname lan ct state new tcp dport {PORT} ct mark set 0x2
    meta mark set ct mark
  }}
  chain forwarding {{
    type filter hook forward priority 0; policy drop;
    ct state established,related counter accept
    iifname lan counter accept
  }}
}}
"""
NETWORKS = {4: ("10.81.0.{}", "10.82.0.{}", "10.83.0.{}"), 6: ("fd81::{}", "fd82::{}", "fd83::{}")}
SERVER = {4: "198.18.0.1", 6: "2001:db8:18::1"}
WHOLE = {4: 32, 6: 128}
BY_MARK = ("fwmark", "0x2", "lookup", "102")


@pytest.fixture(scope="module")
def gateway(
    lab_names: Iterator[str], hook: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    with made(f"cw-{next(lab_names)}", tmp_path_factory.mktemp("state")) as gateway:
        _wire(gateway)
        gateway.router.run("nft", "-f", "-", stdin=RULES)
        threading.Thread(target=serve, args=(gateway.server,), daemon=True).start()
        gateway.clearway("up", "lan", "wan0", "wan1", "--hook", hook)
        gateway.proved(4)
        yield gateway


def _wire(gateway: Gateway) -> None:
    router, server = gateway.router, gateway.server
    links = (("lan", gateway.client, "eth0"), ("wan0", server, "eth0"), ("wan1", server, "eth1"))
    for side, (device, far, peer) in enumerate(links):
        gateway.link(device, far, peer, NETWORKS, side)
    server.ip("link", "set", "lo", "up")
    gateway.default_route(gateway.client, NETWORKS, 0)
    for family, (lan, first, second) in NETWORKS.items():
        server.ip("addr", "add", f"{SERVER[family]}/{WHOLE[family]}", "dev", "lo")
        server.ip("route", "add", f"{lan.format(0)}/{LENGTHS[family]}", "via", second.format(1))
        router.ip("route", "add", "default", "via", first.format(2), "dev", "wan0")
        more = ("dev", "wan1", "table", "102")
        router.ip(f"-{family}", "route", "add", "default", "via", second.format(2), *more)
        inside = f"{lan.format(0)}/{LENGTHS[family]}"
        router.ip(f"-{family}", "route", "add", inside, "dev", "lan", "table", "102")
        router.ip(f"-{family}", "rule", "add", *BY_MARK)


@pytest.fixture
def connection(gateway: Gateway, family: int) -> Iterator[socket.socket]:
    """One that is carried."""
    with gateway.client.connect((SERVER[family], PORT)) as opened:
        wait_until("the connection is carried", lambda: is_carried(gateway, opened))
        yield opened


def sent(gateway: Gateway) -> list[int]:
    """Packets that have left by each uplink."""
    links = (
        json.loads(gateway.router.ip("-j", "-s", "link", "show", "dev", one)) for one in ("wan0", "wan1")
    )
    return [link["stats64"]["tx"]["packets"] for [link] in links]


def taken(gateway: Gateway, connection: socket.socket) -> list[bool]:
    """Which of the uplinks its packets leave by."""
    before = sent(gateway)
    talk(connection)
    return [now - was >= ENOUGH for now, was in zip(sent(gateway), before, strict=True)]


def test_connection_keeps_its_uplink_while_it_is_carried(gateway: Gateway, connection: socket.socket) -> None:
    assert taken(gateway, connection) == [False, True]
    assert is_carried(gateway, connection)
    assert taken(gateway, connection) == [False, True]


def test_explanation_names_the_uplink(gateway: Gateway, connection: socket.socket) -> None:
    found = explained(gateway, connection)
    there, back = found["directions"]
    assert (there["interface_in"], there["interface_out"]) == ("lan", "wan1")
    assert (back["interface_in"], back["interface_out"]) == ("wan1", "lan")
    assert (found["carried"], found["can_be"]) == (True, True)


def test_connection_follows_the_rules_of_routing(
    gateway: Gateway, family: int, connection: socket.socket
) -> None:
    gateway.router.ip(f"-{family}", "rule", "del", *BY_MARK)
    try:
        assert taken(gateway, connection) == [True, False]
        wait_until("it is carried again", lambda: is_carried(gateway, connection))
        assert taken(gateway, connection) == [True, False]
    finally:
        gateway.router.ip(f"-{family}", "rule", "add", *BY_MARK)
    assert taken(gateway, connection) == [False, True]


def test_connection_follows_its_mark(gateway: Gateway, family: int, connection: socket.socket) -> None:
    port = str(connection.getsockname()[1])
    words = ("-U", "-f", f"ipv{family}", "-p", "tcp", "--sport", port, "--mark", "0")
    gateway.router.run("conntrack", *words)
    wait_until("it has gone to the other one", lambda: taken(gateway, connection) == [True, False])
    wait_until("it is carried again", lambda: is_carried(gateway, connection))
    assert taken(gateway, connection) == [True, False]
