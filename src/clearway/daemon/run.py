# SPDX-License-Identifier: Apache-2.0
"""`clearway run`: from the command line to a running daemon, and back out again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog

from clearway import datapath
from clearway.api.app import build_app
from clearway.api.server import ApiServer
from clearway.compiler import require_memory
from clearway.daemon import state
from clearway.daemon.control import DaemonControl
from clearway.daemon.core import COMPILE
from clearway.daemon.engine import Engine
from clearway.daemon.filewatch import Signature, signature
from clearway.daemon.lock import DataPathLock
from clearway.daemon.mirror import Mirror
from clearway.daemon.service import ConfigFile, Daemon, one_line
from clearway.datapath import Datapath, DatapathError, Sizes, pins
from clearway.instance import Instance
from clearway.linux.memory import available_bytes, possible_cpus
from clearway.linux.watch import Watch
from clearway.model import Config, ConfigError, config_from_data, load_config

log = structlog.get_logger()


@dataclass(frozen=True)
class Start:
    """What to begin with: the configuration to put in force, and the file it is judged by."""

    config: Config
    file: ConfigFile


class StartError(Exception):
    """The daemon cannot begin its work; one line that says why."""


def run(instance: Instance, path: Path) -> None:
    """Run the daemon until it is told to stop.

    Raises ConfigError, DatapathError, LockedError, StartError or OSError when it cannot start. Then what it
    had to make is removed again, and a data path that was there before goes on as it was.
    """
    # Until the loop takes over: SIGTERM cleans up, too; SIGHUP, which would end the process, is remembered.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    hangups: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, _frame: hangups.append(number))
    pins.mount()
    was_there = Datapath.is_loaded(instance.name)
    with DataPathLock(instance), ExitStack() as undo:
        if not was_there:
            undo.callback(datapath.remove, instance.name)
        daemon = prepare(instance, path, running=was_there)
        asyncio.run(live(daemon, lambda: _check_start(daemon, undo, fresh=not was_there), hangups))


def prepare(instance: Instance, path: Path, *, running: bool) -> Daemon:
    """Load the data path, or find it, and open everything that the daemon works with."""
    loaded = sizes_of_loaded(instance)

    def affordable(config: Config) -> None:
        require_memory(config, available_bytes(), loaded=loaded, cpus=possible_cpus())

    start = choose_start(instance, path, running=running, check=affordable)
    with ExitStack() as opened:
        data_path = Datapath.load(instance.name, loaded or sizes_of(start.config))
        opened.callback(data_path.close)
        watch = Watch()
        opened.callback(watch.close)
        daemon = Daemon(instance, start.config, start.file, Engine(data_path), Mirror(data_path, watch))
        opened.pop_all()
    return daemon


async def live(daemon: Daemon, started: Callable[[], None], hangups: Sequence[int]) -> None:
    """Start, serve, run, and let go. `started` is called when the data path is as it should be.

    `hangups`: SIGHUPs that have come since before the file was read.
    """
    loop = asyncio.get_running_loop()
    try:
        await daemon.start()
        started()
        control = DaemonControl(daemon)
        server = ApiServer(build_app(control), daemon.instance.socket)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, daemon.stop)
        loop.add_signal_handler(signal.SIGHUP, daemon.request_reload)
        try:
            await server.start()
            daemon.notifier.ready(daemon.summary())
            log.info("running", instance=daemon.instance.name, carrying=daemon.summary())
            if hangups:
                daemon.request_reload()
            await daemon.run()
        finally:
            daemon.notifier.stopping()
            await control.end_following()
            await server.stop()
    finally:
        daemon.close()
    log.info("stopped")


def _check_start(daemon: Daemon, undo: ExitStack, *, fresh: bool) -> None:
    """From here on what was made stays, unless the very first configuration could not be put in force."""
    refused = daemon.failure(COMPILE)
    if fresh and refused is not None:
        raise StartError(refused)
    undo.pop_all()


def sizes_of_loaded(instance: Instance) -> Sizes | None:
    """Sizes of the tables of the data path that is there, if one is."""
    with contextlib.suppress(DatapathError), Datapath.open(instance.name) as there:
        return there.sizes()
    return None


def sizes_of(config: Config) -> Sizes:
    """Sizes of the tables that a configuration asks for."""
    return Sizes(
        max_flows=config.conntrack.max_flows,
        services=config.limits.services,
        endpoints=config.limits.endpoints,
        wheel_slots=config.limits.wheel_slots,
        nats=config.limits.nats,
        rules=config.limits.rules,
    )


def choose_start(
    instance: Instance, path: Path, *, running: bool, check: Callable[[Config], None] = lambda _config: None
) -> Start:
    """The file's configuration, or what the API has made of it since it was last taken (state.py).

    While the data path is running, a file that is refused keeps nobody from looking after it: what was in
    force then stays in force. `check` may refuse too. Raises ConfigError.
    """
    stored, seen = _stored(instance.state), signature(path)
    try:
        start = _wanted_start(instance, path, stored, seen)
        check(start.config)
    except ConfigError as error:
        if not running or stored is None:
            raise
        config = config_from_data(stored.config, str(instance.state))
        log.error("the configuration file is refused, what was in force stays", why=one_line(error))
        return Start(config, ConfigFile(path, stored.file_hash, config, seen, one_line(error)))
    return start


def _wanted_start(
    instance: Instance, path: Path, stored: state.State | None, seen: Signature | None
) -> Start:
    content = path.read_bytes() if path.is_file() else b""
    config = load_config(path)
    taken = state.file_hash(content)
    if stored is None or stored.file_hash != taken:
        return Start(config, ConfigFile(path, taken, config, seen))
    try:
        kept = config_from_data(stored.config, str(instance.state))
    except ConfigError as error:  # written by a version with other ideas
        log.warning("the stored state is of no use, the file counts", why=one_line(error))
        return Start(config, ConfigFile(path, taken, config, seen))
    if kept != config:
        log.info("going on with what was changed through the API", file=str(path))
    return Start(kept, ConfigFile(path, taken, config, seen))


def _stored(path: Path) -> state.State | None:
    try:
        return state.read(path)
    except state.StateError as error:
        log.warning("the stored state is of no use, the file counts", why=str(error))
        return None
