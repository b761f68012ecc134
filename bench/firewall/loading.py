# SPDX-License-Identifier: Apache-2.0
"""How long it takes until rules, or what is in a named set, are in force, and the memory that they take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bench.classifier.rules import CLIENTS as FIRST_CLIENT
from bench.classifier.rules import SPACES
from bench.firewall.rules import FAMILIES, KEYWORDS, TABLE, firewall, iptables, nftables, ruleset
from bench.flows.node import Node
from bench.progress import Progress
from bench.results import Report
from clearway.compiler import Tables, plan_configs
from clearway.compiler.classifier import Condition
from clearway.compiler.memory import estimate_memory
from clearway.lab import LabError, Namespace
from clearway.linux.memory import possible_cpus
from clearway.model import Config, config_from_data, parse_members, replace_set

LOAD = "time to compile and to put in force"
LOAD_AT_MOST = {10_000: 1.0, 100_000: 10.0}  # s
LOAD_ROUNDS = {10_000: 5, 100_000: 1}
LONGEST = 60.0  # s, for nft and iptables
SET = "time to exchange what is in a set"
SET_AT_MOST = 1.0  # s
SET_ROUNDS = 5
MEMBERS = 100_000
BESIDE = 1000  # rules
BLOCKED = "blocked"
MEMORY = "memory of the rules"
CLEARWAY, NFT, IPTABLES = "clearway", "nft", "iptables"
RULE_TABLES = ("classifier_v3", "rule_v1", "named_v1", "judged_v1")


def measure(node: Node, report: Report, progress: Progress) -> None:
    """clearway from the parsed configuration on; the others from their own text on."""
    with _rules_namespace(node) as namespace:
        for count, rounds in LOAD_ROUNDS.items():
            with progress.step(f"putting {count:,} rules in force"):
                _load(node, namespace, count, rounds, report, progress)
            case = f"{count:,} rules, half of each family, {CLEARWAY}"
            report.expect_at_most(case, LOAD, LOAD_AT_MOST[count])
        with progress.step(f"exchanging {MEMBERS:,} prefixes"):
            _exchange(node, namespace, report)


@contextmanager
def _rules_namespace(node: Node) -> Iterator[Namespace]:
    """Where nft and iptables put theirs: no packet passes."""
    namespace = Namespace(f"{node.name}-rules")
    namespace.create()
    try:
        yield namespace
    finally:
        namespace.delete()


# ---- rules ----


def _load(
    node: Node, namespace: Namespace, count: int, rounds: int, report: Report, progress: Progress
) -> None:
    halves = {family: ruleset(count // 2, family) for family in FAMILIES}
    rules = [rule for half in halves.values() for rule in half]
    config = config_from_data({"firewall": firewall(rules), "limits": {"rules": count}})
    ways: dict[str, Callable[[], float]] = {
        NFT: lambda: _nft(namespace, halves),
        CLEARWAY: lambda: _put(node, config),
        IPTABLES: lambda: _iptables(namespace, halves),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, taken in list(times.items()):
            try:
                taken.append(ways[name]())
            except LabError as error:  # it may take too long
                progress.note(f"  {name}: {error}")
                del times[name]
    case = f"{count:,} rules, half of each family"
    report.add(LOAD, "s", {f"{case}, {name}": taken for name, taken in times.items()}, f"{case}, {NFT}")
    _memory(node, config, case, report)
    node.put(Tables())


def _put(node: Node, config: Config) -> float:
    node.put(Tables())
    began = time.perf_counter()
    node.put(node.compile(config))
    return time.perf_counter() - began


def _memory(node: Node, config: Config, case: str, report: Report) -> None:
    """Of the classifiers, and by the plan's estimate with the rows and counters of so many rules."""
    compiled = node.tables.firewall
    assert compiled is not None
    estimated = estimate_memory(config, possible_cpus(), node.tables).tables
    whole = sum(one.full_bytes for one in estimated if one.name.startswith(RULE_TABLES))
    sizes = {f"{case}, classifiers": [compiled.bytes], f"{case}, with rows and counters": [whole]}
    report.add(MEMORY, "bytes", sizes)


def _nft(namespace: Namespace, halves: dict[int, list[Condition]]) -> float:
    text = "".join(nftables(rules, family) for family, rules in halves.items())
    began = time.perf_counter()
    namespace.run("nft", "-f", "-", stdin=text, timeout=LONGEST)
    took = time.perf_counter() - began
    for family in halves:
        namespace.run("nft", "delete", "table", KEYWORDS[family], TABLE, timeout=LONGEST)
    return took


def _iptables(namespace: Namespace, halves: dict[int, list[Condition]]) -> float:
    took = 0.0
    for family, rules in halves.items():
        text, tool = iptables(rules), "iptables" if family == 4 else "ip6tables"
        began = time.perf_counter()
        namespace.run(f"{tool}-restore", stdin=text, timeout=LONGEST)
        took += time.perf_counter() - began
        namespace.run(tool, "-F", timeout=LONGEST)
    return took


# ---- a set ----


def _exchange(node: Node, namespace: Namespace, report: Report) -> None:
    """Two lists take turns."""
    lists = [_prefixes(number) for number in range(2)]
    config, text = _with_set()
    node.put(node.compile(config))
    namespace.run("nft", "-f", "-", stdin=text)
    case = f"{MEMBERS:,} prefixes beside {BESIDE:,} rules"
    times: dict[str, list[float]] = {}
    for number in range(SET_ROUNDS):
        lines = lists[number % len(lists)]
        took, config = _replace(node, config, lines)
        times.setdefault(f"{case}, {NFT}", []).append(_replace_nft(namespace, lines))
        times.setdefault(f"{case}, {CLEARWAY}", []).append(took)
    report.add(SET, "s", times, f"{case}, {NFT}")
    report.expect_at_most(f"{case}, {CLEARWAY}", SET, SET_AT_MOST)
    node.put(Tables())


def _prefixes(number: int) -> list[str]:
    """One in two of them is a host, the others are networks."""
    space = SPACES[4]
    first = FIRST_CLIENT + number * 64
    return [str(space.network(first + 128 * place, 0 if place % 2 else 6)) for place in range(MEMBERS)]


def _with_set() -> tuple[Config, str]:
    """The rules, the first of which asks for a set that is empty yet; for clearway and for nft."""
    rules = ruleset(BESIDE - 1, 4)
    data = firewall(rules)
    data["sets"] = {BLOCKED: []}
    data["rules"] = [{"name": BLOCKED, "action": "drop", "source": f"@{BLOCKED}"}, *data["rules"]]
    config = config_from_data({"firewall": data, "limits": {"rules": BESIDE}})
    place, asked = f"{KEYWORDS[4]} {TABLE}", f"{KEYWORDS[4]} saddr @{BLOCKED} drop"
    text = (
        f"{nftables(rules, 4)}add set {place} {BLOCKED} {{ type ipv4_addr; flags interval; }}\n"
        f"insert rule {place} forward {asked}\n"
    )
    return config, text


def _replace(node: Node, config: Config, lines: Sequence[str]) -> tuple[float, Config]:
    """As the daemon does it: what is to change is found out, too."""
    body = "\n".join(lines).encode()
    began = time.perf_counter()
    desired = replace_set(config, BLOCKED, parse_members(body, "request"))
    facts = node.facts()
    tables = node.compile(desired)
    plan_configs(config, desired, facts, tables)
    node.put(tables)
    return time.perf_counter() - began, desired


def _replace_nft(namespace: Namespace, lines: Sequence[str]) -> float:
    place = f"{KEYWORDS[4]} {TABLE} {BLOCKED}"
    text = f"flush set {place}\nadd element {place} {{ {', '.join(lines)} }}\n"
    began = time.perf_counter()
    namespace.run("nft", "-f", "-", stdin=text, timeout=LONGEST)
    return time.perf_counter() - began
