# SPDX-License-Identifier: Apache-2.0
"""The node under test: its configuration, one hook, frames in, what became of them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from clearway.compiler import Clock, HostFacts, Tables, compile_tables
from clearway.daemon.apply import apply_tables, read_tables
from clearway.datapath import Datapath
from clearway.datapath.test_run import TestRun, run_tc, run_xdp
from clearway.model import ListContent, config_from_data
from tests.packet.addresses import FRONT, device_mac
from tests.packet.checksums import wrong_checksums
from tests.packet.flowtable import FlowTable
from tests.packet.world import LOCAL_PORTS, SIZES, World

Array = npt.NDArray[Any]

LOOPED_BACK = {"punt_to_fragment": "TC_ACT_REDIRECT"}
"""Verdicts of what Linux gets changed, by the loopback device."""
HANDED_OVER = "handed_over"
"""Stands for a reason: XDP left the packet to the TC program behind it, which will count it."""
VERDICTS = {
    "xdp": {
        "forward": {"XDP_REDIRECT"},
        "answer": {"XDP_REDIRECT", "XDP_TX"},
        "punt": {"XDP_PASS"},
        "drop": {"XDP_DROP"},
    },
    "tc": {
        "forward": {"TC_ACT_REDIRECT"},
        "answer": {"TC_ACT_REDIRECT"},
        "punt": {"TC_ACT_UNSPEC"},
        "drop": {"TC_ACT_SHOT"},
    },
}


@dataclass(frozen=True)
class Outcome:
    """What became of a frame."""

    reason: str
    """Name in bpf/reasons.h in small letters and without REASON_, or HANDED_OVER."""
    verdict: str
    """forward | answer | punt | drop"""
    sent: bytes
    frame: bytes
    """As the program left it."""

    @cached_property
    def packet(self) -> Packet:
        return Ether(self.frame)


class Node:
    """The world's node, seen through one hook: "xdp" (also "xdp-generic") or "tc"."""

    def __init__(self, world: World, hook: str) -> None:
        self.world = world
        self.hook = hook.partition("-")[0]
        self.datapath: Datapath = world.datapath
        self.flows = FlowTable(self.datapath)
        self.tables: Tables = read_tables(self.datapath)

    # ---- configuration ----

    def reset(self) -> None:
        """No flow, no count, no configuration; devices as the world has them."""
        self.flows.clear()
        for name in ("fragment_v1", "inbound_v1", "vlan_v1", "device_v1"):
            table = self.datapath.table(name)
            keys, _ = table.items()
            if len(keys):
                table.delete(keys)
        for name in ("answer_v1", "cursor_v1", "opened_v1", "full_v1", "neighbour_v1"):
            table = self.datapath.table(name)
            keys, values = table.items()
            table.update(keys, np.zeros_like(values))
        for device, row in self.world.device_rows().items():
            self.write_device(self.world.ifindex[device], row)
            self.write(
                "port_v1",
                self.world.ifindex[device],
                {
                    "ifindex": self.world.ifindex[device],
                    "mac": list(bytes.fromhex(device_mac(device).replace(":", ""))),
                },
            )
        self.apply()

    def apply(
        self,
        services: Sequence[Mapping[str, Any]] = (),
        nat: Sequence[Mapping[str, Any]] = (),
        firewall: Mapping[str, Any] | None = None,
        scrub: Mapping[str, Any] | None = None,
        lists: Mapping[str, ListContent] | None = None,
        clock: Clock | None = None,
        local_ports: tuple[int, int] = LOCAL_PORTS,
        **conntrack: Any,
    ) -> Tables:
        """Puts a configuration in force, as the daemon would. lists: what is in files. clock: that by which
        their entries expire. conntrack: its keys (timeouts, midstream).
        """
        config = config_from_data(
            {
                **({} if firewall is None else {"firewall": firewall}),
                **({} if scrub is None else {"scrub": scrub}),
                "services": [{"name": f"service-{n}", **data} for n, data in enumerate(services)],
                "nat": [{"name": f"nat-{n}", **data} for n, data in enumerate(nat)],
                "conntrack": dict(conntrack, max_flows=SIZES.max_flows),
                "limits": {
                    "services": SIZES.services,
                    "endpoints": SIZES.endpoints,
                    "nats": SIZES.nats,
                    "wheel_slots": SIZES.wheel_slots,
                    "rules": SIZES.rules,
                },
            }
        )
        facts = HostFacts(*local_ports, self.world.ifindex, self.datapath.sizes(), lists=lists or {})
        if clock is not None:
            facts = replace(facts, clock=clock)
        desired = compile_tables(config, facts, self.tables)
        # No packet is under way while a test configures: nobody has to be waited for.
        self.tables = apply_tables(self.datapath, self.tables, desired, wait=lambda: None).tables
        return self.tables

    def write(self, table: str, key: Any, row: Mapping[str, Any]) -> None:
        """Writes one row; fields that are not named are zero."""
        opened = self.datapath.table(table)
        keys, values = opened.rows(1)
        if isinstance(key, Mapping):
            for field, value in key.items():
                keys[0][field] = value
        else:
            keys[0] = key
        for field, value in row.items():
            values[0][field] = value
        opened.update(keys, values)

    def write_device(self, ifindex: int, row: Mapping[str, Any]) -> None:
        self.write("device_v1", ifindex, row)

    def device(self, device: str, **changed: Any) -> None:
        """The device's row in the mirror, with some fields changed."""
        self.write_device(self.world.ifindex[device], {**self.world.device_rows()[device], **changed})

    # ---- packets ----

    def run(self, frame: bytes, device: str = FRONT, *, gso_size: int = 0, program: str = "") -> TestRun:
        """Runs the hook's entry (or another program) on a frame from that device."""
        fd = self.datapath.program_fd(program or f"cw_{self.hook}")
        with self.world.node.entered():
            ifindex = self.world.ifindex[device]
            if self.hook == "xdp":
                return run_xdp(fd, frame, ifindex=ifindex)
            segments = max(1, len(frame) // gso_size) if gso_size else 0
            return run_tc(fd, frame, ifindex=ifindex, gso_size=gso_size, gso_segs=segments)

    @property
    def to_fragment(self) -> str:
        """The reason of what Linux is to fragment: XDP cannot give it to Linux as TC can."""
        return HANDED_OVER if self.hook == "xdp" else "punt_to_fragment"

    def takes(self, frame: bytes) -> bool:
        """Does the kernel's test run take so short a frame? For TC it wants a whole IP header where the frame
        says that there is one (net/bpf/test_run.c); live frames show the rest.
        """
        if self.hook == "xdp":
            return len(frame) >= 14
        header = {b"\x08\x00": 20, b"\x86\xdd": 40}.get(frame[12:14], 1)
        return len(frame) >= 14 + header

    def send(
        self, frame: bytes, device: str = FRONT, *, gso_size: int = 0, checksums_right: bool = True
    ) -> Outcome:
        """Runs the hook on a frame and checks what holds for every packet: it is counted as received and
        under exactly one reason, the verdict is that of the reason, what is punted is as it came, and what
        leaves has right checksums (unless it came with wrong ones: checksums_right).
        """
        before = self._counts()
        run = self.run(frame, device, gso_size=gso_size)
        received, *reasons = (after - past for after, past in zip(self._counts(), before, strict=True))
        assert received == 1
        counted = [self._reason_names[n] for n, times in enumerate(reasons) for _ in range(times)]
        if self.hook == "xdp" and _metadata(run):
            assert counted == []
            counted = [HANDED_OVER]
        assert len(counted) == 1, f"counted under {counted}, verdict {run.verdict}"
        outcome = Outcome(counted[0], self._verdict(counted[0]), frame, run.packet)
        looped_back = LOOPED_BACK.get(outcome.reason)
        assert run.verdict in ({looped_back} if looped_back else VERDICTS[self.hook][outcome.verdict])
        if outcome.verdict == "punt" and not looped_back:
            assert outcome.frame == frame
        elif outcome.verdict != "drop" and checksums_right:
            assert wrong_checksums(outcome.frame) == []
        return outcome

    def _verdict(self, reason: str) -> str:
        return "punt" if reason == HANDED_OVER else reason.partition("_")[0]

    @cached_property
    def _reason_names(self) -> dict[int, str]:
        return {
            number: name.removeprefix("REASON_").lower()
            for name, number in self.datapath.enum("reason").items()
        }

    def _counts(self) -> list[int]:
        """Packets received, then packets by reason."""
        _, received = self.datapath.table("received_v1").items()
        _, reasons = self.datapath.table("counter_v1").items()
        return [int(received["packets"].sum()), *reasons["packets"].sum(axis=0).tolist()]


def _metadata(run: TestRun) -> int:
    """Bytes of metadata in front of the frame (struct xdp_md: data is behind data_meta)."""
    return int(struct.unpack_from("I", run.context)[0])
