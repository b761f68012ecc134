# SPDX-License-Identifier: Apache-2.0
"""A node whose data path is run by hand: devices, routes and neighbours for it to look up, and services.

clients, 198.18.0.0/15 and 2001:2::/48 -- router -- front [node] back -- endpoints
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from clearway.compiler import HostFacts, Tables, compile_tables
from clearway.daemon.apply import apply_tables
from clearway.datapath import Datapath, Sizes
from clearway.datapath.datapath import remove
from clearway.datapath.flowtable import TAG_SHIFT
from clearway.lab import Daemon, Namespace
from clearway.lab.namespace import existing
from clearway.model import Config, config_from_data

PREFIX = "cw-bench-flows-"
BPFFS = Path("/sys/fs/bpf")
FRONT, BACK = "front", "back"
DEVICES = (FRONT, BACK)
ROUTER = 254  # host number of the front's router
ENDPOINTS = range(11, 19)
NETWORKS = {
    4: {FRONT: "203.0.113.{}", BACK: "10.0.0.{}"},
    6: {FRONT: "2001:db8:f::{:x}", BACK: "fd00:a::{:x}"},
}
PREFIX_LENGTHS = {4: 24, 6: 64}
VIPS = {4: "192.0.2.10", 6: "2001:db8:5::10"}
# Ports of the services: all flows to one endpoint, so that who replies is known; or balanced among all.
SINGLE, BALANCED = 80, 81
ENDPOINT_PORT = 8080
LOCAL_PORTS = (32768, 60999)


def host(family: int, device: str, number: int) -> str:
    """Address of a host on a device's network; the node is number 1."""
    return NETWORKS[family][device].format(number)


def device_mac(device: str) -> str:
    """Link address of the node on that device."""
    return f"02:00:00:00:01:{DEVICES.index(device):02x}"


def neighbour_mac(device: str, number: int) -> str:
    return f"02:00:00:00:{DEVICES.index(device) + 0x10:02x}:{number:02x}"


def sizes_for(max_flows: int, rules: int = 16) -> Sizes:
    return Sizes(max_flows=max_flows, services=16, endpoints=256, wheel_slots=1 << 21, nats=16, rules=rules)


@dataclass
class Node:
    """A namespace with a data path on both devices, configured. `ifindex` by device; `tables`: in force."""

    name: str
    max_flows: int
    inside: Namespace
    datapath: Datapath
    ifindex: dict[str, int] = field(default_factory=dict)
    tables: Tables = field(default_factory=Tables)

    def write(self, table: str, key: Any, **fields: Any) -> None:
        """One row; what is not named is zero."""
        opened = self.datapath.table(table)
        keys, values = opened.rows(1)
        keys[0] = key
        for name, value in fields.items():
            values[0][name] = value
        opened.update(keys, values)

    def facts(self) -> HostFacts:
        return HostFacts(*LOCAL_PORTS, self.ifindex, self.datapath.sizes())

    def compile(self, config: Config) -> Tables:
        """To replace what is in force."""
        return compile_tables(config, self.facts(), self.tables)

    def put(self, tables: Tables) -> None:
        """In force from now on, whenever they were compiled."""
        desired = replace(tables, epoch=self.tables.next_epoch)
        self.tables = apply_tables(self.datapath, self.tables, desired).tables

    def forget(self) -> None:
        """Empties the flow tables. Nothing must go through them meanwhile."""
        forget_flows(self.datapath)

    def connections(self, family: int) -> int:
        """That the flow tables hold."""
        first = self.datapath.enum("flow_tag")["FLOW_TAG_FIRST"]
        with self.datapath.flow_tables() as tables:
            marks = [table.rows["marks"]["mark"] for table in tables if table.family == family]
            return sum(int(np.count_nonzero(mark >> TAG_SHIFT >= first)) for mark in marks) // 2

    def reasons(self) -> dict[str, int]:
        """Packets by what became of them."""
        return {name: count.packets for name, count in self.datapath.counters().reasons.items()}


def forget_flows(datapath: Datapath) -> None:
    """Empties its flow tables. Nothing must go through them meanwhile."""
    with datapath.flow_tables() as tables:
        for table in tables:
            table.rows["marks"] = np.zeros((), table.rows.dtype["marks"])


@contextmanager
def open_node(max_flows: int, rules: int = 16) -> Iterator[Node]:
    """A node whose flow tables are made for so many connections of each family, with room for so many rules
    of a firewall, for the time of the `with` block.
    """
    with ExitStack() as undo:
        name, inside = undo.enter_context(_network())
        datapath = Datapath.load(name, sizes_for(max_flows, rules))
        undo.callback(datapath.remove)
        with inside.entered():
            for device in DEVICES:  # test runs of XDP want the receive queues of a device with a program
                datapath.attach(device, "xdp")
        node = Node(name, max_flows, inside, datapath, _ifindexes(inside))
        _mirror(node)
        node.put(node.compile(config_from_data(_data(datapath.sizes()))))
        yield node


@contextmanager
def serve_node(max_flows: int) -> Iterator[tuple[Node, Daemon]]:
    """The same, loaded and looked after by `clearway run`, on TC."""
    with ExitStack() as undo:
        name, inside = undo.enter_context(_network())
        directory = Path(undo.enter_context(TemporaryDirectory(prefix=name)))
        interfaces = [{"name": device, "hook": "tc"} for device in DEVICES]
        data = {"interfaces": interfaces, **_data(sizes_for(max_flows))}
        daemon = Daemon(inside, name, directory, json.dumps(data))
        undo.callback(daemon.down)
        daemon.start()
        yield Node(name, max_flows, inside, Datapath.open(name), _ifindexes(inside)), daemon


@contextmanager
def _network() -> Iterator[tuple[str, Namespace]]:
    """The node's namespace, wired, and a name for what is in it."""
    name = f"{PREFIX}{os.getpid()}"
    with ExitStack() as undo:
        far, inside = Namespace(f"{name}-far"), Namespace(f"{name}-node")
        for namespace in (far, inside):
            namespace.create()
            undo.callback(namespace.delete)
        _wire(inside, far)
        yield name, inside


def _ifindexes(inside: Namespace) -> dict[str, int]:
    with inside.entered():
        return {found: number for number, found in socket.if_nameindex()}


def remove_leftovers() -> None:
    """What killed runs have left behind."""
    for instance in BPFFS.glob(f"{PREFIX}*"):
        if _is_dead(instance.name):
            remove(instance.name)
    for namespace in existing(PREFIX):
        if _is_dead(namespace.name):
            namespace.delete()


def _is_dead(name: str) -> bool:
    return not Path("/proc", name.removeprefix(PREFIX).partition("-")[0]).exists()


def _wire(inside: Namespace, far: Namespace) -> None:
    far.sysctl({"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1})
    inside.sysctl(
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
    inside.ip_batch(
        f"link add {device} address {device_mac(device)} type veth peer name {device} netns {far.name}"
        for device in DEVICES
    )
    far.ip_batch(f"link set {device} arp off up" for device in DEVICES)
    inside.ip_batch(_addresses())


def _addresses() -> Iterator[str]:
    for device in DEVICES:
        yield f"link set {device} up"
        numbers = (ROUTER,) if device == FRONT else ENDPOINTS
        for family, length in PREFIX_LENGTHS.items():
            yield f"addr add {host(family, device, 1)}/{length} dev {device}"
            for number in numbers:
                mac = neighbour_mac(device, number)
                yield f"neigh replace {host(family, device, number)} lladdr {mac} dev {device} nud permanent"
    for family in PREFIX_LENGTHS:
        yield f"route add default via {host(family, FRONT, ROUTER)} dev {FRONT}"


def _mirror(node: Node) -> None:
    """What the daemon would tell the data path of its devices."""
    for device in DEVICES:
        ifindex = node.ifindex[device]
        node.write(
            "device_v1",
            ifindex,
            lower=ifindex,
            address4=int.from_bytes(socket.inet_pton(socket.AF_INET, host(4, device, 1)), "big"),
            address6=list(socket.inet_pton(socket.AF_INET6, host(6, device, 1))),
            xdp_transmit=1,
        )
        mac = list(bytes.fromhex(device_mac(device).replace(":", "")))
        node.write("port_v1", ifindex, ifindex=ifindex, mac=mac)


def _data(sizes: Sizes) -> dict[str, Any]:
    """The configuration."""
    return {
        "services": list(_services()),
        "conntrack": {"max_flows": sizes.max_flows, "midstream": "drop"},
        "limits": {
            "services": sizes.services,
            "endpoints": sizes.endpoints,
            "nats": sizes.nats,
            "wheel_slots": sizes.wheel_slots,
            "rules": sizes.rules,
        },
    }


def _services() -> Iterator[dict[str, Any]]:
    for family, vip in VIPS.items():
        for protocol in ("udp", "tcp"):
            for port, numbers in ((SINGLE, ENDPOINTS[:1]), (BALANCED, ENDPOINTS)):
                yield {
                    "name": f"{protocol}{port}-{family}",
                    "address": vip,
                    "port": port,
                    "protocol": protocol,
                    "mode": "nat",
                    "algorithm": "maglev",
                    "endpoints": [
                        {"address": host(family, BACK, number), "port": ENDPOINT_PORT} for number in numbers
                    ],
                }
