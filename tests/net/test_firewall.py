# SPDX-License-Identifier: Apache-2.0
"""A node that lets in one port: what it opens itself works, and what Linux forwards for others."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest

from clearway.compiler.firewall import identity_of
from clearway.daemon.apply import read_tables
from clearway.datapath import Datapath
from clearway.lab import Daemon, Host, Lab, Topology, wait_until
from clearway.lab.daemon import traces
from tests.net.counters import added_up, reasons
from tests.net.node_state import node_state
from tests.net.probes import Echoes, Kind, Probe, Verdict, attempt, prepare
from tests.net.traffic import Listeners, pattern, talk, transfer

SSH, OTHER, CLOSED = 22, 5353, 9999
EF = 46
OPEN_ONES: list[tuple[Kind, int]] = [("tcp", OTHER), ("udp", OTHER), ("ping", 0)]
CLOSED_ONES: list[tuple[Kind, int]] = [
    ("tcp", OTHER),
    ("udp", OTHER),
    ("tcp", CLOSED),
    ("udp", SSH),
    ("ping", 0),
]
FOREIGN = "client2"  # the node's interface that clearway has nothing to do with
RULES = [
    {"name": "ssh", "action": "accept", "direction": "local", "protocol": "tcp", "destination_ports": SSH},
    {"name": "urgent", "action": "accept", "direction": "through", "protocol": "tcp", "dscp": "ef"},
]


@pytest.fixture(scope="module")
def topology() -> Topology:
    return Topology(clients=2, servers=1)


def configuration(lab: Lab, hook: str, firewall: dict[str, Any] | None = None) -> str:
    names = [name for name in lab.interfaces if name != FOREIGN]
    return json.dumps(
        {
            "interfaces": [{"name": name, "hook": hook} for name in names],
            "firewall": firewall or {"default": "drop", "rules": RULES},
            "conntrack": {"max_flows": 65536},
        },
        indent=1,
    )


@pytest.fixture(scope="module")
def daemon(lab: Lab, hook: str) -> Iterator[Daemon]:
    prepare(lab)
    with lab.daemon(configuration(lab, hook)) as running:
        yield running


@pytest.fixture(scope="module")
def echoes(lab: Lab) -> Iterator[Echoes]:
    """Somebody listens everywhere."""
    hosts = [(host.ns, host.address(family)) for host in lab.hosts.values() for family in (4, 6)]
    node = [(lab.node, host.plan.gateway(family)) for host in lab.hosts.values() for family in (4, 6)]
    with Echoes([*hosts, *node], (SSH, OTHER)) as echoing:
        yield echoing


def tried(
    source: Host | Lab, to: str, kind: Kind, port: int = 0, timeout: float = 1.0, **more: int
) -> Verdict:
    namespace = source.node if isinstance(source, Lab) else source.ns
    (verdict,) = attempt([Probe(namespace.name, namespace, to, kind, port, **more)], timeout).values()
    return verdict


def judged(daemon: Daemon, name: str) -> int:
    """How many packets a rule has decided about; "": the default."""
    with Datapath.open(daemon.instance) as datapath:
        firewall = read_tables(datapath).firewall
        assert firewall is not None
        values = datapath.judged()[:, firewall.counters[identity_of(name)]]
    return int(values["packets"].sum())


# ---- the node itself ----


def test_one_port_is_open_and_no_other(lab: Lab, daemon: Daemon, echoes: Echoes, family: int) -> None:
    node = lab.client.plan.gateway(family)
    assert tried(lab.client, node, "tcp", SSH) == "connected"
    closed = [
        Probe("client", lab.client.ns, address, kind, port)
        for address in (
            node,
            lab.vip(family),
            lab["server1"].plan.gateway(family),
            lab["server1"].address(family),
        )
        for kind, port in CLOSED_ONES
    ]
    assert set(attempt(closed, 0.5).values()) == {"timed out"}


def test_node_opens_what_it_likes(lab: Lab, daemon: Daemon, echoes: Echoes, family: int) -> None:
    for host in (lab.client, lab["server1"], lab.outside):
        to = host.address(family)
        assert tried(lab, to, "tcp", OTHER) == "connected"
        assert tried(lab, to, "udp", OTHER) == "connected"
        assert tried(lab, to, "udp", OTHER, size=4000) == "connected"
        assert tried(lab, to, "ping") == "connected"
        assert tried(lab, to, "ping", size=4000) == "connected"
        assert tried(lab, to, "tcp", CLOSED) == "refused"
        assert tried(lab, to, "udp", CLOSED) == "refused"


def test_node_sends_and_gets_much(lab: Lab, daemon: Daemon, stack: ExitStack, family: int) -> None:
    listeners = stack.enter_context(Listeners([lab.outside], family, 2222))
    near = stack.enter_context(lab.node.connect((lab.outside.address(family), 2222), timeout=20))
    far = listeners.accept().socket
    content = pattern(10_000_000)
    for sender, receiver in ((near, far), (far, near)):
        transfer(sender, receiver, content)


def test_node_serves_much(lab: Lab, daemon: Daemon, stack: ExitStack, family: int) -> None:
    node = (lab.vip(family), SSH)
    listening = stack.enter_context(lab.node.listen(node))
    near = stack.enter_context(lab.client.ns.connect(node, timeout=20))
    far, _ = listening.accept()
    stack.enter_context(far)
    far.settimeout(20)
    content = pattern(10_000_000)
    for sender, receiver in ((near, far), (far, near)):
        transfer(sender, receiver, content)


def test_neighbours_are_found_from_nothing(lab: Lab, daemon: Daemon, echoes: Echoes, family: int) -> None:
    for flushed in (lab.node, lab.client.ns):
        flushed.ip("neighbour", "flush", "all")
        assert tried(lab.client, lab.client.plan.gateway(family), "tcp", SSH, timeout=3) == "connected"
        flushed.ip("neighbour", "flush", "all")
        assert tried(lab, lab.client.address(family), "udp", OTHER, timeout=3) == "connected"


@pytest.mark.parametrize("family", [6], ids=["ipv6"])
def test_node_pings_link_local_addresses(lab: Lab, daemon: Daemon, family: int) -> None:
    shown = lab.client.ns.ip("-oneline", "-6", "address", "show", "dev", "eth0", "scope", "link").split()
    address = shown[shown.index("inet6") + 1].partition("/")[0]
    ping = lab.node.run("ping", "-c2", "-i0.1", "-W2", f"{address}%client1", check=False)
    assert "2 received" in ping.stdout
    shown = lab.node.ip("-oneline", "-6", "address", "show", "dev", "client1", "scope", "link").split()
    address = shown[shown.index("inet6") + 1].partition("/")[0]
    refused = lab.client.ns.run("ping", "-c2", "-i0.1", "-W1", f"{address}%eth0", check=False)
    assert "0 received" in refused.stdout


# ---- what is forwarded ----


def test_replies_need_not_be_what_a_rule_asks_for(
    lab: Lab, daemon: Daemon, echoes: Echoes, family: int
) -> None:
    """A DSCP class that only the side that opens the connection has."""
    to = lab["server1"].address(family)
    assert tried(lab.client, to, "tcp", OTHER, tos=EF << 2, timeout=3) == "connected"
    lab.node.ip("neighbour", "flush", "all")
    assert tried(lab.client, to, "tcp", OTHER, tos=EF << 2, timeout=3) == "connected"
    assert tried(lab.client, to, "tcp", OTHER, timeout=0.5) == "timed out"


def test_linux_forwards_from_interfaces_of_its_own(
    lab: Lab, daemon: Daemon, echoes: Echoes, family: int
) -> None:
    inside, to = lab[FOREIGN], lab["server1"].address(family)
    for kind, port in OPEN_ONES:
        assert tried(inside, to, kind, port) == "connected"
    assert tried(inside, to, "udp", CLOSED) == "refused"
    assert tried(inside, to, "udp", OTHER, size=4000) == "connected"
    assert tried(lab["server1"], inside.address(family), "tcp", OTHER, timeout=0.5) == "timed out"


@contextmanager
def masquerading(lab: Lab) -> Iterator[None]:
    lab.node.run(
        "nft",
        "add table inet cw_test; add chain inet cw_test post { type nat hook postrouting priority srcnat; };"
        f' add rule inet cw_test post iifname "{FOREIGN}" oifname "uplink" masquerade',
    )
    try:
        yield
    finally:
        lab.node.run("nft", "delete", "table", "inet", "cw_test")


def test_linux_masquerades_from_interfaces_of_its_own(
    lab: Lab, daemon: Daemon, echoes: Echoes, stack: ExitStack, family: int
) -> None:
    stack.enter_context(masquerading(lab))
    to = lab.outside.address(family)
    for kind, port in OPEN_ONES:
        assert tried(lab[FOREIGN], to, kind, port) == "connected"
    assert tried(lab[FOREIGN], to, "udp", CLOSED) == "refused"
    listeners = stack.enter_context(Listeners([lab.outside], family, 2222))
    near = stack.enter_context(lab[FOREIGN].ns.connect((to, 2222), timeout=20))
    far = listeners.accept()
    assert far.peer[0] == lab.outside.plan.gateway(family)
    talk(near, far.socket)
    transfer(near, far.socket, pattern(3_000_000))


def test_out_by_interfaces_of_linux(lab: Lab, daemon: Daemon, echoes: Echoes, family: int) -> None:
    """The replies come back by an interface that is not clearway's."""
    to = lab[FOREIGN].address(family)
    assert tried(lab.client, to, "tcp", OTHER, tos=EF << 2) == "connected"
    assert tried(lab.client, to, "tcp", OTHER, timeout=0.5) == "timed out"


# ---- a daemon's life ----


def test_rules_outlive_the_daemon(
    lab: Lab, hook: str, echoes: Echoes, daemon: Daemon, stack: ExitStack
) -> None:
    node = lab.client.plan.gateway(4)
    near = stack.enter_context(lab.client.ns.connect((node, SSH)))
    before, dropped = judged(daemon, "ssh"), judged(daemon, "")
    daemon.kill()
    assert tried(lab.client, node, "tcp", SSH) == "connected"
    assert tried(lab.client, node, "tcp", OTHER, timeout=0.5) == "timed out"
    daemon.start()
    assert judged(daemon, "ssh") == before + 1
    assert judged(daemon, "") > dropped
    assert tried(lab.client, node, "tcp", SSH) == "connected"
    assert tried(lab, lab.client.address(4), "udp", OTHER) == "connected"
    assert tried(lab.client, node, "udp", OTHER, timeout=0.5) == "timed out"
    assert judged(daemon, "ssh") == before + 2
    near.sendall(b"still there?")
    assert near.recv(100) == b"still there?"


def test_down_leaves_no_trace(lab: Lab, hook: str, lab_names: Iterator[str]) -> None:
    """Another node's lab, so to speak: this one's daemon has the interfaces."""
    with Lab(next(lab_names), lab.topology) as other:
        other.prepare_for(hook)
        before = node_state(other)
        egress = egress_filters(other)
        with other.daemon(configuration(other, hook)) as running:
            assert tried(other, other.client.address(4), "udp", CLOSED) == "refused"
            assert node_state(other)["tcx"] != before["tcx"]
            running.cli("down")
            assert traces(running.instance) == []
        assert node_state(other) == before
        assert egress_filters(other) == egress


def egress_filters(lab: Lab) -> list[str]:
    return [
        lab.node.run("tc", "filter", "show", "dev", name, "egress", check=False).stdout
        for name in lab.interfaces
    ]


def test_firewall_comes_and_goes(
    lab: Lab, hook: str, daemon: Daemon, echoes: Echoes, stack: ExitStack
) -> None:
    """Without one nobody looks at what is sent, and connections that it has seen go on."""
    node = lab.client.plan.gateway(4)
    to_node = stack.enter_context(lab.client.ns.connect((node, SSH)))
    through = stack.enter_context(lab.client.ns.open_socket())
    through.settimeout(5)
    through.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, EF << 2)
    through.connect((lab["server1"].address(4), OTHER))
    attached = node_state(lab)["tcx"]

    def egress_is_attached(wanted: bool) -> bool:
        return (node_state(lab)["tcx"] == attached) == wanted

    def go_on() -> None:
        for connection in (to_node, through):
            connection.sendall(b"still there?")
            assert connection.recv(100) == b"still there?"

    go_on()
    for firewall in (None, {"default": "drop", "rules": RULES}):
        wanted = json.loads(configuration(lab, hook, firewall))
        if firewall is None:
            del wanted["firewall"]
        daemon.config_path.write_text(json.dumps(wanted))
        daemon.cli("apply", str(daemon.config_path))
        go_on()
        verdict = "timed out" if firewall else "connected"
        assert tried(lab.client, lab["server1"].address(4), "udp", OTHER, timeout=0.5) == verdict
        wait_until("egress follows", partial(egress_is_attached, firewall is not None))
        go_on()


def test_every_packet_of_these_tests_found_one_reason(lab: Lab, daemon: Daemon) -> None:
    """Last, so that all of the above has been counted."""
    assert added_up(daemon)["received"] > 50
    assert reasons(daemon)["drop_firewall"] > 10
