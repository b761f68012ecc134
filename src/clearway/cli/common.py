# SPDX-License-Identifier: Apache-2.0
"""What every command shares: options, exit codes, how errors look."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Annotated, Any

import typer

from clearway.api.client import Client
from clearway.instance import DEFAULT_NAME, Instance, InstanceError, find_instance


class ExitCode(IntEnum):
    """What scripts can rely on (docs/cli.md)."""

    OK = 0
    REFUSED = 1  # refused or failed; nothing was changed
    USAGE = 2  # the command line itself is wrong
    UNREACHABLE = 3  # no daemon answers
    LOCKED = 4  # another daemon has the data path
    BUG = 70  # EX_SOFTWARE (sysexits.h)
    INTERRUPTED = 130


class Output(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="table for people, json for programs.", show_default=True)
]


class CommandError(Exception):
    """Ends a command: the lines to show and the exit code. `errors` is what -o json prints."""

    def __init__(self, code: ExitCode, *messages: str, errors: list[dict[str, Any]] | None = None) -> None:
        super().__init__("\n".join(messages))
        self.code = code
        self.messages = messages
        self.errors = errors or [{"message": message} for message in messages]


@dataclass
class Options:
    """What was said before the command. `output` is noted by the command, for errors that come later."""

    instance_name: str = DEFAULT_NAME
    debug: bool = False
    output: Output = Output.TABLE

    def instance(self) -> Instance:
        """Raises CommandError for a name that will not do."""
        try:
            return find_instance(self.instance_name)
        except InstanceError as error:
            raise CommandError(ExitCode.USAGE, str(error)) from error

    def client(self, timeout: float = 60) -> Client:
        return Client(self.instance().socket, timeout)


def something(text: str | None) -> str | None:
    """For parameters that name something: a script's unset variable names nothing, and not everything."""
    if text == "":
        raise typer.BadParameter("nothing is given")
    return text


def starting(instance: Instance) -> int | None:
    """The daemon that has the data path and does not answer yet; None when there is none."""
    from clearway.daemon.lock import live_holder

    return live_holder(instance)


def options_of(context: typer.Context, output: Output = Output.TABLE) -> Options:
    """The options of the whole command line, as the root callback left them."""
    options: Options = context.find_root().obj
    options.output = output
    return options


def print_json(data: object) -> None:
    print(json.dumps(data, indent=2))


def say(message: str) -> None:
    """A line for people, on stdout."""
    print(message)


def complain(message: str) -> None:
    """One line on stderr."""
    print(f"clearway: {message}", file=sys.stderr)


def report(error: CommandError, output: Output) -> None:
    for message in error.messages:
        complain(message)
    if output is Output.JSON:
        print_json({"errors": error.errors})


def write_out(pieces: Iterable[bytes]) -> None:
    """Write a long answer as it comes. A reader that has seen enough (`| head`) is no error."""
    try:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more when it ends: into nothing, instead of into a broken pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def follow_lines(
    context: typer.Context, output: Output, path: tuple[str, ...], text: Callable[[dict[str, Any]], str]
) -> None:
    """Show what the daemon tells at `path`, a JSON object a line, until interrupted: as it is with -o json,
    else as `text` says it.
    """
    options = options_of(context, output)
    lines = options.client().lines(*path)
    options.output = Output.TABLE  # from now on standard output has nothing but these lines
    try:
        if output is Output.JSON:
            for line in lines:
                write_out([line])
            return
        for line in lines:
            say(text(json.loads(line)))
            sys.stdout.flush()
    except KeyboardInterrupt:
        return


def group(name: str, about: str, example: str) -> tuple[typer.Typer, Callable[[typer.Context], None]]:
    """A command that only has commands below it; alone it prints its help and counts as wrong usage."""
    app = typer.Typer(
        name=name,
        help=f"{about}\n\n\b\nExample:\n  {example}",
        invoke_without_command=True,
        rich_markup_mode=None,
        suggest_commands=False,
    )

    @app.callback()
    def only_group(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())
            raise typer.Exit(ExitCode.USAGE)

    return app, only_group
