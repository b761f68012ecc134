# SPDX-License-Identifier: Apache-2.0
"""What the daemon does next, decided from one immutable snapshot. Pure: no I/O, no clock, no kernel.

The shell (service.py) takes a snapshot, asks decide(), carries the steps out in order, and starts over until
nothing is left to do. Each step says in one sentence why it is taken; that is what the log shows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from clearway.model import Config

RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
KEEP_EVERY = 30.0  # seconds; entries of neighbours may be taken away by anybody, silently
KEEP_PAUSE = 1.0  # seconds between two rounds that changes of routes ask for


Hooks = frozenset[tuple[str, str]]  # names of interfaces and the hooks asked for


@dataclass(frozen=True, slots=True)
class Attached:
    """An interface with programs on it."""

    ifindex: int
    asked: str | None  # the hook that was asked for; None: attached by an earlier daemon, not known
    beside: Hooks = frozenset()  # the interfaces that `auto` has looked at
    stale: bool = False  # the device it was attached to is not there any more


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that did not work: why, how often so far, and when to try again."""

    message: str
    times: int
    retry_at: float

    @classmethod
    def of(cls, message: str, now: float, previous: Failure | None = None) -> Failure:
        times = previous.times + 1 if previous else 1
        return cls(message, times, now + RETRY_SECONDS[min(times, len(RETRY_SECONDS)) - 1])


@dataclass(frozen=True, slots=True)
class Basis:
    """What of the machine the compiled tables depend on."""

    local_ports: tuple[int, int]
    nat_interfaces: tuple[tuple[str, int], ...]  # those that are there: name and ifindex


@dataclass(frozen=True)
class Snapshot:
    """Everything a decision is made from. Times are seconds of one monotonic clock."""

    now: float
    config: Config
    present: Mapping[str, int]  # every network device: name -> ifindex
    attached: Mapping[str, Attached]
    local_ports: tuple[int, int]
    compiled_for: Basis | None  # None: nothing has been compiled yet
    kept_at: float | None  # when endpoints' neighbours were last looked after; None: never
    routes_changed: bool = False  # since then
    failures: Mapping[str, Failure] = field(default_factory=dict)  # by interface, and COMPILE


COMPILE = ""  # the key of failures to compile or apply; no interface has an empty name


@dataclass(frozen=True, slots=True)
class Apply:
    """Compile the configuration for this machine as it is now, and put it into the tables."""

    basis: Basis
    why: str


@dataclass(frozen=True, slots=True)
class Attach:
    interface: str
    hook: str
    beside: Hooks
    why: str


@dataclass(frozen=True, slots=True)
class Detach:
    interface: str
    why: str


@dataclass(frozen=True, slots=True)
class KeepNeighbours:
    """See to it that the neighbours towards endpoints are kept resolved."""

    why: str


Step = Apply | Attach | Detach | KeepNeighbours


@dataclass(frozen=True, slots=True)
class Decision:
    """The steps to take, in order, and when to look again even if nothing happens (None: no need)."""

    steps: tuple[Step, ...]
    look_again_at: float | None


def decide(snapshot: Snapshot) -> Decision:
    """What to do next.

    Tables come first, so that an interface that is attached finds its configuration. Attaching comes before
    detaching: an interface that was renamed is then still attached under its old name, and simply followed.
    """
    steps: list[Step] = [*_apply(snapshot), *_attach(snapshot), *_detach(snapshot), *_keep(snapshot)]
    due = [failure.retry_at for failure in snapshot.failures.values() if failure.retry_at > snapshot.now]
    if snapshot.kept_at is not None:
        due.append(snapshot.kept_at + (KEEP_PAUSE if snapshot.routes_changed else KEEP_EVERY))
    return Decision(tuple(steps), min(due, default=None))


def basis(config: Config, present: Mapping[str, int], local_ports: tuple[int, int]) -> Basis:
    """What the tables of this configuration would be compiled for now."""
    names = sorted({rule.interface for rule in config.nat} & set(present))
    return Basis(local_ports, tuple((name, present[name]) for name in names))


def without(config: Config, interfaces: Collection[str]) -> Config:
    """The configuration without what needs one of these interfaces."""
    return config.model_copy(
        update={
            "interfaces": tuple(item for item in config.interfaces if item.name not in interfaces),
            "nat": tuple(rule for rule in config.nat if rule.interface not in interfaces),
        }
    )


def named_interfaces(config: Config) -> set[str]:
    return {item.name for item in config.interfaces} | {rule.interface for rule in config.nat}


def waiting(config: Config, present: Collection[str]) -> tuple[str, ...]:
    """A sentence for each thing that is configured and has to wait for its interface.

    Interfaces may come after the daemon has started, and come and go while it runs.
    """
    absent = [item.name for item in config.interfaces if item.name not in present]
    rules = [rule for rule in config.nat if rule.interface not in present]
    return (
        *(f"interface {name} is not there" for name in absent),
        *(f"nat {rule.name} waits for interface {rule.interface}" for rule in rules),
    )


def beside(config: Config, present: Collection[str], hook: str) -> Hooks:
    """What the choice of a hook depends on besides its interface: for `auto`, on every interface's hook."""
    if hook != "auto":
        return frozenset()
    return frozenset((item.name, item.hook) for item in config.interfaces if item.name in present)


def _apply(snapshot: Snapshot) -> list[Step]:
    wanted = basis(snapshot.config, snapshot.present, snapshot.local_ports)
    if snapshot.compiled_for is None:
        return [] if _too_early(snapshot, COMPILE) else [Apply(wanted, "the daemon has started")]
    if wanted == snapshot.compiled_for or _too_early(snapshot, COMPILE):
        return []
    if wanted.local_ports != snapshot.compiled_for.local_ports:
        first, last = wanted.local_ports
        return [Apply(wanted, f"the host's own ports are now {first}-{last}")]
    changed = set(wanted.nat_interfaces) ^ set(snapshot.compiled_for.nat_interfaces)
    names = ", ".join(sorted({name for name, _ifindex in changed}))
    return [Apply(wanted, f"{names}: the interface of a NAT rule came, went or was made anew")]


def _attach(snapshot: Snapshot) -> list[Step]:
    steps: list[Step] = []
    for interface in snapshot.config.interfaces:
        if interface.name not in snapshot.present or _too_early(snapshot, interface.name):
            continue
        wanted = Attached(
            ifindex=snapshot.present[interface.name],
            asked=interface.hook,
            beside=beside(snapshot.config, snapshot.present, interface.hook),
        )
        why = _why_attach(wanted, snapshot.attached.get(interface.name))
        if why:
            steps.append(Attach(interface.name, interface.hook, wanted.beside, why))
    return steps


def _why_attach(wanted: Attached, attached: Attached | None) -> str | None:
    if attached is None:
        return "it is there and carries no program"
    if attached.stale or attached.ifindex != wanted.ifindex:
        return "it was made anew"
    if attached.asked is None:
        return "an earlier daemon attached it"
    if attached.asked != wanted.asked:
        return f"its hook was {attached.asked} and is now {wanted.asked}"
    return "the interfaces beside it have changed" if attached.beside != wanted.beside else None


def _detach(snapshot: Snapshot) -> list[Step]:
    wanted = {interface.name for interface in snapshot.config.interfaces}
    steps: list[Step] = []
    for name in sorted(snapshot.attached):
        if _too_early(snapshot, name):
            continue
        if name not in wanted:
            steps.append(Detach(name, "it is not configured any more"))
        elif name not in snapshot.present:
            steps.append(Detach(name, "it is gone"))
    return steps


def _keep(snapshot: Snapshot) -> list[Step]:
    if snapshot.kept_at is None:
        return [KeepNeighbours("the endpoints are new")]
    since = snapshot.now - snapshot.kept_at
    if snapshot.routes_changed and since >= KEEP_PAUSE:
        return [KeepNeighbours("routes have changed")]
    return [KeepNeighbours("it is time again")] if since >= KEEP_EVERY else []


def _too_early(snapshot: Snapshot, name: str) -> bool:
    failure = snapshot.failures.get(name)
    return failure is not None and snapshot.now < failure.retry_at
