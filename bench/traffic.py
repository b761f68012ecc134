# SPDX-License-Identifier: Apache-2.0
"""The in-kernel generator and the counting sinks (traffic.bpf.c).

A frame that the generator redirects into the client's end of a veth arrives at the node's end, goes through
whatever the node does and on to the far end, all on the CPU that runs the generator and before the next batch
is made. So the CPU time of the generating thread is the cost of the whole way.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import numpy as np

from clearway.datapath import bpf, clsact
from clearway.datapath.features import has_tcx
from clearway.datapath.loader import LoadedObject, load_object
from clearway.datapath.tables import Table
from clearway.datapath.test_run import run_live
from clearway.lab import Namespace

OBJECT = Path(__file__).resolve().parent.parent / "build/bench/objects/traffic.bpf.o"
FRAME_BYTES = 64
# Where the address (of IPv6: its last four bytes) stands in a frame, by family
SOURCE_OFFSET = {4: 26, 6: 34}
DESTINATION_OFFSET = {4: 30, 6: 50}


@dataclass(frozen=True)
class Device:
    """A network device in a namespace."""

    namespace: Namespace
    name: str
    ifindex: int
    mac: str


def find_device(namespace: Namespace, name: str) -> Device:
    """LabError when there is no such device."""
    (found,) = json.loads(namespace.ip("-json", "link", "show", "dev", name))
    return Device(namespace, name, int(found["ifindex"]), str(found["address"]))


@dataclass(frozen=True)
class Stream:
    """UDP datagrams in frames of 64 bytes from many clients to one address."""

    family: int
    sources: str  # an address whose last two bytes are zero; the clients' follow it
    destination: str
    port: int
    flows: int  # 0: every datagram opens a new one
    host_shift: int  # 1 << host_shift flows in a row share a client's address
    ports: int = (
        1  # destination ports from `port` on, each for 61,440 flows: a masquerading address has no more
    )


@dataclass(frozen=True)
class Expectation:
    """What a sink counts as right: these four bytes at that offset."""

    offset: int
    word: bytes

    @classmethod
    def of_address(cls, offset: int, address: str) -> Expectation:
        """This address there; of IPv6 its last four bytes."""
        return cls(offset, ip_address(address).packed[-4:])


@dataclass(frozen=True)
class Burst:
    """What one run of the generator did."""

    sent: int
    seconds: float  # while frames were under way, without setting up
    cpu_seconds: float  # of the generating thread


def memory_words(address: str) -> list[int]:
    """An address as four 32-bit words as they stand in memory; of IPv4 the first counts."""
    packed = ip_address(address).packed.ljust(16, b"\0")
    return [int.from_bytes(packed[at : at + 4], "little") for at in range(0, len(packed), 4)]


def mac_number(mac: str) -> int:
    """A MAC address as traffic.bpf.c takes it."""
    return int.from_bytes(bytes.fromhex(mac.replace(":", "")), "little")


def way_out(device: Device, next_hop: Device) -> dict[str, int]:
    """Constants of traffic.bpf.c: send out of `device` to `next_hop`."""
    return {"out_ifindex": device.ifindex, "dmac": mac_number(next_hop.mac), "smac": mac_number(device.mac)}


@contextlib.contextmanager
def loaded(constants: Mapping[str, int]) -> Iterator[LoadedObject]:
    """A copy of traffic.bpf.o of its own, in the kernel for the time of the `with` block."""
    with load_object(OBJECT, rodata=constants) as found:
        yield found


@contextlib.contextmanager
def attached_xdp(program_fd: int, device: Device) -> Iterator[int]:
    """A program in the device's driver for the time of the `with` block; the link's file descriptor."""
    with device.namespace.entered():
        link = bpf.link_create(program_fd, device.ifindex, bpf.BPF_XDP, bpf.XDP_FLAGS_DRV_MODE)
    try:
        yield link
    finally:
        os.close(link)


@contextlib.contextmanager
def attached_tc(program_fd: int, device: Device) -> Iterator[None]:
    """A program on what the device receives, as clearway attaches it; it goes with the device or before."""
    if not has_tcx():
        with device.namespace.entered():
            clsact.ensure_qdisc(device.ifindex)
            clsact.attach(device.ifindex, program_fd, set())
        yield
        return
    with device.namespace.entered():
        link = bpf.link_create(program_fd, device.ifindex, bpf.BPF_TCX_INGRESS)
    try:
        yield
    finally:
        os.close(link)


class Sink:
    """Counts, on `device`, what meets the expectation; drops everything, or sends it back while echoing.

    `hook`: "xdp", or "tc" (which does not echo) behind all that Linux does with a packet before TC.
    """

    def __init__(self, device: Device, expectation: Expectation, hook: str = "xdp") -> None:
        self.device = device
        self.expectation = expectation
        self.hook = hook
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Sink:
        constants = {
            "expect_offset": self.expectation.offset,
            "expect_word": int.from_bytes(self.expectation.word, "little"),
        }
        with contextlib.ExitStack() as stack:
            programs = stack.enter_context(loaded(constants))
            self._sink, self._echo = programs.program_fd("sink"), programs.program_fd("echo")
            arrivals = Table(os.dup(programs.map_fd("arrivals")))
            self._arrivals = stack.enter_context(contextlib.closing(arrivals))
            if self.hook == "tc":
                stack.enter_context(attached_tc(programs.program_fd("sink_tc"), self.device))
            else:
                self._link = stack.enter_context(attached_xdp(self._sink, self.device))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def echoing(self) -> Iterator[None]:
        """What arrives as expected is sent back for the time of the `with` block."""
        bpf.link_update(self._link, self._echo)
        try:
            yield
        finally:
            bpf.link_update(self._link, self._sink)

    def arrived(self) -> int:
        """Packets as expected so far."""
        _, counts = self._arrivals.items()
        return int(np.sum(counts[:, 0]))


class Generator:
    """Sends a stream out of `device` to `next_hop`."""

    def __init__(self, stream: Stream, device: Device, next_hop: Device) -> None:
        self.stream = stream
        self.device = device
        self.next_hop = next_hop
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Generator:
        stream = self.stream
        source, destination = memory_words(stream.sources), memory_words(stream.destination)
        constants = {
            **way_out(self.device, self.next_hop),
            "flows": stream.flows,
            "host_shift": stream.host_shift,
            "src_low": source[0] | source[1] << 32,
            "src_high": source[2] | source[3] << 32,
            "dst_low": destination[0] | destination[1] << 32,
            "dst_high": destination[2] | destination[3] << 32,
            "dport": int.from_bytes(stream.port.to_bytes(2, "big"), "little"),
            "dports": stream.ports,
        }
        self.program_fd = self._stack.enter_context(loaded(constants)).program_fd(f"generate{stream.family}")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def send(self, frames: int) -> Burst:
        """Send so many frames; returns when all have gone their way."""
        return send_live(self.program_fd, self.device, frames)


def send_live(program_fd: int, device: Device, frames: int, frame_bytes: int = FRAME_BYTES) -> Burst:
    """Have a program write so many frames and send them out of `device`."""
    with device.namespace.entered():
        before = time.thread_time()
        # ifindex 0: the frames come from nowhere; they leave by bpf_redirect().
        ns_per_frame = run_live(program_fd, bytes(frame_bytes), ifindex=0, repeat=frames)
        cpu_seconds = time.thread_time() - before
    return Burst(frames, ns_per_frame * frames / 1e9, cpu_seconds)
