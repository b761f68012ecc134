# SPDX-License-Identifier: Apache-2.0
"""Asks the firewall's rules about a packet that somebody has described. What this machine knows of its way is
filled in.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic_core import PydanticCustomError

from clearway.api.control import FilterError
from clearway.api.views import FirewallDecision, FirewallQuestion, RefutedView
from clearway.compiler import what_it_asks
from clearway.compiler.explain import (
    Decision,
    Packet,
    QuestionError,
    decide,
    endpoints_of,
    leaving,
    parse_packet,
    service_of,
)
from clearway.linux import rtnetlink
from clearway.linux.netlink import NETLINK_ROUTE, Conversation, NetlinkError
from clearway.linux.picture import Picture
from clearway.model import Config, IPAddress
from clearway.model.firewall_values import parse_dscps, parse_tcp_flags


def question_of(question: FirewallQuestion, picture: Picture, config: Config) -> FirewallDecision:
    """The decision. FilterError when it depends on what is not known."""
    try:
        packet = _packet(question, picture)
        leaves = leaving(packet, question.translated) if question.translated else None
        packet, decision = _decided(config, packet, leaves, picture)
    except QuestionError as error:
        raise FilterError(str(error)) from error
    except PydanticCustomError as error:
        context = error.context or {}
        raise FilterError(f"{context['what']}; {context['fix']}") from error
    rules = config.firewall.rules if config.firewall else ()
    return FirewallDecision(
        number=decision.number,
        rule=decision.rule,
        action=decision.action,
        log=decision.log,
        asks=what_it_asks(rules[decision.number - 1]) if decision.rule else "",
        local=bool(packet.local),
        interface_out=packet.interface_out,
        before=[RefutedView(rule=one.rule, why=one.why) for one in decision.before],
    )


def _decided(
    config: Config, packet: Packet, leaves: Packet | None, picture: Picture
) -> tuple[Packet, Decision]:
    """The packet with its way, and what the rules say. To a service it goes to one of its endpoints: the
    answer must be the same for all.
    """
    service = None if leaves else service_of(config, packet)
    if service is None:
        packet, leaves = _on_its_way(packet, leaves, picture)
        return packet, decide(config, packet, leaves)
    found = []
    for endpoint in endpoints_of(service):
        to = replace(packet, destination=endpoint.address, destination_port=endpoint.port)
        on_its_way, there = _on_its_way(packet, to, picture)
        found.append((on_its_way, decide(config, on_its_way, there if service.mode == "nat" else None)))
    if not found:
        raise QuestionError(f"service {service.name} has no endpoint for new connections: they are dropped")
    if len({decision.number for _packet, decision in found}) > 1:
        raise QuestionError(
            f"that depends on the endpoint which service {service.name} chooses: say with --translated as"
            " what the packet leaves, for example 'tcp 198.51.100.7:4000 -> 10.0.0.2:8080'"
        )
    return found[0]


def _on_its_way(packet: Packet, leaves: Packet | None, picture: Picture) -> tuple[Packet, Packet | None]:
    way = _way(leaves or packet, picture)
    packet = replace(packet, local=way.local, interface_out=way.interface_out)
    return packet, leaves and replace(leaves, local=way.local, interface_out=way.interface_out)


def _packet(question: FirewallQuestion, picture: Picture) -> Packet:
    packet = parse_packet(question.packet)
    there = {link.name for link in picture.links.values()}
    for name in (question.interface_in, question.interface_out):
        if name is not None and name not in there:
            raise QuestionError(f"there is no interface {name}; use one of {', '.join(sorted(there))}")
    if question.direction not in (None, "through", "local"):
        raise QuestionError(f"direction {question.direction!r} is unknown: through or local")
    if question.tcp_flags is not None:
        packet = replace(packet, tcp_flags=parse_tcp_flags(question.tcp_flags).set)
    if question.dscp is not None:
        packet = replace(packet, dscp=parse_dscps(question.dscp)[0])
    return replace(
        packet,
        vlan=question.vlan,
        local=None if question.direction is None else question.direction == "local",
        interface_in=question.interface_in,
        interface_out=question.interface_out,
    )


def _way(packet: Packet, picture: Picture) -> Packet:
    """With what is not said of where it goes, as addresses and routes are now; what has no route is taken for
    local, as the data path does. By policy rules packets may go elsewhere: who has such says where.
    """
    local = packet.local
    if local is None:
        local = any(address.ip == packet.destination for address in picture.addresses.values())
    interface_out = None if local else packet.interface_out
    if not local and interface_out is None:
        with Conversation(NETLINK_ROUTE) as kernel:
            hop = _next_hop(kernel, packet.destination)
        local = hop is None if local is None else local
        link = picture.links.get(hop.ifindex) if hop else None
        interface_out = link.name if link else None
    return replace(packet, local=local, interface_out=interface_out)


def _next_hop(kernel: Conversation, destination: IPAddress) -> rtnetlink.Hop | None:
    try:
        return rtnetlink.route(kernel, destination)
    except NetlinkError:
        return None
