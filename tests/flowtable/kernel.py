# SPDX-License-Identifier: Apache-2.0
"""The flow table inside the kernel, without packets: an instance of the data path, attached to nothing, and
programs of the tests on its tables (table.bpf.c, stress.bpf.c).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from clearway.datapath import Datapath, Sizes, bpf
from clearway.datapath.btf import Btf
from clearway.datapath.calls import MoveResult, SweepResult, run_move, run_sweep
from clearway.datapath.datapath import remove
from clearway.datapath.flowtable import SLOTS, FlowTable, Keys, as_bytes
from clearway.datapath.loader import LoadedObject, load_object, read_layouts
from clearway.datapath.pins import Pins
from clearway.datapath.tables import Table
from clearway.datapath.test_run import run_syscall, run_tc

Array = npt.NDArray[Any]
T = TypeVar("T")

ROOT = Path(__file__).parents[2]
OBJECTS = ROOT / "build/tests/objects"
PREFIX = "cw-flowtable-"
BPFFS = Path("/sys/fs/bpf")
LOW = 0xFFFFFFFF
EPOCH = 1
ENDPOINT_ACTIVE = 1
FLOWS = 1024
SIZES = Sizes(max_flows=FLOWS, services=4, endpoints=64, wheel_slots=64, nats=4, rules=4)
FRAME = bytes(64)
HANDOVER_S = 2e-5
HOP = 1
"""The next hop that connections are opened with: see resolve()."""

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
SYN, ACK, FIN, RST = 1, 2, 4, 8
REPLY = "FLOW_REPLY"
PROGRAMS = ("open", "look", "end", "carry", "resolve", "reuse", "idle", "hold_on")
"""Of table.bpf.c: each has arguments of its own."""

TIMEOUTS = {
    "tcp_syn_sent": 100,
    "tcp_syn_received": 200,
    "tcp_established": 300,
    "tcp_half_closed": 400,
    "tcp_time_wait": 500,
    "tcp_closed": 600,
    "udp": 700,
    "udp_stream": 800,
    "icmp": 900,
}
"""Seconds; all different, so that a mix-up shows."""


@dataclass(frozen=True)
class Way:
    """A packet's protocol, addresses and ports."""

    proto: int
    src: bytes
    sport: int
    dst: bytes
    dport: int

    @property
    def family(self) -> int:
        return 4 if len(self.src) == 4 else 6

    def reversed(self) -> Way:
        return Way(self.proto, self.dst, self.dport, self.src, self.sport)


def address(family: int, net: int, number: int) -> bytes:
    """An address that tells its net and number, as stress.bpf.c makes them."""
    if family == 4:
        return (net << 24 | number).to_bytes(4, "big")
    words = (0x20010DB8, net, number * 0x9E3779B1 & LOW, number)
    return b"".join(word.to_bytes(4, "big") for word in words)


@dataclass(frozen=True)
class Link:
    """A connection: how its opening direction arrives and leaves, what both sides have said, and what is said
    once when it is made.
    """

    client: Way
    leaves: Way
    sent: int = SYN | ACK
    answered: int = SYN | ACK
    endpoint: int = 0
    nat: int | None = None
    carried: tuple[int, int] = (1, 100)
    """Packets and bytes of the opening direction."""
    idle: tuple[float, float] = (0, 0)
    """Seconds since each direction's last packet, when it is made."""

    @property
    def reply(self) -> Way:
        return self.leaves.reversed()

    @property
    def ways(self) -> tuple[Way, Way]:
        """As packets of either direction arrive."""
        return self.client, self.reply

    def at(self, **changed: Any) -> Link:
        return replace(self, **changed)


@dataclass(frozen=True)
class Entry:
    """What one entry says."""

    leaves: Way
    packets: int
    bytes: int
    state: int
    seen: int
    rare: int
    nat: int
    paired: bool
    idle: int
    """Jiffies, of the connection."""
    hit: bool
    """The hit path finds it too, and says the same."""
    table: int
    bucket: int
    slot: int
    mark: int
    stamp: int
    mtu: int
    egress: int


class Kernel:
    """remove() leaves nothing."""

    def __init__(self, number: int) -> None:
        """number: the process's, so that several can run at once."""
        self._undo = ExitStack()
        try:
            self.datapath = Datapath.load(f"{PREFIX}{number}", SIZES)
            self._undo.callback(self.datapath.remove)
            self.hz = self.datapath.clock().hz
            self._object = self._undo.enter_context(self._load("table"))
            self._crowd = self._undo.enter_context(self._load("stress"))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        self._undo.close()

    def _load(self, name: str) -> LoadedObject:
        """Programs of the tests, on the instance's tables."""
        path, pins = OBJECTS / f"{name}.bpf.o", Pins.of(self.datapath.instance)
        tables, _ = read_layouts(path)
        with ExitStack() as opened:
            reuse = {name: opened.enter_context(bpf.pinned(pins.maps / name)) for name in tables}
            return load_object(path, rodata={"cw_hz": self.hz}, reuse=reuse)

    # ---- what is set up ----

    def reset(self, max_flows: int = FLOWS, **timeouts: float) -> None:
        """No connection, no count, tables of this size, these timeouts (the others as TIMEOUTS says)."""
        self.clear()
        self.datapath.move_flows()
        if self.max_flows != max_flows:
            self.datapath.resize(max_flows)
            self.datapath.move_flows()
        for name in ("ended_v2", "lost_v1"):
            table = self.datapath.table(name)
            keys, values = table.items()
            table.update(keys, np.zeros_like(values))
        self.set_clock_ahead(0)
        self.configure(**{**TIMEOUTS, **timeouts})

    @property
    def max_flows(self) -> int:
        return self.datapath.sizes().max_flows

    def clear(self) -> None:
        with self.datapath.flow_tables() as tables:
            for table in tables:
                table.rows["marks"] = np.zeros((), table.rows.dtype["marks"])
        carried = self.datapath.table("carried_v1")
        keys, _ = carried.items()
        if len(keys):
            carried.delete(keys)

    def configure(self, **timeouts: float) -> None:
        table = self.datapath.table("config_v4")
        keys, values = table.items()
        values["epoch"] = EPOCH
        for name, index in self.datapath.enum("timeout").items():
            short = name.removeprefix("TIMEOUT_").lower()
            if short in timeouts:
                values["timeout_ms"][:, index] = round(timeouts[short] * 1000)
        table.update(keys, values)
        self.datapath.set_epoch(EPOCH)

    def serve(self, link: Link, epoch: int) -> None:
        """Rows of a service and its endpoint, which say what the connection does."""
        services, endpoints = self.datapath.table("service_v2"), self.datapath.table("endpoint_v1")
        keys, values = services.rows(1)
        keys["epoch"], keys["family"], keys["proto"] = epoch, link.client.family, link.client.proto
        keys["address"], keys["port"] = list(link.client.dst.ljust(16, b"\0")), link.client.dport
        services.update(keys, values)
        keys, values = endpoints.rows(1)
        keys[:] = link.endpoint
        values["state"], values["family"] = ENDPOINT_ACTIVE, link.leaves.family
        values["address"], values["port"] = list(link.leaves.dst.ljust(16, b"\0")), link.leaves.dport
        endpoints.update(keys, values)

    def serve_no_more(self, epoch: int) -> None:
        services = self.datapath.table("service_v2")
        keys, _ = services.items()
        services.delete(keys[keys["epoch"] == epoch])

    def set_clock_ahead(self, jiffies: int) -> None:
        """For the programs of the tests: as if so many jiffies had passed."""
        self._own("clock_ahead", self._object).update([0], [jiffies])

    @cached_property
    def _tables(self) -> dict[str, Table]:
        return {}

    def _own(self, name: str, loaded: LoadedObject) -> Table:
        """A table of the tests' programs."""
        if name not in self._tables:
            self._tables[name] = table = Table(os.dup(loaded.map_fd(name)))
            self._undo.callback(table.close)
        return self._tables[name]

    # ---- one operation ----

    @cached_property
    def _layouts(self) -> dict[str, np.dtype[Any]]:
        with Btf.of_id(bpf.program_info(self._object.program_fd("open")).btf_id) as types:
            return {name: types.struct(f"{name}_args") for name in PROGRAMS}

    def _call(self, program: str, fill: Mapping[str, Any]) -> Any:
        arguments = np.zeros(1, self._layouts[program])
        for name, value in fill.items():
            arguments[name] = value
        code, context = run_syscall(self._object.program_fd(program), arguments.tobytes())
        assert code == 0
        return np.frombuffer(context, self._layouts[program])[0]

    @cached_property
    def _results(self) -> dict[int, str]:
        names = self._object.enum("flow_result")
        return {number: name.removeprefix("FLOW_").lower() for name, number in names.items()}

    @cached_property
    def bits(self) -> dict[str, int]:
        return self.datapath.enum("flow_state")

    @cached_property
    def tag_first(self) -> int:
        return self.datapath.enum("flow_tag")["FLOW_TAG_FIRST"]

    def open(self, link: Link, make_room: bool = False) -> str:
        """created | taken | exists | full"""
        done = self._call("open", {**self._opening(link), "make_room": make_room})
        return self._results[int(done["result"])]

    def _opening(self, link: Link) -> dict[str, Any]:
        tuples = {name: self._tuple(getattr(link, name)) for name in ("client", "leaves")}
        seen = [self.jiffies_ago(seconds) for seconds in link.idle]
        flows = [np.zeros((), self._layouts["open"][name]) for name in ("forward", "answer")]
        for flow, stamp, state in zip(flows, seen, self.states_of(link), strict=True):
            flow["seen"], flow["state"] = stamp, state
            flow["stamp"] = flow["mtu"] = flow["egress"] = HOP
        flows[0]["carried"] = word(*link.carried)
        return {
            **tuples,
            "forward": flows[0],
            "answer": flows[1],
            "endpoint": link.endpoint,
            "created": self.jiffies_ago(0),
            "nat": link.nat or 0,
        }

    def states_of(self, link: Link) -> tuple[int, int]:
        """Both entries' state. No FLOW_HAS_SERVICE: there is no service, so the sweep would end them."""
        both = link.client.proto
        both |= self.bits["FLOW_HAS_NAT"] if link.nat is not None else 0
        forward = both | link.sent << 8 | link.answered << 12
        answer = both | link.answered << 8 | link.sent << 12 | self.bits[REPLY]
        return forward, answer

    def _tuple(self, way: Way) -> Array:
        row = np.zeros((), self._layouts["end"]["key"])
        row["src"][: len(way.src)] = list(way.src)
        row["dst"][: len(way.dst)] = list(way.dst)
        row["sport"], row["dport"], row["proto"], row["family"] = way.sport, way.dport, way.proto, way.family
        return row

    def look(self, key: Way) -> Entry | None:
        found = self._call("look", {"key": self._tuple(key)})
        if not found["found"]:
            return None
        leaves, width = found["leaves"], len(key.src)
        assert (int(leaves["proto"]), int(leaves["family"])) == (key.proto, key.family)
        numbers = (
            "state",
            "seen",
            "rare",
            "nat",
            "idle",
            "table",
            "bucket",
            "slot",
            "mark",
            "stamp",
            "mtu",
            "egress",
        )
        return Entry(
            leaves=Way(
                key.proto,
                leaves["src"].tobytes()[:width],
                int(leaves["sport"]),
                leaves["dst"].tobytes()[:width],
                int(leaves["dport"]),
            ),
            packets=int(found["carried"]["packets"]),
            bytes=int(found["carried"]["bytes"]),
            paired=bool(found["paired"]),
            hit=bool(found["hit"]),
            **{name: int(found[name]) for name in numbers},
        )

    def end(self, key: Way, why: str = "FLOW_END_REOPENED") -> bool:
        """Ends the connection that a packet with this tuple belongs to."""
        done = self._call("end", {"key": self._tuple(key), "why": self.datapath.enum("flow_end")[why]})
        return bool(done["ended"])

    def carry(self, key: Way, size: int, packets: int = 1) -> bool:
        """Packets of that many bytes go by."""
        done = self._call("carry", {"key": self._tuple(key), "bytes": size, "packets": packets})
        return bool(done["found"])

    def resolve(self, key: Way, hop: int) -> bool:
        """Gives the entry another next hop, all of whose parts are this number of 16 bits."""
        done = self._call("resolve", {"key": self._tuple(key), "stamp": hop, "mtu": hop, "egress": hop})
        return bool(done["resolved"])

    def reuse(self, link: Link, times: int, turns: int = 0) -> int:
        """Opens, finds and ends the connection, over and over, each time with its next hop exchanged `turns`
        times. Returns how often anything was not as it should have been.
        """
        opening = np.zeros((), self._layouts["reuse"]["open"])
        for name, value in self._opening(link).items():
            opening[name] = value
        return int(self._call("reuse", {"open": opening, "times": times, "turns": turns})["wrong"])

    def idle(self, now: int, seen: int) -> int:
        return int(self._call("idle", {"now": now & LOW, "seen": seen & LOW})["idle"])

    def sweep_here(self, family: int, thorough: bool = False) -> SweepResult:
        """The sweep over the current table by the tests' own program: it has the clock of set_clock_ahead(),
        and can be held.
        """
        with self.table(family) as table:
            part = {"family": family, "table": table.which, "first": 0, "buckets": table.buckets}
        return run_sweep(self._object.program_fd("sweep"), **part, every=1 if thorough else 0, turn=0)

    def move_here(self, family: int) -> MoveResult:
        """The move from the table that was exchanged, by the tests' own program, which can be held."""
        with self.datapath.flow_tables() as tables:
            (old,) = [table for table in tables if table.family == family][1:]
            buckets = old.buckets
        return run_move(self._object.program_fd("move"), family=family, first=0, buckets=buckets)

    # ---- one operation in the middle of another ----

    def interrupt(self, first: Callable[[], T], at: int, second: Callable[[], None]) -> tuple[T, bool]:
        """Runs first() on one CPU and holds it before its look-up number `at` (from 1); runs second() on
        another; lets first() go on. Returns what first() did, and whether it came so far as to be held.
        """
        cpus = sorted(os.sched_getaffinity(0))
        self._call("hold_on", {"after": at})

        def on_other_cpu() -> T:
            with at_once_on(cpus[0]):
                return first()

        with at_once_on(cpus[-1]), ThreadPoolExecutor(1) as pool:
            running = pool.submit(on_other_cpu)
            while not (held := bool(self._call("hold_on", {})["held"])) and not running.done():
                time.sleep(HANDOVER_S)  # the other thread needs the interpreter too
            try:
                if held:
                    second()
            finally:
                self._call("hold_on", {"go": 1})
            return running.result(), held

    # ---- many operations ----

    def settle(self, worker: int) -> None:
        """Opens the connections that stay, as the worker's row says."""
        run_tc(self._crowd.program_fd("settle"), FRAME, mark=worker)

    def stress(self, worker: int) -> None:
        """One worker's share, as its row says."""
        run_tc(self._crowd.program_fd("stress"), FRAME, mark=worker)

    @property
    def stress_rows(self) -> Table:
        return self._own("stress_rows", self._crowd)

    @cached_property
    def operations(self) -> dict[str, int]:
        names = self._crowd.enum("operation")
        return {name.removeprefix("OPERATION_").lower(): number for name, number in names.items()}

    # ---- what there is ----

    def jiffies_ago(self, seconds: float) -> int:
        return self.datapath.clock().jiffies - round(seconds * self.hz) & LOW

    def ended(self) -> dict[str, int]:
        """Ended connections, by FLOW_END_* in small letters; reasons that never happened are left out."""
        _, values = self.datapath.table("ended_v2").items()
        counts = values["connections"].sum(axis=0).tolist()
        names = self.datapath.enum("flow_end")
        return {
            name.removeprefix("FLOW_END_").lower(): counts[number]
            for name, number in names.items()
            if name != "FLOW_END_COUNT" and counts[number]
        }

    @contextmanager
    def table(self, family: int) -> Iterator[FlowTable]:
        """The current table."""
        with self.datapath.flow_tables() as tables:
            yield next(table for table in tables if table.family == family)

    def away(self, family: int) -> tuple[list[int], list[int]]:
        """Entries in their second buckets, for each first bucket: as it counts them, and as they are."""
        with self.table(family) as table:
            found = table.entries()
            first, _, _ = table.choose(
                Keys(
                    src=as_bytes(found.slot["key_src"]),
                    dst=as_bytes(found.slot["key_dst"]),
                    sport=found.flow["key_sport"],
                    dport=found.flow["key_dport"],
                    proto=found.flow["state"] & 0xFF,
                )
            )
            there = np.bincount(first[found.place // SLOTS != first], minlength=table.buckets)
            return table.rows["marks"]["away"].tolist(), there.tolist()

    def entries(self) -> int:
        """In force, in all tables; two a connection."""
        with self.datapath.flow_tables() as tables:
            return sum(len(table.entries()) for table in tables)

    @contextmanager
    def place(self, key: Way) -> Iterator[tuple[FlowTable, tuple[int, int]]]:
        """Where an entry stands: table, (bucket, slot)."""
        with self.datapath.flow_tables() as tables:
            for table in tables:
                if table.family != key.family:
                    continue
                (place,) = table.find(keys_of([key]))
                if place >= 0:
                    yield table, divmod(int(place), SLOTS)
                    return
        raise AssertionError(f"no entry of {key}")

    def write(self, key: Way, **fields: int) -> None:
        """Changes fields of an entry, as time or packets would have; `mark` is the slot's."""
        with self.place(key) as (table, at):
            for field, value in fields.items():
                if field == "mark":
                    table.rows["marks"]["mark"][at] = value
                else:
                    table.rows["slot"]["flow"][field][at] = value

    def age(self, link: Link, seconds: float, reply_seconds: float | None = None) -> None:
        """As if both directions, or each, had been idle for so long."""
        other = seconds if reply_seconds is None else reply_seconds
        for key, idle in zip(link.ways, (seconds, other), strict=True):
            self.write(key, seen=self.jiffies_ago(idle))

    def has_carried(self, key: Way, packets: int, size: int) -> None:
        """As if the entry had carried so much."""
        entry = self.look(key)
        assert entry is not None
        table = self.datapath.table("carried_v1")
        keys, values = table.rows(1)
        keys["slot"], keys["family"], keys["table"] = (
            entry.bucket * SLOTS + entry.slot,
            key.family,
            entry.table,
        )
        values["packets"], values["bytes"] = packets, size
        table.update(keys, values)
        self.write(key, carried=word(packets, size), state=entry.state | self.bits["FLOW_FOLDED"])


@contextmanager
def at_once_on(cpu: int) -> Iterator[None]:
    """The calling thread on that CPU, before all else that the machine has to do: another waits for it."""
    here = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, here)


def word(packets: int, size: int) -> int:
    """struct flow's `carried` after so many packets and bytes."""
    return (packets << 32) + size & (1 << 64) - 1


def keys_of(ways: list[Way]) -> Keys:
    """Ways of one family."""
    return Keys(
        src=np.array([list(way.src) for way in ways], np.uint8),
        dst=np.array([list(way.dst) for way in ways], np.uint8),
        sport=np.array([way.sport for way in ways]),
        dport=np.array([way.dport for way in ways]),
        proto=np.array([way.proto for way in ways]),
    )


def remove_leftovers() -> None:
    """Removes what killed test processes have left behind."""
    for instance in BPFFS.glob(f"{PREFIX}*"):
        if not Path("/proc", instance.name.removeprefix(PREFIX)).exists():
            remove(instance.name)
