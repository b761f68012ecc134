# SPDX-License-Identifier: Apache-2.0
"""Connections as they end, a line of JSON each, for whoever follows them (flow export)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from clearway.daemon.flowlist import PROTOCOLS, addresses, words
from clearway.daemon.followers import as_lines, when
from clearway.daemon.past import PastNames, ServiceKey
from clearway.datapath.calls import Clock
from clearway.datapath.flows import NONE, state_names, states

Array = npt.NDArray[Any]

ENUMS = ("flow_end", "flow_state", "timeout")


def lines(records: Array, names: PastNames, enums: Mapping[str, Mapping[str, int]], clock: Clock) -> bytes:
    """Records (struct flow_record) as lines of JSON. Times are seconds since the epoch. enums: all of ENUMS.

    A connection's service and endpoint are told by its addresses: ids may be others' by now.
    """
    bits = enums["flow_state"]
    client, leaves = records["client"], records["leaves"]
    families = client["family"].tolist()
    ended = when(records["ended"], clock.jiffies, clock.hz)
    lasted = (records["ended"].astype(np.uint32) - records["created"]) / clock.hz
    idle = (
        np.minimum(*(_passed(records["ended"], records[name]) for name in ("seen", "reply_seen"))) / clock.hz
    )
    served = (records["state"] & bits["FLOW_HAS_SERVICE"] != 0).tolist()
    nat = np.where(records["state"] & bits["FLOW_HAS_NAT"] != 0, records["nat"].astype(np.uint32), NONE)
    columns: dict[str, list[Any]] = {
        "ended": ended.round(3).tolist(),
        "began": (ended - lasted).round(3).tolist(),
        "last": (ended - idle).round(3).tolist(),
        "why": words(records["why"], _why(enums["flow_end"]), "{}"),
        "state": words(states(records["state"], enums), state_names(enums["timeout"]), "{}"),
        "family": families,
        "protocol": words(client["proto"], PROTOCOLS, "{}"),
        "client": addresses(client["src"], families),
        "client_port": client["sport"].tolist(),
        "destination": addresses(client["dst"], families),
        "destination_port": client["dport"].tolist(),
        "source_out": addresses(leaves["src"], families),
        "source_out_port": leaves["sport"].tolist(),
        "destination_out": addresses(leaves["dst"], families),
        "destination_out_port": leaves["dport"].tolist(),
    }
    columns["service"] = _services(_service_keys(client), served, names)
    places = zip(columns["destination_out"], columns["destination_out_port"], served, strict=True)
    columns["endpoint"] = [_place(address, port) if has else "null" for address, port, has in places]
    columns["nat"] = words(nat, names.nats, "gone")
    for name in ("packets", "bytes", "reply_packets", "reply_bytes"):
        columns[name] = records[name].tolist()
    return as_lines(columns)


def _passed(ended: Array, stamps: Array) -> Array:
    """Jiffies from stamps, of which there are the low 32 bits, to the end; 0 for what came just after it."""
    passed: Array = (ended.astype(np.uint32) - stamps).view(np.int32)
    return np.maximum(passed, 0)


def _why(enum: Mapping[str, int]) -> dict[int, str]:
    return {number: name.removeprefix("FLOW_END_").lower().replace("_", " ") for name, number in enum.items()}


def _service_keys(client: Array) -> Iterator[ServiceKey]:
    """Of the services that connections would belong to."""
    raw = client["dst"].tobytes()
    address = (raw[at : at + 16] for at in range(0, len(raw), 16))
    return zip(
        client["family"].tolist(), address, client["dport"].tolist(), client["proto"].tolist(), strict=True
    )


def _services(keys: Iterator[ServiceKey], served: list[bool], names: PastNames) -> list[str]:
    found = [names.services.get(key, "gone") if has else None for key, has in zip(keys, served, strict=True)]
    text = {name: json.dumps(name) for name in set(found)}
    return [text[name] for name in found]


def _place(address: str, port: int) -> str:
    """address: as JSON has it."""
    return f'"[{address[1:-1]}]:{port}"' if ":" in address else f'{address[:-1]}:{port}"'
