# SPDX-License-Identifier: Apache-2.0
"""What the daemon does next, decided from one immutable snapshot. Pure: no I/O, no clock, no kernel.

The shell (service.py) takes a snapshot, asks decide(), carries the steps out in order, and starts over until
nothing is left to do. Each step says in one sentence why it is taken; that is what the log shows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from clearway.model import Config, Firewall

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
    sent: bool = False  # what this machine sends is looked at, too
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
    interfaces: tuple[tuple[str, int], ...]  # that rules name and that are there: name and ifindex
    lists: int = 0  # how often files of lists have changed


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
    lists_changed: int = 0  # how often files of lists have
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
    sent: bool
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


def basis(
    config: Config, present: Mapping[str, int], local_ports: tuple[int, int], lists_changed: int = 0
) -> Basis:
    """What the tables of this configuration would be compiled for now."""
    names = sorted(_in_rules(config) & set(present))
    return Basis(local_ports, tuple((name, present[name]) for name in names), lists_changed)


def without(config: Config, interfaces: Collection[str]) -> Config:
    """The configuration without what needs one of these interfaces."""
    return config.model_copy(
        update={
            "interfaces": tuple(item for item in config.interfaces if item.name not in interfaces),
            "nat": tuple(rule for rule in config.nat if rule.interface not in interfaces),
            "firewall": _firewall_without(config.firewall, interfaces),
        }
    )


def _firewall_without(firewall: Firewall | None, interfaces: Collection[str]) -> Firewall | None:
    """Rules stay: those that ask only for interfaces that are away, no packet meets."""
    if firewall is None or not interfaces:
        return firewall

    def of(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if names is None else tuple(name for name in names if name not in interfaces)

    rules = tuple(
        rule.model_copy(
            update={"interface_in": of(rule.interface_in), "interface_out": of(rule.interface_out)}
        )
        for rule in firewall.rules
    )
    return firewall.model_copy(update={"rules": rules})


def named_interfaces(config: Config) -> set[str]:
    return {item.name for item in config.interfaces} | _in_rules(config)


def _in_rules(config: Config) -> set[str]:
    """Interfaces that rules of NAT and of the firewall name."""
    rules = config.firewall.rules if config.firewall else ()
    asked = (names for rule in rules for names in (rule.interface_in, rule.interface_out))
    return {rule.interface for rule in config.nat} | {name for names in asked for name in names or ()}


def waiting(config: Config, present: Collection[str]) -> tuple[str, ...]:
    """A sentence for each thing that is configured and has to wait for its interface.

    Interfaces may come after the daemon has started, and come and go while it runs.
    """
    absent = [item.name for item in config.interfaces if item.name not in present]
    rules = [rule for rule in config.nat if rule.interface not in present]
    of_nat = {item.name for item in config.interfaces} | {rule.interface for rule in config.nat}
    asked = sorted(_in_rules(config) - of_nat - set(present))
    return (
        *(f"interface {name} is not there" for name in absent),
        *(f"nat {rule.name} waits for interface {rule.interface}" for rule in rules),
        *(f"no packet meets firewall rules for interface {name}, which is not there" for name in asked),
    )


def beside(config: Config, present: Collection[str], hook: str) -> Hooks:
    """What the choice of a hook depends on besides its interface: for `auto`, on every interface's hook."""
    if hook != "auto":
        return frozenset()
    return frozenset((item.name, item.hook) for item in config.interfaces if item.name in present)


def _apply(snapshot: Snapshot) -> list[Step]:
    wanted = basis(snapshot.config, snapshot.present, snapshot.local_ports, snapshot.lists_changed)
    if snapshot.compiled_for is None:
        return [] if _too_early(snapshot, COMPILE) else [Apply(wanted, "the daemon has started")]
    if wanted == snapshot.compiled_for or _too_early(snapshot, COMPILE):
        return []
    if wanted.local_ports != snapshot.compiled_for.local_ports:
        first, last = wanted.local_ports
        return [Apply(wanted, f"the host's own ports are now {first}-{last}")]
    if wanted.lists != snapshot.compiled_for.lists:
        return [Apply(wanted, "the file of a list has changed")]
    changed = set(wanted.interfaces) ^ set(snapshot.compiled_for.interfaces)
    names = ", ".join(sorted({name for name, _ifindex in changed}))
    return [Apply(wanted, f"{names}: an interface that a rule names came, went or was made anew")]


def _attach(snapshot: Snapshot) -> list[Step]:
    steps: list[Step] = []
    for interface in snapshot.config.interfaces:
        if interface.name not in snapshot.present or _too_early(snapshot, interface.name):
            continue
        wanted = Attached(
            ifindex=snapshot.present[interface.name],
            asked=interface.hook,
            beside=beside(snapshot.config, snapshot.present, interface.hook),
            sent=snapshot.config.firewall is not None,
        )
        why = _why_attach(wanted, snapshot.attached.get(interface.name))
        if why:
            steps.append(Attach(interface.name, interface.hook, wanted.beside, wanted.sent, why))
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
    if attached.sent != wanted.sent:
        return "there is a firewall now" if wanted.sent else "there is no firewall any more"
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
