# SPDX-License-Identifier: Apache-2.0
"""`clearway follow`: connections as they end."""

from __future__ import annotations

import time
from typing import Any

import typer

from clearway.cli.common import Output, OutputOption, follow_lines
from clearway.cli.text import count, duration, host_port, size


def register(app: typer.Typer) -> None:
    app.command()(follow)


def follow(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Follow connections as they end, a line each.

    For flow export, until interrupted. With -o json every line is an object. Lossless up to 50,000 ends a
    second; what is lost beyond is counted in `clearway status`.

    \b
    Example:
      clearway follow -o json
    """
    follow_lines(context, output, ("flows", "ended"), text)


def text(flow: dict[str, Any]) -> str:
    """One connection on one line."""
    ends = [
        host_port(flow[name], flow[f"{name}_port"])
        for name in ("client", "destination", "source_out", "destination_out")
    ]
    when = time.strftime("%H:%M:%S", time.localtime(flow["ended"]))
    way = f"{ends[0]} -> {ends[1]}"
    if ends[2:] != ends[:2]:
        way += f" as {ends[2]} -> {ends[3]}"
    carried = (
        f"{count(flow['packets'])}/{count(flow['reply_packets'])} packets,"
        f" {size(flow['bytes'])}/{size(flow['reply_bytes'])}"
    )
    lasted = duration(flow["ended"] - flow["began"])
    state = flow["state"].removeprefix("tcp_").replace("_", " ")
    return f"{when} {flow['protocol']} {way}  {carried}, {lasted}, {state}, {flow['why']}"
