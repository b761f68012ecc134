# SPDX-License-Identifier: Apache-2.0
"""Random rulesets, imported: every first packet gets from clearway what it gets from the ruleset, as far as
it goes through no rule that was reported as not taken over."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from clearway.importer.box import NEVER_JUDGED
from clearway.importer.detect import read_ruleset
from clearway.importer.translate import translate
from tests.unit.import_reference import Followed, Packet, judged, packet

SEEDS = range(60)
PACKETS = 120
USER_CHAINS = ("a", "b", "c")

SOURCES = ("10.0.0.1", "10.0.0.9", "10.1.2.3", "192.0.2.1", "198.51.100.7", "255.255.255.255")
SOURCES_6 = ("2001:db8::1", "2001:db8:1::9", "fe80::1", "::1:2:3")
PORTS = (1, 22, 53, 80, 81, 443, 1024, 65535)
INTERFACES = ("eth0", "eth1", "wg0", "docker0")

IPTABLES_MATCHES = (
    *("-s 10.0.0.0/8", "! -s 10.0.0.0/24", "-d 192.0.2.0/24", "! -d 10.1.0.0/16", "-s 10.0.0.1/32"),
    *("-i eth0", "! -i eth0", "-i eth+", "-i lo", "-i docker0", "! -i docker0"),
    *("-p tcp -m tcp --dport 22", "-p tcp -m tcp ! --dport 22:80", "-p udp -m udp --dport 53"),
    *(
        "-p tcp -m multiport --dports 22,80,443",
        "-p udp -m multiport ! --sports 53,81",
        "-p sctp -m sctp --dport 80",
    ),
    *(
        "-p tcp",
        "! -p tcp",
        "-p icmp -m icmp --icmp-type 8",
        "-p icmp -m icmp ! --icmp-type 8",
        "-p icmp -m icmp --icmp-type 3/4",
    ),
    *("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN"),
    *(
        "-m conntrack --ctstate NEW",
        "-m conntrack --ctstate RELATED,ESTABLISHED",
        "-m conntrack ! --ctstate INVALID",
    ),
    *(
        "-m dscp --dscp 0x2e",
        "-m dscp ! --dscp 0x2e",
        "-m ttl --ttl-lt 64",
        "-m limit --limit 3/min",
        "-m mark --mark 0x1",
    ),
    *(
        "-m addrtype --dst-type LOCAL",
        "-m addrtype --dst-type BROADCAST,MULTICAST",
        "-m iprange --src-range 10.0.0.5-10.0.0.12",
    ),
    *("-m iprange ! --src-range 10.0.0.5-10.0.0.12", ""),
)
FORWARD_MATCHES = ("-o eth1", "! -o eth1", "-o docker0", "! -o docker0")
IPTABLES_TARGETS = (
    *("ACCEPT", "ACCEPT", "DROP", "DROP", "RETURN", 'LOG --log-prefix "x: "'),
    *(
        "REJECT --reject-with icmp-port-unreachable",
        "MARK --set-xmark 0x1/0xffffffff",
        "NFQUEUE --queue-num 1",
    ),
)
NFT_MATCHES = (
    *(
        "ip saddr 10.0.0.0/8",
        "ip saddr != 10.0.0.0/24",
        "ip6 saddr 2001:db8::/32",
        "ip6 saddr != 2001:db8::/48",
    ),
    *(
        "ip saddr @hosts",
        "ip saddr != @hosts",
        "tcp dport @ports",
        "ip6 daddr fe80::/10",
        "ip daddr 192.0.2.0/24",
    ),
    *(
        'iifname "eth0"',
        'iifname != "eth0"',
        'iifname "eth*"',
        'iifname { "eth0", "wg0" }',
        'iif "lo"',
        'iifname != "lo"',
    ),
    *(
        "tcp dport 22",
        "tcp dport != { 22, 80-443 }",
        "udp dport 53",
        "tcp sport >= 1024",
        "th dport 53",
        "sctp dport 80",
    ),
    *(
        "meta l4proto { tcp, udp } th dport 53",
        "meta l4proto != tcp",
        "meta nfproto ipv4",
        "meta nfproto ipv6",
    ),
    *(
        "icmp type echo-request",
        "icmpv6 type { echo-request, nd-neighbor-solicit }",
        "icmp type != echo-request",
    ),
    *(
        "tcp flags syn / fin,syn,rst,ack",
        "tcp flags != syn / fin,syn,rst,ack",
        "tcp flags syn",
        "tcp flags ! fin,rst",
    ),
    *("ct state new", "ct state established,related", "ct state != invalid", "ip dscp ef", "ip6 dscp != cs0"),
    *(
        "ip saddr . tcp dport { 10.0.0.1 . 22, 10.0.0.0/24 . 80-90 }",
        "ip saddr . tcp dport != { 10.0.0.1 . 22 }",
    ),
    *("limit rate 3/minute", "meta mark 0x00000001", "ip ttl < 64", "fib daddr type local", ""),
)
NFT_FORWARD = ('oifname "eth1"', 'oifname != "eth1"', 'oifname { "docker0", "eth1" }')
NFT_VERDICTS = (
    "accept",
    "accept",
    "drop",
    "drop",
    "return",
    "log",
    "reject",
    "queue num 1",
    "counter packets 0 bytes 0 drop",
)
VMAPS = (
    "tcp dport vmap { 22 : accept, 80-443 : drop, 1024 : jump c }",
    "ct state vmap { established : accept, related : accept, new : jump c }",
    'iifname vmap { "eth0" : jump c, "wg0" : drop }',
    "meta nfproto vmap { ipv4 : jump c }",
)


def iptables_rule(chance: random.Random, chain: str, below: Sequence[str]) -> str:
    options = [*IPTABLES_MATCHES, *(FORWARD_MATCHES if chain == "FORWARD" else ())]
    matches = _consistent(chance.sample(options, chance.choice((0, 1, 1, 2, 3))))
    targets = [f"-j {target}" for target in IPTABLES_TARGETS]
    targets += [f"-{letter} {name}" for name in below for letter in "jjg"]
    return " ".join(filter(None, [f"-A {chain}", *matches, chance.choice(targets)]))


def _consistent(matches: Sequence[str]) -> list[str]:
    """No option twice, as iptables has it."""
    found: list[str] = []
    seen: set[str] = set()
    for match in matches:
        options = {word for word in match.split() if word.startswith("-")} - {"-m"}
        if not options & seen:
            seen |= options
            found.append(match)
    return found


def iptables_text(chance: random.Random) -> str:
    policies = [f":{name} {chance.choice(('ACCEPT', 'DROP'))} [0:0]" for name in ("INPUT", "FORWARD")]
    lines = [
        "# Generated by iptables-save v1.8.9",
        "*filter",
        *policies,
        *(f":{name} - [0:0]" for name in USER_CHAINS),
    ]
    if chance.random() < 0.5:
        lines += [
            f"-A {name} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT" for name in ("INPUT", "FORWARD")
        ]
    for name in ("INPUT", "FORWARD", *USER_CHAINS):
        below = USER_CHAINS[USER_CHAINS.index(name) + 1 :] if name in USER_CHAINS else USER_CHAINS
        lines += [iptables_rule(chance, name, below) for _ in range(chance.randint(0, 6))]
    return "\n".join([*lines, "COMMIT", ""])


def nft_rule(chance: random.Random, below: Sequence[str], matches: Sequence[str]) -> str:
    if "c" in below and chance.random() < 0.15:
        return chance.choice(VMAPS)
    said = chance.sample(matches, chance.choice((0, 1, 1, 2, 3)))
    verdicts = [*NFT_VERDICTS, *(f"{verb} {name}" for name in below for verb in ("jump", "jump", "goto"))]
    return " ".join(filter(None, [*said, chance.choice(verdicts)]))


def nft_text(chance: random.Random) -> str:
    """One table or two, with one or two chains at a hook."""
    return "\n".join(
        nft_table(chance, family)
        for family in chance.choice((["inet"], ["inet"], ["inet", "inet"], ["ip", "ip6"], ["ip6", "inet"]))
    )


def nft_table(chance: random.Random, family: str) -> str:
    number = chance.randint(0, 9999)
    lines = [
        f"table {family} t{number} {{",
        "set hosts { type ipv4_addr; flags interval; elements = { 10.0.0.5-10.0.0.12, 192.0.2.1 }; }",
        "set ports { type inet_service; flags interval; elements = { 22, 80-81 }; }",
    ]
    for hook in ("input", "forward"):
        priority, policy = chance.randint(-10, 10), chance.choice(("accept", "drop"))
        header = f"type filter hook {hook} priority {priority}; policy {policy};"
        matches = [*NFT_MATCHES, *(NFT_FORWARD if hook == "forward" else ())]
        rules = [nft_rule(chance, USER_CHAINS, matches) for _ in range(chance.randint(0, 5))]
        if chance.random() < 0.5:
            rules.insert(0, "ct state established,related accept")
        lines += [f"chain {hook} {{", header, *rules, "}"]
    for position, name in enumerate(USER_CHAINS):
        rules = [
            nft_rule(chance, USER_CHAINS[position + 1 :], NFT_MATCHES) for _ in range(chance.randint(0, 4))
        ]
        lines += [f"chain {name} {{", *rules, "}"]
    return "\n".join([*lines, "}"])


def some_packet(chance: random.Random, hook: str) -> Packet:
    addresses = SOURCES if chance.random() < 0.6 else SOURCES_6
    protocol = chance.choice((6, 6, 6, 17, 17, 1, 58, 132, 47))
    return packet(
        chance.choice(addresses),
        chance.choice(addresses),
        protocol=protocol,
        sport=chance.choice(PORTS),
        dport=chance.choice(PORTS),
        icmp=chance.choice((8, 0, 3, 128, 1, 11)),
        code=chance.choice((0, 4)),
        flags=chance.choice((0x02, 0x02, 0x12, 0x10, 0x01, 0x00, 0x29, 0xC2)),
        dscp=chance.choice((0, 46, 10)),
        hops=chance.choice((64, 1, 255)),
        inside=chance.choice(INTERFACES),
        outside="" if hook == "input" else chance.choice(INTERFACES),
        to=chance.choice((2, 3, 5)) if hook == "input" else 1,
    )


def compare(text: str, seed: int) -> bool:
    """Whether anything was compared, and the import claimed to be exact."""
    ruleset = read_ruleset(text)
    result = translate(ruleset)
    refused = {item.line for item in result.not_taken}
    chance = random.Random(seed)
    for _ in range(PACKETS):
        hook = chance.choice(("input", "forward"))
        one = some_packet(chance, hook)
        followed = Followed(ruleset, one, lambda _rule: chance.random() < 0.5)
        expected = followed.verdict(hook)
        if refused & {rule.line for rule in followed.met}:
            continue
        assert judged(result.firewall, one, hook) == expected, (text, one, hook, result.to_dict())
    return result.exact


@pytest.mark.parametrize("seed", SEEDS)
def test_iptables(seed: int) -> None:
    compare(iptables_text(random.Random(seed)), seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_nft(seed: int) -> None:
    compare(nft_text(random.Random(seed)), seed)


PLAIN = (
    *("ip saddr 10.0.0.0/8", "ip saddr != 10.0.0.0/24", "ip6 saddr 2001:db8::/32", "ip saddr @hosts", ""),
    *('iifname "eth0"', 'iifname { "eth0", "wg0" }', "tcp dport 22", "tcp dport != { 22, 80-443 }"),
    *("udp dport 53", "meta l4proto { tcp, udp } th dport @ports", "icmp type echo-request", "ip dscp ef"),
    *("tcp flags syn / fin,syn,rst,ack", "tcp flags syn", "meta nfproto ipv6", "ct state new"),
)
NEVER = ", ".join(str(number) for number in NEVER_JUDGED)


def plain_text(chance: random.Random) -> str:
    """Nothing in it is beyond clearway: two chains at a hook, jumps, gotos and returns of base chains."""
    lines = [
        "table inet t {",
        "set hosts { type ipv4_addr; flags interval; elements = { 10.0.0.5-10.0.0.12 }; }",
    ]
    lines += ["set ports { type inet_service; elements = { 22, 80 }; }"]
    for number, hook in enumerate(("input", "forward", "input")):
        policy = chance.choice(("accept", "drop"))
        rules = ["ct state established,related accept", f"icmpv6 type {{ {NEVER} }} accept"]
        verdicts = ("accept", "drop", "jump a", "jump b", "goto a", "return")
        rules += [" ".join((*chance.sample(PLAIN, 2), chance.choice(verdicts))) for _ in range(4)]
        header = f"type filter hook {hook} priority {number}; policy {policy};"
        lines += [f"chain {hook}{number} {{", header, *rules, "}"]
    below = {"a": ("accept", "drop", "jump b"), "b": ("accept", "drop")}
    for name, choices in below.items():
        rules = [" ".join((*chance.sample(PLAIN, 2), chance.choice(choices))) for _ in range(3)]
        lines += [f"chain {name} {{", *rules, "}"]
    return "\n".join([*lines, "}"])


@pytest.mark.parametrize("seed", SEEDS)
def test_plain_rulesets_are_exact(seed: int) -> None:
    assert compare(plain_text(random.Random(seed)), seed)
