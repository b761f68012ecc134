# SPDX-License-Identifier: Apache-2.0
"""`clearway`: puts the commands together, and turns whatever goes wrong into one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import click
import typer

from clearway.api.client import NotRunningError, RefusedError, UnreachableError
from clearway.cli import configure, edit, explain, firewall, follow, get, laboratory, node, up
from clearway.cli.common import CommandError, ExitCode, Options, Output, report, starting
from clearway.instance import DEFAULT_NAME

ABOUT = (
    "A fast path over Linux networking: load balancing, NAT and a stateful firewall in eBPF,"
    " with Linux as the slow path."
)


def build_app() -> typer.Typer:
    """Every command."""
    app = typer.Typer(
        name="clearway",
        help=ABOUT,
        invoke_without_command=True,
        rich_markup_mode=None,
        suggest_commands=False,  # click does it
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(root)
    up.register(app)
    node.register(app)
    configure.register(app)
    get.register(app)
    follow.register(app)
    explain.register(app)
    edit.register(app)
    firewall.register(app)
    laboratory.register(app)
    return app


def root(
    context: typer.Context,
    instance: Annotated[
        str,
        typer.Option(
            help="Which node, when several live on this machine.", envvar="CLEARWAY_INSTANCE", metavar="NAME"
        ),
    ] = DEFAULT_NAME,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    context.obj.instance_name = instance
    context.obj.debug = debug
    if version:
        from clearway import __version__

        typer.echo(f"clearway {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(ExitCode.USAGE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs the command and exits."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a command line; its exit code. Errors have been reported when it returns."""
    options = Options()
    try:
        result = build_app()(list(arguments), standalone_mode=False, prog_name="clearway", obj=options)
        return int(result or 0)
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except click.ClickException as error:
        wrong = CommandError(ExitCode.USAGE, f"{_one_line(error.format_message())} ({_hint(error)})")
        report(wrong, Output.JSON if _asks_for_json(arguments) else Output.TABLE)
        return wrong.code
    except Exception as error:
        if options.debug:
            raise
        refused = _as_command_error(error, options)
        report(refused, options.output)
        return refused.code


def _asks_for_json(arguments: Sequence[str]) -> bool:
    """Of a command line that could not be read: its words are all that there is."""
    whole = {("-o", "json"), ("--output", "json")}
    return not {"-ojson", "--output=json"}.isdisjoint(arguments) or not whole.isdisjoint(pairwise(arguments))


def _as_command_error(error: Exception, options: Options) -> CommandError:
    """The words and the exit code for what a command raised."""
    match error:
        case CommandError():
            return error
        case NotRunningError() if pid := starting(options.instance()):
            lock = options.instance().lock
            return CommandError(
                ExitCode.UNREACHABLE,
                f"the daemon is starting (pid {pid} holds {lock}) and does not answer yet;"
                " try again in a moment, or see its log",
            )
        case UnreachableError():
            return CommandError(ExitCode.UNREACHABLE, str(error))
        case RefusedError():
            return CommandError(ExitCode.REFUSED, *str(error).splitlines(), errors=error.errors)
    what = _one_line(str(error)) or "no more is known"
    return CommandError(
        ExitCode.BUG, f"a bug in clearway: {type(error).__name__}: {what}; --debug shows where"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


BEFORE_THE_COMMAND = {"--instance": "--instance NAME", "--debug": "--debug", "--version": "--version"}
AFTER_THE_COMMAND = ("-o", "--output")


def _hint(error: click.ClickException) -> str:
    if isinstance(error, click.NoSuchOption):
        if error.option_name in BEFORE_THE_COMMAND:
            option = BEFORE_THE_COMMAND[error.option_name]
            return f"it stands before the command: `clearway {option} COMMAND`"
        if error.option_name in AFTER_THE_COMMAND:
            return "it stands after the command: `clearway COMMAND -o json`"
    context = getattr(error, "ctx", None)
    return f"`{context.command_path if context else 'clearway'} --help` explains it"
