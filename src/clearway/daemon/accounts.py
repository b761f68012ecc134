# SPDX-License-Identifier: Apache-2.0
"""What Linux' rules would have counted, had the fast path not carried packets around them: sums by the place
of each counter. Every flow knows what it has carried; the proof that it was carried under tells which
counters each of its packets would have met. Needs no kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from clearway.daemon.linux_counters import LinuxCounters, Place, linux_counters
from clearway.datapath.flows import CONNECTION
from clearway.linux.ruleset import Ruleset
from clearway.proof import Addresses, Counted, Passages, Proof, Side, Sources, prove
from clearway.proof.passages import UNKNOWN

Array = npt.NDArray[Any]

AMOUNTS = ("packets", "bytes", "reply_packets", "reply_bytes")
IDENTITY = np.dtype(
    [(name, CONNECTION[name]) for name in ("family", "proto", "client", "client_port")]
    + [(name, CONNECTION[name]) for name in ("destination", "destination_port", "born")]
)
"""A tuple may be used again: by the time of its birth a connection is told from the one before."""
KEY = f"S{IDENTITY.itemsize}"
HALF = ">u8"
OPENING = ("client", "destination", "source_out", "destination_out")
ANSWERING = ("destination_out", "source_out", "destination", "client")
"""Source and destination of a direction as its packets arrive, and as they leave."""


@dataclass(frozen=True, slots=True)
class Sum:
    packets: int = 0
    bytes: int = 0

    def __add__(self, other: Sum) -> Sum:
        return Sum(self.packets + other.packets, self.bytes + other.bytes)


@dataclass(frozen=True)
class Rules:
    """What packets are accounted under: what was proved of a ruleset, and where its counters stand."""

    proof: Proof
    counters: LinuxCounters
    ruleset: Ruleset

    @classmethod
    def of(cls, ruleset: Ruleset, proof: Proof | None = None) -> Rules:
        """proof: if it is there already."""
        proof = proof or prove(
            Sources(ruleset.nft, ruleset.saves, ruleset.legacy, filtering=ruleset.filtering)
        )
        return cls(proof, linux_counters(ruleset), ruleset)


@dataclass(frozen=True)
class Credited:
    """What connections had carried when they were last looked at. `keys` (n): ascending, of KEY. `amounts`
    (n, 4): AMOUNTS.
    """

    keys: Array = field(default_factory=lambda: np.zeros(0, KEY))
    amounts: Array = field(default_factory=lambda: np.zeros((0, len(AMOUNTS)), np.uint64))

    @classmethod
    def of(cls, keys: Array, amounts: Array) -> Credited:
        order = np.argsort(keys)
        return cls(keys[order], amounts[order])

    def at(self, keys: Array) -> Array:
        """Amounts (n, 4) by keys; 0 of those that are not known."""
        found = np.zeros((len(keys), len(AMOUNTS)), np.uint64)
        if len(self.keys):
            places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
            known = self.keys[places] == keys
            found[known] = self.amounts[places[known]]
        return found

    def without(self, keys: Array) -> Credited:
        left = ~np.isin(self.keys, keys)
        return Credited(self.keys[left], self.amounts[left])


class Accounts:
    """`sums`: what was carried around each counter of the rules in force, and of none else. `live`, `left`:
    what connections had carried by the last time, those that were there and those whose end was not told yet.
    """

    def __init__(self) -> None:
        self.sums: dict[Place, Sum] = {}
        self.rules: Rules | None = None
        self.live, self.left = Credited(), Credited()

    def settle(self, live: Array, ended: Array, names: Mapping[int, str]) -> None:
        """Credits what connections have carried since the last time to the rules in force.

        live, ended: rows of flows.CONNECTION, of adopted connections; those that had ended by when the others
        were read, or have since. names: of interfaces.
        """
        live = live[live["paired"]]
        keys, ended_keys = _keys(live), _keys(ended)
        going = ~np.isin(keys, ended_keys)
        live, keys = live[going], keys[going]
        flows, all_keys = np.concatenate([live, ended]), np.concatenate([keys, ended_keys])
        self._credit(self._fresh(flows, all_keys), names)
        # The end of one that is in neither may be told a moment later.
        self.left = self.live.without(all_keys)
        self.live = Credited.of(keys, _amounts(live))

    def settle_ended(self, ended: Array, names: Mapping[int, str]) -> None:
        """The same for those that have ended alone."""
        keys = _keys(ended)
        self._credit(self._fresh(ended, keys), names)
        self.live, self.left = self.live.without(keys), self.left.without(keys)

    def go_on_with(self, rules: Rules) -> None:
        """Of rules that are not there any more the accounts are closed, the others go on."""
        there = rules.counters.places
        self.rules = rules
        self.sums = {place: carried for place, carried in self.sums.items() if place in there}

    def _fresh(self, flows: Array, keys: Array) -> Array:
        """The connections, with what they have carried since they were last looked at."""
        amounts, out = _amounts(flows), flows.copy()
        amounts -= np.minimum(amounts, np.maximum(self.live.at(keys), self.left.at(keys)))
        for name, column in zip(AMOUNTS, amounts.T, strict=True):
            out[name] = column
        return out

    def _credit(self, flows: Array, names: Mapping[int, str]) -> None:
        if self.rules is None:
            return
        for counted, carried in met(self.rules.proof, flows, names):
            if (place := self.rules.counters.place_of(counted)) is not None:
                self.sums[place] = self.sums.get(place, Sum()) + carried


def met(proof: Proof, flows: Array, names: Mapping[int, str]) -> Iterator[tuple[Counted, Sum]]:
    """The counters that packets of these connections would have met, with how many of them; one may come
    again. flows: rows of flows.CONNECTION. names: of interfaces.
    """
    for family in (4, 6):
        mine = flows[flows["family"] == family]
        there, back = mine[mine["packets"] > 0], mine[mine["reply_packets"] > 0]
        packets = np.concatenate([there["packets"], back["reply_packets"]])
        octets = np.concatenate([there["bytes"], back["reply_bytes"]])
        if not len(packets):
            continue
        for counted, rows in proof.counted(_passages(family, there, back, names)):
            yield counted, Sum(int(packets[rows].sum()), int(octets[rows].sum()))


def _passages(family: int, there: Array, back: Array, names: Mapping[int, str]) -> Passages:
    """Opening directions, and answering ones."""
    numbers = {name: ifindex for ifindex, name in names.items()}
    return Passages(
        family,
        np.concatenate([there["proto"], back["proto"]]),
        arrives=_side(family, (there, *OPENING[:2]), (back, *ANSWERING[:2])),
        leaves=_side(family, (there, *OPENING[2:]), (back, *ANSWERING[2:])),
        inside=_interfaces(names, numbers, there["inside"], back["reply_inside"]),
        outside=_interfaces(names, numbers, there["ifindex"], back["reply_ifindex"]),
        mark=np.concatenate([there["mark"], back["mark"]]),
        interfaces=numbers,
    )


def _side(family: int, *parts: tuple[Array, str, str]) -> Side:
    return Side(
        _addresses(family, np.concatenate([flows[source] for flows, source, _ in parts])),
        np.concatenate([flows[f"{source}_port"] for flows, source, _ in parts]),
        _addresses(family, np.concatenate([flows[destination] for flows, _, destination in parts])),
        np.concatenate([flows[f"{destination}_port"] for flows, _, destination in parts]),
    )


def _addresses(family: int, octets: Array) -> Addresses:
    """octets: (n, 16)."""
    if family == 4:
        low = np.ascontiguousarray(octets[:, :4]).view(">u4")[:, 0].astype(np.uint64)
        return Addresses(np.zeros(len(low), np.uint64), low)
    words = np.ascontiguousarray(octets).view(HALF).astype(np.uint64)
    return Addresses(words[:, 0], words[:, 1])


def _interfaces(
    names: Mapping[int, str], numbers: Mapping[str, int], *columns: Array
) -> npt.NDArray[np.int64]:
    """One number for each name: an interface that is gone may have had that of another one."""
    found, places = np.unique(np.concatenate(columns).astype(np.int64), return_inverse=True)
    told = [numbers[names[ifindex]] if ifindex in names else UNKNOWN for ifindex in found.tolist()]
    return np.array(told, np.int64)[places]


def _keys(flows: Array) -> Array:
    rows = np.zeros(len(flows), IDENTITY)
    for name in IDENTITY.names or ():
        rows[name] = flows[name]
    return rows.view(KEY)


def _amounts(flows: Array) -> Array:
    """(n, 4)."""
    return np.stack([flows[name] for name in AMOUNTS], axis=1)
