# SPDX-License-Identifier: Apache-2.0
"""The network that both labs are, as the commands that make it: pure data, which scripts print as well.

    lan0 --+            +-- wan0 (MTU 1400), behind its gateway a remote server
           +-- router --+
    lan1 --+            +-- wan1: the way of packets with mark 1

The far ends of the four links lie in one namespace without a single address. Whose packets come from there,
and what link address they have, is the router's belief alone.
"""

from __future__ import annotations

from clearway.lab.wiring import COMMON_SYSCTLS, ROUTER_SYSCTLS

SEGMENTS = ("lan0", "lan1", "wan0", "wan1")
ROUTER = 1  # host numbers
HOSTS = (2, 3)
NOBODY = 77  # whose address a translation gives; to ask for it in vain would take Linux until another case
GATEWAY = 254
MTU = {"lan0": 1500, "lan1": 1500, "wan0": 1400, "wan1": 1500}
REMOTE = {4: "203.0.113.9", 6: "2001:db8:113::9"}
REMOTE_NETWORK = {4: "203.0.113.0/24", 6: "2001:db8:113::/64"}
MARKED_TABLE = 100
FREE_PREFERENCE = 50  # of `ip rule`: for cases

ROUTER_SETTINGS: dict[str, str | int] = {
    **COMMON_SYSCTLS,
    **ROUTER_SYSCTLS,
    # each error is answered, and with the same bytes
    "ipv4/icmp_ratemask": 0,
    "ipv6/icmp/ratemask": "",
    "ipv6/auto_flowlabels": 0,
    # clearway sets them: conntrack is not to call invalid what follows packets that it has not seen
    "netfilter/nf_conntrack_tcp_be_liberal": 1,
    "netfilter/nf_conntrack_tcp_ignore_invalid_rst": 1,
    # no link-local addresses and what is announced about them: noise at a moment of its own
    "ipv6/conf/default/addr_gen_mode": 1,
    "ipv6/conf/default/keep_addr_on_down": 1,
}
HOSTS_SETTINGS: dict[str, str | int] = {
    "ipv6/conf/all/disable_ipv6": 1,
    "ipv6/conf/default/disable_ipv6": 1,
    "ipv4/conf/all/arp_ignore": 8,
}


def address(segment: str, host: int, family: int) -> str:
    """A host's address on a segment. `family` is 4 or 6."""
    index = SEGMENTS.index(segment)
    return f"10.1.{index}.{host}" if family == 4 else f"fd00:1:{index}::{host:x}"


def server(number: int, family: int) -> str:
    """The address of a server: 0 and 1 on wan0, one of them behind the gateway, 2 on wan1."""
    return (address("wan0", HOSTS[0], family), REMOTE[family], address("wan1", HOSTS[0], family))[number]


SERVERS = ("wan0", "wan0", "wan1")


def router_mac(segment: str) -> str:
    return f"02:00:00:00:{SEGMENTS.index(segment):02x}:01"


def host_mac(segment: str, host: int) -> str:
    return f"02:00:00:00:{SEGMENTS.index(segment):02x}:{host:02x}"


def links(router: str, hosts: str) -> list[str]:
    """`ip` commands, outside of both namespaces: the veth pairs."""
    return [
        f"link add name {segment} netns {router} address {router_mac(segment)} mtu {MTU[segment]} type veth "
        f"peer name {segment} netns {hosts} address {host_mac(segment, HOSTS[0])}"
        for segment in SEGMENTS
    ]


def hosts_up() -> list[str]:
    """`ip` commands in the hosts' namespace. Of what arrives no segments are put together, or it depends on
    who has sent it."""
    return [f"link set {segment} up gro_max_size 1" for segment in SEGMENTS]


def links_up() -> list[str]:
    """`ip` commands in the router: its links, whatever has been done to them."""
    return [f"link set {segment} up mtu {MTU[segment]}" for segment in SEGMENTS]


def addresses(family: int) -> list[str]:
    """`ip -FAMILY` commands in the router: what no case changes."""
    length = 24 if family == 4 else 64
    return [
        f"rule add pref 100 fwmark 1 lookup {MARKED_TABLE}",
        *(f"address add {address(segment, ROUTER, family)}/{length} dev {segment}" for segment in SEGMENTS),
    ]


def ways(family: int) -> list[str]:
    """`ip -FAMILY` commands in the router, its links up: neighbours and routes, whatever there was before."""
    commands = [
        f"neighbour replace {address(segment, host, family)} lladdr {host_mac(segment, host)} dev {segment} "
        "nud permanent"
        for segment in SEGMENTS
        for host in (*HOSTS, NOBODY, GATEWAY)
    ]
    for destination, segment, table in (
        (REMOTE_NETWORK[family], "wan0", "main"),
        ("default", "wan1", str(MARKED_TABLE)),
    ):
        gateway = address(segment, GATEWAY, family)
        commands.append(f"route replace {destination} via {gateway} dev {segment} table {table}")
    return commands


def offloads(hook: str) -> list[str]:
    """Arguments of `ethtool` for a far end: XDP sees no checksum that is still to be filled in, and a veth
    takes its frames only while the other end polls."""
    xdp = hook == "xdp"
    return ["tx", "off" if xdp else "on", "gro", "on" if xdp else "off"]
