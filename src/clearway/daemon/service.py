# SPDX-License-Identifier: Apache-2.0
"""The daemon itself: takes snapshots, has the core decide, carries the steps out; listens and ages meanwhile.

One event loop listens (netlink, API, signals, the file). Whatever changes the data path and may take long
runs in one worker thread, one change at a time; ageing has a thread of its own, so that nothing delays it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import structlog

from clearway.api.words import done
from clearway.compiler import Plan
from clearway.daemon import advice, core, state
from clearway.daemon.accountant import Accountant
from clearway.daemon.adoption import Adoption
from clearway.daemon.deletions import Deletions
from clearway.daemon.engine import Engine, Machine, endpoint_addresses
from clearway.daemon.filewatch import LOOK_EVERY, FileWatch, Signature, signature
from clearway.daemon.honour import Claims, remove_table
from clearway.daemon.listen import Announcements, logged
from clearway.daemon.listfiles import ListWatch
from clearway.daemon.mirror import Mirror
from clearway.daemon.notify import Notifier
from clearway.daemon.resets import Resets
from clearway.daemon.rounds import LastSweep, SweepRounds
from clearway.datapath import DatapathError, features
from clearway.datapath.calls import SweepResult
from clearway.instance import Instance
from clearway.linux import forwarding, namespace, nftables
from clearway.linux.namespace import local_port_range
from clearway.linux.netlink import NetlinkError
from clearway.linux.packet_sockets import ALL_DEVICES, PacketSocket
from clearway.model import Config, ConfigError, parse_config, to_data

log = structlog.get_logger()

SWEEP_EVERY = 1.0  # seconds
SWEEP_SHARE = 0.05  # of one CPU, at most
ROUNDS = 10  # of deciding and doing, before anything else gets its turn

REFUSALS = (ConfigError, DatapathError, NetlinkError, OSError)

T = TypeVar("T")


@dataclass
class ConfigFile:
    """The configuration file: hash and content of what was last taken, and why it was refused since."""

    path: Path
    taken: str
    content: Config
    seen: Signature | None  # of the file before it was read: later changes are noticed
    refused: str | None = None


@dataclass
class Known:
    """What the daemon remembers from one snapshot to the next."""

    local_ports: tuple[int, int]
    compiled_for: core.Basis | None = None
    kept_at: float | None = None
    routes_changed: bool = False
    lists_changed: int = 0
    failures: dict[str, core.Failure] = field(default_factory=dict)
    unreachable: tuple[str, ...] = ()
    warned: frozenset[str] = frozenset()


class Daemon:
    """One node. `config` is what is to be in force: the file's content, or what the API made of it."""

    def __init__(
        self, instance: Instance, config: Config, file: ConfigFile, engine: Engine, mirror: Mirror
    ) -> None:
        self.instance = instance
        self.config = config
        self.file = file
        self.engine = engine
        self.mirror = mirror
        self.notifier = Notifier()
        self._rounds = SweepRounds(SWEEP_EVERY * SWEEP_SHARE, engine.datapath.sizes().max_flows)
        self.last_sweep: LastSweep | None = None
        self.started_at = time.monotonic()
        self.stopped = asyncio.Event()
        self._known = Known(local_port_range())
        self._wake = asyncio.Event()
        self._changing = asyncio.Lock()
        self._worker = ThreadPoolExecutor(1, "change")
        self._sweeper = ThreadPoolExecutor(1, "sweep")
        self._sweeping = True
        self._left_behind = 0  # connections that found no place in tables of another size
        self._reloads: set[asyncio.Task[None]] = set()
        self._resets = Resets(engine.datapath.enum("flow_end")["FLOW_END_RESET"])
        self.accountant = Accountant(
            engine.datapath,
            links=lambda: dict(mirror.watch.picture.links),
            directory=instance.state.parent,
            ended=self._resets.take,
        )
        self.adoption = Adoption(
            engine.datapath,
            instance.nft_table,
            links=lambda: dict(mirror.watch.picture.links),
            ours=self._ours,
            listened=lambda sockets: self._in_loop(self._note_listened, sockets),
            shaped=lambda ifindexes: self._in_loop(self.mirror.set_shaped, ifindexes),
            known=lambda names: self._in_loop(self.mirror.set_proved, names),
            changed=lambda why: self._in_loop(self.mirror.bump, [why]),
            proved=self.accountant.go_on_with,
            renamed=self.accountant.settle,
        )
        self._deletions = Deletions(engine.datapath, lost=lambda why: self._in_loop(self.mirror.bump, [why]))
        engine.prepare = lambda tables, config: self.adoption.prepare(
            Claims(tables, tuple(interface.name for interface in config.interfaces))
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._announcements = Announcements(
            mirror,
            nft_generation=engine.datapath.kernel_context and features.has_nft_generation(),
            links_changed=self._note_routes,
            routes_changed=self._note_routes,
        )

    # ---- life ----

    async def start(self) -> None:
        """Listen, and bring the data path to what the configuration says, as far as that goes now."""
        self.mirror.set_attachments(self.engine.attachments.values())
        self.mirror.bump(["nobody has listened to the kernel until now"])
        self._announcements.start()
        self._loop = asyncio.get_running_loop()
        if features.has_adoption():
            self._deletions.start()
            self._resets.start()
            self.accountant.start()
        async with self._changing:
            await self._settle()
            self._keep_state(self.config)
        self.adoption.start()

    async def run(self) -> None:
        """Until stop() is called."""
        loops = (self._reconcile_forever(), self._sweep_forever(), self._watch_file_forever())
        tasks = [asyncio.create_task(work) for work in (*loops, self.stopped.wait())]
        done, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for task in done:
            task.result()  # a loop that ended has met a bug: better begin anew than go on without it

    def stop(self) -> None:
        self.stopped.set()

    def close(self) -> None:
        """Let go of everything, once no thread uses it any more. The data path goes on without us."""
        self._announcements.stop()
        self._stop_adopting()
        self._worker.shutdown()
        self._sweeper.shutdown()
        self.mirror.watch.close()
        self.engine.close()

    # ---- what others ask for ----

    def machine(self) -> Machine:
        return Machine(dict(self.mirror.watch.picture.links))

    def waiting(self) -> tuple[str, ...]:
        """A sentence for each thing that is configured and not in force."""
        failures = [
            f"{name or 'configuration'}: {failure.message}" for name, failure in self._known.failures.items()
        ]
        absent = core.waiting(self.config, self.machine().ifindexes())
        lists = self.engine.lists.waiting(self.config)
        return (*absent, *failures, *lists, *(f"endpoint {sentence}" for sentence in self._known.unreachable))

    def warnings(self, config: Config) -> list[str]:
        """What probably is not meant: of any configuration, and of the endpoints of the one in force."""
        links = self.machine().links
        found = advice.about_nat(config, links)
        found += advice.about_forwarding(config, self.mirror.watch.picture, forwarding.missing)
        chains = nftables.base_chains(self.instance.nft_table) if config.firewall else ()
        found += advice.about_firewall(config, links, chains)
        if config == self.config:
            found += advice.about_endpoints(config, self.engine.kept, links)
        return found

    def failure(self, interface: str) -> str | None:
        failure = self._known.failures.get(interface)
        return failure.message if failure else None

    async def plan(self, desired: Config) -> Plan:
        """What apply() would change. Raises ConfigError when it would refuse."""
        async with self._changing:
            machine = self.machine()
            return await self._in_worker(
                lambda: self.engine.plan(self._here(self.config), self._here(desired), machine)
            )

    async def change(self, edit: Callable[[Config], Config], taken: str | None = None) -> Plan:
        """Put an edited configuration in force: all of it, or nothing. Returns what has changed.

        `taken`: the hash of the file that it was taken from, if it is the file's.
        Raises ConfigError, DatapathError or OSError with the old configuration in force.
        """
        async with self._changing:
            desired = edit(self.config)
            machine = self.machine()
            state.prepare(self.instance.state, _state(desired, taken or self.file.taken))
            running, wanted = self._here(self.config), self._here(desired)
            plan = await self._in_worker(lambda: self.engine.change(running, wanted, machine))
            self.config = desired
            self._known.failures.clear()
            self._known.compiled_for = core.basis(
                desired, machine.ifindexes(), self._known.local_ports, self._known.lists_changed
            )
            self._known.kept_at = time.monotonic()
            self._commit_state()
            self.mirror.set_attachments(self.engine.attachments.values())
            await self._settle()
            return plan

    async def reload(self) -> Plan | None:
        """Take the configuration file anew; None when it is the same as before.

        Raises ConfigError, DatapathError or OSError with the old configuration in force.
        """
        self.notifier.reloading()
        try:
            content = self.file.path.read_bytes()
            found = state.file_hash(content)
            if found == self.file.taken:
                self.file.refused = None
                self._wake.set()
                return None
            config = await asyncio.to_thread(parse_config, content, str(self.file.path))
            plan = await self.change(lambda _running: config, taken=found)
            self.file.taken, self.file.content, self.file.refused = found, config, None
            return plan
        except REFUSALS as error:
            self.file.refused = one_line(error)
            raise
        finally:
            self.notifier.ready(self.summary())

    async def remove(self) -> None:
        """Detach everything and leave no trace in the kernel. What is left to do afterwards is to stop()."""
        async with self._changing:
            self._announcements.stop()
            await asyncio.to_thread(self._stop_adopting)
            await self._stop_sweeping()
            await self._in_worker(self.engine.remove)
            await asyncio.to_thread(remove_table, self.instance.nft_table)
            state.remove(self.instance.state)
            log.info("the data path is removed; Linux carries the traffic alone")

    def summary(self) -> str:
        """One line for the service manager."""
        services, interfaces = len(self.config.services), len(self.engine.attachments)
        return f"{services} services on {interfaces} interfaces"

    def request_reload(self) -> None:
        """Reload soon, as SIGHUP asks for it; what comes of it is in the log."""
        task = asyncio.get_running_loop().create_task(self._reload_logged("SIGHUP"))
        self._reloads.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._reloads.discard)

    # ---- the loops ----

    async def _reconcile_forever(self) -> None:
        while True:
            async with self._changing:
                look_again_at = await self._settle()
            pause = None if look_again_at is None else max(0.0, look_again_at - time.monotonic())
            try:
                await asyncio.wait_for(self._wake.wait(), pause)
            except TimeoutError:
                continue

    async def _sweep_forever(self) -> None:
        """Age the flow table, a part of it every SWEEP_EVERY: all of it if that takes no more of a CPU than
        SWEEP_SHARE.
        """
        loop = asyncio.get_running_loop()
        due = time.monotonic()
        complained = ""
        while self._sweeping:
            try:
                result, seconds = await loop.run_in_executor(self._sweeper, self._age, self._rounds.share)
                self.last_sweep = self._rounds.take(result, seconds, time.monotonic()) or self.last_sweep
                complained = ""
            except DatapathError as error:
                if str(error) != complained:
                    log.error("the flow table could not be aged", why=str(error))
                complained = str(error)
            self._look_at_local_ports()
            ended = time.monotonic()
            due = max(due + SWEEP_EVERY, ended + SWEEP_EVERY / 2)
            await asyncio.sleep(due - time.monotonic())
        await self.stopped.wait()

    def _age(self, share: float) -> tuple[SweepResult, float]:
        """A part of a sweep, and the seconds of CPU time that it took; and connections of a table that was
        exchanged move on.
        """
        begin = time.thread_time()
        moving = self.engine.datapath.move_flows()
        left = moving.left if moving is not None else 0
        if left and left != self._left_behind:
            log.warning("connections wait for a place in the new flow table", left=left)
        elif moving is not None and not left:
            log.info("all connections are in the new flow table")
        self._left_behind = left
        return self.engine.datapath.sweep(share), time.thread_time() - begin

    async def _stop_sweeping(self) -> None:
        """The program must not be running when its descriptor is closed."""
        self._sweeping = False
        await asyncio.get_running_loop().run_in_executor(self._sweeper, lambda: None)

    async def _watch_file_forever(self) -> None:
        watch, lists = FileWatch(self.file.seen), ListWatch(self.engine.lists)
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if watch.look(signature(self.file.path)):
                await self._reload_logged(f"{self.file.path} has changed")
            if changed := lists.look(self.config, time.monotonic()):
                log.info("lists have changed", files=changed)
                self._known.lists_changed += 1
                self._known.failures.pop(core.COMPILE, None)  # it may have been for their sake
                self._wake.set()

    async def _reload_logged(self, why: str) -> None:
        try:
            plan = await self.reload()
        except REFUSALS as error:
            log.error("the new configuration is refused, the old one stays", why=one_line(error))
        else:
            log.info("configuration taken", why=why, change=done(plan) if plan else "the file is the same")

    # ---- snapshot, decision, steps ----

    def snapshot(self) -> core.Snapshot:
        return core.Snapshot(
            now=time.monotonic(),
            config=self.config,
            present=self.machine().ifindexes(),
            attached=self.engine.attached(),
            local_ports=self._known.local_ports,
            compiled_for=self._known.compiled_for,
            kept_at=self._known.kept_at,
            routes_changed=self._known.routes_changed,
            lists_changed=self._known.lists_changed,
            failures=dict(self._known.failures),
        )

    async def _settle(self) -> float | None:
        """Decide and do until nothing is left to do; when to look again. Call it with the lock held."""
        for _round in range(ROUNDS):
            self._wake.clear()
            decision = core.decide(self.snapshot())
            if not decision.steps:
                self._warn()
                return decision.look_again_at
            for step in decision.steps:
                await self._carry_out(step)
        return time.monotonic() + SWEEP_EVERY

    async def _carry_out(self, step: core.Step) -> None:
        key = step.interface if isinstance(step, core.Attach | core.Detach) else core.COMPILE
        try:
            match step:
                case core.Apply():
                    await self._apply(step)
                case core.Attach():
                    await self._in_worker(
                        lambda: self.engine.attach(step.interface, step.hook, step.beside, step.sent)
                    )
                case core.Detach():
                    await self._in_worker(lambda: self.engine.detach(step.interface))
                    log.info("detached", interface=step.interface, why=step.why)
                case core.KeepNeighbours():
                    await self._keep_neighbours()
                    return
        except REFUSALS as error:
            self._note_failure(key, one_line(error))
        else:
            self._known.failures.pop(key, None)
        self.mirror.set_attachments(self.engine.attachments.values())

    async def _apply(self, step: core.Apply) -> None:
        machine, config = self.machine(), self._here(self.config)
        plan = await self._in_worker(lambda: self.engine.apply(config, machine))
        self._known.compiled_for = step.basis
        log.info("configuration in force", why=step.why, change=done(plan))

    async def _keep_neighbours(self) -> None:
        machine, destinations = self.machine(), endpoint_addresses(self.config)
        self._known.kept_at, self._known.routes_changed = time.monotonic(), False
        try:
            kept = await self._in_worker(lambda: self.engine.keep(destinations, machine))
            await self._in_worker(self.engine.look)
        except REFUSALS as error:
            log.warning("neighbours of endpoints could not be looked after", why=one_line(error))
            return
        if kept.unreachable != self._known.unreachable:
            for sentence in kept.unreachable:
                log.warning("an endpoint cannot be reached", why=sentence)
        self._known.unreachable = kept.unreachable

    # ---- small things ----

    def _here(self, config: Config) -> Config:
        """The part of a configuration that can be in force now.

        What the running configuration names and is away may come back; what is named for the first time has
        to be there, because it may be a slip of the pen.
        """
        present = self.machine().ifindexes()
        return core.without(config, core.named_interfaces(self.config) - present.keys())

    def _note_failure(self, key: str, message: str) -> None:
        previous = self._known.failures.get(key)
        if previous is None or previous.message != message:
            log.error(f"{key or 'the configuration'} does not work now, it is tried again", why=message)
        self._known.failures[key] = core.Failure.of(message, time.monotonic(), previous)

    def _warn(self) -> None:
        found = self.warnings(self.config)
        for sentence in found:
            if sentence not in self._known.warned:
                log.warning(sentence)
        self._known.warned = frozenset(found)

    # ---- adoption ----

    def _ours(self) -> frozenset[int]:
        return frozenset(a.ifindex for a in self.engine.attachments.values() if not a.stale)

    def _note_listened(self, sockets: frozenset[PacketSocket]) -> None:
        everywhere = any(one.ifindex == ALL_DEVICES for one in sockets)
        ifindexes = frozenset(self.mirror.watch.picture.links) if everywhere else frozenset()
        self.mirror.set_listened(ifindexes | {one.ifindex for one in sockets})

    def _stop_adopting(self) -> None:
        self.adoption.stop()
        self.accountant.stop()
        self._resets.stop()
        self._deletions.stop()

    def _in_loop(self, work: Callable[..., None], *arguments: object) -> None:
        """From another thread; nothing is left to do once the loop has ended."""
        with suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(logged, lambda: work(*arguments))

    def _note_routes(self) -> None:
        self._known.routes_changed = True
        self._wake.set()

    def _look_at_local_ports(self) -> None:
        """The one setting that the kernel changes without announcing it."""
        found = local_port_range()
        if found != self._known.local_ports:
            self._known.local_ports = found
            self._wake.set()

    def _keep_state(self, config: Config) -> None:
        try:
            state.prepare(self.instance.state, _state(config, self.file.taken))
        except OSError as error:
            log.error("the state cannot be kept for the next start", why=str(error))
        else:
            self._commit_state()

    def _commit_state(self) -> None:
        """What is in force stays in force, even if it cannot be kept."""
        try:
            state.commit(self.instance.state)
        except OSError as error:
            log.error("the state cannot be kept for the next start", why=str(error))

    async def _in_worker(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)


def _state(config: Config, file_hash: str) -> state.State:
    return state.State(file_hash, to_data(config, complete=True), namespace.identity())


def one_line(error: Exception) -> str:
    return " | ".join(str(error).splitlines())
