# SPDX-License-Identifier: Apache-2.0
"""Random rulesets in three forms: nft's JSON, iptables-save's text, and rules that are followed one by one.

The latter share nothing with clearway.proof: conditions are predicates on packets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from itertools import product
from random import Random
from typing import Any

from clearway.proof import Passage, Region, Sources
from clearway.proof.result import Tuple

TCP, UDP = 6, 17
PREROUTING, FORWARD, POSTROUTING = range(3)
HOOKS = ("prerouting", "forward", "postrouting")
INTERFACES = {"lan0": 2, "lan1": 3, "wan": 4}
MARK_MAX = 0xFFFF_FFFF


@dataclass(frozen=True)
class Packet:
    """As a chain sees it. `state`: conntrack's, once it has looked. `luck`: how conditions turn out that no
    packet shows; `back`: how a route leads to the sender.
    """

    seen: Tuple
    protocol: int
    inside: str
    outside: str
    hook: int
    flags: int
    dscp: int
    ttl: int
    tracked: bool
    luck: bool
    back: int
    state: str = "established"
    mark: int = 0
    connmark: int = 0


@dataclass(frozen=True)
class Condition:
    """`nft`: statements of JSON; `iptables`: None where it has none. `spoils`: asking changes something."""

    nft: Sequence[Any]
    iptables: str | None
    meets: Callable[[Packet], bool]
    spoils: bool = False


def match(left: Any, right: Any, operator: str = "==") -> list[Any]:
    return [{"match": {"op": operator, "left": left, "right": right}}]


def payload(protocol: str, name: str) -> Any:
    return {"payload": {"protocol": protocol, "field": name}}


def prefix(text: str) -> Any:
    address, _slash, length = text.partition("/")
    return {"prefix": {"addr": address, "len": int(length)}}


def meta(key: str) -> Any:
    return {"meta": {"key": key}}


def _in(network: str, place: int) -> Callable[[Packet], bool]:
    return lambda packet: packet.seen[place] in ip_network(network)


def _port(protocol: int, place: int, first: int, last: int) -> Callable[[Packet], bool]:
    return lambda one: one.protocol == protocol and first <= int(str(one.seen[place])) <= last


def only(key: Any, *values: Any) -> list[Any]:
    """A verdict map that goes on in the rule for these values, and for no others."""
    return [{"vmap": {"key": key, "data": {"set": [[value, {"continue": None}] for value in values]}}}]


SADDR, DADDR, STATE = payload("ip", "saddr"), payload("ip", "daddr"), {"ct": {"key": "state"}}
EXACT = (
    Condition([], "", lambda _one: True),
    Condition(match(SADDR, prefix("10.1.0.0/16")), "-s 10.1.0.0/16", _in("10.1.0.0/16", 0)),
    Condition(
        match(SADDR, prefix("10.1.0.0/24"), "!="),
        "! -s 10.1.0.0/24",
        lambda one: not _in("10.1.0.0/24", 0)(one),
    ),
    Condition(match(DADDR, "192.0.2.1"), "-d 192.0.2.1/32", _in("192.0.2.1/32", 2)),
    Condition(match(DADDR, "@hosts"), None, lambda one: str(one.seen[2]) in {"192.0.2.1", "203.0.113.9"}),
    Condition(match(payload("tcp", "dport"), 443), "-p tcp -m tcp --dport 443", _port(TCP, 3, 443, 443)),
    Condition(
        match(payload("udp", "sport"), {"range": [1000, 40000]}),
        "-p udp -m udp --sport 1000:40000",
        _port(UDP, 1, 1000, 40000),
    ),
    Condition(match(meta("l4proto"), "udp"), "-p udp", lambda one: one.protocol == UDP),
    Condition(
        match({"concat": [SADDR, payload("tcp", "dport")]}, {"set": [{"concat": ["10.1.0.5", 443]}]}),
        None,
        lambda one: str(one.seen[0]) == "10.1.0.5" and one.protocol == TCP and one.seen[3] == 443,
    ),
    Condition(
        match(STATE, ["established", "related"], "in"),
        "-m conntrack --ctstate RELATED,ESTABLISHED",
        lambda one: one.tracked and one.state == "established",
    ),
    Condition(
        match(STATE, "new", "in"),
        "-m conntrack --ctstate NEW",
        lambda one: one.tracked and one.state == "new",
    ),
    Condition(match(STATE, "invalid", "in"), "-m conntrack --ctstate INVALID", lambda one: not one.tracked),
    Condition(match({"&": [meta("mark"), 1]}, 1), "-m mark --mark 0x1/0x1", lambda one: bool(one.mark & 1)),
    Condition(match(meta("mark"), 0), "-m mark --mark 0x0", lambda one: one.mark == 0),
    Condition(
        match({"&": [meta("mark"), 6]}, 4, "!="), "-m mark ! --mark 0x4/0x6", lambda one: one.mark & 6 != 4
    ),
    Condition(
        only(payload("tcp", "dport"), 443, 53),
        None,
        lambda one: one.protocol == TCP and one.seen[3] in {443, 53},
    ),
    Condition(only(meta("mark"), 1, 4), None, lambda one: one.mark in {1, 4}),
    Condition(match({"&": [payload("ip", "frag-off"), 8191]}, 0, "!="), "-f", lambda _one: False),
    Condition(
        match({"&": [payload("tcp", "flags"), ["fin", "syn", "rst", "ack"]]}, "syn"),
        "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN",
        lambda one: one.protocol == TCP and one.flags & 0x17 == 0x02,
    ),
)
INSIDE = (
    Condition(match(meta("iifname"), "lan0"), "-i lan0", lambda one: one.inside == "lan0"),
    Condition(match(meta("iifname"), "lan0", "!="), "! -i lan0", lambda one: one.inside != "lan0"),
    Condition(match(meta("iifname"), {"set": ["lan1", "wan"]}), None, lambda one: one.inside != "lan0"),
)
NO_WAY, LOOSE, STRICT = range(3)
"""How a route leads to a packet's sender: not at all, somehow, by where the packet came in."""


def fib(*flags: str) -> Any:
    return {"fib": {"result": "oif", "flags": ["saddr", *flags]}}


def _leads(least: int) -> Callable[[Packet], bool]:
    """Behind routing rules look it up otherwise."""
    return lambda one: one.back >= least if one.hook == PREROUTING else one.luck


BACK = (
    Condition(match(fib("iif"), False), "-m rpfilter --invert", lambda one: not _leads(STRICT)(one)),
    Condition(match(fib("mark", "iif"), True), "-m rpfilter --validmark", _leads(STRICT)),
    Condition(match(fib("iif"), True, "!="), "-m rpfilter --invert", lambda one: not _leads(STRICT)(one)),
    Condition(match(fib(), False), "-m rpfilter --loose --invert", lambda one: not _leads(LOOSE)(one)),
    Condition(match(fib(), True), "-m rpfilter --loose", _leads(LOOSE)),
)
OUTSIDE = (
    Condition(match(meta("oifname"), "wan"), "-o wan", lambda one: one.hook > 0 and one.outside == "wan"),
    Condition(
        match(meta("oifname"), "wan", "!="), "! -o wan", lambda one: not one.hook or one.outside != "wan"
    ),
)
CONNMARKS = (
    Condition(
        match({"ct": {"key": "mark"}}, 5, "!="),
        "-m connmark ! --mark 0x5",
        lambda one: one.connmark != 5,
    ),
    Condition(
        match({"&": [{"ct": {"key": "mark"}}, 3]}, 1),
        "-m connmark --mark 0x1/0x3",
        lambda one: one.connmark & 3 == 1,
    ),
    Condition(match({"ct": {"key": "mark"}}, 4, ">="), None, lambda one: one.connmark >= 4),
)
"""Before conntrack they mean nothing."""
INEXACT = (
    Condition(
        match(payload("tcp", "flags"), "psh", "in"),
        "-p tcp -m tcp --tcp-flags PSH PSH",
        lambda one: one.protocol == TCP and bool(one.flags & 8),
    ),
    Condition(match(payload("ip", "dscp"), "ef"), "-m dscp --dscp 0x2e", lambda one: one.dscp == 46),
    Condition(match(payload("ip", "ttl"), 10, "<"), "-m ttl --ttl-lt 10", lambda one: one.ttl < 10),
    Condition(
        match({"ct": {"key": "status"}}, "dnat", "in"), "-m conntrack --ctstate DNAT", lambda one: one.luck
    ),
    Condition(match(meta("length"), 1000, ">"), "-m length --length 1000:65535", lambda one: one.luck),
    Condition(
        [{"limit": {"rate": 10, "burst": 5, "per": "second"}}],
        "-m limit --limit 10/sec",
        lambda one: one.luck,
        spoils=True,
    ),
)


@dataclass(frozen=True)
class Effect:
    """What a rule does: a verdict, something that spoils, or a change of type of service and TTL. `mark`,
    `connmark`: what becomes of the marks of packet and connection, by both.
    """

    nft: Any
    iptables: str | None
    verb: str = "continue"
    target: str = ""
    spoils: bool = False
    changes: Callable[[int, int], tuple[int, int]] | None = None
    mark: Callable[[int, int], int] | None = None
    connmark: Callable[[int, int], int] | None = None
    tracked: bool = False


ACCEPT, DROP = Effect({"accept": None}, "-j ACCEPT", "accept"), Effect({"drop": None}, "-j DROP", "drop")
CT_MARK = {"ct": {"key": "mark"}}


def set_mark(value: Any) -> Any:
    return {"mangle": {"key": meta("mark"), "value": value}}


def set_connmark(value: Any) -> Any:
    return {"mangle": {"key": CT_MARK, "value": value}}


MARKING = (
    Effect(
        set_mark({"&": [meta("mark"), 7]}),
        "-j MARK --set-xmark 0x0/0xfffffff8",
        mark=lambda mark, _ct: mark & 7,
    ),
    Effect(set_mark(1), "-j MARK --set-xmark 0x1/0xffffffff", mark=lambda _mark, _ct: 1),
    Effect(
        set_mark({"^": [{"&": [meta("mark"), 0xFFFFFFF9]}, 4]}),
        "-j MARK --set-xmark 0x4/0x6",
        mark=lambda mark, _ct: mark & ~6 ^ 4,
    ),
    Effect(
        set_mark({"|": [meta("mark"), 2]}), "-j MARK --set-xmark 0x2/0x2", mark=lambda mark, _ct: mark | 2
    ),
)
FROM_CONNECTION = (
    Effect(set_mark(CT_MARK), "-j CONNMARK --restore-mark", mark=lambda _mark, ct: ct, tracked=True),
    Effect(
        set_mark({"^": [{"&": [meta("mark"), 0xFFFFFFFC]}, {"&": [CT_MARK, 3]}]}),
        "-j CONNMARK --restore-mark --nfmask 0x3 --ctmask 0x3",
        mark=lambda mark, ct: mark & ~3 ^ ct & 3,
        tracked=True,
    ),
    Effect(set_mark({"|": [CT_MARK, 8]}), None, mark=lambda _mark, ct: ct | 8, tracked=True),
    Effect(
        set_connmark(meta("mark")),
        "-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff",
        connmark=lambda mark, _ct: mark,
        tracked=True,
    ),
    Effect(
        set_connmark({"^": [{"&": [CT_MARK, 0xFFFFFFFC]}, {"&": [meta("mark"), 3]}]}),
        "-j CONNMARK --save-mark --nfmask 0x3 --ctmask 0x3",
        connmark=lambda mark, ct: ct & ~3 ^ mark & 3,
        tracked=True,
    ),
    Effect(
        set_connmark(5), "-j CONNMARK --set-xmark 0x5/0xffffffff", connmark=lambda _mark, _ct: 5, tracked=True
    ),
)
"""Before conntrack they mean nothing."""
CHANGES: tuple[Effect, ...] = (
    Effect(
        {"mangle": {"key": payload("ip", "dscp"), "value": "ef"}},
        "-j DSCP --set-dscp 0x2e",
        changes=lambda tos, ttl: (46 << 2 | tos & 3, ttl),
    ),
    Effect(
        {"mangle": {"key": payload("ip", "dscp"), "value": 8}},
        "-j TOS --set-tos 0x20/0xfc",
        changes=lambda tos, ttl: (8 << 2 | tos & 3, ttl),
    ),
    Effect(
        {"mangle": {"key": payload("ip", "ttl"), "value": 33}},
        "-j TTL --ttl-set 33",
        changes=lambda tos, _ttl: (tos, 33),
    ),
)
CHANGES_OF_IPTABLES = (
    Effect(None, "-j TOS --set-tos 0x11/0x13", changes=lambda tos, ttl: ((tos & ~0x13) ^ 0x11, ttl)),
    Effect(None, "-j TTL --ttl-inc 200", changes=lambda tos, ttl: (tos, min(255, ttl + 200))),
    Effect(None, "-j TTL --ttl-dec 1", changes=lambda tos, ttl: (tos, max(0, ttl - 1))),
)
SPOILING = (
    Effect({"log": {"prefix": "x"}}, '-j LOG --log-prefix "x "', spoils=True),
    Effect({"set": {"op": "add", "elem": SADDR, "set": "@seen"}}, "-j SET --add-set seen src", spoils=True),
)
VERDICTS = (
    ACCEPT,
    ACCEPT,
    DROP,
    Effect({"reject": None}, "-j REJECT --reject-with icmp-port-unreachable", "drop"),
    Effect({"return": None}, "-j RETURN", "return"),
    Effect(None, "", "continue"),
)


def call(verb: str, target: str) -> Effect:
    return Effect({verb: {"target": target}}, f"-{'j' if verb == 'jump' else 'g'} {target}", verb, target)


@dataclass(frozen=True)
class Rule:
    handle: int
    conditions: tuple[Condition, ...]
    effects: tuple[Effect, ...]
    counts: int | None
    """Behind so many conditions."""


@dataclass
class Chain:
    name: str
    hook: int | None = None
    priority: int = 0
    drops: bool = False
    rules: list[Rule] = field(default_factory=list)


Ruleset = Mapping[str, Chain]


# ---- random ----

BASES = ((0, -300), (0, -150), (0, -10), (1, 0), (1, 50), (2, 0), (2, 150))
TABLES = {(0, -300): "raw", (0, -150): "mangle", (1, 0): "filter", (1, 50): "security"}


def random_ruleset(random: Random, *, exact: bool, iptables: bool, marks: bool = True) -> Ruleset:
    """Up to three base chains and two that are called. `exact`: each condition can be said in boxes.
    `marks`: there are rules that set some.
    """
    bases = [key for key in BASES if not iptables or key in TABLES]
    chosen = sorted(random.sample(bases, random.randint(1, 3)))
    chains = [Chain("a"), Chain("b")]
    for hook, priority in chosen:
        drops = random.random() < 0.3 and not (iptables and priority != 0)
        chains.append(Chain(f"base{hook}_{priority}".replace("-", "m"), hook, priority, drops))
    handles = iter(range(1, 1000))
    for chain in chains:
        for _ in range(random.randint(0, 5)):
            chain.rules.append(
                _random_rule(random, chain, next(handles), exact=exact, iptables=iptables, marks=marks)
            )
    return {chain.name: chain for chain in chains}


def _random_rule(
    random: Random, chain: Chain, handle: int, *, exact: bool, iptables: bool, marks: bool
) -> Rule:
    late = chain.hook is not None and (chain.hook, chain.priority) > (PREROUTING, -200)
    pool = [*EXACT, *INSIDE] if chain.hook != POSTROUTING or not iptables else [*EXACT]
    pool += [] if iptables and chain.hook == PREROUTING else OUTSIDE
    if chain.hook == PREROUTING:
        pool += BACK
    if late or not exact:
        pool += CONNMARKS
    if not exact:
        pool += (*INEXACT, *INEXACT, *BACK)
    if iptables:
        pool = [one for one in pool if one.iptables is not None]
    conditions = tuple(random.choice(pool) for _ in range(random.choice((1, 1, 2))))
    if iptables:
        conditions = conditions[:1]
    effects = list(VERDICTS)
    below = {"a": ["b"], "b": []}.get(chain.name, ["a", "b"])
    effects += [call(verb, target) for target in below for verb in ("jump", "jump", "goto")]
    said = [random.choice(effects)]
    others = (*MARKING, *(FROM_CONNECTION if late or not exact else ()), *(() if exact else SPOILING))
    if random.random() < 0.5 and (chain.hook == FORWARD or not exact):
        others = CHANGES[:1] if exact else CHANGES + CHANGES_OF_IPTABLES * iptables
    elif not marks:
        others = ()
    if others and random.random() < 0.3:
        chosen = [random.choice([one for one in others if one.iptables is not None or not iptables])]
        said = chosen if iptables else [*chosen, *random.choices(others, k=random.randint(0, 1)), *said]
    counts = random.randint(0, len(conditions)) if random.random() < 0.4 else None
    return Rule(handle, conditions, tuple(said), len(conditions) if iptables else counts)


def random_passage(random: Random, *, translated: bool = True) -> Passage:
    """One direction of a connection; half of them are translated, if some are."""
    protocol = random.choice((TCP, UDP))
    source = ip_address(random.choice(("10.1.0.5", "10.1.7.1", "10.2.0.1", "203.0.113.9")))
    destination = ip_address(random.choice(("192.0.2.1", "203.0.113.9", "10.1.0.5", "198.51.100.1")))
    ports = random.choice((53, 443, 1000, 40001)), random.choice((53, 443, 1000))
    arrives: Tuple = (source, ports[0], destination, ports[1])
    leaves = arrives
    if translated and random.random() < 0.5:
        other = ip_address(random.choice(("192.0.2.1", "10.1.0.5", "10.1.7.1")))
        leaves = (ip_address("203.0.113.9"), 1000, other, random.choice((443, 53)))
    inside, outside = random.choice(list(INTERFACES)), random.choice(list(INTERFACES))
    return Passage(4, protocol, arrives, leaves, inside, outside, random.choice((0, 0, 1, 4, 5, 13)))


# ---- forms ----


def as_nft(ruleset: Ruleset, *, translates: bool = True) -> Sources:
    where = {"family": "ip", "table": "t"}
    objects: list[Any] = [{"table": {"family": "ip", "name": "t", "handle": 1}}]
    objects.append(
        {"set": {**where, "name": "hosts", "type": "ipv4_addr", "elem": ["192.0.2.1", "203.0.113.9"]}}
    )
    objects.append({"set": {**where, "name": "seen", "type": "ipv4_addr", "size": 65535}})
    for chain in ruleset.values():
        content: dict[str, Any] = {**where, "name": chain.name}
        if chain.hook is not None:
            policy = "drop" if chain.drops else "accept"
            content |= {"type": "filter", "hook": HOOKS[chain.hook], "prio": chain.priority, "policy": policy}
        objects.append({"chain": content})
    nat = {"type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}
    objects += [{"chain": {**where, "name": "nat", **nat}}] * translates
    for chain in ruleset.values():
        for rule in chain.rules:
            expressions = list(_expressions(rule))
            objects.append(
                {"rule": {**where, "chain": chain.name, "handle": rule.handle, "expr": expressions}}
            )
    return Sources(json.dumps({"nftables": objects}))


def _expressions(rule: Rule) -> Iterator[Any]:
    for place, condition in enumerate(rule.conditions):
        if rule.counts == place:
            yield {"counter": {"packets": 0, "bytes": 0}}
        yield from condition.nft
    if rule.counts == len(rule.conditions):
        yield {"counter": {"packets": 0, "bytes": 0}}
    yield from (effect.nft for effect in rule.effects if effect.nft)


def as_iptables(ruleset: Ruleset, *, translates: bool = True) -> Sources:
    """Every table has its own copy of the chains that are called."""
    lines = ["*nat", ":POSTROUTING ACCEPT [0:0]", "COMMIT"] * translates
    called = [chain for chain in ruleset.values() if chain.hook is None]
    for chain in ruleset.values():
        if chain.hook is None:
            continue
        lines += [f"*{TABLES[chain.hook, chain.priority]}"]
        name = HOOKS[chain.hook].upper()
        lines += [
            f":{name} {'DROP' if chain.drops else 'ACCEPT'} [0:0]",
            *(f":{one.name} - [0:0]" for one in called),
        ]
        for one, title in ((chain, name), *((one, one.name) for one in called)):
            for rule in one.rules:
                [condition], [effect] = rule.conditions, rule.effects
                lines.append(" ".join(f"-A {title} {condition.iptables} {effect.iptables}".split()))
        lines.append("COMMIT")
    return Sources("", {"ip": "\n".join(lines)})


# ---- followed ----


class SpoiledError(Exception):
    """A packet has met what cannot be done without it."""


@dataclass
class Followed:
    """The way of one packet: which counters it meets, by rule and base chain; its mark, and what it was when
    it was routed.
    """

    ruleset: Ruleset
    back: int = STRICT
    claimed: bool = False
    mark: int = 0
    routed: int = 0
    counted: list[tuple[str, int]] = field(default_factory=list)
    tos: int = 0
    ttl: int = 0
    base: Chain = field(default_factory=lambda: Chain(""))

    def verdict(
        self, passage: Passage, *, flags: int, dscp: int, ttl: int, luck: bool, state: str = "established"
    ) -> str:
        bases = [chain for chain in self.ruleset.values() if chain.hook is not None]
        self.tos, self.ttl = dscp << 2 | 1, ttl
        forwarded = False
        for base in sorted(bases, key=lambda chain: (chain.hook, chain.priority)):
            assert base.hook is not None
            self.base = base
            seen = _seen(passage, base.hook, base.priority)
            tracked = base.hook != PREROUTING or base.priority > -200
            if base.hook != PREROUTING and not forwarded:
                if self.ttl < 2:
                    return "expires"
                self.ttl -= 1
                forwarded = True
            inside, outside = passage.inside, passage.outside
            fields = (base.hook, flags, self.tos >> 2, self.ttl, tracked, luck, self.back, state)
            one = Packet(seen, passage.protocol, inside, outside, *fields, connmark=passage.mark)
            verdict = self._through(base, one)
            if verdict == "drop" or (verdict != "accept" and base.drops):
                return "drop"
            if verdict != "accept":
                self.counted.append((base.name, 0))
            if base.hook == PREROUTING:
                self.routed = self.mark
        if not forwarded:
            if self.ttl < 2:
                return "expires"
            self.ttl -= 1
        return "accept" if self.ttl else "expires"

    def _through(self, chain: Chain, one: Packet) -> str:
        """ "accept", "drop", or "" for the end of the chain."""
        for rule in chain.rules:
            ended = self._rule(rule, one)
            if ended == "return":
                return ""
            if ended:
                return ended
        return ""

    def _rule(self, rule: Rule, one: Packet) -> str:
        for place, condition in enumerate(rule.conditions):
            if rule.counts == place:
                self.counted.append((self.base.name, rule.handle))
            if condition.spoils or (condition in CONNMARKS and not one.tracked):
                raise SpoiledError
            if not condition.meets(replace(one, mark=self.mark)):
                return ""
        if rule.counts == len(rule.conditions):
            self.counted.append((self.base.name, rule.handle))
        for effect in rule.effects:
            self._change(effect, one)
            if effect.verb in {"jump", "goto"}:
                ended = self._through(self.ruleset[effect.target], one)
                return ended or ("return" if effect.verb == "goto" else "")
            if effect.verb != "continue":
                return effect.verb
        return ""

    def _change(self, effect: Effect, one: Packet) -> None:
        if effect.spoils or (effect.tracked and not one.tracked):
            raise SpoiledError
        if effect.connmark and effect.connmark(self.mark, one.connmark) & MARK_MAX != one.connmark:
            raise SpoiledError
        if effect.mark:
            self.mark = effect.mark(self.mark, one.connmark) & MARK_MAX
            if self.claimed and self.mark:
                raise SpoiledError
        if effect.changes:
            self.tos, self.ttl = effect.changes(self.tos, self.ttl)


def _seen(passage: Passage, hook: int, priority: int) -> Tuple:
    if hook == PREROUTING and priority < -100:
        return passage.arrives
    if hook == POSTROUTING and priority > 100:
        return passage.leaves
    return (*passage.arrives[:2], *passage.leaves[2:])


@dataclass(frozen=True)
class Fate:
    """Of all packets of a passage: the counters that they meet, their marks where they are routed and where
    they leave, and how each leaves: type of service and TTL by those that it came with; None where it
    expires.
    """

    counted: list[tuple[str, int]]
    routed: int
    left: int
    leaves: Mapping[tuple[int, int], tuple[int, int] | None]


def followed(ruleset: Ruleset, passage: Passage, back: int = STRICT) -> Fate | None:
    """None when Linux has to have it: some packet is dropped, meets what cannot be done without it, or meets
    other counters than the rest, or has another mark. `back`: how a route leads to who sends them.
    """
    found: list[tuple[list[tuple[str, int]], int, int]] = []
    leaves: dict[tuple[int, int], tuple[int, int] | None] = {}
    for flags, dscp, ttl, luck in product((0x10, 0x18, 0x30), (0, 46), (2, 64), (False, True)):
        way = Followed(ruleset, back)
        try:
            verdict = way.verdict(passage, flags=flags, dscp=dscp, ttl=ttl, luck=luck)
        except SpoiledError:
            return None
        if verdict == "drop":
            return None
        left = (way.tos, way.ttl) if verdict == "accept" else None
        if leaves.setdefault((dscp << 2 | 1, ttl), left) != left:
            return None
        if left:
            found.append((way.counted, way.routed, way.mark))
    if any(one != found[0] for one in found):
        return None
    return Fate(*(found[0] if found else ([], 0, 0)), leaves)


FLAGS = {Region.FIRST: (0x02, 0x0A, 0xC2), Region.LATER: (0x10, 0x18, 0x11, 0x04, 0x14, 0x12, 0x02)}


def accepted(ruleset: Ruleset, passage: Passage, region: Region) -> bool:
    """Whether Linux lets every such packet pass and changes none, and gives none a mark."""
    state = "new" if region is Region.FIRST else "established"
    passage = replace(passage, mark=0)
    flags_of = FLAGS[region] if passage.protocol == TCP else (0,)
    for flags, dscp, ttl, luck, back in product(flags_of, (0, 46), (2, 64), (False, True), (NO_WAY, STRICT)):
        try:
            way = Followed(ruleset, back, claimed=True)
            verdict = way.verdict(passage, flags=flags, dscp=dscp, ttl=ttl, luck=luck, state=state)
        except SpoiledError:
            return False
        if verdict != "accept" or (way.tos, way.ttl) != (dscp << 2 | 1, ttl - 1):
            return False
    return True
