# SPDX-License-Identifier: Apache-2.0
"""The daemon as the API sees it (clearway.api.control.Control)."""

from __future__ import annotations

import asyncio
import os
import platform
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace

from clearway import __version__
from clearway.api.control import FilterError
from clearway.api.views import (
    AdoptionView,
    ConfigView,
    Endpoints,
    FirewallDecision,
    FirewallQuestion,
    FlowExplanation,
    FlowFilter,
    FlowQuestion,
    Interfaces,
    LinuxCounterViews,
    LinuxRules,
    Lists,
    Nats,
    Reasons,
    Rules,
    Services,
    SettingView,
    StatusView,
    SweepView,
)
from clearway.compiler import Plan, Tables, blocked_by
from clearway.daemon import counted, ended, events, explain, flowlist, report
from clearway.daemon.flowlist import Names, Use
from clearway.daemon.followers import Array, Followers
from clearway.daemon.question import question_of
from clearway.daemon.service import Daemon
from clearway.datapath import features
from clearway.datapath.flows import state_names
from clearway.linux import conntrack, namespace
from clearway.linux.packet_sockets import ALL_DEVICES, owners
from clearway.model import Config

BY_TC = ", by TC instead of XDP"
HANDED_TO_TC = "XDP hands what leaves by it to TC, because"
USAGE_SECONDS = 1.0  # counts of connections may be this old, so that asking often costs little


@dataclass(frozen=True)
class Usage:
    """Who uses the flow table, by id, and when that was counted (monotonic seconds), under which tables."""

    at: float
    tables: Tables
    services: dict[int, Use]
    endpoints: dict[int, Use]
    nats: dict[int, Use]


class DaemonControl:
    """Reads for the API in its threads; hands changes to the daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._datapath = daemon.engine.datapath
        self._ends = Followers(
            self._datapath.records,
            self._tell_ended,
            "somebody follows the ends of connections already: there can be one at a time;"
            " end the other `clearway follow` first",
        )
        self._events = Followers(
            self._datapath.events,
            self._tell_events,
            "somebody follows the firewall already: there can be one at a time;"
            " end the other `clearway firewall log` first",
        )
        self._counting = threading.Lock()
        self._usage: Usage | None = None

    # ---- what is ----

    def status(self) -> StatusView:
        daemon = self._daemon
        epoch, mirror = self._datapath.active()
        received = self._datapath.counters().received
        return StatusView(
            instance=daemon.instance.name,
            version=__version__,
            pid=os.getpid(),
            uptime=round(time.monotonic() - daemon.started_at, 3),
            kernel=platform.release(),
            network_namespace=namespace.identity(),
            adopted=self._datapath.adopted,
            kernel_context=self._datapath.kernel_context,
            epoch=epoch,
            mirror=mirror,
            config=self._config_view(),
            interfaces=sum(not a.stale for a in daemon.engine.attachments.values()),
            services=len(daemon.config.services),
            endpoints=sum(len(service.endpoints) for service in daemon.config.services),
            nat=len(daemon.config.nat),
            rules=len(daemon.config.firewall.rules) if daemon.config.firewall else None,
            max_flows=self._datapath.sizes().max_flows,
            sweep=self._sweep_view(),
            ended=self._datapath.ended(),
            lost_records=self._datapath.lost_records(),
            lost_events=self._datapath.lost_events(),
            unaccounted_packets=self._datapath.unaccounted().packets,
            received_packets=received.packets,
            received_bytes=received.bytes,
            waiting=list(daemon.waiting()),
            warnings=daemon.warnings(daemon.config),
            adoption=self._adoption_view(),
            listened=self._listened(),
            settings=[
                SettingView(name=name.replace("/", "."), before=before, now=now)
                for name, (before, now) in sorted(self._datapath.changed_settings().items())
            ],
        )

    def config(self) -> Config:
        return self._daemon.config

    def warnings(self, config: Config) -> list[str]:
        return self._daemon.warnings(config)

    def services(self) -> Services:
        daemon = self._daemon
        return report.services(daemon.config, daemon.engine.tables, self._used().services, self._opened())

    def endpoints(self, service: str | None) -> Endpoints:
        daemon = self._daemon
        known = [item.name for item in daemon.config.services]
        if service is not None and service not in known:
            raise FilterError(f"there is no service {service}; services: {', '.join(known) or 'none'}")
        return report.endpoints(
            daemon.config, daemon.engine.tables, self._used().endpoints, self._opened(), service
        )

    def nat(self) -> Nats:
        daemon = self._daemon
        ifindexes = daemon.machine().ifindexes()
        return report.nats(daemon.config, daemon.engine.tables, ifindexes, self._used().nats)

    def rules(self) -> Rules:
        daemon = self._daemon
        datapath = self._datapath
        return report.rules(daemon.config, daemon.engine.tables, datapath.judged(), datapath.clock())

    def lists(self) -> Lists:
        engine = self._daemon.engine
        return report.lists(self._daemon.config, engine.tables, engine.listed, self._datapath.listed())

    def linux_counters(self) -> LinuxCounterViews:
        return counted.counter_views(self._daemon.accountant, self._daemon.instance.nft_table)

    def ask_firewall(self, question: FirewallQuestion) -> FirewallDecision:
        daemon = self._daemon
        return question_of(question, daemon.mirror.watch.picture, daemon.config)

    def explain_flow(self, question: FlowQuestion) -> FlowExplanation:
        daemon = self._daemon
        picture = daemon.mirror.watch.picture
        adoption = daemon.adoption
        taken = {name for name, one in daemon.engine.attachments.items() if not one.stale}
        listed = daemon.engine.listed
        return explain.explain_flow(
            question,
            picture,
            adoption.standing,
            adoption.claims,
            self._carries,
            taken,
            lambda source: blocked_by(daemon.config, listed, source, time.time()),
        )

    def explain_rules(self) -> LinuxRules:
        return explain.explain_rules(self._daemon.adoption.standing)

    def interfaces(self) -> Interfaces:
        daemon = self._daemon
        return report.interfaces(
            daemon.config, daemon.engine.attachments, daemon.machine().ifindexes(), self._why_hook
        )

    def reasons(self) -> Reasons:
        return report.reasons(self._datapath.counters())

    def flows(self, wanted: FlowFilter) -> Iterator[bytes]:
        names = self._names()
        flows = self._datapath.flows()
        chosen, matched = flowlist.choose(flows, wanted, names)
        return flowlist.pieces(chosen, names, matched=matched, total=len(flows))

    async def ended(self) -> AsyncIterator[bytes]:
        return await self._ends.follow()

    async def events(self) -> AsyncIterator[bytes]:
        return await self._events.follow()

    async def end_following(self) -> None:
        """Before the daemon lets go of the data path."""
        await asyncio.gather(self._ends.end(), self._events.end())

    # ---- what changes ----

    async def plan(self, desired: Config) -> Plan:
        return await self._daemon.plan(desired)

    async def change(self, edit: Callable[[Config], Config]) -> Plan:
        return await self._daemon.change(edit)

    async def reload(self) -> Plan | None:
        return await self._daemon.reload()

    async def remove(self) -> None:
        await self.end_following()
        try:
            await self._daemon.remove()
        except BaseException:
            self._ends.begin_again()
            self._events.begin_again()
            raise

    def stop(self) -> None:
        self._daemon.stop()

    # ---- parts ----

    def _config_view(self) -> ConfigView:
        file = self._daemon.file
        return ConfigView(
            file=str(file.path),
            file_sha256=file.taken,
            changed_by_api=self._daemon.config != file.content,
            refused=file.refused,
        )

    def _sweep_view(self) -> SweepView | None:
        last = self._daemon.last_sweep
        if last is None:
            return None
        return SweepView(
            connections=last.connections,
            expired=last.expired,
            seconds=round(last.seconds, 6),
            ago=round(time.monotonic() - last.at, 3),
        )

    def _adoption_view(self) -> AdoptionView:
        standing = self._daemon.adoption.standing
        rules = standing.proof.rules if standing.proof else ()
        possible = features.has_adoption()
        return AdoptionView(
            possible=possible,
            generation=standing.basis.generation if standing.basis else None,
            rules=len(rules),
            keeping=sum(rule.keeps for rule in rules),
            seconds=round(standing.seconds, 3),
            why=standing.why if possible else "this kernel does not show which ruleset is in force",
            honoured=self._daemon.adoption.honoured(),
        )

    def _listened(self) -> list[str]:
        sockets = self._daemon.adoption.sockets
        present = [one for one in self._daemon.engine.attachments.values() if not one.stale]
        on_xdp = {one.ifindex for one in present if one.hook != "tc"}
        links, known = self._daemon.machine().links, owners(sockets) if sockets else {}
        return sorted(
            f"{links[one.ifindex].name if one.ifindex in links else 'every interface'}:"
            f" {known.get(one, 'a process that is not to be seen from here')}"
            + (BY_TC if one.ifindex in on_xdp or (one.ifindex == ALL_DEVICES and on_xdp) else "")
            for one in sockets
        )

    def _carries(self, tuple_: conntrack.Tuple) -> str | None:
        """Who owns the flow that a tuple is a direction of: clearway | linux; None: there is none."""
        return self._datapath.owner_of(
            tuple_.source.packed, tuple_.sport, tuple_.destination.packed, tuple_.dport, tuple_.protocol
        )

    def _why_hook(self, interface: str) -> str:
        daemon = self._daemon
        if failure := daemon.failure(interface):
            return failure
        reason = daemon.engine.reason(interface)
        why = daemon.mirror.why_handed_to_tc(daemon.machine().ifindexes().get(interface, 0))
        return f"{reason}; {HANDED_TO_TC} {why}" if why else reason

    def _tell_ended(self, records: Array) -> bytes:
        enums = {name: self._datapath.enum(name) for name in ended.ENUMS}
        return ended.lines(records, self._daemon.engine.past, enums, self._datapath.clock())

    def _tell_events(self, records: Array) -> bytes:
        links = self._daemon.machine().links
        return events.lines(
            records,
            self._daemon.engine.past.rules,
            {ifindex: link.name for ifindex, link in links.items()},
            self._datapath.enum("firewall_action"),
            self._datapath.clock(),
        )

    def _opened(self) -> dict[int, int]:
        _keys, values = self._datapath.table("opened_v1").items()
        return report.opened(values, self._daemon.engine.tables.endpoints)

    def _names(self) -> Names:
        daemon = self._daemon
        states = state_names(self._datapath.enum("timeout"))
        adopted = self._datapath.enum("flow_state")["FLOW_ADOPTED"]
        known = report.names(daemon.config, daemon.engine.tables, daemon.machine().ifindexes(), states)
        return replace(known, adopted=adopted)

    def _used(self) -> Usage:
        with self._counting:
            tables, known = self._daemon.engine.tables, self._usage
            # Counts of another configuration say nothing of what has come since, nor of a drain.
            if not known or known.tables is not tables or time.monotonic() - known.at > USAGE_SECONDS:
                flows = self._datapath.flows()
                self._usage = known = Usage(
                    at=time.monotonic(),
                    tables=tables,
                    services=flowlist.usage(flows, "service"),
                    endpoints=flowlist.usage(flows, "endpoint"),
                    nats=flowlist.usage(flows, "nat"),
                )
            return known
