# SPDX-License-Identifier: Apache-2.0
"""Rulesets of iptables and ip6tables by chance, as `iptables-restore` reads them."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.oracle.case import Run
from tests.oracle.network import HOSTS, NOBODY, REMOTE, ROUTER, address
from tests.oracle.nft import PORTS, prefixes

TOOLS = {4: "iptables", 6: "ip6tables"}
CHAINS = {
    "raw": ("PREROUTING",),
    "mangle": ("PREROUTING", "FORWARD", "POSTROUTING"),
    "nat": ("PREROUTING", "POSTROUTING"),
    "filter": ("FORWARD", "FORWARD", "INPUT"),
}


@st.composite
def matches(draw: st.DrawFn, family: int, table: str, chain: str) -> str:
    """Options of a match. Of what the router itself may send none that MLD meets."""
    port, prefix = draw(st.sampled_from(PORTS)), draw(st.sampled_from(prefixes(family)))
    asked = [
        f"-p tcp --dport {port}",
        f"-p udp --dport {port}",
        f"-p tcp -m multiport --dports 22,{port},8000:8100",
        f"-s {prefix}",
        f"-d {prefix}",
        "-p tcp --tcp-flags SYN,ACK,FIN,RST ACK",
        "-p tcp -m length --length 600:3000",
        "-p tcp -m dscp --dscp 46",
        "-p tcp -m mark --mark 1",
        "-p tcp -m mark ! --mark 0/3",
    ]
    if table != "raw":
        asked += [
            "-m conntrack --ctstate ESTABLISHED,RELATED",
            "-m conntrack --ctstate ESTABLISHED,RELATED",
            "-p tcp -m conntrack --ctstate NEW",
            "-m conntrack --ctstate INVALID -p tcp",
            "-m conntrack --ctdir REPLY",
            "-p tcp -m connmark --mark 2",
            "-p tcp -m connmark ! --mark 1/1",
            "-p tcp -m connbytes --connbytes 4: --connbytes-dir both --connbytes-mode packets",
        ]
    if chain == "PREROUTING" and table in ("raw", "mangle"):
        asked += ["-p tcp -m rpfilter --invert", "-p tcp -m rpfilter", "-p udp -m rpfilter --loose --invert"]
    asked.append({"PREROUTING": "-i lan0", "INPUT": "-i lan0"}.get(chain, "-o wan0 -p tcp"))
    return draw(st.sampled_from(asked))


@st.composite
def targets(draw: st.DrawFn, family: int, table: str, chain: str) -> str:
    mark = draw(st.integers(0, 3))
    hop = "TTL --ttl-set 33" if family == 4 else "HL --hl-set 33"
    by_table = {
        "raw": ["ACCEPT", "CT --notrack", "DROP"],
        "mangle": [
            f"MARK --set-mark {mark}",
            "CONNMARK --save-mark",
            "CONNMARK --restore-mark",
            "CONNMARK --restore-mark --nfmask 0x1 --ctmask 0x1",
            "CONNMARK --save-mark --nfmask 0x2 --ctmask 0x2",
            f"CONNMARK --set-mark {mark}/2",
            f"MARK --set-xmark {mark}/1",
            "DSCP --set-dscp 10",
            "TOS --set-tos 0x11/0x1f",
            hop.replace("set 33", draw(st.sampled_from(["dec 1", "inc 250"]))),
            "ACCEPT",
            hop,
        ],
        "filter": ["ACCEPT", "ACCEPT", "DROP", "REJECT", "RETURN", "aside"],
    }
    return draw(st.sampled_from(by_table[table]))


@st.composite
def translations(draw: st.DrawFn, family: int, chain: str) -> str:
    """A rule of the NAT table, whole."""
    other, server = address("wan0", HOSTS[1], family), address("wan0", HOSTS[0], family)
    quoted, port = other if family == 4 else f"[{other}]", draw(st.sampled_from(PORTS))
    rules = {
        "PREROUTING": [
            f"-p tcp --dport {port} -j DNAT --to-destination {quoted}:8080",
            f"-d {REMOTE[family]} -j DNAT --to-destination {server}",
            f"-p tcp --dport {port} -j REDIRECT --to-ports 9",
        ],
        "POSTROUTING": [
            "-o wan0 -j MASQUERADE",
            f"-s {prefixes(family)[-1]} -j SNAT --to-source {address('wan0', NOBODY, family)}",
            f"-p tcp --dport {port} -j SNAT --to-source {address('wan0', ROUTER, family)}",
        ],
    }
    return draw(st.sampled_from(rules[chain]))


@st.composite
def _table(draw: st.DrawFn, family: int, table: str) -> list[str]:
    lines = [f"*{table}", *([":aside - [0:0]", "-A aside -p tcp"] if table == "filter" else [])]
    for _ in range(draw(st.integers(1, 4))):
        chain = draw(st.sampled_from(CHAINS[table]))
        if table == "nat":
            lines.append(f"-A {chain} {draw(translations(family, chain))}")
        else:
            asked, target = draw(matches(family, table, chain)), draw(targets(family, table, chain))
            lines.append(f"-A {chain} {asked} -j {target}")
    return [*lines, "COMMIT"]


@st.composite
def rulesets(draw: st.DrawFn, legacy: bool) -> tuple[Run, ...]:
    """Rules of one family or both; `legacy`: by the old interface to the kernel, xtables."""
    runs = []
    for family in draw(st.sampled_from([(4,), (6,), (4, 6)])):
        names = draw(st.lists(st.sampled_from(list(CHAINS)), min_size=1, max_size=3, unique=True))
        lines = [line for name in names for line in draw(_table(family, name))]
        tool = TOOLS[family] + ("-legacy" if legacy else "")
        runs.append(Run(f"{tool}-restore", "\n".join(lines) + "\n"))
    return tuple(runs)
