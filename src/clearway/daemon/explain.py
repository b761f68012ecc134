# SPDX-License-Identifier: Apache-2.0
"""Whether a connection of Linux is carried by the fast path, and if not, why; and what the rules of Linux
mean for that.
"""

from __future__ import annotations

from collections.abc import Callable, Set

from clearway.api.control import FilterError
from clearway.api.views import (
    DirectionView,
    FlowExplanation,
    FlowQuestion,
    LinuxRules,
    LinuxRuleView,
)
from clearway.compiler.explain import QuestionError, parse_ends
from clearway.daemon.adoption import Standing
from clearway.daemon.explain_claim import Claim, claim_of, explain_claim
from clearway.daemon.honour import Claims
from clearway.daemon.passing import direction, is_own, passage_of, unmarked
from clearway.linux import conntrack, forwarding
from clearway.linux.conntrack import Held, Tuple
from clearway.linux.picture import Picture
from clearway.linux.rtnetlink import Ip, Link
from clearway.model.protocols import TCP, UDP
from clearway.proof import Passage

Carries = Callable[[Tuple], str | None]
Missing = Callable[[int, str], str | None]

JOINED = ("bond", "team", "vrf")

PROTOCOLS = {"tcp": TCP, "udp": UDP, str(TCP): TCP, str(UDP): UDP}
WRITE = "write ADDRESS:PORT with numbers, and [ADDRESS]:PORT for IPv6"
NOT_HELD = (
    "Linux' conntrack does not hold it: the first packets of a connection are Linux' own, and so is what is"
    " not tracked"
)


def explain_flow(
    question: FlowQuestion,
    picture: Picture,
    standing: Standing,
    claims: Claims,
    carries: Carries,
    taken: Set[str],
    blocked: Callable[[Ip], str | None] = lambda _source: None,
) -> FlowExplanation:
    """carries: who owns the flow that a tuple is a direction of. taken: the interfaces that packets are taken
    at. blocked: by which list a source is. FilterError for a question without sense.
    """
    asked = asked_for(question)
    claim = claim_of(asked, claims, picture)
    if why := _blocked(asked, claim, picture, blocked):
        return FlowExplanation(owner="blocklist", carried=False, can_be=False, why=why, directions=[])
    owner = carries(asked)
    held = conntrack.find(asked)
    if claim is not None and owner != "linux":
        return explain_claim(claim, standing, picture, carried=owner is not None)
    if owner == "clearway":
        why = "clearway's firewall has accepted it: Linux' rules do not see its packets"
        return FlowExplanation(owner=owner, carried=True, can_be=True, why=why, directions=[])
    original = held.original if held else asked
    reply = held.reply if held else asked.reversed
    mark = held.mark if held else 0
    flows = owner == "linux" and standing.proof is not None
    directions = [
        _adopted("original", original, reply.reversed, mark, picture, standing, taken, flows=flows),
        _adopted("reply", reply, original.reversed, mark, picture, standing, taken, flows=flows),
    ]
    return told(held, standing, directions, flows=flows)


def _blocked(asked: Tuple, claim: Claim | None, picture: Picture, blocked: Callable[[Ip], str | None]) -> str:
    """Why packets of a connection are dropped, by where they come from; "" if they are not. Of several
    endpoints all have to be blocked.
    """
    opener = claim.opens.source if claim else asked.source
    answerers = {leaves.destination for leaves in claim.leaves} if claim else {asked.destination}
    for sources in ({opener}, answerers):
        names = {source: blocked(source) for source in sources if not is_own(source, picture)}
        if names and all(names.values()):
            source, name = next(iter(names.items()))
            return f"{source} is in the blocklist {name}"
    return ""


def told(
    held: Held | None, standing: Standing, directions: list[DirectionView], *, flows: bool
) -> FlowExplanation:
    """Of a connection that is Linux', by its directions. flows: there is a flow of it, in force."""
    kept = [one for one in directions if one.kept]
    beside_rules = next((one.why for one in kept if not one.rule), "")
    wrong = "" if flows else beside_rules or _wrong(held, standing)
    wrong = wrong or next((one.why for one in kept), "")
    carried = flows and not kept
    if carried:
        why = "Linux has accepted it, and none of its rules has to see its packets"
    else:
        why = wrong or "nothing stands in its way: the fast path takes it over with its next packets"
    return FlowExplanation(
        owner="linux" if held or flows else "none",
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
        LinuxRuleView(
            rule=str(one.name), kind=str(one.kind), why=one.why, keeps=one.keeps, keeps_all=one.keeps_all
        )
        for one in standing.proof.rules
    ]
    others = dict.fromkeys(keep.why for keep in standing.keeps if keep.rule is None)
    return LinuxRules(generation=standing.basis.generation, rules=rules, others=list(others))


def asked_for(question: FlowQuestion) -> Tuple:
    """FilterError for what is no connection."""
    protocol = PROTOCOLS.get(question.protocol.lower())
    if protocol is None:
        raise FilterError(f"{question.protocol!r} is neither tcp nor udp: nothing else is carried for Linux")
    try:
        return Tuple(protocol, *parse_ends(protocol, question.source, question.destination, WRITE))
    except QuestionError as error:
        raise FilterError(str(error)) from error


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
    return ""


def _adopted(
    name: str,
    arrives: Tuple,
    leaves: Tuple,
    mark: int,
    picture: Picture,
    standing: Standing,
    taken: Set[str],
    *,
    flows: bool,
) -> DirectionView:
    """mark: the connection's."""
    proof = standing.proof
    passage = passage_of(arrives, leaves, picture, mark, proof.routed_with if proof else unmarked)
    why = obstacle(passage, picture, taken, forwarding.missing)
    keep = proof.why_kept(passage) if proof and not why else None
    return direction(name, arrives, leaves, passage, keep, why, flows=flows)


def obstacle(passage: Passage, picture: Picture, taken: Set[str], missing: Missing) -> str:
    """What keeps packets of this passage in Linux whatever rules say; "" if nothing does. missing: what has
    to be set for what comes in there to be forwarded.
    """
    source, destination = passage.arrives[0], passage.leaves[2]
    if is_own(source, picture):
        return "it comes from this machine itself, and only what is forwarded is carried"
    if is_own(destination, picture):
        return "it is for this machine itself, and only what is forwarded is carried"
    inside, outside = passage.inside, passage.outside
    if not inside or not outside:
        return f"no route leads to {destination if inside else source}"
    if setting := missing(passage.family, inside):
        return f"Linux does not forward IPv{passage.family} that comes in by {inside}: sysctl -w {setting}=1"
    if not _is_taken(inside, picture, taken):
        return f"it comes in by {inside}, which clearway has not taken: `clearway up {inside}`"
    if inside == outside:
        return f"it leaves by {outside}, where it came in: Linux may tell its sender of a shorter way"
    return ""


def _is_taken(name: str, picture: Picture, taken: Set[str]) -> bool:
    """Packets of a VLAN are taken at the device below, those of a bond at its members, too."""
    link: Link | None = next((one for one in picture.links.values() if one.name == name), None)
    while link is not None and link.name not in taken:
        if link.kind in JOINED and any(
            one.name in taken for one in picture.links.values() if one.master == link.ifindex
        ):
            return True
        link = picture.links.get(link.lower) if link.vlan is not None else None
    return link is not None
