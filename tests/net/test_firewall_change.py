# SPDX-License-Identifier: Apache-2.0
"""Rules change while connections talk: what is forbidden now stops at once, the others notice nothing."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clearway.api.client import Client
from clearway.compiler.firewall import identity_of
from clearway.daemon.apply import read_tables
from clearway.datapath import Datapath
from clearway.lab import Daemon, Lab, Topology
from tests.net.configuration import service
from tests.net.counters import added_up
from tests.net.streams import Pump, Stream

ROUNDS = 8
KEPT, TOGGLED = 7000, 7001
KEPT_SERVICE, TOGGLED_SERVICE = 9000, 9001
ENDPOINTS = 100  # what their ports have more than the service
CHANGES = [("accept", "drop"), ("drop", "drop"), ("accept", "reject"), ("drop", "reject")]
UNDER_WAY = 0.05  # seconds in which what had passed the node arrives, and the pump reads it
WATCHED = 0.35  # seconds: TCP sends again what was lost after 0.2


@pytest.fixture(scope="module")
def topology() -> Topology:
    return Topology(clients=1, servers=1)


def configuration(lab: Lab, hook: str, default: str, toggled: str) -> dict[str, Any]:
    ports = {"kept": (KEPT, KEPT_SERVICE), "toggled": (TOGGLED, TOGGLED_SERVICE)}
    early = {"name": "early", "action": "drop", "source": "192.0.2.0/24"}
    rules: list[dict[str, Any]] = [early] if toggled != "accept" else []  # the others have other numbers then
    rules += [
        {"name": name, "action": action, "protocol": ["tcp", "udp"], "destination_ports": list(ports[name])}
        for name, action in (("kept", "accept"), ("toggled", toggled))
    ]
    return {
        "interfaces": [{"name": name, "hook": hook} for name in lab.interfaces],
        "services": [
            service(lab, family, f"service{port}-", port, port + ENDPOINTS)
            for family in (4, 6)
            for port in (KEPT_SERVICE, TOGGLED_SERVICE)
        ],
        "firewall": {"default": default, "rules": rules},
        "conntrack": {"max_flows": 65536},
    }


@pytest.fixture(scope="module")
def daemon(lab: Lab, hook: str) -> Iterator[Daemon]:
    with lab.daemon(json.dumps(configuration(lab, hook, "accept", "accept"))) as running:
        yield running


class Rules:
    """The firewall's rules, changed through the daemon's API."""

    def __init__(self, lab: Lab, hook: str, daemon: Daemon) -> None:
        self._lab, self._hook, self._daemon = lab, hook, daemon
        self._client = Client(Path("/run", daemon.instance, "api.sock"))

    def put(self, default: str, toggled: str) -> None:
        text = json.dumps(configuration(self._lab, self._hook, default, toggled))
        self._client.post_yaml("apply", text=text.encode(), source="test")

    def judged(self, name: str) -> int:
        """How many first packets a rule has decided about."""
        with Datapath.open(self._daemon.instance) as datapath:
            firewall = read_tables(datapath).firewall
            assert firewall is not None
            values = datapath.judged()[:, firewall.counters[identity_of(name)]]
        return int(values["packets"].sum())


@pytest.fixture
def rules(lab: Lab, hook: str, daemon: Daemon) -> Rules:
    return Rules(lab, hook, daemon)


def streams(lab: Lab, port: int, through_service: int) -> Iterator[Stream]:
    """To the server, through a service, and to the node; of both families."""
    server = lab["server1"]
    for family in (4, 6):
        places = {"through": (server.address(family), server.ns), "local": (lab.vip(family), lab.node)}
        for where, (address, namespace) in places.items():
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                name = f"{where} IPv{family} {kind.name} port {port}"
                yield Stream(name, kind, lab.client.ns, (address, port), namespace, (address, port))
        to, at = (lab.vip(family), through_service), (server.address(family), through_service + ENDPOINTS)
        yield Stream(f"service IPv{family}", socket.SOCK_STREAM, lab.client.ns, to, server.ns, at)


def test_forbidden_ones_stop_at_once_and_others_lose_nothing(lab: Lab, rules: Rules) -> None:
    rules.put("accept", "accept")
    with Pump() as pump:
        kept = pump.add(streams(lab, KEPT, KEPT_SERVICE))
        for number in range(ROUNDS):
            default, action = CHANGES[number % len(CHANGES)]
            forbidden = pump.add(streams(lab, TOGGLED, TOGGLED_SERVICE))
            before = rules.judged("kept")
            rules.put(default, action)
            time.sleep(UNDER_WAY)
            arrived = {stream: heard(stream) for stream in forbidden}
            time.sleep(WATCHED)
            going_on = [
                f"{stream}: {arrived[stream]} arrived, then {heard(stream)}"
                for stream in forbidden
                if heard(stream) != arrived[stream]
            ]
            assert not going_on, f"default {default}, {action}, round {number}:\n" + "\n".join(going_on)
            assert rules.judged("kept") == before
            lab.client.ns.connect((lab.vip(4), KEPT)).close()
            assert rules.judged("kept") == before + 1
            rules.put("accept", "accept")
            for stream in forbidden:
                pump.remove(stream)
        pump.fall_silent(0.5)
        for stream in kept:
            assert stream.out.sent > 100 * ROUNDS / 4 and not stream.out.closed and not stream.back.closed
            assert stream.out.complete and stream.back.complete, stream


def heard(stream: Stream) -> tuple[int, ...]:
    """How much has arrived: of a connection to the node, there; what the node sends nobody judges."""
    directions = (stream.out,) if stream.name.startswith("local") else (stream.out, stream.back)
    return tuple(len(direction.arrived) for direction in directions)


def test_every_packet_of_these_tests_found_one_reason(lab: Lab, daemon: Daemon) -> None:
    """Last, so that all of the above has been counted."""
    assert added_up(daemon)["received"] > 1000
