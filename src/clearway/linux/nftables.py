# SPDX-License-Identifier: Apache-2.0
"""What nftables has in this network namespace, as far as clearway asks (include/uapi/linux/netfilter/
nf_tables.h). What iptables-nft has made is in it; iptables-legacy is another world.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass

from clearway.linux.netlink import (
    NETLINK_NETFILTER,
    NLM_F_DUMP,
    Conversation,
    Message,
    NetlinkError,
    attributes,
    text,
)

NFNLGRP_NFTABLES = 7
ABSENT = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT)
"""What a kernel says that has no nftables."""
_GETTABLE = 10 << 8 | 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_GETCHAIN = 10 << 8 | 4  # NFT_MSG_GETCHAIN
_GETGEN = 10 << 8 | 16
_GEN_ID = 1
_NFGENMSG_SIZE = 4
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_USE, _CHAIN_TYPE = 1, 3, 4, 6, 7
_TABLE_NAME = 1
_FAMILIES = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain at a hook. `table`: with its family. `kind`: filter, nat or route. `rules`: how many it has."""

    table: str
    name: str
    kind: str
    rules: int


def generation() -> int:
    """The number of the ruleset in force: struct net's nft.base_seq; 0 without nftables. NetlinkError."""
    with Conversation(NETLINK_NETFILTER) as kernel:
        try:
            [answer] = kernel.ask(_GETGEN, bytes(_NFGENMSG_SIZE))
        except NetlinkError as error:
            if error.number in ABSENT:
                return 0
            raise
    return int.from_bytes(attributes(answer.body, _NFGENMSG_SIZE)[_GEN_ID], "big")


def tables() -> list[str]:
    """With their families. As base_chains()."""
    return [
        f"{_family(message)} {text(attributes(message.body, _NFGENMSG_SIZE)[_TABLE_NAME])}"
        for message in _dump(_GETTABLE)
    ]


def has_tables(names: Iterable[str]) -> bool:
    """Whether all of these are there."""
    return set(names) <= set(tables())


def base_chains(own: str = "") -> list[Chain]:
    """Those of this network namespace, but for tables of that name; none without nftables, or for who may not
    ask. NetlinkError when the kernel refuses otherwise.
    """
    found = []
    for message in _dump(_GETCHAIN):
        values = attributes(message.body, _NFGENMSG_SIZE)
        if _CHAIN_HOOK in values:
            table = f"{_family(message)} {text(values[_CHAIN_TABLE])}"
            rules = int.from_bytes(values.get(_CHAIN_USE, b""), "big")
            found.append(Chain(table, text(values[_CHAIN_NAME]), text(values[_CHAIN_TYPE]), rules))
    return [chain for chain in found if chain.table.partition(" ")[2] != own]


def _dump(what: int) -> list[Message]:
    with Conversation(NETLINK_NETFILTER) as kernel:
        try:
            return list(kernel.ask(what, bytes(_NFGENMSG_SIZE), NLM_F_DUMP))
        except NetlinkError as error:
            if error.number in (*ABSENT, errno.EPERM):
                return []
            raise


def _family(message: Message) -> str:
    return _FAMILIES.get(message.body[0], str(message.body[0]))
