# SPDX-License-Identifier: Apache-2.0
"""`clearway status` and `clearway get ...`: what is."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import typer

from clearway.cli import complete
from clearway.cli.common import (
    Output,
    OutputOption,
    complain,
    group,
    options_of,
    print_json,
    say,
    something,
    write_out,
)
from clearway.cli.text import Column, count, duration, host_port, print_facts, print_table, size, things

SERVICE_COLUMNS = (
    Column("name", "name"),
    Column("address", "at"),
    Column("mode", "mode"),
    Column("algorithm", "algorithm"),
    Column("endpoints", "taking_of", True),
    Column("flows", "flows", True),
    Column("opened", "opened", True),
    Column("packets", "packets", True),
    Column("bytes", "size", True),
)
ENDPOINT_COLUMNS = (
    Column("service", "service"),
    Column("endpoint", "endpoint"),
    Column("state", "state"),
    Column("weight", "weight", True),
    Column("share", "percent", True),
    Column("flows", "flows", True),
    Column("opened", "opened", True),
    Column("packets", "packets", True),
    Column("bytes", "size", True),
)
NAT_COLUMNS = (
    Column("name", "name"),
    Column("source", "source"),
    Column("interface", "interface"),
    Column("to", "to"),
    Column("ports", "ports"),
    Column("state", "state"),
    Column("flows", "flows", True),
    Column("packets", "packets", True),
    Column("bytes", "size", True),
)
RULE_COLUMNS = (
    Column("", "number", True),
    Column("rule", "title"),
    Column("action", "does"),
    Column("asks for", "asks_for"),
    Column("hits", "hits", True),
    Column("bytes", "size", True),
    Column("last hit", "ago", True),
)
LINUX_COLUMNS = (
    Column("Linux' chain", "where"),
    Column("handle", "handle", True),
    Column("rule", "rule"),
    Column("packets", "packets", True),
    Column("bytes", "size", True),
    Column("by clearway", "carried_packets", True),
)
LIST_COLUMNS = (
    Column("name", "name"),
    Column("kind", "kind"),
    Column("from", "from"),
    Column("IPv4", "ipv4", True),
    Column("IPv6", "ipv6", True),
    Column("packets", "packets", True),
    Column("bytes", "size", True),
)
INTERFACE_COLUMNS = (
    Column("name", "name"),
    Column("state", "state"),
    Column("hook", "hook"),
    Column("asked", "asked"),
    Column("tc by", "mechanism"),
    Column("driver", "driver"),
    Column("why", "reason"),
)
REASON_COLUMNS = (
    Column("verdict", "verdict"),
    Column("reason", "name"),
    Column("packets", "packets", True),
    Column("bytes", "size", True),
    Column("of all", "percent", True),
)
FLOW_COLUMNS = (
    Column("proto", "protocol"),
    Column("state", "state"),
    Column("client", "from"),
    Column("destination", "to"),
    Column("sent as", "from_out"),
    Column("sent to", "to_out"),
    Column("owner", "of"),
    Column("packets", "packets_both", True),
    Column("bytes", "size", True),
    Column("idle", "idle_for", True),
)

ServiceOption = Annotated[
    str | None,
    typer.Option(
        help="Only of this service.", metavar="NAME", autocompletion=complete.services, callback=something
    ),
]


def register(app: typer.Typer) -> None:
    app.command()(status)
    about = "Show services, flows, NAT, rules, lists, interfaces, reasons."
    getting, _alone = group("get", about, "clearway get services")
    for command in (services, endpoints, flows, nat, rules, lists, interfaces, reasons):
        getting.command()(command)
    app.add_typer(getting)


def status(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Show how the daemon and its data path are.

    \b
    Example:
      clearway status
    """
    found = options_of(context, output).client().get("status")
    if output is Output.JSON:
        print_json(found)
    else:
        print_facts(_status_facts(found))


def services(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Show the services: what they are, and what they carry.

    \b
    Example:
      clearway get services
    """
    found = options_of(context, output).client().get("services")
    if output is Output.JSON:
        print_json(found)
        return
    rows = [
        {
            **item,
            "at": f"{host_port(item['address'], item['port'])}/{item['protocol']}",
            "taking_of": f"{item['taking']} of {item['endpoints']}",
            "size": size(item["bytes"]),
        }
        for item in found["services"]
    ]
    print_table(SERVICE_COLUMNS, rows, "no service is configured; `clearway service add` adds one")


def endpoints(
    context: typer.Context, service: ServiceOption = None, output: OutputOption = Output.TABLE
) -> None:
    """Show the endpoints, their shares, and what they carry.

    \b
    Example:
      clearway get endpoints --service web
    """
    found = options_of(context, output).client().get("endpoints", service=service)
    if output is Output.JSON:
        print_json(found)
        return
    rows = [
        {**item, "percent": f"{item['share']:.1%}", "size": size(item["bytes"])}
        for item in found["endpoints"]
    ]
    print_table(ENDPOINT_COLUMNS, rows, "no endpoint is configured; `clearway endpoint add` adds one")


def flows(
    context: typer.Context,
    service: ServiceOption = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Only to this endpoint.",
            metavar="ADDRESS[:PORT]",
            autocompletion=complete.endpoints,
            callback=something,
        ),
    ] = None,
    nat: Annotated[
        str | None,
        typer.Option(
            help="Only of this NAT rule.", metavar="NAME", autocompletion=complete.nats, callback=something
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Only with this address on either side.", metavar="ADDRESS[/LENGTH]", callback=something
        ),
    ] = None,
    protocol: Annotated[
        Literal["tcp", "udp", "icmp", "icmpv6"] | None, typer.Option(help="Only of this protocol.")
    ] = None,
    state: Annotated[
        str | None, typer.Option(help="As in the list: established, udp_stream, ...", callback=something)
    ] = None,
    owner: Annotated[
        Literal["clearway", "linux"] | None,
        typer.Option(help="linux: only those that were learned from its conntrack."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=0, help="At most so many. [default: 50; all with -o json]")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show connections, those first that have carried most.

    \b
    Example:
      clearway get flows --service web --state established --limit 20
    """
    client = options_of(context, output).client()
    wanted: dict[str, str | int | None] = {
        "service": service,
        "endpoint": endpoint,
        "nat": nat,
        "address": address,
        "protocol": protocol,
        "state": state,
        "owner": owner,
    }
    if output is Output.JSON:
        write_out(client.stream("flows", **wanted, limit=limit))
        return
    found = client.get("flows", **wanted, limit=50 if limit is None else limit)
    shown = len(found["flows"])
    if shown or not found["matched"]:
        print_table(FLOW_COLUMNS, [_flow_row(item) for item in found["flows"]], "no flow matches")
    if shown < found["matched"]:
        say(f"\n{count(shown)} of {count(found['matched'])} flows; --limit shows more")


def nat(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Show the source NAT rules, and what they carry.

    \b
    Example:
      clearway get nat
    """
    found = options_of(context, output).client().get("nat")
    if output is Output.JSON:
        print_json(found)
        return
    rows = [{**item, "size": size(item["bytes"])} for item in found["nat"]]
    print_table(NAT_COLUMNS, rows, "no NAT rule is configured")


def rules(
    context: typer.Context,
    hit: Annotated[bool, typer.Option("--hit", help="Only those that have decided something.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the rules of firewall and Linux, and what they count.

    A hit is a connection that was accepted, or a packet that was refused. The last line is what becomes of
    the rest. Linux' rules count packets; those are among them that clearway has carried around them.

    \b
    Example:
      clearway get rules
    """
    client = options_of(context, output).client()
    found, counted = client.get("rules"), client.get("rules/linux")
    shown = [item for item in found["rules"] if item["hits"] or not hit]
    linux = [item for item in counted["linux"] if item["packets"] or not hit]
    if output is Output.JSON:
        print_json({**found, "rules": shown, **counted, "linux": linux})
        return
    if found["rules"] or not linux:
        _print_firewall(found, shown)
    if found["rules"] and linux:
        print()
    if linux:
        print_table(LINUX_COLUMNS, [_linux_row(item) for item in linux], "")
    if counted["why"]:
        complain(f"Linux' rules: {counted['why']}")


def _linux_row(item: dict[str, Any]) -> dict[str, Any]:
    where = " ".join(word for word in (item["family"], item["table"], item["chain"]) if word)
    return {**item, "where": where, "size": size(item["bytes"])}


def _print_firewall(found: dict[str, Any], shown: list[dict[str, Any]]) -> None:
    rows = [
        {
            **item,
            "title": item["name"] or "(default)",
            "does": f"{item['action']}, log" if item["log"] else item["action"],
            "asks_for": item["asks"] or ("everything" if item["name"] else "the rest"),
            "size": size(item["bytes"]),
            "ago": f"{duration(max(0.0, time.time() - item['last']))} ago" if item["last"] else "never",
        }
        for item in shown
    ]
    empty = "no rule has decided anything yet" if found["rules"] else "there is no firewall"
    print_table(RULE_COLUMNS, rows, empty)


def lists(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Show blocklists and allowlists, and what they count.

    \b
    Example:
      clearway get lists
    """
    found = options_of(context, output).client().get("lists")
    if output is Output.JSON:
        print_json(found)
        return
    rows = [
        {
            **item,
            "from": item["file"] or "configuration",
            **{family: "?" if item[family] is None else item[family] for family in ("ipv4", "ipv6")},
            "size": size(item["bytes"]),
        }
        for item in found["lists"]
    ]
    print_table(LIST_COLUMNS, rows, "no list is configured (scrub.blocklists, scrub.allowlists)")


def interfaces(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Show where clearway takes packets, by which hook, and why.

    \b
    Example:
      clearway get interfaces
    """
    found = options_of(context, output).client().get("interfaces")
    if output is Output.JSON:
        print_json(found)
        return
    print_table(INTERFACE_COLUMNS, found["interfaces"], "no interface is configured")


def reasons(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Show what became of every packet, by verdict.

    Each packet counts under one reason, so they add up to what was received.

    \b
    Example:
      clearway get reasons
    """
    found = options_of(context, output).client().get("reasons")
    if output is Output.JSON:
        print_json(found)
        return
    print_table(REASON_COLUMNS, _reason_rows(found), "no packet has arrived yet")


def _status_facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    config, sweep = found["config"], found["sweep"]
    changed = ", changed through the API" if config["changed_by_api"] else ""
    facts = [
        (
            "daemon",
            f"clearway {found['version']}, instance {found['instance']}, pid {found['pid']},"
            f" for {duration(found['uptime'])}{', found its data path running' if found['adopted'] else ''}",
        ),
        ("kernel", f"{found['kernel']}, network namespace {found['network_namespace']}"),
        ("configuration", f"{config['file']}{changed}, epoch {found['epoch']}"),
        (
            "carrying",
            f"{things(found['services'], 'service')}, {things(found['endpoints'], 'endpoint')},"
            f" {things(found['nat'], 'NAT rule')}"
            + ("" if found["rules"] is None else f", {things(found['rules'], 'firewall rule')}"),
        ),
        ("interfaces", f"{found['interfaces']} attached"),
        ("received", f"{things(found['received_packets'], 'packet')}, {size(found['received_bytes'])}"),
    ]
    if sweep:
        facts.append(
            (
                "flow table",
                f"{things(sweep['connections'], 'connection')}, made for {count(found['max_flows'])} of each"
                f" family; aged {duration(sweep['ago'])} ago in {sweep['seconds'] * 1000:.1f} ms",
            )
        )
    if ended := [f"{count(n)} {why.replace('_', ' ')}" for why, n in found["ended"].items() if n]:
        facts.append(("connections ended", ", ".join(ended)))
    if found["lost_records"]:
        facts.append(("lost", f"{count(found['lost_records'])} ends of connections that were to be followed"))
    if found["lost_events"]:
        facts.append(
            ("lost", f"{count(found['lost_events'])} decisions of the firewall that were to be told")
        )
    if found["unaccounted_packets"]:
        facts.append(
            (
                "lost",
                f"{count(found['unaccounted_packets'])} packets that Linux' rules were to be credited with",
            )
        )
    facts += _adoption_facts(found)
    if config["refused"]:
        facts.append(("refused", f"the file's new content: {config['refused']}"))
    facts += [("waiting", sentence) for sentence in found["waiting"]]
    return facts + [("!", sentence) for sentence in found["warnings"]]


def _adoption_facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What is carried for Linux, and what Linux was asked for in return."""
    adoption = found["adoption"]
    if adoption["why"]:
        facts = [("adopting", f"nothing: {adoption['why']}")]
    else:
        what = "keeps" if adoption["keeping"] == 1 else "keep"
        keeping = (
            f"{count(adoption['keeping'])} of them {what} connections in Linux (`clearway explain rules`)"
        )
        facts = [
            (
                "adopting",
                f"connections of Linux, under its {things(adoption['rules'], 'rule')}"
                f" (generation {adoption['generation']}, read in {adoption['seconds'] * 1000:.0f} ms)"
                + (f"; {keeping}" if adoption["keeping"] else ""),
            )
        ]
    if adoption["honoured"]:
        facts.append(("honouring", adoption["honoured"]))
    facts += [("listened", f"traffic is shown to {who}") for who in found["listened"]]
    changed = [f"{one['name']} = {one['now']} (was {one['before']})" for one in found["settings"]]
    return [*facts, ("settings", f"{', '.join(changed)}; put back by `clearway down`")] if changed else facts


def _flow_row(item: dict[str, Any]) -> dict[str, Any]:
    return {
        **item,
        "from": host_port(item["client"], item["client_port"]),
        "to": host_port(item["destination"], item["destination_port"]),
        "from_out": host_port(item["source_out"], item["source_out_port"]),
        "to_out": host_port(item["destination_out"], item["destination_out_port"]),
        "of": item["service"] or item["nat"] or item["owner"],
        "packets_both": item["packets"] + item["reply_packets"],
        "size": size(item["bytes"] + item["reply_bytes"]),
        "idle_for": duration(item["idle"]),
    }


def _reason_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Reasons that have happened, a sum under each verdict, and what was received."""
    received = found["received_packets"]
    rows: list[dict[str, Any]] = []
    for verdict in ("forward", "answer", "punt", "drop"):
        group_of = [item for item in found["reasons"] if item["verdict"] == verdict and item["packets"]]
        rows += [
            _reason_row(verdict, item["reason"].removeprefix(f"{verdict}_"), item, received)
            for item in group_of
        ]
        if len(group_of) > 1:
            sums = {key: sum(item[key] for item in group_of) for key in ("packets", "bytes")}
            rows.append(_reason_row(verdict, "(all)", sums, received))
    if not rows and not received:
        return []
    whole = {"packets": received, "bytes": found["received_bytes"]}
    accounted = {"packets": found["accounted_packets"], "bytes": found["accounted_bytes"]}
    return [
        *rows,
        _reason_row("all", "accounted for", accounted, received),
        _reason_row("", "received", whole, received),
    ]


def _reason_row(verdict: str, name: str, item: dict[str, Any], received: int) -> dict[str, Any]:
    share = item["packets"] / received if received else 0.0
    return {
        "verdict": verdict,
        "name": name,
        "packets": item["packets"],
        "size": size(item["bytes"]),
        "percent": f"{share:.1%}",
    }
