# SPDX-License-Identifier: Apache-2.0
"""Services and NAT of clearway's own are no hole in a firewall that somebody has made with nftables: its
rules decide about their traffic, and what only Linux can follow Linux balances and translates.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from clearway.lab import Daemon, Lab
from clearway.lab.measure import distribution
from clearway.lab.run import wait_until
from clearway.linux import nftables
from tests.net.configuration import (
    CLIENTS,
    FULL_NAT_PORT,
    RAW_PORT,
    TCP_PORT,
    UDP_PORT,
    WEB_PORT,
    data,
)
from tests.net.counters import reasons
from tests.net.traffic import Listeners

SENT = 200
COULD_NOT_CONNECT = 7  # of curl: refused, and not timed out (28)


@contextmanager
def rules(lab: Lab, daemon: Daemon, text: str) -> Iterator[None]:
    """A table `inet admin` of somebody's for the time of the `with` block, proved before it begins."""
    lab.node.run("nft", "-f", "-", stdin=f"table inet admin {{\n{text}\n}}\n")
    try:
        proved(lab, daemon)
        yield
    finally:
        lab.node.run("nft", "delete", "table", "inet", "admin", check=False)
        proved(lab, daemon)
        lab.node.run("conntrack", "-F", check=False)


def proved(lab: Lab, daemon: Daemon) -> None:
    """Returns when the rules in force are known, and Linux has what it needs."""
    wait_until("the rules are proved", lambda: _known(lab, daemon) and _known(lab, daemon))


def _known(lab: Lab, daemon: Daemon) -> bool:
    known = daemon.json("status")["adoption"]["generation"]
    with lab.node.entered():
        return bool(known == nftables.generation())


def forward(rule: str, policy: str = "accept") -> str:
    return f"chain f {{ type filter hook forward priority 0; policy {policy};\n{rule}\n}}"


def own_table(lab: Lab, family: int) -> str:
    keyword = "ip" if family == 4 else "ip6"
    return lab.node.run("nft", "list", "table", keyword, f"clearway-{lab.instance}", check=False).stdout


def answered(lab: Lab, family: int, port: int, seconds: str = "2") -> str:
    url = f"http://{lab.vip_url(family)}:{port}/"
    return lab.client.ns.run("curl", "-sSg", "--max-time", seconds, url, check=False).stdout.split(" ")[0]


@pytest.fixture(scope="module")
def daemon(lab: Lab, hook: str) -> Iterator[Daemon]:
    with lab.daemon(json.dumps(data(lab, hook))) as running:
        yield running


def test_without_rules_linux_sees_nothing(lab: Lab, daemon: Daemon, family: int) -> None:
    assert answered(lab, family, WEB_PORT).startswith("server")
    assert own_table(lab, family) == ""
    assert lab.node.run("conntrack", "-L", "-f", f"ipv{family}", check=False).stdout == ""


def test_what_rules_accept_clearway_carries(lab: Lab, daemon: Daemon, family: int) -> None:
    accepting = (
        "ct state established,related counter accept\n"
        f"ct state new tcp dport 8080 accept\nct state new th dport {RAW_PORT} accept"
    )
    with rules(lab, daemon, forward(accepting, "drop")):
        before = reasons(daemon)
        assert set(distribution(lab.client.ns, f"http://{lab.vip_url(family)}/", 30)) == {
            "server1",
            "server2",
            "server3",
        }
        after = reasons(daemon)
        assert after["forward_new"] - before["forward_new"] >= 30
        assert lab.node.run("conntrack", "-L", "-f", f"ipv{family}", check=False).stdout == ""


@pytest.mark.parametrize("port", [WEB_PORT, FULL_NAT_PORT], ids=["nat", "full-nat"])
def test_what_rules_drop_is_dropped(lab: Lab, daemon: Daemon, family: int, port: int) -> None:
    with rules(lab, daemon, forward("tcp dport 8080 counter drop")):
        assert answered(lab, family, port) == ""
        counted = lab.node.run("nft", "list", "table", "inet", "admin").stdout
        assert int(re.findall(r"packets (\d+)", counted)[0]) > 0  # by Linux' own rule
    assert answered(lab, family, port).startswith("server")


def test_rules_see_the_addresses_that_they_would_see(lab: Lab, daemon: Daemon, family: int) -> None:
    keyword, vip = ("ip", lab.vip(4)) if family == 4 else ("ip6", lab.vip(6))
    before = (
        f"chain p {{ type filter hook prerouting priority -150; {keyword} daddr {vip} tcp dport 80 drop\n}}"
    )
    with rules(lab, daemon, before):
        assert answered(lab, family, WEB_PORT) == ""
        assert answered(lab, family, FULL_NAT_PORT).startswith("server")
    with rules(lab, daemon, forward(f"{keyword} daddr {vip} drop")):  # no packet has it there any more
        assert answered(lab, family, WEB_PORT).startswith("server")
    server = lab["server1"].address(family)
    with rules(lab, daemon, forward(f"{keyword} daddr {server} drop")):
        got = {answered(lab, family, FULL_NAT_PORT, "1") for _ in range(6)}
        assert got == {"", "server2", "server3"}


def test_refused_is_refused(lab: Lab, daemon: Daemon, family: int) -> None:
    with rules(lab, daemon, forward("tcp dport 8080 reject with tcp reset")):
        url = f"http://{lab.vip_url(family)}/"
        done = lab.client.ns.run("curl", "-sSg", "--max-time", "3", url, check=False)
        assert done.returncode == COULD_NOT_CONNECT


@pytest.mark.parametrize("port", [WEB_PORT, FULL_NAT_PORT], ids=["nat", "full-nat"])
def test_what_only_linux_can_follow_it_balances(lab: Lab, daemon: Daemon, family: int, port: int) -> None:
    opaque = forward("ct state new tcp dport 8080 limit rate over 1000/second burst 1000 packets drop")
    with rules(lab, daemon, opaque):
        answers = distribution(lab.client.ns, f"http://{lab.vip_url(family)}:{port}/", 60)
        assert set(answers) == {"server1", "server2", "server3"}
        assert answers.total() == 60
        assert f"tcp dport {port} goto service_" in own_table(lab, family)
        listed = lab.node.run("conntrack", "-L", "-f", f"ipv{family}").stdout
        assert f"dport={port}" in listed
        lab.node.run("nft", "list", "ruleset")  # also with what is clearway's in it
    wait_until("nothing of it is left", lambda: own_table(lab, family) == "", timeout=10)


def test_what_linux_balances_is_learned_back(lab: Lab, daemon: Daemon, stack: ExitStack, family: int) -> None:
    opaque = forward(f"ct state new tcp dport {RAW_PORT} limit rate over 1000/second drop")
    with rules(lab, daemon, opaque):
        listeners = stack.enter_context(Listeners(lab.servers, family, RAW_PORT))
        client = stack.enter_context(lab.client.ns.connect((lab.vip(family), TCP_PORT), timeout=20))
        server = listeners.accept()
        _talk(client, server.socket)
        before = reasons(daemon)
        _talk(client, server.socket)
        after = reasons(daemon)
        assert after["forward_adopted"] >= 1
        assert after["forward_flow"] - before["forward_flow"] > SENT
        owners = {row["owner"] for row in daemon.json("get", "flows", "--owner", "linux")["flows"]}
        assert owners == {"linux"}


def _talk(client: socket.socket, server: socket.socket, count: int = SENT) -> None:
    for number in range(count):
        said = f"{number:08}".encode()
        client.sendall(said)
        assert server.recv(8, socket.MSG_WAITALL) == said
        server.sendall(said)
        assert client.recv(8, socket.MSG_WAITALL) == said


@pytest.mark.parametrize("port", [TCP_PORT, TCP_PORT + 1], ids=["nat", "full-nat"])
def test_a_connection_goes_on_when_linux_takes_it_over(
    lab: Lab, daemon: Daemon, stack: ExitStack, family: int, port: int
) -> None:
    listeners = stack.enter_context(Listeners(lab.servers, family, RAW_PORT))
    client = stack.enter_context(lab.client.ns.connect((lab.vip(family), port), timeout=20))
    server = listeners.accept()
    _talk(client, server.socket)
    with rules(lab, daemon, forward("limit rate over 100000/second burst 1000 packets drop")):
        _talk(client, server.socket)
        listed = lab.node.run("conntrack", "-L", "-p", "tcp", "-f", f"ipv{family}").stdout
        assert f"dport={port}" in listed


def test_of_what_a_new_rule_forbids_nothing_passes(lab: Lab, daemon: Daemon, family: int) -> None:
    """Once nft has returned, not one packet of a connection that goes on all the time."""
    keyword = "ip" if family == 4 else "ip6"
    got: list[bytes] = []
    with ExitStack() as stack:
        for server in lab.servers:
            where = (server.address(family), RAW_PORT)
            receiver = stack.enter_context(server.ns.listen(where, kind=socket.SOCK_DGRAM, timeout=30))
            threading.Thread(target=_collect, args=(receiver, got), daemon=True).start()
        to = (lab.vip(family), UDP_PORT)
        sender = stack.enter_context(lab.client.ns.connect(to, kind=socket.SOCK_DGRAM))
        stop = threading.Event()
        sending = threading.Thread(target=_send, args=(sender, stop), daemon=True)
        sending.start()
        stack.callback(sending.join)
        stack.callback(stop.set)
        wait_until("packets arrive", lambda: len(got) > 100)
        rule = forward(f"{keyword} saddr {lab.client.address(family)} udp dport {RAW_PORT} drop")
        lab.node.run("nft", "-f", "-", stdin=f"table inet admin {{\n{rule}\n}}\n")
        try:
            wait_until("those on their way have arrived", lambda: _still(got))
            arrived = len(got)
            proved(lab, daemon)
            assert len(got) == arrived
        finally:
            lab.node.run("nft", "delete", "table", "inet", "admin")
        wait_until("packets arrive again", lambda: len(got) > arrived + 100)


def _still(got: list[bytes]) -> bool:
    before = len(got)
    threading.Event().wait(0.02)
    return len(got) == before


def _collect(receiver: socket.socket, got: list[bytes]) -> None:
    with suppress(OSError):
        while True:
            got.append(receiver.recv(64))


def _send(sender: socket.socket, stop: threading.Event) -> None:
    while not stop.wait(0.001):
        with suppress(OSError):
            sender.send(b"x")


def test_nat_honours_rules(lab: Lab, daemon: Daemon, stack: ExitStack, family: int) -> None:
    outside = lab.outside.address(family)
    listening = stack.enter_context(lab.outside.ns.listen((outside, RAW_PORT)))

    def seen() -> str:
        """Who the server sees; "" for nobody."""
        try:
            with lab.client.ns.connect((outside, RAW_PORT), timeout=1):
                accepted, address = listening.accept()
                accepted.close()
                return str(address[0])
        except TimeoutError:
            return ""

    gateway = lab.outside.plan.gateway(family)
    assert seen() == gateway
    assert f"dst={outside}" not in lab.node.run("conntrack", "-L", "-f", f"ipv{family}").stdout
    with rules(lab, daemon, forward(f'oifname "uplink" tcp dport {RAW_PORT} drop')):
        assert seen() == ""
    with rules(lab, daemon, forward('oifname "uplink" ct state new limit rate over 1000/second drop')):
        assert seen() == gateway  # translated by Linux
        keyword = "ip" if family == 4 else "ip6"
        assert f'oifname "uplink" {keyword} saddr {CLIENTS[family]}' in own_table(lab, family)


def test_explain_says_who_carries_it_and_why(lab: Lab, daemon: Daemon, family: int) -> None:
    def explained(port: int) -> Any:
        ends = [f"[{lab.client.address(6)}]:4000", f"[{lab.vip(6)}]:{port}"]
        if family == 4:
            ends = [f"{lab.client.address(4)}:4000", f"{lab.vip(4)}:{port}"]
        return daemon.json("explain", "flow", *ends, "tcp")

    assert explained(WEB_PORT)["why"] == "clearway balances it, and there are no rules of Linux on its way"
    assert (
        daemon.json("status")["adoption"]["honoured"] == "no rule of Linux is on the way of services and NAT"
    )
    server = lab["server1"].address(family)
    text = forward(
        f"{'ip' if family == 4 else 'ip6'} daddr {server} tcp dport 8080 limit rate over 9/second drop"
    )
    with rules(lab, daemon, text):
        found = explained(WEB_PORT)
        assert not found["can_be"]
        assert found["why"].startswith("Linux balances it, if its rules let it pass, with 1 of 3 endpoints: ")
        assert "limit rate over 9/second" in found["directions"][0]["rule"]
        assert explained(TCP_PORT)["why"] == "clearway balances it, and Linux' rules let it pass"
        assert "Linux' rules decide" in daemon.json("status")["adoption"]["honoured"]


def test_bypass_does_not_ask(lab: Lab, hook: str, family: int, stack: ExitStack) -> None:
    wanted = data(lab, hook)
    for service in wanted["services"]:
        service["netfilter"] = "bypass"
    with lab.daemon(json.dumps(wanted)) as daemon, rules(lab, daemon, forward("tcp dport 8080 drop")):
        assert answered(lab, family, WEB_PORT).startswith("server")


def test_a_new_endpoint_is_balanced_by_linux_too(lab: Lab, hook: str, family: int) -> None:
    with lab.daemon(json.dumps(data(lab, hook))) as daemon:
        with rules(lab, daemon, forward("ct state new limit rate over 1000/second drop")):
            assert answered(lab, family, WEB_PORT).startswith("server")
            for number in (2, 3):
                end = lab[f"server{number}"].address(family)
                name = f"[{end}]:8080" if family == 6 else f"{end}:8080"
                daemon.cli("endpoint", "remove", f"web{family}", name)
            assert set(distribution(lab.client.ns, f"http://{lab.vip_url(family)}/", 12)) == {"server1"}
            assert daemon.json("status")["adoption"]["why"] == ""
        daemon.down()
    assert own_table(lab, family) == ""
