# SPDX-License-Identifier: Apache-2.0
"""The flow tables as tests see and change them. Nothing else in the tests knows how flows are stored."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from clearway.datapath import Datapath
from clearway.datapath.flows import text_addresses
from clearway.datapath.flowtable import SLOTS, Keys, as_bytes
from clearway.datapath.flowtable import FlowTable as Table
from tests.packet.frames import family_of

WIDTH = {4: 4, 6: 16}
PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58}


@dataclass(frozen=True)
class Tuple:
    """A packet's addresses and ports; for echo, the identifier is the port of the side that asked."""

    proto: str
    src: str
    sport: int
    dst: str
    dport: int

    def reversed(self) -> Tuple:
        return Tuple(self.proto, self.dst, self.dport, self.src, self.sport)


class Ends(Protocol):
    """Something with the tuples of both directions, as they arrive."""

    arrives: Tuple

    @property
    def reply(self) -> Tuple: ...


@dataclass(frozen=True)
class Connection:
    """What Datapath.flows() says of a connection."""

    source_out: str
    source_out_port: int
    destination_out: str
    destination_out_port: int
    state: str
    packets: int
    bytes: int
    reply_packets: int
    reply_bytes: int
    ifindex: int
    reply_ifindex: int
    paired: bool

    @property
    def leaves(self) -> tuple[str, int, str, int]:
        return self.source_out, self.source_out_port, self.destination_out, self.destination_out_port


def packed(address: str) -> list[int]:
    """An address as a union addr."""
    family = socket.AF_INET6 if family_of(address) == 6 else socket.AF_INET
    return list(socket.inet_pton(family, address).ljust(16, b"\0"))


OTHERS = 3
"""A tag of entries in force."""
FLAGS = ("reply", "source_nat", "dest_nat", "full_nat", "has_service", "has_nat", "picked_up", "linux")


class FlowTable:
    """The flow tables of a data path, both families."""

    def __init__(self, datapath: Datapath) -> None:
        self._datapath = datapath
        self._bits = datapath.enum("flow_state")
        self._established = PROTOCOLS["tcp"] | self._bits["FLOW_SENT_ACK"] | self._bits["FLOW_HEARD_ACK"]

    def entry(self, key: Tuple) -> Any:
        """The entry of a packet with that tuple; None if there is none. Its own fields, and what they mean:
        packets, bytes, sent (FLOW_SENT_*), tcp_scale, tcp_window in bytes, endpoint, nat.
        """
        with self._datapath.flow_tables() as tables:
            table, place = self._find(tables, key)
            if place < 0:
                return None
            entries, _ = table.entries_at(np.array([place]))
            flow = entries.flow[0]
            other, pair = self._find(tables, _leaves(entries.slot[0], key).reversed())
            nats = [int(entries.nat[0]), 0]
            if pair >= 0:
                nats[1] = int(other.entries_at(np.array([pair]))[0].nat[0])
        state = int(flow["state"])
        scale = (state & self._bits["FLOW_SCALE"]) >> 16
        fields = {name: flow[name] for name in flow.dtype.names}
        return {
            **fields,
            "src": list(as_bytes(entries.slot["src"])[0].tobytes().ljust(16, b"\0")),
            "dst": list(as_bytes(entries.slot["dst"])[0].tobytes().ljust(16, b"\0")),
            "packets": int(flow["carried"]) >> 32,
            "bytes": int(flow["carried"]) & 0xFFFFFFFF,
            "sent": state >> 8 & 15,
            "tcp_scale": scale,
            "tcp_window": int(flow["tcp_window"]) << scale,
            "endpoint": int(entries.rare[0]),
            "nat": nats[0] | nats[1] << 8,
        }

    def flags(self, key: Tuple) -> set[str]:
        """Names of the entry's FLAGS."""
        entry = self.entry(key)
        assert entry is not None
        return {name for name in FLAGS if int(entry["state"]) & self._bits[f"FLOW_{name.upper()}"]}

    def write_entry(self, key: Tuple, **changed: Any) -> None:
        """Changes fields of an entry, as time or other packets would have."""
        with self._datapath.flow_tables() as tables:
            table, place = self._find(tables, key)
            assert place >= 0
            bucket, slot = divmod(place, SLOTS)
            for field, value in changed.items():
                table.rows["slot"]["flow"][field][bucket, slot] = value

    def delete_entry(self, key: Tuple) -> None:
        with self._datapath.flow_tables() as tables:
            table, place = self._find(tables, key)
            assert place >= 0
            table.rows["marks"]["mark"][divmod(place, SLOTS)] = 0

    def disown_entry(self, key: Tuple) -> None:
        """The entry becomes an established one of others, in its place."""
        with self._datapath.flow_tables() as tables:
            table, place = self._find(tables, key)
            assert place >= 0
            at = divmod(place, SLOTS)
            table.rows["slot"]["flow"]["key_sport"][at] = 0
            table.rows["slot"]["flow"]["state"][at] = self._established
            table.rows["marks"]["mark"][at] = OTHERS << 16

    def let_time_pass(self, ends: Ends, *, seconds: float) -> None:
        """Both entries of a connection look as if nothing had come for so long."""
        for key in (ends.arrives, ends.reply):
            self.write_entry(key, seen=self._jiffies_ago(seconds))

    def let_age(self, key: Tuple, *, seconds: float) -> None:
        """The entry looks as if it had been last used so long ago."""
        self.write_entry(key, seen=self._jiffies_ago(seconds))

    def fill(self, family: int) -> None:
        """Puts an established connection's entry of others in every place that is free; locked, so that none
        of them is moved to a place that somebody leaves.
        """
        with self._datapath.flow_tables() as tables:
            for table in (one for one in tables if one.family == family):
                marks = table.rows["marks"]["mark"]
                bucket, slot = np.nonzero(marks >> 16 == 0)
                flow = table.rows["slot"]["flow"]
                flow["state"][bucket, slot] = self._established
                flow["seen"][bucket, slot] = self._jiffies_ago(0)
                flow["key_sport"][bucket, slot] = slot + 1
                flow["key_dport"][bucket, slot] = bucket
                marks[bucket, slot] = OTHERS << 16 | 1

    def buckets(self, key: Tuple) -> tuple[int, int]:
        """The two that its entry may stand in; it stands in the first one if that has a place."""
        with self._datapath.flow_tables() as tables:
            table = next(table for table in tables if table.family == family_of(key.src))
            first, second, _ = table.choose(_keys(key))
            return int(first[0]), int(second[0])

    def clear(self) -> None:
        with self._datapath.flow_tables() as tables:
            for table in tables:
                table.rows["marks"] = np.zeros((), table.rows.dtype["marks"])

    def entries(self) -> int:
        """How many there are, two a connection."""
        with self._datapath.flow_tables() as tables:
            return sum(len(table.entries()) for table in tables)

    def connections(self) -> list[Connection]:
        flows = self._datapath.flows()
        sources, destinations = (
            text_addresses(flows[name], flows["family"]) for name in ("source_out", "destination_out")
        )
        names = _state_names(self._datapath.enum("timeout"))
        numbers = ("packets", "bytes", "reply_packets", "reply_bytes", "ifindex", "reply_ifindex")
        return [
            Connection(
                source_out=source,
                source_out_port=int(flow["source_out_port"]),
                destination_out=destination,
                destination_out_port=int(flow["destination_out_port"]),
                state=names[int(flow["state"])],
                paired=bool(flow["paired"]),
                **{name: int(flow[name]) for name in numbers},
            )
            for source, destination, flow in zip(sources, destinations, flows, strict=True)
        ]

    def connection(self) -> Connection:
        """The only one there is."""
        (connection,) = self.connections()
        return connection

    def _jiffies_ago(self, seconds: float) -> int:
        clock = self._datapath.clock()
        return (clock.jiffies - int(seconds * clock.hz)) & 0xFFFFFFFF

    def _find(self, tables: list[Table], key: Tuple) -> tuple[Table, int]:
        """The table and the place of an entry; -1: there is none."""
        mine = [table for table in tables if table.family == family_of(key.src)]
        for table in mine:
            (place,) = table.find(_keys(key))
            if place >= 0:
                return table, int(place)
        return mine[0], -1


def _keys(key: Tuple) -> Keys:
    family = family_of(key.src)
    proto = PROTOCOLS["icmpv6" if key.proto == "icmp" and family == 6 else key.proto]
    return Keys(
        src=np.array([packed(key.src)[: WIDTH[family]]], np.uint8),
        dst=np.array([packed(key.dst)[: WIDTH[family]]], np.uint8),
        sport=np.array([key.sport]),
        dport=np.array([key.dport]),
        proto=np.array([proto]),
    )


def _leaves(slot: Any, key: Tuple) -> Tuple:
    """The tuple that packets of an entry leave with."""
    src, dst = (_text(slot[name]) for name in ("src", "dst"))
    return Tuple(key.proto, src, int(slot["flow"]["sport"]), dst, int(slot["flow"]["dport"]))


def _text(address: Any) -> str:
    if np.ndim(address):
        return socket.inet_ntop(socket.AF_INET6, address.tobytes())
    return socket.inet_ntop(socket.AF_INET, int(address).to_bytes(4, "big"))


def _state_names(timeout: Mapping[str, int]) -> dict[int, str]:
    return {number: name.removeprefix("TIMEOUT_").lower() for name, number in timeout.items()}
