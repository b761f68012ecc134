# SPDX-License-Identifier: Apache-2.0
"""Decisions of firewall rules that log, a line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from clearway.daemon.flowlist import PROTOCOLS, addresses, words
from clearway.daemon.followers import as_lines, when
from clearway.datapath.calls import Clock
from clearway.model.protocols import ICMP, ICMPV6, TCP_FLAGS, TYPES_OF, name_of

Array = npt.NDArray[Any]

FRAGMENT = 44
EXTENSION_HEADERS = {0, 43, FRAGMENT, 60}
"""Of IPv6, those that the data path looks behind (bpf/parse.h)."""


def lines(
    records: Array,
    rules: Mapping[int, str],
    interfaces: Mapping[int, str],
    actions: Mapping[str, int],
    clock: Clock,
) -> bytes:
    """Records (struct firewall_event) as lines of JSON. rules: names by identity, "" for the default;
    interfaces: names by ifindex; actions: enum firewall_action.
    """
    packet = records["tuple"]
    families = packet["family"].tolist()
    done = {number: name.removeprefix("FIREWALL_").lower() for name, number in actions.items()}
    heads = _heads(records)
    return as_lines(
        {
            "at": when(records["at"], clock.jiffies, clock.hz).tolist(),
            "action": words(records["action"], done, "{}"),
            "rule": [_rule(identity, rules) for identity in records["identity"].tolist()],
            "known": ["true" if known else "false" for known in records["known"].tolist()],
            "interface_in": _names(records["ifindex_in"], interfaces),
            "interface_out": _names(records["ifindex_out"], interfaces),
            "vlan": records["vlan"].tolist(),
            "family": families,
            "protocol": words(records["proto"].astype(np.uint32), PROTOCOLS, "{}"),
            "source": addresses(packet["src"], families),
            "source_port": packet["sport"].tolist(),
            "destination": addresses(packet["dst"], families),
            "destination_port": packet["dport"].tolist(),
            "tcp_flags": [_flags(number) for number in records["tcp_flags"].tolist()],
            "icmp_type": list(map(_icmp_type, heads, records["proto"].tolist())),
            "length": records["length"].tolist(),
            "head": [f'"{head.hex()}"' for head in heads],
        }
    )


def _heads(records: Array) -> list[bytes]:
    """The first bytes of each packet, from its IP header on."""
    raw, size = records["head"].tobytes(), records["head"].shape[1]
    lengths = records["head_length"].tolist()
    return [raw[number * size : number * size + length] for number, length in enumerate(lengths)]


def _rule(identity: int, rules: Mapping[int, str]) -> str:
    """The default has no name."""
    return json.dumps(rules.get(identity, "gone") or None)


def _names(column: Array, interfaces: Mapping[int, str]) -> list[str]:
    known = {index: json.dumps(interfaces.get(index, str(index))) for index in set(column.tolist())}
    return [known[index] if index else "null" for index in column.tolist()]


def _flags(number: int) -> str:
    return json.dumps(",".join(name for name, flag in TCP_FLAGS.items() if number & flag))


def _icmp_type(head: bytes, protocol: int) -> str:
    """The name that rules have for it, or else its number; null where the first bytes do not tell."""
    try:
        at = _icmp_in_ipv4(head, protocol) if head[0] >> 4 == 4 else _icmp_in_ipv6(head, protocol)
        return "null" if at is None else json.dumps(name_of(head[at], TYPES_OF[protocol]))
    except IndexError:  # it ends before
        return "null"


def _icmp_in_ipv4(head: bytes, protocol: int) -> int | None:
    """Where ICMP begins. None: it is no ICMP, or a later fragment. IndexError: more than there is of it."""
    later = (head[6] << 8 | head[7]) & 0x1FFF
    return (head[0] & 15) * 4 if protocol == ICMP and not later else None


def _icmp_in_ipv6(head: bytes, protocol: int) -> int | None:
    """The same, behind extension headers."""
    following, at = head[6], 40
    while protocol == ICMPV6 and following in EXTENSION_HEADERS:
        if following == FRAGMENT and (head[at + 2] << 8 | head[at + 3]) & 0xFFF8:
            return None
        size = 8 if following == FRAGMENT else 8 + head[at + 1] * 8
        following, at = head[at], at + size
    return at if following == protocol == ICMPV6 else None
