# SPDX-License-Identifier: Apache-2.0
"""How a plan is told, besides its own words."""

from __future__ import annotations

from clearway.compiler import Plan
from clearway.model import Config


def done(plan: Plan) -> str:
    """Plan.summary() afterwards: 1 added, 0 changed, 2 removed."""
    if plan.empty:
        return "nothing has changed"
    text = f"{plan.count('add')} added, {plan.count('change')} changed, {plan.count('remove')} removed"
    restarts = plan.count("restart")
    return f"{text}, {restarts} after a restart" if restarts else text


def planned(plan: Plan, desired: Config, warnings: list[str]) -> str:
    """Plan.human(), whose last line is about memory, with what that depends on most; then the warnings."""
    flows = f"; {desired.conntrack.max_flows:,} flows a family: lower conntrack.max_flows for less"
    return "\n".join([plan.human() + ("" if plan.empty else flows), *warning_lines(warnings)])


def warning_lines(warnings: list[str]) -> list[str]:
    return [f"! {warning}" for warning in warnings]
