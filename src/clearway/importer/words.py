# SPDX-License-Identifier: Apache-2.0
"""Single values as nft and iptables write them, as sets of numbers. InexactError is raised for others.

Names of ports and of networks are not looked up: what they mean is another machine's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network

from clearway.model.protocols import DSCP, ICMP_TYPES, ICMPV6_TYPES, PROTOCOLS, TCP_FLAGS

from .box import BITS, STATES, TYPES
from .errors import InexactError
from .ranges import Names, Ranges

# `ipip` is 4 for some and 94 for others (/etc/protocols).
PROTOCOL_NAMES: Mapping[str, int] = {
    **{name: number for name, number in PROTOCOLS.items() if name != "ipip"},
    "ipv6-icmp": 58,
    "ipencap": 4,
    "comp": 108,
    "ipcomp": 108,
}
ICMPV6_NAMES: Mapping[str, int] = {
    **ICMPV6_TYPES,
    "mld-listener-reduction": 132,
    "ind-neighbor-solicit": 141,
    "ind-neighbor-advert": 142,
    "router-solicitation": 133,
    "router-advertisement": 134,
    "neighbor-solicitation": 135,
    "neighbour-solicitation": 135,
    "neighbor-advertisement": 136,
    "neighbour-advertisement": 136,
    "redirect": 137,
}
DSCP_NAMES: Mapping[str, int] = {**DSCP, "be": 0, "lephb": 1}
FLAG_NAMES: Mapping[str, int] = {**TCP_FLAGS, "ecn": TCP_FLAGS["ece"]}
TYPE_NAMES: Mapping[str, int] = {name: number for number, name in enumerate(TYPES)}


def number_of(text: str, names: Mapping[str, int], most: int, what: str) -> int:
    """By name, decimal or hexadecimal."""
    lower = text.lower()
    number = names.get(lower)
    if number is None:
        try:
            number = int(lower, 16) if lower.startswith("0x") else int(lower)
        except ValueError:
            raise InexactError(f"{text} is not a known {what}") from None
    if not 0 <= number <= most:
        raise InexactError(f"{text} is out of range for a {what}")
    return number


def numbers(names: Mapping[str, int], most: int, what: str) -> Callable[[str], Ranges]:
    """A reader of numbers, names and ranges first-last."""

    def read(text: str) -> Ranges:
        first, dash, last = text.partition("-")
        if dash and first.strip().isdigit():
            span = number_of(first.strip(), names, most, what), number_of(last.strip(), names, most, what)
            return _span(*span, text)
        return Ranges.numbers([number_of(text, names, most, what)])

    return read


def _span(first: int, last: int, text: str) -> Ranges:
    if first > last:
        raise InexactError(f"{text} is reversed")
    return Ranges(((first, last),))


ports = numbers({}, 65535, "port, given as a number")
protocols = numbers(PROTOCOL_NAMES, 255, "protocol")
icmp_types = numbers(ICMP_TYPES, 255, "ICMP type")
icmpv6_types = numbers(ICMPV6_NAMES, 255, "ICMPv6 type")
codes = numbers({}, 255, "ICMP code, given as a number")
dscps = numbers(DSCP_NAMES, 63, "DSCP class")
hops = numbers({}, 255, "hop limit")


def _named(names: Mapping[str, int], what: str) -> Callable[[str], Ranges]:
    """A reader of names only: their numbers here are our own."""

    def read(text: str) -> Ranges:
        if text.lower() not in names:
            raise InexactError(f"{text} is not a known {what}")
        return Ranges.numbers([names[text.lower()]])

    return read


states = _named(STATES, "state of connections")
address_types = _named(TYPE_NAMES, "type of address")


def families(text: str) -> Ranges:
    known = {"ipv4": 4, "ipv6": 6, "ip": 4, "ip6": 6}
    if text not in known:
        raise InexactError(f"{text} is not a known family")
    return Ranges.numbers([known[text]])


def interface(text: str) -> Names:
    if any(sign in text for sign in "*+\\"):
        raise InexactError(f"{text} stands for several interfaces; clearway needs each by its name")
    if text.isdigit():
        raise InexactError(f"{text} is the number of an interface that is not there")
    return Names.of(text)


def addresses(text: str, family: int) -> Ranges:
    """10.0.0.1, 10.0.0.0/8, 10.0.0.0/255.0.0.0, 10.0.0.1-10.0.0.9"""
    first, dash, last = text.partition("-")
    try:
        if dash:
            low, high = ip_address(first.strip()), ip_address(last.strip())
            versions = {low.version, high.version}
            span = int(low), int(high)
        else:
            network = ip_network(_with_prefix_length(text), strict=False)
            versions = {network.version}
            span = int(network.network_address), int(network.broadcast_address)
    except ValueError:
        raise InexactError(f"{text} is not an IPv{family} address, prefix or range") from None
    if versions != {family}:
        raise InexactError(f"{text} is not of IPv{family}")
    return _span(*span, text)


def _with_prefix_length(text: str) -> str:
    """10.0.0.0/255.0.0.0 -> 10.0.0.0/8. Raises ValueError for masks with gaps, such as 0.0.0.255."""
    address, _slash, mask = text.partition("/")
    if "." not in mask:
        return text
    hosts = int(ip_address(mask)) ^ ((1 << BITS[4]) - 1)
    if hosts & (hosts + 1):
        raise ValueError("gaps")
    return f"{address}/{BITS[4] - hosts.bit_length()}"


def flags(text: str) -> int:
    """ "syn", "fin|syn", "0x2" """
    number = 0
    for name in text.replace(",", "|").split("|"):
        number |= number_of(name.strip(), FLAG_NAMES, 255, "TCP flag")
    return number


def flags_where(mask: int, wanted: int) -> Ranges:
    """Of the flags in the mask, exactly the wanted ones."""
    return Ranges.numbers(number for number in range(256) if number & mask == wanted)


def prefixes_of(found: Ranges, family: int) -> int:
    """How many prefixes a set of addresses takes."""
    total = 0
    for span in found.spans:
        at, last = span
        while at <= last:
            aligned = at & -at or 1 << BITS[family]
            at += min(aligned, 1 << ((last - at + 1).bit_length() - 1))
            total += 1
    return total
