# SPDX-License-Identifier: Apache-2.0
"""Rules of any kind, and packets that meet them, or just do not."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import strategies as st

from clearway.compiler.classifier import Condition, Sets
from clearway.model import IPAddress, IPNetwork, PortRange
from tests.classifier.reference import Packet

WIDTH = {4: 32, 6: 128}
NEAR = {
    4: [0, 10 << 24, (10 << 24) + 1, (10 << 24) + 256, (10 << 24) + 65536, (1 << 32) - 1],
    6: [
        0,
        0x20010DB8 << 96,
        (0x20010DB8 << 96) + 1,
        (0x20010DB8 << 96) + (1 << 63),
        (0x20010DB8 << 96) + (1 << 64),
        (0x20010DB8 << 96) + (1 << 64) - 1,
        (1 << 127) - 1,
        1 << 127,
        (1 << 128) - 1,
    ],
}
"""Numbers of addresses that rules and packets have in common more often than by chance."""
LENGTHS = {4: [0, 1, 8, 23, 24, 31, 32], 6: [0, 1, 32, 63, 64, 65, 127, 128]}
PORTS = [0, 1, 22, 53, 80, 443, 1023, 1024, 65535]
PROTOCOLS, DSCPS, INTERFACES, VLANS = [1, 6, 17, 58], [0, 8, 46], [1, 2, 3], [0, 7, 4095]
FLAGS = [0x02, 0x10, 0x12]
MARKS = [0, 1, 64, 127]
NAMES = ["a", "b", "c"]


def numbers(family: int) -> st.SearchStrategy[int]:
    return st.sampled_from(NEAR[family]) | st.integers(0, (1 << WIDTH[family]) - 1)


@st.composite
def networks(draw: st.DrawFn) -> IPNetwork:
    family = draw(st.sampled_from([4, 6]))
    length = draw(st.sampled_from(LENGTHS[family]) | st.integers(0, WIDTH[family]))
    low = WIDTH[family] - length
    number = draw(numbers(family)) >> low << low
    return IPv4Network((number, length)) if family == 4 else IPv6Network((number, length))


@st.composite
def port_ranges(draw: st.DrawFn) -> PortRange:
    port = st.sampled_from(PORTS) | st.integers(0, 65535)
    first, last = sorted((draw(port), draw(port))) if draw(st.booleans()) else (draw(port),) * 2
    return PortRange(first, last)


def some(values: Sequence[int]) -> st.SearchStrategy[tuple[int, ...] | None]:
    return st.none() | st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True).map(tuple)


ADDRESSES = st.none() | st.sampled_from(NAMES) | st.lists(networks(), min_size=1, max_size=20).map(tuple)
PORT_LISTS = st.none() | st.sampled_from(NAMES) | st.lists(port_ranges(), min_size=1, max_size=5).map(tuple)
CONDITIONS = st.builds(
    Condition,
    source=ADDRESSES,
    destination=ADDRESSES,
    sport=PORT_LISTS,
    dport=PORT_LISTS,
    protocols=some(PROTOCOLS),
    dscp=some(DSCPS),
    tcp_flags=st.none() | st.sampled_from([(0x12, 0x02), (0x12, 0x10), (0x02, 0)]),
    local=st.none() | st.booleans(),
    interfaces_in=some(INTERFACES),
    interfaces_out=some(INTERFACES),
    vlans=some(VLANS),
    marks=some(MARKS),
)
SETS = st.builds(
    Sets,
    addresses=st.fixed_dictionaries({name: st.lists(networks(), max_size=20) for name in NAMES}),
    ports=st.fixed_dictionaries({name: st.lists(port_ranges(), max_size=5) for name in NAMES}),
)


@st.composite
def packets(draw: st.DrawFn, conditions: Sequence[Condition], sets: Sets, family: int) -> Packet:
    """Made for one of the rules, with some of it changed."""
    rule = draw(st.sampled_from(conditions)) if conditions else Condition()

    def one_of(asked: Sequence[int] | None, others: Sequence[int]) -> int:
        return draw(st.sampled_from(asked if asked and draw(st.integers(0, 9)) else others))

    return Packet(
        source=_address(draw, rule.source, sets, family),
        destination=_address(draw, rule.destination, sets, family),
        protocol=one_of(rule.protocols, PROTOCOLS),
        sport=_port(draw, rule.sport, sets),
        dport=_port(draw, rule.dport, sets),
        dscp=one_of(rule.dscp, DSCPS),
        tcp_flags=draw(st.sampled_from(FLAGS)),
        local=draw(st.booleans()) if rule.local is None else rule.local,
        inside=one_of(rule.interfaces_in, INTERFACES),
        outside=one_of(rule.interfaces_out, [*INTERFACES, (1 << 31) - 1]),
        vlan=one_of(rule.vlans, VLANS),
        mark=one_of(rule.marks, MARKS),
    )


def _address(
    draw: st.DrawFn, asked: tuple[IPNetwork, ...] | str | None, sets: Sets, family: int
) -> IPAddress:
    """Of what is asked for, at an end of it, or just outside."""
    networks = sets.addresses[asked] if isinstance(asked, str) else asked or ()
    mine = [network for network in networks if network.version == family]
    if mine and draw(st.integers(0, 9)) > 0:
        network: IPNetwork = draw(st.sampled_from(mine))
        first, last = int(network.network_address), int(network.broadcast_address)
        near = [first, last, max(0, first - 1), min(last + 1, (1 << WIDTH[family]) - 1)]
        number: int = draw(st.sampled_from(near) | st.integers(first, last))
    else:
        number = draw(numbers(family))
    return IPv4Address(number) if family == 4 else IPv6Address(number)


def _port(draw: st.DrawFn, asked: tuple[PortRange, ...] | str | None, sets: Sets) -> int:
    ranges = sets.ports[asked] if isinstance(asked, str) else asked or ()
    if not ranges or not draw(st.integers(0, 9)):
        return draw(st.sampled_from(PORTS) | st.integers(0, 65535))
    ports = draw(st.sampled_from(list(ranges)))
    near = [ports.first, ports.last, max(0, ports.first - 1), min(65535, ports.last + 1)]
    return draw(st.sampled_from(near) | st.integers(ports.first, ports.last))
