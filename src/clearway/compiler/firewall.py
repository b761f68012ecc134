# SPDX-License-Identifier: Apache-2.0
"""From firewall rules to what the data path asks: a classifier for each family, and what each rule does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice

from clearway.model import Config, Firewall, FirewallRule, IPNetwork, PortRange, Problem, SetName
from clearway.model.protocols import ICMP, ICMPV6, TYPES_OF

from .allocate import NoRoomError, assign_ids
from .classifier import Classifier, Condition, Sets, TooBigError, compile_classifier
from .tables import FirewallTables, Place, RuleRow

FAMILIES = (4, 6)
NAMED, TOLD = 4, 20
"""Rules that a sentence names, and such that there are sentences about."""
NEVER = Condition(protocols=())
"""What no packet meets."""
ICMP_OF = {4: ICMP, 6: ICMPV6}
LOCAL_OF = {"any": None, "through": False, "local": True}


def identity_of(name: str) -> int:
    """The number that stands for a rule's name in the data path; that of "" for the default."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def compile_firewall(
    config: Config, interfaces: Mapping[str, int], before: FirewallTables | None, limit: int, next_rule: int
) -> tuple[FirewallTables | None, int]:
    """The tables of a configuration's firewall, and the counter from which on one is looked for that is free.

    Raises ConfigError when the rules are more than a classifier can have.
    """
    firewall = config.firewall
    if firewall is None:
        return None, next_rule
    named = {name: interfaces[name] for name in sorted(_named(firewall)) if name in interfaces}
    if before is not None and before.source == (firewall, named):
        return before, next_rule
    actions = [(rule.name, rule.action, rule.log) for rule in firewall.rules]
    actions.append(("", firewall.default, False))
    wanted = [identity_of(name) for name, _action, _log in actions]
    counters, following = _counters(wanted, before.counters if before else {}, limit + 1, next_rule)
    rows = tuple(
        RuleRow(identity, counters[identity], action, log)
        for identity, (_name, action, log) in zip(wanted, actions, strict=True)
    )
    try:
        classifiers = compile_rules(firewall, named, [row.word for row in rows[:-1]])
    except TooBigError as error:
        raise config.origin.error([Problem(("firewall", "rules"), str(error), "use fewer rules")]) from None
    after = any(rule.after_translation for rule in firewall.rules)
    return FirewallTables(_digest(classifiers), rows, after, classifiers, (firewall, named)), following


def compile_rules(
    firewall: Firewall, interfaces: Mapping[str, int], told: Sequence[int]
) -> dict[Place, Classifier]:
    """A classifier for each place. Rules have the same numbers in all of them, those that are not for one are
    left out of it. told: what each does (RuleRow.word).
    """
    sets = _sets(firewall)
    asked = {4: [condition_of(rule, firewall, interfaces, 4) for rule in firewall.rules]}
    # families differ in what ICMP is
    asked[6] = [
        condition_of(rule, firewall, interfaces, 6) if rule.icmp_types else condition
        for rule, condition in zip(firewall.rules, asked[4], strict=True)
    ]
    kinds = [rule.after_translation for rule in firewall.rules]
    return {
        (after, family): compile_classifier(
            [
                condition if kind == after else NEVER
                for kind, condition in zip(kinds, asked[family], strict=True)
            ],
            sets,
            family,
            told,
        )
        for after in sorted({False, *kinds})
        for family in FAMILIES
    }


def never_reached(tables: FirewallTables) -> Iterator[str]:
    """A sentence for each rule that no packet meets first, because rules before it do; a few of many."""
    if tables.classifiers is None or tables.source is None:
        return
    firewall, _interfaces = tables.source
    shadowed = [one.shadowed for one in tables.classifiers.values()]
    nowhere = {
        number: before
        for number in sorted(set.intersection(*(set(one) for one in shadowed)))
        if (before := sorted({earlier for one in shadowed for earlier in one[number]}))  # no empty list
    }
    for number, before in islice(nowhere.items(), TOLD):
        names = ", ".join(firewall.rules[earlier].name for earlier in before[:NAMED])
        names += ", ..." if len(before) > NAMED else ""
        many, verb = ("rules", "decide") if len(before) > 1 else ("rule", "decides")
        yield (
            f"firewall: rule {firewall.rules[number].name} is never reached:"
            f" {many} {names} before it {verb} about all that it asks for"
        )
    if len(nowhere) > TOLD:
        yield f"firewall: {len(nowhere) - TOLD:,} more rules are never reached"


def condition_of(
    rule: FirewallRule, firewall: Firewall, interfaces: Mapping[str, int], family: int
) -> Condition:
    """What a rule asks of packets of one family."""
    return Condition(
        source=_addresses(rule.source, firewall),
        destination=_addresses(rule.destination, firewall),
        sport=_ports(rule.source_ports, firewall),
        dport=_types(rule, family) if rule.icmp_types else _ports(rule.destination_ports, firewall),
        protocols=(ICMP_OF[family],) if rule.icmp_types else rule.protocol,
        dscp=rule.dscp,
        tcp_flags=None if rule.tcp_flags is None else (rule.tcp_flags.mask, rule.tcp_flags.set),
        local=LOCAL_OF[rule.direction],
        interfaces_in=_indexes(rule.interface_in, interfaces),
        interfaces_out=_indexes(rule.interface_out, interfaces),
        vlans=rule.vlan,
    )


def _named(firewall: Firewall) -> set[str]:
    return {
        name
        for rule in firewall.rules
        for names in (rule.interface_in, rule.interface_out)
        for name in names or ()
    }


def _sets(firewall: Firewall) -> Sets:
    """Sets by name; an empty one may be of either kind."""
    return Sets(
        {name: firewall.prefixes(name) for name in firewall.sets},
        {name: firewall.ports(name) for name in firewall.sets},
    )


def _addresses(
    asked: tuple[IPNetwork | SetName, ...] | None, firewall: Firewall
) -> tuple[IPNetwork, ...] | str | None:
    """A set by its name; what is listed beside others is put together with them."""
    if asked is None:
        return None
    if len(asked) == 1 and isinstance(asked[0], SetName):
        return asked[0].name
    found: list[IPNetwork] = []
    for one in asked:
        found += firewall.prefixes(one.name) if isinstance(one, SetName) else (one,)
    return tuple(found)


def _ports(
    asked: tuple[PortRange | SetName, ...] | None, firewall: Firewall
) -> tuple[PortRange, ...] | str | None:
    if asked is None:
        return None
    if len(asked) == 1 and isinstance(asked[0], SetName):
        return asked[0].name
    found: list[PortRange] = []
    for one in asked:
        found += firewall.ports(one.name) if isinstance(one, SetName) else (one,)
    return tuple(found)


def _types(rule: FirewallRule, family: int) -> tuple[PortRange, ...]:
    """ICMP types stand where others have their destination port. None: the rule is not for this family."""
    protocol = ICMP_OF[family]
    if protocol not in (rule.protocol or ()):
        return ()
    known = TYPES_OF[protocol]
    numbers = [known.get(kind) if isinstance(kind, str) else kind for kind in rule.icmp_types or ()]
    return tuple(PortRange(number, number) for number in numbers if number is not None)


def _indexes(names: tuple[str, ...] | None, interfaces: Mapping[str, int]) -> tuple[int, ...] | None:
    """By an interface that is not there nothing comes and goes."""
    return None if names is None else tuple(interfaces[name] for name in names if name in interfaces)


def _counters(
    wanted: Sequence[int], held: Mapping[int, int], size: int, begin: int
) -> tuple[dict[int, int], int]:
    try:
        return assign_ids(wanted, held, size, begin)
    except NoRoomError:
        # Counters of rules that go are given out at once only if there are no others, as ids of services.
        kept = {key: held[key] for key in wanted if key in held}
        return assign_ids(wanted, kept, size, begin)


def _digest(classifiers: Mapping[Place, Classifier]) -> bytes:
    digest = blake2b(digest_size=16)
    for place, classifier in classifiers.items():
        digest.update(repr(place).encode())
        digest.update(classifier.digest)
    return digest.digest()
