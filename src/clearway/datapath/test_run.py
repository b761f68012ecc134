# SPDX-License-Identifier: Apache-2.0
"""BPF_PROG_TEST_RUN: gives a program one packet, or a context, and shows what it made of it.

Interfaces are those of the caller's network namespace. Kernel side: net/bpf/test_run.c.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass

from clearway.datapath import bpf, libbpf

BPF_F_TEST_XDP_LIVE_FRAMES = 2
PACKET_BYTES = 1 << 17
XDP_VERDICTS = {0: "XDP_ABORTED", 1: "XDP_DROP", 2: "XDP_PASS", 3: "XDP_TX", 4: "XDP_REDIRECT"}
TC_VERDICTS = {
    -1: "TC_ACT_UNSPEC",
    0: "TC_ACT_OK",
    1: "TC_ACT_RECLASSIFY",
    2: "TC_ACT_SHOT",
    3: "TC_ACT_PIPE",
    4: "TC_ACT_STOLEN",
    5: "TC_ACT_QUEUED",
    6: "TC_ACT_REPEAT",
    7: "TC_ACT_REDIRECT",
    8: "TC_ACT_TRAP",
}
# struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
XDP_MD = struct.Struct("6I")
# Offsets in struct __sk_buff (<linux/bpf.h>) of the fields that a test run may set; all others must be zero.
SKB_BYTES = 192
SKB_FIELDS = {
    "mark": (8, "I"),
    "priority": (32, "I"),
    "ingress_ifindex": (36, "I"),
    "ifindex": (40, "I"),
    "wire_len": (160, "I"),
    "gso_segs": (164, "I"),
    "gso_size": (176, "I"),
}


@dataclass(frozen=True)
class TestRun:
    """`verdict`: the name of the returned `code`. `packet`: as the program left it. `duration_ns`: mean of
    all repetitions. `context`: struct xdp_md or struct __sk_buff as the program left it.
    """

    __test__ = False  # for pytest: not a test

    verdict: str
    code: int
    packet: bytes
    duration_ns: int
    context: bytes

    @property
    def mark(self) -> int:
        """skb->mark after a TC program."""
        return int(struct.unpack_from("I", self.context, SKB_FIELDS["mark"][0])[0])


def run_xdp(
    program_fd: int,
    packet: bytes,
    *,
    ifindex: int = 0,
    rx_queue: int = 0,
    metadata: bytes = b"",
    repeat: int = 1,
) -> TestRun:
    """Runs an XDP program on an Ethernet frame (14 bytes or more) that seems to come from `ifindex`.

    `metadata` stands in front of the frame (data_meta). OSError EINVAL also if the interface has no XDP
    queue: attach a program to it in native mode first (veth, virtio). A repeated run sees the packet as the
    former run left it.
    """
    context = XDP_MD.pack(len(metadata), len(metadata) + len(packet), 0, ifindex, rx_queue, 0)
    options = _run(program_fd, metadata + packet, context, repeat)
    code = int(options.result.retval)
    (frame,) = struct.unpack_from("I", options.context)  # data: behind the metadata, which is given out too
    packet = options.packet[frame:]
    return TestRun(
        XDP_VERDICTS.get(code, f"XDP {code}"), code, packet, options.result.duration, options.context
    )


def run_tc(
    program_fd: int,
    packet: bytes,
    *,
    ifindex: int = 0,
    ingress_ifindex: int = 0,
    mark: int = 0,
    gso_size: int = 0,
    gso_segs: int = 0,
    repeat: int = 1,
) -> TestRun:
    """Runs a TC program on an Ethernet frame as an skb of device `ifindex` (0: the namespace's lo).

    The kernel lets no test set the VLAN fields: a tag stands in the frame, as a device without offload
    gives it. With `gso_size` the frame is one large segment, as GRO gives it.
    """
    context = bytearray(SKB_BYTES)
    fields = {
        "mark": mark,
        "ingress_ifindex": ingress_ifindex,
        "ifindex": ifindex,
        "gso_segs": gso_segs,
        "gso_size": gso_size,
        "wire_len": len(packet) if gso_size else 0,
    }
    for name, value in fields.items():
        offset, layout = SKB_FIELDS[name]
        struct.pack_into(layout, context, offset, value)
    options = _run(program_fd, packet, bytes(context), repeat)
    code = ctypes.c_int32(options.result.retval).value
    return TestRun(
        TC_VERDICTS.get(code, f"TC {code}"), code, options.packet, options.result.duration, options.context
    )


def run_live(program_fd: int, packet: bytes, *, ifindex: int, repeat: int, batch: int = 64) -> int:
    """Sends `repeat` real frames through an XDP program as if received by `ifindex`: they are redirected,
    transmitted or passed to the stack for real. Returns nanoseconds for each frame.

    The kernel recycles pages without restoring their content: the program has to write the whole header of
    every frame. Since kernel 5.18.
    """
    context = XDP_MD.pack(0, len(packet), 0, ifindex, 0, 0)
    options = libbpf.TestRunOpts(
        sz=ctypes.sizeof(libbpf.TestRunOpts),
        repeat=repeat,
        flags=BPF_F_TEST_XDP_LIVE_FRAMES,
        batch_size=batch,
    )
    _give(options, packet, context)
    bpf.check(libbpf.library().bpf_prog_test_run_opts(program_fd, ctypes.byref(options)), "BPF_PROG_TEST_RUN")
    return int(options.duration)


def run_syscall(program_fd: int, context: bytes) -> tuple[int, bytes]:
    """Runs a SEC("syscall") program; returns what it returned and its context afterwards."""
    buffer = ctypes.create_string_buffer(context, len(context))
    options = libbpf.TestRunOpts(
        sz=ctypes.sizeof(libbpf.TestRunOpts), ctx_in=ctypes.addressof(buffer), ctx_size_in=len(context)
    )
    bpf.check(libbpf.library().bpf_prog_test_run_opts(program_fd, ctypes.byref(options)), "BPF_PROG_TEST_RUN")
    return ctypes.c_int32(options.retval).value, buffer.raw


@dataclass(frozen=True)
class _Outcome:
    result: libbpf.TestRunOpts
    packet: bytes
    context: bytes


def _give(options: libbpf.TestRunOpts, packet: bytes, context: bytes) -> None:
    """Fills in the inputs; ctypes keeps the bytes alive as long as the struct."""
    options.data_in = ctypes.cast(ctypes.c_char_p(packet), ctypes.c_void_p)
    options.data_size_in = len(packet)
    options.ctx_in = ctypes.cast(ctypes.c_char_p(context), ctypes.c_void_p)
    options.ctx_size_in = len(context)


def _run(program_fd: int, packet: bytes, context: bytes, repeat: int) -> _Outcome:
    packet_out = ctypes.create_string_buffer(PACKET_BYTES)
    context_out = ctypes.create_string_buffer(len(context))
    options = libbpf.TestRunOpts(
        sz=ctypes.sizeof(libbpf.TestRunOpts),
        data_out=ctypes.addressof(packet_out),
        data_size_out=PACKET_BYTES,
        ctx_out=ctypes.addressof(context_out),
        ctx_size_out=len(context),
        repeat=repeat,
    )
    _give(options, packet, context)
    bpf.check(libbpf.library().bpf_prog_test_run_opts(program_fd, ctypes.byref(options)), "BPF_PROG_TEST_RUN")
    return _Outcome(options, packet_out.raw[: options.data_size_out], context_out.raw[: options.ctx_size_out])
