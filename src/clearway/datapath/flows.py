# SPDX-License-Identifier: Apache-2.0
"""The flow tables as one array of connections: both directions joined, states derived, whole columns at a
time.

An entry's key is the packet as it comes, the rest says how it leaves; so the other direction's key is this
entry's leaving tuple, reversed. TCP's state is not stored anywhere: it follows from what both sides have sent
(bpf/state.h), which each entry tells of both.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from clearway.datapath.flowtable import (
    FAMILY_IPV4,
    SLOTS,
    Entries,
    FlowTable,
    Keys,
    as_bytes,
    same_addresses,
)

Array = npt.NDArray[Any]

NONE = 0xFFFFFFFF
GONE = NONE - 1
"""Instead of the id of an endpoint that was removed, and of its service."""
IPPROTO_ICMP = 1
IPPROTO_TCP = 6
IPPROTO_ICMPV6 = 58
HALF = np.uint64(32)
WAY_BITS = 24
LOW = np.uint64(0xFFFFFFFF)

# A row a connection. Addresses are 16 bytes in network order, IPv4 in the first four; ports are numbers.
# client and destination: as the client's packets come; *_out: as they leave. state: enum timeout; flags:
# enum flow_state of the opening direction; service, endpoint: ids, GONE or NONE; nat: id or NONE; paired:
# the answering direction's entry was there; born: jiffies (low 32 bits). ifindex: by which the opening
# direction leaves, inside: by which it comes in (of FLOW_ADOPTED alone); 0 where that is not known. mark:
# conntrack's, of FLOW_ADOPTED.
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
        ("born", "u4"),
        ("age_s", "f4"),
        ("idle_s", "f4"),
        ("service", "u4"),
        ("endpoint", "u4"),
        ("nat", "u4"),
        ("ifindex", "u4"),
        ("reply_ifindex", "u4"),
        ("inside", "u4"),
        ("reply_inside", "u4"),
        ("mark", "u4"),
        ("paired", "?"),
    ]
)


@dataclass(frozen=True)
class Meaning:
    """What is needed to understand entries. `jiffies`, `hz`: the kernel's clock. `enums`: the data path's
    `flow_state` and `timeout`. `carried`: looks up rows of carried_v1, by family, table and slot, and tells
    which there are. `endpoints`: rows of endpoint_v1 by id. `services`: keys and values of service_v2.
    `ifindexes`: devices by row of egress_v2.
    """

    jiffies: int
    hz: int
    enums: Mapping[str, Mapping[str, int]]
    carried: Callable[[Array, Array, Array], tuple[Array, Array]]
    endpoints: Array
    services: tuple[Array, Array]
    ifindexes: Array

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
    """All connections of these tables as an array of CONNECTION: those that were there all the time, each
    once, and of those that came or went meanwhile some. tables: the current ones first.
    """
    out = _Rows(sum(table.count() for table in tables) // 2)
    for family in sorted({table.family for table in tables}):
        # What moves between two looks is found where it has come to, if that is looked at last.
        reading = _Reading([table for table in reversed(tables) if table.family == family], meaning)
        begin = out.end
        for part in reading.parts():
            out.add(part)
        for part in reading.missed():
            out.add(part)
        if reading.doubtful:
            out.end = begin + _drop_repeated(out.rows[begin : out.end])
    return out.rows[: out.end]


class _Rows:
    """An array that rows are added to."""

    def __init__(self, size: int) -> None:
        self.rows: Array = np.empty(size, CONNECTION)
        self.end = 0

    def add(self, part: Array) -> None:
        begin, self.end = self.end, self.end + len(part)
        if self.end > len(self.rows):  # they have become more meanwhile
            self.rows.resize(2 * self.end, refcheck=False)
        self.rows[begin : self.end] = part


@dataclass
class _Read:
    """What was seen of a table, by place."""

    opening: Array
    """Entries that opened a connection, and are told."""
    answering: Array
    """Entries that answer."""
    claimed: Array
    """Entries that answer one that is told."""

    @classmethod
    def of(cls, table: FlowTable) -> _Read:
        return cls(*(np.zeros(table.buckets * SLOTS, np.bool_) for _ in range(3)))


class _Reading:
    """One family's tables while they are read, those first that are being left.

    One part is read after the other, and entries move between their two buckets and the tables meanwhile. So
    one may be seen twice, or never. Who is seen twice has the same answering entry as somebody else; of who
    is never seen there is an answering entry that belongs to nobody. `doubtful`: there may be such.
    """

    def __init__(self, tables: Sequence[FlowTable], meaning: Meaning) -> None:
        self._tables = tables
        self._meaning = meaning
        self._read = [_Read.of(table) for table in tables]
        self.doubtful = len(tables) > 1

    def parts(self) -> Iterator[Array]:
        reply = self._meaning.enums["flow_state"]["FLOW_REPLY"]
        for number, table in enumerate(self._tables):
            for first in range(0, table.buckets, PART):
                entries = table.entries(slice(first, first + PART))
                answers = entries.flow["state"] & reply != 0
                self._read[number].answering[entries.place[answers]] = True
                yield self._told(number, entries.take(np.flatnonzero(~answers)))

    def missed(self) -> Iterator[Array]:
        """Connections of which only the answering entry was seen."""
        for table, read in zip(self._tables, self._read, strict=True):
            alone = np.flatnonzero(read.answering & ~read.claimed)
            if not len(alone):
                continue
            self.doubtful = True
            answers, same = table.entries_at(alone)
            keys = _leads_to(answers.take(np.flatnonzero(same)))
            for number, (other, seen) in enumerate(zip(self._tables, self._read, strict=True)):
                places = other.find(keys)
                found = places >= 0
                places, keys = places[found], keys.take(~found)
                openings, same = other.entries_at(places[~seen.opening[places]])
                yield self._told(number, openings.take(np.flatnonzero(same)), all_of_them=True)

    def _told(self, number: int, mine: Entries, all_of_them: bool = False) -> Array:
        """The connections that these entries have opened; number: of their table.

        One that has moved since it was copied, so that its sum stands elsewhere by now, is left to missed().
        """
        answers = _Answers.of(mine, self._tables, number)
        rows, there = _rows(mine, answers, self._tables, number, self._meaning)
        there |= all_of_them
        self._read[number].opening[mine.place[there]] = True
        for other, read in enumerate(self._read):
            places = answers.place[answers.paired & there & (answers.table == other)]
            self.doubtful |= bool(read.claimed[places].any())
            read.claimed[places] = True
        return rows if there.all() else rows[there]


@dataclass
class _Answers:
    """The answering direction's entry of each of some opening ones, by row: as Entries, and of which table.
    `paired`: there is one that leads back; where there is none the rest stands for nothing.
    """

    paired: Array
    table: Array
    place: Array
    flow: Array
    rare: Array
    nat: Array

    @classmethod
    def of(cls, mine: Entries, tables: Sequence[FlowTable], number: int) -> _Answers:
        """Looked for in all tables, twice, as packets do; first in the one that `mine` are of."""
        count = len(mine)
        out = cls(
            paired=np.zeros(count, np.bool_),
            table=np.zeros(count, np.int64),
            place=np.zeros(count, np.int64),
            flow=np.zeros(count, mine.flow.dtype),
            rare=np.zeros(count, mine.rare.dtype),
            nat=np.zeros(count, mine.nat.dtype),
        )
        others = [other for other in range(len(tables)) if other != number]
        for other in (number, *others) * 2:
            missing = np.flatnonzero(~out.paired)
            if not len(missing):
                break
            out._look(mine, missing, tables[other], other)
        return out

    def _look(self, mine: Entries, rows: Array, table: FlowTable, number: int) -> None:
        opening = mine if len(rows) == len(mine) else mine.take(rows)
        place = table.find(_leads_to(opening))
        there = np.flatnonzero(place >= 0)
        opening = opening if len(there) == len(rows) else opening.take(there)
        answers, same = table.entries_at(place[there])
        good = np.flatnonzero(same & _lead_back(answers, opening))
        if len(good) == len(self.paired):  # as nearly always: there is no need to copy
            self.paired[:], self.table[:], self.place = True, number, answers.place
            self.flow, self.rare, self.nat = answers.flow, answers.rare, answers.nat
            return
        rows = rows[there[good]]
        self.paired[rows], self.table[rows], self.place[rows] = True, number, answers.place[good]
        self.flow[rows], self.rare[rows], self.nat[rows] = (
            answers.flow[good],
            answers.rare[good],
            answers.nat[good],
        )


def _leads_to(entries: Entries) -> Keys:
    """Keys of the other direction's entries."""
    return Keys(
        src=as_bytes(entries.slot["dst"]),
        dst=as_bytes(entries.slot["src"]),
        sport=entries.flow["dport"],
        dport=entries.flow["sport"],
        proto=entries.flow["state"] & 0xFF,
    )


def _drop_repeated(rows: Array) -> int:
    """Moves the first row of each connection to the front, and tells how many that are."""
    keys = np.zeros((len(rows), 6), np.uint64)
    octets = keys.view(np.uint8)
    octets[:, :16], octets[:, 16:32] = rows["client"], rows["destination"]
    keys[:, 4] = rows["client_port"].astype(np.uint64) << HALF | rows["destination_port"]
    keys[:, 5] = rows["proto"]
    hashed = (keys * np.random.default_rng().integers(1, 1 << 63, 6, np.uint64)).sum(axis=1)
    order = np.argsort(hashed, kind="stable")
    again = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    kept = np.ones(len(rows), np.bool_)
    kept[order[1:][again]] = False
    count = int(np.count_nonzero(kept))
    rows[:count] = rows[kept]
    return count


def _rows(
    mine: Entries, answers: _Answers, tables: Sequence[FlowTable], number: int, meaning: Meaning
) -> tuple[Array, Array]:
    """Connections by their opening entries, of table `number`, and those that answer; and whether all of
    them stand still where they did.
    """
    state, table, paired = meaning.enums["flow_state"], tables[number], answers.paired
    which = np.array([table.which for table in tables])[answers.table]
    out = np.zeros(len(mine), CONNECTION)
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
    out["packets"], out["bytes"], there = _sums(mine.flow, (table.family, table.which), mine.place, meaning)
    packets, octets, also = _sums(answers.flow, (table.family, which), answers.place, meaning)
    out["reply_packets"], out["reply_bytes"] = packets, octets
    out["inside"], out["ifindex"] = _way(mine.flow, meaning)
    inside, outside = _way(answers.flow, meaning)
    out["reply_inside"], out["reply_ifindex"] = np.where(paired, inside, 0), np.where(paired, outside, 0)
    out["mark"] = np.where(mine.flow["state"] & state["FLOW_ADOPTED"] != 0, mine.rare, 0)
    out["born"] = np.where(paired, answers.rare, 0)
    out["age_s"] = np.where(paired, _seconds_since(answers.rare, meaning), 0)
    idle = _seconds_since(mine.flow["seen"], meaning)
    out["idle_s"] = np.where(paired, np.minimum(idle, _seconds_since(answers.flow["seen"], meaning)), idle)
    served = mine.flow["state"] & state["FLOW_HAS_SERVICE"] != 0
    service, endpoint = _owners(out, mine.rare, meaning)
    out["service"], out["endpoint"] = np.where(served, service, NONE), np.where(served, endpoint, NONE)
    translated = mine.flow["state"] & state["FLOW_HAS_NAT"] != 0
    nat = mine.nat.astype(np.uint32) | answers.nat.astype(np.uint32) << np.uint32(8)
    out["nat"] = np.where(translated & paired, nat, NONE)
    out["state"] = states(mine.flow["state"], meaning.enums)
    return out, there & also


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


def _way(flow: Array, meaning: Meaning) -> tuple[Array, Array]:
    """Devices that the packets of entries come in by (of adopted ones: struct way of bpf/types.h), and leave
    by; 0 where none has come, or the next hop is not resolved.
    """
    adopted = flow["state"] & meaning.enums["flow_state"]["FLOW_ADOPTED"] != 0
    both = flow["tcp_window"].astype(np.uint64) << HALF | flow["tcp_ack"]
    rows = np.minimum(flow["egress"], len(meaning.ifindexes) - 1)
    resolved = np.where(flow["stamp"] != 0, meaning.ifindexes[rows], 0)
    inside = np.where(adopted, both >> np.uint64(WAY_BITS), 0)
    return inside, np.where(adopted, both & np.uint64((1 << WAY_BITS) - 1), resolved)


def _sums(flow: Array, which: tuple[Any, Any], place: Array, meaning: Meaning) -> tuple[Array, Array, Array]:
    """Packets and bytes of entries: their own word, and what carried_v1 has counted before (bpf/flow.h); and
    whether they stand at this place still. which: family and table.
    """
    packets, octets = np.zeros(len(flow), np.uint64), np.zeros(len(flow), np.uint64)
    there = np.ones(len(flow), np.bool_)
    folded = np.flatnonzero(flow["state"] & meaning.enums["flow_state"]["FLOW_FOLDED"] != 0)
    if len(folded):
        family, table = (np.broadcast_to(column, len(flow))[folded] for column in which)
        rows, there[folded] = meaning.carried(family, table, place[folded])
        packets[folded], octets[folded] = rows["packets"], rows["bytes"]
    word = flow["carried"]
    octets += ((word & LOW) - (octets & LOW)) & LOW
    packets += ((word >> HALF) - (octets >> HALF) - (packets & LOW)) & LOW
    return packets, octets, there


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
