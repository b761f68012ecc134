# SPDX-License-Identifier: Apache-2.0
"""What nftables has in this network namespace, as far as clearway asks (include/uapi/linux/netfilter/
nf_tables.h). What iptables-nft has made is in it; iptables-legacy is another world.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from clearway.linux.netlink import (
    NETLINK_NETFILTER,
    NLM_F_DUMP,
    Conversation,
    NetlinkError,
    attributes,
    text,
)

NFNLGRP_NFTABLES = 7
_GETCHAIN = 10 << 8 | 4  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN
_GETGEN = 10 << 8 | 16
_GEN_ID = 1
_NFGENMSG_SIZE = 4
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_USE, _CHAIN_TYPE = 1, 3, 4, 6, 7
_FAMILIES = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain at a hook. `table`: with its family. `kind`: filter, nat or route. `rules`: how many it has."""

    table: str
    name: str
    kind: str
    rules: int


def generation() -> int:
    """The number of the ruleset in force: struct net's nft.base_seq. NetlinkError without nftables."""
    with Conversation(NETLINK_NETFILTER) as kernel:
        [answer] = kernel.ask(_GETGEN, bytes(_NFGENMSG_SIZE))
    return int.from_bytes(attributes(answer.body, _NFGENMSG_SIZE)[_GEN_ID], "big")


def base_chains() -> list[Chain]:
    """Those of this network namespace; none without nftables, or for who may not ask. NetlinkError when the
    kernel refuses otherwise.
    """
    with Conversation(NETLINK_NETFILTER) as kernel:
        try:
            answer = kernel.ask(_GETCHAIN, bytes(_NFGENMSG_SIZE), NLM_F_DUMP)
        except NetlinkError as error:
            if error.number in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT, errno.EPERM):
                return []
            raise
    found = []
    for message in answer:
        values = attributes(message.body, _NFGENMSG_SIZE)
        if _CHAIN_HOOK in values:
            family = _FAMILIES.get(message.body[0], str(message.body[0]))
            table = f"{family} {text(values[_CHAIN_TABLE])}"
            rules = int.from_bytes(values.get(_CHAIN_USE, b""), "big")
            found.append(Chain(table, text(values[_CHAIN_NAME]), text(values[_CHAIN_TYPE]), rules))
    return found
