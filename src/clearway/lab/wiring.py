# SPDX-License-Identifier: Apache-2.0
"""Turns a topology into namespaces, veth pairs, addresses and routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface

from clearway.lab.namespace import Namespace
from clearway.lab.topology import VIP4, VIP6, HostPlan, Role, Topology, transit_net

# rp_filter: IPv4 settings of a new namespace are copied from the first one, so what matters is set here.
# accept_dad: the lab's addresses are unique by construction, and the check delays every start by a second.
COMMON_SYSCTLS: Mapping[str, str | int] = {
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
    "ipv6/conf/all/disable_ipv6": 0,
    "ipv6/conf/default/disable_ipv6": 0,
    "ipv6/conf/all/accept_dad": 0,
    "ipv6/conf/default/accept_dad": 0,
    "ipv6/conf/default/accept_ra": 0,
}
ROUTER_SYSCTLS: Mapping[str, str | int] = {
    "ipv4/ip_forward": 1,
    "ipv6/conf/all/forwarding": 1,
    "ipv6/conf/default/forwarding": 1,
}
DEFAULT = ("default", "default")
HOST_SYSCTLS: Mapping[str, str | int] = {"ipv4/ip_local_port_range": "1024 65535"}


def wire(topology: Topology, prefix: str) -> None:
    """Build all of it. Namespaces are named `prefix` + host name; LabError when something cannot be made."""
    node = Namespace(f"{prefix}node")
    node.create()
    node.sysctl({**COMMON_SYSCTLS, **ROUTER_SYSCTLS})
    # The service addresses are the node's own: what no service claims there is answered by Linux.
    node.ip_batch([f"address add {VIP4}/32 dev lo", f"address add {VIP6}/128 dev lo nodad"])
    transit = 0
    for plan in topology.hosts():
        transit = _wire_host(plan, prefix, node, transit)


def _wire_host(plan: HostPlan, prefix: str, node: Namespace, transit: int) -> int:
    """Build one host and the routers before it, from the node outwards; the next free transit number."""
    host = Namespace(prefix + plan.name)
    host.create()
    host.sysctl({**COMMON_SYSCTLS, **HOST_SYSCTLS})
    here, device = node, plan.interface
    next_hop = (str(plan.ipv4.ip), str(plan.ipv6.ip))  # as the node sees the way to the host
    uplink: tuple[str, str] | None = None  # the node's own network on that way, if it is not the host's
    for hop, mtu in enumerate(plan.path_mtus[:-1], start=1):
        router = Namespace(f"{prefix}{plan.name}-r{hop}")
        router.create()
        router.sysctl({**COMMON_SYSCTLS, **ROUTER_SYSCTLS})
        net = transit_net(transit)
        transit += 1
        _join(here, device, router, "near", mtu)
        _address(here, device, net.ipv4[0], net.ipv6[0])
        _address(router, "near", net.ipv4[1], net.ipv6[1])
        _route(
            here, [str(plan.ipv4.network), str(plan.ipv6.network)], (str(net.ipv4[1].ip), str(net.ipv6[1].ip))
        )
        _route(router, DEFAULT, (str(net.ipv4[0].ip), str(net.ipv6[0].ip)))
        if here is node:
            uplink = (str(net.ipv4[0].network), str(net.ipv6[0].network))
            next_hop = (str(net.ipv4[1].ip), str(net.ipv6[1].ip))
        here, device = router, "far"
    _join(here, device, host, "eth0", plan.path_mtus[-1])
    _address(here, device, plan.gateway4, plan.gateway6)
    _address(host, "eth0", plan.ipv4, plan.ipv6)
    gateway = (plan.gateway(4), plan.gateway(6))
    if plan.role is Role.OUTSIDE:
        _route(host, [f"{VIP4}/32", f"{VIP6}/128"], gateway)
        if uplink is not None:
            _route(host, uplink, gateway)
        _route(node, DEFAULT, next_hop)
    else:
        _route(host, DEFAULT, gateway)
    return transit


def _join(near: Namespace, near_device: str, far: Namespace, far_device: str, mtu: int) -> None:
    near.ip(
        *("link", "add", "name", near_device, "mtu", str(mtu), "type", "veth"),
        *("peer", "name", far_device, "mtu", str(mtu), "netns", far.name),
    )
    near.ip("link", "set", near_device, "up")
    far.ip("link", "set", far_device, "up")


def _address(namespace: Namespace, device: str, ipv4: IPv4Interface, ipv6: IPv6Interface) -> None:
    namespace.ip_batch([f"address add {ipv4} dev {device}", f"address add {ipv6} dev {device} nodad"])


def _route(namespace: Namespace, networks: Sequence[str], gateways: tuple[str, str]) -> None:
    """Routes to an IPv4 and an IPv6 network, through an IPv4 and an IPv6 gateway."""
    namespace.ip_batch(
        f"route add {network} via {gateway}" for network, gateway in zip(networks, gateways, strict=True)
    )
