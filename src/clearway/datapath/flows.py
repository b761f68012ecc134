# SPDX-License-Identifier: Apache-2.0
"""The flow tables as one array of connections: both directions joined, states derived, whole columns at a
time.

An entry's key is the packet as it comes, the rest says how it leaves; so the other direction's key is this
entry's leaving tuple, reversed. TCP's state is not stored anywhere: it follows from what both sides have sent
(bpf/state.h), which each entry tells of both.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from clearway.datapath.flowtable import FAMILY_IPV4, Entries, FlowTable, Keys, as_bytes, same_addresses

Array = npt.NDArray[Any]

NONE = 0xFFFFFFFF
GONE = NONE - 1
"""Instead of the id of an endpoint that was removed, and of its service."""
IPPROTO_ICMP = 1
IPPROTO_TCP = 6
IPPROTO_ICMPV6 = 58
HALF = np.uint64(32)
LOW = np.uint64(0xFFFFFFFF)

# A row a connection. Addresses are 16 bytes in network order, IPv4 in the first four; ports are numbers.
# client and destination: as the client's packets come; *_out: as they leave. state: enum timeout; flags:
# enum flow_state of the opening direction; service, endpoint: ids, GONE or NONE; nat: id or NONE; paired:
# the answering direction's entry was there.
CONNECTION = np.dtype(
    [
        ("family", "u1"),
        ("proto", "u1"),
        ("state", "u1"),
        ("flags", "u4"),
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


@dataclass(frozen=True)
class Meaning:
    """What is needed to understand entries. `jiffies`, `hz`: the kernel's clock. `enums`: the data path's
    `flow_state` and `timeout`. `carried`: keys and values of carried_v1. `endpoints`: rows of endpoint_v1 by
    id. `services`: keys and values of service_v1. `ifindexes`: devices by row of egress_v1.
    """

    jiffies: int
    hz: int
    enums: Mapping[str, Mapping[str, int]]
    carried: tuple[Array, Array]
    endpoints: Array
    services: tuple[Array, Array]
    ifindexes: Array

    @cached_property
    def sums(self) -> tuple[Array, Array]:
        """Keys of carried_v1 as numbers, ascending, and its values in the same order."""
        keys, values = self.carried
        numbers = _carried_key(keys["family"], keys["table"], keys["slot"])
        order = np.argsort(numbers)
        return numbers[order], values[order]

    @cached_property
    def service_by_id(self) -> Array:
        """Rows of struct service_key; zeros where there is no such service."""
        keys, values = self.services
        by_id = np.zeros(
            1 + max(self.endpoints["service"].max(initial=0), values["id"].max(initial=0)), keys.dtype
        )
        by_id[values["id"]] = keys
        return by_id


PART = 4096
"""Buckets that are read and joined at once: what that takes stays in a processor's cache, and in memory that
is at hand, which makes it three times as fast as a whole table at once."""


def connections(tables: Sequence[FlowTable], meaning: Meaning) -> Array:
    """All connections of these tables as an array of CONNECTION.

    A reply whose opening direction is not there is left out: it was removed, or made, while this was read.
    A connection that is just moving from a table to another may show without its reply, or twice.
    """
    out = np.empty(sum(table.count() for table in tables) // 2, CONNECTION)
    end = 0
    for table in tables:
        for first in range(0, table.buckets, PART):
            part = _join(table, slice(first, first + PART), meaning)
            begin, end = end, end + len(part)
            if end > len(out):  # they have become more meanwhile
                out.resize(2 * end, refcheck=False)
            out[begin:end] = part
    return out[:end]


def _join(table: FlowTable, buckets: slice, meaning: Meaning) -> Array:
    """The connections whose opening direction stands in these buckets."""
    state = meaning.enums["flow_state"]
    entries = table.entries(buckets)
    opening = np.flatnonzero(entries.flow["state"] & state["FLOW_REPLY"] == 0)
    mine = entries.take(opening)
    reply, paired = _answers(mine, table)

    out = np.zeros(len(opening), CONNECTION)
    out["family"], out["proto"] = table.family, mine.flow["state"] & state["FLOW_PROTO"]
    out["flags"], out["paired"] = mine.flow["state"], paired
    for name, column in (
        ("client", "key_src"),
        ("destination", "key_dst"),
        ("source_out", "src"),
        ("destination_out", "dst"),
    ):
        octets = as_bytes(mine.slot[column])
        out[name][:, : octets.shape[1]] = octets
    for name, column in (
        ("client_port", "key_sport"),
        ("destination_port", "key_dport"),
        ("source_out_port", "sport"),
        ("destination_out_port", "dport"),
    ):
        out[name] = mine.flow[column]
    out["packets"], out["bytes"] = carried(mine.flow, mine.place, table, meaning)
    answered = carried(reply.flow, reply.place, table, meaning)
    out["reply_packets"], out["reply_bytes"] = (np.where(paired, column, 0) for column in answered)
    out["ifindex"] = _ifindexes(mine.flow, meaning)
    out["reply_ifindex"] = np.where(paired, _ifindexes(reply.flow, meaning), 0)
    out["age_s"] = np.where(paired, _seconds_since(reply.rare, meaning), 0)
    idle = _seconds_since(mine.flow["seen"], meaning)
    out["idle_s"] = np.where(paired, np.minimum(idle, _seconds_since(reply.flow["seen"], meaning)), idle)
    served = mine.flow["state"] & state["FLOW_HAS_SERVICE"] != 0
    service, endpoint = _owners(out, mine.rare, meaning)
    out["service"], out["endpoint"] = np.where(served, service, NONE), np.where(served, endpoint, NONE)
    translated = mine.flow["state"] & state["FLOW_HAS_NAT"] != 0
    nat = mine.nat.astype(np.uint32) | reply.nat.astype(np.uint32) << np.uint32(8)
    out["nat"] = np.where(translated & paired, nat, NONE)
    out["state"] = states(mine.flow["state"], meaning.enums)
    return out


def _owners(flows: Array, numbers: Array, meaning: Meaning) -> tuple[Array, Array]:
    """Ids of services and endpoints, of connections whose entries name the endpoints `numbers`. Ids are given
    out again: the rows have to say what the connection does, as in service_keeps() (bpf/service.h).
    """
    endpoints = meaning.endpoints[np.minimum(numbers, len(meaning.endpoints) - 1)]
    ids = endpoints["service"]
    service = meaning.service_by_id[ids]
    keeps = numbers < len(meaning.endpoints)
    for row, address, port in (
        (endpoints, flows["destination_out"], flows["destination_out_port"]),
        (service, flows["destination"], flows["destination_port"]),
    ):
        keeps &= (row["family"] == flows["family"]) & (row["port"] == port)
        keeps &= same_addresses(row["address"], address)
    keeps &= service["proto"] == flows["proto"]
    return np.where(keeps, ids, GONE), np.where(keeps, numbers, GONE)


def _ifindexes(flow: Array, meaning: Meaning) -> Array:
    """Devices that entries leave by; 0 where the next hop is not resolved."""
    rows = np.minimum(flow["egress"], len(meaning.ifindexes) - 1)
    found: Array = np.where(flow["stamp"] != 0, meaning.ifindexes[rows], 0)
    return found


def carried(flow: Array, place: Array, table: FlowTable, meaning: Meaning) -> tuple[Array, Array]:
    """Packets and bytes of entries: their own word, and what carried_v1 has counted before (bpf/flow.h)."""
    packets, octets = np.zeros(len(flow), np.uint64), np.zeros(len(flow), np.uint64)
    folded = np.flatnonzero(flow["state"] & meaning.enums["flow_state"]["FLOW_FOLDED"] != 0)
    if len(folded) and len(meaning.sums[0]):
        keys, rows = meaning.sums
        wanted = _carried_key(table.family, table.which, place[folded])
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        there = keys[at] == wanted
        packets[folded[there]] = rows["packets"][at[there]]
        octets[folded[there]] = rows["bytes"][at[there]]
    word = flow["carried"]
    octets += ((word & LOW) - (octets & LOW)) & LOW
    packets += ((word >> HALF) - (octets >> HALF) - (packets & LOW)) & LOW
    return packets, octets


def _carried_key(family: Array | int, table: Array | int, slot: Array) -> Array:
    """Keys of carried_v1 as numbers."""
    which = np.asarray(family, np.uint64) << np.uint64(8) | np.asarray(table, np.uint64)
    key: Array = which << HALF | slot.astype(np.uint64)
    return key


def states(state: Array, enums: Mapping[str, Mapping[str, int]]) -> Array:
    """Codes of enum timeout, from the state words of opening entries; the same decision as flow_timeout() in
    bpf/state.h.
    """
    bits, timeout = enums["flow_state"], enums["timeout"]
    proto = state & bits["FLOW_PROTO"]
    is_icmp = (proto == IPPROTO_ICMP) | (proto == IPPROTO_ICMPV6)
    heard = bits["FLOW_HEARD_SYN"] | bits["FLOW_HEARD_ACK"] | bits["FLOW_HEARD_FIN"] | bits["FLOW_HEARD_RST"]
    answered = state & heard != 0
    udp = np.where(answered, timeout["TIMEOUT_UDP_STREAM"], timeout["TIMEOUT_UDP"])
    sent_fin, heard_fin = (state & bits[f"FLOW_{who}_FIN"] != 0 for who in ("SENT", "HEARD"))
    tcp = np.select(
        [
            state & (bits["FLOW_SENT_RST"] | bits["FLOW_HEARD_RST"]) != 0,
            sent_fin & heard_fin,
            sent_fin | heard_fin,
            ~answered,
            state & (bits["FLOW_PICKED_UP"] | bits["FLOW_SENT_ACK"]) != 0,
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
    chosen: Array = np.select([proto == IPPROTO_TCP, is_icmp], [tcp, timeout["TIMEOUT_ICMP"]], udp)
    return chosen


def _answers(mine: Entries, table: FlowTable) -> tuple[Entries, Array]:
    """The answering direction's entry of each opening one, and whether there is one that leads back to it.
    Where there is none the row stands for nothing.
    """
    keys = Keys(
        src=as_bytes(mine.slot["dst"]),
        dst=as_bytes(mine.slot["src"]),
        sport=mine.flow["dport"],
        dport=mine.flow["sport"],
        proto=mine.flow["state"] & 0xFF,
    )
    place = table.find(keys)
    paired = place >= 0
    answers = table.entries_at(np.where(paired, place, 0))
    paired &= _lead_back(answers, mine)
    return answers, paired


def _lead_back(answers: Entries, mine: Entries) -> Array:
    lead: Array = (
        (answers.flow["sport"] == mine.flow["key_dport"])
        & (answers.flow["dport"] == mine.flow["key_sport"])
        & same_addresses(answers.slot["src"], mine.slot["key_dst"])
        & same_addresses(answers.slot["dst"], mine.slot["key_src"])
    )
    return lead


def _seconds_since(stamps: Array, meaning: Meaning) -> Array:
    """Age of stamps that are the low 32 bits of jiffies; 0 for one made after `jiffies` was read."""
    age: Array = (np.uint32(meaning.jiffies & NONE) - stamps.astype(np.uint32)).view(np.int32)
    # Half of the range counts as the future: at 1000 Hz that is 24 days, more than any timeout.
    return np.maximum(age, 0) / np.float32(meaning.hz)


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
