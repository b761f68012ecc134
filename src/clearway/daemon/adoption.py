# SPDX-License-Identifier: Apache-2.0
"""Keeps true under what connections of Linux may be carried: reads its rules when they have changed, proves
what they mean for established connections (clearway.proof), and tells the data path.

The data path sees by itself that rules have changed, and leaves everything to Linux until it is told of the
new ones (bpf/adopt.h, struct trust). So nothing here is urgent but for speed; a thread of its own does it.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import structlog

from clearway.daemon.accounts import Rules
from clearway.daemon.grace import wait_for_readers
from clearway.datapath import Datapath, DatapathError
from clearway.linux import nftables, traffic_control
from clearway.linux.libnftables import NftablesError
from clearway.linux.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, Listener, NetlinkError
from clearway.linux.packet_sockets import PacketSocket, packet_sockets
from clearway.linux.rtnetlink import Link
from clearway.linux.ruleset import legacy_tables, read_ruleset
from clearway.proof import Keep, Obstacle, Proof, Sources, View, classifiers, prove

log = structlog.get_logger()

LOOK_EVERY = 0.1
"""Seconds; packet sockets and tables of iptables-legacy are announced by nobody."""
AGAIN_EVERY = 1.0
"""Seconds until rules that could not be read are tried again."""
PLACES = 16
"""The first place of classifiers that keep packets in Linux (KEEP_PLACES of bpf/types.h)."""
FAMILIES = (4, 6)
REFUSALS = (DatapathError, NetlinkError, NftablesError, OSError)

Links = Mapping[int, Link]


@dataclass(frozen=True)
class Basis:
    """What a proof depends on. `generation`: of nftables. `above`: devices on top of others."""

    generation: int
    legacy: frozenset[int]
    obstacles: tuple[Obstacle, ...]
    above: tuple[tuple[str, frozenset[str]], ...]


@dataclass(frozen=True)
class Standing:
    """Under what connections are adopted. `why`: why none is, if so. `seconds`: what reading and proving
    took.
    """

    basis: Basis | None = None
    proof: Proof | None = None
    keeps: tuple[Keep, ...] = ()
    why: str = "Linux' rules have not been read yet"
    seconds: float = 0.0


class Adoption:
    """Watches and proves in a thread of its own, from start() to stop()."""

    def __init__(
        self,
        datapath: Datapath,
        links: Callable[[], Links],
        ours: Callable[[], frozenset[int]],
        listened: Callable[[frozenset[PacketSocket]], None],
        shaped: Callable[[frozenset[int]], None],
        known: Callable[[Mapping[int, str]], None],
        changed: Callable[[str], None],
        proved: Callable[[Rules], None],
    ) -> None:
        """links: every device. ours: ifindexes of clearway's interfaces. listened: is called with the packet
        sockets when they have changed. shaped: with the interfaces of which tc looks at what leaves.
        known: with the names of the devices that were known when the data path was told of rules.
        changed: when flows have to be asked about again. proved: with the rules that packets are carried
        around from when it returns on; until then none is.
        """
        self.datapath = datapath
        self.standing = Standing()
        self.sockets: frozenset[PacketSocket] = frozenset()
        self._links, self._ours = links, ours
        self._listened, self._shaped, self._known = listened, shaped, known
        self._changed, self._proved = changed, proved
        self._other = False  # which of the two sets of classifiers is in force
        self._names: Mapping[int, str] = {}  # of devices that the classifiers in force know
        self._control = traffic_control.TrafficControl()
        self._controlled: frozenset[int] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adoption", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread uses the data path no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    # ---- the loop ----

    def _run(self) -> None:
        complained = ""
        with ExitStack() as opened:
            rules = Listener(NETLINK_NETFILTER, (nftables.NFNLGRP_NFTABLES,))
            opened.callback(rules.close)
            control = Listener(NETLINK_ROUTE, (traffic_control.RTNLGRP_TC,))
            opened.callback(control.close)
            while not self._stop.is_set():
                try:
                    if control.drain():
                        self._controlled = None
                    rules.drain()
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
                select.select([rules, control], [], [], LOOK_EVERY)

    def _look(self) -> None:
        sockets = packet_sockets()
        if sockets != self.sockets:
            self.sockets = sockets
            self._listened(sockets)
        links = self._links()
        basis = Basis(nftables.generation(), legacy_tables(), self._obstacles(links), _above(links))
        standing = self.standing
        if basis != standing.basis:
            self._prove(basis, links)
        elif standing.proof and self._names != _names(links):
            self._put(standing.proof, basis.generation, links)

    # ---- proving ----

    def _prove(self, basis: Basis, links: Links) -> None:
        begin = time.monotonic()
        trusted, what = self.datapath.trust()
        if what and trusted == basis.generation:  # nothing tells the data path that this holds no more
            self.datapath.set_trust(trusted, 0)
            self._changed("what Linux' rules depend on has changed")
        ruleset = read_ruleset()
        if ruleset is None or ruleset.generation != basis.generation:
            return  # once more, with what is there by then
        sources = Sources(ruleset.nft, ruleset.saves, ruleset.legacy, basis.obstacles, dict(basis.above))
        proof = prove(sources)
        self._proved(Rules.of(ruleset, proof))
        keeps = self._put(proof, basis.generation, links)
        seconds = time.monotonic() - begin
        self.standing = Standing(basis, proof, keeps, "", seconds)
        log.info(
            "Linux' rules are read",
            generation=basis.generation,
            rules=len(proof.rules),
            keeping=sum(rule.keeps for rule in proof.rules),
            seconds=round(seconds, 3),
        )

    def _put(self, proof: Proof, generation: int, links: Links) -> tuple[Keep, ...]:
        """Tells the data path. What it did until then goes on to hold for packets that are under way."""
        names = _names(links)
        compiled = classifiers(proof, {name: ifindex for ifindex, name in names.items()})
        trusted, views = self.datapath.enum("trusted"), self.datapath.enum("view")
        other = not self._other
        for view in View:
            for family in FAMILIES:
                place = PLACES | other << 3 | views[f"VIEW_{view.name}"] << 1 | (family == 6)
                if classifier := compiled.classifiers.get((view, family)):
                    self.datapath.put_classifier(place, classifier.lines)
                else:
                    self.datapath.drop_classifier(place)
        what = sum(trusted[f"TRUST_IPV{family}"] for family in proof.tracks)
        what |= sum(trusted[f"TRUST_NAT_IPV{family}"] for family in proof.translates)
        what |= trusted["TRUST_OTHER"] * other | trusted["TRUST_UNMARKED"] * proof.requires_unmarked
        self.datapath.be_lenient()
        self.datapath.set_trust(generation, what)
        wait_for_readers()
        self._other, self._names = other, names
        self._known(names)
        return compiled.keeps

    # ---- what else stands in the way ----

    def _obstacles(self, links: Links) -> tuple[Obstacle, ...]:
        ours = self._ours()
        if self._controlled != ours:
            self._control = traffic_control.traffic_control(ours)
            self._controlled = ours
            self._shaped(self._control.egress)
        found = []
        for ifindex in sorted(ours & links.keys()):
            link = links[ifindex]
            if ifindex in self._control.ingress:
                found.append(
                    Obstacle(None, link.name, None, f"tc has filters for what comes in by {link.name}")
                )
            if link.master in links:
                bridge = links[link.master].name
                why = f"{link.name} is a port of {bridge}: rules see {bridge}, and it may pass frames by"
                found.append(Obstacle(None, link.name, None, why))
        return tuple(found)


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
