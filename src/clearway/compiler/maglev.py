# SPDX-License-Identifier: Apache-2.0
"""The Maglev wheel: consistent hashing with nearly equal shares.

Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4. Every
member walks through all slots in an order of its own, its permutation, and takes the next free one whenever
it is its turn. Turns are in proportion to weights.

Shares: with size >= 100 * sum(weights) / min(weights), every share is within 1 % of the ideal. A member has
weight * x slots, rounded, where x differs from size / sum by at most members / (2 * sum). Relative to its
share that is at most members / (2 * size) + sum / (2 * weight * size), and each of the terms is at most
1/200.

Disruption: when one of n members goes, its slots must move, and few others do: measured, less than as many
again while n <= sqrt(size) / 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from clearway.model import IPAddress

from .wheel import Members

SEED = b"clearway maglev 1"
"""Constant, so that all nodes build the same wheel; a change of it moves connections."""


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """An endpoint on a wheel. Its place depends on nothing else: nodes agree whatever their tables hold."""

    address: bytes
    port: int
    weight: int

    @classmethod
    def of(cls, address: IPAddress, port: int, weight: int) -> Member:
        return cls(address.packed, port, weight)


def maglev_wheel(members: Sequence[Member], size: int) -> Members:
    """Slot -> index of a member, for a prime size. The order in which members are listed does not matter."""
    order = sorted(range(len(members)), key=lambda index: members[index])
    starts, steps = zip(*(_permutation(members[index], size) for index in order), strict=True)
    turns = take_turns([members[index].weight for index in order], size)
    slots = _fill(turns.tolist(), list(starts), steps, size)
    return np.asarray(order, dtype=np.uint32)[slots]


def take_turns(weights: Sequence[int], count: int) -> Members:
    """Whose turn it is, for `count` turns (every weight at least 1).

    A member's k-th turn is due at (k + 1/2) / weight, and turns are taken in the order they are due, ties
    in the order of members. When a member's turns are due does not depend on the others: what moves when
    one of them goes, moves because of slots, not because of turns.

    After any number of turns, each member has had weight * x turns, rounded to the nearest, for one x that
    all share (the divisor method of Webster and Sainte-Lague).
    """
    weight = np.asarray(weights, dtype=np.float64)
    # x exceeds count / sum by at most members / (2 * sum): each rounding loses at most half a turn.
    enough = np.ceil(weight * (count + len(weights) / 2) / weight.sum()).astype(np.int64) + 1
    member = np.repeat(np.arange(len(weights), dtype=np.uint32), enough)
    turn = np.arange(member.size) - np.repeat(np.cumsum(enough) - enough, enough)
    # Equal quotients round to equal floats, and others to others: terms are far below 2^26.
    due = (2 * turn + 1) / (2 * weight[member])
    order = np.lexsort((member, due))[:count]
    return member[order]


def _permutation(member: Member, size: int) -> tuple[int, int]:
    """Where a member starts and how far it steps: its walk reaches every slot because the size is prime."""
    identity = member.address + member.port.to_bytes(2, "big")
    digest = blake2b(identity, digest_size=16, key=SEED).digest()
    start = int.from_bytes(digest[:8], "big") % size
    step = int.from_bytes(digest[8:], "big") % (size - 1) + 1
    return start, step


def _fill(turns: Sequence[int], position: list[int], steps: Sequence[int], size: int) -> list[int]:
    """Every member, when it is its turn, takes the next slot on its walk that is free."""
    slots = [0] * size
    taken = bytearray(size)  # a byte a slot: the walks of a large wheel stay in the CPU's cache
    for member in turns:
        slot, step = position[member], steps[member]
        while taken[slot]:
            slot += step
            if slot >= size:
                slot -= size
        taken[slot] = 1
        slots[slot] = member
        position[member] = slot
    return slots
