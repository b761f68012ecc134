# SPDX-License-Identifier: Apache-2.0
"""Rulesets as nft and iptables-nft print them, and which flows through them are kept in Linux."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

import pytest

from clearway.lab.namespace import Namespace
from clearway.linux.xfrm import Policy, policies
from clearway.proof import Passage, Proof, Sources, prove

WEB = Passage(
    4,
    6,
    (ip_address("10.1.0.5"), 40000, ip_address("192.0.2.1"), 443),
    (ip_address("203.0.113.1"), 50000, ip_address("192.0.2.1"), 443),
    "lan0",
    "wan",
)
"""Masqueraded; the machine has 203.0.113.1."""
BACK = Passage(
    4,
    6,
    (ip_address("192.0.2.1"), 443, ip_address("203.0.113.1"), 50000),
    (ip_address("192.0.2.1"), 443, ip_address("10.1.0.5"), 40000),
    "wan",
    "lan0",
)
DNS = replace(WEB, protocol=17, arrives=(*WEB.arrives[:3], 53), leaves=(*WEB.leaves[:3], 53))
SIX = Passage(
    6,
    6,
    (ip_address("2001:db8:1::5"), 40000, ip_address("2001:db8:9::1"), 443),
    (ip_address("2001:db8:1::5"), 40000, ip_address("2001:db8:9::1"), 443),
    "lan0",
    "wan",
)
FLOWS = {"web": WEB, "back": BACK, "dns": DNS, "six": SIX}
ALL = "web back dns six"


@pytest.fixture(scope="module")
def router(lab_names: Iterator[str]) -> Iterator[Namespace]:
    """It needs no devices: rules name them."""
    namespace = Namespace(f"cw-{next(lab_names)}")
    namespace.create()
    try:
        yield namespace
    finally:
        namespace.delete()


def sources(router: Namespace) -> Sources:
    return Sources(
        router.run("nft", "-j", "list", "ruleset").stdout,
        {"ip": router.run("iptables-nft-save").stdout, "ip6": router.run("ip6tables-nft-save").stdout},
    )


def kept(proof: Proof) -> str:
    return " ".join(name for name, flow in FLOWS.items() if proof.why_kept(flow) is not None)


@dataclass(frozen=True)
class Case:
    """`rules`: of a chain at `hook`, and of a chain `other`, in a table of `family`. `kept`: of FLOWS."""

    name: str
    rules: str
    kept: str
    hook: str = "forward priority filter; policy accept;"
    other: str = ""
    sets: str = ""
    family: str = "inet"

    def text(self) -> str:
        chains = (
            f"chain other {{\n{self.other}\n}}\nchain c {{\ntype filter hook {self.hook}\n{self.rules}\n}}"
        )
        return f"table {self.family} t {{\n{self.sets}\n{chains}\n}}"


BEFORE, RAW = "prerouting priority mangle; policy accept;", "prerouting priority raw; policy accept;"
AFTER, DROP = "postrouting priority 150; policy accept;", "forward priority filter; policy drop;"
ESTABLISHED = "ct state established,related accept\n"

CASES = (
    Case("no rules", "", ""),
    Case("policy drop", "", ALL, DROP),
    Case("established first", f"{ESTABLISHED} ip saddr 10.1.0.0/16 limit rate 1/second log drop", "", DROP),
    Case(
        "verdict map of states",
        "ct state vmap { established : accept, related : accept, invalid : drop }",
        "",
        DROP,
    ),
    Case(
        "stateless filter",
        "ip saddr 10.1.0.0/16 accept\nip daddr 10.1.0.0/16 tcp sport 443 accept",
        "six",
        DROP,
    ),
    Case("only what a rule drops", "ip saddr 10.1.0.0/16 udp dport 53 drop", "dns"),
    Case("new connections only", 'ct state new limit rate 5/second log prefix "new"\nct state new drop', ""),
    Case("invalid is not met", "ct state invalid log drop", ""),
    Case(
        "no packets but SYNs",
        "tcp flags syn limit rate 9/second drop\ntcp flags & (fin|syn) == (fin|syn) drop",
        "",
    ),
    Case("no flags at all", "tcp flags & (fin|syn|rst|psh|ack|urg) == 0x0 log drop", ""),
    Case("clamping of SYNs", "tcp flags syn tcp option maxseg size set rt mtu", ""),
    Case("clamping of all", "oifname wan tcp option maxseg size set rt mtu", "web six"),
    Case("counters", "counter\nip saddr 10.1.0.0/16 counter accept", ""),
    Case("named counter", "counter name seen accept", "", sets="counter seen { }"),
    Case("what is asked after a limit does not help", "limit rate 5/second tcp dport 22 drop", ALL),
    Case("limit for some", "tcp dport 443 limit rate 5/second accept", "web six"),
    Case("log for some", "udp dport 53 log", "dns"),
    Case("quota", "iifname lan0 quota over 10 mbytes drop", "web dns six"),
    Case("named quota", "iifname wan quota name q drop", "back", sets="quota q { over 10 mbytes }"),
    Case("connections are counted", "iifname wan ct count over 10 drop", "back"),
    Case("DSCP is set", "ip dscp set ef", ""),
    Case("DSCP is set twice", "ip dscp set ef\nudp dport 53 ip dscp set cs1", ""),
    Case("DSCP is set, and asked for", "ip dscp set ef\nip dscp ef udp dport 53 accept", "dns"),
    Case("TTL is set", "ip ttl set 33\nip6 hoplimit set 12", ""),
    Case("TTL is set twice", "ip ttl set 33\nudp dport 53 ip ttl set 20", "dns"),
    Case("ECN is set", "udp dport 53 ip ecn set ect0", "dns"),
    Case("DSCP is asked, and nothing done", "ip dscp ef", ""),
    Case("DSCP is asked", "ip dscp ef accept", "web back dns"),
    Case("counted by DSCP", "ip saddr 10.1.0.0/16 ip dscp ef counter", "web dns"),
    Case("TTL", "ip ttl 1 drop\nip ttl < 5 accept", "web back dns"),
    Case("TTL before forwarding", "ip ttl 1 drop", "", BEFORE),
    Case("length", "udp dport 53 meta length > 1000 drop", "dns"),
    Case("fragments", "ip frag-off & 0x1fff != 0 counter drop\nexthdr frag exists drop", ""),
    Case("other headers", "rt type 0 drop\nip6 nexthdr { tcp, udp } accept\nmeta nfproto ipv6 drop", ""),
    Case("mark is set", "iifname wan meta mark set 7", ""),
    Case("mark is asked", "meta mark 7 drop\nmeta mark & 0xff00 == 0x100 log", ""),
    Case("mark from conntrack", "meta mark set ct mark\nct mark set meta mark", ""),
    Case("mark to conntrack", "udp dport 53 ct mark set 7", "dns"),
    Case("mark to conntrack before it looks", "meta mark set ct mark accept", ALL, RAW),
    Case("status", "ct status dnat accept", ALL),
    Case("status of few", "udp dport 53 ct status dnat accept", "dns"),
    Case("type of address", "fib daddr type { local, broadcast } drop", "", family="ip"),
    Case("type of address before NAT", "iifname wan fib daddr type local drop", "back", BEFORE, family="ip"),
    Case("reverse path", "meta nfproto ipv6 fib saddr . iif oif missing log drop", "", BEFORE),
    Case("reverse path by marks", "fib saddr . mark . iif oif missing counter drop", "", BEFORE),
    Case("reverse path exists", "iifname lan0 fib saddr oif exists accept\nudp dport 53 drop", "", BEFORE),
    Case("path of the destination", "udp dport 53 fib daddr . iif oif missing drop", "dns", BEFORE),
    Case("another way back", 'udp dport 53 fib saddr . iif oif "lo" accept', "dns", BEFORE),
    Case("reverse path behind routing", "iifname lan0 fib saddr . iif oif missing drop", "web dns six"),
    Case("link broadcast", "meta pkttype { broadcast, multicast } log drop", ""),
    Case("source before NAT", "ip saddr 10.1.0.5 drop", "web dns", "postrouting priority 90; policy accept;"),
    Case("source after NAT", "ip saddr 203.0.113.1 log", "web dns", AFTER),
    Case("private source is not seen after NAT", "ip saddr 10.0.0.0/8 drop", "", AFTER),
    Case("destination before NAT", "ip daddr 203.0.113.1 drop", "back", BEFORE),
    Case("destination after NAT", "ip daddr 10.1.0.5 drop", "back"),
    Case(
        "either side of NAT",
        "ip daddr { 203.0.113.1, 10.1.0.5 } drop",
        "back",
        "prerouting priority dstnat; policy accept;",
    ),
    Case("notrack", "iifname lan0 udp dport 53 notrack", "dns", RAW),
    Case("state is not known yet", "ct state established accept\nct state invalid drop", ALL, RAW),
    Case("no way out is known yet", "oifname wan drop", "", BEFORE),
    Case("jump", "iifname lan0 jump other", "dns", other="udp dport 53 drop"),
    Case("return", "jump other\noifname wan log", "web dns six", other="udp dport 53 return"),
    Case("return of few", "iifname lan0 jump other", "web six", other="udp dport 53 return\ndrop"),
    Case("goto", "iifname lan0 goto other\ndrop", "back", other="counter"),
    Case(
        "uncertain return", "jump other", "web back dns", other="ip dscp ef return\nip version 4 drop\naccept"
    ),
    Case("uncertain jump", "ip dscp ef jump other", "", other=""),
    Case(
        "verdict map",
        "ip saddr vmap @m",
        "web dns",
        sets="map m { type ipv4_addr : verdict; elements = { 10.1.0.5 : drop, 192.0.2.1 : accept } }",
    ),
    Case(
        "verdict map of names",
        "iifname vmap { lan0 : jump other, wan : accept }",
        "dns",
        other="udp dport 53 drop",
    ),
    Case(
        "set",
        "ip saddr @s drop",
        "back",
        sets="set s { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 } }",
    ),
    Case(
        "set that packets change",
        "add @s { ip saddr }",
        ALL,
        sets="set s { type ipv4_addr; flags dynamic; size 9; }",
    ),
    Case(
        "set that changes is asked",
        "ip saddr @s accept\niifname lan0 udp dport 53 update @s { ip saddr }",
        "web back dns",
        sets="set s { type ipv4_addr; flags dynamic; size 9; }",
    ),
    Case(
        "set with timeouts",
        "ip saddr @s drop",
        "web back dns",
        sets="set s { type ipv4_addr; flags timeout; }",
    ),
    Case(
        "set that counts",
        "ip saddr @s accept",
        "web back dns",
        sets="set s { type ipv4_addr; counter; elements = { 1.2.3.4 } }",
    ),
    Case(
        "combinations",
        "ip saddr . tcp dport @s drop",
        "web",
        sets="set s { type ipv4_addr . inet_service; elements = { 10.1.0.5 . 443 } }",
    ),
    Case("all interfaces but", 'iifname != "lan0" drop', "back"),
    Case("some interfaces", 'iifname { "lan0", "lan1" } drop', "web dns six"),
    Case("pattern of interfaces", 'udp dport 53 iifname "lan*" accept', "dns"),
    Case("families", "meta nfproto ipv4 accept\nmeta nfproto ipv6 log", "six"),
    Case("random", "iifname wan numgen random mod 2 0 drop", "back"),
    Case("trace", "udp dport 53 meta nftrace set 1", "dns"),
    Case("not on the way", "log drop", "", "input priority filter; policy drop;"),
    Case("table of IPv4", "drop", "web back dns", family="ip"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nft(router: Namespace, case: Case) -> None:
    router.run("nft", "flush", "ruleset")
    router.run("nft", "-f", "-", stdin=case.text())
    assert kept(prove(sources(router))) == case.kept


def test_dormant_table_is_taken_for_one_in_force_where_nft_does_not_tell(router: Namespace) -> None:
    router.run("nft", "flush", "ruleset")
    rules = "chain c { type filter hook forward priority filter; policy drop; }\n"
    router.run("nft", "-f", "-", stdin=f"table inet t {{ flags dormant; {rules}\n}}")
    listed = sources(router)
    assert kept(prove(listed)) in ("", ALL)
    told = listed.nft.replace(
        '"family": "inet", "name": "t"', '"family": "inet", "flags": ["dormant"], "name": "t"'
    )
    assert kept(prove(Sources(told))) in ("", ALL)


def test_nat_chains_are_not_met(router: Namespace) -> None:
    router.run("nft", "flush", "ruleset")
    chains = (
        "chain d { type nat hook prerouting priority dstnat; tcp dport 80 log dnat ip to 10.1.0.9; }\n"
        "chain s { type nat hook postrouting priority srcnat; limit rate 1/second masquerade; }\n"
    )
    router.run("nft", "-f", "-", stdin=f"table inet t {{ {chains} }}")
    proof = prove(sources(router))
    assert kept(proof) == ""
    assert {rule.kind for rule in proof.rules} == {"restorable"}


def test_ingress_of_a_device_keeps_what_arrives(router: Namespace) -> None:
    """nftables 1.0.6 does not tell the device of a chain to newer kernels' lists; then it may be any."""
    router.run("nft", "flush", "ruleset")
    chain = (
        'chain i { type filter hook ingress device "lo" priority 0; policy accept; ip saddr 10.9.9.9 drop; }'
    )
    router.run("nft", "-f", "-", stdin=f"table netdev t {{ {chain}\n}}")
    listed = sources(router)
    if '"dev"' not in listed.nft:
        assert kept(prove(listed)) == ALL
        listed = replace(
            listed, nft=listed.nft.replace('"hook": "ingress"', '"hook": "ingress", "dev": "lan"')
        )
    assert kept(prove(listed)) == ""
    assert kept(prove(replace(listed, above={"lan": frozenset({"lan0"})}))) == "web dns six"


MANGLE = "-t mangle -A"
STATES = "-m conntrack --ctstate"
IPTABLES = (
    ("established first", "-P FORWARD DROP", f"-A FORWARD {STATES} RELATED,ESTABLISHED -j ACCEPT", ""),
    ("policy drop", "-P FORWARD DROP", "-A FORWARD -s 10.1.0.0/16 -j ACCEPT", "back"),
    ("clamping", f"{MANGLE} FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu", "", ""),
    ("limit", "-A FORWARD -i lan0 -p udp -m limit --limit 3/min -m udp --dport 99 -j LOG", "", "dns"),
    ("mark", "-t mangle -A PREROUTING -i wan -j MARK --set-mark 3", "", ""),
    ("mark of kube-proxy", "-A FORWARD -m mark --mark 0x4000/0x4000 -j DROP", "", ""),
    ("mark fetched", f"{MANGLE} PREROUTING -j CONNMARK --restore-mark", "", ""),
    ("mark put back", f"{MANGLE} FORWARD -j CONNMARK --save-mark", "", ""),
    ("mark of conntrack", "-A FORWARD -m connmark --mark 1 -j DROP", "", ""),
    ("fragments", "-A FORWARD -f -j DROP", "", ""),
    ("notrack", "-t raw -A PREROUTING -p udp -m udp --dport 53 -j CT --notrack", "", "dns"),
    ("random", "-A FORWARD -i wan -m statistic --mode random --probability 0.5 -j DROP", "", "back"),
    ("everything is counted", "-A FORWARD -s 10.1.0.0/16 -m dscp --dscp 46", "", "web dns"),
    ("reverse path", "-t raw -A PREROUTING -i wan -m rpfilter --loose --invert -j DROP", "", ""),
    ("class", "-t mangle -A POSTROUTING -o wan -j DSCP --set-dscp-class AF21", "", ""),
    ("class of some", "-t mangle -A FORWARD -p udp -m limit --limit 1/sec -j TOS --set-tos 16", "", "dns"),
    ("TTL", "-t mangle -A PREROUTING -i lan0 -j TTL --ttl-inc 1", "", ""),
    ("two", f"{MANGLE} PREROUTING -j TTL --ttl-inc 1", f"{MANGLE} FORWARD -i wan -j TOS --set-tos 8", "back"),
    ("new docker", "-A FORWARD ! -i lan0 -o lan0 -j DROP", "", "back"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "first", "then", "expected"), IPTABLES, ids=[one[0] for one in IPTABLES])
def test_iptables(router: Namespace, name: str, first: str, then: str, expected: str) -> None:
    router.run("nft", "flush", "ruleset")
    for rule in (first, then):
        if rule:
            router.run("iptables-nft", *rule.split())
    proof = prove(sources(router))
    assert kept(proof) == expected


LEADING = (
    ("nft", "iifname wan fib saddr . iif oif missing drop\nfib saddr oif missing drop", "211"),
    ("nft", "tcp dport 443 fib saddr . iif oif exists counter", "022"),
    ("iptables", "-i lan0 -m rpfilter --validmark --invert -j DROP", "020"),
    ("ip6tables", "-m rpfilter --invert -j DROP", "003"),
)


@pytest.mark.parametrize(("tool", "rules", "expected"), LEADING, ids=[one[1] for one in LEADING])
def test_way_back_is_required_where_rules_ask_for_it(
    router: Namespace, tool: str, rules: str, expected: str
) -> None:
    router.run("nft", "flush", "ruleset")
    if tool == "nft":
        router.run("nft", "-f", "-", stdin=Case("", rules, "", BEFORE).text())
    else:
        router.run(f"{tool}-nft", "-t", "mangle", "-A", "PREROUTING", *rules.split())
    proof = prove(sources(router))
    assert kept(proof) == ""
    assert "".join(str(int(proof.back(one) or 0)) for one in (BACK, WEB, SIX)) == expected


def test_policies_of_ipsec_are_read(router: Namespace) -> None:
    for words in (
        "src 10.1.0.0/16 dst 192.0.2.1 proto tcp dport 443 dir out",
        "src fd00::/64 dst ::/0 dir fwd",
        "src 10.1.0.0/16 dst 10.2.0.0/16 dir in",
    ):
        router.ip("xfrm", "policy", "add", *words.split())
    try:
        with router.entered():
            found = sorted(policies(), key=lambda one: one.direction)
    finally:
        router.ip("xfrm", "policy", "flush")
    near, server = ip_network("10.1.0.0/16"), ip_network("192.0.2.1")
    assert found == [
        Policy("fwd", ip_network("fd00::/64"), ip_network("::/0"), 0, None, None),
        Policy("out", near, server, 6, None, 443),
    ]


def test_rules_of_iptables_have_its_words_and_its_counters(router: Namespace) -> None:
    router.run("nft", "flush", "ruleset")
    router.run("iptables-nft", "-A", "FORWARD", "-s", "10.1.0.0/16", "-j", "ACCEPT")
    router.run(
        "iptables-nft", "-A", "FORWARD", "-i", "wan", "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP"
    )
    router.run("iptables-nft", "-t", "mangle", "-A", "FORWARD", "-s", "10.1.0.5")
    proof = prove(sources(router))
    assert [counted.rule.text for counted in proof.traversed(WEB)] == [
        "-A FORWARD -s 10.1.0.5/32",
        "policy accept",
        "-A FORWARD -s 10.1.0.0/16 -j ACCEPT",
    ]
    assert [counted.rule.text for counted in proof.traversed(BACK)] == ["policy accept", "policy accept"]
