# SPDX-License-Identifier: Apache-2.0
"""Policies of IPsec (xfrm): which packets that are forwarded may be transformed, or have to have been.

Only selectors are read: whatever a policy does with packets, nobody else can do it.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from clearway.linux.netlink import NLM_F_DUMP, Conversation

NETLINK_XFRM = 6
XFRMNLGRP_POLICY = 4
# <linux/xfrm.h>
_GETPOLICY = 0x15
_ID_BYTES = 64  # struct xfrm_userpolicy_id
_SELECTOR = struct.Struct("=16s16s2sH2sHHBBB3xiI")  # struct xfrm_selector
_DIRECTION_AT = 160  # in struct xfrm_userpolicy_info
_DIRECTIONS = {1: "out", 2: "fwd"}  # XFRM_POLICY_OUT, XFRM_POLICY_FWD
_WHOLE_PORT = 0xFFFF
_ADDRESS_BYTES: Mapping[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 16}

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Policy:
    """What one is about. `protocol`: IP's number, 0: any. `sport`, `dport`: None: any. Addresses are None
    where it does not say of which family it is.
    """

    direction: str  # out | fwd
    source: Network | None
    destination: Network | None
    protocol: int
    sport: int | None
    dport: int | None

    def __str__(self) -> str:
        return f"{self.direction} {self.source or 'any'} -> {self.destination or 'any'}"


def supported() -> bool:
    """Whether this kernel has policies."""
    try:
        Conversation(NETLINK_XFRM).close()
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return False
        raise
    return True


def policies() -> tuple[Policy, ...]:
    """Of the calling thread's network namespace, those of sockets not counted. NetlinkError, TimeoutError."""
    with Conversation(NETLINK_XFRM) as kernel:
        answer = kernel.ask(_GETPOLICY, bytes(_ID_BYTES), NLM_F_DUMP)
    return tuple(_policy(message.body) for message in answer if message.body[_DIRECTION_AT] in _DIRECTIONS)


def _policy(body: bytes) -> Policy:
    daddr, saddr, dport, dport_mask, sport, sport_mask, family, to, of, protocol, _ifindex, _user = (
        _SELECTOR.unpack_from(body)
    )
    return Policy(
        direction=_DIRECTIONS[body[_DIRECTION_AT]],
        source=_network(saddr, of, family),
        destination=_network(daddr, to, family),
        protocol=protocol,
        sport=_port(sport, sport_mask),
        dport=_port(dport, dport_mask),
    )


def _network(address: bytes, length: int, family: int) -> Network | None:
    if family not in _ADDRESS_BYTES:
        return None
    word = address[: _ADDRESS_BYTES[family]]
    if family == socket.AF_INET:
        return IPv4Network((word, length), strict=False)
    return IPv6Network((word, length), strict=False)


def _port(port: bytes, mask: int) -> int | None:
    """Masks with gaps are taken for none: more ports than the policy means."""
    return int.from_bytes(port, "big") if mask == _WHOLE_PORT else None
