# SPDX-License-Identifier: Apache-2.0
"""The real API server and client over a real unix socket, before a daemon that is none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from clearway.api.app import build_app
from clearway.api.control import FilterError
from clearway.api.server import ApiServer
from clearway.api.views import (
    AdoptionView,
    ConfigView,
    DirectionView,
    Endpoints,
    EndpointView,
    FirewallDecision,
    FirewallQuestion,
    FlowExplanation,
    FlowFilter,
    FlowQuestion,
    Interfaces,
    InterfaceView,
    LinuxCounterView,
    LinuxCounterViews,
    LinuxRules,
    LinuxRuleView,
    Lists,
    ListView,
    Nats,
    NatView,
    Reasons,
    ReasonView,
    RefutedView,
    Rules,
    RuleView,
    Services,
    ServiceView,
    SettingView,
    StatusView,
    SweepView,
)
from clearway.compiler import HostFacts, Plan, compile_tables, plan_configs
from clearway.datapath import DatapathError
from clearway.model import Config, config_from_data

HONOURED = "no rule of Linux is on the way of services and NAT"
FACTS = HostFacts(32768, 60999, {"lo": 1, "eth0": 2})

CONFIG = config_from_data(
    {
        "interfaces": [{"name": "eth0", "hook": "tc"}],
        "services": [
            {
                "name": "web",
                "address": "203.0.113.10",
                "port": 80,
                "protocol": "tcp",
                "endpoints": [{"address": "10.0.0.2", "port": 8080}, {"address": "10.0.0.3", "port": 8080}],
            }
        ],
        "nat": [{"name": "out", "source": "10.0.0.0/8", "interface": "eth0", "masquerade": True}],
    }
)

WEB_RULE = RuleView(
    number=1, name="web", action="accept", log=True, asks="protocol tcp", hits=7, bytes=420, last=1e9
)
BAD_LIST = ListView(
    name="bad", kind="block", file="/etc/bad.txt", ipv4=1_000_000, ipv6=12, packets=34, bytes=5600
)
THE_REST = RuleView(number=2, name="", action="drop", log=False, asks="", hits=0, bytes=0, last=None)

COUNTED = LinuxCounterViews(
    linux=[
        LinuxCounterView(
            kind="rule",
            family="inet",
            table="filter",
            chain="forward",
            handle=7,
            rule="ct state established counter accept",
            packets=1200,
            bytes=3 << 20,
            carried_packets=1190,
            carried_bytes=2 << 20,
        )
    ],
    why="",
)


@dataclass
class FakeControl:
    """Holds a configuration and nothing else. `broken` is raised by whatever would touch the kernel."""

    running: Config = CONFIG
    flows_asked: list[FlowFilter] = field(default_factory=list)
    ended_pieces: list[bytes] = field(default_factory=list)
    flow_pieces: list[bytes] = field(
        default_factory=lambda: [b'{"matched": 0, "total": 0, "flows": [', b"]}"]
    )
    draining_flows: int = 0
    rule_views: list[RuleView] = field(default_factory=lambda: [WEB_RULE, THE_REST])
    linux_views: LinuxCounterViews = COUNTED
    broken: Exception | None = None
    removed: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)
    log: list[MutableMapping[str, Any]] = field(default_factory=list)

    def status(self) -> StatusView:
        self._work()
        return StatusView(
            instance="test",
            version="1.2.3",
            pid=4711,
            uptime=7384.0,
            kernel="6.12.0",
            network_namespace=4026531840,
            adopted=True,
            kernel_context=True,
            epoch=5,
            mirror=9,
            config=ConfigView(
                file="/etc/x.yaml", file_sha256="00", changed_by_api=True, refused="no: fix it"
            ),
            interfaces=1,
            services=len(self.running.services),
            endpoints=2,
            nat=1,
            rules=2,
            max_flows=1048576,
            ended={"expired": 12, "evicted_half_open": 0},
            lost_records=0,
            lost_events=0,
            unaccounted_packets=0,
            sweep=SweepView(connections=1234567, expired=3, seconds=0.0021, ago=0.4),
            received_packets=1000,
            received_bytes=64000,
            waiting=["interface eth9 is not there"],
            warnings=self.warnings(self.running),
            adoption=AdoptionView(
                possible=True, generation=7, rules=12, keeping=2, seconds=0.0214, why="", honoured=HONOURED
            ),
            listened=["eth0: tcpdump (4712), by TC instead of XDP"],
            settings=[SettingView(name="net.ipv4.conf.lo.accept_local", before="0", now="1")],
        )

    def config(self) -> Config:
        return self.running

    def warnings(self, config: Config) -> list[str]:
        return [f"nat {rule.name}: a warning" for rule in config.nat]

    def services(self) -> Services:
        self._work()
        return Services(
            services=[
                ServiceView(
                    name=service.name,
                    address=str(service.address),
                    port=service.port,
                    protocol=service.protocol,
                    mode=service.mode,
                    algorithm=service.algorithm,
                    endpoints=len(service.endpoints),
                    taking=1,
                    flows=12345,
                    opened=23456,
                    packets=34567,
                    bytes=5 << 30,
                )
                for service in self.running.services
            ]
        )

    def endpoints(self, service: str | None) -> Endpoints:
        names = [item.name for item in self.running.services]
        if service is not None and service not in names:
            raise FilterError(f"there is no service {service}; services: {', '.join(names)}")
        return Endpoints(
            endpoints=[
                EndpointView(
                    service=item.name,
                    endpoint=f"{endpoint.address}:{endpoint.port}",
                    address=str(endpoint.address),
                    port=endpoint.port,
                    weight=endpoint.weight,
                    state="draining" if endpoint.drain else "active",
                    share=0.5,
                    flows=self.draining_flows,
                    opened=2,
                    packets=3,
                    bytes=4,
                )
                for item in self.running.services
                for endpoint in item.endpoints
                if service in (None, item.name)
            ]
        )

    def nat(self) -> Nats:
        view = NatView(
            name="out",
            source="10.0.0.0/8",
            interface="eth0",
            to="masquerade",
            ports="1024-32767",
            state="active",
            flows=1,
            packets=2,
            bytes=3,
        )
        return Nats(nat=[view])

    def lists(self) -> Lists:
        self._work()
        return Lists(lists=[BAD_LIST])

    def rules(self) -> Rules:
        return Rules(rules=self.rule_views)

    def linux_counters(self) -> LinuxCounterViews:
        return self.linux_views

    def ask_firewall(self, question: FirewallQuestion) -> FirewallDecision:
        if "->" not in question.packet:
            raise FilterError(f"{question.packet!r} is no packet")
        return FirewallDecision(
            number=2,
            rule="web",
            action="accept",
            log=False,
            asks="protocol tcp",
            local=False,
            interface_out=question.interface_out or "eth0",
            before=[RefutedView(rule="ssh", why="destination port 80 is not meant")],
        )

    def explain_flow(self, question: FlowQuestion) -> FlowExplanation:
        self._work()
        way = f"{question.source} -> {question.destination}"
        limit = "inet filter forward handle 9: limit rate 10/second accept"
        return FlowExplanation(
            owner="linux",
            carried=False,
            can_be=False,
            why="may match a rule with a limit",
            directions=[
                DirectionView(
                    direction=name,
                    arrives=way,
                    leaves=way,
                    interface_in="eth0",
                    interface_out=out,
                    carried=not rule,
                    kept=bool(rule),
                    why="may match a rule with a limit" if rule else "",
                    rule=rule,
                )
                for name, out, rule in (("original", "eth1", limit), ("reply", None, None))
            ],
        )

    def explain_rules(self) -> LinuxRules:
        self._work()
        views = [
            LinuxRuleView(rule=rule, kind=kind, why="", keeps=keeps, keeps_all=keeps_all)
            for rule, kind, keeps, keeps_all in (
                ("ip nat post handle 3: masquerade", "restorable", False, False),
                ("ip filter forward handle 4: tcp dport 22 drop", "restorable", True, False),
                ("ip filter forward handle 5: limit rate 1/second accept", "opaque", True, True),
            )
        ]
        return LinuxRules(generation=7, rules=views, others=["tc has filters for what comes in by eth0"])

    def interfaces(self) -> Interfaces:
        view = InterfaceView(
            name="eth0",
            ifindex=2,
            asked="auto",
            hook="xdp",
            mechanism="tcx",
            driver="ice",
            state="attached",
            reason="driver ice has native XDP",
        )
        return Interfaces(interfaces=[view])

    def reasons(self) -> Reasons:
        counted = {"forward_flow": 900, "forward_new": 60, "punt_icmp": 40, "drop_no_port": 0}
        return Reasons(
            reasons=[
                ReasonView(reason=name, verdict=name.partition("_")[0], packets=n, bytes=64 * n)
                for name, n in counted.items()
            ],
            received_packets=1000,
            received_bytes=64000,
            accounted_packets=1000,
            accounted_bytes=64000,
        )

    def flows(self, wanted: FlowFilter) -> Iterator[bytes]:
        self._work()
        self.flows_asked.append(wanted)
        return iter(self.flow_pieces)

    async def ended(self) -> AsyncIterator[bytes]:
        self._work()
        return self._ended()

    async def events(self) -> AsyncIterator[bytes]:
        self._work()
        return self._ended()

    async def _ended(self) -> AsyncIterator[bytes]:
        for piece in self.ended_pieces:
            yield piece

    async def plan(self, desired: Config) -> Plan:
        self._work()
        return plan_configs(self.running, desired, FACTS, compile_tables(desired, FACTS))

    async def change(self, edit: Callable[[Config], Config]) -> Plan:
        desired = edit(self.running)
        plan = await self.plan(desired)
        self.running = desired
        return plan

    async def reload(self) -> Plan | None:
        self._work()
        return None

    async def remove(self) -> None:
        self._work()
        self.removed = True

    def stop(self) -> None:
        self.stopped.set()

    def _work(self) -> None:
        if self.broken is not None:
            raise self.broken


REFUSED_BY_KERNEL = DatapathError(
    "interface eth0: another XDP program is attached: remove it or use hook: tc"
)


@contextmanager
def serving(control: FakeControl, path: Path) -> Iterator[Path]:
    """The API of `control` at a socket, served by a thread of its own."""
    up = threading.Event()
    ending: list[Callable[[], object]] = []

    async def serve() -> None:
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        server = ApiServer(build_app(control), path)
        await server.start()
        ending.append(lambda: loop.call_soon_threadsafe(end.set))
        up.set()
        await end.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    with capture_logs() as control.log:
        thread.start()
        try:
            assert up.wait(20), "the API did not start"
            yield path
        finally:
            for end in ending:
                end()
            thread.join(20)
