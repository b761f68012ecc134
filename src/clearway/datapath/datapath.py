# SPDX-License-Identifier: Apache-2.0
"""The data path of one instance, as the rest of clearway sees it."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clearway.datapath import (
    bpf,
    features,
    flows,
    flowstore,
    install,
    lenient,
    loopback,
    pins,
    settings,
)
from clearway.datapath.attach import Attacher, Attachment, facts_of
from clearway.datapath.btf import Btf
from clearway.datapath.calls import Clock, SweepResult, run_clock, run_release
from clearway.datapath.errors import DatapathError, reason
from clearway.datapath.flowstore import Moving
from clearway.datapath.flowtable import FlowTable, Keys
from clearway.datapath.hooks import choose_hooks
from clearway.datapath.install import Sizes
from clearway.datapath.interfaces import interface_exists
from clearway.datapath.linetable import LineTable
from clearway.datapath.pins import Load, Pins
from clearway.datapath.ring import Ring
from clearway.datapath.tables import Array, Table

REASON_COUNT = "REASON_COUNT"
# A sweep ends no more connections while so much of the ring is not read yet; one call of its program fills
# less than a tenth.
READ_TRIES = 3
RING_FULL = 0.5
RING_PAUSE = 0.005
PATIENCE = 0.5


@dataclass(frozen=True)
class Counter:
    """Packets and bytes, summed over CPUs."""

    packets: int
    bytes: int


@dataclass(frozen=True)
class Counters:
    """`received`: everything that reached a hook. `reasons`: what became of it, by name without its prefix
    and in small letters, "drop_no_port"; reasons that never happened are there with zeros.
    """

    received: Counter
    reasons: dict[str, Counter]


@dataclass(frozen=True)
class ProgramInfo:
    """A loaded program. `instructions`: after the verifier's rewriting; `verified`: how many instructions
    it walked; `load_ms`: how long loading took, None if this process did not load it.
    """

    name: str
    id: int
    tag: str
    instructions: int
    jited_bytes: int
    verified: int
    load_ms: float | None


class Datapath:
    """An instance's tables, programs and attachments. A context manager that closes file descriptors only:
    traffic goes on. Interfaces are those of the calling thread's network namespace. Raises DatapathError.
    """

    def __init__(self, where: Pins, load: Load, *, adopted: bool, load_ms: Mapping[str, float]) -> None:
        self.instance = where.instance
        self.adopted = adopted
        self._pins = where
        self._load = load
        self._load_ms = dict(load_ms)
        self._attacher = Attacher(where, load.directory)
        self._tables: dict[str, Table] = {}
        self._programs: dict[str, int] = {}
        self._enums: dict[str, dict[str, int]] = {}
        self._reasons: dict[str, str] = {}
        self._read: set[Ring] = set()  # rings of ended connections, while somebody reads them
        self._open_lock = threading.Lock()
        # Both the epoch and the mirror's number live in one row; two threads must not undo each other's
        # change.
        self._active_lock = threading.Lock()

    # ---- coming and going ----

    @classmethod
    def load(
        cls, instance: str, sizes: Sizes, *, objects: Path | None = None, log_dir: Path | None = None
    ) -> Datapath:
        """The instance with these sizes and the objects of this package (or of the directory `objects`).

        Pinned tables are reused, and so are the programs if they are the same (`adopted`); otherwise new
        ones are loaded and every attachment is moved to them, each packet being seen by the old or the new
        program.
        """
        features.require()
        pins.mount()
        where = Pins.of(instance)
        fresh = not where.root.exists()
        where.make()
        try:
            installed = install.install(where, sizes, objects, log_dir)
        except BaseException as error:
            if fresh:
                pins.remove_tree(where.root)
            if isinstance(error, OSError):
                raise DatapathError(f"instance {instance} cannot be loaded: {reason(error)}") from error
            raise
        made = cls(where, installed.load, adopted=installed.adopted, load_ms=installed.load_ms)
        made._attacher.replace_programs()
        for what in ("records", "events"):
            made._store.record(
                what, False
            )  # who had followed an earlier daemon that was killed follows no more
        install.retire(where, installed.load)
        return made

    @classmethod
    def open(cls, instance: str) -> Datapath:
        """The instance as it is loaded; no object file is needed. DatapathError if it is not loaded."""
        where = Pins.of(instance)
        newest = where.newest()
        if newest is None:
            raise DatapathError(f"instance {instance} is not loaded: start it with `clearway run`")
        return cls(where, newest, adopted=True, load_ms={})

    @staticmethod
    def is_loaded(instance: str) -> bool:
        """Whether open() will do: not, when only what a loader that was killed has left is there."""
        return Pins.of(instance).newest() is not None

    def close(self) -> None:
        for table in self._tables.values():
            table.close()
        for fd in self._programs.values():
            os.close(fd)
        self._tables.clear()
        self._programs.clear()

    def __enter__(self) -> Datapath:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def remove(self, handed_back: Callable[[], None] = lambda: None) -> None:
        """Detaches every interface, also those that are gone, and removes every pin; see remove()."""
        self.close()
        remove(self.instance, handed_back)

    # ---- tables and types ----

    def tables(self) -> list[str]:
        return sorted(entry.name for entry in self._pins.maps.iterdir())

    def table(self, name: str) -> Table:
        """A table by its name in bpf/maps.h. It stays open until close()."""
        with self._open_lock:
            if name not in self._tables:
                self._tables[name] = Table(self._open(self._pins.maps / name, "table"))
            return self._tables[name]

    def _open(self, pin: Path, kind: str) -> int:
        """The file descriptor of something pinned; DatapathError tells what there is instead."""
        try:
            return bpf.obj_get(pin)
        except FileNotFoundError:
            present = ", ".join(sorted(entry.name for entry in pin.parent.iterdir() if entry.is_file()))
            raise DatapathError(
                f"instance {self.instance} has no {kind} {pin.name}: it has {present or 'none'}"
            ) from None

    def sizes(self) -> Sizes:
        """What the pinned tables were made for."""
        rows = {name: self.table(name).max_entries for name in self.tables()}
        return Sizes.of_tables(rows, self._store.max_flows)

    def enum(self, name: str) -> dict[str, int]:
        """An enum of bpf/*.h by name, as the loaded programs have it."""
        if name not in self._enums:
            with self._types() as types:
                self._enums[name] = types.enum(name)
        return self._enums[name]

    def struct(self, name: str) -> np.dtype[Any]:
        """A struct of bpf/types.h by name, as the loaded programs have it."""
        with self._types() as types:
            return types.struct(name)

    @functools.cached_property
    def _store(self) -> flowstore.FlowStore:
        names = (flowstore.FLOWS, *flowstore.OUTER.values())
        structs = {name: self.struct(name) for name in flowstore.STRUCTS.values()}
        return flowstore.FlowStore({name: self.table(name) for name in names}, structs)

    def _types(self) -> Btf:
        return Btf.of_id(bpf.program_info(self.program_fd("sweep")).btf_id)

    @functools.cached_property
    def kernel_context(self) -> bool:
        """Whether programs read generations from the packet's context; if not, bump_mirror() has to tell
        them.
        """
        return features.has_kernel_context()

    # ---- programs ----

    def program_fd(self, name: str) -> int:
        """A program's file descriptor, open until close()."""
        with self._open_lock:
            if name not in self._programs:
                self._programs[name] = self._open(self._load.directory / name, "program")
            return self._programs[name]

    def programs(self) -> list[ProgramInfo]:
        """Every program of the load in force, by name."""
        names = sorted(
            entry.name
            for entry in self._load.directory.iterdir()
            if entry.is_file() and "stages" not in entry.name
        )
        return [self._program(name) for name in names]

    def _program(self, name: str) -> ProgramInfo:
        info = bpf.program_info(self.program_fd(name))
        return ProgramInfo(
            name=name,
            id=info.id,
            tag=bytes(info.tag).hex(),
            instructions=info.xlated_prog_len // 8,
            jited_bytes=info.jited_prog_len,
            verified=info.verified_insns,
            load_ms=self._load_ms.get(name),
        )

    def sweep(self, share: float = 1.0, thorough: bool = False) -> SweepResult:
        """Removes the flows that have expired, from that share of the tables; the next call goes on there.
        `thorough`: and halves of connections, which are otherwise found within 64 rounds. Whoever reads
        records() or adopted_records() is waited for, for PATIENCE seconds in all: no end of a connection is
        lost to a reader that keeps up.
        """
        left = PATIENCE

        def wait_for_reader() -> None:
            nonlocal left
            while left > 0 and any(ring.used > RING_FULL for ring in tuple(self._read)):
                time.sleep(RING_PAUSE)
                left -= RING_PAUSE

        return self._store.sweep(self.program_fd("sweep"), share, thorough, wait_for_reader)

    def release(self, key: np.void) -> bool:
        """Ends the adopted connection that a struct tuple is a direction of; whether there was one."""
        return run_release(self.program_fd("release"), key)

    def clock(self) -> Clock:
        return run_clock(self.program_fd("clock"))

    # ---- interfaces ----

    def attach(
        self,
        ifname: str,
        hook: str = "auto",
        asked: Mapping[str, str] | None = None,
        *,
        sent: bool = False,
    ) -> Attachment:
        """Brings an interface to a hook: auto | xdp | xdp-generic | tc. Does nothing if it is there; moves
        from another hook without a gap; attaches anew to an interface that came back. `auto` also looks at
        the other interfaces, because packets have to get out of them: at those in `asked` with the hooks
        they are to have, or at those that are attached already; one that does not exist does not count. sent:
        what this machine sends is looked at, too.
        """
        if asked is None:
            asked = {a.ifname: a.hook for a in self.attachments()}
        present = {name: its for name, its in asked.items() if interface_exists(name)}
        present[ifname] = hook
        choice = choose_hooks(present, facts_of(present if hook == "auto" else []))[ifname]
        attachment = self._attacher.attach(ifname, choice, sent)
        with suppress(OSError):  # `clearway doctor` tells
            loopback.let_in(self._pins)
        self._reasons[ifname] = attachment.reason
        return attachment

    def detach(self, ifname: str) -> None:
        """Detaches an interface; no error if it is not attached, or gone."""
        self._attacher.detach(ifname)
        self._reasons.pop(ifname, None)

    def attachments(self) -> list[Attachment]:
        """What is attached, as the kernel says now."""
        return [replace(a, reason=self._reasons.get(a.ifname, "")) for a in self._attacher.attachments()]

    def tc_programs(self) -> frozenset[int]:
        """Ids of the programs that TC may run for this instance."""
        return frozenset(self._attacher.program_ids())

    # ---- what traffic sees ----

    def active(self) -> tuple[int, int]:
        """Epoch of the configuration in force, and the mirror's number."""
        values, _ = self.table("active_v2").lookup([0])
        return int(values["epoch"][0]), int(values["mirror"][0])

    def set_epoch(self, epoch: int) -> None:
        """Switches traffic to the configuration of that epoch."""
        with self._active_lock:
            self._set_active(epoch, self.active()[1])

    def bump_mirror(self) -> None:
        """Makes every flow look up its next hop again: neighbours, links, addresses or routes changed."""
        with self._active_lock:
            epoch, mirror = self.active()
            self._set_active(epoch, mirror + 1 & 0xFFFFFFFF)

    def _set_active(self, epoch: int, mirror: int) -> None:
        table = self.table("active_v2")
        keys, values = table.rows(1)
        values["epoch"], values["mirror"] = epoch, mirror
        table.update(keys, values)

    def trust(self) -> tuple[int, int]:
        """The generation of nftables' ruleset that connections may be adopted under; bits of enum trusted."""
        values, _ = self.table("trust_v2").lookup([0])
        return int(values["own_seq"][0]), int(values["what"][0])

    def set_trust(self, base_seq: int, what: int, policies: int = 0) -> None:
        """Connections may be adopted under that ruleset, as `what` says, while there are so many policies of
        IPsec about what is forwarded. A packet that reads the row meanwhile finds that none may.
        """
        table = self.table("trust_v2")
        keys, values = table.items()
        if (values["own_seq"][0], values["policies"][0]) != (base_seq, policies):
            values["what"] = 0
            table.update(keys, values)
            values["base_seq"], values["own_seq"], values["policies"] = base_seq, base_seq, policies
            table.update(keys, values)
        values["what"] = what
        table.update(keys, values)

    def expect(self, now: int, then: int) -> None:
        """What is trusted, if it holds for the ruleset `now`, holds for `then` as well, which differs in
        nothing but clearway's own table.
        """
        table = self.table("trust_v2")
        keys, values = table.items()
        if now in (values["base_seq"][0], values["own_seq"][0]):
            values["base_seq"], values["own_seq"] = now, then
            table.update(keys, values)

    def honour_rules(self) -> None:
        """From now on Linux' rules decide about what services and NAT claim: nothing of it is carried that
        they are not known to let pass.
        """
        self._set_honours("HONOURS_RULES", there=True)

    def set_table(self, there: bool) -> None:
        """Linux can, or cannot, balance and translate by itself what is left to it."""
        self._set_honours("HONOURS_TABLE", there=there)

    def _set_honours(self, name: str, *, there: bool) -> None:
        table, bit = self.table("trust_v2"), self.enum("honours")[name]
        keys, values = table.items()
        values["honours"] = int(values["honours"][0]) & ~bit | bit * there
        table.update(keys, values)

    def put_mangles(self, rows: Sequence[tuple[int | bool, ...]]) -> None:
        """What rules of Linux change in packets: the fields of struct mangle but its pad, in their order."""
        table = self.table("mangle_v1")
        keys, values = table.rows(len(rows))
        keys[:] = range(len(rows))
        for place, row in enumerate(rows):
            values[place] = (*row, 0)
        table.update(keys, values)

    def set_marking(self, other: bool, fill: Callable[[Any], None]) -> None:
        """What of marks goes with one of the two sets of classifiers. fill: writes it into a row of struct
        marking, of zeros.
        """
        table = self.table("marking_v1")
        keys, values = table.rows(1)
        keys[0] = other
        fill(values[0])
        table.update(keys, values)

    def be_lenient(self) -> None:
        """Has Linux' conntrack go on with connections some of whose packets it does not see. OSError."""
        lenient.be_lenient(self._pins)

    def changed_settings(self) -> dict[str, tuple[str, str]]:
        """Settings of the network namespace (paths below /proc/sys) that are changed while the instance is
        there: what they were, and are.
        """
        return settings.changed(self._pins)

    @property
    def classifiers(self) -> LineTable:
        """By place (bpf/firewall.h, views.h)."""
        return self._lines("classifier_v3")

    @property
    def prefixes(self) -> LineTable:
        """By place (bpf/scrub.h)."""
        return self._lines("prefixes_v1")

    def _lines(self, name: str) -> LineTable:
        return LineTable(self.table(name).fd, name)

    # ---- what it did ----

    def counters(self) -> Counters:
        """Packets and bytes, received and by reason. Read one after the other while packets arrive: under
        load the reasons may add up to more than what was received a moment before.
        """
        received = self._sums("received_v1")
        sums = self._sums("counter_v1")
        reasons = {
            name.removeprefix("REASON_").lower(): Counter(*sums[index])
            for name, index in self.enum("reason").items()
            if name != REASON_COUNT
        }
        return Counters(Counter(*received[0]), reasons)

    def judged(self) -> Array:
        """What the firewall's rules have decided: struct judged, (CPUs, counters)."""
        _, values = self.table("judged_v1").items()
        by_cpu: Array = values.reshape(-1, self.table("named_v1").max_entries)
        return by_cpu

    def listed(self) -> list[Counter]:
        """What lists of prefixes have decided about, by number."""
        return [Counter(*sums) for sums in self._sums("listed_v1")]

    def _sums(self, name: str) -> list[tuple[int, int]]:
        """(packets, bytes) by index of a per-CPU table of struct counter."""
        _, values = self.table(name).items()
        columns = (values[column].sum(axis=0).tolist() for column in ("packets", "bytes"))
        return list(zip(*columns, strict=True))

    def flows(self) -> Array:
        """Every connection: an array of flows.CONNECTION. Traffic goes on meanwhile."""
        for _ in range(READ_TRIES):
            before = self._store.current
            found = self._flows()
            if self._store.current == before:  # otherwise some have gone to tables that were not there before
                break
        return found

    def _flows(self) -> Array:
        _, endpoints = self.table("endpoint_v1").items()
        _, egress = self.table("egress_v2").items()
        with self._store.opened() as tables:
            clock = self.clock()
            meaning = flows.Meaning(
                jiffies=clock.jiffies,
                hz=clock.hz,
                enums={name: self.enum(name) for name in ("flow_state", "timeout")},
                carried=self._carried,
                endpoints=endpoints,
                services=self.table("service_v2").items(),
                ifindexes=egress["ifindex"],
            )
            return flows.connections(tables, meaning)

    def _carried(self, family: Array, table: Array, slot: Array) -> tuple[Array, Array]:
        """Rows of carried_v1, and which there are."""
        sums = self.table("carried_v1")
        keys, _ = sums.rows(len(slot))
        keys["family"], keys["table"], keys["slot"] = family, table, slot
        return sums.lookup(keys)

    def owner_of(
        self, source: bytes, sport: int, destination: bytes, dport: int, protocol: int
    ) -> str | None:
        """Whose the flow is that has packets with these addresses (4 or 16 bytes) and ports: clearway, or
        linux for one that was adopted; None: there is none.
        """
        keys = Keys(
            np.frombuffer(source, np.uint8)[np.newaxis],
            np.frombuffer(destination, np.uint8)[np.newaxis],
            *(np.array([number]) for number in (sport, dport, protocol)),
        )
        with self._store.opened() as tables:
            for table in tables:
                if table.family != (4 if len(source) == 4 else 6):
                    continue
                places = table.find(keys)
                entries, same = table.entries_at(places[places >= 0])
                if same.any():
                    adopted = int(entries.flow["state"][0]) & self.enum("flow_state")["FLOW_ADOPTED"]
                    return "linux" if adopted else "clearway"
        return None

    def most_flows(self) -> int:
        """Connections of the family that has more of them."""
        return self._store.most()

    @contextmanager
    def flow_tables(self) -> Iterator[list[FlowTable]]:
        """The flow tables themselves, mapped into memory: the current ones first."""
        with self._store.opened() as tables:
            yield tables

    @contextmanager
    def records(self) -> Iterator[Callable[[], Array]]:
        """Has connections recorded when they end, for the length of a with block, and gives a function that
        reads what has come: rows of struct flow_record.
        """
        table = self.table("records_v1")
        ring = Ring(table.fd, table.max_entries, self.struct("flow_record"))
        ring.skip()
        self._store.record("records", True)
        self._read.add(ring)
        try:
            yield ring.read
        finally:
            self._read.discard(ring)
            with suppress(DatapathError):  # the instance may be removed by now
                self._store.record("records", False)

    @contextmanager
    def events(self) -> Iterator[Callable[[], Array]]:
        """Has decisions of firewall rules that log recorded, for the length of a with block, and gives a
        function that reads what has come: rows of struct firewall_event.
        """
        table = self.table("events_v1")
        ring = Ring(table.fd, table.max_entries, self.struct("firewall_event"))
        ring.skip()
        self._store.record("events", True)
        try:
            yield ring.read
        finally:
            with suppress(DatapathError):  # the instance may be removed by now
                self._store.record("events", False)

    @contextmanager
    def adopted_records(self) -> Iterator[Ring]:
        """Which adopted connections have ended: rows of struct adopted_record, also of the time before, as
        far as the ring has kept them.
        """
        table = self.table("adopted_v1")
        ring = Ring(table.fd, table.max_entries, self.struct("adopted_record"))
        self._read.add(ring)
        try:
            yield ring
        finally:
            self._read.discard(ring)

    def unaccounted(self) -> Counter:
        """What adopted connections had carried of whose end nobody will know, because the ring was full."""
        return Counter(*self._sums("unaccounted_v1")[0])

    def lost_events(self) -> int:
        """Decisions of the firewall that nobody will know of, because the ring was full."""
        _, values = self.table("unheard_v1").items()
        return int(values["connections"].sum())

    def lost_records(self) -> int:
        """Ends of connections that nobody will know of, because the ring was full."""
        _, values = self.table("lost_v1").items()
        return int(values["connections"].sum())

    def ended(self) -> dict[str, int]:
        """How many connections have ended, by why: names of enum flow_end without their prefix."""
        _, values = self.table("ended_v2").items()
        sums = values["connections"].sum(axis=0).tolist()
        return {
            name.removeprefix("FLOW_END_").lower(): sums[number]
            for name, number in self.enum("flow_end").items()
            if number < len(sums)
        }

    def resize(self, max_flows: int) -> None:
        """Exchanges the flow tables for ones of another size; connections move to them with move_flows()."""
        with self.resized(max_flows) as exchange:
            exchange()

    def resized(self, max_flows: int) -> AbstractContextManager[Callable[[], None]]:
        """The same in two steps: what can fail does so at the beginning of a with block, and the function it
        gives does the rest.
        """
        return self._store.prepared(max_flows, self.program_fd("move"))

    def move_flows(self) -> Moving | None:
        """Brings connections to tables that were exchanged; None: there is nothing to move."""
        return self._store.move(self.program_fd("move")) if self._store.moving else None


def remove(instance: str, handed_back: Callable[[], None] = lambda: None) -> None:
    """Detaches and removes an instance in whatever state it is; no error if there is none. handed_back: is
    called when Linux carries everything alone, under settings that have not been put back yet.
    """
    where = Pins.of(instance)
    if not where.root.exists():
        return
    attacher = Attacher(where, where.progs)
    for ifname in where.interfaces():
        attacher.detach(ifname)
    handed_back()
    settings.put_back(where)
    pins.remove_tree(where.root)
