# SPDX-License-Identifier: Apache-2.0
"""`clearway lab ...` and `clearway demo`: clearway on a network of namespaces, without other machines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import typer

from clearway.cli.common import (
    CommandError,
    ExitCode,
    Output,
    OutputOption,
    group,
    options_of,
    print_json,
    say,
)

NameOption = Annotated[str, typer.Option(metavar="NAME", help="Which lab, when there are several.")]


def register(app: typer.Typer) -> None:
    lab, _alone = group("lab", "A network of namespaces to try it on.", "clearway lab up")
    lab.command()(up)
    lab.command()(down)
    lab.command()(shell)
    app.add_typer(lab)
    app.command()(demo)


def up(context: typer.Context, name: NameOption = "lab", output: OutputOption = Output.TABLE) -> None:
    """Build a lab, which stays until `clearway lab down`.

    \b
    Example:
      clearway lab up
    """
    options_of(context, output)
    from clearway.lab import commands

    with _lab_errors():
        summary = commands.up(name)
    if output is Output.JSON:
        print_json(summary.as_dict())
    else:
        say(summary.text())


def down(context: typer.Context, name: NameOption = "lab", output: OutputOption = Output.TABLE) -> None:
    """Take a lab away, with everything that runs in it.

    \b
    Example:
      clearway lab down
    """
    options_of(context, output)
    from clearway.lab import commands

    with _lab_errors():
        removed = commands.down(name)
    if output is Output.JSON:
        print_json({"removed": removed})
    else:
        say(f"lab {name} is {'removed' if removed else 'not there: nothing to remove'}")


def shell(
    context: typer.Context,
    host: Annotated[
        str, typer.Argument(metavar="HOST", help="node, client1, server1, outside, ...")
    ] = "node",
    name: NameOption = "lab",
    output: OutputOption = Output.TABLE,
) -> None:
    """Open a shell inside a host of the lab.

    \b
    Example:
      clearway lab shell client1
    """
    options_of(context, output)
    from clearway.lab import commands

    with _lab_errors():
        commands.shell(name, host)


def demo(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Run the main job in a lab, beside Linux alone.

    It carries real traffic, says what happened, and leaves nothing behind.

    \b
    Example:
      clearway demo
    """
    options_of(context, output)
    from clearway.lab import demo as demonstration

    kind: Literal["table", "json"] = "json" if output is Output.JSON else "table"
    with _lab_errors():
        code = demonstration.demo(kind)
    raise typer.Exit(code)


@contextmanager
def _lab_errors() -> Iterator[None]:
    """The lab's refusals become ours."""
    from clearway.lab.run import LabError

    try:
        yield
    except LabError as error:
        raise CommandError(ExitCode.REFUSED, " ".join(str(error).split())) from error
