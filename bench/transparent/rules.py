# SPDX-License-Identifier: Apache-2.0
"""The rules of a router, whose filter has some that match nothing, and those of a host of containers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

from clearway.lab import Namespace
from clearway.lab.topology import HostPlan

FAMILIES = (4, 6)
KEYWORDS = {4: "ip", 6: "ip6"}
FILTER, MASQUERADE = "bench_filter", "bench_nat"
INSIDE, OUTSIDE = "client1", "uplink"
ESTABLISHED = "ct state established,related accept"
ELSEWHERE: dict[int, IPv4Network | IPv6Network] = {
    4: ip_network("198.18.0.0/15"),
    6: ip_network("2001:db8:2::/48"),
}
"""Addresses that take no part: RFC 2544, RFC 3849."""

# ---- a router ----

_FORMS: Sequence[Callable[[str, str, int], str]] = (
    lambda keyword, host, port: f'iifname "{OUTSIDE}" {keyword} daddr {host} tcp dport {port} accept',
    lambda keyword, host, port: f"{keyword} saddr {host} counter drop",
    lambda keyword, host, port: f"{keyword} saddr {host} udp dport {port} accept",
    lambda keyword, host, port: f"{keyword} daddr {host} tcp dport {{ {port}, {port + 1} }} accept",
)


def masquerade(family: int) -> str:
    """For `nft -f`: what goes out has the router's address."""
    return (
        f"table {KEYWORDS[family]} {MASQUERADE} {{\n  chain postrouting {{\n"
        f'    type nat hook postrouting priority srcnat;\n    oifname "{OUTSIDE}" masquerade\n  }}\n}}\n'
    )


def filter_rules(count: int, family: int, *, established_first: bool) -> str:
    """For `nft -f`, in place of what was there: so many rules of forms that users write, which no packet here
    matches. Packets of established connections are accepted before them, or, so that each goes
    through all, behind them.
    """
    name = f"{KEYWORDS[family]} {FILTER}"
    lines = [_rule(number, family) for number in range(count)]
    lines = [ESTABLISHED, *lines] if established_first else [*lines, ESTABLISHED]
    body = "\n".join(f"    {line}" for line in (*lines, f'iifname "{INSIDE}" accept'))
    chain = f"  chain forward {{\n    type filter hook forward priority filter; policy drop;\n{body}\n  }}\n"
    return f"table {name} {{ }}\ndelete table {name}\ntable {name} {{\n{chain}}}\n"


def no_filter(family: int) -> str:
    """For `nft -f`: whatever filter_rules() put there is gone."""
    name = f"{KEYWORDS[family]} {FILTER}"
    return f"table {name} {{ }}\ndelete table {name}\n"


def put(node: Namespace, text: str) -> None:
    """Have nft load it. LabError when it refuses."""
    node.run("nft", "-f", "-", stdin=text)


def _rule(number: int, family: int) -> str:
    host = str(ELSEWHERE[family][1 + number])
    return _FORMS[number % len(_FORMS)](KEYWORDS[family], host, 1024 + number)


# ---- a host of containers ----

PUBLISHED, CONTAINER_PORT = 8080, 80


def containers(networks: Sequence[HostPlan], family: int) -> str:
    """For `iptables-restore` or, of IPv6, `ip6tables-restore`: chains as Docker makes them for containers in
    networks of their own, each the only host of one; the first has a published port.
    """
    return _containers_filter(networks, family) + _containers_nat(networks, family)


def _containers_filter(networks: Sequence[HostPlan], family: int) -> str:
    first, names = networks[0], [plan.interface for plan in networks]
    one, two = "DOCKER-ISOLATION-STAGE-1", "DOCKER-ISOLATION-STAGE-2"
    lines = ["-A FORWARD -j DOCKER-USER", f"-A FORWARD -j {one}"]
    for name in names:
        lines += [
            f"-A FORWARD -o {name} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            f"-A FORWARD -o {name} -j DOCKER",
            f"-A FORWARD -i {name} ! -o {name} -j ACCEPT",
            f"-A FORWARD -i {name} -o {name} -j ACCEPT",
            f"-A {one} -i {name} ! -o {name} -j {two}",
            f"-A {two} -o {name} -j DROP",
        ]
    lines.append(
        f"-A DOCKER -d {first.address(family)} ! -i {first.interface} -o {first.interface} "
        f"-p tcp -m tcp --dport {CONTAINER_PORT} -j ACCEPT"
    )
    lines += [f"-A {chain} -j RETURN" for chain in (one, two, "DOCKER-USER")]
    chains = [
        "INPUT ACCEPT",
        "FORWARD DROP",
        "OUTPUT ACCEPT",
        *(f"{it} -" for it in ("DOCKER", "DOCKER-USER")),
    ]
    return _restored("filter", [*chains, f"{one} -", f"{two} -"], lines)


def _containers_nat(networks: Sequence[HostPlan], family: int) -> str:
    first, local = networks[0], "127.0.0.0/8" if family == 4 else "::1/128"
    to = first.address(family) if family == 4 else f"[{first.address(family)}]"
    lines = [
        "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
        f"-A OUTPUT ! -d {local} -m addrtype --dst-type LOCAL -j DOCKER",
    ]
    for plan in networks:
        source = plan.ipv4.network if family == 4 else plan.ipv6.network
        lines.append(f"-A POSTROUTING -s {source} ! -o {plan.interface} -j MASQUERADE")
    lines.append(
        f"-A DOCKER ! -i {first.interface} -p tcp -m tcp --dport {PUBLISHED} "
        f"-j DNAT --to-destination {to}:{CONTAINER_PORT}"
    )
    names = ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")
    return _restored("nat", [*(f"{name} ACCEPT" for name in names), "DOCKER -"], lines)


def _restored(table: str, chains: Sequence[str], lines: Sequence[str]) -> str:
    declared = "\n".join(f":{chain} [0:0]" for chain in chains)
    return "\n".join((f"*{table}", declared, *lines, "COMMIT", ""))
