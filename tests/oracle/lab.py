# SPDX-License-Identifier: Apache-2.0
"""The two labs: one where Linux is alone, one where clearway is on the router's interfaces, told nothing."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from clearway.api.client import Client
from clearway.instance import find_instance
from clearway.lab.daemon import Daemon, remove_instance
from clearway.lab.namespace import Namespace, end_processes, existing
from clearway.lab.run import run, undisturbed, wait_until
from clearway.linux import nftables
from clearway.linux.ruleset import legacy_tables
from tests.oracle import network
from tests.oracle.case import Run
from tests.oracle.frames import ETHERTYPE
from tests.oracle.network import SEGMENTS
from tests.oracle.traffic import Injection

PREFIX = "cw-orc-"
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23  # linux/if_packet.h
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
VNET_HEADER = struct.Struct("=BBHHHH")  # struct virtio_net_hdr, linux/virtio_net.h
VNET_NEEDS_CSUM = 1
VNET_GSO = {4: 1, 6: 4}
BUFFER = 64 << 20  # bytes
LONGEST = 1 << 16
QUIET = 0.0005  # seconds without a packet: a veth's receiver runs within the sender's system call
PATIENCE = 0.3  # seconds for a difference to turn out to be one
MULTICAST = 1  # bit of a link address's first byte

Arrived = Mapping[str, list[bytes]]
"""Frames by the segment they arrived on, in their order, from the Ethernet header on."""


class Side:
    """One lab: a router, and the far ends of its links, where packet sockets listen.

    (Never in the router: who listens there wants to see what goes through.) `clearway`: the router's.
    """

    clearway: Client | None = None

    def __init__(self, prefix: str, hook: str) -> None:
        self.router = Namespace(f"{prefix}router")
        self.hosts = Namespace(f"{prefix}hosts")
        self._hook = hook
        self._stack = ExitStack()
        self._sockets: dict[str, tuple[socket.socket, socket.socket]] = {}

    def up(self) -> None:
        """Build it. LabError when something cannot be made; down() removes what there is by then."""
        for namespace, settings in (
            (self.router, network.ROUTER_SETTINGS),
            (self.hosts, network.HOSTS_SETTINGS),
        ):
            namespace.create()
            namespace.sysctl(settings)
        links = network.links(self.router.name, self.hosts.name)
        run(["ip", "-batch", "-"], stdin="\n".join(links) + "\n")
        for segment in SEGMENTS:
            self.hosts.run("ethtool", "-K", segment, *network.offloads(self._hook))
        self.hosts.ip_batch(network.hosts_up())
        self.router.ip_batch(network.links_up())
        for family in (4, 6):
            self.ip_batch(family, network.addresses(family) + network.ways(family))
        for segment in SEGMENTS:
            self._sockets[segment] = self._open(segment)

    def _open(self, segment: str) -> tuple[socket.socket, socket.socket]:
        """One that receives, one that sends: only a sender's frames may begin with struct virtio_net_hdr."""
        receiver = self._stack.enter_context(self.hosts.open_socket(socket.AF_PACKET, socket.SOCK_RAW))
        receiver.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        receiver.bind((segment, 3))  # ETH_P_ALL
        receiver.setblocking(False)
        sender = self._stack.enter_context(self.hosts.open_socket(socket.AF_PACKET, socket.SOCK_RAW))
        sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sender.bind((segment, 0))
        return receiver, sender

    def down(self) -> None:
        self._stack.close()
        for namespace in (self.hosts, self.router):
            if namespace.path.exists():
                namespace.delete()

    def ip_batch(self, family: int, lines: Iterable[str]) -> None:
        """Many `ip -FAMILY` commands in the router."""
        self.router.run("ip", f"-{family}", "-batch", "-", stdin="\n".join(lines) + "\n")

    def command(self, what: Run) -> subprocess.CompletedProcess[str]:
        """Run it in the router; it may fail."""
        return self.router.run(*what.argv, stdin=what.stdin, check=False)

    def inject(self, injection: Injection) -> None:
        """Put a packet on a segment; when this returns it has gone through the router."""
        family = injection.packet[0] >> 4
        frame = frame_on(injection.segment, injection.packet)
        _, sender = self._sockets[injection.segment]
        try:
            sender.send(_vnet_header(injection, family) + frame)
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # the router's end takes none, or none so long
                raise

    def received(self) -> dict[str, list[bytes]]:
        """Frames that have arrived since it was last asked."""
        return {segment: list(_drain(receiver)) for segment, (receiver, _) in self._sockets.items()}


def frame_on(segment: str, packet: bytes) -> bytes:
    """The frame that a host of the segment sends to the router."""
    macs = network.router_mac(segment), network.host_mac(segment, network.HOSTS[0])
    return b"".join(bytes.fromhex(mac.replace(":", "")) for mac in macs) + ETHERTYPE[packet[0] >> 4] + packet


def _vnet_header(injection: Injection, family: int) -> bytes:
    if not injection.gso:
        return bytes(VNET_HEADER.size)
    start = 14 + (20 if family == 4 else 40)
    return VNET_HEADER.pack(VNET_NEEDS_CSUM, VNET_GSO[family], start + 20, injection.gso, start, 16)


def _drain(receiver: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError):
        while True:
            frame = receiver.recv(LONGEST)
            if not _noise(frame):
                yield frame


def _noise(frame: bytes) -> bool:
    """What the router says on its own account, at moments of its own: ARP, neighbour discovery, MLD."""
    return frame[12:14] not in ETHERTYPE.values() or bool(frame[0] & MULTICAST)


class Pair:
    """Both labs, as a context manager. `hook`: xdp or tc."""

    _numbers = itertools.count()

    def __init__(self, hook: str) -> None:
        self.hook = hook
        self.instance = f"{PREFIX}{os.getpid()}-{next(self._numbers)}"
        self.plain = Side(f"{self.instance}-plain-", hook)
        self.fast = Side(f"{self.instance}-fast-", hook)
        self._directory = Path(tempfile.mkdtemp(prefix=self.instance))
        self.daemon = Daemon(self.fast.router, self.instance, self._directory, configuration(hook))
        self._client = Client(find_instance(self.instance).socket)
        self.fast.clearway = self._client
        self.idents = itertools.count(1, 64)
        """Where each case begins to number its packets: no fragment meets one of another case's."""

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.plain, self.fast

    def __enter__(self) -> Pair:
        reap()
        try:
            for side in self.sides:
                side.up()
            self.daemon.start()
            self.reset(network_too=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        with undisturbed():
            self.daemon.down()
            for side in self.sides:
                side.down()
            shutil.rmtree(self._directory, ignore_errors=True)

    def reset(self, *, network_too: bool) -> None:
        """No rules, no connections and, where a case may have changed it, the network as it was."""
        for side in self.sides:
            side.router.run("nft", "flush", "ruleset")
            side.router.run("conntrack", "-F")
            if network_too:
                restore(side)
            side.received()

    def proved(self) -> None:
        """Returns when clearway knows what the rules in force mean: until then Linux carries everything.
        LabError when it does not get to know.
        """
        with self.fast.router.entered():
            wanted = nftables.generation()
        wait_until(
            f"generation {wanted} of the rules is proved",
            lambda: self._client.get("status")["adoption"]["generation"] == wanted,
            every=0.002,
        )

    def legacy(self) -> bool:
        """Whether the accelerated router has tables of iptables-legacy: then clearway carries nothing."""
        with self.fast.router.entered():
            return bool(legacy_tables())

    def carried(self) -> int:
        """Packets that clearway has forwarded so far."""
        reasons = self._client.get("reasons")["reasons"]
        return sum(one["packets"] for one in reasons if one["verdict"] == "forward")

    def settled(self) -> tuple[Arrived, Arrived]:
        """What has arrived in both labs, once as much has in the one as in the other, or will not."""
        both: tuple[dict[str, list[bytes]], dict[str, list[bytes]]] = ({}, {})
        deadline = time.monotonic() + PATIENCE
        while True:
            fresh = False
            for got, side in zip(both, self.sides, strict=True):
                for segment, some in side.received().items():
                    got.setdefault(segment, []).extend(some)
                    fresh = fresh or bool(some)
            plain, fast = ([len(got[segment]) for segment in SEGMENTS] for got in both)
            if not fresh and (plain == fast or time.monotonic() > deadline):
                return both
            time.sleep(QUIET)


def configuration(hook: str) -> str:
    """Which interfaces clearway is on, and nothing else."""
    return json.dumps({"interfaces": [{"name": segment, "hook": hook} for segment in SEGMENTS]})


def restore(side: Side) -> None:
    """The network as up() made it."""
    side.router.sysctl({"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1})
    side.router.ip_batch(network.links_up())
    for family in (4, 6):
        ip = ("ip", f"-{family}")
        side.router.run(*ip, "rule", "delete", "pref", str(network.FREE_PREFERENCE), check=False)
        side.router.run(*ip, "route", "flush", "table", "main", "proto", "boot", check=False)
        side.ip_batch(family, network.ways(family))


def reap() -> None:
    """Remove what runs that were killed have left behind."""
    left = [namespace for namespace in existing(PREFIX) if not Path(f"/proc/{_owner(namespace)}").exists()]
    end_processes(left)
    for namespace in left:
        if namespace.name.endswith("-fast-router"):
            remove_instance(namespace, namespace.name.removesuffix("-fast-router"), {})
    for namespace in left:
        namespace.delete()


def _owner(namespace: Namespace) -> str:
    return namespace.name.removeprefix(PREFIX).partition("-")[0]


def packets(arrived: Arrived) -> dict[str, list[bytes]]:
    """The same without Ethernet headers."""
    return {segment: [frame[14:] for frame in frames] for segment, frames in arrived.items()}
