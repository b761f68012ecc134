# SPDX-License-Identifier: Apache-2.0
"""The same rules in nftables: whatever is tried ends the same way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from clearway.lab import Daemon, Lab, Topology
from clearway.lab.namespace import Namespace
from tests.net import rulesets
from tests.net.counters import added_up
from tests.net.probes import Echoes, Probe, Verdict, attempt, prepare

SEEDS = range(8)
FIRST_PORT = 20000
PORTS_A_RULESET = 200
TIMEOUT = 0.3
PATIENT = 3.0  # of what differs: a machine that was busy is no difference
BIG = 3000  # bytes: more than one frame

Verdicts = Mapping[str, Verdict]


@pytest.fixture(scope="module")
def topology() -> Topology:
    return Topology(clients=2, servers=1)


def places(lab: Lab) -> list[tuple[Namespace, str]]:
    """Where somebody listens."""
    hosts = (lab.client, lab["client2"], lab["server1"])
    near = (lab.client, lab["server1"])
    return [
        *((host.ns, host.address(family)) for host in hosts for family in (4, 6)),
        *((lab.node, host.plan.gateway(family)) for host in near for family in (4, 6)),
        *((lab.node, lab.vip(family)) for family in (4, 6)),
    ]


def probes(lab: Lab, first_port: int) -> list[Probe]:
    """From client to server and back, to the node and from it; of each family as many."""
    tried: list[Probe] = []

    def add(sender: str, to: str, kind: Any, dport: int = 0, **more: int) -> None:
        source = lab.node if sender == "node" else lab[sender].ns
        sport = 0 if kind == "ping" else first_port + len(tried)
        tried.append(Probe(sender, source, to, kind, dport, sport, **more))

    for family in (4, 6):
        client, server = lab.client, lab["server1"]
        through = (("client1", server), ("client2", server), ("server1", client))
        local = (("client1", client.plan.gateway(family)), ("server1", lab.vip(family)))
        for sender, to in [*((name, host.address(family)) for name, host in through), *local]:
            for port in (*rulesets.PORTS, rulesets.CLOSED):
                add(sender, to, "tcp", port)
            for port in (rulesets.PORTS[1], rulesets.PORTS[-1], rulesets.CLOSED):
                add(sender, to, "udp", port)
            add(sender, to, "udp", rulesets.PORTS[1], size=BIG)
            add(sender, to, "tcp", rulesets.PORTS[0], tos=rulesets.EF << 2)
            add(sender, to, "ping")
            add(sender, to, "ping", size=BIG)
        add("client1", server.plan.gateway(family), "tcp", rulesets.PORTS[2])
        add("client1", server.plan.gateway(family), "udp", rulesets.PORTS[2])
        for host in (client, server):
            add("node", host.address(family), "tcp", rulesets.PORTS[0])
            add("node", host.address(family), "tcp", rulesets.CLOSED)
            add("node", host.address(family), "udp", rulesets.PORTS[1])
            add("node", host.address(family), "udp", rulesets.CLOSED)
            add("node", host.address(family), "ping")
            add("node", host.address(family), "ping", size=BIG)
    assert len(tried) <= PORTS_A_RULESET
    return tried


def first_port(seed: int) -> int:
    return FIRST_PORT + seed * PORTS_A_RULESET


def ruleset(lab: Lab, seed: int) -> dict[str, Any]:
    first = first_port(seed)
    return rulesets.make(seed, lab, (first, first + PORTS_A_RULESET - 1))


@pytest.fixture(scope="session")
def known() -> dict[int, Verdicts]:
    """What nftables made of rulesets, in the lab of whichever hook was first."""
    return {}


@pytest.fixture(scope="module")
def by_linux(lab: Lab, known: dict[int, Verdicts]) -> Iterator[Mapping[int, Verdicts]]:
    """What nftables makes of each ruleset; servers go on listening afterwards."""
    prepare(lab)
    with Echoes(places(lab), rulesets.PORTS):
        for seed in SEEDS:
            if seed not in known:
                lab.node.run("nft", "-f", "-", stdin=rulesets.nftables(ruleset(lab, seed)))
                tried = attempt(probes(lab, first_port(seed)), TIMEOUT)
                known[seed] = {str(probe): verdict for probe, verdict in tried.items()}
                lab.node.run("nft", "delete", "table", "inet", rulesets.TABLE)
        lab.node.run("conntrack", "-F", check=False)
        yield known


@pytest.fixture(scope="module")
def daemon(lab: Lab, hook: str, by_linux: object) -> Iterator[Daemon]:
    with lab.daemon(configuration(lab, hook, {"default": "accept"})) as running:
        yield running


def configuration(lab: Lab, hook: str, firewall: Mapping[str, Any]) -> str:
    interfaces = [{"name": name, "hook": hook} for name in lab.interfaces]
    return json.dumps(
        {"interfaces": interfaces, "firewall": firewall, "conntrack": {"max_flows": 65536}}, indent=1
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_ends_as_with_nftables(
    lab: Lab, hook: str, daemon: Daemon, by_linux: Mapping[int, Verdicts], seed: int
) -> None:
    firewall = ruleset(lab, seed)
    daemon.config_path.write_text(configuration(lab, hook, firewall))
    daemon.cli("apply", str(daemon.config_path))
    linux = by_linux[seed]

    def differs(probe: Probe) -> bool:
        return here[probe] != linux[str(probe)]

    here = attempt(probes(lab, first_port(seed)), TIMEOUT)
    here |= attempt(filter(differs, list(here)), PATIENT)
    differ = [f"{probe}: {linux[str(probe)]}, here {here[probe]}" for probe in filter(differs, here)]
    assert not differ, "\n".join([*differ, json.dumps(firewall, indent=1), rulesets.nftables(firewall)])
    verdicts = set(linux.values())
    assert "connected" in verdicts and len(verdicts) > 1


def test_every_packet_of_these_tests_found_one_reason(lab: Lab, daemon: Daemon) -> None:
    """Last, so that all of the above has been counted."""
    assert added_up(daemon)["received"] > 1000
