# SPDX-License-Identifier: Apache-2.0
"""Sends small UDP datagrams as fast as one core can: `python -m clearway.lab.flood < ORDER`.

Frames are prepared once and given to the device by sendmmsg(2) on a packet socket that bypasses the queueing
discipline (packet(7)), so that neither the interpreter nor the sender's own network stack costs much beside
what is to be measured. ORDER is a JSON object with the fields of Order; one line of JSON comes back: frames
sent and seconds taken.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass
from ipaddress import ip_address

BATCH = 256
PAYLOAD = 18  # 14 Ethernet + 20 IPv4 + 8 UDP + 18 + 4 FCS: the 64-byte frame that packets/s are quoted for
FIRST_PORT = 20000
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20  # linux/socket.h, linux/if_packet.h
RETRY = (errno.EAGAIN, errno.ENOBUFS)  # the device's ring is full


@dataclass(frozen=True)
class Order:
    """What to send, and for how long. `flows` source ports take turns."""

    device: str
    source_mac: str
    destination_mac: str  # of the gateway
    source: str
    destination: str
    port: int
    flows: int
    seconds: float

    def json(self) -> str:
        return json.dumps(asdict(self))


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr of sendmmsg(2) on a 64-bit machine."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vector", ctypes.POINTER(_Iovec)),
        ("vector_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint32),
    )


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    if len(data) % 2:
        total += data[-1] << 8
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(order: Order, source_port: int) -> bytes:
    """One datagram, from the Ethernet header on."""
    source, destination = ip_address(order.source), ip_address(order.destination)
    length = 8 + PAYLOAD
    pseudo = source.packed + destination.packed + struct.pack("!HH", socket.IPPROTO_UDP, length)
    ports = struct.pack("!HHH", source_port, order.port, length)
    udp = ports + struct.pack("!H", checksum(pseudo + ports + bytes(2 + PAYLOAD)) or 0xFFFF) + bytes(PAYLOAD)
    macs = bytes.fromhex((order.destination_mac + order.source_mac).replace(":", ""))
    if source.version == 6:
        header = struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_UDP, 64)
        return macs + b"\x86\xdd" + header + source.packed + destination.packed + udp
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, 64, socket.IPPROTO_UDP, 0)
    header += source.packed + destination.packed
    return macs + b"\x08\x00" + header[:10] + struct.pack("!H", checksum(header)) + header[12:] + udp


def flood(order: Order) -> tuple[int, float]:
    """Carry the order out; (frames sent, seconds taken). OSError for what sendmmsg(2) refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    frames = [frame(order, FIRST_PORT + number % order.flows) for number in range(BATCH)]
    buffers = [ctypes.create_string_buffer(content, len(content)) for content in frames]
    vectors = [_Iovec(ctypes.addressof(buffer), len(buffer)) for buffer in buffers]
    messages = (_Message * BATCH)()
    for message, vector in zip(messages, vectors, strict=True):
        message.vector, message.vector_length = ctypes.pointer(vector), 1
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
        out.bind((order.device, 0))
        out.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        sent, start = 0, time.monotonic()
        while (now := time.monotonic()) - start < order.seconds:
            done = libc.sendmmsg(out.fileno(), messages, BATCH, 0)
            if done > 0:
                sent += done
            elif ctypes.get_errno() not in RETRY:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return sent, now - start


def main() -> int:
    sent, took = flood(Order(**json.load(sys.stdin)))
    print(json.dumps({"sent": sent, "seconds": took}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
