# SPDX-License-Identifier: Apache-2.0
"""The values a configuration is made of: addresses, prefixes, ports, durations. Text in, typed value out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
    summarize_address_range,
)

from .errors import refuse, shown

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

POOL_ADDRESSES_MAX = 65536
DURATION_MIN_MS = 100
DURATION_MAX_MS = 10 * 24 * 3600 * 1000
"""A flow's age is counted in 32 bits of jiffies; ten days stay clear of their end at any kernel HZ."""
MAGLEV_SIZE_MAX = 1_048_573
"""The largest prime below 2^20: a wheel of 4 MiB, built in about a second."""
INTERFACE_NAME_MAX = 15
"""IFNAMSIZ - 1, include/uapi/linux/if.h."""

DURATION_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
DURATION = re.compile(r"(?:[0-9]{1,12}(?:ms|s|m|h|d))+")
DURATION_PART = re.compile(r"([0-9]+)(ms|s|m|h|d)")
PREFIX_LENGTH = re.compile(r"[0-9]{1,3}")
PORTS = re.compile(r"([0-9]{1,9})\s*-\s*([0-9]{1,9})")

SPECIAL_NETWORKS: tuple[tuple[IPNetwork, str], ...] = (
    (IPv4Network("0.0.0.0/8"), "unspecified"),
    (IPv4Network("127.0.0.0/8"), "a loopback address"),
    (IPv4Network("224.0.0.0/4"), "a multicast address"),
    (IPv4Network("255.255.255.255/32"), "the broadcast address"),
    (IPv6Network("::/128"), "unspecified"),
    (IPv6Network("::1/128"), "a loopback address"),
    (IPv6Network("::ffff:0:0/96"), "an IPv4 address written as IPv6"),
    (IPv6Network("fe80::/10"), "a link-local address"),
    (IPv6Network("ff00::/8"), "a multicast address"),
)
"""What no flow that is forwarded can have as its address, and why."""


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports first..last, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def __len__(self) -> int:
        return self.last - self.first + 1

    def overlaps(self, other: PortRange) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True)
class AddressRange:
    """`count` consecutive addresses from `first` on: the pool of a NAT rule."""

    first: IPAddress
    count: int

    @property
    def last(self) -> IPAddress:
        return self.first + (self.count - 1)

    def __str__(self) -> str:
        return str(self.first) if self.count == 1 else f"{self.first}-{self.last}"


def host_port(address: IPAddress, port: int) -> str:
    """10.0.0.2:80, [2001:db8::2]:80."""
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def family_name(value: IPAddress | IPNetwork) -> str:
    return f"IPv{value.version}"


def example_address(version: int | None = None) -> str:
    return {4: "10.0.0.2", 6: "2001:db8::2"}.get(version or 0, "10.0.0.2 or 2001:db8::2")


def _special(first: IPAddress, last: IPAddress) -> str | None:
    """Why an address of the range cannot be used, or None."""
    for network, why in SPECIAL_NETWORKS:
        if network.version == first.version:
            low, high = int(network.network_address), int(network.broadcast_address)
            if int(first) <= high and low <= int(last):
                return why
    return None


def _address(text: str) -> IPAddress:
    """Read one address. Raises ValueError; an IPv6 scope (%eth0) is no part of an address here."""
    if "%" in text:
        raise ValueError("scope")
    return ip_address(text)


def parse_address(value: object) -> IPAddress:
    """An address that hosts can have: not multicast, unspecified, loopback, broadcast or link-local."""
    if isinstance(value, IPv4Address | IPv6Address):
        address = value
    else:
        try:
            address = _address(value if isinstance(value, str) else "")
        except ValueError:
            raise refuse(
                f"{shown(value)} is not an IPv4 or IPv6 address", f"write for example {example_address()}"
            ) from None
    why = _special(address, address)
    if why is not None:
        raise refuse(f"{address} is {why}", "give a unicast address that packets can be routed to")
    return address


def network_of(value: object) -> IPNetwork:
    """Any prefix (10.0.0.0/8) or address; bits after the prefix must be zero."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    text = value if isinstance(value, str) else ""
    if (quick := _plain_network(text)) is not None:
        return quick
    try:
        address, _, length = text.partition("/")
        number = int(_address(address))
        if "/" in text and not PREFIX_LENGTH.fullmatch(length):
            raise ValueError("length")
        network = ip_network(text, strict=False)
    except ValueError:
        raise refuse(
            f"{shown(value)} is not an IPv4 or IPv6 prefix",
            "write for example 10.0.0.0/8 or 2001:db8::/32",
        ) from None
    if int(network.network_address) != number:
        raise refuse(f"{shown(value)} has bits set after its first {network.prefixlen}", f"write {network}")
    return network


def _plain_network(text: str) -> IPNetwork | None:
    """A prefix that is written plainly, as sets have them by the hundred thousand; None: look closer."""
    address, slash, length = text.partition("/")
    if "%" in address or (slash and not PREFIX_LENGTH.fullmatch(length)):
        return None
    try:
        if ":" in address:
            return IPv6Network((int(IPv6Address(address)), int(length) if slash else 128))
        return IPv4Network((int(IPv4Address(address)), int(length) if slash else 32))
    except ValueError:
        return None


def parse_prefix(value: object) -> IPNetwork:
    """A prefix that packets which are forwarded can come from."""
    network = network_of(value)
    for special, why in SPECIAL_NETWORKS:
        if special.version == network.version and _inside(network, special):
            raise refuse(f"{network} is {why}", "give a prefix that packets can come from")
    return network


def _inside(inner: IPNetwork, outer: IPNetwork) -> bool:
    return inner.prefixlen >= outer.prefixlen and inner.network_address in outer


def parse_pool(value: object) -> AddressRange:
    """Addresses as a prefix (all of its addresses), as "first-last", or a single one; at most 65536."""
    if isinstance(value, AddressRange):
        return value
    text = value if isinstance(value, str) else ""
    if "/" in text:
        network = parse_prefix(text)
        text = f"{network.network_address}-{network.broadcast_address}"
    low, _, high = text.partition("-")
    try:
        first = _address(low.strip())
        last = _address(high.strip()) if "-" in text else first
    except ValueError:
        raise refuse(
            f"{shown(value)} is not a pool of addresses",
            "write for example 198.51.100.8/29, 198.51.100.8-198.51.100.15 or 198.51.100.8",
        ) from None
    if first.version != last.version:
        raise refuse(f"{shown(value)} mixes IPv4 and IPv6", "use one family in a pool")
    count = int(last) - int(first) + 1
    if count < 1:
        raise refuse(f"{shown(value)} is reversed", f"write {last}-{first}")
    if count > POOL_ADDRESSES_MAX:
        raise refuse(f"{shown(value)} has {count} addresses", f"use at most {POOL_ADDRESSES_MAX}")
    if int(first) >> 32 != int(last) >> 32:
        # The data path adds to the last 32 bits only (bpf/nat.h).
        raise refuse(f"{shown(value)} crosses a /96", "split it at the /96")
    why = _special(first, last)
    if why is not None:
        raise refuse(f"{shown(value)} holds {why}", "give unicast addresses that are routed to this machine")
    return AddressRange(first, count)


def pool_text(pool: AddressRange) -> str:
    """The shortest form that parse_pool takes back: a prefix where the range is one."""
    if pool.count > 1:
        prefixes = list(summarize_address_range(pool.first, pool.last))
        if len(prefixes) == 1:
            return str(prefixes[0])
    return str(pool)


def parse_port_range(value: object) -> PortRange:
    """Read "1024-32767": both ports included, within 1-65535."""
    if isinstance(value, PortRange):
        return value
    match = PORTS.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise refuse(f"{shown(value)} is not a range of ports", 'write for example "1024-32767"')
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise refuse(f"{shown(value)} is reversed", f'write "{last}-{first}"')
    if first < 1 or last > 65535:
        raise refuse(f"{shown(value)} leaves the ports 1-65535", "use ports from 1 to 65535")
    return PortRange(first, last)


def parse_duration(value: object) -> int:
    """Milliseconds of "2h", "1h30m", "60s", "500ms"; a bare number counts seconds."""
    if isinstance(value, int) and not isinstance(value, bool):
        milliseconds = value * 1000
    elif isinstance(value, str) and DURATION.fullmatch(value):
        parts = DURATION_PART.findall(value)
        milliseconds = sum(int(number) * DURATION_UNITS_MS[unit] for number, unit in parts)
    else:
        raise refuse(f"{shown(value)} is not a duration", "write for example 2h, 1h30m, 60s or 500ms")
    if not DURATION_MIN_MS <= milliseconds <= DURATION_MAX_MS:
        raise refuse(
            f"{shown(value)} is out of range",
            f"use {format_duration(DURATION_MIN_MS)} to {format_duration(DURATION_MAX_MS)}",
        )
    return milliseconds


def format_duration(milliseconds: int) -> str:
    """7440000 -> "2h4m"; parse_duration takes it back."""
    text = ""
    for unit in ("d", "h", "m", "s", "ms"):
        number, milliseconds = divmod(milliseconds, DURATION_UNITS_MS[unit])
        if number:
            text += f"{number}{unit}"
    return text or "0s"


def _needs_quotes(value: object) -> None:
    """Refuse a name that YAML takes for a number or for true or false."""
    if not isinstance(value, bool | int | float):
        return
    # What a fraction looked like is not known any more: 1.10 has become 1.1.
    example = "" if isinstance(value, float) else f' ("{shown(value)}")'
    kind = "true or false" if isinstance(value, bool) else "a number"
    raise refuse(f"{shown(value)} without quotes is {kind}, not a name", f"write it in quotes{example}")


def parse_name(value: object) -> str:
    """A name for people and commands: letters, digits, dot, dash, underscore."""
    _needs_quotes(value)
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise refuse(
            f"{shown(value)} cannot be a name",
            "use up to 63 letters, digits, dots, dashes and underscores, beginning with a letter or digit",
        )
    return value


def parse_interface_name(value: object) -> str:
    """A name the kernel would give to an interface (dev_valid_name, net/core/dev.c)."""
    _needs_quotes(value)
    if not isinstance(value, str) or not value:
        raise refuse(f"{shown(value)} is not the name of an interface", "write for example eth0")
    if len(value.encode(errors="replace")) > INTERFACE_NAME_MAX:
        raise refuse(
            f"{shown(value)} is too long for an interface",
            f"the kernel takes at most {INTERFACE_NAME_MAX} characters",
        )
    if value in {".", ".."} or not value.isprintable() or any(c in "/:" or c.isspace() for c in value):
        raise refuse(
            f"{shown(value)} is not the name of an interface", "write it as `ip link` shows it, before any @"
        )
    return value


def is_prime(number: int) -> bool:
    if number < 4:
        return number > 1
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def next_prime(number: int) -> int:
    """The smallest prime >= number."""
    while not is_prime(number):
        number += 1
    return number


def previous_prime(number: int) -> int:
    """The largest prime <= number (number >= 2)."""
    while not is_prime(number):
        number -= 1
    return number


def parse_maglev_size(value: object) -> int:
    """The size of a Maglev wheel: a prime, because every step through it must reach every slot."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise refuse(f"{shown(value)} is not a whole number", "write for example 65537")
    if not 2 <= value <= MAGLEV_SIZE_MAX:
        raise refuse(f"{shown(value)} is out of range", f"use a prime from 2 to {MAGLEV_SIZE_MAX}")
    if not is_prime(value):
        raise refuse(f"{value} is not a prime number", f"use {next_prime(value)} or {previous_prime(value)}")
    return value
