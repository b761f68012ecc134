# SPDX-License-Identifier: Apache-2.0
"""Cases by chance: connections are opened and talk, and between their packets something changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.oracle import iptables, nft
from tests.oracle.case import Case, Flow, Run, Send, Shape, Step, What
from tests.oracle.network import FREE_PREFERENCE, GATEWAY, HOSTS, MARKED_TABLE, REMOTE, SERVERS, address
from tests.oracle.nft import PORTS, Ruleset

FIRST_PORT = 20000
LARGEST = 1432  # bytes of payload that any header still lets through a link
LARGEST_GSO = 9000
ASSURED = "-p udp -u SEEN_REPLY,ASSURED"  # what two seconds of talking make of a UDP connection

Steps = Sequence[Step]


@st.composite
def flows(draw: st.DrawFn) -> tuple[Flow, ...]:
    """One to three; each has a port of its own, so that no translation has to choose one."""
    count = draw(st.integers(1, 3))
    return tuple(
        Flow(
            draw(st.sampled_from([4, 6])),
            draw(st.sampled_from(["tcp", "tcp", "tcp", "udp", "icmp"])),
            draw(st.sampled_from(["lan0", "lan1"])),
            draw(st.integers(0, len(HOSTS) - 1)),
            draw(st.integers(0, len(SERVERS) - 1)),
            FIRST_PORT + number,
            draw(st.sampled_from(PORTS)),
        )
        for number in range(count)
    )


# ---- traffic ----


def opening(number: int, flow: Flow) -> Steps:
    if flow.protocol == "tcp":
        return [Send(number, "syn"), Send(number, "syn-ack", True), Send(number, "ack")]
    steps: list[Step] = [Send(number, "data", size=20), Send(number, "data", True, size=20)]
    if flow.protocol == "udp":
        steps.append(Run(f"conntrack -U -f ipv{flow.family} {ASSURED}"))
    return steps


def talking(number: int) -> Steps:
    return [Send(number, "data", size=100), Send(number, "data", True, size=200)]


@st.composite
def odd_packets(draw: st.DrawFn, number: int, flow: Flow) -> Steps:
    """One packet of any kind."""
    tcp: tuple[What, ...] = ("syn", "syn-ack", "ack", "again", "outside", "fin", "rst")
    errors: tuple[What, ...] = ("unreachable", "too-big", "expired")
    kinds: tuple[What, ...] = ("data", "data", "data", *errors, *(tcp if flow.protocol == "tcp" else ()))
    shape: Shape = draw(st.sampled_from(get_args(Shape)))
    what = draw(st.sampled_from(kinds))
    large = shape == "gso" and flow.protocol == "tcp" and what == "data"
    send = Send(
        number,
        what,
        draw(st.booleans()),
        draw(st.integers(0, LARGEST_GSO) if large else st.sampled_from([0, 1, 100, 700, 1352, LARGEST])),
        draw(st.sampled_from([64, 64, 64, 2, 1, 255])),
        draw(st.sampled_from([0, 0, 0xB8, 0x03])),
        draw(st.sampled_from(["", "", "P", "U", "E", "C"])),
        shape,
    )
    return [send]


def closing(number: int, flow: Flow) -> Steps:
    if flow.protocol != "tcp":
        return talking(number)
    return [
        Send(number, "fin"),
        Send(number, "data", True, size=50),
        Send(number, "fin", True),
        Send(number, "ack"),
    ]


# ---- changes ----


@st.composite
def nft_changes(draw: st.DrawFn, rules: Ruleset | None) -> Run:
    """A change of rules by `nft`; some are of what is not there."""
    if rules is not None and draw(st.booleans()):
        chain = draw(st.sampled_from(rules.chains))
        if not chain.hook.startswith("nat"):
            rule = draw(nft.rules(chain.table, chain.hook, early=True))
            verb = draw(st.sampled_from(["add", "insert"]))
            changes = [
                f"{verb} rule {chain.table} {chain.name} {rule}",
                f"{verb} rule {chain.table} {chain.name} meta l4proto tcp counter drop",
                f"delete rule {chain.table} {chain.name} handle {draw(st.integers(2, 20))}",
                f"flush chain {chain.table} {chain.name}",
            ]
            return Run("nft -f -", draw(st.sampled_from(changes)) + "\n")
        return Run("nft -f -", f"flush chain {chain.table} {chain.name}\n")
    family = draw(st.sampled_from([4, 6]))
    address_ = draw(st.sampled_from(nft.prefixes(family)[:3]))
    table = draw(st.sampled_from(rules.tables if rules is not None else ["inet extra"]))
    changes = [
        f"add element {table} blocked{family} {{ {address_} }}",
        f"add element {table} hosts{family} {{ {address_} }}",
        f"delete element {table} ports {{ 22 }}",
        f"add table {table}\ndelete table {table}",
        "add table inet extra\n"
        "add chain inet extra late { type filter hook postrouting priority 50; }\n"
        "add rule inet extra late ct state established counter",
        "add table inet extra\n"
        "add chain inet extra late { type filter hook postrouting priority 50; }\n"
        "add rule inet extra late meta l4proto { tcp, udp } counter drop",
        "flush ruleset",
    ]
    return Run("nft -f -", draw(st.sampled_from(changes)) + "\n")


@st.composite
def iptables_changes(draw: st.DrawFn, legacy: bool) -> Run:
    family = draw(st.sampled_from([4, 6]))
    tool = iptables.TOOLS[family] + ("-legacy" if legacy else "")
    asked = draw(iptables.matches(family, "filter", "FORWARD"))
    changes = [
        f"-I FORWARD {asked} -j DROP",
        f"-I FORWARD {asked} -j ACCEPT",
        "-D FORWARD 1",
        "-F FORWARD",
        "-t mangle -I PREROUTING -p tcp -j MARK --set-mark 1",
        "-t mangle -F",
        "-t nat -I PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 9",
    ]
    return Run(f"{tool} -w {draw(st.sampled_from(changes))}")


@st.composite
def network_changes(draw: st.DrawFn) -> Steps:
    """Routes, rules of routing, neighbours, links."""
    family = draw(st.sampled_from([4, 6]))
    server = address("wan0", HOSTS[0], family)
    aside = address("wan1", GATEWAY, family)
    segment = draw(st.sampled_from(["lan0", "wan0"]))
    neighbour = address(segment, draw(st.sampled_from([*HOSTS, GATEWAY])), family)
    whole = 32 if family == 4 else 128
    forwarding = "net.ipv4.ip_forward" if family == 4 else "net.ipv6.conf.all.forwarding"
    changes: list[list[str]] = [
        [f"ip -{family} route replace blackhole {server}/{whole}"],
        [f"ip -{family} route replace unreachable {REMOTE[family]}/{whole}"],
        [f"ip -{family} route replace {server}/{whole} via {aside} dev wan1"],
        [f"ip -{family} route replace {REMOTE[family]}/{whole} via {aside} dev wan1 mtu 1300"],
        [f"ip -{family} route delete {REMOTE[family]}/{whole}"],
        [f"ip -{family} rule add pref {FREE_PREFERENCE} from {address('lan0', HOSTS[0], family)} prohibit"],
        [f"ip -{family} rule add pref {FREE_PREFERENCE} fwmark 0x2/0x2 lookup {MARKED_TABLE}"],
        [f"ip neighbour replace {neighbour} lladdr 02:00:00:00:00:77 dev {segment} nud permanent"],
        [f"ip link set {segment} down", f"ip link set {segment} up"],
        [f"ip link set {segment} mtu 1300"],
        [f"sysctl -q -w {forwarding}=0"],
    ]
    return [Run(command) for command in draw(st.sampled_from(changes))]


CONNTRACK = ["conntrack -F", "conntrack -D -p tcp", "conntrack -D -f ipv6 -p tcp", "conntrack -D -p udp"]


# ---- cases ----


@st.composite
def cases(draw: st.DrawFn, legacy: bool) -> Case:
    """Rules of nftables, iptables or both; `legacy`: of the old iptables, with or without nftables."""
    kinds = draw(st.sampled_from(["iptables", "both"] if legacy else ["nft", "nft", "iptables", "both"]))
    ruleset = draw(nft.rulesets()) if kinds != "iptables" else None
    rules: tuple[Run, ...] = (ruleset.run,) if ruleset is not None else ()
    if kinds != "nft":
        rules += draw(iptables.rulesets(legacy))
    some = draw(flows())
    numbers = st.sampled_from(range(len(some)))
    change: SearchStrategy[Steps] = st.one_of(
        st.builds(_alone, nft_changes(ruleset)),
        st.builds(_alone, nft_changes(ruleset)),
        st.builds(_alone, iptables_changes(legacy)),
        network_changes(),
        st.builds(_alone, st.builds(Run, st.sampled_from(CONNTRACK))),
    )
    block: SearchStrategy[Steps] = st.one_of(
        numbers.map(talking),
        numbers.flatmap(lambda number: odd_packets(number, some[number])),
        numbers.flatmap(lambda number: odd_packets(number, some[number])),
        st.builds(_then_talk, change, numbers),
        numbers.map(lambda number: closing(number, some[number])),
        numbers.map(lambda number: opening(number, some[number])),
    )
    blocks = draw(st.lists(block, min_size=1, max_size=8))
    opened = [step for number, flow in enumerate(some) for step in (*opening(number, flow), *talking(number))]
    return Case(some, rules, (*opened, *(step for steps in blocks for step in steps)))


def _alone(run: Run) -> Steps:
    return [run]


def _then_talk(change: Steps, number: int) -> Steps:
    return [*change, *talking(number)]
