# SPDX-License-Identifier: Apache-2.0
"""The firewall, as the user can say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from . import firewall_checks
from .fields import Model, Name, Several, checked
from .firewall_values import (
    Members,
    SetName,
    TcpFlags,
    dscp_texts,
    parse_addresses,
    parse_dscps,
    parse_icmp_types,
    parse_interfaces,
    parse_ports,
    parse_protocols,
    parse_set,
    parse_tcp_flags,
    parse_vlans,
    protocol_texts,
    set_texts,
    texts,
)
from .prefixes import Prefixes
from .values import IPNetwork, PortRange

Action = Literal["accept", "drop", "reject"]
Direction = Literal["any", "through", "local"]


def _schema(title: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "title": title})


_WRITTEN = PlainSerializer(texts, when_used="json")
Addresses = Annotated[
    tuple[IPNetwork | SetName, ...],
    PlainValidator(parse_addresses),
    _WRITTEN,
    _schema("prefixes or `@set`, one or a list"),
]
PortList = Annotated[
    tuple[PortRange | SetName, ...],
    PlainValidator(parse_ports),
    _WRITTEN,
    _schema("ports, ranges of them or `@set`, one or a list"),
]
Protocols = Annotated[
    tuple[int, ...],
    PlainValidator(parse_protocols),
    PlainSerializer(protocol_texts, when_used="json"),
    _schema("names or numbers, one or a list"),
]
IcmpTypes = Annotated[
    tuple[str | int, ...],
    PlainValidator(parse_icmp_types),
    _WRITTEN,
    _schema("names or numbers, one or a list"),
]
Dscps = Annotated[
    tuple[int, ...],
    PlainValidator(parse_dscps),
    PlainSerializer(dscp_texts, when_used="json"),
    _schema("`cs1`, `af11`, `ef`, ... or numbers, one or a list"),
]
Vlans = Annotated[tuple[int, ...], PlainValidator(parse_vlans), _WRITTEN, _schema("VIDs, one or a list")]
InterfaceNames = Annotated[
    tuple[str, ...], PlainValidator(parse_interfaces), _WRITTEN, _schema("interfaces, one or a list")
]
Flags = Annotated[
    TcpFlags,
    PlainValidator(parse_tcp_flags),
    PlainSerializer(str, when_used="json"),
    _schema('`syn`, `"syn/fin,syn,rst,ack"`'),
]
SetMembers = Annotated[
    Members,
    PlainValidator(parse_set),
    PlainSerializer(set_texts, when_used="json"),
    WithJsonSchema({"type": "array", "items": {"type": "string"}}),
]


class FirewallRule(Model):
    """A packet meets a rule when it meets everything that the rule asks for. Of all rules, the first that the
    first packet of a connection meets decides about the connection; its replies, and ICMP errors about it,
    share its fate."""

    name: Name = Field(description="Name of the rule, for people and commands; counters hang on it.")
    action: Action = Field(
        description="`accept`; `drop`: silently; `reject`: answered with a reset (TCP) or an ICMP error, at"
        " most 1,000 a second and CPU.",
    )
    log: bool = Field(
        default=False,
        description="`true`: what the rule decides is told to `clearway firewall log`.",
    )
    direction: Direction = Field(
        default="any",
        description="`through`: what is forwarded; `local`: what is for this machine; `any`: both.",
    )
    protocol: Protocols | None = Field(default=None, description="Protocols: `tcp`, `[tcp, udp]`, `47`.")
    source: Addresses | None = Field(default=None, description="Where it comes from.")
    destination: Addresses | None = Field(default=None, description="Where it goes.")
    source_ports: PortList | None = Field(default=None, description="Needs `protocol` tcp, udp or both.")
    destination_ports: PortList | None = Field(default=None, description="Needs `protocol` tcp, udp or both.")
    icmp_types: IcmpTypes | None = Field(
        default=None,
        description="`echo-request`, ...; needs `protocol` icmp, icmpv6 or both. A name means the type of"
        " that name in each.",
    )
    tcp_flags: Flags | None = Field(
        default=None,
        description="Flags of the first packet that are set; after a slash, the flags that are looked at."
        " In quotes, because within braces a comma would end the value. Needs `protocol: tcp`. A connection"
        " that is judged again is taken to have begun with SYN.",
    )
    dscp: Dscps | None = Field(default=None, description="DSCP classes of the first packet.")
    vlan: Vlans | None = Field(default=None, description="VID of the (outer) tag it comes with; 0: none.")
    interface_in: InterfaceNames | None = Field(default=None, description="Interfaces it comes in by.")
    interface_out: InterfaceNames | None = Field(
        default=None, description="Interfaces it goes out by; not for `direction: local`."
    )
    after_translation: bool = Field(
        default=False,
        description="`false`: the rule sees the addresses and ports of services and of NAT as the client sent"
        " them, as rules of nftables' prerouting do; `true`: as they are after translation, but for"
        " the source port, which is not chosen yet.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        return checked(self, firewall_checks.rule_problems(self))


class Firewall(Model):
    """Every IP packet is judged that comes in by one of the `interfaces`, as far as it does not belong to a
    connection that was accepted: what is forwarded, and what is for this machine. What is forwarded and
    accepted is carried by clearway from then on, so Linux' own rules do not see it; what is for this machine
    goes up to Linux. Connections that this machine opens are accepted. Neighbour discovery (RFC 4861)
    and multicast group management of IPv6 are not judged.
    """

    default: Action = Field(default="accept", description="What becomes of a packet that meets no rule.")
    sets: Annotated[Mapping[Name, SetMembers], Field(strict=False)] = Field(
        default={},
        description="Lists of prefixes, or of ports, by name: `office: [198.51.100.0/24]`. Rules refer to"
        " them as `@office`. `clearway firewall set` exchanges one.",
    )
    rules: Several[FirewallRule] = Field(default=(), description="The first that a packet meets decides.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        return checked(self, firewall_checks.firewall_problems(self))

    def prefixes(self, name: str) -> Prefixes:
        """What is in a set, if it is one of prefixes."""
        members = self.sets[name]
        return members if isinstance(members, Prefixes) else Prefixes()

    def ports(self, name: str) -> tuple[PortRange, ...]:
        """What is in a set, if it is one of ports."""
        members = self.sets[name]
        return () if isinstance(members, Prefixes) else members
