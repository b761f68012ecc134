# SPDX-License-Identifier: Apache-2.0
"""Real frames on the far ends of the node's links: sent as a network card would receive them, and captured as
they leave. Shows what test runs cannot: tags that the kernel takes out of the frame, checksums left for the
device (CHECKSUM_PARTIAL), segments to be cut (GSO), the neighbour table, and the way from XDP to TC.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.packet.addresses import DEVICES
from tests.packet.checksums import ones_sum, wrong_checksums
from tests.packet.world import World

ETH_P_ALL = 0x0003
SOL_PACKET, PACKET_AUXDATA, PACKET_VNET_HDR = 263, 8, 15  # linux/if_packet.h
TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID = 1 << 4, 1 << 6
AUXDATA = struct.Struct("IIIHHHH")  # struct tpacket_auxdata
PACKET_OUTGOING = 4
VNET_HDR = struct.Struct(
    "<BBHHHH"
)  # linux/virtio_net.h: flags, gso_type, hdr_len, gso_size, csum_start, _offset
NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6 = 0, 1, 4
PATIENCE_S = 3.0
QUIET_S = 0.05


@dataclass(frozen=True)
class Offload:
    """What a sender left to the device: `csum_start`, `csum_offset` from the start of the frame (0: nothing);
    `gso_size` bytes of payload a segment (0: one packet).
    """

    csum_start: int = 0
    csum_offset: int = 0
    gso_type: int = GSO_NONE
    gso_size: int = 0

    def header(self, frame: bytes) -> bytes:
        partial = NEEDS_CSUM if self.csum_start else 0
        length = min(len(frame), 128) if self.gso_size else 0
        return VNET_HDR.pack(partial, self.gso_type, length, self.gso_size, self.csum_start, self.csum_offset)


@dataclass(frozen=True)
class Arrived:
    """A captured frame with its tags in place."""

    frame: bytes
    offload: Offload

    @cached_property
    def packet(self) -> Packet:
        return Ether(self.frame)

    @property
    def finished(self) -> bytes:
        """With the checksum that the device would have put in."""
        start = self.offload.csum_start
        if not start:
            return self.frame
        at = start + self.offload.csum_offset
        total = ones_sum(self.frame[start:]) ^ 0xFFFF
        return self.frame[:at] + (total or 0xFFFF).to_bytes(2, "big") + self.frame[at + 2 :]


class Wire:
    """The far ends. Close it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._sockets = {device: self._open(device) for device in DEVICES}

    def _open(self, device: str) -> socket.socket:
        opened = self.world.far.open_socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        opened.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        opened.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        with self.world.far.entered():
            opened.bind((device, ETH_P_ALL))
        opened.setblocking(False)
        return opened

    def close(self) -> None:
        for opened in self._sockets.values():
            opened.close()

    def clear(self) -> None:
        """Forgets what has arrived so far."""
        for device in DEVICES:
            while self._receive(device) is not None:
                pass

    def send(self, device: str, frame: bytes, offload: Offload | None = None) -> None:
        self._sockets[device].send((offload or Offload()).header(frame) + frame)

    def expect(self, device: str, wanted: Callable[[Packet], bool] = lambda packet: True) -> Arrived:
        """The next frame to leave through the node's device that is wanted and no multicast, checksums
        recomputed. AssertionError if none comes.
        """
        deadline = time.monotonic() + PATIENCE_S
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self._sockets[device]], [], [], left)[0]:
                break
            arrived = self._receive(device)
            if arrived is None or not wanted(arrived.packet):
                continue
            if not arrived.offload.gso_size:
                assert wrong_checksums(arrived.finished) == []
            return arrived
        raise AssertionError(f"nothing came through {device}")

    def nothing(self, device: str) -> bool:
        """True if nothing but multicast leaves through the device for a moment."""
        time.sleep(QUIET_S)
        while (arrived := self._receive(device)) is not None:
            if not arrived.frame[0] & 1:
                return False
        return True

    def _receive(self, device: str) -> Arrived | None:
        while True:
            try:
                data, auxiliary, _, sender = self._sockets[device].recvmsg(1 << 17, 256)
            except BlockingIOError:
                return None
            if sender[2] == PACKET_OUTGOING:
                continue
            return self._arrived(data, [piece for level, _, piece in auxiliary if level == SOL_PACKET])

    def _arrived(self, data: bytes, auxiliary: list[bytes]) -> Arrived:
        flags, gso_type, _, gso_size, start, offset = VNET_HDR.unpack_from(data)
        frame = data[VNET_HDR.size :]
        offload = Offload(start, offset, gso_type, gso_size) if flags & NEEDS_CSUM else Offload()
        for piece in auxiliary:
            status, _, _, _, _, tci, tpid = AUXDATA.unpack_from(piece)
            if status & TP_STATUS_VLAN_VALID:
                kind = tpid if status & TP_STATUS_VLAN_TPID_VALID else 0x8100
                frame = frame[:12] + struct.pack(">HH", kind, tci) + frame[12:]
                if offload.csum_start:
                    offload = Offload(start + 4, offset, gso_type, gso_size)
        return Arrived(frame, offload)


def unicast(packet: Packet) -> bool:
    return not bytes(packet)[0] & 1


class Reasons:
    """What has been counted since it was made."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._before = self._read()

    def _read(self) -> Counter[str]:
        counters = self.world.datapath.counters()
        found = Counter({name: count.packets for name, count in counters.reasons.items()})
        found["received"] = counters.received.packets
        return found

    def counted(self) -> dict[str, int]:
        """Reasons that were counted; they must add up to what was received."""
        found = self._read() - self._before
        received = found.pop("received", 0)
        assert sum(found.values()) == received
        return dict(found)
