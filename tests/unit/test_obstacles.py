# SPDX-License-Identifier: Apache-2.0
"""What stands in the way besides rules, as the kernel tells it and as a proof is told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from clearway.daemon import obstacles
from clearway.daemon.obstacles import Obstacles
from clearway.datapath import bpf
from clearway.datapath.others import Hook, Lookout, Others
from clearway.linux.rtnetlink import VLAN_8021Q, Link, Vlan
from clearway.linux.traffic_control import TrafficControl

LAN, WAN, VLAN, ELSEWHERE = 2, 3, 4, 5


def link(ifindex: int, name: str, lower: int = 0) -> Link:
    vlan = Vlan(100, VLAN_8021Q, False) if lower else None
    return Link(ifindex, name, True, True, True, bytes(6), 1500, "vlan" if vlan else "", lower, vlan)


LINKS = {
    LAN: link(LAN, "lan"),
    WAN: link(WAN, "wan"),
    VLAN: link(VLAN, "lan.100", LAN),
    ELSEWHERE: link(ELSEWHERE, "else"),
}


class Kernel:
    """What it tells, and how often it was asked."""

    def __init__(self) -> None:
        self.control, self.others, self.asked = TrafficControl(), Others(), 0
        self.shaped: list[frozenset[int]] = []

    def traffic_control(self) -> TrafficControl:
        self.asked += 1
        return self.control

    def look(self, _devices: frozenset[int], _own: frozenset[int]) -> Others:
        return self.others


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(obstacles, "traffic_control", made.traffic_control)
    monkeypatch.setattr(obstacles, "Lookout", lambda: made)
    monkeypatch.setattr(obstacles, "LOOK_EVERY", 0.0)
    return made


@pytest.fixture
def found(kernel: Kernel) -> Obstacles:
    datapath = SimpleNamespace(tc_programs=frozenset)
    return Obstacles(datapath, lambda: frozenset({LAN}), kernel.shaped.append)  # type: ignore[arg-type]


def test_what_comes_in_is_looked_at_where_clearway_is(kernel: Kernel, found: Obstacles) -> None:
    everywhere = frozenset(LINKS)
    kernel.control = TrafficControl(ingress=everywhere)
    assert [one.inside for one in found.of(LINKS)] == ["lan", "lan.100"]
    kernel.others = Others(ingress=everywhere)
    assert [one.inside for one in found.of(LINKS)] == ["lan", "lan", "lan.100", "lan.100"]


def test_what_leaves_is_looked_at_on_every_device(kernel: Kernel, found: Obstacles) -> None:
    kernel.control, kernel.others = TrafficControl(egress=frozenset({WAN})), Others(egress=frozenset({LAN}))
    assert [found.of(LINKS) for _ in range(3)] == [()] * 3
    assert kernel.shaped == [{WAN, LAN}]
    kernel.others = Others()
    found.of(LINKS)
    assert kernel.shaped == [{WAN, LAN}, {WAN}]


def test_tc_is_read_when_it_has_changed_or_a_device_has_come(kernel: Kernel, found: Obstacles) -> None:
    for links in (LINKS, LINKS, {LAN: LINKS[LAN]}):
        found.of(links)
    assert kernel.asked == 2
    found.look_again()
    found.of({LAN: LINKS[LAN]})
    assert kernel.asked == 3


def test_programs_of_netfilter_are_in_the_way_of_their_family(kernel: Kernel, found: Obstacles) -> None:
    kernel.others = Others(hooks=frozenset({Hook(4, "forward"), Hook(6, "input"), Hook(6, "prerouting")}))
    assert [one.family for one in found.of(LINKS)] == [4, 6]
    kernel.others = Others(hooks=None)
    [unknown] = found.of(LINKS)
    assert (unknown.family, unknown.inside, unknown.outside) == (None, None, None)
    assert "CAP_SYS_ADMIN" in unknown.why


def test_links_are_asked_once_and_those_that_go_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    links = {7: bpf.NetfilterLink(2, 2), 8: None, 9: bpf.NetfilterLink(10, 0)}
    asked: list[int] = []

    def netfilter_link(number: int) -> bpf.NetfilterLink | None:
        asked.append(number)
        return links[number]

    monkeypatch.setattr(bpf, "link_numbers", lambda: iter(list(links)))
    monkeypatch.setattr(bpf, "netfilter_link", netfilter_link)
    lookout = Lookout()
    for _ in range(2):
        assert lookout.look((), frozenset()).hooks == frozenset({Hook(4, "forward"), Hook(6, "prerouting")})
    del links[7]
    assert lookout.look((), frozenset()).hooks == frozenset({Hook(6, "prerouting")})
    assert asked == [7, 8, 9]
