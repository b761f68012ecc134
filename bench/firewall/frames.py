# SPDX-License-Identifier: Apache-2.0
"""First packets that meet rules chosen at random, as frames: SYNs and datagrams, no two of one connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.classifier.rules import TCP, packets
from clearway.compiler.classifier import Condition
from clearway.lab import LabError

Array = npt.NDArray[Any]

FRAME_BYTES = {4: 64, 6: 80}
"""TCP over IPv6 does not fit 64."""
ETHERNET_BYTES, IP_BYTES, LAYER4_BYTES = 14, {4: 20, 6: 40}, 20
"""A datagram is as long as a SYN."""
HOP_LIMIT = 64
SYN, ISN, WINDOW = 0x5002, 1000, 8192
CHECK_AT = {"tcp": 16, "udp": 6}
LENGTH_AT = {4: 14, 6: 16}
"""Offset of four bytes that are alike in all frames, the packet's length among them."""
TRIES = 20


def first_packets(rules: Sequence[Condition], count: int, family: int) -> Array:
    """As words of struct fields (bpf/types.h), no two of one connection; in no order. The same for the same
    arguments.
    """
    found = np.zeros((0, 7), np.uint64)
    for number in range(TRIES):
        # Other packets each time: what is asked for is part of the seed.
        more = packets(list(rules), count - len(found) + count // 20 + number, family)
        found = np.unique(np.concatenate([found, more]), axis=0)
        if len(found) >= count:
            return np.random.default_rng(count).permutation(found)[:count]
    raise LabError(f"{len(rules)} rules have no {count:,} connections")


def frames_of(words: Array, family: int, source: str, destination: str) -> Array:
    """(n, FRAME_BYTES). source, destination: link addresses."""
    at, at4 = ETHERNET_BYTES, ETHERNET_BYTES + IP_BYTES[family]
    frames = np.zeros((len(words), FRAME_BYTES[family]), np.uint8)
    frames[:, :6] = list(bytes.fromhex(destination.replace(":", "")))
    frames[:, 6:12] = list(bytes.fromhex(source.replace(":", "")))
    ports, protocol = words[:, 4] >> np.uint64(32), (words[:, 4] >> np.uint64(24)).astype(np.uint8)
    if family == 4:
        frames[:, 12:16] = [8, 0, 0x45, 0]
        _put(frames, at + 2, np.full(len(words), IP_BYTES[4] + LAYER4_BYTES), 2)
        frames[:, at + 8], frames[:, at + 9] = HOP_LIMIT, protocol
        _put(frames, at + 12, words[:, 0], 4)
        _put(frames, at + 16, words[:, 2], 4)
        _put(frames, at + 10, _checksum(_sum(frames[:, at:at4])), 2)
    else:
        frames[:, 12:15] = [0x86, 0xDD, 0x60]
        _put(frames, at + 4, np.full(len(words), LAYER4_BYTES), 2)
        frames[:, at + 6], frames[:, at + 7] = protocol, HOP_LIMIT
        for number in range(4):
            _put(frames, at + 8 + 8 * number, words[:, number], 8)
    _put(frames, at4, ports, 4)
    _write_layer4(frames[:, at4 : at4 + LAYER4_BYTES], protocol == TCP)
    addresses = _sum(frames[:, at + (12 if family == 4 else 8) : at4])
    pseudo = addresses + protocol + LAYER4_BYTES
    check = _checksum(_sum(frames[:, at4 : at4 + LAYER4_BYTES]) + pseudo)
    for name, chosen in (("tcp", protocol == TCP), ("udp", protocol != TCP)):
        # of UDP 0 means that there is none
        value = np.where((check == 0) & (name == "udp"), 0xFFFF, check)
        part = frames[chosen]
        _put(part, at4 + CHECK_AT[name], value[chosen], 2)
        frames[chosen] = part
    return frames


def _write_layer4(headers: Array, tcp: Array) -> None:
    """All but ports and checksums."""
    segment = np.zeros((1, LAYER4_BYTES), np.uint8)
    _put(segment, 4, np.array([ISN]), 4)
    _put(segment, 12, np.array([SYN]), 2)
    _put(segment, 14, np.array([WINDOW]), 2)
    headers[tcp, 4:] = segment[0, 4:]
    headers[~tcp, 5] = LAYER4_BYTES


def _put(frames: Array, at: int, values: Array, size: int) -> None:
    """A column of numbers in network order."""
    octets = np.ascontiguousarray(values).astype(">u8").view(np.uint8).reshape(-1, 8)
    frames[:, at : at + size] = octets[:, 8 - size :]


def _sum(columns: Array) -> Array:
    """Of the 16-bit words of each row."""
    words: Array = np.ascontiguousarray(columns).view(">u2").sum(axis=1, dtype=np.int64)
    return words


def _checksum(sums: Array) -> Array:
    """RFC 1071"""
    for _ in range(2):
        sums = (sums & 0xFFFF) + (sums >> 16)
    return ~sums & 0xFFFF
