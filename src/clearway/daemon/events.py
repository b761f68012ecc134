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
from clearway.model.protocols import TCP_FLAGS

Array = npt.NDArray[Any]


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
    heads = zip(records["head"].tobytes().hex(" ", 128).split(), records["head_length"].tolist(), strict=True)
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
            "length": records["length"].tolist(),
            "head": [f'"{text[: 2 * length]}"' for text, length in heads],
        }
    )


def _rule(identity: int, rules: Mapping[int, str]) -> str:
    """The default has no name."""
    return json.dumps(rules.get(identity, "gone") or None)


def _names(column: Array, interfaces: Mapping[int, str]) -> list[str]:
    known = {index: json.dumps(interfaces.get(index, str(index))) for index in set(column.tolist())}
    return [known[index] if index else "null" for index in column.tolist()]


def _flags(number: int) -> str:
    return json.dumps(",".join(name for name, flag in TCP_FLAGS.items() if number & flag))
