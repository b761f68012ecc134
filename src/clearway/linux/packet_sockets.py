# SPDX-License-Identifier: Apache-2.0
"""Who listens to packets of a device (tcpdump, and all that uses AF_PACKET), from /proc/net/packet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
SEEN = frozenset({ETH_P_ALL, ETH_P_IP, ETH_P_IPV6})
"""Protocols whose sockets would see what clearway carries."""
ALL_DEVICES = 0
_PROTO, _IFACE, _RUNNING, _INODE = 3, 4, 5, 8


@dataclass(frozen=True, slots=True)
class PacketSocket:
    """`ifindex`: of the device, ALL_DEVICES: of all."""

    ifindex: int
    inode: int


def packet_sockets() -> frozenset[PacketSocket]:
    """Those of the calling thread's network namespace that IP packets go to."""
    lines = Path("/proc/thread-self/net/packet").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return frozenset(
        PacketSocket(int(row[_IFACE]), int(row[_INODE]))
        for row in rows
        if int(row[_PROTO], 16) in SEEN and row[_RUNNING] != "0"
    )


def owners(sockets: frozenset[PacketSocket]) -> dict[PacketSocket, str]:
    """The program and process id behind each, `tcpdump (1234)`, as far as they can be seen from here."""
    wanted = {f"socket:[{one.inode}]": one for one in sockets}
    found: dict[PacketSocket, str] = {}
    for process in Path("/proc").iterdir():
        if not wanted.keys() or not process.name.isdigit():
            continue
        for link in _open_files(process):
            if link in wanted:
                found[wanted[link]] = f"{_command(process)} ({process.name})"
    return found


def _open_files(process: Path) -> list[str]:
    try:
        return [str(entry.readlink()) for entry in (process / "fd").iterdir()]
    except OSError:  # it has ended, or is not ours to look at
        return []


def _command(process: Path) -> str:
    try:
        return re.sub(r"\s+", " ", (process / "comm").read_text()).strip()
    except OSError:
        return "?"
