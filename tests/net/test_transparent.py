# SPDX-License-Identifier: Apache-2.0
"""`clearway up` on a NAT gateway that somebody else has set up: faster, and otherwise nobody can tell."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from clearway.lab.namespace import Namespace
from clearway.lab.run import stop, wait_until
from tests.net.gateway import Gateway, made

PORT = 5001
ENOUGH = 50  # exchanges that are certainly carried, once a connection is
LENIENT = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"
RULES = """
table inet gateway {
  chain forwarding {
    type filter hook forward priority 0; policy drop;
    ct state established,related counter accept
    iifname lan counter accept
  }
  chain leaving {
    type nat hook postrouting priority 100;
    oifname wan masquerade
  }
}
"""
NETWORKS = {4: ("10.71.0.{}", "10.72.0.{}"), 6: ("fd71::{}", "fd72::{}")}


@pytest.fixture(scope="module")
def gateway(
    lab_names: Iterator[str], hook: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """Set up and taken by `clearway up`."""
    with made(f"cw-{next(lab_names)}", tmp_path_factory.mktemp("state")) as gateway:
        for side, (device, far) in enumerate((("lan", gateway.client), ("wan", gateway.server))):
            gateway.link(device, far, "eth0", NETWORKS, side)
            gateway.default_route(far, NETWORKS, side)
        gateway.router.run("nft", "-f", "-", stdin=RULES)
        threading.Thread(target=serve, args=(gateway.server,), daemon=True).start()
        gateway.clearway("up", "lan", "wan", "--hook", hook)
        gateway.proved(3)
        yield gateway


def serve(server: Namespace) -> None:
    """Says to each client what it says, until the namespace is gone."""
    listening = server.listen(("::", PORT), timeout=600)
    with suppress(OSError):
        while True:
            accepted, _address = listening.accept()
            threading.Thread(target=_echo, args=(accepted,), daemon=True).start()


def _echo(accepted: socket.socket) -> None:
    with suppress(OSError), accepted:
        while data := accepted.recv(65536):
            accepted.sendall(data)


def talk(connection: socket.socket, exchanges: int = ENOUGH) -> None:
    for number in range(exchanges):
        said = f"{number:08}".encode()
        connection.sendall(said)
        assert connection.recv(8, socket.MSG_WAITALL) == said


@pytest.fixture
def connection(gateway: Gateway, family: int) -> Iterator[socket.socket]:
    """One that is carried."""
    with gateway.client.connect((NETWORKS[family][1].format(2), PORT)) as opened:
        wait_until("the connection is carried", lambda: is_carried(gateway, opened))
        yield opened


def is_carried(gateway: Gateway, opened: socket.socket) -> bool:
    before = gateway.forwarded()
    talk(opened)
    return gateway.forwarded() >= before + 2 * ENOUGH


def explained(gateway: Gateway, connection: socket.socket) -> Any:
    ends = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port, *_ in _ends(connection)]
    return gateway.json("explain", "flow", *ends, "tcp")


def _ends(connection: socket.socket) -> list[tuple[str, int]]:
    return [connection.getsockname()[:2], connection.getpeername()[:2]]


def test_connection_is_carried_and_linux_holds_it(
    gateway: Gateway, family: int, connection: socket.socket
) -> None:
    port = connection.getsockname()[1]
    assert re.search(rf"ESTABLISHED .*sport={port} .*\[ASSURED\]", gateway.conntrack(family))
    flows = gateway.json("get", "flows", "--owner", "linux")["flows"]
    [flow] = [one for one in flows if one["client_port"] == port]
    assert flow["source_out"] == NETWORKS[family][1].format(1)  # masqueraded, as Linux does it
    found = explained(gateway, connection)
    assert (found["owner"], found["carried"], found["can_be"]) == ("linux", True, True)


def test_tcpdump_sees_what_is_carried(
    gateway: Gateway, hook: str, connection: socket.socket, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    port = connection.getsockname()[1]
    dump = gateway.router.spawn(
        "tcpdump", "-n", "-l", "-i", "lan", "-c", "40", f"tcp port {port}", output=seen
    )
    try:
        wait_until("it is noticed", lambda: "tcpdump" in " ".join(gateway.json("status")["listened"]))
        [listened] = gateway.json("status")["listened"]
        assert listened.endswith(", by TC instead of XDP") == (hook == "xdp")
        talk(connection)
        assert dump.wait(10) == 0
    finally:
        stop(dump)
    assert len(re.findall(rf"\.{port} > ", seen.read_text())) >= 10
    assert len(re.findall(rf" > \S+\.{port}: ", seen.read_text())) >= 10
    wait_until("nobody listens", lambda: not gateway.json("status")["listened"])
    assert is_carried(gateway, connection)


QUICK = {"base_reachable_time_ms": 3000, "delay_first_probe_time": 1, "retrans_time_ms": 100}
"""When Linux asks a neighbour again. Who is found within the delay after it was used is asked for ever."""


def test_neighbour_that_moves_without_a_word_is_found(
    gateway: Gateway, family: int, connection: socket.socket
) -> None:
    """Linux would find it, because it asks those that it sends to."""
    near, far = NETWORKS[family][1].format(1), NETWORKS[family][1].format(2)
    gateway.router.sysctl({f"ipv{family}/neigh/wan/{name}": value for name, value in QUICK.items()})
    gateway.router.ip("neigh", "flush", "dev", "wan")  # which holds for who is found from now on
    gateway.client.sysctl({"ipv4/tcp_rto_max_ms": 1000})
    assert is_carried(gateway, connection) or is_carried(gateway, connection)
    # Until then Linux asks because of what went by it before.
    wait_until(
        "Linux has not used it for a while", lambda: "STALE" in gateway.router.ip("neigh", "show", far)
    )
    before, router = (_link_address(*end) for end in ((gateway.server, "eth0"), (gateway.router, "wan")))
    after = f"{before[:-2]}{int(before[-2:], 16) ^ 0x40:02x}"
    moves = [f"link set eth0 address {after}", f"neigh replace {near} dev eth0 lladdr {router} nud permanent"]
    gateway.server.ip_batch(moves)
    try:
        connection.settimeout(60)
        talk(connection, 1)
        assert after in gateway.router.ip("neigh", "show", far)
        wait_until("it is carried again", lambda: is_carried(gateway, connection))
    finally:
        gateway.server.ip("link", "set", "eth0", "address", before)  # its neighbours are forgotten, too


def _link_address(namespace: Namespace, device: str) -> str:
    [link] = json.loads(namespace.ip("-j", "link", "show", device))
    return str(link["address"])


def test_what_only_linux_can_follow_stays_there(gateway: Gateway, connection: socket.socket) -> None:
    rule = ("tcp", "dport", str(PORT), "limit", "rate", "1000000/second", "accept")
    gateway.router.run("nft", "insert", "rule", "inet", "gateway", "forwarding", *rule)
    try:
        gateway.proved(4)
        before = gateway.forwarded()
        talk(connection)
        found = explained(gateway, connection)
        assert (found["carried"], found["can_be"]) == (False, False)
        there, back = found["directions"]
        assert "limit rate" in there["rule"]
        assert (there["carried"], back["kept"]) == (False, False)
        [limit] = [one for one in gateway.json("explain", "rules")["rules"] if "limit" in one["rule"]]
        assert (limit["kind"], limit["keeps"]) == ("opaque", True)
        # the answers, which the rule does not ask for, may go on
        assert gateway.forwarded() - before <= ENOUGH
    finally:
        first = gateway.router.run("nft", "-j", "list", "chain", "inet", "gateway", "forwarding").stdout
        rules = [one["rule"]["handle"] for one in json.loads(first)["nftables"] if "rule" in one]
        gateway.router.run("nft", "delete", "rule", "inet", "gateway", "forwarding", "handle", str(rules[0]))
    gateway.proved(3)
    wait_until("it is carried again", lambda: is_carried(gateway, connection))


def test_interface_that_is_not_taken_is_named(
    gateway: Gateway, hook: str, family: int, connection: socket.socket
) -> None:
    gateway.clearway("apply", "-", stdin=taking(hook, "lan"))
    try:
        talk(connection)
        found = explained(gateway, connection)
        assert (found["carried"], found["can_be"]) == (False, False)
        assert [one["kept"] for one in found["directions"]] == [False, True]
        assert found["why"] == "it comes in by wan, which clearway has not taken: `clearway up wan`"
    finally:
        gateway.clearway("apply", "-", stdin=taking(hook, "lan", "wan"))
    wait_until("it is carried again", lambda: is_carried(gateway, connection))


def test_forwarding_that_is_off_is_told(gateway: Gateway, family: int, connection: socket.socket) -> None:
    path = "ipv4/ip_forward" if family == 4 else "ipv6/conf/all/forwarding"
    setting = f"net.{path.replace('/', '.')}"
    gateway.router.sysctl({path: 0})
    try:
        found = explained(gateway, connection)
        assert (found["carried"], found["can_be"]) == (False, False)
        assert (
            found["why"] == f"Linux does not forward IPv{family} that comes in by lan: sysctl -w {setting}=1"
        )
        [warning] = gateway.json("status")["warnings"]
        assert warning == f"interfaces: Linux forwards no IPv{family} between them: sysctl -w {setting}=1"
    finally:
        gateway.router.sysctl({path: 1})
    assert gateway.json("status")["warnings"] == []


def taking(hook: str, *names: str) -> str:
    return json.dumps({"interfaces": [{"name": name, "hook": hook} for name in names]})


def test_reverse_path_filter_is_followed(gateway: Gateway, family: int, connection: socket.socket) -> None:
    """And has its say as soon as routes change."""

    def dropped() -> int:
        listed = gateway.router.run("nft", "list", "table", "inet", "early").stdout
        return int(re.findall(r"packets (\d+)", listed)[0])

    early = (
        "table inet early { chain c { type filter hook prerouting priority -290;"
        " fib saddr . iif oif missing counter drop;\n}\n}\n"
    )
    gateway.router.run("nft", "-f", "-", stdin=early)
    client = f"{NETWORKS[family][0].format(2)}/{128 if family == 6 else 32}"
    try:
        gateway.proved(4)
        wait_until("it is carried again", lambda: is_carried(gateway, connection))
        assert dropped() == 0
        gateway.router.ip("route", "add", client, "dev", "wan")
        connection.sendall(b"x" * 8)
        wait_until("the rule drops it", lambda: dropped() > 0)
        gateway.router.ip("route", "del", client, "dev", "wan")
        assert connection.recv(8, socket.MSG_WAITALL) == b"x" * 8  # sent again
    finally:
        gateway.router.run("nft", "delete", "table", "inet", "early")
    gateway.proved(3)


def test_dscp_and_ttl_are_set_as_rules_say(gateway: Gateway, family: int, connection: socket.socket) -> None:
    word, hops = ("ip", "ttl") if family == 4 else ("ip6", "hoplimit")
    changing = f"iifname lan {word} dscp set ef {word} {hops} set 33;"
    seen = f"{word} dscp ef {word} {hops} 33 counter;"

    def arrived() -> list[int]:
        listed = gateway.server.run("nft", "list", "table", "inet", "seen").stdout
        return [int(count) for count in re.findall(r"packets (\d+)", listed)]

    gateway.router.run("nft", "-f", "-", stdin=_table("changing", "forward", changing))
    try:
        gateway.proved(4)
        wait_until("it is carried again", lambda: is_carried(gateway, connection))
        rules = "\n".join(f"tcp dport {PORT} {rule}" for rule in (seen, "counter;"))
        gateway.server.run("nft", "-f", "-", stdin=_table("seen", "input", rules))
        before = gateway.forwarded()
        talk(connection)
        assert gateway.forwarded() - before >= 2 * ENOUGH
        changed, all_of_them = arrived()
        assert changed == all_of_them >= ENOUGH
    finally:
        gateway.server.run("nft", "flush", "ruleset")
        gateway.router.run("nft", "delete", "table", "inet", "changing")
    gateway.proved(3)


def test_what_policies_of_ipsec_are_about_stays_in_linux(
    gateway: Gateway, family: int, connection: socket.socket
) -> None:
    """And nothing else does."""
    server = f"{NETWORKS[family][1].format(2)}/{128 if family == 6 else 32}"
    others = ("2001:db8:77::/64", "2001:db8:78::/64") if family == 6 else ("192.0.2.0/25", "192.0.2.128/25")
    ends = {"others": ("src", others[0], "dst", others[1]), "ours": ("dst", server, "proto", "tcp")}
    gateway.router.ip("xfrm", "policy", "add", *ends["others"], "dir", "out")
    try:
        wait_until("it is carried again", lambda: is_carried(gateway, connection))
        gateway.router.ip("xfrm", "policy", "add", *ends["ours"], "dir", "out")
        try:
            before = gateway.forwarded()
            talk(connection)
            wait_until("it is known", lambda: "IPsec" in explained(gateway, connection)["why"])
            talk(connection)
            assert (
                gateway.forwarded() - before <= 2 * ENOUGH
            )  # the answers, which no policy is about, may go on
        finally:
            gateway.router.ip("xfrm", "policy", "delete", *ends["ours"], "dir", "out")
        wait_until("it is carried again", lambda: is_carried(gateway, connection))
    finally:
        gateway.router.ip("xfrm", "policy", "delete", *ends["others"], "dir", "out")


def test_rules_that_nft_cannot_list_keep_everything_in_linux(
    gateway: Gateway, connection: socket.socket
) -> None:
    """nft 1.0.6 ends itself where an interface name is not UTF-8, and nobody else with it."""
    chain = 'chain c { type filter hook forward priority 9; iifname "\\377" drop; }'
    gateway.router.run("sh", "-c", f"printf '%b' 'table ip unlisted {{\\n{chain}\\n}}\\n' | nft -f -")
    try:
        wait_until("it is known", lambda: "nft was ended by SIGABRT" in explained(gateway, connection)["why"])
        before = gateway.forwarded()
        talk(connection)
        assert gateway.forwarded() == before
    finally:
        gateway.router.run("nft", "delete", "table", "ip", "unlisted")
    wait_until("it is carried again", lambda: is_carried(gateway, connection))


def _table(name: str, hook: str, rules: str) -> str:
    return f"table inet {name} {{\nchain c {{\ntype filter hook {hook} priority 0;\n{rules}\n}}\n}}\n"


def test_rules_count_what_was_carried_around_them(gateway: Gateway, connection: socket.socket) -> None:
    def counted() -> int:
        rules = gateway.json("get", "rules")["linux"]
        [one] = [rule for rule in rules if "established" in rule["rule"]]
        return int(one["packets"])

    before = counted()
    talk(connection)
    assert counted() - before >= 2 * ENOUGH


def test_linux_keeps_a_reset_connection_for_minutes_at_most(
    gateway: Gateway, family: int, connection: socket.socket
) -> None:
    port = connection.getsockname()[1]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()

    def left() -> int:
        found = re.search(rf"tcp +6 (\d+) .*sport={port} ", gateway.conntrack(family))
        return int(found[1]) if found else 0

    wait_until("Linux is asked to let it go", lambda: left() <= 300)


def test_closed_connection_is_closed_in_linux(
    gateway: Gateway, family: int, connection: socket.socket
) -> None:
    port = connection.getsockname()[1]
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(1) == b""
    connection.close()
    wait_until(
        "it is in TIME_WAIT", lambda: re.search(rf"TIME_WAIT .*sport={port} ", gateway.conntrack(family))
    )


def test_connections_go_on_when_clearway_is_gone(
    gateway: Gateway, hook: str, connection: socket.socket
) -> None:
    assert gateway.router.read(LENIENT) == "1\n"
    gateway.clearway("down")
    try:
        talk(connection)
        assert gateway.router.read(LENIENT) == "0\n"
        assert {one.name for one in gateway.directory.iterdir()} <= {"daemon.log", "daemon.log.1"}
        said = (gateway.directory / "daemon.log").read_text()
    finally:
        gateway.clearway("up", "lan", "wan", "--hook", hook)
        gateway.proved(3)
    assert (gateway.directory / "daemon.log.1").read_text() == said


def test_two_commands_at_once_take_what_each_has_named(gateway: Gateway, hook: str) -> None:
    gateway.clearway("down")
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda name: gateway.clearway("up", name, "--hook", hook), ("lan", "wan")))
    assert sum("a daemon is running" in one for one in said) == 1
    gateway.proved(3)
    assert {name: one["state"] for name, one in gateway.interfaces().items()} == {
        "lan": "attached",
        "wan": "attached",
    }
