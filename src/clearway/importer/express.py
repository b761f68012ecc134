# SPDX-License-Identifier: Apache-2.0
"""Boxes as what clearway rules ask for. Raises InexactError where no rule asks for exactly that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from typing import Any

from clearway.model import IPNetwork, PortRange, Prefixes, SetName, TcpFlags
from clearway.model.protocols import DSCP, ICMP, ICMPV6, TCP, TYPES_OF, UDP, name_of

from .box import BYTE, DSCPS, FIELDS, NEVER_JUDGED, PORTS, Box, Boxes, all_addresses, whole
from .errors import InexactError
from .ranges import Names, Ranges

LOOPBACK = "lo"
PREFIXES_MAX = 4096
CUBES_MAX = 16
ICMP_OF = {4: ICMP, 6: ICMPV6}
ALIKE = tuple(name for name in FIELDS if name not in {"source", "destination", "to"})
"""What is the same in boxes that are one rule. What routing may call a destination differs from the start."""
NOT_SAID = {
    "code": "ICMP codes are not part of clearway's rules",
    "hops": "hop limits are not part of clearway's rules",
    "to": "types of addresses are not part of clearway's rules",
}

Fields = dict[str, Any]
Sets = dict[str, Prefixes | tuple[PortRange, ...]]
"""What named sets hold."""


@cache
def start(hook: str) -> Boxes:
    """What of all packets comes to a hook and is clearway's business: nothing of the loopback interface."""
    away = Names.but(LOOPBACK)
    if hook != "input":
        inside = away if hook == "forward" else Names.but()
        return tuple(replace(whole(family), inside=inside, outside=away) for family in (4, 6))
    own = Ranges.of([(2, 3), (5, 5)])  # RTN_LOCAL, RTN_BROADCAST, RTN_MULTICAST: ip_route_input_slow()
    v4, v6 = (replace(whole(family), inside=away, outside=Names.of("")) for family in (4, 6))
    return replace(v4, to=own), v6


def expressed(boxes: Boxes, hook: str) -> list[Fields]:
    """Rules that together ask for what is in the boxes."""
    found: list[Fields] = []
    for group in _by_family(boxes):
        for part in _by_protocol(group):
            found += _rules(part, hook)
    return found


def note_sets(boxes: Boxes, sets: Sets) -> None:
    """Add the sets that rules for the boxes refer to, as far as they are not there."""
    for box in boxes:
        for addresses in (box.source, box.destination):
            if addresses.label and addresses.label not in sets:
                sets[addresses.label] = Prefixes.of(_prefixes(addresses, box.family))
        for ports in (box.sport, box.dport):
            if ports.label and ports.label not in sets:
                sets[ports.label] = tuple(PortRange(*span) for span in ports.spans)


def _by_family(boxes: Boxes) -> list[Boxes]:
    """Boxes that differ in nothing but the family are one rule."""
    groups: list[Boxes] = []
    left = list(boxes)
    while left:
        one = left.pop(0)
        other = next((two for two in left if two.family != one.family and _alike(one, two)), None)
        if other is not None:
            left.remove(other)
        groups.append((one,) if other is None else (one, other))
    return groups


def _alike(one: Box, other: Box) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in ALIKE)


def _by_protocol(group: Boxes) -> Iterator[Boxes]:
    """ICMP and ICMPv6 are for rules of their own when types are asked for."""
    if group[0].icmp == BYTE:
        yield group
        return
    for box in group:
        if set(box.protocol) != {ICMP_OF[box.family]}:
            raise InexactError("a byte of layer 4 that is no ICMP type is not part of clearway's rules")
        yield (box,)


def _rules(group: Boxes, hook: str) -> Iterator[Fields]:
    first = group[0]
    for box in group:
        _only_what_rules_say(box, hook)
    fields: Fields = {"direction": "local" if hook == "input" else "through"}
    typed = first.icmp != BYTE
    _set(fields, "protocol", _protocols(first))
    _set(fields, "source", _addresses(group, "source"))
    _set(fields, "destination", _addresses(group, "destination"))
    families = {box.family for box in group}
    if len(families) == 1 and not typed and "source" not in fields and "destination" not in fields:
        fields["source"] = _everywhere(first.family)
    _set(fields, "source_ports", _ports(first, "sport"))
    _set(fields, "destination_ports", _ports(first, "dport"))
    if typed:
        fields["icmp_types"] = _types(first)
    if first.dscp != DSCPS:
        fields["dscp"] = [name_of(number, DSCP) if _is_named(number) else number for number in first.dscp]
    _set(fields, "interface_in", _interfaces(first.inside))
    if hook != "input":
        _set(fields, "interface_out", _interfaces(first.outside))
    yield from _with_flags(first, fields)


def _set(fields: Fields, key: str, value: object) -> None:
    if value is not None:
        fields[key] = value


def _only_what_rules_say(box: Box, hook: str) -> None:
    whole_of = next(one for one in start(hook) if one.family == box.family)
    for name, why in NOT_SAID.items():
        if not getattr(whole_of, name).within(getattr(box, name)):
            raise InexactError(why)


def _protocols(box: Box) -> list[int] | None:
    return None if box.protocol == BYTE else list(box.protocol)


def _addresses(group: Iterable[Box], field: str) -> list[IPNetwork | SetName] | None:
    """None: all of the families of the group. When one of them is cut down, the other is named."""
    if all(getattr(box, field) == all_addresses(box.family) for box in group):
        return None
    return [item for box in group for item in _networks(getattr(box, field), box.family)]


def _networks(addresses: Ranges, family: int) -> list[IPNetwork | SetName]:
    if addresses.label:
        return [SetName(addresses.label)]
    found = _prefixes(addresses, family)
    if len(found) > PREFIXES_MAX:
        raise InexactError(f"it takes more than {PREFIXES_MAX} prefixes")
    return [*found]


def _prefixes(addresses: Ranges, family: int) -> list[IPNetwork]:
    found: list[IPNetwork] = []
    for first, last in addresses.spans:
        if family == 4:
            found += summarize_address_range(IPv4Address(first), IPv4Address(last))
        else:
            found += summarize_address_range(IPv6Address(first), IPv6Address(last))
    return found


def _everywhere(family: int) -> list[IPNetwork | SetName]:
    return _networks(Ranges(all_addresses(family).spans), family)


def _ports(box: Box, field: str) -> list[PortRange | SetName] | None:
    ports: Ranges = getattr(box, field)
    if ports == PORTS:
        return None
    if not set(box.protocol) <= {TCP, UDP}:
        raise InexactError("ports are known to clearway of TCP and UDP only")
    if ports.label:
        return [SetName(ports.label)]
    return [PortRange(first, last) for first, last in ports.spans]


def _types(box: Box) -> list[str | int]:
    """Without those that are never judged, unless there are no others."""
    names = TYPES_OF[ICMP_OF[box.family]]
    types = box.icmp - NEVER_JUDGED if box.family == 6 else box.icmp
    return [name_of(number, names) if number in names.values() else number for number in types or box.icmp]


def _is_named(number: int) -> bool:
    return number in DSCP.values()


def _interfaces(names: Names) -> list[str] | None:
    if not names.others:
        return sorted(names.names)
    if names.names <= {LOOPBACK}:
        return None
    excepted = ", ".join(sorted(names.names - {LOOPBACK}))
    raise InexactError(f"all interfaces but {excepted}: clearway needs each by its name")


def _with_flags(box: Box, fields: Fields) -> Iterator[Fields]:
    if box.flags == BYTE:
        yield fields
        return
    if set(box.protocol) != {TCP}:
        raise InexactError("a byte of layer 4 that is no TCP flags is not part of clearway's rules")
    cubes = list(_cubes(frozenset(box.flags)))
    if len(cubes) > CUBES_MAX:
        raise InexactError(f"it takes more than {CUBES_MAX} rules to say these TCP flags")
    for cube in cubes:
        yield {**fields, "tcp_flags": cube}


def _cubes(values: frozenset[int]) -> Iterator[TcpFlags]:
    """Sets of flags as `these of those` that do not overlap."""
    if not values:
        return
    alike = 0xFF
    some = min(values)
    for value in values:
        alike &= ~(value ^ some)
    if len(values) == 1 << (8 - alike.bit_count()):
        yield TcpFlags(some & alike, alike)
        return
    bit = _best_bit(values, alike)
    yield from _cubes(frozenset(value for value in values if value & bit))
    yield from _cubes(frozenset(value for value in values if not value & bit))


def _best_bit(values: frozenset[int], alike: int) -> int:
    """The flag that divides the values most unevenly: one side is soon done."""
    bits = [1 << number for number in range(8) if not alike & 1 << number]
    return max(bits, key=lambda bit: abs(2 * sum(1 for value in values if value & bit) - len(values)))
