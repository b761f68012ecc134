# SPDX-License-Identifier: Apache-2.0
"""`clearway plan` and `clearway apply`: whole configurations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from clearway.api.client import UnreachableError
from clearway.cli.common import (
    CommandError,
    ExitCode,
    Options,
    Output,
    OutputOption,
    complain,
    options_of,
    print_json,
    say,
    something,
)

FileArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="Configuration file in YAML; - reads it from standard input.",
        callback=something,
    ),
]


def register(app: typer.Typer) -> None:
    app.command()(plan)
    app.command()(apply)


def plan(context: typer.Context, file: FileArgument, output: OutputOption = Output.TABLE) -> None:
    """Show what applying a configuration would change.

    Nothing is touched. Without a running daemon the file is compared with the data path that it left behind,
    or with nothing.

    \b
    Example:
      clearway plan /etc/clearway/clearway.yaml
    """
    options = options_of(context, output)
    text, source = read_file(file)
    try:
        result = options.client().post_yaml("plan", text=text, source=source)
    except UnreachableError:
        result = _plan_alone(options, text, source)
        if output is Output.TABLE:
            complain("no daemon is running; compared with what is in the kernel")
    show_plan(result, output)


def apply(context: typer.Context, file: FileArgument, output: OutputOption = Output.TABLE) -> None:
    """Put a configuration in force: all of it, or nothing.

    It stays in force when the daemon is started again, until the daemon's own file is changed.

    \b
    Example:
      clearway apply new.yaml
    """
    options = options_of(context, output)
    text, source = read_file(file)
    show_plan(options.client().post_yaml("apply", text=text, source=source), output)


def show_plan(result: dict[str, Any], output: Output) -> None:
    """What has changed, or would; the daemon has put it into words already."""
    if output is Output.JSON:
        print_json({key: value for key, value in result.items() if key != "text"})
    else:
        say(result["text"])


def read_file(file: str) -> tuple[bytes, str]:
    """The content, and the name that errors call it by."""
    try:
        if file == "-":
            return sys.stdin.buffer.read(), "standard input"
        return Path(file).read_bytes(), str(Path(file).absolute())
    except OSError as error:
        raise CommandError(
            ExitCode.REFUSED, f"{file}: {error.strerror}; give a file that can be read"
        ) from error


def _plan_alone(options: Options, text: bytes, source: str) -> dict[str, Any]:
    from clearway.api.words import planned
    from clearway.cli.without_daemon import refusals
    from clearway.daemon import offline
    from clearway.model import parse_config

    with refusals():
        desired = parse_config(text, source)
        plan = offline.plan(options.instance(), desired)
        warnings = [*offline.warnings(options.instance(), desired), *plan.warnings]
    return {**plan.to_dict(), "warnings": warnings, "text": planned(plan, desired, warnings)}
