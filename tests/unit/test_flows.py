# SPDX-License-Identifier: Apache-2.0
"""The flow tables as connections: both directions joined, states derived, no row lost or invented."""

from __future__ import annotations

import ipaddress
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearway.datapath import flows, libbpf
from clearway.datapath.btf import Btf, MapLayout
from clearway.datapath.install import FILES, OBJECTS
from clearway.datapath.loader import open_object, read_layouts

Array = npt.NDArray[Any]
HZ = 250
NOW = (7 << 32) + 1_000_000  # jiffies: the stamps have the low 32 bits
SYN, ACK, FIN, RST = 1, 2, 4, 8
SIZES = {4: 4, 6: 16}


@pytest.fixture(scope="session")
def layouts() -> dict[str, MapLayout]:
    """Layouts of the compiled tables; reading an object file needs no privileges."""
    path = OBJECTS / FILES["xdp"]
    if not path.exists():
        pytest.skip("the objects are not compiled: make build")
    return read_layouts(path)[0]


@pytest.fixture(scope="session")
def enums() -> dict[str, dict[str, int]]:
    path = OBJECTS / FILES["sweep"]
    if not path.exists():
        pytest.skip("the objects are not compiled: make build")
    handle = open_object(path)
    types = Btf(libbpf.library().bpf_object__btf(handle), owned=False)
    found = {name: types.enum(name) for name in ("flow_flags", "tcp_sent", "timeout")}
    libbpf.library().bpf_object__close(handle)
    return found


class Flows:
    """Builds the rows of one family's flow table as the data path writes them."""

    def __init__(self, layouts: dict[str, MapLayout], family: int) -> None:
        self.family = family
        self.layout = layouts[f"flow{family}_v1"]
        self.rows: list[tuple[Array, Array]] = []

    def address(self, number: int) -> bytes:
        text = f"10.0.{number >> 8}.{number & 255}" if self.family == 4 else f"fd00::{number:x}"
        return ipaddress.ip_address(text).packed

    def key(self, proto: int, src: int, sport: int, dst: int, dport: int) -> Array:
        key = np.zeros(1, self.layout.key)
        for name, number in (("src", src), ("dst", dst)):
            packed = self.address(number)
            key[name] = int.from_bytes(packed, "big") if self.family == 4 else np.frombuffer(packed, np.uint8)
        key["sport"], key["dport"], key["proto"] = sport, dport, proto
        return key

    def value(self, src: int, sport: int, dst: int, dport: int, **fields: int) -> Array:
        value = np.zeros(1, self.layout.value)
        for name, number in (("src", src), ("dst", dst)):
            value[name][0, : SIZES[self.family]] = np.frombuffer(self.address(number), np.uint8)
        value["sport"], value["dport"] = sport, dport
        for name, number in fields.items():
            value[name] = number
        return value

    def add(self, key: Array, value: Array) -> None:
        self.rows.append((key, value))

    def tables(self) -> dict[int, tuple[Array, Array]]:
        keys = [key for key, _ in self.rows] or [np.empty(0, self.layout.key)]
        values = [value for _, value in self.rows] or [np.empty(0, self.layout.value)]
        return {self.family: (np.concatenate(keys), np.concatenate(values))}

    def connections(self, enums: dict[str, dict[str, int]]) -> Array:
        return flows.connections(self.tables(), jiffies=NOW, hz=HZ, enums=enums)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def table(request: pytest.FixtureRequest, layouts: dict[str, MapLayout]) -> Flows:
    return Flows(layouts, request.param)


CLIENT, VIP, ENDPOINT, OUTSIDE = 1, 2, 3, 4


def add_balanced(table: Flows, enums: dict[str, dict[str, int]], **fields: dict[str, int]) -> None:
    """A full-nat connection: client:1000 -> VIP:80 leaves as outside:2000 -> endpoint:8080."""
    flags = enums["flow_flags"]
    stamp = NOW & 0xFFFFFFFF
    forward = {"flags": flags["FLOW_HAS_SERVICE"], "service": 7, "endpoint": 9, "packets": 5, "bytes": 500}
    forward |= {"created": stamp - 100 * HZ, "seen": stamp - 10 * HZ, "ifindex": 3} | fields.get(
        "forward", {}
    )
    reply = {"flags": flags["FLOW_REPLY"], "packets": 4, "bytes": 4000, "seen": stamp - 2 * HZ, "ifindex": 8}
    reply |= fields.get("reply", {})
    proto = fields.get("key", {}).get("proto", 6)
    table.add(
        table.key(proto, CLIENT, 1000, VIP, 80),
        table.value(OUTSIDE, 2000, ENDPOINT, 8080, **forward),
    )
    table.add(table.key(proto, ENDPOINT, 8080, OUTSIDE, 2000), table.value(VIP, 80, CLIENT, 1000, **reply))


def test_both_directions_become_one_connection(table: Flows, enums: dict[str, dict[str, int]]) -> None:
    add_balanced(table, enums)
    (row,) = table.connections(enums)
    shown = {
        name: flows.text_addresses(row[name][np.newaxis], np.array([table.family]))[0]
        for name in ("client", "destination", "source_out", "destination_out")
    }
    prefix = "10.0.0." if table.family == 4 else "fd00::"
    assert shown == {
        "client": f"{prefix}1",
        "destination": f"{prefix}2",
        "source_out": f"{prefix}4",
        "destination_out": f"{prefix}3",
    }
    ports = ("client_port", "destination_port", "source_out_port", "destination_out_port")
    assert [int(row[name]) for name in ports] == [1000, 80, 2000, 8080]
    assert (row["family"], row["proto"], row["paired"]) == (table.family, 6, True)
    assert [int(row[c]) for c in ("packets", "bytes", "reply_packets", "reply_bytes")] == [5, 500, 4, 4000]
    assert (row["service"], row["endpoint"], row["nat"]) == (7, 9, flows.NONE)
    assert (row["ifindex"], row["reply_ifindex"]) == (3, 8)


def test_age_counts_from_birth_and_idle_from_the_last_packet_of_either_side(
    table: Flows, enums: dict[str, dict[str, int]]
) -> None:
    add_balanced(table, enums)
    (row,) = table.connections(enums)
    assert row["age_s"] == pytest.approx(100)
    assert row["idle_s"] == pytest.approx(2)


def test_stamps_from_before_the_wrap_of_jiffies_are_old_and_later_ones_are_now(
    table: Flows, enums: dict[str, dict[str, int]]
) -> None:
    before_wrap, after_reading = (NOW - 1_000_000 - 500) & 0xFFFFFFFF, (NOW + 3) & 0xFFFFFFFF
    add_balanced(table, enums, forward={"created": before_wrap, "seen": after_reading})
    (row,) = table.connections(enums)
    assert row["age_s"] == pytest.approx(1_000_500 / HZ)
    assert row["idle_s"] == 0


def test_connection_without_its_reply_is_kept_and_a_reply_alone_is_not(
    table: Flows, enums: dict[str, dict[str, int]]
) -> None:
    add_balanced(table, enums)
    del table.rows[1]
    (row,) = table.connections(enums)
    assert (row["paired"], row["packets"], row["reply_packets"]) == (False, 5, 0)
    assert row["idle_s"] == pytest.approx(10)
    table.rows.clear()
    add_balanced(table, enums)
    del table.rows[0]
    assert len(table.connections(enums)) == 0


def test_empty_tables_are_no_connections(table: Flows, enums: dict[str, dict[str, int]]) -> None:
    assert table.connections(enums).dtype == flows.CONNECTION
    assert len(table.connections(enums)) == 0


def test_nat_connection_tells_its_rule(table: Flows, enums: dict[str, dict[str, int]]) -> None:
    flags = enums["flow_flags"]
    add_balanced(table, enums, forward={"flags": flags["FLOW_HAS_NAT"], "nat": 12})
    (row,) = table.connections(enums)
    assert (row["service"], row["endpoint"], row["nat"]) == (flows.NONE, flows.NONE, 12)


@pytest.mark.parametrize(
    ("proto", "replies", "state"),
    [(17, 0, "udp"), (17, 1, "udp_stream"), (1, 1, "icmp"), (58, 0, "icmp")],
)
def test_state_without_handshake(
    table: Flows, enums: dict[str, dict[str, int]], proto: int, replies: int, state: str
) -> None:
    add_balanced(table, enums, key={"proto": proto}, reply={"packets": replies})
    (row,) = table.connections(enums)
    assert flows.state_names(enums["timeout"])[int(row["state"])] == state


@pytest.mark.parametrize(
    ("sent", "sent_back", "picked_up", "state"),
    [
        (SYN, 0, False, "tcp_syn_sent"),
        (SYN, SYN | ACK, False, "tcp_syn_received"),
        (SYN | ACK, SYN | ACK, False, "tcp_established"),
        (ACK, 0, True, "tcp_syn_sent"),
        (ACK, ACK, True, "tcp_established"),
        (SYN | ACK | FIN, SYN | ACK, False, "tcp_half_closed"),
        (SYN | ACK, SYN | ACK | FIN, False, "tcp_half_closed"),
        (SYN | ACK | FIN, SYN | ACK | FIN, False, "tcp_time_wait"),
        (SYN | ACK | RST, SYN | ACK, False, "tcp_closed"),
        (SYN, RST, False, "tcp_closed"),
        (SYN | ACK | FIN, SYN | ACK | FIN | RST, False, "tcp_closed"),
    ],
)
def test_tcp_state_follows_from_what_both_sides_sent(
    table: Flows, enums: dict[str, dict[str, int]], sent: int, sent_back: int, picked_up: bool, state: str
) -> None:
    flags = enums["flow_flags"]["FLOW_PICKED_UP"] if picked_up else 0
    add_balanced(table, enums, forward={"sent": sent, "flags": flags}, reply={"sent": sent_back})
    (row,) = table.connections(enums)
    assert flows.state_names(enums["timeout"])[int(row["state"])] == state


def test_bits_of_this_file_are_those_of_the_data_path(enums: dict[str, dict[str, int]]) -> None:
    assert enums["tcp_sent"] == {"SENT_SYN": SYN, "SENT_ACK": ACK, "SENT_FIN": FIN, "SENT_RST": RST}


@given(st.lists(st.integers(0, 40), unique=True), st.lists(st.integers(0, 40)), st.randoms())
def test_match_rows_finds_exactly_the_equal_row(present: list[int], wanted: list[int], random: Any) -> None:
    random.shuffle(present)
    dtype = np.dtype([("a", "<u8"), ("b", "<u8")])
    rows = np.array([(n, n * 3) for n in present], dtype)
    asked = np.array([(n, n * 3) for n in wanted], dtype)
    expected = [present.index(n) if n in present else -1 for n in wanted]
    assert flows.match_rows(asked, rows).tolist() == expected


def test_match_rows_is_right_when_hashes_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "_hash", lambda words, _factors: words[:, 0] % np.uint64(3))
    dtype = np.dtype([("a", "<u8")])
    present = np.arange(50, dtype=np.uint64).view(dtype)
    wanted = np.array([49, 7, 50, 0], np.uint64).view(dtype)
    assert flows.match_rows(wanted, present).tolist() == [49, 7, -1, 0]


def test_a_million_entries_are_joined_in_two_seconds(
    layouts: dict[str, MapLayout], enums: dict[str, dict[str, int]]
) -> None:
    count = 500_000
    layout = layouts["flow4_v1"]
    order = np.random.default_rng(1).permutation(count)
    keys, values = np.zeros((2, count), layout.key), np.zeros((2, count), layout.value)
    client, endpoint = np.arange(count) + (10 << 24), np.full(count, 192 << 24)
    keys[0]["src"], keys[0]["dst"], keys[0]["sport"], keys[0]["dport"] = client, 1, 1000, 80
    keys[1]["src"], keys[1]["dst"], keys[1]["sport"], keys[1]["dport"] = endpoint, client, 8080, 1000
    for row, src, dst in ((0, client, endpoint), (1, np.ones(count), client)):
        for name, numbers in (("src", src), ("dst", dst)):
            values[row][name][:, :4] = numbers.astype(">u4").view(np.uint8).reshape(-1, 4)
    values[0]["sport"], values[0]["dport"] = 1000, 8080
    values[1]["flags"], values[1]["packets"] = enums["flow_flags"]["FLOW_REPLY"], np.arange(count)
    rows = {4: (np.concatenate([keys[0], keys[1][order]]), np.concatenate([values[0], values[1][order]]))}
    begun = time.process_time()  # of the process, kernel included: other processes do not count
    joined = flows.connections(rows, jiffies=NOW, hz=HZ, enums=enums)
    assert time.process_time() - begun < 2
    assert joined["paired"].all()
    assert (joined["reply_packets"] == np.arange(count)).all()
