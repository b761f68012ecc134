# SPDX-License-Identifier: Apache-2.0
"""From what the user said to rows of tables, and to the plan of a change. Pure: needs no kernel."""

from .blocked import blocked_by
from .compile import compile_tables
from .facts import Clock, HostFacts, TableSizes
from .firewall import identity_of
from .memory import MemoryEstimate, TableMemory, estimate_memory, require_memory
from .plan import Change, FieldChange, Plan, plan_configs, plan_tables
from .state import what_it_asks
from .tables import EndpointRow, FirewallTables, NatRow, RuleRow, ScrubTables, ServiceRow, Tables, Wheel

__all__ = [
    "Change",
    "Clock",
    "EndpointRow",
    "FieldChange",
    "FirewallTables",
    "HostFacts",
    "MemoryEstimate",
    "NatRow",
    "Plan",
    "RuleRow",
    "ScrubTables",
    "ServiceRow",
    "TableMemory",
    "TableSizes",
    "Tables",
    "Wheel",
    "blocked_by",
    "compile_tables",
    "estimate_memory",
    "identity_of",
    "plan_configs",
    "plan_tables",
    "require_memory",
    "what_it_asks",
]
