# SPDX-License-Identifier: Apache-2.0
"""What the API needs from the daemon; tests give it something smaller."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

from clearway.api.views import (
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
    StatusView,
)
from clearway.compiler import Plan
from clearway.model import Config


class FilterError(Exception):
    """A filter that cannot match anything; one line that says what could be meant."""


class Control(Protocol):
    """Plain methods read and may take a while: they are called in threads. Coroutines change things.

    What is refused is raised as ConfigError, FilterError, DatapathError or OSError.
    """

    def status(self) -> StatusView: ...

    def config(self) -> Config: ...

    def warnings(self, config: Config) -> list[str]:
        """A sentence for what this configuration allows and probably does not mean."""
        ...

    def services(self) -> Services: ...

    def endpoints(self, service: str | None) -> Endpoints: ...

    def nat(self) -> Nats: ...

    def rules(self) -> Rules: ...

    def lists(self) -> Lists: ...

    def linux_counters(self) -> LinuxCounterViews: ...

    def ask_firewall(self, question: FirewallQuestion) -> FirewallDecision: ...

    def explain_flow(self, question: FlowQuestion) -> FlowExplanation: ...

    def explain_rules(self) -> LinuxRules: ...

    def interfaces(self) -> Interfaces: ...

    def reasons(self) -> Reasons: ...

    def flows(self, wanted: FlowFilter) -> Iterator[bytes]: ...

    async def ended(self) -> AsyncIterator[bytes]:
        """Connections as they end, a line of JSON each, for as long as somebody reads."""
        ...

    async def events(self) -> AsyncIterator[bytes]:
        """Decisions of firewall rules that log, likewise."""
        ...

    async def plan(self, desired: Config) -> Plan: ...

    async def change(self, edit: Callable[[Config], Config]) -> Plan: ...

    async def reload(self) -> Plan | None: ...

    async def remove(self) -> None: ...

    def stop(self) -> None: ...
