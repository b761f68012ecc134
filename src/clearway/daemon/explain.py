# SPDX-License-Identifier: Apache-2.0
"""Whether a connection of Linux is carried by the fast path, and if not, why; and what the rules of Linux
mean for that.
"""

from __future__ import annotations

from collections.abc import Callable

from clearway.api.control import FilterError
from clearway.api.views import (
    DirectionView,
    FlowExplanation,
    FlowQuestion,
    LinuxRules,
    LinuxRuleView,
)
from clearway.compiler.explain import QuestionError, parse_packet
from clearway.daemon.adoption import Standing
from clearway.linux import conntrack, rtnetlink
from clearway.linux.conntrack import Held, Tuple
from clearway.linux.netlink import NETLINK_ROUTE, Conversation, NetlinkError
from clearway.linux.picture import Picture
from clearway.model import host_port
from clearway.model.protocols import TCP
from clearway.proof import Passage

Carries = Callable[[Tuple], str | None]

NOT_HELD = (
    "Linux' conntrack does not hold it: the first packets of a connection are Linux' own, and so is what is"
    " not tracked"
)


def explain_flow(
    question: FlowQuestion, picture: Picture, standing: Standing, carries: Carries
) -> FlowExplanation:
    """carries: who owns the flow that a tuple is a direction of. FilterError for a question without sense."""
    asked = _asked(question)
    owner = carries(asked)
    held = conntrack.find(asked)
    if owner == "clearway":
        why = "clearway's own configuration claims it: Linux' rules do not see its packets"
        return FlowExplanation(owner=owner, carried=True, can_be=True, why=why, directions=[])
    original = held.original if held else asked
    reply = held.reply if held else asked.reversed
    directions = [
        _direction("original", original, reply.reversed, picture, standing),
        _direction("reply", reply, original.reversed, picture, standing),
    ]
    wrong = _wrong(held, standing) or next((one.why for one in directions if one.kept), "")
    carried = owner == "linux"
    if carried:
        why = "the fast path carries it, as Linux would"
    else:
        why = wrong or "nothing stands in its way: the fast path takes it over with its next packets"
    return FlowExplanation(
        owner="linux" if held or carried else "none",
        carried=carried,
        can_be=not wrong,
        why=why,
        directions=directions,
    )


def explain_rules(standing: Standing) -> LinuxRules:
    """FilterError when they have not been read."""
    if standing.proof is None or standing.basis is None:
        raise FilterError(f"nothing can be said of Linux' rules: {standing.why}")
    rules = [
        LinuxRuleView(rule=str(one.name), kind=str(one.kind), why=one.why, keeps=one.keeps)
        for one in standing.proof.rules
    ]
    others = dict.fromkeys(keep.why for keep in standing.keeps if keep.rule is None)
    return LinuxRules(generation=standing.basis.generation, rules=rules, others=list(others))


def _asked(question: FlowQuestion) -> Tuple:
    try:
        packet = parse_packet(f"{question.protocol} {question.source} -> {question.destination}")
    except QuestionError as error:
        raise FilterError(str(error)) from error
    if not packet.source_port or not packet.destination_port:
        raise FilterError(f"{question.protocol} has no ports: only connections of TCP and UDP are adopted")
    return Tuple(
        packet.protocol, packet.source, packet.source_port, packet.destination, packet.destination_port
    )


def _wrong(held: Held | None, standing: Standing) -> str:
    """What keeps the connection in Linux whatever rules say."""
    if standing.proof is None:
        return standing.why
    if held is None:
        return NOT_HELD
    if held.original.protocol == TCP and held.state != "established":
        return f"it is not established: its state is {held.state}"
    if not held.status & conntrack.IPS_ASSURED:
        return "conntrack does not take it for established yet (ASSURED)"
    if held.helper or held.status & conntrack.IPS_HELPER:
        return "a conntrack helper reads its packets"
    if held.status & conntrack.IPS_SEQ_ADJUST:
        return "its sequence numbers are adjusted (a helper, or synproxy)"
    if held.status & (conntrack.IPS_OFFLOAD | conntrack.IPS_HW_OFFLOAD):
        return "a flowtable of nftables carries it"
    if held.mark and standing.proof.requires_unmarked:
        return f"it has mark {held.mark:#x}, and there are rules that ask for marks of connections"
    return ""


def _direction(
    name: str, arrives: Tuple, leaves: Tuple, picture: Picture, standing: Standing
) -> DirectionView:
    inside, outside = _interface(arrives.source, picture), _interface(leaves.destination, picture)
    keep = None
    if standing.proof is not None:
        passage = Passage(
            family=arrives.source.version,
            protocol=arrives.protocol,
            arrives=(arrives.source, arrives.sport, arrives.destination, arrives.dport),
            leaves=(leaves.source, leaves.sport, leaves.destination, leaves.dport),
            inside=inside or "",
            outside=outside or "",
        )
        keep = standing.proof.why_kept(passage)
    if keep is not None:
        why = keep.why
    elif inside is None or outside is None:
        why = "no route leads there through this machine"
    elif inside == outside:
        why = f"it leaves by {outside}, where it came in: Linux may tell its sender of a shorter way"
    else:
        why = ""
    return DirectionView(
        direction=name,
        arrives=_ends(arrives),
        leaves=_ends(leaves),
        interface_in=inside,
        interface_out=outside,
        kept=bool(why),
        why=why,
        rule=str(keep.rule) if keep and keep.rule else None,
    )


def _ends(tuple_: Tuple) -> str:
    return f"{host_port(tuple_.source, tuple_.sport)} -> {host_port(tuple_.destination, tuple_.dport)}"


def _interface(address: rtnetlink.Ip, picture: Picture) -> str | None:
    """By which a packet to that address leaves; None for this machine's own, and where no route leads."""
    if any(one.ip == address for one in picture.addresses.values()):
        return None
    try:
        with Conversation(NETLINK_ROUTE) as kernel:
            hop = rtnetlink.route(kernel, address)
    except NetlinkError:
        return None
    link = picture.links.get(hop.ifindex) if hop else None
    return link.name if link else None
