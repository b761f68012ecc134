# SPDX-License-Identifier: Apache-2.0
"""Keeps true under what connections of Linux may be carried, and what Linux' rules say of clearway's own:
reads them when they have changed, proves what they mean (clearway.proof), and tells the data path.

The data path sees by itself that rules have changed, and leaves everything to Linux until it is told of the
new ones (bpf/adopt.h, struct trust). So nothing here is urgent but for speed; a thread of its own does it.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field, replace
from itertools import product

import structlog

from clearway.daemon.accounts import Rules
from clearway.daemon.grace import wait_for_readers
from clearway.daemon.honour import Claims, LinuxTable, Wanted
from clearway.daemon.obstacles import Obstacles, about_policy
from clearway.datapath import Datapath, DatapathError, features
from clearway.datapath.tables import Array
from clearway.linux import conntrack, nftables, traffic_control, xfrm
from clearway.linux.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, Listener, NetlinkError
from clearway.linux.nft import NftablesError
from clearway.linux.packet_sockets import PacketSocket, packet_sockets
from clearway.linux.rtnetlink import Link
from clearway.linux.ruleset import filtered_on_bridges, legacy_tables, read_ruleset
from clearway.linux.xfrm import Policy
from clearway.proof import (
    Compiled,
    Keep,
    Mangle,
    Obstacle,
    Proof,
    Region,
    Rulings,
    Sources,
    View,
    classifiers,
    prove,
    prove_claimed,
)

log = structlog.get_logger()

LOOK_EVERY = 0.1
"""Seconds; packet sockets and tables of iptables-legacy are announced by nobody."""
AGAIN_EVERY = 1.0
"""Seconds until rules that could not be read are tried again."""
PLACES = {Region.CARRIED: 16, Region.FIRST: 32, Region.LATER: 48}
"""The first place of classifiers that keep packets in Linux (KEEP_PLACES, FIRST_PLACES, LATER_PLACES of
bpf/types.h).
"""
MANGLE_PLACES, MARK_PLACES = 64, 80
"""Likewise, of those that tell what rules change in packets, and which marks these have."""
LINGER = 5.0
"""Seconds from one look for connections that need clearway's own table to the next."""
FAMILIES = (4, 6)
REFUSALS = (DatapathError, NetlinkError, NftablesError, OSError)

Links = Mapping[int, Link]


@dataclass(frozen=True)
class Basis:
    """What a proof depends on. `generation`: of nftables. `policies`: of IPsec. `above`: devices on top of
    others. `filtering`: by family, bridges whose frames meet rules on their way in. `claims`: something is
    configured that honours rules.
    """

    generation: int
    legacy: frozenset[int]
    policies: tuple[Policy, ...]
    obstacles: tuple[Obstacle, ...]
    above: tuple[tuple[str, frozenset[str]], ...]
    filtering: tuple[tuple[int, frozenset[str]], ...]
    claims: bool


@dataclass(frozen=True)
class Standing:
    """Under what connections are adopted. `claimed`: what rules keep of that which clearway's own
    configuration claims, if that honours them. `why`: why nothing is known, if so. `seconds`: what reading
    and proving took.
    """

    basis: Basis | None = None
    proof: Proof | None = None
    claimed: Mapping[Region, Rulings] = field(default_factory=dict)
    keeps: tuple[Keep, ...] = ()
    why: str = "Linux' rules have not been read yet"
    seconds: float = 0.0

    @property
    def asked(self) -> frozenset[int]:
        """Families in which rules are asked about what is claimed."""
        return frozenset(family for rulings in self.claimed.values() for family in rulings.asked)


class Adoption:
    """Watches and proves in a thread of its own, from start() to stop()."""

    def __init__(
        self,
        datapath: Datapath,
        nft_table: str,
        links: Callable[[], Links],
        ours: Callable[[], frozenset[int]],
        listened: Callable[[frozenset[PacketSocket]], None],
        shaped: Callable[[frozenset[int]], None],
        known: Callable[[Mapping[int, str]], None],
        changed: Callable[[str], None],
        proved: Callable[[Rules], None],
        renamed: Callable[[], None],
    ) -> None:
        """nft_table: the name of clearway's own tables of nftables. links: every device. ours: ifindexes of
        clearway's interfaces. listened: is called with the packet sockets when they have changed. shaped:
        with the interfaces of which tc looks at what leaves. known: with the names of the devices that were
        known when the data path was told of rules. changed: when flows have to be asked about again. proved:
        with the rules that packets are carried around from when it returns on; until then none is. renamed:
        when devices have other names, before packets are carried by these.
        """
        self.datapath = datapath
        self.standing = Standing()
        self.sockets: frozenset[PacketSocket] = frozenset()
        self._links, self._listened, self._known = links, listened, known
        self._changed, self._proved, self._renamed = changed, proved, renamed
        self._adopts = features.has_adoption()
        self.claims = Claims()
        self._tables = Wanted(nft_table)
        self._table = LinuxTable(datapath, nft_table)
        self._looking = threading.Lock()
        self._linger_until = 0.0  # of time.monotonic(); 0: clearway's own table does not
        self._other = self._other_in_force()  # which of the two sets of classifiers is
        self._marked = False  # whether these have to be asked about marks
        self._names: Mapping[int, str] = {}  # of devices that the classifiers in force know
        self._rows: tuple[Mangle, ...] = ()
        self._policies: tuple[Policy, ...] | None = ()  # None: to be read
        self._obstacles = Obstacles(datapath, ours, shaped)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adoption", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def prepare(self, claims: Claims) -> None:
        """What is to be claimed from a moment on: afterwards rules are known for it, and Linux can take its
        part. DatapathError when there are rules and that cannot be.
        """
        with self._looking:
            before, self.claims = self.claims, claims
            self.datapath.honour_rules()
            try:
                self._look()
            except (NetlinkError, NftablesError) as error:
                if claims.honours:
                    self.claims = before
                    raise DatapathError(
                        f"Linux' rules cannot be honoured: {error} (`netfilter: bypass` does without)"
                    ) from error

    def stop(self) -> None:
        """Returns when the thread uses the data path no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def honoured(self) -> str:
        """What Linux' rules are to services and NAT, in a sentence; "" when none of these honours them."""
        standing = self.standing
        if not self.claims.honours:
            return ""
        if not standing.claimed:
            return f"what Linux' rules say of services and NAT is not known: {standing.why}"
        if not standing.asked:
            return "no rule of Linux is on the way of services and NAT"
        families = " and ".join(f"IPv{family}" for family in sorted(standing.asked))
        return f"Linux' rules decide about services and NAT over {families}; what they keep Linux carries"

    # ---- the loop ----

    def _run(self) -> None:
        complained = ""
        with ExitStack() as opened:
            rules = Listener(NETLINK_NETFILTER, (nftables.NFNLGRP_NFTABLES,))
            opened.callback(rules.close)
            control = Listener(NETLINK_ROUTE, (traffic_control.RTNLGRP_TC,))
            opened.callback(control.close)
            secured = []
            if xfrm.supported():
                secured = [Listener(xfrm.NETLINK_XFRM, (xfrm.XFRMNLGRP_POLICY,))]
                opened.callback(secured[0].close)
                self._policies = None
            while not self._stop.is_set():
                try:
                    if control.drain():
                        self._obstacles.look_again()
                    rules.drain()
                    if any(one.drain() for one in secured):
                        self._policies = None
                    with self._looking:
                        self._look()
                    complained = ""
                except Exception as error:  # a ruleset that nobody has thought of must not end the thread
                    expected = isinstance(error, REFUSALS)
                    why = str(error) if expected else f"a bug in clearway: {error!r}"
                    self.standing = Standing(why=why)
                    if why != complained:
                        log.error("connections of Linux are not adopted", why=why, exc_info=not expected)
                    complained = why
                    self._stop.wait(AGAIN_EVERY)
                select.select([rules, control, *secured], [], [], LOOK_EVERY)

    def _look(self) -> None:
        sockets = packet_sockets()
        if sockets != self.sockets:
            self.sockets = sockets
            self._listened(sockets)
        links = self._links()
        if self._policies is None:
            self._policies = xfrm.policies()
        basis = Basis(
            nftables.generation(),
            legacy_tables(),
            self._policies,
            self._obstacles.of(links),
            _above(links),
            _filtering(links),
            self.claims.honours,
        )
        if basis != self.standing.basis:
            self._prove(basis, links)
        elif self._names != (names := _names(links)):
            if any(names.get(ifindex, name) != name for ifindex, name in self._names.items()):
                self._renamed()
            self._put(basis, links)
        if basis == self.standing.basis:
            self._bring(basis, links)

    # ---- proving ----

    def _prove(self, basis: Basis, links: Links) -> None:
        begin = time.monotonic()
        self._table.look()
        trusted, what = self.datapath.trust()
        left = what & self._of_claimed()
        if (
            what != left and trusted == basis.generation
        ):  # nothing tells the data path that this holds no more
            known = len(self.standing.basis.policies) if self.standing.basis else 0
            self.standing = replace(self.standing, basis=None, why="Linux' rules are being read")
            self.datapath.set_trust(trusted, left, known)
            self._changed("what Linux' rules depend on has changed")
        ruleset = read_ruleset(self._table.name, dict(basis.filtering))
        if ruleset is None or ruleset.generation != basis.generation:
            return  # once more, with what is there by then
        sources = Sources(
            ruleset.nft,
            ruleset.saves,
            ruleset.legacy,
            (*basis.obstacles, *map(about_policy, basis.policies)),
            dict(basis.above),
            ruleset.filtering,
            frozenset(FAMILIES if basis.claims or self._table.made else ()),
        )
        proof = prove(sources)
        regions = (Region.FIRST, Region.LATER) if basis.claims else ()
        standing = Standing(basis, proof, {region: prove_claimed(proof, region) for region in regions})
        self._proved(Rules.of(ruleset, proof))
        self.standing = replace(standing, why="")
        keeps = self._put(basis, links)
        seconds = time.monotonic() - begin
        self.standing = replace(self.standing, keeps=keeps, seconds=seconds)
        log.info(
            "Linux' rules are read",
            generation=basis.generation,
            rules=len(proof.rules),
            keeping=sum(rule.keeps for rule in proof.rules),
            seconds=round(seconds, 3),
        )

    def _bring(self, basis: Basis, links: Links) -> None:
        """What rules may keep of what is claimed, Linux can do by itself."""
        standing = self.standing
        families = standing.asked | self._lingering(standing.asked)
        wanted = self._tables.of(self.claims, _names(links), families)
        made = self._table.bring(wanted, basis.generation)
        if made is None or made == basis.generation or standing.proof is None:
            return  # others have changed it as well: once more
        what = self._what(standing.proof) | self._of_set(other=self._other)
        self.datapath.set_trust(made, what, len(basis.policies))
        self.standing = replace(standing, basis=replace(basis, generation=made))

    def _lingering(self, asked: frozenset[int]) -> frozenset[int]:
        """Families without rules by now, whose table stays for the connections that Linux carries by it."""
        families = frozenset(self._table.made) - asked
        if families and time.monotonic() >= self._linger_until:
            translating = conntrack.translates()
            self._linger_until = time.monotonic() + LINGER if translating else 0.0
        return families if self._linger_until else frozenset()

    def _put(self, basis: Basis, links: Links) -> tuple[Keep, ...]:
        """Tells the data path. What it did until then goes on to hold for packets that are under way."""
        proof, names = self.standing.proof, _names(links)
        if proof is None:
            return ()
        other = not self._other
        compiled = self._put_region(Region.CARRIED, proof, other, names)
        self._put_rows(compiled.rows)
        self._marked = compiled.speaks_of_marks
        for region, rulings in self.standing.claimed.items():
            self._put_region(region, rulings, other, names)
        if self._adopts:
            self.datapath.be_lenient()
        what = self._what(proof) | self._of_set(other=other)
        self.datapath.set_trust(basis.generation, what, len(basis.policies))
        wait_for_readers()
        self._other, self._names = other, names
        self._known(names)
        return compiled.keeps

    def _what(self, proof: Proof) -> int:
        """Bits of enum trusted."""
        trusted, ours = self.datapath.enum("trusted"), frozenset(self._table.made)
        words = ["TRUST_HONOUR"] if self.standing.claimed else []
        words += [f"TRUST_ASK_IPV{family}" for family in self.standing.asked]
        if self._adopts:
            words += [f"TRUST_IPV{family}" for family in proof.tracks | ours]
            words += [f"TRUST_NAT_IPV{family}" for family in proof.translates | ours]
            words += ["TRUST_MARKED"] if self._marked else []
        return sum(trusted[word] for word in words)

    def _other_in_force(self) -> bool:
        """By the daemon before this one, perhaps."""
        return bool(self.datapath.trust()[1] & self._of_set(other=True))

    def _of_set(self, *, other: bool) -> int:
        return self.datapath.enum("trusted")["TRUST_OTHER"] * other

    def _of_claimed(self) -> int:
        """Bits of enum trusted that depend on nothing but rules."""
        trusted = self.datapath.enum("trusted")
        return sum(trusted[f"TRUST_{name}"] for name in ("HONOUR", "ASK_IPV4", "ASK_IPV6", "OTHER"))

    def _put_region(
        self, region: Region, rulings: Rulings, other: bool, names: Mapping[int, str]
    ) -> Compiled:
        compiled = classifiers(rulings, {name: ifindex for ifindex, name in names.items()})
        put_compiled(self.datapath, region, compiled, other)
        return compiled

    def _put_rows(self, rows: tuple[Mangle, ...]) -> None:
        """Exchanged only when the rules are: then no flow counts that names them, and its packets that are
        under way are waited for.
        """
        if rows == self._rows:
            return
        wait_for_readers()
        self.datapath.put_mangles([astuple(row) for row in rows])
        self._rows = rows


def put_compiled(datapath: Datapath, region: Region, compiled: Compiled, other: bool) -> None:
    """Tells the data path what is kept in Linux and, of what is adopted, what changes in packets and which
    marks they have. other: which of two sets this is from now on; the one that is not in force.
    """
    views = datapath.enum("view")
    first = PLACES[region]
    wanted = {(first, views["VIEW_BACK"], family): compiled.backs.get(family) for family in FAMILIES}
    for view, family in product(View, FAMILIES):
        number = views[f"VIEW_{view.name}"]
        wanted[first, number, family] = compiled.classifiers.get((view, family))
        if region is Region.CARRIED:
            wanted[MANGLE_PLACES, number, family] = compiled.mangles.get((view, family))
    if region is Region.CARRIED:
        for where, telling in enumerate((compiled.routed, compiled.left)):
            for family, told in telling.items():
                wanted[MARK_PLACES, where, family] = told.classifier
        datapath.set_marking(other, lambda row: _write_marking(row, compiled, views))
    for (start, number, family), classifier in wanted.items():
        place = start | other << 3 | number << 1 | (family == 6)
        if classifier is None:
            datapath.classifiers.drop(place)
        else:
            datapath.classifiers.put(place, classifier.lines)


def _write_marking(row: Array, compiled: Compiled, views: Mapping[str, int]) -> None:
    """Into struct marking, a row of zeros."""
    parts = enumerate(compiled.classes.parts)
    tests = [(mask, value, number) for number, part in parts for mask, value in part.cubes]
    row["tests"] = len(tests)
    row["test"][: len(tests)] = tests
    for where, telling in enumerate((compiled.routed, compiled.left)):
        for family, told in telling.items():
            mine = row["told"][2 * (family == 6) + where]
            mine["asked"], mine["view"] = told.classifier is not None, views[f"VIEW_{told.view.name}"]
            mine["made"][: len(told.marks)] = [(mark.connection, mark.toggle) for mark in told.marks]


def _names(links: Links) -> dict[int, str]:
    return {link.ifindex: link.name for link in links.values()}


def _above(links: Links) -> tuple[tuple[str, frozenset[str]], ...]:
    """For each device that has some on top of it, those: VLAN devices, and what it is a port of."""
    found: dict[str, set[str]] = {}
    for link in links.values():
        for lower, upper in ((link.lower, link), (link.ifindex, links.get(link.master))):
            if lower in links and upper is not None:
                found.setdefault(links[lower].name, set()).add(upper.name)
    return tuple(sorted((name, frozenset(names)) for name, names in found.items()))


def _filtering(links: Links) -> tuple[tuple[int, frozenset[str]], ...]:
    """By family, the bridges that apply its rules to their frames, as all of them do or by themselves."""
    every = filtered_on_bridges()
    bridges = [link for link in links.values() if link.kind == "bridge"]
    return tuple(
        (family, frozenset(link.name for link in bridges if family in every | link.filters))
        for family in FAMILIES
    )
