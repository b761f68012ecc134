# SPDX-License-Identifier: Apache-2.0
"""`clearway explain ...`: why a connection of Linux is carried by the fast path, or is not."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from clearway.cli.common import Output, OutputOption, group, options_of, print_json, say
from clearway.cli.text import Column, count, print_table, things

RULE_COLUMNS = (
    Column("rule", "rule"),
    Column("class", "kind"),
    Column("keeps", "part"),
    Column("why", "why"),
)


def register(app: typer.Typer) -> None:
    about = "Say what is done with Linux' connections, and why."
    explain, _alone = group("explain", about, "clearway explain flow 10.0.0.2:40000 192.0.2.1:443 tcp")
    explain.command("flow")(flow)
    explain.command("rules")(rules)
    app.add_typer(explain)


VERDICTS = {"clearway": "not open", "blocklist": "dropped"}
"""Of what nobody carries now."""


def flow(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE:PORT", help="Either end of the connection.")],
    destination: Annotated[str, typer.Argument(metavar="DESTINATION:PORT", help="The other end.")],
    protocol: Annotated[str, typer.Argument(help="tcp or udp.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Tell whether the fast path carries a connection, and if not, why.

    Addresses are those of its packets, in either direction. One that Linux does not know is taken as it is,
    not translated.

    \b
    Example:
      clearway explain flow 10.0.0.2:40000 192.0.2.1:443 tcp
    """
    body = {"source": source, "destination": destination, "protocol": protocol}
    found = options_of(context, output).client().post("explain", "flow", body=body)
    if output is Output.JSON:
        print_json(found)
    else:
        _show_flow(found)


def _show_flow(found: dict[str, Any]) -> None:
    carried, others = (
        [one["direction"] for one in found["directions"] if one["carried"] == wanted]
        for wanted in (True, False)
    )
    if found["carried"]:
        verdict = "carried by the fast path"
    elif carried and others:
        verdict = f"only its {carried[0]} direction is carried by the fast path, its {others[0]} is not"
    else:
        verdict = VERDICTS.get(found["owner"], "carried by Linux")
    say(f"{verdict}: {found['why']}")
    for one in found["directions"]:
        way = one["arrives"] if one["arrives"] == one["leaves"] else f"{one['arrives']} as {one['leaves']}"
        ends = (("from", one["interface_in"]), ("to", one["interface_out"]))
        through = " ".join(f"{word} {interface}" for word, interface in ends if interface)
        say(f"  {one['direction']}: {way}{through and ', '}{through}")
        if one["kept"]:
            say(f"    kept in Linux: {one['why']}")
        if one["rule"]:
            say(f"    by {one['rule']}")


def rules(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the rules of Linux with what they mean for the fast path.

    flow-invariant: decides the same for every packet of a connection. restorable: has an effect that is made
    up for, or that packets of established connections do not have. opaque: only Linux can follow it, and what
    it may match stays there. not on the path: forwarded packets do not meet it.

    keeps: which established connections it keeps in Linux, all of its family, some or none; an opaque rule
    that only others get to keeps none.

    \b
    Example:
      clearway explain rules
    """
    found = options_of(context, output).client().get("explain", "rules")
    if output is Output.JSON:
        print_json(found)
        return
    rows = [{**rule, "part": _part(rule)} for rule in found["rules"]]
    print_table(RULE_COLUMNS, rows, "Linux has no rules")
    for sentence in found["others"]:
        say(f"also kept in Linux: {sentence}")
    keeping = sum(rule["keeps"] for rule in found["rules"])
    some = f"{count(keeping)} {'keeps' if keeping == 1 else 'keep'}" if keeping else "none keeps"
    known = f"{things(len(found['rules']), 'rule')} of generation {found['generation']}"
    say(f"\n{known}; {some} connections in Linux")


def _part(rule: dict[str, Any]) -> str:
    if rule["keeps_all"]:
        return "all"
    return "some" if rule["keeps"] else ""
