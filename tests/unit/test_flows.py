# SPDX-License-Identifier: Apache-2.0
"""The flow tables as connections: both directions joined, states derived, no row lost or invented."""

from __future__ import annotations

import ipaddress
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearway.datapath import flows, libbpf
from clearway.datapath.btf import Btf
from clearway.datapath.flowtable import (
    SLOTS,
    TRIES,
    Entries,
    FlowTable,
    Keys,
    as_bytes,
    bucket_bytes,
    buckets_for,
)
from clearway.datapath.install import FILES, OBJECTS
from clearway.datapath.loader import open_object

Array = npt.NDArray[Any]
HZ = 250
NOW = (7 << 32) + 1_000_000  # jiffies: the stamps have the low 32 bits
STAMP = NOW & 0xFFFFFFFF
SYN, ACK, FIN, RST = 1, 2, 4, 8  # FLOW_SENT_SYN .. FLOW_SENT_RST, shifted down
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
FREE, CLAIMED, BORN = 0, 1, 2  # enum flow_tag
WIDTH = {4: 4, 6: 16}
WORD = 0xFFFFFFFF
SERVICE, SERVING = 7, 9  # a service, and its endpoint's id
DEVICES = {1: 3, 2: 8}  # rows of egress_v2 -> ifindex
SECRET = np.random.default_rng(1).integers(1, 1 << 64, 11, np.uint64)


@dataclass(frozen=True)
class Types:
    """What the data path was compiled with."""

    structs: dict[str, np.dtype[Any]]
    enums: dict[str, dict[str, int]]

    def state(self, proto: int, *flags: str, sent: int = 0, heard: int = 0) -> int:
        """enum flow_state of an entry. flags: names without FLOW_; sent, heard: SYN | ..."""
        bits = self.enums["flow_state"]
        return sum(bits[f"FLOW_{flag}"] for flag in flags) | proto | sent << 8 | heard << 12


@pytest.fixture(scope="session")
def types() -> Types:
    """Reading an object file needs no privileges."""
    path = OBJECTS / FILES["sweep"]
    if not path.exists():
        pytest.skip("the objects are not compiled: make build")
    handle = open_object(path)
    found = Btf(libbpf.library().bpf_object__btf(handle), owned=False)
    structs = ("flow4_bucket", "flow6_bucket", "carried_key", "carried", "endpoint", "service_key", "service")
    enums = ("flow_state", "flow_tag", "timeout")
    read = Types({name: found.struct(name) for name in structs}, {name: found.enum(name) for name in enums})
    libbpf.library().bpf_object__close(handle)
    return read


@dataclass(frozen=True)
class Tuple:
    """A packet's addresses, by number, and ports."""

    src: int
    sport: int
    dst: int
    dport: int

    def reversed(self) -> Tuple:
        return Tuple(self.dst, self.dport, self.src, self.sport)


def packed(family: int, number: int) -> bytes:
    text = f"10.0.{number >> 8}.{number & 255}" if family == 4 else f"fd00::{number:x}"
    return ipaddress.ip_address(text).packed


def keys_of(family: int, proto: int, *tuples: Tuple) -> Keys:
    def addresses(numbers: list[int]) -> Array:
        octets = b"".join(packed(family, number) for number in numbers)
        return np.frombuffer(octets, np.uint8).reshape(-1, WIDTH[family])

    return Keys(
        src=addresses([one.src for one in tuples]),
        dst=addresses([one.dst for one in tuples]),
        sport=np.array([one.sport for one in tuples]),
        dport=np.array([one.dport for one in tuples]),
        proto=np.full(len(tuples), proto),
    )


T = TypeVar("T", bound=FlowTable)


def new_table(types: Types, family: int, *, buckets: int = 16, which: int = 0) -> FlowTable:
    return table_of(FlowTable, types, family, buckets=buckets, which=which)


def table_of(kind: type[T], types: Types, family: int, *, buckets: int = 16, which: int = 0) -> T:
    """An empty table, in memory that can be mapped as the kernel's can."""
    fd = os.memfd_create("flows")
    os.ftruncate(fd, -(-buckets * bucket_bytes(family) // mmap.PAGESIZE) * mmap.PAGESIZE)
    dtype = types.structs[f"flow{family}_bucket"]
    return kind(fd, family=family, which=which, buckets=buckets, key=SECRET, dtype=dtype)


def set_mark(table: FlowTable, place: int, mark: int) -> None:
    table.rows["marks"]["mark"][divmod(place, SLOTS)] = mark


def put(table: FlowTable, proto: int, arrives: Tuple, leaves: Tuple, **fields: int) -> int:
    """Writes an entry as the data path does, and returns its place: in its first bucket, or in its second
    when that is full. fields: of struct flow, rare, nat; tag if it is not to be in force.
    """
    first, second, tag = (int(column[0]) for column in table.choose(keys_of(table.family, proto, arrives)))
    marks = table.rows["marks"]
    places = [divmod(bucket * SLOTS + slot, SLOTS) for bucket in (first, second) for slot in range(SLOTS)]
    place = next(place for place in places if marks["mark"][place] >> 16 == FREE)
    marks["mark"][place] = fields.pop("tag", tag) << 16 | 4
    for name in ("rare", "nat"):
        marks[name][place] = fields.pop(name, 0)
    slot = table.rows["slot"]
    for name, number in (
        ("key_src", arrives.src),
        ("key_dst", arrives.dst),
        ("src", leaves.src),
        ("dst", leaves.dst),
    ):
        octets = packed(table.family, number)
        if table.family == 4:
            slot[name][place] = int.from_bytes(octets, "big")
        else:
            slot[name][place] = np.frombuffer(octets, np.uint8)
    ports = {
        "key_sport": arrives.sport,
        "key_dport": arrives.dport,
        "sport": leaves.sport,
        "dport": leaves.dport,
    }
    for name, number in (ports | {"state": proto} | fields).items():
        slot["flow"][name][place] = number
    return place[0] * SLOTS + place[1]


@dataclass
class Node:
    """One family's flow table, and what is needed to understand it."""

    types: Types
    table: FlowTable
    carried: dict[tuple[int, int, int], tuple[int, int]] = field(default_factory=dict)
    """Rows of carried_v1: (family, table, slot) -> (packets, bytes)."""

    def __post_init__(self) -> None:
        """One service, TCP's, with one endpoint."""
        names = ("endpoint", "service_key", "service")
        rows = [
            np.zeros(count, self.types.structs[name]) for count, name in zip((16, 1, 1), names, strict=True)
        ]
        self.endpoints, self.service_key, self.service = rows
        serving = self.endpoints[SERVING : SERVING + 1]
        serving["service"] = self.service["id"] = SERVICE
        self.service_key["proto"] = TCP
        for row, number, port in ((serving, ENDPOINT, 8080), (self.service_key, VIP, 80)):
            row["family"], row["port"] = self.family, port
            octets = packed(self.family, number).ljust(16, b"\0")
            row["address"] = np.frombuffer(octets, np.uint8)

    @property
    def family(self) -> int:
        return self.table.family

    def meaning(self) -> flows.Meaning:
        ifindexes = np.zeros(8, np.uint32)
        ifindexes[list(DEVICES)] = list(DEVICES.values())
        return flows.Meaning(
            jiffies=NOW,
            hz=HZ,
            enums=self.types.enums,
            carried=self.look_up,
            endpoints=self.endpoints,
            services=(self.service_key, self.service),
            ifindexes=ifindexes,
        )

    def look_up(self, family: Array, table: Array, slot: Array) -> tuple[Array, Array]:
        totals, found = np.zeros(len(slot), self.types.structs["carried"]), np.zeros(len(slot), np.bool_)
        for number, key in enumerate(zip(family.tolist(), table.tolist(), slot.tolist(), strict=True)):
            if key in self.carried:
                totals["packets"][number], totals["bytes"][number] = self.carried[key]
                found[number] = True
        return totals, found

    def connections(self, *tables: FlowTable) -> Array:
        return flows.connections(tables or [self.table], self.meaning())

    def connection(self) -> Any:
        """The only one there is."""
        (row,) = self.connections()
        return row

    def state_name(self) -> str:
        return flows.state_names(self.types.enums["timeout"])[int(self.connection()["state"])]


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def node(request: pytest.FixtureRequest, types: Types) -> Iterator[Node]:
    table = new_table(types, request.param)
    yield Node(types, table)
    table.close()


CLIENT, VIP, ENDPOINT, OUTSIDE = 1, 2, 3, 4
ARRIVES, LEAVES = Tuple(CLIENT, 1000, VIP, 80), Tuple(OUTSIDE, 2000, ENDPOINT, 8080)


def add_balanced(
    node: Node,
    *,
    proto: int = TCP,
    table: FlowTable | None = None,
    forward: dict[str, int] | None = None,
    reply: dict[str, int] | None = None,
) -> tuple[int, int]:
    """A full-nat connection: client:1000 -> VIP:80 leaves as outside:2000 -> endpoint:8080. Returns the
    places of both entries.
    """
    state = node.types.state
    there = {"state": state(proto, "HAS_SERVICE"), "rare": SERVING, "seen": STAMP - 10 * HZ}
    there |= {"carried": 5 << 32 | 500, "stamp": 1, "egress": 1}
    back = {"state": state(proto, "REPLY"), "rare": STAMP - 100 * HZ, "seen": STAMP - 2 * HZ}
    back |= {"carried": 4 << 32 | 4000, "stamp": 1, "egress": 2}
    where = table or node.table
    return (
        put(where, proto, ARRIVES, LEAVES, **there | (forward or {})),
        put(where, proto, LEAVES.reversed(), ARRIVES.reversed(), **back | (reply or {})),
    )


# ---- joining ----


def test_both_directions_become_one_connection(node: Node) -> None:
    add_balanced(node)
    row = node.connection()
    shown = {
        name: flows.text_addresses(row[name][np.newaxis], np.array([node.family]))[0]
        for name in ("client", "destination", "source_out", "destination_out")
    }
    prefix = "10.0.0." if node.family == 4 else "fd00::"
    assert shown == {
        "client": f"{prefix}1",
        "destination": f"{prefix}2",
        "source_out": f"{prefix}4",
        "destination_out": f"{prefix}3",
    }
    ports = ("client_port", "destination_port", "source_out_port", "destination_out_port")
    assert [int(row[name]) for name in ports] == [1000, 80, 2000, 8080]
    assert (row["family"], row["proto"], row["paired"]) == (node.family, TCP, True)
    assert [int(row[c]) for c in ("packets", "bytes", "reply_packets", "reply_bytes")] == [5, 500, 4, 4000]
    assert (row["service"], row["endpoint"], row["nat"]) == (SERVICE, SERVING, flows.NONE)
    assert (row["ifindex"], row["reply_ifindex"]) == (3, 8)
    assert row["flags"] == node.types.state(TCP, "HAS_SERVICE")


@pytest.mark.parametrize(
    ("row", "changed"),
    [
        ("endpoint", {"state": 0, "family": 0, "port": 0, "address": 0, "service": 0}),
        ("endpoint", {"port": 8081}),
        ("endpoint", {"address": 9}),
        ("endpoint", {"service": SERVICE + 1}),
        ("service", {"id": SERVICE + 1}),
        ("service_key", {"port": 81}),
        ("service_key", {"address": 9}),
        ("service_key", {"proto": UDP}),
    ],
)
def test_connection_of_a_removed_endpoint_is_nobody_elses(
    node: Node, row: str, changed: dict[str, int]
) -> None:
    """Whatever has its endpoint's id, or its service's, now."""
    add_balanced(node)
    rows = {"endpoint": node.endpoints[SERVING : SERVING + 1], "service": node.service}
    for name, value in changed.items():
        rows.get(row, node.service_key)[name] = value
    found = node.connection()
    assert (found["service"], found["endpoint"]) == (flows.GONE, flows.GONE)


def test_connection_of_an_endpoint_beyond_the_table_is_nobodys(node: Node) -> None:
    add_balanced(node, forward={"rare": 16})
    assert node.connection()["endpoint"] == flows.GONE


def test_connection_that_is_not_translated_leads_back_to_itself(node: Node) -> None:
    put(node.table, UDP, ARRIVES, ARRIVES)
    put(node.table, UDP, ARRIVES.reversed(), ARRIVES.reversed(), state=node.types.state(UDP, "REPLY"))
    row = node.connection()
    assert (row["paired"], row["service"], row["endpoint"], row["nat"]) == (True, *[flows.NONE] * 3)


def test_age_counts_from_birth_and_idle_from_the_last_packet_of_either_side(node: Node) -> None:
    add_balanced(node)
    row = node.connection()
    assert row["age_s"] == pytest.approx(100)
    assert row["idle_s"] == pytest.approx(2)


def test_stamps_from_before_the_wrap_of_jiffies_are_old_and_later_ones_are_now(node: Node) -> None:
    before_wrap, after_reading = (NOW - 1_000_000 - 500) & WORD, (NOW + 3) & WORD
    add_balanced(node, forward={"seen": after_reading}, reply={"rare": before_wrap, "seen": before_wrap})
    row = node.connection()
    assert row["age_s"] == pytest.approx(1_000_500 / HZ)
    assert row["idle_s"] == 0


def test_connection_without_its_reply_is_kept_and_a_reply_alone_is_not(node: Node) -> None:
    opening, answering = add_balanced(node, forward={"state": node.types.state(TCP, "HAS_NAT")})
    mark = int(node.table.entries_at(np.array([opening]))[0].mark[0])
    set_mark(node.table, answering, FREE)
    row = node.connection()
    assert (row["paired"], row["packets"], row["reply_packets"], row["reply_bytes"]) == (False, 5, 0, 0)
    assert (row["age_s"], row["reply_ifindex"], row["nat"]) == (0, 0, flows.NONE)
    assert row["idle_s"] == pytest.approx(10)
    set_mark(node.table, opening, FREE)
    set_mark(node.table, answering, mark)
    assert len(node.connections()) == 0


@pytest.mark.parametrize(
    "elsewhere",
    [Tuple(VIP, 81, CLIENT, 1000), Tuple(VIP, 80, CLIENT, 1001), Tuple(OUTSIDE, 80, CLIENT, 1000)],
)
def test_answer_that_leads_to_somebody_else_is_not_its_reply(node: Node, elsewhere: Tuple) -> None:
    put(node.table, TCP, ARRIVES, LEAVES)
    put(node.table, TCP, LEAVES.reversed(), elsewhere, state=node.types.state(TCP, "REPLY"))
    assert not node.connection()["paired"]


def test_same_addresses_and_ports_of_other_protocols_are_other_connections(node: Node) -> None:
    for proto in (TCP, UDP):
        add_balanced(node, proto=proto)
    rows = node.connections()
    assert sorted(rows["proto"].tolist()) == [TCP, UDP]
    assert rows["paired"].all()


def test_empty_tables_are_no_connections(node: Node) -> None:
    for found in (node.connections(), flows.connections([], node.meaning())):
        assert found.dtype == flows.CONNECTION
        assert len(found) == 0


def test_nat_connection_tells_its_rule_of_which_either_entry_has_a_byte(node: Node) -> None:
    add_balanced(node, forward={"state": node.types.state(TCP, "HAS_NAT"), "nat": 0x34}, reply={"nat": 0x12})
    row = node.connection()
    assert (row["service"], row["endpoint"], row["nat"]) == (flows.NONE, flows.NONE, 0x1234)


def test_next_hop_that_is_not_resolved_has_no_device(node: Node) -> None:
    add_balanced(node, forward={"stamp": 0})
    row = node.connection()
    assert (row["ifindex"], row["reply_ifindex"]) == (0, 8)


def test_connections_of_the_current_and_of_an_exchanged_table_are_all_told(node: Node) -> None:
    other = new_table(node.types, node.family, which=1, buckets=3)
    add_balanced(node)
    add_balanced(node, table=other, proto=UDP)
    rows = node.connections(other, node.table)
    assert sorted(rows["proto"].tolist()) == [TCP, UDP]
    assert rows["paired"].all()
    other.close()


def test_both_families_are_told(types: Types) -> None:
    tables = [new_table(types, family) for family in (4, 6)]
    for table in tables:
        add_balanced(Node(types, table))
    assert Node(types, tables[0]).connections(*tables)["family"].tolist() == [4, 6]
    for table in tables:
        table.close()


# ---- states ----


@pytest.mark.parametrize(
    ("proto", "heard", "state"),
    [
        (UDP, 0, "udp"),
        (UDP, ACK, "udp_stream"),
        (ICMP, ACK, "icmp"),
        (ICMPV6, 0, "icmp"),
    ],
)
def test_state_without_handshake(node: Node, proto: int, heard: int, state: str) -> None:
    add_balanced(node, proto=proto, forward={"state": node.types.state(proto, sent=ACK, heard=heard)})
    assert node.state_name() == state


@pytest.mark.parametrize(
    ("sent", "heard", "picked_up", "state"),
    [
        (SYN, 0, False, "tcp_syn_sent"),
        (SYN, SYN | ACK, False, "tcp_syn_received"),
        (SYN | ACK, SYN | ACK, False, "tcp_established"),
        (ACK, 0, True, "tcp_syn_sent"),
        (ACK, ACK, True, "tcp_established"),
        (SYN, ACK, True, "tcp_established"),
        (SYN | ACK | FIN, SYN | ACK, False, "tcp_half_closed"),
        (SYN | ACK, SYN | ACK | FIN, False, "tcp_half_closed"),
        (ACK | FIN, 0, True, "tcp_half_closed"),
        (SYN | ACK | FIN, SYN | ACK | FIN, False, "tcp_time_wait"),
        (SYN | ACK | RST, SYN | ACK, False, "tcp_closed"),
        (SYN, RST, False, "tcp_closed"),
        (SYN | ACK | FIN, SYN | ACK | FIN | RST, False, "tcp_closed"),
    ],
)
def test_tcp_state_follows_from_what_both_sides_sent(
    node: Node, sent: int, heard: int, picked_up: bool, state: str
) -> None:
    flags = ("PICKED_UP",) if picked_up else ()
    add_balanced(node, forward={"state": node.types.state(TCP, *flags, sent=sent, heard=heard)})
    assert node.state_name() == state


def test_every_combination_is_the_state_that_the_data_path_makes_of_it(types: Types) -> None:
    """state.h, written down once more, for all that both sides may have sent."""

    def tcp_state(sent: int, heard: int, picked_up: bool) -> str:
        if (sent | heard) & RST:
            return "closed"
        if sent & heard & FIN:
            return "time_wait"
        if (sent | heard) & FIN:
            return "half_closed"
        if not heard:
            return "syn_sent"
        return "established" if picked_up or sent & ACK else "syn_received"

    cases = [(sent, heard, up) for sent in range(16) for heard in range(16) for up in (False, True)]
    words = [types.state(TCP, *["PICKED_UP"] * up, sent=sent, heard=heard) for sent, heard, up in cases]
    names = flows.state_names(types.enums["timeout"])
    found = [names[code] for code in flows.states(np.array(words, np.uint32), types.enums).tolist()]
    assert found == [f"tcp_{tcp_state(*case)}" for case in cases]


def test_bits_of_this_file_are_those_of_the_data_path(types: Types) -> None:
    state, tag = types.enums["flow_state"], types.enums["flow_tag"]
    for shift, who in ((8, "SENT"), (12, "HEARD")):
        found = [state[f"FLOW_{who}_{what}"] >> shift for what in ("SYN", "ACK", "FIN", "RST")]
        assert found == [SYN, ACK, FIN, RST]
    assert [tag[f"FLOW_TAG_{name}"] for name in ("FREE", "CLAIMED", "BORN", "FIRST")] == [
        FREE,
        CLAIMED,
        BORN,
        3,
    ]


# ---- what was carried ----


def counted(node: Node) -> list[int]:
    row = node.connection()
    return [int(row[name]) for name in ("packets", "bytes", "reply_packets", "reply_bytes")]


def test_row_goes_on_where_the_entrys_word_has_turned_over(node: Node) -> None:
    """As of both words: the row was written at 2^31 bytes, or packets, and the entry has gone on since."""
    folded = node.types.state(TCP, "FOLDED")
    opening, answering = add_balanced(
        node,
        forward={"state": folded, "carried": 3_000_000 << 32 | (1 << 31) + 77},
        reply={"state": node.types.state(TCP, "FOLDED", "REPLY"), "carried": (1 << 31) + 5 << 32 | 99},
    )
    node.carried[node.family, 0, opening] = 2_999_990, 1 << 31
    node.carried[node.family, 0, answering] = (5 << 32) + (1 << 31), 90
    assert counted(node) == [3_000_000, (1 << 31) + 77, (5 << 32) + (1 << 31) + 5, 99]


def test_bytes_that_overflow_into_the_packets_are_not_told_as_packets(node: Node) -> None:
    opening, _ = add_balanced(
        node, forward={"state": node.types.state(TCP, "FOLDED"), "carried": (100 + 7) << 32 | 123}
    )
    node.carried[node.family, 0, opening] = 90, (7 << 32) - 1000  # before the seventh overflow
    assert counted(node)[:2] == [100, (7 << 32) + 123]


def test_rows_of_others_do_not_count(node: Node) -> None:
    folded = node.types.state(TCP, "FOLDED")
    opening, answering = add_balanced(node, forward={"state": folded, "carried": 9 << 32 | 10})
    other_family = 10 - node.family
    node.carried[other_family, 0, opening] = node.carried[node.family, 1, opening] = (1 << 40, 1 << 40)
    assert counted(node)[:2] == [9, 10]  # folded, but its row has just gone
    node.carried[node.family, 0, answering] = (1 << 40, 1 << 40)  # of who had this place before
    assert counted(node) == [9, 10, 4, 4000]


def test_tables_that_were_exchanged_have_rows_of_their_own(node: Node) -> None:
    other = new_table(node.types, node.family, which=1)
    for table, proto in ((node.table, TCP), (other, UDP)):
        forward = {"state": node.types.state(proto, "FOLDED"), "carried": 1 << 32 | 1}
        opening, _ = add_balanced(node, table=table, forward=forward, proto=proto)
        node.carried[node.family, table.which, opening] = ((table.which + 1) << 32, 0)
    packets = sorted(node.connections(node.table, other)["packets"].tolist())
    assert packets == [(1 << 32) + 1, (2 << 32) + 1]
    other.close()


@dataclass
class Counter:
    """An entry's word and its row of carried_v1, as flow_refresh() of bpf/flow.h keeps them."""

    word: int = 0
    row: tuple[int, int] | None = None

    def add(self, packets: int, octets: int) -> None:
        was, self.word = self.word, (self.word + (packets << 32) + octets) % (1 << 64)
        if (was ^ self.word) & (1 << 63 | 1 << 31):
            total_packets, total = self.row or (0, 0)
            total += (self.word - total) & WORD
            total_packets += ((self.word >> 32) - (total >> 32) - total_packets) & WORD
            self.row = total_packets, total


STEPS = st.lists(st.tuples(st.integers(0, (1 << 30) - 1), st.integers(0, (1 << 31) - 1)), max_size=40)


@given(STEPS, st.sampled_from([4, 6]))
def test_totals_are_exact_however_much_was_carried(
    types: Types, steps: list[tuple[int, int]], family: int
) -> None:
    node, counter = Node(types, new_table(types, family)), Counter()
    for step in steps:
        counter.add(*step)
    flags = ("FOLDED",) if counter.row else ()
    opening, _ = add_balanced(node, forward={"state": types.state(TCP, *flags), "carried": counter.word})
    if counter.row:
        node.carried[family, 0, opening] = counter.row
    assert counted(node)[:2] == [sum(step[0] for step in steps), sum(step[1] for step in steps)]
    node.table.close()


# ---- reading while packets change the table ----


class Disturbed(FlowTable):
    """Entries at these places change while they are copied, so many times."""

    places: tuple[int, ...] = ()
    times = 0

    def _slots(self, places: Array) -> Array:
        if self.times:
            self.times -= 1
            for place in self.places:
                self.rows["marks"]["mark"][divmod(place, SLOTS)] += 2
        return super()._slots(places)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("times", "told"), [(1, 20), (TRIES - 1, 20), (TRIES, 17)])
def test_entry_that_changes_while_it_is_read_is_read_again(
    types: Types, family: int, times: int, told: int
) -> None:
    table = table_of(Disturbed, types, family)
    places = [put(table, UDP, one, one) for one in (Tuple(n, n, 1, 53) for n in range(1, 21))]
    table.places, table.times = tuple(places[5:8]), times
    entries = table.entries()
    assert sorted(entries.place.tolist()) == sorted(places if told == 20 else places[:5] + places[8:])
    assert (entries.flow["key_sport"] == as_bytes(entries.slot["key_src"])[:, -1]).all()
    table.close()


class Restless(FlowTable):
    """Something happens between reading one part of the table and the next."""

    after: Callable[[slice], None] = lambda part: None

    def entries(self, buckets: slice = slice(None)) -> Entries:
        found = super().entries(buckets)
        self.after(buckets)
        return found


def shift(table: FlowTable, place: int, to: int) -> None:
    """As table_shift() does it: to a free slot of another bucket."""
    (here, slot), (there, free) = divmod(place, SLOTS), divmod(to, SLOTS)
    marks = table.rows["marks"]
    table.rows["slot"][there, free] = table.rows["slot"][here, slot]
    for name in ("mark", "rare", "nat"):
        marks[name][there, free] = marks[name][here, slot]
    marks["mark"][here, slot] = 0


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("direction", ["read", "not read yet"])
def test_connection_that_moves_to_its_other_bucket_meanwhile_is_told_once(
    types: Types, monkeypatch: pytest.MonkeyPatch, family: int, direction: str
) -> None:
    """Connections whose opening entry moves from the half of the table that was read to the other one, or
    back.
    """
    monkeypatch.setattr(flows, "PART", 64)
    table = table_of(Restless, types, family, buckets=128)
    node = Node(types, table)
    moves, ports = [], range(1000, 1200)
    for port in ports:
        arrives, leaves = Tuple(CLIENT, port, VIP, 80), Tuple(CLIENT, port, ENDPOINT, 8080)
        opening = put(table, TCP, arrives, leaves)
        put(table, TCP, leaves.reversed(), arrives.reversed(), state=types.state(TCP, "REPLY"))
        buckets = [int(bucket[0]) for bucket in table.choose(keys_of(family, TCP, arrives))[:2]]
        other = buckets[opening // SLOTS == buckets[0]]
        if (opening // SLOTS < 64, other < 64) == (direction == "read", direction != "read"):
            moves.append((opening, other))
    assert len(moves) > 20

    def after(part: slice) -> None:
        if part.start == 0:
            for place, bucket in moves:
                free = np.flatnonzero(table.rows["marks"]["mark"][bucket] == 0)
                if len(free):
                    shift(table, place, bucket * SLOTS + int(free[0]))

    table.after = after
    rows = node.connections()
    assert sorted(rows["client_port"].tolist()) == list(ports)
    assert rows["paired"].all()
    table.close()


@pytest.mark.parametrize("family", [4, 6])
def test_connection_that_moves_to_another_table_meanwhile_is_told_once(types: Types, family: int) -> None:
    """The table that is being left is read; half of it has moved before, and the rest moves now."""
    old = table_of(Restless, types, family, buckets=64)
    new = new_table(types, family, which=1, buckets=128)
    node, ports = Node(types, new), range(1000, 1100)
    folded = {"state": types.state(TCP, "FOLDED"), "carried": 1 << 32 | 1}

    def add(table: FlowTable, port: int) -> tuple[int, int]:
        arrives, leaves = Tuple(CLIENT, port, VIP, 80), Tuple(CLIENT, port, ENDPOINT, 8080)
        opening = put(table, TCP, arrives, leaves, **folded)
        node.carried[family, table.which, opening] = (port << 32, 0)
        return opening, put(
            table, TCP, leaves.reversed(), arrives.reversed(), state=types.state(TCP, "REPLY")
        )

    for port in ports[:50]:
        add(new, port)
    stay = {port: add(old, port) for port in ports[50:]}

    def after(part: slice) -> None:
        for port, places in stay.items():
            add(new, port)
            for place in places:
                set_mark(old, place, FREE)
                node.carried.pop((family, 0, place), None)

    old.after = after
    rows = node.connections(new, old)
    assert sorted(rows["client_port"].tolist()) == list(ports)
    assert rows["paired"].all()
    assert (rows["packets"] == (rows["client_port"].astype(np.uint64) << np.uint64(32)) + np.uint64(1)).all()
    for table in (old, new):
        table.close()


class Growing(FlowTable):
    """A table that is empty when its entries are counted, and filled after that."""

    def count(self) -> int:
        return 0


@pytest.mark.parametrize("family", [4, 6])
def test_connections_that_come_while_the_table_is_read_are_told(types: Types, family: int) -> None:
    table = table_of(Growing, types, family, buckets=3 * flows.PART)
    node = Node(types, table)
    clients = range(1, 41)
    for number in clients:
        client = Tuple(CLIENT, number, VIP, 80)
        put(table, TCP, client, client)
    assert sorted(node.connections()["client_port"].tolist()) == list(clients)
    table.close()


@pytest.mark.parametrize("tag", [FREE, CLAIMED, BORN])
def test_entry_that_is_not_in_force_is_not_told(node: Node, tag: int) -> None:
    add_balanced(node)
    put(node.table, UDP, ARRIVES, LEAVES, tag=tag)
    assert node.connection()["proto"] == TCP
    assert len(node.table.entries()) == node.table.count() == 2


def test_entry_whose_next_hop_is_just_rewritten_is_told(node: Node) -> None:
    opening, _ = add_balanced(node)
    set_mark(node.table, opening, int(node.table.entries_at(np.array([opening]))[0].mark[0]) + 1)
    assert node.connection()["paired"]


# ---- finding ----


def test_keys_with_the_same_tag_in_one_bucket_are_told_apart(types: Types) -> None:
    for family in (4, 6):
        table = new_table(types, family, buckets=2)
        table.key = np.zeros(11, np.uint64)  # everything has the same hash
        tuples = [Tuple(number, 1000, 1, 80) for number in range(1, 2 * SLOTS + 1)]
        places = [put(table, TCP, one, one) for one in tuples]
        assert sorted(places) == list(range(2 * SLOTS))
        assert len(set(table.entries().mark.tolist())) == 1
        asked = [*reversed(tuples), Tuple(99, 1000, 1, 80), Tuple(1, 1001, 1, 80), Tuple(1, 1000, 2, 80)]
        assert table.find(keys_of(family, TCP, *asked)).tolist() == [*reversed(places), -1, -1, -1]
        assert (table.find(keys_of(family, UDP, *tuples)) == -1).all()
        table.close()


@given(
    st.sampled_from([4, 6]),
    st.lists(st.integers(1, 300), unique=True, max_size=30),
    st.lists(st.integers(1, 300), max_size=30),
)
def test_find_tells_the_place_of_exactly_what_is_there(
    types: Types, family: int, present: list[int], wanted: list[int]
) -> None:
    table = new_table(types, family, buckets=23)

    def of(number: int) -> Tuple:
        return Tuple(number, number & 7, 1 + (number & 1), 80)

    places = {number: put(table, UDP, of(number), of(number)) for number in present}
    found = table.find(keys_of(family, UDP, *map(of, wanted))).tolist() if wanted else []
    assert found == [places.get(number, -1) for number in wanted]
    table.close()


def mix(number: int, shift: int, factor: int) -> int:
    return (number ^ number >> shift) * factor % (1 << 64)


def choice(family: int, secret: list[int], proto: int, one: Tuple, buckets: int) -> tuple[int, int, int]:
    """table_choose() of bpf/table.h in Python's numbers, for a processor that is little-endian."""
    ports = int.from_bytes(one.sport.to_bytes(2, "big"), "little") << 16
    ports |= int.from_bytes(one.dport.to_bytes(2, "big"), "little")
    total = secret[0] + secret[1] * ports + secret[2] * proto
    for number in range(WIDTH[family] // 4):
        for address, key in ((one.src, secret[3 + 2 * number]), (one.dst, secret[4 + 2 * number])):
            total += key * int.from_bytes(packed(family, address)[4 * number :][:4], "little")
    hashed = mix(total % (1 << 64), 30, 0xBF58476D1CE4E5B9)
    again = mix(hashed, 27, 0x94D049BB133111EB)
    first, second = ((word >> 32) * buckets >> 32 for word in (hashed, again))
    tag = hashed >> 16 & 0xFFFF
    return first, (second + 1) % buckets if second == first else second, tag + 3 if tag < 3 else tag


PORTS = st.integers(0, 65535)
TUPLES = st.builds(Tuple, st.integers(0, 65535), PORTS, st.integers(0, 65535), PORTS)


@given(st.sampled_from([4, 6]), st.lists(TUPLES, min_size=1), st.integers(1, 1 << 12))
def test_buckets_and_tag_are_those_that_the_data_path_chooses(
    types: Types, family: int, tuples: list[Tuple], buckets: int
) -> None:
    table = new_table(types, family, buckets=buckets)
    found = zip(*(column.tolist() for column in table.choose(keys_of(family, TCP, *tuples))), strict=True)
    assert list(found) == [choice(family, SECRET.tolist(), TCP, one, buckets) for one in tuples]
    table.close()


@pytest.mark.parametrize("family", [4, 6])
def test_keys_that_follow_each_other_do_not_come_in_heaps(types: Types, family: int) -> None:
    """Whatever the secret is: a client's ports one after the other spread as if at random. A bucket gets four
    of them on average, and 20 or more with a probability below 1e-5 in each run.
    """
    buckets, count, random = 256, 1024, np.random.default_rng(3)
    table = new_table(types, family, buckets=buckets)
    keys = keys_of(family, TCP, *(Tuple(1, 20000 + number, 2, 80) for number in range(count)))
    for _ in range(300):
        table.key[:] = random.integers(0, 1 << 64, len(table.key), np.uint64)
        for column in table.choose(keys)[:2]:
            assert np.bincount(column, minlength=buckets).max() < 20
    table.close()


# ---- many ----


def test_hundreds_of_thousands_of_connections_are_joined(types: Types) -> None:
    count = 200_000
    table = new_table(types, 4, buckets=buckets_for(3 * count))
    slot_dtype = types.structs["flow4_bucket"]["slot"].subdtype
    assert slot_dtype is not None
    rows = np.zeros(2 * count, slot_dtype[0])
    opening, answering = rows[:count], rows[count:]
    clients, endpoint = np.arange(count) + (10 << 24), 192 << 24
    opening["key_src"], opening["key_dst"], opening["src"], opening["dst"] = clients, 1, clients, endpoint
    answering["key_src"], answering["key_dst"], answering["src"], answering["dst"] = (
        endpoint,
        clients,
        1,
        clients,
    )
    ports = {"key_sport": (1000, 8080), "key_dport": (80, 1000), "sport": (1000, 80), "dport": (8080, 1000)}
    for name, (there, back) in ports.items():
        opening["flow"][name], answering["flow"][name] = there, back
    opening["flow"]["state"], answering["flow"]["state"] = TCP, types.state(TCP, "REPLY")
    answering["flow"]["carried"] = np.arange(count, dtype=np.uint64) << np.uint64(32)
    place_all(table, rows)
    joined = Node(types, table).connections()
    assert len(joined) == count
    assert joined["paired"].all()
    numbers = joined["client"][:, :4].copy().view(">u4")[:, 0] - (10 << 24)
    assert (joined["reply_packets"] == numbers).all()
    assert len(set(numbers.tolist())) == count
    table.close()


def place_all(table: FlowTable, rows: Array) -> None:
    """Puts entries into either of their buckets: up to five into each, then up to seven."""
    flow = rows["flow"]
    keys = Keys(
        src=as_bytes(rows["key_src"]),
        dst=as_bytes(rows["key_dst"]),
        sport=flow["key_sport"],
        dport=flow["key_dport"],
        proto=flow["state"] & 0xFF,
    )
    first, second, tag = table.choose(keys)
    used = np.zeros(table.buckets, np.int64)
    waiting = np.arange(len(rows))
    for choices, most in ((first, 5), (second, 5), (first, SLOTS), (second, SLOTS)):
        waiting = waiting[np.argsort(choices[waiting], kind="stable")]
        bucket = choices[waiting]
        rank = np.arange(len(bucket)) - np.searchsorted(bucket, bucket)
        slot = used[bucket] + rank
        placed = slot < most
        table.rows["slot"][bucket[placed], slot[placed]] = rows[waiting[placed]]
        table.rows["marks"]["mark"][bucket[placed], slot[placed]] = tag[waiting[placed]] << np.uint32(16)
        np.add.at(used, bucket[placed], 1)
        waiting = waiting[~placed]
    assert len(waiting) == 0
