# SPDX-License-Identifier: Apache-2.0
"""Prefixes by the hundred thousand, as named sets have them: an object for each would cost more than all that
is done with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import IPv4Network, IPv6Network, ip_network
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from .values import IPAddress, IPNetwork

ROW_BYTES = {4: 5, 6: 17}
"""A row, by family."""


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Prefixes in their order, none twice. `rows`: of each the address in network order, then its length."""

    rows: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, networks: Iterable[IPNetwork]) -> Prefixes:
        if isinstance(networks, Prefixes):
            return networks
        return cls(tuple(dict.fromkeys(map(_row, networks))))

    @classmethod
    def read(cls, words: Iterable[str]) -> Prefixes | None:
        """Of prefixes and addresses as they are written; None if network_of would refuse one of them."""
        try:
            return cls(tuple(dict.fromkeys(map(prefix_row, words))))
        except (OSError, ValueError, KeyError):
            return None

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[IPNetwork]:
        return map(_network, self.rows)

    def __hash__(self) -> int:
        """The same in any process."""
        return int.from_bytes(blake2b(b"".join(self.rows), digest_size=8).digest())

    def of_family(self, family: int) -> bytes:
        """The rows of one family (4 or 6), one after the other."""
        size = ROW_BYTES[family]
        return b"".join([row for row in self.rows if len(row) == size])

    def covers(self, address: IPAddress) -> bool:
        """Whether the address is in one of them."""
        rows = frozenset(self.rows)
        lengths = range(address.max_prefixlen + 1)
        return any(_row(ip_network((address, length), strict=False)) in rows for length in lengths)

    def without(self, others: Prefixes) -> Prefixes:
        """Those that are not among the others."""
        known = frozenset(others.rows)
        return Prefixes(tuple(row for row in self.rows if row not in known))

    def texts(self) -> list[str]:
        """Each as str() of its network."""
        return list(map(_text, self.rows))


def _lengths(bits: int) -> dict[str, tuple[bytes, int]]:
    """A prefix length as it may be written: the byte for it, and the bits that must not be set then."""
    return {
        f"{length:0{digits}}": (bytes([length]), (1 << bits - length) - 1)
        for length in range(bits + 1)
        for digits in (1, 2, 3)
    }


_LENGTHS4, _LENGTHS6 = _lengths(32), _lengths(128)
_WHOLE4, _WHOLE6 = b"\x20", b"\x80"
_FIRST_80_BITS_ZERO = bytes(10)


def prefix_row(word: str) -> bytes:
    """Raises OSError, ValueError or KeyError when it is no prefix."""
    text, slash, written = word.partition("/")
    if ":" in text:
        address, whole, lengths = inet_pton(AF_INET6, text), _WHOLE6, _LENGTHS6
    else:
        address, whole, lengths = inet_pton(AF_INET, text), _WHOLE4, _LENGTHS4
    if not slash:
        return address + whole
    length, beyond = lengths[written]
    if int.from_bytes(address) & beyond:
        raise ValueError(word)
    return address + length


def _row(network: IPNetwork) -> bytes:
    return network.network_address.packed + bytes([network.prefixlen])


def _network(row: bytes) -> IPNetwork:
    address, length = row[:-1], row[-1]
    return IPv4Network((address, length)) if len(row) == ROW_BYTES[4] else IPv6Network((address, length))


def _text(row: bytes) -> str:
    if len(row) == ROW_BYTES[4]:
        return f"{inet_ntop(AF_INET, row[:-1])}/{row[-1]}"
    if row.startswith(_FIRST_80_BITS_ZERO):  # may be an IPv4 address, which C libraries write in another way
        return str(_network(row))
    return f"{inet_ntop(AF_INET6, row[:-1])}/{row[-1]}"
