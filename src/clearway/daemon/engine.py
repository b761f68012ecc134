# SPDX-License-Identifier: Apache-2.0
"""Changes the data path: the blocking work, done in one thread, one thing at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import structlog

from clearway.compiler import Clock, HostFacts, Plan, Tables, compile_tables, plan_configs, plan_tables
from clearway.daemon.apply import apply_tables, read_tables
from clearway.daemon.core import Attached, Hooks, beside
from clearway.daemon.listfiles import ListFiles, named_files
from clearway.daemon.past import PastNames
from clearway.datapath import Attachment, Datapath
from clearway.linux import conntrack, neighbours
from clearway.linux.memory import available_bytes, possible_cpus
from clearway.linux.namespace import local_port_range
from clearway.linux.netlink import NETLINK_ROUTE, Conversation, NetlinkError
from clearway.linux.rtnetlink import Hop, Ip, Link
from clearway.model import Config, ListContent

log = structlog.get_logger()


@dataclass(frozen=True)
class Machine:
    """What has to be known of the machine to change the data path: its devices by ifindex."""

    links: Mapping[int, Link]

    def ifindexes(self) -> dict[str, int]:
        return {link.name: link.ifindex for link in self.links.values()}


class Engine:
    """The data path and what is known to be in it. Raises DatapathError and ConfigError."""

    def __init__(self, datapath: Datapath) -> None:
        self.datapath = datapath
        for name in datapath.tables():
            datapath.table(name)  # open them all now: later, several threads use them
        self.tables: Tables = read_tables(datapath)
        self.past = PastNames()
        self.lists = ListFiles()
        self.listed: Mapping[str, ListContent] = {}
        """What is in force of files, by path; nothing of those that could not be read since this was made."""
        self.attachments: dict[str, Attachment] = {a.ifname: a for a in datapath.attachments()}
        self._asked: dict[str, tuple[str, Hooks]] = {}  # interface -> hook asked for, and those beside it
        self._reasons: dict[str, str] = {}  # interface -> why this hook
        self.kept: frozenset[Hop] = frozenset()  # next hops towards endpoints, as keep() has found them
        self._kernel = Conversation(NETLINK_ROUTE)
        self.prepare: Callable[[Tables, Config], None] = lambda _tables, _config: None
        """Is called with what is to be in force in a moment; raises DatapathError when that must not be."""

    def close(self) -> None:
        self._kernel.close()
        self.datapath.close()

    # ---- interfaces ----

    def attached(self) -> dict[str, Attached]:
        """As the core sees it. An attachment counts for the device that had the name when it was attached."""
        return {name: self._as_attached(attachment) for name, attachment in self.attachments.items()}

    def _as_attached(self, attachment: Attachment) -> Attached:
        asked = self._asked.get(attachment.ifname)
        if asked is None:
            return Attached(attachment.ifindex, None, sent=attachment.sent, stale=attachment.stale)
        return Attached(attachment.ifindex, *asked, sent=attachment.sent, stale=attachment.stale)

    def reason(self, interface: str) -> str:
        """Why the interface has the hook that it has; "" if it was not attached yet."""
        return self._reasons.get(interface, "")

    def attach(self, interface: str, hook: str, beside: Hooks = frozenset(), sent: bool = False) -> None:
        """`beside`: the other interfaces and the hooks that they are to have (core.beside). `sent`: what this
        machine sends is looked at, too.
        """
        before = self.attachments.get(interface)
        attachment = self.datapath.attach(interface, hook, dict(beside), sent=sent)
        self._asked[interface] = (hook, beside)
        self._reasons[interface] = why = attachment.reason or "as configured"
        self.look()
        if before is None or before.stale:
            log.info("attached", interface=interface, hook=attachment.hook, why=why)
        elif before.hook != attachment.hook:
            log.info("moved", interface=interface, before=before.hook, hook=attachment.hook, why=why)
        else:
            log.debug("still attached", interface=interface, hook=attachment.hook, why=why)

    def detach(self, interface: str) -> None:
        self.datapath.detach(interface)
        self._asked.pop(interface, None)
        self._reasons.pop(interface, None)
        self.look()

    def look(self) -> None:
        """Read what is attached."""
        self.attachments = {a.ifname: a for a in self.datapath.attachments()}

    # ---- configuration ----

    def facts(self, machine: Machine, desired: Config, running: Config | None) -> HostFacts:
        """What the compiler has to know of this machine. ConfigError when a list cannot be read that is not
        of the running configuration (None: that is the desired one).
        """
        first, last = local_port_range()
        sizes = self.datapath.sizes()
        shrinks = desired.conntrack.max_flows < sizes.max_flows
        known = named_files(running or desired)
        return HostFacts(
            local_port_min=first,
            local_port_max=last,
            interfaces=machine.ifindexes(),
            sizes=sizes,
            cpus=possible_cpus(),
            memory_bytes=available_bytes(),
            flows=self.datapath.most_flows() if shrinks else 0,
            lists=self.lists.load(desired, lambda path: path not in known),
            clock=self._clock(),
        )

    def _clock(self) -> Clock:
        kernel = self.datapath.clock()
        return Clock(kernel.jiffies, time.time(), kernel.hz)

    def plan(self, running: Config, desired: Config, machine: Machine) -> Plan:
        """What apply() would change. ConfigError when it would refuse."""
        facts = self.facts(machine, desired, running)
        tables = compile_tables(desired, facts, self.tables)
        return plan_configs(running, desired, facts, tables)

    def apply(self, config: Config, machine: Machine) -> Plan:
        """Compile for this machine and switch over; interfaces are left alone.

        Returns what was different in the tables before. Raises with the old configuration in force.
        """
        facts = self.facts(machine, config, None)
        desired = compile_tables(config, facts, self.tables)
        plan = plan_tables(self.tables, desired, config, facts)
        with self._resized(config) as exchange:
            self._switch(desired, config, facts, exchange)
        return plan

    def change(self, running: Config, desired: Config, machine: Machine) -> Plan:
        """Apply a configuration and attach its interfaces: all of it, or nothing. Returns what has changed.

        What is to be detached is left to the caller: it can wait, and can be tried again.
        """
        facts = self.facts(machine, desired, running)
        tables = compile_tables(desired, facts, self.tables)  # refuses before anything is touched
        plan = plan_configs(running, desired, facts, tables)
        with ExitStack() as undo:
            for interface in desired.interfaces:
                hooks = beside(desired, facts.interfaces, interface.hook)
                # who is not needed any more goes when the switch is done
                attached = self.attachments.get(interface.name)
                sent = desired.firewall is not None or (attached is not None and attached.sent)
                wanted = Attached(facts.interfaces[interface.name], interface.hook, hooks, sent)
                self._attach_or_undo(interface.name, wanted, undo)
            # New neighbours begin to be resolved before the first packet is sent their way.
            self.keep(endpoint_addresses(desired), machine)
            with self._resized(desired) as exchange:
                self._switch(tables, desired, facts, exchange)
            undo.pop_all()
        return plan

    @contextmanager
    def _resized(self, config: Config) -> Iterator[Callable[[], None]]:
        """Flow tables of the configured size, and what puts them in force."""
        before, wanted = self.datapath.sizes().max_flows, config.conntrack.max_flows
        if before == wanted:
            yield lambda: None
            return
        with self.datapath.resized(wanted) as exchange:
            yield exchange
        log.info("the flow table has another size", before=before, max_flows=wanted)

    def _switch(
        self, desired: Tables, config: Config, facts: HostFacts, exchange: Callable[[], None]
    ) -> None:
        self.prepare(desired, config)
        applied = apply_tables(self.datapath, self.tables, desired, exchange=exchange)
        self.tables = applied.tables
        self.listed = facts.lists
        self.lists.forget_others(config)
        self.past = self.past.then(config, self.tables, facts.interfaces)
        if applied.leftover:
            log.warning("the old configuration is not cleared away yet", why=applied.leftover)

    def _attach_or_undo(self, interface: str, wanted: Attached, undo: ExitStack) -> None:
        """Attach unless it is so already; should the rest fail, put it back as it was."""
        if self.attached().get(interface) == wanted:
            return
        before, asked_before = self.attachments.get(interface), self._asked.get(interface)
        self.attach(interface, wanted.asked or "auto", wanted.beside, wanted.sent)
        if before is None:
            undo.callback(self.detach, interface)
        elif not before.stale:
            asked = asked_before or (before.hook, frozenset())
            undo.callback(self.attach, interface, *asked, before.sent)

    # ---- neighbours ----

    def keep(self, destinations: Iterable[Ip], machine: Machine) -> neighbours.Kept:
        found = neighbours.keep(self._kernel, destinations, machine.links)
        self.kept = found.hops
        return found

    # ---- the end ----

    def remove(self) -> None:
        """Detach everything, remove every pin, and leave neighbours to themselves again."""
        try:
            neighbours.release_all(self._kernel)
        except (NetlinkError, OSError) as error:
            log.warning("neighbours of endpoints could not be left to themselves", why=str(error))
        self.datapath.remove(hand_back)


def hand_back() -> None:
    """Linux goes on with connections of which it has not seen all packets, also when it is strict again."""
    try:
        count = conntrack.go_on_without_windows()
    except (NetlinkError, OSError) as error:
        log.warning("Linux may call packets of connections invalid that were carried", why=str(error))
    else:
        log.debug("connections are Linux' alone", established=count)


def endpoint_addresses(config: Config) -> list[Ip]:
    """Every address that packets are sent to, once."""
    return list({endpoint.address: None for service in config.services for endpoint in service.endpoints})
