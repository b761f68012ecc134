# SPDX-License-Identifier: Apache-2.0
"""`clearway run`, `down` and `doctor`: a node comes, goes, and says what it can do here."""

from __future__ import annotations

import time
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
    options_of,
    print_json,
    say,
    starting,
)
from clearway.cli.text import Column, print_table, things

STARTING_SECONDS = 10.0  # for a daemon that is starting to answer
LEAVING_SECONDS = 15.0  # for a daemon to end after it has removed the data path


def register(app: typer.Typer) -> None:
    app.command()(run)
    app.command()(down)
    app.command()(doctor)


def run(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Configuration file. [default: /etc/clearway/INSTANCE.yaml]"),
    ] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log as JSON, one object a line.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Run the daemon in the foreground.

    It takes the configuration file anew when that changes, and on SIGHUP. SIGTERM ends the daemon and leaves
    the data path carrying traffic; `clearway down` removes it. -o json is the same as --log-json.

    \b
    Example:
      clearway run -c /etc/clearway/clearway.yaml
    """
    options = options_of(context, output)
    instance = options.instance()
    from clearway.cli.without_daemon import refusals
    from clearway.daemon import log
    from clearway.daemon.run import run as run_daemon

    log.configure(as_json=log_json or output is Output.JSON, debug=options.debug)
    with refusals():
        run_daemon(instance, (config or instance.config).absolute())


def down(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Remove the data path and end the daemon.

    Every interface is detached, every pin and the stored state removed, and what `clearway up` has written
    but the log. Linux carries the traffic alone afterwards; connections through services and NAT end.

    \b
    Example:
      clearway down
    """
    options = options_of(context, output)
    _wait_until_started(options)
    try:
        options.client().post("down")
        removed = True
        _wait_until_gone(options)
    except UnreachableError:
        removed = _remove_alone(options)
    options.instance().up_config.unlink(missing_ok=True)
    if output is Output.JSON:
        print_json({"removed": removed})
    else:
        say(f"instance {options.instance_name} is {'removed' if removed else 'not there: nothing to remove'}")


def doctor(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Say what works on this machine.

    And what falls back to something else, what is to do, and what is missing. Looks at kernel, BTF, helpers
    and kfuncs, privileges, interfaces, and tools. Exit code 1: clearway cannot work on this machine.

    \b
    Example:
      clearway doctor
    """
    options_of(context, output)
    from clearway.cli.without_daemon import refusals
    from clearway.daemon.doctor import examine, verdict

    with refusals():
        checks = examine()
    works = all(check.ok or not check.needed for check in checks)
    rows: list[dict[str, Any]] = [
        {
            "check": check.name,
            "verdict": verdict(check),
            "found": check.detail,
            "what to do": check.fallback,
        }
        for check in checks
    ]
    if output is Output.JSON:
        print_json({"works": works, "checks": [check.__dict__ for check in checks]})
    else:
        columns = [Column(title, title) for title in ("check", "verdict", "found", "what to do")]
        print_table(columns, rows, "nothing was checked")
        to_do = sum(row["verdict"] == "to do" for row in rows)
        fine = f"clearway works here; {things(to_do, 'thing')} to set" if to_do else "clearway works here"
        say(f"\n{fine if works else 'clearway cannot work here: see what is missing'}")
    if not works:
        raise typer.Exit(ExitCode.REFUSED)


def _remove_alone(options: Options) -> bool:
    from clearway.cli.without_daemon import refusals
    from clearway.daemon import offline

    with refusals():
        return offline.remove(options.instance())


def _wait_until_started(options: Options) -> None:
    """A daemon that is starting is about to make what `down` is to remove."""
    instance = options.instance()
    deadline = time.monotonic() + STARTING_SECONDS
    while not instance.socket.exists() and (pid := starting(instance)):
        if time.monotonic() > deadline:
            raise CommandError(
                ExitCode.LOCKED,
                f"the daemon is starting (pid {pid} holds {instance.lock}) and has not answered within"
                f" {STARTING_SECONDS:g} s; try again, or end it with `kill {pid}` first",
            )
        time.sleep(0.05)


def _wait_until_gone(options: Options) -> None:
    """The daemon has answered that the data path is removed; it ends by itself now."""
    lock = options.instance().lock
    deadline = time.monotonic() + LEAVING_SECONDS
    while lock.exists():
        if time.monotonic() > deadline:
            raise CommandError(
                ExitCode.REFUSED,
                f"the data path is removed, but its daemon has not ended after {LEAVING_SECONDS:g} s;"
                f" {lock} holds its process number",
            )
        time.sleep(0.02)
