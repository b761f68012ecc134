# SPDX-License-Identifier: Apache-2.0
"""The flow tables as tests see and change them. Nothing else in the tests knows how flows are stored."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from clearway.datapath import Datapath, Table
from clearway.datapath.flows import text_addresses
from tests.packet.frames import family_of

TABLES = {4: "flow4_v1", 6: "flow6_v1"}
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


class FlowTable:
    """The flow tables of a data path, both families."""

    def __init__(self, datapath: Datapath) -> None:
        self._datapath = datapath

    def entry(self, key: Tuple) -> Any:
        """The entry of a packet with that tuple, a row of struct flow; None if there is none."""
        keys, table = self._key(key)
        values, found = table.lookup(keys)
        return values[0] if found[0] else None

    def flags(self, key: Tuple) -> set[str]:
        """Names of the entry's flags, in small letters and without FLOW_."""
        bits, value = self._datapath.enum("flow_flags"), int(self.entry(key)["flags"])
        return {name.removeprefix("FLOW_").lower() for name, bit in bits.items() if value & bit}

    def write_entry(self, key: Tuple, **changed: Any) -> None:
        """Changes fields of an entry, as time or other packets would have."""
        keys, table = self._key(key)
        values, found = table.lookup(keys)
        assert found[0]
        for field, value in changed.items():
            values[0][field] = value
        table.update(keys, values)

    def delete_entry(self, key: Tuple) -> None:
        keys, table = self._key(key)
        assert table.delete(keys) == 1

    def let_time_pass(self, ends: Ends, *, seconds: float) -> None:
        """Both entries of a connection look as if nothing had come for so long."""
        for key in (ends.arrives, ends.reply):
            self.write_entry(key, seen=self._jiffies_ago(seconds))

    def let_age(self, key: Tuple, *, seconds: float) -> None:
        """The entry looks as if it had been made, and last used, so long ago."""
        then = self._jiffies_ago(seconds)
        self.write_entry(key, seen=then, created=then)

    def fill(self, family: int, rows: int) -> None:
        """Puts that many entries of other connections in."""
        table = self._datapath.table(TABLES[family])
        keys, values = table.rows(rows)
        keys["sport"] = range(1, rows + 1)
        keys["proto"] = PROTOCOLS["tcp"]
        values["seen"] = values["created"] = self._jiffies_ago(0)
        table.update(keys, values)

    def clear(self) -> None:
        for name in TABLES.values():
            table = self._datapath.table(name)
            keys, _ = table.items()
            if len(keys):
                table.delete(keys)

    def entries(self) -> int:
        """How many there are, two a connection."""
        return sum(len(self._datapath.table(name).items()[0]) for name in TABLES.values())

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

    def _key(self, key: Tuple) -> tuple[Any, Table]:
        family = family_of(key.src)
        table = self._datapath.table(TABLES[family])
        keys, _ = table.rows(1)
        for field, address in (("src", key.src), ("dst", key.dst)):
            octets = packed(address)
            keys[0][field] = octets if family == 6 else int.from_bytes(bytes(octets[:4]), "big")
        keys[0]["sport"], keys[0]["dport"] = key.sport, key.dport
        keys[0]["proto"] = PROTOCOLS["icmpv6" if key.proto == "icmp" and family == 6 else key.proto]
        return keys, table


def _state_names(timeout: Mapping[str, int]) -> dict[int, str]:
    return {number: name.removeprefix("TIMEOUT_").lower() for name, number in timeout.items()}
