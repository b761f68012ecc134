# SPDX-License-Identifier: Apache-2.0
"""`clearway service ...` and `clearway endpoint ...`: single things, added and removed while traffic runs."""

from __future__ import annotations

import math
import re
import time
from typing import Annotated, Any, Literal

import typer

from clearway.api.client import Client
from clearway.cli import complete
from clearway.cli.common import (
    CommandError,
    ExitCode,
    Output,
    OutputOption,
    group,
    options_of,
    say,
    something,
)
from clearway.cli.configure import show_plan
from clearway.cli.text import count

POLL_SECONDS = 1.0
ENDPOINT = re.compile(r"([^,]+):([0-9]{1,9})(?:,weight=([0-9]{1,9}))?")

ServiceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SERVICE",
        help="Name of the service.",
        autocompletion=complete.services,
        callback=something,
    ),
]
EndpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="ENDPOINT",
        help="ADDRESS:PORT; the address alone where it is clear which one is meant.",
        autocompletion=complete.endpoints,
        callback=something,
    ),
]


def _has_an_end(seconds: float | None) -> float | None:
    if seconds is not None and not math.isfinite(seconds):
        raise typer.BadParameter(f"{seconds} seconds never end; give a number")
    return seconds


def register(app: typer.Typer) -> None:
    service, _alone = group("service", "Add and remove services.", "clearway service remove web")
    service.command("add")(service_add)
    service.command("remove")(service_remove)
    app.add_typer(service)
    about = "Add, remove and drain endpoints of a service."
    endpoint, _alone = group("endpoint", about, "clearway endpoint drain web 10.0.0.3:8080")
    endpoint.command("add")(endpoint_add)
    endpoint.command("remove")(endpoint_remove)
    endpoint.command("drain")(endpoint_drain)
    app.add_typer(endpoint)


def service_add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new service.")],
    address: Annotated[str, typer.Option(help="Address that clients connect to.")],
    port: Annotated[int, typer.Option(help="Port that clients connect to.")],
    protocol: Annotated[Literal["tcp", "udp"], typer.Option(help="What clients speak.")] = "tcp",
    mode: Annotated[
        Literal["nat", "full-nat"], typer.Option(help="full-nat: endpoints see the node, not the client.")
    ] = "nat",
    algorithm: Annotated[
        Literal["maglev", "round-robin"], typer.Option(help="How endpoints are chosen.")
    ] = "maglev",
    netfilter: Annotated[
        Literal["honour", "bypass"], typer.Option(help="Whether Linux' own rules decide about its traffic.")
    ] = "honour",
    endpoint: Annotated[
        list[str] | None,
        typer.Option(help="ADDRESS:PORT, or ADDRESS:PORT,weight=N; as often as there are endpoints."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Add a service.

    \b
    Example:
      clearway service add web --address 203.0.113.10 --port 80 --endpoint 10.0.0.2:8080
    """
    client = options_of(context, output).client()
    data = {
        "name": name,
        "address": address,
        "port": port,
        "protocol": protocol,
        "mode": mode,
        "algorithm": algorithm,
        "netfilter": netfilter,
        "endpoints": [_endpoint_data(text) for text in endpoint or ()],
    }
    show_plan(client.post("services", body=data), output)


def service_remove(
    context: typer.Context, service: ServiceArgument, output: OutputOption = Output.TABLE
) -> None:
    """Remove a service and its endpoints. Its connections end.

    \b
    Example:
      clearway service remove web
    """
    show_plan(options_of(context, output).client().delete("services", service), output)


def endpoint_add(
    context: typer.Context,
    service: ServiceArgument,
    endpoint: Annotated[str, typer.Argument(metavar="ENDPOINT", help="ADDRESS:PORT of the server.")],
    weight: Annotated[
        int | None, typer.Option(help="Share of new connections, in proportion to the others. [default: 1]")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Add an endpoint to a service.

    \b
    Example:
      clearway endpoint add web 10.0.0.3:8080 --weight 2
    """
    client = options_of(context, output).client()
    data = _endpoint_data(endpoint)
    if weight is not None and data.setdefault("weight", weight) != weight:
        raise CommandError(ExitCode.USAGE, f"{endpoint!r} and --weight {weight} differ; give one of them")
    show_plan(client.post("services", service, "endpoints", body=data), output)


def endpoint_remove(
    context: typer.Context,
    service: ServiceArgument,
    endpoint: EndpointArgument,
    output: OutputOption = Output.TABLE,
) -> None:
    """Remove an endpoint. Its connections end: drain it first to let them finish.

    \b
    Example:
      clearway endpoint remove web 10.0.0.3:8080
    """
    client = options_of(context, output).client()
    show_plan(client.delete("services", service, "endpoints", endpoint), output)


def endpoint_drain(
    context: typer.Context,
    service: ServiceArgument,
    endpoint: EndpointArgument,
    undo: Annotated[bool, typer.Option("--undo", help="Give it new connections again.")] = False,
    wait: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Wait so long for its connections to end.",
            callback=_has_an_end,
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give an endpoint no new connections; those that it has go on.

    With --wait the command ends when the last connection has ended, or with exit code 1 when that takes
    longer.

    \b
    Example:
      clearway endpoint drain web 10.0.0.3:8080 --wait 300
    """
    client = options_of(context, output).client()
    drain = "false" if undo else "true"
    result = client.post("services", service, "endpoints", endpoint, "drain", drain=drain)
    show_plan(result, output)
    if wait is not None and not undo:
        _wait_for_last_flow(client, service, endpoint, wait)
        if output is Output.TABLE:
            say(f"{endpoint} has no connection left")


def _endpoint_data(text: str) -> dict[str, Any]:
    """ "10.0.0.2:8080,weight=2" as the configuration has it. What it means is checked by the daemon."""
    found = ENDPOINT.fullmatch(text)
    if found is None:
        raise CommandError(
            ExitCode.USAGE,
            f"{text!r} is no endpoint; write ADDRESS:PORT, [ADDRESS]:PORT for IPv6, and ,weight=N after it",
        )
    address, port, weight = found.groups()
    if ":" in address and not (address.startswith("[") and address.endswith("]")):
        raise CommandError(
            ExitCode.USAGE, f"{text!r}: an IPv6 address needs brackets; write [{address.strip('[]')}]:{port}"
        )
    data: dict[str, Any] = {"address": address.removeprefix("[").removesuffix("]"), "port": int(port)}
    return {**data, "weight": int(weight)} if weight else data


def _wait_for_last_flow(client: Client, service: str, endpoint: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        found = client.get("endpoints", service=service)["endpoints"]
        left = sum(item["flows"] for item in found if endpoint in (item["endpoint"], item["address"]))
        if not left:
            return
        if time.monotonic() > deadline:
            raise CommandError(
                ExitCode.REFUSED,
                f"{endpoint} still has {count(left)} connections after {seconds:g} s; it goes on draining",
            )
        time.sleep(POLL_SECONDS)
