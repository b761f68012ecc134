# SPDX-License-Identifier: Apache-2.0
"""The values that firewall rules are made of. Text or numbers in, one or a list of them; typed values out.

Where addresses or ports are meant, "@name" stands for a named set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic_core import PydanticCustomError

from .errors import refuse, shown
from .prefixes import Prefixes
from .protocols import DSCP, ICMP_TYPES, ICMPV6_TYPES, PROTOCOLS, TCP_FLAGS, name_of
from .values import NAME, IPNetwork, PortRange, network_of, parse_interface_name

PORT = re.compile(r"([0-9]{1,5})(?:\s*-\s*([0-9]{1,5}))?")
PORT_MAX = 65535
VLAN_MAX = 4094

Value = TypeVar("Value")
Members = Prefixes | tuple[PortRange, ...]


@dataclass(frozen=True, slots=True)
class SetName:
    """A reference to a named set."""

    name: str

    def __str__(self) -> str:
        return f"@{self.name}"


@dataclass(frozen=True, slots=True)
class TcpFlags:
    """Of the flags in `mask` exactly those in `set` are set."""

    set: int
    mask: int

    def __str__(self) -> str:
        wanted = _flag_names(self.set) or "none"
        return wanted if self.set == self.mask else f"{wanted}/{_flag_names(self.mask)}"


def one_or_several(value: object, parse: Callable[[object], Value], what: str) -> tuple[Value, ...]:
    """A value alone, or a list of at least one; what is repeated counts once."""
    given = value if isinstance(value, list | tuple) else [value]
    if not given:
        raise refuse(f"an empty list of {what} meets no packet", "remove the key to meet all")
    return tuple(dict.fromkeys(parse(item) for item in given))


def parse_addresses(value: object) -> tuple[IPNetwork | SetName, ...]:
    return one_or_several(value, _address_item, "addresses")


def parse_ports(value: object) -> tuple[PortRange | SetName, ...]:
    return one_or_several(value, _port_item, "ports")


def parse_protocols(value: object) -> tuple[int, ...]:
    """By name, or by number."""
    return one_or_several(value, lambda item: _number(item, PROTOCOLS, 255, "protocol", "tcp"), "protocols")


def parse_icmp_types(value: object) -> tuple[str | int, ...]:
    """Names stay names: ICMP and ICMPv6 have different numbers for them."""
    return one_or_several(value, _icmp_type, "ICMP types")


def parse_dscps(value: object) -> tuple[int, ...]:
    return one_or_several(value, lambda item: _number(item, DSCP, 63, "DSCP class", "ef"), "DSCP classes")


def parse_vlans(value: object) -> tuple[int, ...]:
    """VIDs; 0: no tag."""
    return one_or_several(value, lambda item: _number(item, {}, VLAN_MAX, "VLAN", "100"), "VLANs")


def parse_interfaces(value: object) -> tuple[str, ...]:
    return one_or_several(value, parse_interface_name, "interfaces")


def parse_tcp_flags(value: object) -> TcpFlags:
    """ "syn": set; "syn/fin,syn,rst,ack": of these four only SYN; "none/fin,syn": neither."""
    if isinstance(value, TcpFlags):
        return value
    text = value if isinstance(value, str) else ""
    wanted, slash, mask = text.partition("/")
    flags = 0 if wanted.strip() == "none" and slash else _flags(value, wanted)
    within = _flags(value, mask) if slash else flags
    if flags & ~within:
        raise refuse(
            f"{shown(value)} asks for flags that are not among those after the slash",
            'write for example "syn/fin,syn,rst,ack", with the quotes',
        )
    return TcpFlags(flags, within)


def parse_set(value: object) -> Members:
    """A list of prefixes, or of ports; not of both. What is repeated counts once."""
    if isinstance(value, Prefixes):
        return value
    if not isinstance(value, list | tuple):
        raise refuse(f"{shown(value)} is not a list", "write a list of prefixes, or of ports, in brackets")
    if set(map(type, value)) <= {str} and (quick := Prefixes.read(value)) is not None:
        return quick
    members = tuple(dict.fromkeys(parse_member(item) for item in value))
    ports = tuple(member for member in members if isinstance(member, PortRange))
    if ports and len(ports) < len(members):
        raise refuse("both prefixes and ports are in it", "make a set of each")
    return ports or Prefixes.of(member for member in members if not isinstance(member, PortRange))


def parse_member(value: object, ports: bool = False) -> IPNetwork | PortRange:
    """A prefix, a port or a range of ports. With `ports`, what is neither is refused as a port."""
    if isinstance(value, PortRange) or (isinstance(value, int) and not isinstance(value, bool)):
        return _ports(value)
    if isinstance(value, str) and not ("." in value or ":" in value) and PORT.fullmatch(value):
        return _ports(value)
    try:
        return network_of(value)
    except PydanticCustomError:
        if ports:
            return _ports(value)
        raise


def texts(values: tuple[object, ...] | None) -> object:
    """What was parsed, as it would be written: alone if there is one."""
    if values is None:
        return None
    words = [_text(value) for value in values]
    return words[0] if len(words) == 1 else words


def set_texts(members: Members) -> list[object]:
    return [*(members.texts() if isinstance(members, Prefixes) else map(_text, members))]


def members_without(members: Members, others: Members) -> Members:
    """Those that are not among the others."""
    if isinstance(members, Prefixes):
        return members.without(others) if isinstance(others, Prefixes) else members
    known = frozenset[object]() if isinstance(others, Prefixes) else frozenset(others)
    return tuple(member for member in members if member not in known)


def protocol_texts(values: tuple[int, ...] | None) -> object:
    return None if values is None else texts(tuple(_named(value, PROTOCOLS) for value in values))


def dscp_texts(values: tuple[int, ...] | None) -> object:
    return None if values is None else texts(tuple(_named(value, DSCP) for value in values))


def _named(number: int, names: Mapping[str, int]) -> object:
    name = name_of(number, names)
    return number if name.isdigit() else name


def _text(value: object) -> object:
    if isinstance(value, PortRange):
        return value.first if value.first == value.last else str(value)
    return value if isinstance(value, int) else str(value)


def _set_name(value: object) -> SetName | None:
    if isinstance(value, SetName):
        return value
    if not isinstance(value, str) or not value.startswith("@"):
        return None
    if not NAME.fullmatch(value[1:]):
        raise refuse(f"{shown(value)} is not the name of a set", "write for example @office")
    return SetName(value[1:])


def _address_item(value: object) -> IPNetwork | SetName:
    return _set_name(value) or network_of(value)


def _port_item(value: object) -> PortRange | SetName:
    return _set_name(value) or _ports(value)


def _ports(value: object) -> PortRange:
    if isinstance(value, PortRange):
        return value
    found = PORT.fullmatch(str(value)) if isinstance(value, int | str) and value is not True else None
    if not found:
        raise refuse(f"{shown(value)} is not a port", "write for example 443 or 8000-8100")
    first, last = int(found[1]), int(found[2] or found[1])
    if last > PORT_MAX:
        raise refuse(f"{shown(value)} is too large for a port", f"use 0 to {PORT_MAX}")
    if first > last:
        raise refuse(f"{shown(value)} is reversed", f"write {last}-{first}")
    return PortRange(first, last)


def _number(value: object, names: Mapping[str, int], most: int, what: str, example: str) -> int:
    number = names.get(value.lower()) if isinstance(value, str) else value
    if isinstance(value, str) and number is None and value.isdecimal():
        number = int(value[:6])
    if not isinstance(number, int) or isinstance(number, bool):
        known = f", one of {', '.join(names)}," if names else ""
        raise refuse(f"{shown(value)} is not a {what}", f"write for example {example}{known} or a number")
    if not 0 <= number <= most:
        raise refuse(f"{shown(value)} is out of range for a {what}", f"use 0 to {most}")
    return number


def _icmp_type(value: object) -> str | int:
    if isinstance(value, str) and not value.isdecimal():
        name = value.lower()
        if name in ICMP_TYPES or name in ICMPV6_TYPES:
            return name
        known = ", ".join(dict.fromkeys([*ICMP_TYPES, *ICMPV6_TYPES]))
        raise refuse(f"{shown(value)} is not an ICMP type", f"use a number, or one of {known}")
    return _number(value, {}, 255, "ICMP type", "echo-request")


def _flags(value: object, text: str) -> int:
    number = 0
    for name in text.split(","):
        flag = TCP_FLAGS.get(name.strip().lower())
        if flag is None:
            raise refuse(
                f"{shown(value)} does not name TCP flags",
                f"write for example syn, or syn/fin,syn,rst,ack, with {', '.join(TCP_FLAGS)}",
            )
        number |= flag
    return number


def _flag_names(number: int) -> str:
    return ",".join(name for name, flag in TCP_FLAGS.items() if number & flag)
