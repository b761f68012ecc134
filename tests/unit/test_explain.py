# SPDX-License-Identifier: Apache-2.0
"""What `clearway explain flow` says of a connection that is Linux'."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from clearway.api.control import FilterError
from clearway.api.views import DirectionView, FlowQuestion
from clearway.daemon.adoption import Standing
from clearway.daemon.explain import asked_for, obstacle, told
from clearway.linux import conntrack
from clearway.linux.conntrack import Held, Tuple
from clearway.linux.picture import Picture
from clearway.linux.rtnetlink import VLAN_8021Q, Address, Link, Vlan
from clearway.model.protocols import TCP
from clearway.proof import Passage, Sources, prove

CLIENT, SERVER, OWN, PORTS = ip_address("10.0.0.2"), ip_address("192.0.2.2"), ip_address("10.0.0.1"), 40000
WAY = Tuple(TCP, CLIENT, PORTS, SERVER, 443)
HELD = Held(WAY, WAY.reversed, conntrack.IPS_ASSURED, 0, "established", False)
PROVED = Standing(proof=prove(Sources()), why="")
PASSAGE = Passage(
    family=4,
    protocol=TCP,
    arrives=(CLIENT, PORTS, SERVER, 443),
    leaves=(CLIENT, PORTS, SERVER, 443),
    inside="eth0",
    outside="eth1",
)


def link(ifindex: int, name: str, kind: str = "", **more: Any) -> Link:
    return replace(Link(ifindex, name, True, True, True, bytes(6), 1500, kind), **more)


LINKS = (
    link(2, "eth0"),
    link(3, "eth1"),
    link(4, "eth0.5", vlan=Vlan(5, VLAN_8021Q, False), lower=2),
    link(5, "bond0", "bond"),
    link(6, "eth2", master=5),
    link(7, "br0", "bridge"),
    link(8, "eth3", master=7),
)
PICTURE = Picture(links={one.ifindex: one for one in LINKS}, addresses={(2, OWN): Address(2, OWN, 0, 0, 0)})


def way(name: str, *, flows: bool, why: str = "", rule: str | None = None) -> DirectionView:
    return DirectionView(
        direction=name,
        arrives="",
        leaves="",
        interface_in="eth0",
        interface_out="eth1",
        carried=flows and not why,
        kept=bool(why),
        why=why,
        rule=rule,
    )


@pytest.mark.parametrize(
    ("source", "destination", "protocol", "problem"),
    [
        (":http", "192.0.2.2:443", "tcp", "':http' is no address; write ADDRESS:PORT with numbers"),
        ("10.0.0.2", "192.0.2.2:443", "udp", "10.0.0.2 needs a port; write ADDRESS:PORT"),
        ("fd00::2:40004", "[fd00::3]:443", "tcp", "and [ADDRESS]:PORT for IPv6"),
        ("10.0.0.2:70000", "192.0.2.2:443", "tcp", "70000 is too large for a port"),
        ("10.0.0.2:1", "[fd00::3]:443", "tcp", "are of different families"),
        ("10.0.0.2:1", "192.0.2.2:443", "sctp", "'sctp' is neither tcp nor udp"),
        ("10.0.0.2:1", "192.0.2.2:443", "icmp", "'icmp' is neither tcp nor udp"),
    ],
)
def test_what_is_no_connection_is_told(source: str, destination: str, protocol: str, problem: str) -> None:
    with pytest.raises(FilterError) as caught:
        asked_for(FlowQuestion(source=source, destination=destination, protocol=protocol))
    assert problem in str(caught.value)


def test_connection_is_understood() -> None:
    question = FlowQuestion(source="10.0.0.2:40000", destination="192.0.2.2:443", protocol="TCP")
    assert asked_for(question) == WAY


def test_connection_is_carried_when_both_directions_are() -> None:
    both = [way("original", flows=True), way("reply", flows=True)]
    found = told(HELD, PROVED, both, flows=True)
    assert (found.carried, found.can_be) == (True, True)
    assert found.why == "Linux has accepted it, and none of its rules has to see its packets"


@pytest.mark.parametrize("rule", ["limit rate 1/second", None])
def test_one_direction_that_is_kept_is_why_the_connection_is_not_carried(rule: str | None) -> None:
    ways = [way("original", flows=True), way("reply", flows=True, why="it is limited", rule=rule)]
    found = told(HELD, PROVED, ways, flows=True)
    assert (found.owner, found.carried, found.can_be, found.why) == ("linux", False, False, "it is limited")


def test_what_stands_in_the_way_of_any_connection_is_said_before_its_state() -> None:
    ways = [way("original", flows=False), way("reply", flows=False, why="it is for this machine itself")]
    assert told(None, PROVED, ways, flows=False).why == "it is for this machine itself"
    ways = [way("original", flows=False), way("reply", flows=False, why="it is limited", rule="limit")]
    assert "conntrack does not hold it" in told(None, PROVED, ways, flows=False).why


@pytest.mark.parametrize(
    ("changes", "taken", "why"),
    [
        ({}, {"eth0"}, ""),
        ({}, {"eth1"}, "it comes in by eth0, which clearway has not taken: `clearway up eth0`"),
        ({"inside": "eth0.5"}, {"eth0"}, ""),
        ({"inside": "bond0"}, {"eth2"}, ""),
        ({"inside": "br0"}, {"eth3"}, "it comes in by br0, which clearway has not taken: `clearway up br0`"),
        ({"outside": "eth0"}, {"eth0"}, "it leaves by eth0, where it came in"),
        ({"outside": ""}, {"eth0"}, "no route leads to 192.0.2.2"),
        ({"inside": ""}, {"eth0"}, "no route leads to 10.0.0.2"),
        ({"leaves": (CLIENT, PORTS, OWN, 443), "outside": ""}, {"eth0"}, "it is for this machine itself"),
        ({"arrives": (OWN, PORTS, SERVER, 443), "inside": ""}, {"eth0"}, "it comes from this machine itself"),
    ],
)
def test_what_keeps_a_direction_in_linux_whatever_rules_say(
    changes: dict[str, Any], taken: Set[str], why: str
) -> None:
    found = obstacle(replace(PASSAGE, **changes), PICTURE, taken, lambda _family, _interface: None)
    assert found.startswith(why)
    assert bool(found) == bool(why)


def test_forwarding_that_is_off_is_said_with_what_to_set() -> None:
    found = obstacle(PASSAGE, PICTURE, {"eth0"}, lambda family, interface: f"net.{family}.{interface}")
    assert found == "Linux does not forward IPv4 that comes in by eth0: sysctl -w net.4.eth0=1"
