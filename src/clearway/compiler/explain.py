# SPDX-License-Identifier: Apache-2.0
"""Which rule of a firewall decides about a packet, and why those before it do not: rule by rule, in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address

from clearway.model import (
    Action,
    Config,
    Endpoint,
    Firewall,
    FirewallRule,
    IPAddress,
    IPNetwork,
    PortRange,
    Service,
    SetName,
)
from clearway.model.protocols import DSCP, ICMP, ICMPV6, PROTOCOLS, TCP, TCP_FLAGS, TYPES_OF, UDP, name_of

PACKET = re.compile(r"(?P<protocol>\S+)\s+(?P<source>\S+)\s*->\s*(?P<destination>\S+)(?:\s+(?P<type>\S+))?")
END = re.compile(
    r"\[(?P<bracketed>[^]]+)\](?::(?P<p1>[0-9]+))?|(?P<v6>[^]:]*:[^]]*:[^]]*)|(?P<v4>[^:]+)(?::(?P<p2>[0-9]+))?"
)
EXAMPLE = (
    "write for example 'tcp 198.51.100.7:4000 -> 10.0.0.1:22' or 'icmp 198.51.100.7 -> 10.0.0.1 echo-request'"
)
NEVER_JUDGED = {130, 131, 132, 133, 134, 135, 136, 137, 143}
"""Types of ICMPv6 (bpf/firewall.h, firewall_spares)."""
FLAG_OF = {
    "interface_in": "--in",
    "interface_out": "--out",
    "direction": "--direction",
}


class QuestionError(Exception):
    """What was asked cannot be answered; one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection. None: not known."""

    protocol: int
    source: IPAddress
    destination: IPAddress
    source_port: int = 0
    destination_port: int = 0
    icmp_type: int | None = None
    tcp_flags: int = 0
    dscp: int = 0
    vlan: int = 0
    local: bool | None = None
    interface_in: str | None = None
    interface_out: str | None = None


@dataclass(frozen=True, slots=True)
class Refuted:
    """A rule that the packet does not meet, and what of it."""

    rule: str
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """`number`: of the rule, from 1 on; `rule`: its name, "" for the default."""

    number: int
    rule: str
    action: Action
    log: bool
    before: tuple[Refuted, ...]


def parse_packet(text: str) -> Packet:
    """A packet as people write it. Raises QuestionError."""
    found = PACKET.fullmatch(text.strip())
    if found is None:
        raise QuestionError(f"{text!r} is no packet; {EXAMPLE}")
    protocol = _number(found["protocol"], PROTOCOLS, 255, "protocol")
    source, sport, destination, dport = parse_ends(protocol, found["source"], found["destination"], EXAMPLE)
    kind = None
    if protocol in TYPES_OF:
        if protocol != (ICMP if source.version == 4 else ICMPV6):
            raise QuestionError(f"{found['protocol']} is not for IPv{source.version} addresses")
        kind = _number(found["type"] or "echo-request", TYPES_OF[protocol], 255, "ICMP type")
    elif found["type"]:
        raise QuestionError(f"{found['type']!r} has no meaning there; {EXAMPLE}")
    flags = TCP_FLAGS["syn"] if protocol == TCP else 0
    return Packet(protocol, source, destination, sport, dport, kind, flags)


def parse_ends(
    protocol: int, source: str, destination: str, example: str
) -> tuple[IPAddress, int, IPAddress, int]:
    """Addresses with their ports. example: what is to be written, for who has not. Raises QuestionError."""
    (first, sport), (then, dport) = (_end(text, protocol, example) for text in (source, destination))
    if first.version != then.version:
        raise QuestionError(f"{first} and {then} are of different families")
    return first, sport, then, dport


def _end(text: str, protocol: int, example: str) -> tuple[IPAddress, int]:
    found = END.fullmatch(text)
    address = found and (found["bracketed"] or found["v6"] or found["v4"])
    port = found and (found["p1"] or found["p2"])
    try:
        parsed = ip_address(address or "")
    except ValueError:
        raise QuestionError(f"{text!r} is no address; {example}") from None
    if (port is not None) != (protocol in (TCP, UDP)):
        needs = "needs a port" if port is None else "has no port with that protocol"
        raise QuestionError(f"{text} {needs}; {example}")
    if int(port or 0) > 65535:
        raise QuestionError(f"{port} is too large for a port")
    return parsed, int(port or 0)


def _number(text: str, known: Mapping[str, int], most: int, what: str) -> int:
    number = known.get(text.lower())
    if number is None and text.isdecimal() and int(text[:6]) <= most:
        number = int(text)
    if number is None:
        raise QuestionError(f"{text!r} is no {what}; use a number or one of {', '.join(known)}")
    return number


def decide(config: Config, packet: Packet, leaves: Packet | None = None) -> Decision:
    """Which rule decides. leaves: the packet as it is after translation; None: as far as is known it is not
    translated.

    Raises QuestionError when that depends on something that was not said.
    """
    firewall = config.firewall
    if firewall is None:
        raise QuestionError("there is no firewall: nothing is judged")
    if packet.protocol == ICMPV6 and packet.icmp_type in NEVER_JUDGED and packet.local is not False:
        raise QuestionError(
            "neighbour discovery and multicast group management of IPv6 are not judged on their link"
        )
    before: list[Refuted] = []
    for number, rule in enumerate(firewall.rules, 1):
        asked = packet
        if rule.after_translation:
            asked = leaves or _untranslated(config, packet, rule)
        why = _why_not(rule, firewall, asked)
        if why is None:
            return Decision(number, rule.name, rule.action, rule.log, tuple(before))
        before.append(Refuted(rule.name, why))
    return Decision(len(firewall.rules) + 1, "", firewall.default, False, tuple(before))


def service_of(config: Config, packet: Packet) -> Service | None:
    """Which it is addressed to."""
    to = (packet.destination, packet.destination_port, name_of(packet.protocol, PROTOCOLS))
    for service in config.services:
        if (service.address, service.port, service.protocol) == to:
            return service
    return None


def endpoints_of(service: Service) -> list[Endpoint]:
    """Those that take new connections."""
    return [endpoint for endpoint in service.endpoints if endpoint.weight and not endpoint.drain]


def _untranslated(config: Config, packet: Packet, rule: FirewallRule) -> Packet:
    """A rule that sees what is translated: is this packet?"""
    service = service_of(config, packet)
    by = [service.name] if service else []
    by += [nat.name for nat in config.nat if packet.source in nat.source]
    if by:
        raise QuestionError(
            f"rule {rule.name} sees the packet after translation by {', '.join(by)}: say with"
            " --translated as what it leaves, for example 'tcp 198.51.100.7:4000 -> 10.0.0.2:8080'"
        )
    return packet


def _why_not(rule: FirewallRule, firewall: Firewall, packet: Packet) -> str | None:
    """The first thing that the packet does not meet; None: it meets the rule."""
    unknown = None
    for key, met in _answers(rule, firewall, packet):
        if met is None:
            unknown = unknown or key
        elif not met:
            return key
    if unknown:
        raise QuestionError(f"rule {rule.name} asks for {unknown}: say it with {FLAG_OF[unknown]}")
    return None


def _answers(rule: FirewallRule, firewall: Firewall, packet: Packet) -> Iterator[tuple[str, bool | None]]:
    if rule.protocol is not None:
        yield f"protocol is {name_of(packet.protocol, PROTOCOLS)}", packet.protocol in rule.protocol
    if rule.source is not None:
        yield f"source {packet.source} is not meant", _among(rule.source, firewall, packet.source)
    if rule.destination is not None:
        met = _among(rule.destination, firewall, packet.destination)
        yield f"destination {packet.destination} is not meant", met
    if rule.source_ports is not None:
        met = _in_ports(rule.source_ports, firewall, packet.source_port)
        yield f"source port {packet.source_port} is not meant", met
    if rule.destination_ports is not None:
        met = _in_ports(rule.destination_ports, firewall, packet.destination_port)
        yield f"destination port {packet.destination_port} is not meant", met
    if rule.icmp_types is not None:
        yield from _icmp(rule, packet)
    if rule.tcp_flags is not None:
        yield "the TCP flags differ", packet.tcp_flags & rule.tcp_flags.mask == rule.tcp_flags.set
    if rule.dscp is not None:
        yield f"DSCP is {name_of(packet.dscp, DSCP)}", packet.dscp in rule.dscp
    if rule.vlan is not None:
        yield f"VLAN is {packet.vlan}", packet.vlan in rule.vlan
    yield from _where(rule, packet)


def _icmp(rule: FirewallRule, packet: Packet) -> Iterator[tuple[str, bool | None]]:
    known = TYPES_OF.get(packet.protocol, {})
    numbers = {known.get(kind) if isinstance(kind, str) else kind for kind in rule.icmp_types or ()}
    yield f"ICMP type is {name_of(packet.icmp_type or 0, known)}", packet.icmp_type in numbers


def _where(rule: FirewallRule, packet: Packet) -> Iterator[tuple[str, bool | None]]:
    if rule.direction != "any":
        if packet.local is None:
            yield "direction", None
        else:
            is_now = "for this machine" if packet.local else "forwarded"
            yield f"it is {is_now}", packet.local == (rule.direction == "local")
    for key, name in (("interface_in", packet.interface_in), ("interface_out", packet.interface_out)):
        asked = getattr(rule, key)
        if asked is None:
            continue
        if name is None and not (key == "interface_out" and packet.local):
            yield key, None
        else:
            yield f"{key} is {name or 'none'}", name in asked


def _among(asked: Iterable[IPNetwork | SetName], firewall: Firewall, address: IPAddress) -> bool:
    return any(
        firewall.prefixes(one.name).covers(address)
        if isinstance(one, SetName)
        else one.version == address.version and address in one
        for one in asked
    )


def _in_ports(asked: Iterable[PortRange | SetName], firewall: Firewall, port: int) -> bool:
    return any(
        ports.first <= port <= ports.last
        for one in asked
        for ports in (firewall.ports(one.name) if isinstance(one, SetName) else (one,))
    )


def leaving(packet: Packet, text: str) -> Packet:
    """The packet as it is after translation, from its text. Raises QuestionError."""
    after = parse_packet(text)
    if after.protocol != packet.protocol or after.source.version != packet.source.version:
        raise QuestionError("--translated has another protocol, or another family, than the packet")
    return replace(
        packet,
        source=after.source,
        destination=after.destination,
        source_port=after.source_port,
        destination_port=after.destination_port,
    )
