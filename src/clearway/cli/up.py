# SPDX-License-Identifier: Apache-2.0
"""`clearway up`: takes interfaces, with a daemon in the background if none is running."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clearway.api.client import RefusedError, UnreachableError
from clearway.cli import complete
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
from clearway.cli.configure import show_plan

START_SECONDS = 120.0
"""For a daemon to answer: the kernel verifies every program."""

Hook = Literal["auto", "xdp", "xdp-generic", "tc"]


def register(app: typer.Typer) -> None:
    app.command()(up)


def up(
    context: typer.Context,
    interfaces: Annotated[
        list[str],
        typer.Argument(
            metavar="INTERFACE...", help="Interfaces to take.", autocompletion=complete.interfaces
        ),
    ],
    hook: Annotated[
        Hook | None,
        typer.Option(
            help="Where in the kernel packets are met. [default: auto; of one that is taken, what it has]"
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Take interfaces: what Linux forwards between them goes faster.

    Nothing else changes: connections that Linux has accepted are carried past it, as its own rules, NAT and
    routes say. Starts a daemon in the background if none is running; `clearway down` ends it and leaves
    nothing but its log.

    \b
    Example:
      clearway up eth0 eth1
    """
    options = options_of(context, output)
    if not _answers(options):
        with _alone(options.instance().state_dir):  # who comes second finds the daemon of the first
            started = not _answers(options) and _start(options, interfaces, hook)
        if started:
            _tell(options, interfaces)
            return
    show_plan(_take(options, interfaces, hook), output)


def _answers(options: Options) -> bool:
    """Whether there is a daemon."""
    try:
        options.client().get("status")
    except UnreachableError:
        return False
    return True


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Nobody else starts a daemon of this instance meanwhile."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _tell(options: Options, interfaces: list[str]) -> None:
    """Say which of these interfaces the daemon has taken with its start, and why not the others."""
    if options.output is not Output.TABLE:
        return
    found = {one["name"]: one for one in options.client().get("interfaces")["interfaces"]}
    for name in interfaces:
        attached = found[name]["state"] == "attached"
        say(f"{name}: taken" if attached else f"{name}: not taken yet: {found[name]['reason']}")


def _take(options: Options, interfaces: list[str], hook: Hook | None) -> dict[str, Any]:
    """The configuration in force, with these interfaces in it. hook: None leaves it what it is."""
    client = options.client()
    config = client.get("config")
    known = {one["name"]: one for one in config["interfaces"]}
    for name in interfaces:
        if hook or name not in known:
            known[name] = {"name": name, "hook": hook or "auto"}
    config["interfaces"] = list(known.values())
    try:
        applied: dict[str, Any] = client.post_yaml("apply", text=json.dumps(config).encode())
    except RefusedError as error:
        said = (_without_place(one) for one in error.errors)
        raise CommandError(ExitCode.REFUSED, *said, errors=error.errors) from error
    return applied


def _without_place(error: dict[str, Any]) -> str:
    """Who has named interfaces does not know of a configuration, nor of the places in it."""
    if str(error.get("path")).startswith("interfaces["):
        return f"{error['what']}; {error['fix']}"
    return str(error["message"])


def _start(options: Options, interfaces: list[str], hook: Hook | None) -> bool:
    """A daemon that outlives this command, with the instance's file if there is one; whether it has taken
    these interfaces with its start.
    """
    instance = options.instance()
    if pid := starting(instance):
        raise CommandError(
            ExitCode.LOCKED,
            f"the daemon is starting (pid {pid} holds {instance.lock}); try again in a moment",
        )
    own = not instance.config.exists()
    file = instance.up_config if own else instance.config
    if own:
        taken = [{"name": name, "hook": hook or "auto"} for name in interfaces]
        file.write_text(json.dumps({"interfaces": taken}) + "\n")
    log = instance.log
    with suppress(FileNotFoundError):  # what a daemon said that has crashed is wanted still
        log.replace(instance.log_before)
    command = [sys.executable, "-m", "clearway", "--instance", instance.name, "run", "-c", str(file)]
    with log.open("wb") as written:
        daemon = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=written, stderr=written, start_new_session=True, cwd="/"
        )
    if options.output is Output.TABLE and os.isatty(sys.stderr.fileno()):
        print(f"starting a daemon (pid {daemon.pid}); its log: {log}", file=sys.stderr)
    _wait_until_it_answers(options, daemon, log)
    if options.output is Output.TABLE:
        say(f"a daemon is running (pid {daemon.pid}; its log: {log})")
    elif own:
        print_json({"pid": daemon.pid, "log": str(log), "interfaces": interfaces})
    return own


def _wait_until_it_answers(options: Options, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if _answers(options):
            return
        if daemon.poll() is not None:
            said = log.read_text(errors="replace").strip().splitlines()
            last = said[-1].removeprefix("clearway: ") if said else f"see {log}"
            raise CommandError(ExitCode.REFUSED, f"the daemon could not start: {last}")
        time.sleep(0.05)
    daemon.terminate()
    raise CommandError(
        ExitCode.REFUSED, f"the daemon has not answered within {START_SECONDS:g} s; its log: {log}"
    )
