# SPDX-License-Identifier: Apache-2.0
"""Linux alone doing what a clearway configuration says: the same services and NAT as an nftables ruleset."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from clearway.lab.namespace import Namespace
from clearway.model import Config, Nat, Service

TABLE = "clearway_baseline"


def ruleset(config: Config) -> str:
    """The text for `nft -f`: a table for IPv4 and one for IPv6.

    Round robin becomes `numgen inc`, Maglev a hash of the client's address and port; weights are shares of
    the map. Endpoints that drain, or weigh nothing, get no new connections, as with clearway.
    """
    return _table("ip", 4, config) + _table("ip6", 6, config)


def _table(keyword: str, family: int, config: Config) -> str:
    services = [service for service in config.services if service.address.version == family]
    nats = [nat for nat in config.nat if nat.source.version == family]
    prerouting = [line for service in services if (line := _balance(keyword, service))]
    postrouting = [_full_nat(keyword, service) for service in services if service.mode == "full-nat"]
    postrouting += [_source_nat(keyword, nat) for nat in nats]
    return (
        f"table {keyword} {TABLE} {{\n"
        "  chain prerouting {\n    type nat hook prerouting priority dstnat;\n"
        + "".join(f"    {line}\n" for line in prerouting)
        + "  }\n  chain postrouting {\n    type nat hook postrouting priority srcnat;\n"
        + "".join(f"    {line}\n" for line in postrouting)
        + "  }\n}\n"
    )


def _balance(keyword: str, service: Service) -> str:
    """The rule that picks an endpoint; empty when the service has none to pick."""
    shares, total = [], 0
    for endpoint in service.endpoints:
        if endpoint.weight > 0 and not endpoint.drain:
            first, total = total, total + endpoint.weight
            share = str(first) if endpoint.weight == 1 else f"{first}-{total - 1}"
            shares.append(f"{share} : {endpoint.address} . {endpoint.port}")
    if not shares:
        return ""
    match = f"{keyword} daddr {service.address} {service.protocol} dport {service.port}"
    hashed = f"jhash {keyword} saddr . {service.protocol} sport mod {total}"
    pick = f"numgen inc mod {total}" if service.algorithm == "round-robin" else hashed
    return f"{match} dnat to {pick} map {{ {', '.join(shares)} }}"


def _full_nat(keyword: str, service: Service) -> str:
    of_service = f"ct original {keyword} daddr {service.address} ct original proto-dst {service.port}"
    return f"meta l4proto {service.protocol} {of_service} ct status dnat masquerade"


def _source_nat(keyword: str, nat: Nat) -> str:
    match = f'oifname "{nat.interface}" {keyword} saddr {nat.source}'
    if nat.pool is None:
        return f"{match} masquerade"
    return f"{match} snat to {_pool(nat.pool.first, nat.pool.count)}"


def _pool(first: IPv4Address | IPv6Address, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + (count - 1)}"


@contextlib.contextmanager
def linux_alone(node: Namespace, config: Config) -> Iterator[None]:
    """The ruleset is in force on `node` for the time of the `with` block. LabError when nft refuses it."""
    node.run("nft", "-f", "-", stdin=ruleset(config))
    try:
        yield
    finally:
        for keyword in ("ip", "ip6"):
            node.run("nft", "delete", "table", keyword, TABLE, check=False)
        # Connections of the old rules must not steer those of the next measurement.
        node.run("conntrack", "-F", check=False)
