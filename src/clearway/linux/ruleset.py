# SPDX-License-Identifier: Apache-2.0
"""All that netfilter does in this network namespace, as text: nftables by `nft`, what iptables-nft has
put there by iptables-nft-save (the JSON does not tell what its matches and targets hold, nor what the
policies of its chains have counted), and whether there are tables of iptables-legacy, whose changes nobody is
told of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clearway.linux import nftables
from clearway.linux.nft import NftablesError, found, list_ruleset, said_by

SAVES = {"ip": "iptables-nft-save", "ip6": "ip6tables-nft-save"}
FILTERING = {4: "bridge-nf-call-iptables", 6: "bridge-nf-call-ip6tables"}
LEGACY = {4: "ip_tables_names", 6: "ip6_tables_names"}
OF_IPTABLES = re.compile(r'"xt"|"name": "(?:PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING)"')
"""What the JSON has of every table of iptables-nft: its base chains have these names."""
READ_TRIES = 5


@dataclass(frozen=True)
class Ruleset:
    """`generation`: of nftables, which all of the text is of. `nft`: JSON. `saves`: by nft's word for the
    family, with counters. `legacy`: families that have tables of iptables-legacy. `filtering`: by family,
    bridges that apply its rules to their frames.
    """

    generation: int
    nft: str
    saves: Mapping[str, str]
    legacy: frozenset[int]
    filtering: Mapping[int, frozenset[str]] = field(default_factory=dict)


def read_ruleset(own: str = "", filtering: Mapping[int, frozenset[str]] | None = None) -> Ruleset | None:
    """The ruleset of the calling thread's network namespace; None: it does not stop changing. own: the name
    of clearway's own tables, which may be large and are left out. filtering: as of Ruleset, for who asks
    for it. Raises NftablesError and NetlinkError.
    """
    for _ in range(READ_TRIES):
        before = nftables.generation()
        nft = _listed(own)
        of_iptables = OF_IPTABLES.search(nft)
        saves = {family: _saved(command) for family, command in SAVES.items()} if of_iptables else {}
        if nftables.generation() == before:
            return Ruleset(before, nft, saves, legacy_tables(), filtering or {})
    return None


def _listed(own: str) -> str:
    tables = nftables.tables()
    others = [table for table in tables if table.partition(" ")[2] != own]
    try:
        listed = list_ruleset(None if others == tables else others)
    except NftablesError:
        if nftables.base_chains(own):
            raise
        return ""  # no hook leads to any rule
    if listed.count('{"table": {') < len(others):  # nothing must seem to be allowed because it was not listed
        raise NftablesError(f"of {len(others)} tables nft does not list all")
    return listed


def legacy_tables() -> frozenset[int]:
    """Families in which iptables-legacy has tables."""
    return frozenset(family for family, name in LEGACY.items() if _names(name))


def filtered_on_bridges() -> frozenset[int]:
    """Families whose rules every bridge applies to its frames (br_netfilter)."""
    return frozenset(family for family, name in FILTERING.items() if _is_set(name))


def _is_set(name: str) -> bool:
    try:
        return (Path("/proc/sys/net/bridge") / name).read_text().strip() != "0"
    except FileNotFoundError:  # a kernel without it, or before the module is loaded
        return False


def _names(name: str) -> str:
    path = Path("/proc/thread-self/net") / name
    return path.read_text() if path.exists() else ""


def _saved(command: str) -> str:
    """Without the program the rules stay what they are in the JSON: unknown."""
    path = found(command)
    return said_by([path, "-c"]) if path else ""
