# SPDX-License-Identifier: Apache-2.0
"""Connections for people and programs: chosen, sorted and written out as JSON, a million of them if need be.

Choosing and sorting work on whole columns; text is made only of what is sent, piece by piece, so that a long
list neither fills the memory nor holds anybody up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Any

import numpy as np
import numpy.typing as npt

from clearway.api.control import FilterError
from clearway.api.views import FlowFilter
from clearway.datapath.flows import NONE
from clearway.datapath.flowtable import FAMILY_IPV4, FAMILY_IPV6
from clearway.model import protocols

Array = npt.NDArray[Any]

PROTOCOLS = {number: name for name, number in protocols.PROTOCOLS.items()}
ADDRESS_COLUMNS = ("client", "destination", "source_out", "destination_out")
OWNERS = {"clearway": 0, "linux": 1}
PIECE = 2000  # connections


@dataclass(frozen=True)
class Names:
    """What ids in flows mean. `states`: codes of enum timeout. `adopted`: the bit FLOW_ADOPTED."""

    services: Mapping[int, str] = field(default_factory=dict)
    endpoints: Mapping[int, str] = field(default_factory=dict)  # address:port
    nats: Mapping[int, str] = field(default_factory=dict)
    states: Mapping[int, str] = field(default_factory=dict)
    adopted: int = 0


@dataclass(frozen=True)
class Use:
    """Connections in the flow table that belong to one thing, and what they carried in both directions."""

    flows: int = 0
    packets: int = 0
    bytes: int = 0


def usage(flows: Array, column: str) -> dict[int, Use]:
    """Use by the ids of a column (service, endpoint, nat)."""
    chosen = flows[flows[column] != NONE]
    ids, places = np.unique(chosen[column], return_inverse=True)
    counts = np.bincount(places, minlength=len(ids))
    packets = _sums(places, chosen["packets"], chosen["reply_packets"], len(ids))
    octets = _sums(places, chosen["bytes"], chosen["reply_bytes"], len(ids))
    rows = zip(ids.tolist(), counts.tolist(), packets.tolist(), octets.tolist(), strict=True)
    return {key: Use(count, carried, size) for key, count, carried, size in rows}


def _sums(places: Array, there: Array, back: Array, number: int) -> Array:
    total = np.zeros(number, np.uint64)
    np.add.at(total, places, there + back)
    return total


def choose(flows: Array, wanted: FlowFilter, names: Names) -> tuple[Array, int]:
    """The connections that match, those that carried most first, at most `limit`; and how many match in all.

    Raises FilterError for names that do not exist.
    """
    matching = np.ones(len(flows), np.bool_)
    if wanted.service is not None:
        matching &= flows["service"] == _service_id(wanted.service, names)
    if wanted.endpoint is not None:
        matching &= np.isin(flows["endpoint"], _endpoint_ids(wanted, names))
    if wanted.nat is not None:
        matching &= np.isin(flows["nat"], _nat_ids(wanted.nat, names))
    if wanted.protocol is not None:
        matching &= np.isin(flows["proto"], _protocol_numbers(wanted.protocol))
    if wanted.state is not None:
        matching &= np.isin(flows["state"], _state_codes(wanted.state, names))
    if wanted.owner is not None:
        matching &= _owned(flows, names) == _owner_code(wanted.owner)
    if wanted.address is not None:
        matching &= _touches(flows, _network(wanted.address))
    places = np.flatnonzero(matching)
    carried = (flows["bytes"] + flows["reply_bytes"])[places]
    order = np.argsort(carried, kind="stable")[::-1]
    return flows[places[order[: wanted.limit]]], len(places)


def _service_id(name: str, names: Names) -> int:
    for number, known in names.services.items():
        if known == name:
            return number
    raise FilterError(f"there is no service {name}; services: {_listed(names.services.values())}")


def _endpoint_ids(wanted: FlowFilter, names: Names) -> list[int]:
    """Endpoints by address:port or by address alone."""
    text = wanted.endpoint or ""
    found = [
        number
        for number, known in names.endpoints.items()
        if text in (known, known.rpartition(":")[0].strip("[]"))
    ]
    if not found:
        raise FilterError(f"there is no endpoint {text}; endpoints: {_listed(names.endpoints.values())}")
    return found


def _nat_ids(name: str, names: Names) -> list[int]:
    found = [number for number, known in names.nats.items() if known == name]
    if not found:
        raise FilterError(f"there is no NAT rule {name}; rules: {_listed(names.nats.values())}")
    return found


def _protocol_numbers(name: str) -> list[int]:
    found = [number for number, known in PROTOCOLS.items() if known == name.lower()]
    if not found:
        raise FilterError(f"there are no flows of protocol {name}; protocols: {_listed(PROTOCOLS.values())}")
    return found


def _state_codes(name: str, names: Names) -> list[int]:
    """States by their names, TCP's also without the prefix."""
    found = [
        code for code, known in names.states.items() if name.lower() in (known, known.removeprefix("tcp_"))
    ]
    if not found:
        raise FilterError(f"there is no state {name}; states: {_listed(names.states.values())}")
    return found


def _owner_code(name: str) -> int:
    if name not in OWNERS:
        raise FilterError(f"there is no owner {name}; owners: {_listed(OWNERS)}")
    return OWNERS[name]


def _owned(flows: Array, names: Names) -> Array:
    """By OWNERS."""
    owned: Array = (flows["flags"] & np.uint32(names.adopted) != 0).astype(np.int64)
    return owned


def _listed(words: Any) -> str:
    unique = sorted(set(words))
    return ", ".join(unique[:20]) + (", ..." if len(unique) > 20 else "") if unique else "none"


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise FilterError(
            f"{text} is neither an address nor a prefix, such as 10.0.0.2 or 10.0.0.0/8"
        ) from None


def _touches(flows: Array, network: IPv4Network | IPv6Network) -> Array:
    """Connections with any of their addresses in the network."""
    size = network.max_prefixlen // 8
    mask = np.frombuffer(network.netmask.packed, np.uint8)
    prefix = np.frombuffer(network.network_address.packed, np.uint8)
    matching = np.zeros(len(flows), np.bool_)
    for column in ADDRESS_COLUMNS:
        matching |= ((flows[column][:, :size] & mask) == prefix).all(axis=1)
    family = FAMILY_IPV4 if network.version == 4 else FAMILY_IPV6
    result: Array = matching & (flows["family"] == family)
    return result


def pieces(chosen: Array, names: Names, *, matched: int, total: int) -> Iterator[bytes]:
    """One JSON document, in pieces: {"matched": .., "total": .., "flows": [..]} with a FlowView each."""
    yield f'{{"matched": {matched}, "total": {total}, "flows": ['.encode()
    for begin in range(0, len(chosen), PIECE):
        columns = _columns(chosen[begin : begin + PIECE], names)
        form = "{" + ", ".join(f'"{name}": %s' for name in columns) + "}"
        rows = [form % row for row in zip(*columns.values(), strict=True)]
        yield (",\n" if begin else "\n").encode() + ",\n".join(rows).encode()
    yield b"]}\n"


def _columns(flows: Array, names: Names) -> dict[str, list[Any]]:
    """The fields of views.FlowView, each value as JSON has it. Columns at a time: a million rows are many."""
    columns: dict[str, list[Any]] = {
        "owner": words(_owned(flows, names), {code: name for name, code in OWNERS.items()}, "{}"),
        "family": flows["family"].tolist(),
        "protocol": words(flows["proto"], PROTOCOLS, "{}"),
        "state": words(flows["state"], names.states, "{}"),
    }
    families = flows["family"].tolist()
    for name in ADDRESS_COLUMNS:
        columns[name] = addresses(flows[name], families)
        columns[f"{name}_port"] = flows[f"{name}_port"].tolist()
    for name, known in (("service", names.services), ("endpoint", names.endpoints), ("nat", names.nats)):
        columns[name] = words(flows[name], known, "gone")
    for name in ("packets", "bytes", "reply_packets", "reply_bytes"):
        columns[name] = flows[name].tolist()
    for name in ("age", "idle"):
        columns[name] = flows[f"{name}_s"].astype(np.float64).round(3).tolist()
    return columns


def words(codes: Array, known: Mapping[int, str], unknown: str) -> list[str]:
    """Names for codes, NONE is null; each name is made JSON once."""
    words = {NONE: "null"}
    for code in set(codes.tolist()) - {NONE}:
        words[code] = json.dumps(known.get(code, unknown.format(code)))
    return [words[code] for code in codes.tolist()]


def addresses(column: Array, families: list[int]) -> list[str]:
    raw = column.tobytes()
    return [
        f'"{inet_ntop(AF_INET, raw[at : at + 4])}"'
        if family == FAMILY_IPV4
        else f'"{inet_ntop(AF_INET6, raw[at : at + 16])}"'
        for at, family in zip(range(0, len(raw), 16), families, strict=True)
    ]
