# SPDX-License-Identifier: Apache-2.0
"""The oracle itself: it sees each kind of fault in the accelerated lab, and nothing where there is none."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.oracle.case import Case, Flow, Run, Send
from tests.oracle.cases import opening, talking
from tests.oracle.check import RESULTS, check
from tests.oracle.lab import Pair, Side
from tests.oracle.network import HOSTS, address
from tests.oracle.play import play

RULES = """
table inet t {
  set seen { type ipv4_addr; }
  chain forward {
    type filter hook forward priority 0;
    ct state established counter accept
    counter
  }
  chain there { type nat hook prerouting priority -100; tcp dport 443 dnat ip to 10.1.2.3:8080; }
  chain back { type nat hook postrouting priority 100; oifname "wan*" masquerade; }
}
"""
FLOWS = (
    Flow(4, "tcp", "lan0", 0, 0, 20000, 80),
    Flow(6, "tcp", "lan1", 1, 1, 20001, 80),
    Flow(4, "tcp", "lan1", 0, 0, 20002, 443),
    Flow(4, "udp", "lan0", 1, 2, 20003, 53),
)
STEPS = tuple(
    step
    for number, flow in enumerate(FLOWS)
    for step in (*opening(number, flow), *talking(number), Send(number, "data", ttl=1))
)
CASE = Case(FLOWS, (Run("nft -f -", RULES),), STEPS)

Fault = Callable[[Side], None]


def nft(text: str) -> Fault:
    """Rules that only the accelerated lab has; none of them counts, so only what they do can be seen."""

    def load(side: Side) -> None:
        side.router.run("nft", "-f", "-", stdin=text)

    return load


def chain(head: str, rule: str) -> Fault:
    return nft(f"table inet fault {{ chain c {{ type {head}; {rule}; }}\n}}\n")


def forward(rule: str) -> Fault:
    return chain("filter hook forward priority 200", rule)


def command(*words: str) -> Fault:
    def run(side: Side) -> None:
        side.router.run(*words)

    return run


SERVER = address("wan0", HOSTS[0], 4)
FAULTS: dict[str, tuple[Fault, str]] = {
    "drops": (forward("tcp dport 80 ct state established drop"), "nothing with clearway"),
    "drops-ipv6": (forward("meta nfproto ipv6 drop"), "nothing with clearway"),
    "accepts": (nft("delete chain inet t there\n"), "on wan0 arrive"),
    "ttl": (forward("ip ttl set 9"), "byte 22 is 0x3f in Linux, 0x09 with clearway"),
    "hop-limit": (forward("ip6 hoplimit set 9"), "byte 21 is 0x3f in Linux, 0x09 with clearway"),
    "dscp": (forward("ip dscp set ef"), "byte 15 is 0x00 in Linux, 0xb8 with clearway"),
    "other-endpoint": (
        chain("nat hook prerouting priority -101", "tcp dport 80 dnat ip to 10.1.2.3"),
        "on wan0 arrive",
    ),
    "next-hop": (
        command("ip", "neighbour", "replace", SERVER, "lladdr", "02:00:00:00:00:77", "dev", "wan0"),
        "byte 4 is 0x02 in Linux, 0x00 with clearway",
    ),
    "route": (
        command("ip", "route", "add", f"{SERVER}/32", "via", address("wan1", 254, 4), "dev", "wan1"),
        "on wan0 arrive",
    ),
    "silence": (
        chain("filter hook output priority 0", "icmp type time-exceeded drop"),
        "on lan0 arrive 10.1.0.1 > 10.1.0.2",
    ),
    "mark": (forward("ct mark set 9"), "connections: "),
    "untracked": (
        chain("filter hook prerouting priority -300", "udp dport 53 notrack"),
        "on wan1 arrive",
    ),
    "uncounted": (nft("insert rule inet t forward ct state established accept\n"), "counters: "),
    "members": (nft("add element inet t seen { 10.9.9.9 }\n"), "members of sets: "),
    "timeout": (
        command("sysctl", "-q", "-w", "net.netfilter.nf_conntrack_tcp_timeout_established=1000"),
        "timeout of ",
    ),
}


def repaired(pair: Pair) -> None:
    pair.fast.router.run("sysctl", "-q", "-w", "net.netfilter.nf_conntrack_tcp_timeout_established=432000")
    pair.reset(network_too=True)


def test_nothing_is_found_where_nothing_is_wrong(pair: Pair) -> None:
    played = play(pair, CASE)
    assert played.differences == []
    assert played.arrived > len(STEPS) / 2


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(pair: Pair, name: str) -> None:
    fault, told = FAULTS[name]
    try:
        differences = play(pair, CASE, fault).differences
    finally:
        repaired(pair)
    assert any(told in text for text in differences), differences


@pytest.mark.parametrize("family", [4, 6])
def test_port_that_linux_draws_by_chance_is_no_difference(pair: Pair, family: int) -> None:
    """A server's packet opens its connection anew, and then the client's translation has the same tuple."""
    other = address("wan0", HOSTS[1], family)
    flow = Flow(family, "tcp", "lan0", 0, 0, 20000, 443)
    to = f"{other}:8080" if family == 4 else f"[{other}]:8080"
    there = f"chain there {{ type nat hook prerouting priority -100; tcp dport 443 dnat to {to}; }}"
    rules = Run("nft -f -", f"table ip{'6' if family == 6 else ''} t {{\n {there}\n}}\n")
    again = (Run("conntrack -F"), Send(0, "data", True, size=9), Send(0, "data", size=9))
    case = Case((flow,), (rules,), (*opening(0, flow), *talking(0), *again, *talking(0)))
    played = play(pair, case)
    assert played.differences == []
    assert played.drawn
    assert len(played.sent) == len(case.steps) - 2
    assert not play(pair, replace(case, steps=case.steps[:-5])).drawn


def test_case_survives_json() -> None:
    assert Case.from_json(CASE.to_json()) == CASE


def test_rules_that_the_kernel_refuses_are_no_case(pair: Pair) -> None:
    with pytest.raises(ValueError, match="does not take nft -f -"):
        play(pair, replace(CASE, rules=(Run("nft -f -", "add rule inet none none accept\n"),)))


def test_failure_leaves_a_script_that_shows_it(pair: Pair, hook: str) -> None:
    """It is run as Linux alone: the same frames arrive as in the plain lab."""
    fault, _ = FAULTS["mark"]
    with pytest.raises(AssertionError, match="connections: "):
        check(pair, CASE, fault)
    arrived = play(pair, CASE).arrived
    script = RESULTS / f"{hook}.sh"
    done = subprocess.run(["bash", script, "linux"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^\S+ gets ", done.stdout, re.MULTILINE)) == arrived
    assert "dport=20000" in done.stdout
    assert Case.from_json(script.with_suffix(".json").read_text()) == CASE
