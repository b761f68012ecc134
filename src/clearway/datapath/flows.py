# SPDX-License-Identifier: Apache-2.0
"""The flow tables as one array of connections: both directions joined, states derived, whole columns at a
time.

An entry's key is the packet as it comes, its value says how it leaves; so the other direction's key is this
entry's value, reversed. TCP's state is not stored anywhere: it follows from what both sides have sent
(bpf/tcp.h).
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

NONE = 0xFFFFFFFF
FAMILY_IPV4 = 4
FAMILY_IPV6 = 6
IPPROTO_ICMP = 1
IPPROTO_TCP = 6
IPPROTO_ICMPV6 = 58

# A row a connection. Addresses are 16 bytes in network order, IPv4 in the first four; ports are numbers.
# client and destination: as the client's packets come; *_out: as they leave. state: enum timeout; flags:
# enum flow_flags of the opening direction; service, endpoint, nat: ids or NONE; paired: the answering
# direction's entry was there.
CONNECTION = np.dtype(
    [
        ("family", "u1"),
        ("proto", "u1"),
        ("state", "u1"),
        ("flags", "u1"),
        ("client", "u1", (16,)),
        ("client_port", "u2"),
        ("destination", "u1", (16,)),
        ("destination_port", "u2"),
        ("source_out", "u1", (16,)),
        ("source_out_port", "u2"),
        ("destination_out", "u1", (16,)),
        ("destination_out_port", "u2"),
        ("packets", "u8"),
        ("bytes", "u8"),
        ("reply_packets", "u8"),
        ("reply_bytes", "u8"),
        ("age_s", "f4"),
        ("idle_s", "f4"),
        ("service", "u4"),
        ("endpoint", "u4"),
        ("nat", "u4"),
        ("ifindex", "u4"),
        ("reply_ifindex", "u4"),
        ("paired", "?"),
    ]
)


def connections(
    tables: Mapping[int, tuple[Array, Array]],
    *,
    jiffies: int,
    hz: int,
    enums: Mapping[str, Mapping[str, int]],
) -> Array:
    """All connections as an array of CONNECTION.

    tables: keys and values of the flow tables by family (4, 6). jiffies, hz: the kernel's clock. enums: the
    data path's `flow_flags`, `tcp_sent` and `timeout`. A reply whose opening direction is not there is left
    out: it was removed, or made, between two reads.
    """
    parts = [_join(family, *rows, jiffies=jiffies, hz=hz, enums=enums) for family, rows in tables.items()]
    return np.concatenate(parts) if parts else np.empty(0, CONNECTION)


def _join(
    family: int,
    keys: Array,
    values: Array,
    *,
    jiffies: int,
    hz: int,
    enums: Mapping[str, Mapping[str, int]],
) -> Array:
    flags = enums["flow_flags"]
    is_reply = values["flags"] & flags["FLOW_REPLY"] != 0
    opening, answering = np.flatnonzero(~is_reply), np.flatnonzero(is_reply)
    # take() copies rows whole, indexing copies them field by field: ten times slower.
    key, flow = keys.take(opening), values.take(opening)
    partner = match_rows(_reversed(key, flow), keys.take(answering))
    paired = partner >= 0
    # Where there is no partner the row that is taken stands for nothing: `paired` masks it.
    reply = values.take(answering[partner]) if len(answering) else np.zeros(len(key), values.dtype)

    out = np.zeros(len(key), CONNECTION)
    out["family"], out["proto"], out["flags"], out["paired"] = family, key["proto"], flow["flags"], paired
    width = 4 if family == FAMILY_IPV4 else 16
    out["client"][:, :width] = _as_bytes(key["src"])
    out["destination"][:, :width] = _as_bytes(key["dst"])
    out["source_out"], out["destination_out"] = flow["src"], flow["dst"]
    out["client_port"], out["destination_port"] = key["sport"], key["dport"]
    out["source_out_port"], out["destination_out_port"] = flow["sport"], flow["dport"]
    out["packets"], out["bytes"] = flow["packets"], flow["bytes"]
    out["ifindex"] = flow["ifindex"]
    for name, column in (
        ("reply_packets", "packets"),
        ("reply_bytes", "bytes"),
        ("reply_ifindex", "ifindex"),
    ):
        out[name] = np.where(paired, reply[column], 0)
    out["age_s"] = _seconds_since(flow["created"], jiffies, hz)
    idle = _seconds_since(flow["seen"], jiffies, hz)
    out["idle_s"] = np.where(paired, np.minimum(idle, _seconds_since(reply["seen"], jiffies, hz)), idle)
    for name, flag in (
        ("service", "FLOW_HAS_SERVICE"),
        ("endpoint", "FLOW_HAS_SERVICE"),
        ("nat", "FLOW_HAS_NAT"),
    ):
        out[name] = np.where(flow["flags"] & flags[flag] != 0, flow[name], NONE)
    sent_back = np.where(paired, reply["sent"], 0)
    out["state"] = _states(out, flow["sent"], sent_back, enums)
    return out


def _states(out: Array, sent: Array, sent_back: Array, enums: Mapping[str, Mapping[str, int]]) -> Array:
    """Codes of enum timeout for each connection."""
    timeout = enums["timeout"]
    is_tcp = out["proto"] == IPPROTO_TCP
    is_icmp = (out["proto"] == IPPROTO_ICMP) | (out["proto"] == IPPROTO_ICMPV6)
    picked_up = out["flags"] & enums["flow_flags"]["FLOW_PICKED_UP"] != 0
    tcp = tcp_states(sent, sent_back, picked_up, bits=enums["tcp_sent"], timeout=timeout)
    udp = np.where(out["reply_packets"] > 0, timeout["TIMEOUT_UDP_STREAM"], timeout["TIMEOUT_UDP"])
    return np.select([is_tcp, is_icmp], [tcp, timeout["TIMEOUT_ICMP"]], udp)


def tcp_states(
    sent: Array, sent_back: Array, picked_up: Array, *, bits: Mapping[str, int], timeout: Mapping[str, int]
) -> Array:
    """State of TCP connections, as codes of enum timeout; the same decision as tcp_state() in bpf/state.h.

    sent, sent_back: what the opening and the answering side have sent (enum tcp_sent). picked_up: learned in
    mid-stream, its SYNs were never seen.
    """
    either, both = sent | sent_back, sent & sent_back
    return np.select(
        [
            either & bits["SENT_RST"] != 0,
            both & bits["SENT_FIN"] != 0,
            either & bits["SENT_FIN"] != 0,
            sent_back == 0,
            picked_up | (sent & bits["SENT_ACK"] != 0),
        ],
        [
            timeout["TIMEOUT_TCP_CLOSED"],
            timeout["TIMEOUT_TCP_TIME_WAIT"],
            timeout["TIMEOUT_TCP_HALF_CLOSED"],
            timeout["TIMEOUT_TCP_SYN_SENT"],
            timeout["TIMEOUT_TCP_ESTABLISHED"],
        ],
        timeout["TIMEOUT_TCP_SYN_RECEIVED"],
    )


def _reversed(key: Array, flow: Array) -> Array:
    """Keys of the answering direction: the packet as it leaves, with source and destination exchanged."""
    answer = np.zeros(len(key), key.dtype)
    answer["src"], answer["dst"] = (
        _as_key(flow["dst"], key.dtype["src"]),
        _as_key(flow["src"], key.dtype["dst"]),
    )
    answer["sport"], answer["dport"] = flow["dport"], flow["sport"]
    answer["proto"] = key["proto"]
    return answer


def _as_bytes(addresses: Array) -> Array:
    """Addresses of a key as rows of bytes: 16, or 4 if the key has them as numbers."""
    return addresses if addresses.ndim == 2 else addresses.astype(">u4").view(np.uint8).reshape(-1, 4)


def _as_key(addresses: Array, field: np.dtype[Any]) -> Array:
    """Addresses in 16 bytes as the key's field has them: the same, or numbers."""
    return addresses if field.shape else np.ascontiguousarray(addresses[:, :4]).view(">u4")[:, 0]


def _seconds_since(stamps: Array, jiffies: int, hz: int) -> Array:
    """Age of stamps that are the low 32 bits of jiffies; 0 for one made after `jiffies` was read."""
    age: Array = (np.uint32(jiffies & NONE) - stamps.astype(np.uint32)).view(np.int32)
    # Half of the range counts as the future: at 1000 Hz that is 24 days, more than any timeout.
    return np.maximum(age, 0) / np.float32(hz)


def match_rows(wanted: Array, present: Array) -> Array:
    """For each row of `wanted` the index of the equal row in `present`, or -1. Rows of `present` are
    unique.
    """
    found = np.full(len(wanted), -1, np.int64)
    if not len(wanted) or not len(present):
        return found
    wanted_words, present_words = _words(wanted), _words(present)
    # Hashed with secret odd numbers, so that nobody can choose addresses that make this slow.
    factors = [secrets.randbits(64) | 1 for _ in range(present_words.shape[1])]
    wanted_hash, present_hash = _hash(wanted_words, factors), _hash(present_words, factors)
    order = np.argsort(present_hash)
    sorted_hash = present_hash[order]
    # Looked up in the order of the hash: neighbours share cache lines.
    asking = np.argsort(wanted_hash)
    place = np.searchsorted(sorted_hash, wanted_hash[asking])
    while len(asking):
        inside = place < len(sorted_hash)
        asking, place = asking[inside], place[inside]
        same_hash = sorted_hash[place] == wanted_hash[asking]
        asking, place = asking[same_hash], place[same_hash]
        equal = (present_words[order[place]] == wanted_words[asking]).all(axis=1)
        found[asking[equal]] = order[place[equal]]
        asking, place = asking[~equal], place[~equal] + 1  # another row of the same hash
    return found


def _words(rows: Array) -> Array:
    """Structured rows of 8*n bytes as an (rows, n) array of 64-bit words."""
    return np.ascontiguousarray(rows).view(np.uint64).reshape(len(rows), -1)


def _hash(words: Array, factors: list[int]) -> Array:
    mixed = np.zeros(len(words), np.uint64)
    for column, factor in zip(words.T, factors, strict=True):
        mixed = (mixed ^ column) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(29)
    return mixed


# ---- for people ----


def text_addresses(addresses: Array, families: Array) -> list[str]:
    """Addresses of a column as text."""
    return [
        str(ipaddress.IPv4Address(row[:4]) if family == FAMILY_IPV4 else ipaddress.IPv6Address(row))
        for row, family in zip(map(bytes, addresses), families.tolist(), strict=True)
    ]


def state_names(timeout: Mapping[str, int]) -> dict[int, str]:
    """Names of state codes: enum timeout without its prefix, "tcp_established"."""
    return {
        code: name.removeprefix("TIMEOUT_").lower()
        for name, code in timeout.items()
        if name != "TIMEOUT_COUNT"
    }
