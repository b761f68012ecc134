# SPDX-License-Identifier: Apache-2.0
"""`clearway firewall ...`: which rule decides, what rules have decided, sets."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import typer

from clearway.cli import complete
from clearway.cli.common import (
    Output,
    OutputOption,
    complain,
    follow_lines,
    group,
    options_of,
    print_json,
    say,
    something,
)
from clearway.cli.configure import read_file, show_plan
from clearway.cli.importing import firewall_import
from clearway.cli.text import host_port, things

SHOWN_BEFORE = 10


def register(app: typer.Typer) -> None:
    about = "Ask, follow and bring along firewall rules."
    firewall, _alone = group(
        "firewall", about, "clearway firewall test 'tcp 198.51.100.7:4000 -> 10.0.0.1:22'"
    )
    firewall.command("test")(test)
    firewall.command("log")(log)
    firewall.command("set")(set_replace)
    firewall.command("import")(firewall_import)
    app.add_typer(firewall)


def test(
    context: typer.Context,
    packet: Annotated[
        str,
        typer.Argument(metavar="PACKET", help="'PROTOCOL SOURCE[:PORT] -> DESTINATION[:PORT] [ICMP-TYPE]'"),
    ],
    interface_in: Annotated[
        str | None,
        typer.Option(
            "--in",
            metavar="INTERFACE",
            help="Interface it comes in by.",
            autocompletion=complete.interfaces,
            callback=something,
        ),
    ] = None,
    interface_out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="INTERFACE",
            help="Interface it goes out by. [default: as the routes are]",
            autocompletion=complete.interfaces,
            callback=something,
        ),
    ] = None,
    direction: Annotated[
        Literal["through", "local"] | None,
        typer.Option(help="Forwarded, or for this machine. [default: by this machine's addresses]"),
    ] = None,
    tcp_flags: Annotated[
        str | None, typer.Option(metavar="FLAGS", help="Flags of TCP. [default: syn]", callback=something)
    ] = None,
    dscp: Annotated[str | None, typer.Option(metavar="CLASS", help="DSCP class.", callback=something)] = None,
    vlan: Annotated[int, typer.Option(min=0, max=4094, help="VID of its tag. [default: none]")] = 0,
    translated: Annotated[
        str | None,
        typer.Option(metavar="PACKET", help="As what it leaves, if it is translated.", callback=something),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Tell which rule decides about a packet, and why.

    About one that opens a connection; none is sent. Rules and sets are those in force.

    \b
    Example:
      clearway firewall test 'tcp 198.51.100.7:4000 -> 10.0.0.1:22' --in eth0
    """
    asked = {
        "packet": packet,
        "interface_in": interface_in,
        "interface_out": interface_out,
        "direction": direction,
        "tcp_flags": tcp_flags,
        "dscp": dscp,
        "vlan": vlan,
        "translated": translated,
    }
    given = {key: value for key, value in asked.items() if value is not None}
    found = options_of(context, output).client().post("firewall", "test", body=given)
    if output is Output.JSON:
        print_json(found)
    else:
        _show_found(found)


def _show_found(found: dict[str, Any]) -> None:
    """The rule that decides and what it asks for, then the rules before it and why they do not."""
    where = "for this machine" if found["local"] else f"to leave by {found['interface_out'] or 'nowhere'}"
    by = f"rule {found['rule']}" if found["rule"] else "the default, because it meets no rule"
    say(f"{found['action']}: by {by}")
    if found["rule"]:
        say(f"  which asks for: {found['asks'] or 'everything'}")
    say(f"  the packet is {where}")
    before = found["before"]
    if len(before) > SHOWN_BEFORE:
        say(f"  {things(len(before) - SHOWN_BEFORE, 'rule')} before these: not met; -o json shows why")
    for item in before[-SHOWN_BEFORE:]:
        say(f"  not by {item['rule']}: {item['why']}")


def log(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Follow what rules with `log: true` decide, a line each.

    Until interrupted. With -o json every line is an object, with the first bytes of the packet. Lossless up
    to 20,000 a second; what is lost beyond is counted in `clearway status`.

    \b
    Example:
      clearway firewall log
    """
    rules = options_of(context, output).client().get("rules")["rules"]
    if not rules:
        complain("there is no firewall; waiting for one")
    elif not any(rule["log"] for rule in rules):
        complain("no rule has log: true; waiting for one")
    follow_lines(context, output, ("firewall", "log"), text)


def text(event: dict[str, Any]) -> str:
    """One decision on one line."""
    when = time.strftime("%H:%M:%S", time.localtime(event["at"]))
    ports = event["protocol"] in ("tcp", "udp")
    ends = [
        host_port(event[name], event[f"{name}_port"]) if ports else event[name]
        for name in ("source", "destination")
    ]
    kind = event["tcp_flags"] or event["icmp_type"] or ""
    packet = f"{event['protocol']} {ends[0]} -> {ends[1]} {kind}".rstrip()
    where = f"in {event['interface_in'] or '-'}, out {event['interface_out'] or '-'}"
    known = ", of a connection that was accepted before" if event["known"] else ""
    rule = event["rule"] or "(default)"
    return f"{when} {event['action']} {rule}: {packet}  {where}, {event['length']} bytes{known}"


def set_replace(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the set.", callback=something)],
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A prefix or a port on each line, # begins a remark; - reads standard input.",
            callback=something,
        ),
    ],
    output: OutputOption = Output.TABLE,
) -> None:
    """Exchange what is in a named set, in one step.

    A file with no member in it is refused: what should have written it may have failed.

    \b
    Example:
      clearway firewall set office office.txt
    """
    content, source = read_file(file)
    client = options_of(context, output).client()
    show_plan(client.put_text("firewall", "sets", name, text=content, source=source), output)
