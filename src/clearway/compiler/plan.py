# SPDX-License-Identifier: Apache-2.0
"""The plan: what would change, for people and for programs, before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from clearway.model import Config
from clearway.model.firewall_values import members_without, set_texts

from .facts import HostFacts
from .firewall import never_reached
from .memory import MemoryEstimate, estimate_memory, require_memory
from .state import Item, Kind, size_of, sizes_of, state_of_config, state_of_tables
from .tables import Tables

Action = Literal["add", "remove", "change", "restart"]

SIGNS = {"add": "+", "remove": "-", "change": "~", "restart": "!"}
RESIZED = ("conntrack.max_flows",)  # while the data path runs
MEMBERS_NAMED = 8
"""Of a set's members so many that come or go are named; of more it is said how many."""
RESTART = "only after `clearway down` and a new `clearway run`; until then the running size holds"


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One property of a thing, before and after.

    `difference`: what people are told instead, where the two say little.
    """

    name: str
    before: str
    after: str
    difference: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.difference or f'{self.before} -> {self.after}'}"


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that comes, goes or changes, with the changes of what it holds.

    `restart`: a size of tables. It is not applied to a running data path; everything else of the plan is.
    """

    action: Action
    kind: Kind
    name: str
    title: str
    summary: str = ""
    fields: tuple[FieldChange, ...] = ()
    children: tuple[Change, ...] = ()

    def lines(self, indent: str = "") -> Iterator[str]:
        """The change as a plan shows it."""
        head = f"{indent}{SIGNS[self.action]} {self.kind} {self.title}"
        if self.action == "restart":
            yield f"{head}: {self.fields[0].before} -> {self.fields[0].after}, {RESTART}"
        elif [change.name for change in self.fields] == ["value"]:
            yield f"{head}: {self.fields[0].before} -> {self.fields[0].after}"
        elif self.kind == "endpoint" and self.fields:
            yield f"{head} {', '.join(map(str, self.fields))}"
        else:
            yield f"{head} {self.summary}".rstrip()
            yield from (f"{indent}    ~ {change}" for change in self.fields)
        for child in self.children:
            yield from child.lines(indent + "    ")

    def to_dict(self) -> dict[str, object]:
        return {
            "action": self.action,
            "kind": self.kind,
            "name": self.name,
            "title": self.title,
            "fields": {
                change.name: {"before": change.before, "after": change.after} for change in self.fields
            },
            "children": [child.to_dict() for child in self.children],
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that would change, and the memory that the tables take with the configured sizes.

    `warnings`: a sentence for what has been compiled and is probably not meant.
    """

    changes: tuple[Change, ...]
    memory: MemoryEstimate
    warnings: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.changes

    @property
    def needs_restart(self) -> tuple[Change, ...]:
        """Changes that a running data path does not take: sizes of its tables."""
        return tuple(change for change in self.changes if change.action == "restart")

    def count(self, action: Action) -> int:
        return sum(change.action == action for change in self.changes)

    def summary(self) -> str:
        """One line: how many things come, change and go."""
        if self.empty:
            return "nothing to change"
        text = (
            f"{self.count('add')} to add, {self.count('change')} to change, {self.count('remove')} to remove"
        )
        restarts = self.count("restart")
        return f"{text}, {restarts} after a restart" if restarts else text

    def human(self) -> str:
        """Lines for people: +, ~ and - as in a diff, ! for what needs a restart."""
        if self.empty:
            return self.summary()
        lines = [line for change in self.changes for line in change.lines()]
        return "\n".join([*lines, "", f"plan: {self.summary()}", f"memory: {self.memory}"])

    def to_dict(self) -> dict[str, object]:
        return {
            "empty": self.empty,
            "summary": self.summary(),
            "changes": [change.to_dict() for change in self.changes],
            "memory": self.memory.to_dict(),
        }


def plan_configs(
    running: Config | None, desired: Config, facts: HostFacts, tables: Tables | None = None
) -> Plan:
    """What changes when `desired` replaces the configuration in force (None: there is none yet). tables: as
    it was compiled, if it was: only they tell the size of classifiers and lists, and which rules are never
    reached.

    Sizes are compared with those of the data path that is loaded, if `facts` tells them. Raises ConfigError
    when this machine has not enough memory for those that change.
    """
    if running is None or sizes_of(running) != sizes_of(desired):
        require_memory(desired, facts.memory_bytes, loaded=facts.sizes, cpus=facts.cpus)
    before = state_of_config(running) if running else ()
    changes = diff(before, state_of_config(desired), first=running is None)
    changes += _size_changes(running or desired, desired, facts)
    return Plan(changes, estimate_memory(desired, facts.cpus, tables), _warnings(tables))


def plan_tables(running: Tables, desired: Tables, config: Config, facts: HostFacts) -> Plan:
    """What changes in the tables when the rows of `desired`, compiled from `config`, replace `running`."""
    before = state_of_tables(running, config, facts) if running.epoch else ()
    after = state_of_tables(desired, config, facts)
    changes = diff(before, after, first=not running.epoch) + _size_changes(config, config, facts)
    return Plan(changes, estimate_memory(config, facts.cpus, desired), _warnings(desired))


def _warnings(tables: Tables | None) -> tuple[str, ...]:
    return tuple(never_reached(tables.firewall)) if tables and tables.firewall else ()


def diff(before: Sequence[Item], after: Sequence[Item], *, first: bool = False) -> tuple[Change, ...]:
    """The changes from one state to another: what goes, then what comes and changes, each in its order.

    `first`: there was nothing before, so that settings which always have a value are no change.
    """
    old = {(item.kind, item.key): item for item in before}
    new = {(item.kind, item.key) for item in after}
    settings = ("timeout", "conntrack", "limit")
    removed = [_simple("remove", item) for item in before if (item.kind, item.key) not in new]
    changed = (
        _simple("add", item) if earlier is None else _compare(earlier, item)
        for item in after
        if (earlier := old.get((item.kind, item.key))) is not None or not (first and item.kind in settings)
    )
    return (*removed, *(change for change in changed if change is not None))


def _simple(action: Action, item: Item) -> Change:
    return Change(action, item.kind, item.name, item.title, item.summary if action == "add" else "")


def _compare(before: Item, after: Item) -> Change | None:
    of_members = "members" in before.fields and "members" in after.fields
    fields = tuple((_member_changes if of_members else _field_changes)(before, after))
    children = diff(before.children, after.children)
    if not fields and not children:
        return None
    return Change("change", after.kind, after.name, after.title, "", fields, children)


def _field_changes(before: Item, after: Item) -> Iterable[FieldChange]:
    for name in dict.fromkeys([*before.fields, *after.fields]):
        old, new = before.fields.get(name, "none"), after.fields.get(name, "none")
        if old != new:
            yield FieldChange(name, old, new)


def _member_changes(before: Item, after: Item) -> Iterable[FieldChange]:
    """Of a set, whose order says nothing: the members that come and go, or how many."""
    if before.members == after.members:
        return
    added = members_without(after.members, before.members)
    removed = members_without(before.members, after.members)
    if added or removed:
        if len(added) + len(removed) <= MEMBERS_NAMED:
            named = [f"+{text}" for text in set_texts(added)] + [f"-{text}" for text in set_texts(removed)]
            difference = " ".join(named)
        else:
            sizes = f"{size_of(before.members)} -> {size_of(after.members)}"
            difference = f"{sizes} (+{len(added):,} -{len(removed):,})"
        yield FieldChange("members", before.fields["members"], after.fields["members"], difference)


def _size_changes(running: Config, desired: Config, facts: HostFacts) -> tuple[Change, ...]:
    """Sizes that are not those of the data path that is loaded or, if there is none, those of `running`."""
    changes = diff(sizes_of(running, facts.sizes), sizes_of(desired))
    return tuple(
        one if one.name in RESIZED else Change("restart", one.kind, one.name, one.title, "", one.fields)
        for one in changes
    )
