# SPDX-License-Identifier: Apache-2.0
"""Real devices, routes and neighbours for the data path to look up: a node in a network namespace of its own,
and the other ends of its links in a second one that never says anything by itself.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from clearway.datapath import Datapath, Sizes, features
from clearway.datapath.datapath import remove
from clearway.lab.namespace import Namespace, existing
from clearway.lab.run import run, wait_until
from clearway.linux import conntrack
from tests.packet.addresses import (
    BACK,
    DEVICES,
    FRONT,
    MTU,
    NARROW,
    NARROW_MTU,
    NETS,
    SPARE,
    Net,
    device_mac,
    neighbour_mac,
)

SIZES = Sizes(max_flows=1024, services=16, endpoints=64, wheel_slots=65536, nats=16, rules=64)
PREFIX = "cw-packet-"
BPFFS = Path("/sys/fs/bpf")
KNOWN = {
    FRONT: (50, 51, 60, 61, 254),
    BACK: (*range(11, 19), 50, 51, 254),
    SPARE: (254,),
    NARROW: (11, 254),
}
"""Host numbers whose link address the node knows."""
LOCAL_PORTS = (32768, 60999)


class World:
    """The two namespaces and a data path that is attached to every device of the node, on XDP unless moved.
    `remove()` leaves nothing.
    """

    def __init__(self, number: int) -> None:
        """number: the process's, so that several can run at once."""
        self.name = f"{PREFIX}{number}"
        self.node = Namespace(f"{self.name}-node")
        self.far = Namespace(f"{self.name}-far")
        self.ifindex: dict[str, int] = {}
        self._undo = ExitStack()
        try:
            self._build()
            self.datapath = self._load()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        self._undo.close()

    def _build(self) -> None:
        for namespace in (self.far, self.node):
            namespace.create()
            self._undo.callback(namespace.delete)
        self.far.sysctl({"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1})
        self.node.sysctl(
            {
                "ipv4/ip_forward": 1,
                "ipv4/conf/all/rp_filter": 0,
                "ipv4/conf/default/rp_filter": 0,
                "ipv4/ip_local_port_range": "{} {}".format(*LOCAL_PORTS),
                "ipv6/conf/all/forwarding": 1,
                "ipv6/conf/default/accept_dad": 0,
                "ipv6/conf/default/mldv2_unsolicited_report_interval": 0,
            }
        )
        self.node.ip_batch(
            f"link add {device} address {device_mac(device)} mtu {_mtu(device)} type veth"
            f" peer name {device} netns {self.far.name}"
            for device in DEVICES
        )
        # GRO makes the far ends take frames that XDP sends.
        for device in DEVICES:
            run(self.far.argv("ethtool", "-K", device, "gro", "on"))
        self.far.ip_batch(f"link set {device} arp off mtu {_mtu(device)} up" for device in DEVICES)
        self.node.ip_batch(self._configuration())
        with self.node.entered():
            self.ifindex = {name: number for number, name in socket.if_nameindex()}
            if features.has_adoption():
                # As the daemon: connections that Linux tells of are believed for longer.
                self._undo.callback(conntrack.listener().close)

    def _configuration(self) -> Iterator[str]:
        for device in DEVICES:
            yield f"link set {device} up"
        for net in NETS.values():
            for device in DEVICES:
                yield f"addr add {net.node(device)}/{net.length} dev {device}"
                for number in KNOWN[device]:
                    yield (
                        f"neigh replace {net.host(device, number)} lladdr {neighbour_mac(device, number)}"
                        f" dev {device} nud permanent"
                    )
            yield f"route add default via {net.router(FRONT)} dev {FRONT}"
            yield f"route add {net.remote_prefix} via {net.router(BACK)} dev {BACK}"

    def _load(self) -> Datapath:
        datapath = Datapath.load(self.name, SIZES)
        self._undo.callback(datapath.remove)
        self.attach(datapath, "xdp")
        return datapath

    def attach(self, datapath: Datapath, hook: str) -> None:
        with self.node.entered():
            for device in DEVICES:
                datapath.attach(device, hook)

    @contextmanager
    def attached(self, hook: str) -> Iterator[None]:
        """All devices on that hook; afterwards on XDP again, which test runs need (their receive queues)."""
        self.attach(self.datapath, hook)
        try:
            yield
        finally:
            self.attach(self.datapath, "xdp")

    @contextmanager
    def route(self, action: str, *words: str) -> Iterator[None]:
        """A route that is there for a while: route("add", "10.9.1.0/24", "via", ...)."""
        self.node.ip("route", action, *words)
        try:
            yield
        finally:
            self.node.ip("route", "del", *words)

    @contextmanager
    def address(self, address: str, device: str) -> Iterator[None]:
        """An address that the node has for a while. One of IPv6 is in force a moment after it was added."""
        self.node.ip("addr", "add", address, "dev", device, "nodad")
        host = address.partition("/")[0]
        try:
            wait_until(
                f"{host} is the node's", lambda: self.node.ip("route", "get", host).startswith("local ")
            )
            yield
        finally:
            self.node.ip("addr", "del", address, "dev", device)

    def local_ports(self, first: int, last: int) -> None:
        self.node.sysctl({"ipv4/ip_local_port_range": f"{first} {last}"})

    def device_rows(self) -> dict[str, dict[str, Any]]:
        """Rows of device_v1, by device, as the daemon would write them."""
        return {
            device: {
                "lower": self.ifindex[device],
                "address4": int.from_bytes(_packed(NETS[4], device), "big"),
                "address6": list(_packed(NETS[6], device)),
                "xdp_transmit": 1,
                "proved": 1,
            }
            for device in DEVICES
        }


def remove_leftovers() -> None:
    """Removes what killed test processes have left behind."""
    for instance in BPFFS.glob(f"{PREFIX}*"):
        if _is_dead(instance.name):
            remove(instance.name)
    for namespace in existing(PREFIX):
        if _is_dead(namespace.name):
            namespace.delete()


def _is_dead(name: str) -> bool:
    return not Path("/proc", name.removeprefix(PREFIX).partition("-")[0]).exists()


def _mtu(device: str) -> int:
    return NARROW_MTU if device == NARROW else MTU


def _packed(net: Net, device: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if net.family == 6 else socket.AF_INET, net.node(device))
