# SPDX-License-Identifier: Apache-2.0
"""Numbered packets of one connection, thousands a second, each with the moment it was sent at.

A process of its own (`python stream.py SEGMENT SECONDS FRAME`, inside a namespace), so that who sends shares
no interpreter with who measures. The frame is one of TCP, whose last bytes, at an even offset, give way to
the mark.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time

MARK = struct.Struct("!QQ")  # number, nanoseconds of CLOCK_MONOTONIC, which all processes share
PACE = 0.0002  # seconds between two packets


def marked(frame: bytes, at: int, number: int, now: int) -> bytes:
    """`frame` with another mark, and TCP's checksum (at offset `at`) still right or wrong (RFC 1624)."""
    mark = MARK.pack(number, now)
    (check,) = struct.unpack_from("!H", frame, at)
    words = struct.unpack("!8H", mark) + tuple(
        ~word & 0xFFFF for word in struct.unpack("!8H", frame[-MARK.size :])
    )
    total = sum(words, ~check & 0xFFFF)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return frame[:at] + struct.pack("!H", ~total & 0xFFFF) + frame[at + 2 : -MARK.size] + mark


def main() -> None:
    segment, seconds, frame = sys.argv[1], float(sys.argv[2]), bytes.fromhex(sys.argv[3])
    at = 14 + (40 if frame[12:14] == b"\x86\xdd" else 20) + 16
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    wire.bind((segment, 0))
    number, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):  # while the link is down
            wire.send(marked(frame, at, number, time.monotonic_ns()))
        number += 1
        time.sleep(PACE)


if __name__ == "__main__":
    main()
