# SPDX-License-Identifier: Apache-2.0
"""A ruleset as clearway's firewall, with an account of every line."""

from __future__ import annotations

from collections.abc import Iterable

from clearway.model import Firewall

from .account import Account
from .express import start
from .flatten import Entry, combined, flatten
from .judge import Judge
from .replies import discovery_dropped, replies_dropped
from .result import Imported
from .ruleset import ENDS, Chain, Rule, Ruleset, Verb

HOOKS = ("input", "forward")
AROUND = "clearway does not judge there"
EFFECT = "clearway lets pass what it drops"
TRANSLATING = {
    "translates destinations: filters see the new ones, clearway's rules what the client sent; what clearway"
    " forwards does not come here: write it as services:": frozenset(
        {"DNAT", "REDIRECT", "NETMAP", "dnat", "redirect", "tproxy"}
    ),
    "translates sources; what clearway forwards does not come here: write it as nat:": frozenset(
        {"SNAT", "MASQUERADE", "snat", "masquerade"}
    ),
}


def translate(ruleset: Ruleset) -> Imported:
    account = Account(ruleset)
    judge = Judge(account)
    for hook in HOOKS:
        _hook(ruleset, hook, judge, account)
    _output(ruleset, account)
    for chain in ruleset.chains.values():
        _other_hook(chain, ruleset, account)
    _silent_family(ruleset, account)
    firewall = Firewall(sets=judge.sets, rules=tuple(judge.rules))
    return account.imported(firewall)


def _at(ruleset: Ruleset, hook: str) -> list[Chain]:
    """The chains at a hook that filter, in their order."""
    found = [
        chain
        for chain in ruleset.chains.values()
        if chain.hook == hook and chain.kind != "nat" and chain.families
    ]
    return sorted(found, key=lambda chain: chain.priority)


def _hook(ruleset: Ruleset, hook: str, judge: Judge, account: Account) -> None:
    bases = _at(ruleset, hook)
    if not bases:
        return
    begin = start(hook)
    lists = [flatten(chain, ruleset.chains, begin) for chain in bases]
    entries: list[Entry] = lists[0]
    for following in lists[1:]:
        entries = combined(entries, following)
    judge.judge(entries, hook)
    for entry in replies_dropped(entries, begin, hook):
        account.differs(
            entry,
            "drops packets of connections that were accepted or opened before, or ICMP errors about them;"
            " in clearway they pass",
        )
    if hook == "input":
        for entry in discovery_dropped(entries, begin):
            account.differs(
                entry,
                "drops neighbour discovery or multicast group management of IPv6;"
                " clearway asks no rule about them",
            )


def _output(ruleset: Ruleset, account: Account) -> None:
    """What this machine sends is accepted in clearway, whatever the rules here are."""
    for chain in _at(ruleset, "output"):
        for entry in flatten(chain, ruleset.chains, start("output")):
            if entry.verb in ENDS and entry.verb is not Verb.ACCEPT:
                effect = "this machine may send what it drops"
                account.refuses(entry, "clearway does not judge what this machine sends", effect)
            else:
                account.takes(entry, "built in: what this machine sends is accepted")


def _other_hook(base: Chain, ruleset: Ruleset, account: Account) -> None:
    """NAT, and what stands before and behind the filters."""
    if not base.hook or (base.hook in {*HOOKS, "output"} and base.kind != "nat" and base.families):
        return
    what = f"hook {base.hook} of table {base.table}"
    if base.policy is Verb.DROP:
        rule = Rule(base.line, base.text, ())
        account.refuses_rule(base, 0, rule, f"{what}: {AROUND}", EFFECT)
    elif base.rules:
        account.note(f"left alone: {what} is not part of the firewall", base.line, base.text)
    for chain in _reached(base, ruleset):
        for position, rule in enumerate(chain.rules, 1):
            _other_rule(base, chain, position, rule, account)


def _reached(base: Chain, ruleset: Ruleset) -> Iterable[Chain]:
    """The chain, and those that it leads to."""
    found = {base.name: base}
    waiting = [base]
    while waiting:
        branches = [branch for rule in waiting.pop().rules for branch in rule.branches]
        for branch in branches:
            target = ruleset.chains.get((base.table, branch.target))
            if branch.verb in {Verb.JUMP, Verb.GOTO} and target is not None and target.name not in found:
                found[target.name] = target
                waiting.append(target)
    return found.values()


def _other_rule(base: Chain, chain: Chain, position: int, rule: Rule, account: Account) -> None:
    verbs = {branch.verb for branch in rule.branches}
    if base.kind != "nat" and verbs & {Verb.DROP, Verb.REJECT}:
        why = f"hook {base.hook} of table {base.table}: {AROUND}"
        account.refuses_rule(chain, position, rule, why, EFFECT)
        return
    account.takes_rule(chain, position, rule, "left alone: not part of the firewall")
    if "notrack" in rule.side_effect.lower() or "--notrack" in rule.text:
        account.differs_rule(chain, position, rule, "takes packets out of tracking; clearway tracks all")
    elif "ct helper" in rule.side_effect or "--helper" in rule.text:
        what = "a helper lets connections in that belong to others; clearway asks its rules about them"
        account.differs_rule(chain, position, rule, what)
    elif base.kind == "nat":
        words = {rule.side_effect, *rule.text.replace('"', " ").split()}
        for what, named in TRANSLATING.items():
            if named & words:
                account.differs_rule(chain, position, rule, what)


def _silent_family(ruleset: Ruleset, account: Account) -> None:
    for family, other in ((4, "IPv6"), (6, "IPv4")):
        if ruleset.families == (family,):
            tool = {"IPv6": "ip6tables-save", "IPv4": "iptables-save"}[other]
            account.note(f"nothing is said about {other}: all is accepted; append what {tool} prints")
