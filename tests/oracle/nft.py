# SPDX-License-Identifier: Apache-2.0
"""Rulesets of nftables by chance: all families and priorities, sets, maps, marks, NAT, quotas.

Nothing in them decides by chance or by the clock, and no rule of a chain that sees what the router itself
sends is met by MLD or neighbour discovery.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from tests.oracle.case import Run
from tests.oracle.network import HOSTS, NOBODY, REMOTE, ROUTER, address

PORTS = (22, 53, 80, 443)
WORD = {4: "ip", 6: "ip6"}
FAMILIES = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
PRIORITIES = {
    "prerouting": (-300, -150, 0),
    "forward": (-150, 0, 0, 10),
    "postrouting": (-150, 0, 100),
    "input": (0,),
}
CONNTRACKS = -200  # the priority at which conntrack has seen a packet


@dataclass(frozen=True)
class Chain:
    table: str  # with its family: inet t0
    name: str
    hook: str


@dataclass(frozen=True)
class Ruleset:
    """What loads it, and what later changes can be made to."""

    run: Run
    chains: tuple[Chain, ...]

    @property
    def tables(self) -> list[str]:
        return sorted({chain.table for chain in self.chains})


def families(table: str) -> tuple[int, ...]:
    return FAMILIES[table.partition(" ")[0]]


def prefixes(family: int) -> list[str]:
    """Of those who take part."""
    one = address("lan0", HOSTS[0], family)
    more = ["10.1.1.0/24", "10.1.0.0/16"] if family == 4 else ["fd00:1:1::/64", "fd00:1::/32"]
    return [one, address("wan0", HOSTS[0], family), REMOTE[family], *more]


def sets(family: int) -> list[str]:
    """Named sets and maps that each table has, for a family."""
    kind = f"ipv{family}_addr"
    near = address("lan1", HOSTS[0], family)
    pairs = f"{address('wan0', HOSTS[0], family)} . 80, {REMOTE[family]} . 22"
    return [
        f"set hosts{family} {{ type {kind}; flags interval; elements = {{ {near}, {REMOTE[family]} }}; }}",
        f"set blocked{family} {{ type {kind}; }}",
        f"set seen{family} {{ type {kind}; size 64; flags dynamic; }}",
        f"set pairs{family} {{ type {kind} . inet_service; elements = {{ {pairs} }}; }}",
    ]


PORT_SETS = [
    "set ports { type inet_service; flags interval; elements = { 22, 80-90 }; }",
    "map marks { type inet_service : mark; elements = { 80 : 0x1, 443 : 0x2, 53 : 0x10 }; }",
]


def matches(family: int, port: int, where: str, hook: str, early: bool) -> list[str]:
    """What a rule can ask for. `where`: saddr or daddr. `early`: before conntrack has seen the packet."""
    word = WORD[family]
    asked = [
        *(f"{word} {where} {prefix}" for prefix in prefixes(family)[:3]),
        f"{word} {where} @hosts{family}",
        f"{word} {where} != @blocked{family} meta l4proto tcp",
        f"tcp dport {port}",
        f"udp dport {port}",
        f"meta l4proto {{ tcp, udp }} th dport {{ {port}, 8080 }}",
        f"{word} daddr . tcp dport @pairs{family}",
        "meta l4proto { tcp, udp } th dport @ports",
        "meta l4proto { tcp, udp } meta length > 600",
        "tcp flags & (fin | syn | rst | ack) == ack",
        f"{word} dscp ef",
        "meta mark 0x1",
        "meta mark & 0x3 == 0x2",
        "tcp sport { 22, 80, 443 }",
    ]
    if not early:
        asked += [
            "ct state established,related",
            "ct state established,related",
            "ct state new meta l4proto { tcp, udp }",
            "ct state invalid",
            "ct direction reply",
            "ct status assured",
            "ct status dnat",
            "ct mark 0x2",
            "ct mark & 0x1 == 0x1",
            "ct mark != 0x0",
            "ct bytes > 2000",
            f"ct original {word} daddr {address('wan0', HOSTS[0], family)}",
        ]
    if hook != "postrouting":
        asked += ["iifname lan0", ""]
    if hook == "prerouting":
        back = ("saddr . iif oif missing", "saddr . iif oif exists", "saddr . mark . iif oif missing")
        asked += [f"meta l4proto {{ tcp, udp }} fib {one}" for one in (*back, "saddr oif missing")]
    return asked if hook in ("prerouting", "input") else [*asked, "oifname wan0 meta l4proto { tcp, udp }"]


def statements(family: int, port: int, mark: int, hook: str, early: bool) -> list[str]:
    """What a rule of a filter chain can do."""
    word = WORD[family]
    done = [
        "counter accept",
        "counter accept",
        "accept",
        "counter",
        "counter drop",
        "counter return",
        f"meta mark set {mark} counter",
        "meta l4proto { tcp, udp } meta mark set th dport map @marks",
        f"add @seen{family} {{ {word} saddr }} counter",
        f"{word} dscp set af21",
        f"{word} {'ttl' if family == 4 else 'hoplimit'} set 33",
        f"{word} dscp set cs1 accept",
        "tcp flags syn tcp option maxseg size set 1000",
        f"tcp dport vmap {{ {port} : drop, 8080 : accept }}",
        f"tcp dport vmap {{ {port} : continue, 8080 : jump aside }} counter accept",
        "quota over 3000 bytes drop",
        "limit rate over 4000000/second drop",
        "numgen inc mod 4 0 counter drop",
        "counter jump aside",
    ]
    if early:
        done += ["notrack"]  # a zone has the same tuple once more, and Linux draws a port for it by chance
    else:
        done += [
            f"ct mark set {mark}",
            "ct mark set meta mark",
            "meta mark set ct mark",
            "counter meta mark set ct mark & 0x1",
            f"ct mark set ct mark | {mark}",
            f"meta mark set meta mark & 0xfffffffe | {mark & 1} counter",
            "ct mark vmap { 0x1 : accept, 0x2 : jump aside }",
            "ct mark vmap { 0x0 : continue, 0x1 : jump aside } counter drop",
        ]
    if hook in ("forward", "input"):
        done += ["counter reject", "tcp flags ack counter reject with tcp reset"]
    return done


def _protocol(text: str) -> str:
    """Which layer 4 it speaks of, as far as nft asks."""
    names = [name for name in ("{ tcp, udp }", "tcp ", "udp ") if name in f"{text} "]
    return names[0] if names else ""


@st.composite
def rules(draw: st.DrawFn, table: str, hook: str, early: bool = False) -> str:
    """A rule of a filter chain."""
    family = draw(st.sampled_from(families(table)))
    port, where = draw(st.sampled_from(PORTS)), draw(st.sampled_from(["saddr", "daddr"]))
    asked = draw(st.sampled_from(matches(family, port, where, hook, early)))
    done = statements(family, port, draw(st.integers(0, 3)), hook, early)
    fitting = [one for one in done if not _protocol(asked) or _protocol(one) in ("", _protocol(asked))]
    return f"{asked} {draw(st.sampled_from(fitting))}".strip()


@st.composite
def translations(draw: st.DrawFn, table: str, hook: str) -> str:
    """A rule of a NAT chain, whole."""
    family = draw(st.sampled_from(families(table)))
    word, port = WORD[family], draw(st.sampled_from(PORTS))
    to = f"{word} to" if table.startswith("inet") else "to"
    remote, server, other = REMOTE[family], *(address("wan0", host, family) for host in HOSTS)
    quoted = other if family == 4 else f"[{other}]"
    if hook == "postrouting":
        choices = [
            "oifname wan0 counter masquerade",
            f"{word} saddr {prefixes(family)[-1]} counter snat {to} {address('wan0', NOBODY, family)}",
            f"tcp dport {port} snat {to} {address('wan0', ROUTER, family)}",
        ]
    else:
        choices = [
            f"tcp dport {port} counter dnat {to} {quoted}:8080",
            f"{word} daddr {remote} counter dnat {to} {server}",
            f"iifname lan0 dnat {to} {word} daddr map {{ {server} : {other}, {remote} : {server} }}",
            f"udp dport {port} dnat {to} {quoted}:5353",
            f"tcp dport {port} redirect to :9",
        ]
    return draw(st.sampled_from(choices))


@st.composite
def _filter_chain(draw: st.DrawFn, table: str, number: int) -> tuple[Chain, str]:
    hook = draw(st.sampled_from(["forward", "forward", "prerouting", "postrouting", "input"]))
    priority = draw(st.sampled_from(PRIORITIES[hook]))
    early = hook == "prerouting" and priority < CONNTRACKS
    policy = draw(st.sampled_from(["accept"] * 7 + ["drop"])) if hook == "forward" else "accept"
    texts = draw(st.lists(rules(table, hook, early), max_size=4))
    if policy == "drop":
        texts = [
            "ct state established,related counter accept",
            *texts,
            "tcp dport { 80, 443 } counter accept",
        ]
    head = f"type filter hook {hook} priority {priority}; policy {policy};"
    return Chain(table, f"c{number}", hook), _braced(f"chain c{number}", [head, *texts])


@st.composite
def _nat_chain(draw: st.DrawFn, table: str, number: int) -> tuple[Chain, str]:
    hook, priority = draw(st.sampled_from([("prerouting", -100), ("postrouting", 100)]))
    texts = draw(st.lists(translations(table, hook), min_size=1, max_size=2))
    head = f"type nat hook {hook} priority {priority};"
    return Chain(table, f"c{number}", f"nat {hook}"), _braced(f"chain c{number}", [head, *texts])


def _braced(name: str, lines: list[str]) -> str:
    return "\n".join([f"{name} {{", *(f"  {line}" for line in lines), "}"])


ASIDE = _braced("chain aside", ["meta l4proto tcp counter", "meta l4proto udp counter return"])


@st.composite
def rulesets(draw: st.DrawFn) -> Ruleset:
    """One to three tables of one to three chains."""
    texts, chains = [], []
    for number in range(draw(st.integers(1, 3))):
        table = f"{draw(st.sampled_from(['inet', 'ip', 'ip6', 'inet']))} t{number}"
        content = [line for family in families(table) for line in sets(family)] + PORT_SETS
        content.append(ASIDE)
        kinds = [_filter_chain, _filter_chain, _nat_chain]
        for place in range(draw(st.integers(1, 3))):
            kind = draw(st.sampled_from(kinds))
            chain, text = draw(kind(table, place))
            chains.append(chain)
            content.append(text)
        texts.append(_braced(f"table {table}", content))
    return Ruleset(Run("nft -f -", "\n".join(texts) + "\n"), tuple(chains))
