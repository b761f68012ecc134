# SPDX-License-Identifier: Apache-2.0
"""Test runs: verdicts by name, the packet as the program left it, live frames on a real wire."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from clearway.datapath import bpf, features
from clearway.datapath.test_run import TC_VERDICTS, XDP_VERDICTS, run_live, run_tc, run_xdp
from tests.net.datapath.conftest import Wire

FRAME = bytes.fromhex("020000000102020000000101 88b5") + bytes(range(50))  # an experimental EtherType
# Opcodes (Documentation/bpf/standardization/instruction-set.rst)
LOAD_WORD, STORE_WORD, MOVE_NUMBER, EXIT = 0x61, 0x63, 0xB7, 0x95
XDP, TC = bpf.BPF_PROG_TYPE_XDP, bpf.BPF_PROG_TYPE_SCHED_CLS
INGRESS_IFINDEX = 12  # in struct xdp_md
MARK, IFINDEX, GSO_SEGS, GSO_SIZE = 8, 40, 164, 176  # in struct __sk_buff

Loader = Callable[[int, bytes], int]


def instruction(opcode: int, registers: int = 0, offset: int = 0, number: int = 0) -> bytes:
    """struct bpf_insn; `registers`: source << 4 | destination."""
    return struct.pack("BBhi", opcode, registers, offset, number)


def returns(code: int) -> bytes:
    return instruction(MOVE_NUMBER, number=code) + instruction(EXIT)


def returns_field(offset: int) -> bytes:
    """A program that returns a 32-bit field of its context."""
    return instruction(LOAD_WORD, 0x10, offset) + instruction(EXIT)


@pytest.fixture
def load() -> Iterator[Loader]:
    """Loads programs given as machine code; closes them."""
    opened: list[int] = []

    def loader(kind: int, code: bytes) -> int:
        opened.append(bpf.load_instructions(kind, "cw_test", code))
        return opened[-1]

    yield loader
    for fd in opened:
        os.close(fd)


@pytest.mark.parametrize(("code", "verdict"), XDP_VERDICTS.items())
def test_xdp_verdicts_have_their_names(load: Loader, code: int, verdict: str) -> None:
    outcome = run_xdp(load(XDP, returns(code)), FRAME)
    assert (outcome.verdict, outcome.code, outcome.packet) == (verdict, code, FRAME)


@pytest.mark.parametrize(("code", "verdict"), TC_VERDICTS.items())
def test_tc_verdicts_have_their_names(load: Loader, code: int, verdict: str) -> None:
    outcome = run_tc(load(TC, returns(code)), FRAME)
    assert (outcome.verdict, outcome.code, outcome.packet) == (verdict, code, FRAME)


def test_unknown_verdict_is_its_number(load: Loader) -> None:
    assert run_xdp(load(XDP, returns(77)), FRAME).verdict == "XDP 77"


def test_xdp_packet_seems_to_come_from_the_interface(load: Loader, wire: Wire) -> None:
    with wire.near.entered():
        ifindex = wire.link()["ifindex"]
        program = load(XDP, returns_field(INGRESS_IFINDEX))
        link = bpf.link_create(program, ifindex, bpf.BPF_XDP, bpf.XDP_FLAGS_DRV_MODE)  # gives veth its queues
        try:
            assert run_xdp(program, FRAME, ifindex=ifindex).code == ifindex
        finally:
            os.close(link)


def test_xdp_metadata_stands_before_the_frame_and_is_not_part_of_it(load: Loader) -> None:
    outcome = run_xdp(load(XDP, returns(2)), FRAME, metadata=b"\x01\x02\x03\x04")
    assert outcome.packet == FRAME


def test_tc_context_carries_what_was_set(load: Loader, wire: Wire) -> None:
    with wire.near.entered():
        ifindex = wire.link()["ifindex"]
        assert run_tc(load(TC, returns_field(IFINDEX)), FRAME, ifindex=ifindex).code == ifindex
    assert run_tc(load(TC, returns_field(MARK)), FRAME, mark=0xC1EA).code == 0xC1EA
    large = {"gso_size": 20, "gso_segs": 3}
    assert run_tc(load(TC, returns_field(GSO_SIZE)), FRAME, **large).code == 20
    assert run_tc(load(TC, returns_field(GSO_SEGS)), FRAME, **large).code == 3


def test_mark_set_by_the_program_is_seen(load: Loader) -> None:
    program = instruction(MOVE_NUMBER, 2, number=0x77) + instruction(STORE_WORD, 0x21, MARK) + returns(0)
    assert run_tc(load(TC, program), FRAME).mark == 0x77


def test_large_packets_come_back_whole(load: Loader) -> None:
    packet = FRAME[:14] + bytes(range(256)) * 12
    assert run_tc(load(TC, returns(0)), packet).packet == packet


def test_repeated_run_tells_the_mean_duration(load: Loader) -> None:
    assert 0 <= run_xdp(load(XDP, returns(1)), FRAME, repeat=10_000).duration_ns < 10_000


def test_live_frames_reach_the_other_end(load: Loader, wire: Wire) -> None:
    if not features.has_live_frames():
        pytest.skip("this kernel has no live frames in test runs")
    sender, receiver = (
        load(XDP, returns(3)),
        load(XDP, returns(2)),
    )  # XDP_TX; XDP_PASS makes the peer take frames
    with wire.far.entered():
        far = bpf.link_create(receiver, socket.if_nametoindex("cw-far"), bpf.BPF_XDP, bpf.XDP_FLAGS_DRV_MODE)
    with wire.near.entered():
        ifindex = wire.link()["ifindex"]
        near = bpf.link_create(sender, ifindex, bpf.BPF_XDP, bpf.XDP_FLAGS_DRV_MODE)
        before = _received(wire)
        assert run_live(sender, FRAME, ifindex=ifindex, repeat=640) >= 0
    assert _received(wire) - before >= 640
    os.close(near)
    os.close(far)


def _received(wire: Wire) -> int:
    """Packets that reached the far end of the wire."""
    lines = wire.far.read("/proc/thread-self/net/dev").splitlines()
    (counted,) = (line.split(":")[1].split() for line in lines if line.strip().startswith("cw-far:"))
    return int(counted[1])
