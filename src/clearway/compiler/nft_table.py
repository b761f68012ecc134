# SPDX-License-Identifier: Apache-2.0
"""What Linux needs to balance and translate by itself what its rules keep from clearway: a table of nftables
for each family, with wheels of the same endpoints and the same rules of NAT.

Its chains come after those of the same hook that others have: who has translated a connection already has
decided. Source ports are those of the host's own range, in which clearway opens nothing
(HostFacts.free_ports).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from clearway.model.values import next_prime

from .maglev import Member, maglev_wheel
from .tables import EndpointRow, NatRow, ServiceRow, Tables

FAMILIES = {4: "ip", 6: "ip6"}
WEIGHT_OF_LEAST = 10
"""Of the endpoint with the smallest share: those of the others are told to a tenth of it."""
SLOTS_OF_LEAST = 100
AFTER_DSTNAT, AFTER_SRCNAT = -90, 110
"""Priorities: of its kind (NF_IP_PRI_NAT_DST, NF_IP_PRI_NAT_SRC) and behind what is usual there."""


@dataclass(frozen=True)
class NftTable:
    """Of one family. `services`: by the name of its chain, which tells the content, what a service's chain
    does. `prerouting`, `postrouting`: rules of these.
    """

    family: str
    name: str
    services: Mapping[str, str]
    prerouting: tuple[str, ...]
    postrouting: tuple[str, ...]

    def commands(self, present: frozenset[str] | None) -> str:
        """What `nft -f` takes to bring it about, at once. present: the services' chains that are there; None:
        it is not known what there is.
        """
        table = f"{self.family} {self.name}"
        lines = [f"add table {table}"]
        if present is None:
            lines += [f"delete table {table}", f"add table {table}"]
        for chain, rule in self.services.items():
            if chain not in (present or ()):
                lines += [f"add chain {table} {chain}", f"add rule {table} {chain} {rule}"]
        for hook, priority, rules in (
            ("prerouting", AFTER_DSTNAT, self.prerouting),
            ("postrouting", AFTER_SRCNAT, self.postrouting),
        ):
            lines.append(f"add chain {table} {hook} {{ type nat hook {hook} priority {priority}; }}")
            lines.append(f"flush chain {table} {hook}")
            lines += [f"add rule {table} {hook} {rule}" for rule in rules]
        gone = sorted((present or frozenset()) - set(self.services))
        lines += [f"{verb} chain {table} {chain}" for chain in gone for verb in ("flush", "delete")]
        return "".join(f"{line}\n" for line in lines)


def removal(name: str) -> str:
    """What `nft -f` takes to remove the tables of both families, if they are there."""
    return "".join(
        f"add table {family} {name}\ndelete table {family} {name}\n" for family in FAMILIES.values()
    )


def nft_tables(
    tables: Tables,
    name: str,
    interfaces: Mapping[int, str],
    ports: tuple[str, ...],
    local_ports: tuple[int, int],
) -> dict[int, NftTable]:
    """By family, of what there is one for: services and NAT that honour Linux' rules. interfaces: names by
    ifindex. ports: of the interfaces that clearway takes packets from. local_ports: the host's own range.
    """
    found = {}
    if not ports:
        return {}
    taken = f"iifname {{ {', '.join(_quoted(port) for port in sorted(ports))} }}"
    source_ports = f"{local_ports[0]}-{local_ports[1]}"
    endpoints = {row.id: row for row in tables.endpoints}
    for family, keyword in FAMILIES.items():
        services = [
            row
            for row in tables.services
            if row.address.version == family and not row.bypass and len(row.wheel)
        ]
        nats = [
            row
            for row in tables.nats
            if row.source.version == family and not row.bypass and row.ifindex in interfaces
        ]
        if not services and not nats:
            continue
        nats.sort(key=lambda row: -row.source.prefixlen)
        rules = [_balance(row, endpoints, keyword) for row in services]
        chains = [_chain_name(row, rule) for row, rule in zip(services, rules, strict=True)]
        found[family] = NftTable(
            keyword,
            name,
            dict(zip(chains, rules, strict=True)),
            tuple(
                f"{taken} {keyword} daddr {row.address} {row.protocol} dport {row.port} goto {chain}"
                for row, chain in zip(services, chains, strict=True)
            ),
            (
                *(_full_nat(row, keyword, source_ports) for row in services if row.mode == "full-nat"),
                *(
                    f"{taken} {rule}"
                    for row in nats
                    for rule in _source_nat(row, keyword, interfaces, source_ports)
                ),
            ),
        )
    return found


def _quoted(name: str) -> str:
    return f'"{name}"'


def _chain_name(service: ServiceRow, rule: str) -> str:
    return f"service_{service.id}_{blake2b(rule.encode(), digest_size=6).hexdigest()}"


def _balance(service: ServiceRow, endpoints: Mapping[int, EndpointRow], keyword: str) -> str:
    """The wheel is written into the rule: nft 1.0.6 crashes when it lists a map of its own whose key is a
    hash.
    """
    wheel = _wheel(service, endpoints)
    size = len(wheel)
    ends = {number: f"{endpoints[number].address} . {endpoints[number].port}" for number in set(wheel)}
    slots = ", ".join(f"{slot} : {ends[number]}" for slot, number in enumerate(wheel))
    hashed = f"jhash {keyword} saddr . {service.protocol} sport mod {size} seed 0x{size:x}"
    picked = f"numgen inc mod {size}" if service.algorithm == "round-robin" else hashed
    return f"meta l4proto {service.protocol} dnat {keyword} to {picked} map {{ {slots} }}"


def _wheel(service: ServiceRow, endpoints: Mapping[int, EndpointRow]) -> list[int]:
    """Slot -> endpoint id: a wheel of the same endpoints, no larger than shares within 1 % need. nft takes a
    second for 65,537 slots, and Linux remembers what it has balanced.
    """
    slots = service.wheel.slots
    ids, counts = np.unique(slots, return_counts=True)
    weights = np.rint(counts * WEIGHT_OF_LEAST / counts.min()).astype(int)
    size = next_prime(SLOTS_OF_LEAST * int(weights.sum()) // WEIGHT_OF_LEAST)
    if service.algorithm == "round-robin" or size >= len(slots):
        return list(slots.tolist())
    rows = [endpoints[number] for number in ids.tolist()]
    members = [
        Member.of(row.address, row.port, weight) for row, weight in zip(rows, weights.tolist(), strict=True)
    ]
    return list(ids[maglev_wheel(members, size)].tolist())


def _full_nat(service: ServiceRow, keyword: str, ports: str) -> str:
    original = f"ct original {keyword} daddr {service.address} ct original proto-dst {service.port}"
    return f"meta l4proto {service.protocol} ct status dnat {original} masquerade to :{ports}"


def _source_nat(nat: NatRow, keyword: str, interfaces: Mapping[int, str], ports: str) -> Iterator[str]:
    match = f"oifname {_quoted(interfaces[nat.ifindex])} {keyword} saddr {nat.source}"
    ported, echo = "meta l4proto { tcp, udp }", "meta l4proto { icmp, icmpv6 }"
    if nat.pool is None:
        yield f"{match} {ported} masquerade to :{ports}"
        yield f"{match} {echo} masquerade"
        return
    ends = list(dict.fromkeys((nat.pool.first, nat.pool.first + (nat.pool.count - 1))))
    bracketed = "-".join(f"[{end}]" if end.version == 6 else str(end) for end in ends)
    yield f"{match} {ported} snat to {bracketed}:{ports} persistent"
    yield f"{match} {echo} snat to {'-'.join(map(str, ends))} persistent"
