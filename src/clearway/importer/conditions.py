# SPDX-License-Identifier: Apache-2.0
"""What rules compare, as boxes. nft's words are used for iptables as well: "ip saddr", "tcp dport"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial

from clearway.model.protocols import ICMP, ICMPV6, TCP, UDP

from . import words
from .box import (
    ANY_INTERFACE,
    ANY_STATE,
    ANY_TYPE,
    BYTE,
    DSCPS,
    FAMILIES,
    PORTS,
    Boxes,
    all_addresses,
    common,
    everything,
    limited,
    whole,
    without,
)
from .errors import InexactError
from .ranges import Names, Ranges

SCTP, DCCP, UDPLITE = 132, 33, 136

Element = tuple[str, ...]
"""One text for each key that is compared."""


@dataclass(frozen=True, slots=True)
class Condition:
    """KEYS [. KEYS] OPERATOR ELEMENTS. `in`: any of the flags or states, `!`: none of them."""

    keys: tuple[str, ...]
    operator: str
    elements: tuple[Element, ...]
    mask: str = ""

    def __str__(self) -> str:
        return " . ".join(self.keys)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is written out: combinations of a concatenation, prefixes that `all but these` may take."""

    combinations: int = 64
    complement: int = 128


WRITTEN_OUT = Limits()
"""What a configuration can take."""


@dataclass(frozen=True, slots=True)
class NamedSet:
    """`label` is what clearway calls it. `unusable` says why its content is not known."""

    label: str
    elements: tuple[Element, ...]
    unusable: str = ""


@dataclass(frozen=True, slots=True)
class Key:
    """Where a value stands, in packets of which families and of which protocol, and how it is written."""

    field: str
    read: Callable[[str], Ranges | Names]
    families: tuple[int, ...] = FAMILIES
    protocol: int | None = None

    def base(self) -> Boxes:
        return _base(self.families, self.protocol)


@cache
def _base(families: tuple[int, ...], protocol: int | None) -> Boxes:
    boxes = everything(families)
    return boxes if protocol is None else limited(boxes, protocol=Ranges.numbers([protocol]))


def _ports_of(name: str, protocol: int | None) -> dict[str, Key]:
    return {f"{name} {field}": Key(field, words.ports, protocol=protocol) for field in ("sport", "dport")}


def _addresses_of(name: str, family: int) -> dict[str, Key]:
    read = partial(words.addresses, family=family)
    return {
        f"{name} saddr": Key("source", read, (family,)),
        f"{name} daddr": Key("destination", read, (family,)),
        f"{name} dscp": Key("dscp", words.dscps, (family,)),
    }


KEYS: Mapping[str, Key] = {
    **_addresses_of("ip", 4),
    **_addresses_of("ip6", 6),
    "ip protocol": Key("protocol", words.protocols, (4,)),
    "ip ttl": Key("hops", words.hops, (4,)),
    "ip6 hoplimit": Key("hops", words.hops, (6,)),
    **_ports_of("tcp", TCP),
    **_ports_of("udp", UDP),
    **_ports_of("sctp", SCTP),
    **_ports_of("dccp", DCCP),
    **_ports_of("udplite", UDPLITE),
    **_ports_of("th", None),
    "icmp type": Key("icmp", words.icmp_types, (4,), ICMP),
    "icmp code": Key("code", words.codes, (4,), ICMP),
    "icmpv6 type": Key("icmp", words.icmpv6_types, (6,), ICMPV6),
    "icmpv6 code": Key("code", words.codes, (6,), ICMPV6),
    "meta l4proto": Key("protocol", words.protocols),
    "meta iif": Key("inside", words.interface),
    "meta iifname": Key("inside", words.interface),
    "meta oif": Key("outside", words.interface),
    "meta oifname": Key("outside", words.interface),
    "ct state": Key("state", words.states),
    "fib daddr type": Key("to", words.address_types),
}
FAMILY_KEYS = ("meta nfproto", "meta protocol")
FLAGS_KEY = "tcp flags"
# Written like the others, but without a counterpart.
MEANINGS: Mapping[str, str] = {
    "meta mark": "marks are not part of clearway's rules",
    "ct mark": "marks are not part of clearway's rules",
    "meta skgid": "the owner of a socket is not part of clearway's rules",
    "meta length": "the length of packets is not part of clearway's rules",
    "meta priority": "priorities are not part of clearway's rules",
    "meta cgroup": "control groups are not part of clearway's rules",
    "meta iifgroup": "groups of interfaces are not part of clearway's rules",
    "meta oifgroup": "groups of interfaces are not part of clearway's rules",
    "ether saddr": "link-layer addresses are not part of clearway's rules",
    "ether daddr": "link-layer addresses are not part of clearway's rules",
    "ip length": "the length of packets is not part of clearway's rules",
    "udp length": "the length of packets is not part of clearway's rules",
    "meta skuid": "the owner of a socket is not part of clearway's rules",
    "meta pkttype": "link-layer broadcast or multicast is not part of clearway's rules",
    "ct status": "conntrack's status is not part of clearway's rules",
    "ip6 nexthdr": "nexthdr is the first header only, where clearway knows the last; write meta l4proto",
    "vlan id": "at this hook the tag has been removed",
}
UNIVERSES: Mapping[str, Ranges | Names] = {
    "protocol": BYTE,
    "inside": ANY_INTERFACE,
    "outside": ANY_INTERFACE,
    "sport": PORTS,
    "dport": PORTS,
    "icmp": BYTE,
    "code": BYTE,
    "dscp": DSCPS,
    "hops": BYTE,
    "state": ANY_STATE,
    "to": ANY_TYPE,
}


def known(key: str) -> bool:
    return key in KEYS or key in FAMILY_KEYS or key == FLAGS_KEY


def boxes_of(condition: Condition, sets: Mapping[str, NamedSet], limits: Limits = WRITTEN_OUT) -> Boxes:
    """The packets that meet a condition. `sets` are those of its table. Raises InexactError."""
    for key in condition.keys:
        if not known(key):
            raise InexactError(f"{key}: {MEANINGS.get(key, 'clearway has nothing like it')}")
    condition, label = _with_elements(condition, sets)
    if len(condition.keys) > 1:
        return _concatenated(condition, limits.combinations)
    if condition.keys[0] == FLAGS_KEY:
        return limited(_flags_base(), flags=_flag_values(condition))
    if condition.mask:
        raise InexactError(f"{condition} & {condition.mask}: bits with gaps are not a prefix")
    if condition.keys[0] in FAMILY_KEYS:
        return _of_families(condition)
    return _single(condition, label, limits.complement)


def _with_elements(condition: Condition, sets: Mapping[str, NamedSet]) -> tuple[Condition, str]:
    """The condition with what is in the set that it refers to, and the name of that."""
    texts = [text for element in condition.elements for text in element if text.startswith("@")]
    if not texts:
        return condition, ""
    named = sets.get(texts[0][1:])
    if named is None or len(condition.elements) > 1:
        raise InexactError(f"{texts[0]} is not a set of this table")
    if named.unusable:
        raise InexactError(f"set {texts[0][1:]}: {named.unusable}")
    return replace(condition, elements=named.elements), named.label


def _single(condition: Condition, label: str, complement: int) -> Boxes:
    key = KEYS[condition.keys[0]]
    texts = [element[0] for element in condition.elements]
    several = len(texts) > 1 and key.field != "state"
    if condition.operator in {"<", ">", "<=", ">="}:
        return _cut(key, _compared(key, condition.operator, texts), complement)
    if condition.operator not in {"==", "in", "!=", "!"} or (condition.operator == "!" and several):
        raise InexactError(f"{condition} {condition.operator} is not known")
    if key.field in {"inside", "outside"}:
        return _cut(key, _interfaces(key, texts, negated=condition.operator in {"!=", "!"}), complement)
    spans = [span for text in texts for span in _numbers(key, text).spans]
    values = Ranges.of(spans, label or None)
    return _cut(key, values, complement, negated=condition.operator in {"!=", "!"})


def _numbers(key: Key, text: str) -> Ranges:
    values = key.read(text)
    assert isinstance(values, Ranges)
    return values


def _interfaces(key: Key, texts: list[str], *, negated: bool) -> Names:
    names: set[str] = set()
    for text in texts:
        values = key.read(text)
        assert isinstance(values, Names)
        names |= values.names
    return Names(frozenset(names), others=negated)


def _compared(key: Key, operator: str, texts: list[str]) -> Ranges:
    values = _numbers(key, texts[0])
    if len(texts) > 1 or len(values) != 1:
        raise InexactError(f"{operator} is for one number")
    [(number, _last)] = values.spans
    spans = {
        "<": (0, number - 1),
        "<=": (0, number),
        ">": (number + 1, (1 << 128) - 1),
        ">=": (number, (1 << 128) - 1),
    }
    first, last = spans[operator]
    return Ranges.of([(first, last)] if first <= last else [])


def _cut(key: Key, values: Ranges | Names, complement: int, *, negated: bool = False) -> Boxes:
    """The base of the key with its field in the values or, negated, not in them."""
    if not negated:
        return limited(key.base(), **{key.field: values})
    assert isinstance(values, Ranges)
    found: Boxes = ()
    for box in key.base():
        universe = UNIVERSES.get(key.field, all_addresses(box.family))
        assert isinstance(universe, Ranges)
        rest = universe - values
        if key.field in {"source", "destination"}:
            _bounded(rest, box.family, complement)
        found += limited((box,), **{key.field: rest})
    return found


def _bounded(rest: Ranges, family: int, most: int) -> None:
    number = words.prefixes_of(rest, family)
    if number > most:
        raise InexactError(
            f"all addresses but these are {number} prefixes; no more than {most} are written out"
        )


def _of_families(condition: Condition) -> Boxes:
    asked = {number for element in condition.elements for number in words.families(element[0])}
    negated = condition.operator in {"!=", "!"}
    return tuple(whole(family) for family in FAMILIES if (family in asked) != negated)


def _flags_base() -> Boxes:
    return limited(everything(), protocol=Ranges.numbers([TCP]))


def _flag_values(condition: Condition) -> Ranges:
    values = [words.flags(element[0]) for element in condition.elements]
    mask = words.flags(condition.mask) if condition.mask else 255
    joined = 0
    for value in values:
        joined |= value
    match condition.operator:
        case "in":
            return BYTE - words.flags_where(joined, 0)
        case "!":
            return words.flags_where(joined, 0)
        case "==":
            return Ranges.of(span for value in values for span in words.flags_where(mask, value).spans)
        case "!=":
            return BYTE - Ranges.of(span for value in values for span in words.flags_where(mask, value).spans)
    raise InexactError(f"{condition} {condition.operator} is not known")


def _concatenated(condition: Condition, most: int) -> Boxes:
    if len(condition.elements) > most:
        raise InexactError(
            f"it has {len(condition.elements)} combinations; no more than {most} are written out"
        )
    found: Boxes = ()
    for element in condition.elements:
        found += _combination(condition.keys, element)
    if condition.operator in {"==", "in"}:
        return found
    if condition.operator != "!=":
        raise InexactError(f"{condition} {condition.operator} is not known")
    base = everything()
    for key in condition.keys:
        base = common(base, KEYS[key].base() if key in KEYS else everything())
    return without(base, found)


def _combination(keys: tuple[str, ...], element: Element) -> Boxes:
    if len(keys) != len(element):
        raise InexactError(f"{' . '.join(element)} does not have a value for each of {' . '.join(keys)}")
    boxes = everything()
    for key, text in zip(keys, element, strict=True):
        boxes = common(boxes, boxes_of(Condition((key,), "==", ((text,),)), {}))
    return boxes
