# SPDX-License-Identifier: Apache-2.0
"""Whether clearway carries a connection that its own configuration claims, or Linux does for the sake of its
rules, and of which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from clearway.api.views import DirectionView, FlowExplanation
from clearway.compiler.tables import NatRow, ServiceRow
from clearway.daemon.adoption import Standing
from clearway.daemon.honour import Claims
from clearway.daemon.passing import direction, interface_to, passage_of
from clearway.linux.conntrack import Tuple
from clearway.linux.picture import Picture
from clearway.linux.rtnetlink import Ip
from clearway.model.protocols import TCP, UDP
from clearway.proof import Keep, Passage, Region

NAMES = {TCP: "tcp", UDP: "udp"}


@dataclass(frozen=True)
class Claim:
    """`opens`: the connection's first packet. `leaves`: as what it may leave, one for each endpoint that may
    get it; ports that are chosen when it is opened are those of the client.
    """

    what: str  # service | nat
    bypass: bool
    opens: Tuple
    leaves: tuple[Tuple, ...]


def claim_of(asked: Tuple, claims: Claims, picture: Picture) -> Claim | None:
    """What claims a connection, either direction of which is given as its client has it; None: nothing."""
    for opens in (asked, asked.reversed):
        for row in claims.tables.services:
            if (row.address, row.port, row.protocol) == (
                opens.destination,
                opens.dport,
                NAMES.get(opens.protocol),
            ):
                leaves = tuple(_to_endpoints(opens, row, claims, picture))
                return Claim("service", row.bypass, opens, leaves)
        if nat := _nat_of(opens, claims, picture):
            return Claim("nat", nat.bypass, opens, (replace(opens, source=_source(nat, opens, picture)),))
    return None


def explain_claim(claim: Claim, standing: Standing, picture: Picture, *, carried: bool) -> FlowExplanation:
    """carried: there is a flow of it."""
    directions: list[DirectionView] = []
    keep: Keep | None = None
    kept_by = 0
    for leaves in claim.leaves:
        there = passage_of(claim.opens, leaves, picture)
        back = passage_of(leaves.reversed, claim.opens.reversed, picture)
        kept = (
            _keep(claim, standing, there, Region.FIRST, Region.LATER),
            _keep(claim, standing, back, Region.LATER),
        )
        kept_by += any(kept)
        if not directions or (keep is None and any(kept)):
            directions = [
                direction("original", claim.opens, leaves, there, kept[0], flows=carried),
                direction("reply", leaves.reversed, claim.opens.reversed, back, kept[1], flows=carried),
            ]
            keep = kept[0] or kept[1]
    does = "balances" if claim.what == "service" else "translates"
    if claim.bypass:
        why = f"the {claim.what} has `netfilter: bypass`: Linux' rules are not asked"
    elif not standing.claimed:
        why = f"not yet known: {standing.why}"
    elif keep is not None:
        some = "" if len(claim.leaves) == kept_by else f", with {kept_by} of {len(claim.leaves)} endpoints"
        why = f"Linux {does} it, if its rules let it pass{some}: {keep.why}"
    elif claim.opens.source.version in standing.asked:
        why = f"clearway {does} it, and Linux' rules let it pass"
    else:
        why = f"clearway {does} it, and there are no rules of Linux on its way"
    return FlowExplanation(
        owner="clearway" if carried or keep is None else "linux",
        carried=carried,
        can_be=keep is None,
        why=why,
        directions=directions,
    )


def _keep(claim: Claim, standing: Standing, passage: Passage, *regions: Region) -> Keep | None:
    if claim.bypass:
        return None
    found = (standing.claimed[region].why_kept(passage) for region in regions if region in standing.claimed)
    return next((keep for keep in found if keep is not None), None)


def _to_endpoints(opens: Tuple, row: ServiceRow, claims: Claims, picture: Picture) -> Iterator[Tuple]:
    for endpoint in claims.tables.endpoints:
        if endpoint.service != row.id or endpoint.draining:
            continue
        source = opens.source
        if row.mode == "full-nat":
            source = (
                _address_of(interface_to(endpoint.address, picture), opens.source.version, picture) or source
            )
        yield replace(opens, source=source, destination=endpoint.address, dport=endpoint.port)


def _nat_of(opens: Tuple, claims: Claims, picture: Picture) -> NatRow | None:
    rows = [row for row in claims.tables.nats if opens.source in row.source]
    if not rows:
        return None
    outside = interface_to(opens.destination, picture)
    there = [
        row for row in rows if row.ifindex in picture.links and picture.links[row.ifindex].name == outside
    ]
    return max(there, key=lambda row: row.source.prefixlen, default=None)


def _source(nat: NatRow, opens: Tuple, picture: Picture) -> Ip:
    if nat.pool is not None:
        return nat.pool.first
    return _address_of(picture.links[nat.ifindex].name, opens.source.version, picture) or opens.source


def _address_of(interface: str | None, family: int, picture: Picture) -> Ip | None:
    """The first address of a device that is not of its link alone."""
    for (ifindex, ip), _address in picture.addresses.items():
        link = picture.links.get(ifindex)
        if link is not None and link.name == interface and ip.version == family and not ip.is_link_local:
            return ip
    return None
