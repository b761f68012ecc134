# SPDX-License-Identifier: Apache-2.0
"""What nft prints, as text and as JSON, statement by statement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clearway.importer import Imported, UnreadableError, import_firewall

CORPUS = Path(__file__).parent / "corpus" / "firewall"
SETS = """
	set blocked {
		type ipv4_addr
		flags interval
		elements = { 10.0.0.0/8, 192.0.2.1,
				198.51.100.4-198.51.100.7 }
	}
	set hosts {
		typeof ip6 saddr
		flags interval
		comment "hello; { world"
		elements = { 2001:db8::/32 comment "el, { x" }
	}
	set ports {
		type inet_service
		flags interval
		elements = { 22, 80-90 }
	}
	set doors {
		type ipv4_addr . inet_service
		elements = { 192.0.2.1 . 22, 192.0.2.2 . 80 }
	}
	set nobody {
		type ipv4_addr
	}
	set moving {
		type ipv4_addr
		size 65535
		flags dynamic,timeout
		timeout 1m
	}
	map verdicts {
		type inet_service : verdict
		elements = { 22 : accept, 23 : drop, 80 : jump below }
	}
	map one_day {
		type ifname : verdict
		flags timeout
	}
	chain below {
		ip saddr 192.0.2.0/24 accept
	}
"""
DISCOVERY = (
    "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect,"
    " mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept"
)


def imported(*rules: str, policy: str = "drop", family: str = "inet") -> Imported:
    """A table with an input chain: what is never judged is accepted, then the rules, then the policy."""
    header = f"type filter hook input priority filter; policy {policy};"
    begin = ["ct state established,related accept", *([DISCOVERY] if family != "ip" else [])]
    chain = "\n\t\t".join([header, *begin, *rules])
    sets = SETS if family == "inet" else ""
    return import_firewall(f"table {family} filter {{{sets}\n\tchain input {{\n\t\t{chain}\n\t}}\n}}\n")


def rules_of(match: str, verdict: str = "accept") -> list[dict[str, Any]]:
    """What becomes of a rule, without its name."""
    found = imported(f"{match} {verdict}")
    assert not found.not_taken, found.not_taken
    rules = [rule for rule in found.data()["rules"] if rule["name"] != "input-policy"]
    return [
        {key: value for key, value in rule.items() if key not in {"name", "action", "direction"}}
        for rule in rules
    ]


def tcp(**values: Any) -> dict[str, Any]:
    return {"protocol": "tcp", **values}


EXPRESSED: dict[str, list[dict[str, Any]]] = {
    "": [{}],
    "counter packets 5 bytes 500": [{}],
    'counter name "all"': [{}],
    "ip saddr 10.0.0.0/8": [{"source": "10.0.0.0/8"}],
    "ip saddr 10.0.0.1-10.0.0.2": [{"source": ["10.0.0.1/32", "10.0.0.2/32"]}],
    "ip saddr { 10.0.0.0/8, 192.0.2.1 }": [{"source": ["10.0.0.0/8", "192.0.2.1/32"]}],
    "ip saddr != 128.0.0.0/1": [{"source": "0.0.0.0/1"}],
    "ip6 saddr != 8000::/1": [{"source": "::/1"}],
    "ip daddr 192.0.2.1 ip saddr 10.0.0.0/8": [{"source": "10.0.0.0/8", "destination": "192.0.2.1/32"}],
    "ip saddr @blocked": [{"source": "@blocked"}],
    "ip6 daddr @hosts": [{"destination": "@hosts"}],
    "tcp dport @ports": [tcp(destination_ports="@ports")],
    "ip saddr @nobody": [],
    "meta nfproto ipv4": [{"source": "0.0.0.0/0"}],
    "meta nfproto ipv6": [{"source": "::/0"}],
    "meta protocol { ip, ip6 }": [{}],
    "meta protocol != ip": [{"source": "::/0"}],
    "meta l4proto tcp": [tcp()],
    "meta l4proto { tcp, udp }": [{"protocol": ["tcp", "udp"]}],
    "ip protocol { esp, 99 }": [{"protocol": ["esp", 99], "source": "0.0.0.0/0"}],
    "tcp dport 22": [tcp(destination_ports=22)],
    "tcp dport { 22, 80-90 }": [tcp(destination_ports=[22, "80-90"])],
    "tcp dport != { 22, 23 }": [tcp(destination_ports=["0-21", "24-65535"])],
    "tcp dport >= 1024": [tcp(destination_ports="1024-65535")],
    "udp sport < 1024": [{"protocol": "udp", "source_ports": "0-1023"}],
    "tcp dport gt 65534": [tcp(destination_ports=65535)],
    "meta l4proto { tcp, udp } th dport 53": [{"protocol": ["tcp", "udp"], "destination_ports": 53}],
    "meta l4proto udp udp dport 53 udp dport 50-60": [{"protocol": "udp", "destination_ports": 53}],
    "tcp dport 22 udp dport 22": [],
    'iifname "eth0"': [{"interface_in": "eth0"}],
    'iifname { "eth0", "eth1" }': [{"interface_in": ["eth0", "eth1"]}],
    'iif "eth0"': [{"interface_in": "eth0"}],
    'iifname != "lo"': [{}],
    'iif "lo"': [],
    'oifname "eth0"': [],
    'oifname != "eth0"': [{}],
    "icmp type echo-request": [{"protocol": "icmp", "icmp_types": "echo-request"}],
    "icmp type { destination-unreachable, 42 }": [
        {"protocol": "icmp", "icmp_types": ["destination-unreachable", 42]}
    ],
    "icmpv6 type { echo-request, nd-neighbor-solicit }": [
        {"protocol": "icmpv6", "icmp_types": "echo-request"}
    ],
    "icmpv6 type nd-neighbor-solicit": [],
    "icmpv6 type nd-neighbor-solicit ip6 hoplimit 255": [],
    "tcp flags syn / fin,syn,rst,ack": [tcp(tcp_flags="syn/fin,syn,rst,ack")],
    "tcp flags & (fin | syn | rst | ack) == syn": [tcp(tcp_flags="syn/fin,syn,rst,ack")],
    "tcp flags & (fin|syn) == (fin|syn)": [tcp(tcp_flags="fin,syn")],
    "tcp flags & (fin|syn) == 0x0": [tcp(tcp_flags="none/fin,syn")],
    "tcp flags & syn != 0": [tcp(tcp_flags="syn")],
    "tcp flags syn,ack": [tcp(tcp_flags="syn"), tcp(tcp_flags="ack/syn,ack")],
    "tcp flags ! fin,syn": [tcp(tcp_flags="none/fin,syn")],
    "tcp flags == syn": [tcp(tcp_flags="syn/fin,syn,rst,psh,ack,urg,ece,cwr")],
    "ip dscp ef": [{"source": "0.0.0.0/0", "dscp": "ef"}],
    "ip6 dscp { cs1, 0x02 }": [{"source": "::/0", "dscp": [2, "cs1"]}],
    "ct state new": [{}],
    "ct state { new, established }": [{}],
    "ct state ! established,related": [{}],
    "fib daddr type { local, broadcast, multicast } meta nfproto ipv4": [{"source": "0.0.0.0/0"}],
    "ip saddr . tcp dport { 192.0.2.1 . 22, 10.0.0.0/24 . 80-90 }": [
        tcp(source="192.0.2.1/32", destination_ports=22),
        tcp(source="10.0.0.0/24", destination_ports="80-90"),
    ],
    "ip saddr . tcp dport @doors": [
        tcp(source="192.0.2.1/32", destination_ports=22),
        tcp(source="192.0.2.2/32", destination_ports=80),
    ],
    "ip saddr . tcp dport != { 128.0.0.0/1 . 22 }": [
        tcp(source="0.0.0.0/1"),
        tcp(source="128.0.0.0/1", destination_ports=["0-21", "23-65535"]),
    ],
    "meta nftrace set 1": [{}],
}


@pytest.mark.parametrize("match", EXPRESSED)
def test_expressed(match: str) -> None:
    assert rules_of(match) == EXPRESSED[match]


NOT_EXPRESSED = {
    'iifname "eth*"': "several interfaces",
    'iifname != "eth0"': "all interfaces but eth0",
    "iif 7": "the number of an interface",
    "ip6 nexthdr tcp": "first header only",
    "th dport 53": "TCP and UDP only",
    "sctp dport 80": "TCP and UDP only",
    "tcp dport ssh": "given as a number",
    "icmp code port-unreachable": "ICMP code",
    "icmp type destination-unreachable icmp code 4": "ICMP codes",
    "limit rate 5/second": "`limit rate 5/second`",
    "limit rate over 10 mbytes/second burst 20 mbytes": "limit",
    "ct count over 20": "ct count",
    "ct status dnat": "status",
    "ct mark 0x00000003": "marks",
    "ct original ip saddr 192.0.2.1": "ct original",
    "meta mark 0x00000001": "marks",
    "meta skuid 1000": "owner",
    "meta pkttype multicast": "broadcast or multicast",
    'meta hour "10:00"-"12:00"': "meta hour",
    "quota over 10 mbytes": "quota",
    "fib saddr . iif oif missing": "fib saddr",
    "fib daddr type local": "types of addresses",
    "rt type 0": "rt type",
    "exthdr hbh exists": "exthdr",
    "ip option rr exists": "ip option",
    "socket transparent 1": "socket",
    "ip ttl < 5": "hop limits",
    "ip frag-off & 8191 != 0": "frag-off",
    "ip6 saddr & ::ffff == ::1": "not a prefix",
    "ether saddr 00:11:22:33:44:55": "link-layer",
    "vlan id 100": "the tag has been removed",
    "ip saddr @moving": "changes by itself",
    "ip saddr @missing": "not a set of this table",
    "add @moving { ip saddr limit rate 10/second }": "changes packets or state",
    "meta mark set 0x00000005": "changes packets or state",
    "xt match hashlimit": "xt match",
    "tcp flags == syn,ack": "a list without braces",
    "@th,16,16 53": "@th",
}


@pytest.mark.parametrize("match", NOT_EXPRESSED)
def test_not_expressed(match: str) -> None:
    found = imported(f"{match} accept", "tcp dport 443 accept")
    [item] = found.not_taken
    assert NOT_EXPRESSED[match] in item.says
    assert item.text == f"{match} accept"
    assert [rule["name"] for rule in found.data()["rules"]] == ["input-4", "input-policy"]
    assert not found.exact


def test_complement_of_more_than_128_prefixes_is_not_written_out() -> None:
    many = ", ".join(f"10.{number}.0.1" for number in range(0, 40, 2))
    assert "prefixes; no more than 128" in imported(f"ip saddr != {{ {many} }} accept").not_taken[0].says
    assert imported(f"ip saddr {{ {many} }} accept").exact


def test_combinations_beyond_64_are_not_written_out() -> None:
    many = ", ".join(f"10.0.0.{number} . 22" for number in range(65))
    assert "65 combinations" in imported(f"ip saddr . tcp dport {{ {many} }} accept").not_taken[0].says


def test_sets_come_along() -> None:
    found = imported("ip saddr @blocked tcp dport @ports drop", policy="accept")
    assert found.data()["sets"] == {
        "blocked": ["10.0.0.0/8", "192.0.2.1/32", "198.51.100.4/30"],
        "ports": [22, "80-90"],
    }
    assert found.data()["rules"] == [
        {
            "name": "input-3",
            "action": "drop",
            "direction": "local",
            "protocol": "tcp",
            "source": "@blocked",
            "destination_ports": "@ports",
        }
    ]


def test_sets_of_one_name_in_two_tables_are_kept_apart() -> None:
    def table(family: str, address: str) -> str:
        return (
            f"table {family} t {{\nset s {{ type {family}v_addr; elements = {{ {address} }}; }}\n"
            f"chain input {{ type filter hook input priority 0; policy accept;\n"
            f"ct state established,related accept\n{family} saddr @s drop\n}}\n}}\n"
        )

    found = import_firewall(table("ip", "192.0.2.1") + table("ip6", "2001:db8::1"))
    assert found.data()["sets"] == {"s": ["192.0.2.1/32"], "s-2": ["2001:db8::1/128"]}
    assert [rule["source"] for rule in found.data()["rules"]] == ["@s", "@s-2"]


def test_verdict_map() -> None:
    rules = imported("tcp dport vmap @verdicts").data()["rules"]
    assert [(rule["name"], rule["action"], rule["destination_ports"]) for rule in rules[:-1]] == [
        ("input-3", "accept", 22),
        ("input-3-2", "drop", 23),
        ("below-1", "accept", 80),
    ]


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("iifname vmap @one_day", "changes by itself"),
        ("iifname vmap @gone", "not a map of this table"),
        ("meta mark vmap { 0x1 : accept }", "marks"),
        ("tcp dport vmap { 22 : queue }", "no verdict like queue"),
    ],
)
def test_verdict_map_that_is_not_known(rule: str, why: str) -> None:
    found = imported(rule, "tcp dport 443 accept")
    [item] = found.not_taken
    assert item.text == rule
    assert why in item.says
    assert "what it decides about" in item.says


def test_part_in_a_comment_is_not_trusted() -> None:
    """Some versions print what they cannot translate behind a #."""
    [item] = imported("meta l4proto tcp # match hashlimit accept", "accept").not_taken
    assert "hidden in the comment" in item.says
    assert imported(
        "tcp dport 22 accept # handle 12", "tcp dport 80 accept # web", "counter # handle 13"
    ).exact


def test_log_before_a_verdict() -> None:
    found = imported('log prefix "in: " level info flags all drop', "tcp dport 22 log group 2 accept")
    assert found.data()["rules"][0]["log"] is True


def test_families_of_tables() -> None:
    assert imported("tcp dport 22 accept", family="ip").data()["rules"][0]["source"] == "0.0.0.0/0"
    assert imported("tcp dport 22 accept", family="ip6").data()["rules"][0]["source"] == "::/0"
    assert "source" not in imported("tcp dport 22 accept").data()["rules"][0]


def test_dormant_table_does_nothing() -> None:
    chain = "chain input {\ntype filter hook input priority filter; policy drop;\n}"
    assert not import_firewall(f"table inet t {{\nflags dormant\n{chain}\n}}\n").firewall.rules


def test_hand_written_forms() -> None:
    """A file that was written for nft -f, as far as it is made of tables."""
    text = """#!/usr/sbin/nft -f
flush ruleset
table inet t { chain input { type filter hook input priority 0; policy drop
    ct state {established,related} accept; iif lo accept # loopback
    tcp dport { 22,
        443 } \\
        accept
    meta l4proto ipv6-icmp accept
} }
"""
    found = import_firewall(text)
    assert found.exact
    assert [rule["name"] for rule in found.data()["rules"]] == ["input-3", "input-4", "input-policy"]
    assert (found.taken[3].line, found.taken[3].text) == (5, "tcp dport { 22, 443 } \\ accept")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("table inet t {\n", "the text ends"),
        ("table inet t {\nchain a {\n", "the text ends"),
        ("table inet t {\n}\ndefine x = 5\n", "line 3: \"?'define'"),
        ("table inet t {\n}\nadd rule inet t a accept\n", "load the file with nft"),
        ("table {\n}\n", "a name is missing"),
        ("table inet t {\nchain a {\ntype filter\n}\n}\n", "line 3: .* is not how a chain begins"),
        ('{"nftables": 5}', "not what `nft -j"),
        ('{"other": []}', "not what `nft -j"),
        ("{", "not what `nft -j"),
        (
            "table ip t {\nchain a {\njump a\n}\nchain i { type filter hook input priority 0; jump a; }\n}\n",
            "leads to itself",
        ),
    ],
)
def test_unreadable(text: str, what: str) -> None:
    with pytest.raises(UnreadableError, match=what):
        import_firewall(text)


# ---- JSON ----


@pytest.mark.parametrize("name", ["router", "firewalld", "constructs"])
def test_text_and_json_say_the_same(name: str) -> None:
    """Both as nft printed them of one ruleset."""
    text = import_firewall((CORPUS / f"{name}.nft").read_text())
    other = import_firewall((CORPUS / f"{name}.json").read_text())
    assert text.data() == other.data()
    assert len(text.not_taken) == len(other.not_taken)
    assert len(text.taken) == len(other.taken)
    assert text.exact == other.exact


def json_of(*expressions: Any) -> Imported:
    place = {"family": "inet", "table": "t", "chain": "input"}
    chain = {"family": "inet", "table": "t", "name": "input", "type": "filter", "hook": "input", "prio": 0}
    replies = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
    rules = [{"rule": {**place, "handle": 9, "expr": [replies, {"accept": None}]}}]
    rules += [{"rule": {**place, "handle": 10, "expr": list(one)}} for one in expressions]
    table = {"table": {"family": "inet", "name": "t"}}
    return import_firewall(json.dumps({"nftables": [table, {"chain": {**chain, "policy": "drop"}}, *rules]}))


def test_json_does_not_tell_what_an_extension_of_iptables_holds() -> None:
    [item] = json_of([{"xt": {"type": "match", "name": "icmp"}}, {"accept": None}]).not_taken
    assert "give iptables-save's output" in item.says
    assert item.text.startswith("input handle 10: [")
    [item] = json_of([{"xt": {"type": "target", "name": "REJECT"}}]).not_taken
    assert "target REJECT" in item.says


def test_json_comment_extension_asks_for_nothing() -> None:
    assert not json_of([{"xt": {"type": "match", "name": "comment"}}, {"accept": None}]).not_taken


def test_json_flags_in_either_form() -> None:
    left = {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, {"|": ["fin", "syn"]}]}
    found = json_of([{"match": {"op": "==", "left": left, "right": {"|": ["fin", "syn"]}}}, {"drop": None}])
    assert found.data()["rules"][0]["tcp_flags"] == "fin,syn"


# ---- what is read and would be something else ----


def test_log_before_what_is_asked_for_differs() -> None:
    """nft logs each packet that comes to that statement."""
    rule = 'log prefix "x" tcp dport 22 accept'
    said = [
        f"table inet t {{\nchain input {{\ntype filter hook input priority 0; policy accept;\n{one}\n}}\n}}\n"
        for one in (rule, 'tcp dport 22 log prefix "x" accept')
    ]
    differing, same = (import_firewall(text) for text in said)
    assert [item.text for item in differing.differences] == [rule]
    assert "logs before it asks" in differing.differences[0].says
    assert same.exact
    assert differing.firewall == same.firewall


def test_log_before_what_is_asked_for_differs_in_json() -> None:
    base = {"family": "inet", "table": "t", "name": "input", "type": "filter", "hook": "input", "prio": 0}
    match = {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 22}}
    objects = [
        {"table": {"family": "inet", "name": "t"}},
        {"chain": {**base, "policy": "accept"}},
        {
            "rule": {
                "family": "inet",
                "table": "t",
                "chain": "input",
                "expr": [{"log": None}, match, {"accept": None}],
            }
        },
    ]
    assert "logs before it asks" in import_firewall(json.dumps({"nftables": objects})).differences[0].says


def test_json_that_does_not_say_what_is_dormant_is_refused() -> None:
    """nftables 1.0.6 writes the table's name in the place of its flags."""
    objects = [{"table": {"family": "inet", "name": "t", "flags": "t"}}]
    with pytest.raises(UnreadableError, match="does not say whether table inet t is dormant"):
        import_firewall(json.dumps({"nftables": objects}))


def test_json_without_an_end_is_refused() -> None:
    with pytest.raises(UnreadableError, match="not what `nft -j list ruleset` prints"):
        import_firewall('{"nftables":' + "[" * 100_000)
