# SPDX-License-Identifier: Apache-2.0
"""The flow table against a dictionary: whatever is done, in whatever order, both say the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from clearway.datapath.errors import DatapathError
from clearway.datapath.flows import NONE
from clearway.datapath.flowtable import FlowTable
from tests.flowtable.kernel import (
    ACK,
    FIN,
    ICMP,
    ICMPV6,
    LOW,
    RST,
    SYN,
    TCP,
    TIMEOUTS,
    UDP,
    Kernel,
    Link,
    Way,
    address,
    keys_of,
)

SIZES = (8, 20, 60)
"""Connections that tables are made for: 3, 8 and 22 buckets."""
EXAMPLES = 30
RESIZES = 3
"""In one run: the kernel takes some hundredths of a second to be sure that no packet is in the old table."""
CLIENTS = 24
PORTS = 24
STATES = {
    "tcp_syn_sent": (SYN, 0),
    "tcp_syn_received": (SYN, SYN | ACK),
    "tcp_established": (SYN | ACK, SYN | ACK),
    "tcp_half_closed": (SYN | ACK, SYN | ACK | FIN),
    "tcp_time_wait": (SYN | ACK | FIN, SYN | ACK | FIN),
    "tcp_closed": (SYN | ACK | RST, SYN | ACK),
}
"""What both sides of a TCP connection have said."""
GOES_BY_ITSELF = {"tcp_syn_sent", "tcp_syn_received", "tcp_time_wait", "tcp_closed"}
"""What makes way for a newcomer to a full table, idle or not."""
NEARLY = 30
"""Seconds before and after a timeout: no test takes so long."""
BIG = (1 << 63) - 1

clients = st.integers(0, CLIENTS - 1)
ports = st.integers(0, PORTS - 1)


@dataclass
class Known:
    """What the model knows of a connection. Lists: the opening direction, the answering one."""

    link: Link
    state: str
    seen: list[int]
    packets: list[int]
    bytes: list[int]


class Table(RuleBasedStateMachine):
    """Both tables of one family. Connections are known by how their clients' packets arrive."""

    kernel: ClassVar[Kernel]
    family: ClassVar[int]

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[Way, Known] = {}
        self.resizes = 0

    @initialize()
    def begin(self) -> None:
        """In tables of the size that the last run has left."""
        self.kernel.reset(self.kernel.datapath.sizes().max_flows)

    # ---- what connections there may be ----

    def proto(self, client: int) -> int:
        icmp = ICMP if self.family == 4 else ICMPV6
        return (TCP, UDP, TCP, icmp)[client % 4]

    def client(self, number: int) -> Way:
        return Way(
            self.proto(number),
            address(self.family, 10, number),
            1000 + number,
            address(self.family, 20, 1),
            80,
        )

    def leaves(self, client: int, port: int) -> Way:
        """Which port does not depend on the client: two may want the same."""
        return Way(
            self.proto(client), address(self.family, 30, 1), 20000 + port, address(self.family, 40, 1), 8080
        )

    def owner(self, key: Way) -> Known | None:
        """The connection whose packets of either direction have that tuple."""
        if key in self.known:
            return self.known[key]
        return next((known for known in self.known.values() if known.link.reply == key), None)

    def some_key(self, client: int, port: int, reply: bool) -> Way:
        return self.leaves(client, port).reversed() if reply else self.client(client)

    # ---- rules ----

    @rule(
        client=clients,
        port=ports,
        state=st.sampled_from(sorted(STATES)),
        answered=st.booleans(),
        nat=st.booleans(),
    )
    def open(self, client: int, port: int, state: str, answered: bool, nat: bool) -> None:
        sent, heard = STATES[state]
        if self.proto(client) == UDP:
            state, sent, heard = ("udp_stream", ACK, ACK) if answered else ("udp", ACK, 0)
        elif self.proto(client) != TCP:
            state, sent, heard = "icmp", ACK, ACK if answered else 0
        link = Link(
            self.client(client),
            self.leaves(client, port),
            sent=sent,
            answered=heard,
            endpoint=client,
            nat=client << 8 | port if nat else None,
        )
        wanted = self.predicted(link)
        assert self.kernel.open(link) == wanted
        if wanted != "created":
            return
        entries = [self.kernel.look(key) for key in link.ways]
        self.known[link.client] = Known(
            link,
            state,
            [entry.seen for entry in entries if entry],
            [link.carried[0], 0],
            [link.carried[1], 0],
        )

    @rule(client=clients, port=ports, reply=st.booleans())
    def look(self, client: int, port: int, reply: bool) -> None:
        self.check(self.some_key(client, port, reply))

    @rule(client=clients, port=ports, reply=st.booleans())
    def end(self, client: int, port: int, reply: bool) -> None:
        key = self.some_key(client, port, reply)
        known = self.owner(key)
        assert self.kernel.end(key) == (known is not None)
        if known is None:
            return
        del self.known[known.link.client]
        for way in known.link.ways:
            assert self.kernel.look(way) is None

    @rule(
        client=clients,
        port=ports,
        reply=st.booleans(),
        size=st.integers(0, (1 << 31) - 1),
        packets=st.integers(1, 20),
    )
    def packets_go_by(self, client: int, port: int, reply: bool, size: int, packets: int) -> None:
        key = self.some_key(client, port, reply)
        known = self.owner(key)
        assert self.kernel.carry(key, size, packets) == (known is not None)
        if known is None:
            return
        side = known.link.ways.index(key)
        known.packets[side] += packets
        known.bytes[side] += size * packets
        entry = self.check(key)
        assert entry is not None
        known.seen[side] = entry.seen

    @precondition(lambda self: self.known)
    @rule(
        data=st.data(),
        side=st.integers(0, 1),
        packets=st.one_of(st.integers(0, BIG), st.integers(-40, 40).map(lambda n: (1 << 32) + n)),
        size=st.one_of(st.integers(0, BIG), st.integers(-99, 99).map(lambda n: (1 << 40) + n)),
    )
    def has_carried(self, data: st.DataObject, side: int, packets: int, size: int) -> None:
        known = self.any(data)
        self.kernel.has_carried(known.link.ways[side], packets, size)
        known.packets[side], known.bytes[side] = packets, size

    @precondition(lambda self: self.known)
    @rule(data=st.data(), times=st.tuples(*[st.sampled_from(["now", "before", "after"])] * 2))
    def time_passes(self, data: st.DataObject, times: tuple[str, str]) -> None:
        """For each direction, up to before or after the connection's timeout."""
        known = self.any(data)
        timeout = TIMEOUTS[known.state]
        for side, when in enumerate(times):
            seconds = {"now": 0, "before": timeout - NEARLY, "after": timeout + NEARLY}[when]
            known.seen[side] = self.kernel.jiffies_ago(seconds)
            self.kernel.write(known.link.ways[side], seen=known.seen[side])

    @rule(thorough=st.booleans())
    def sweep(self, thorough: bool) -> None:
        gone = [known for known in self.known.values() if self.idle(known) > self.patience(known)]
        result = self.kernel.datapath.sweep(thorough=thorough)
        assert result.expired == len(gone)
        assert len(self.known) - len(gone) <= result.visited <= len(self.known)
        for known in gone:
            del self.known[known.link.client]
        for known in self.known.values():
            for side, key in enumerate(known.link.ways):
                entry = self.kernel.look(key)
                # An entry may take over the time from its pair.
                assert entry is not None and entry.seen in known.seen
                known.seen[side] = entry.seen

    @precondition(lambda self: self.resizes < RESIZES)
    @rule(size=st.sampled_from(SIZES))
    def resize(self, size: int) -> None:
        """Refused while connections are moving, or where they would not find room; then nothing changes."""
        self.resizes += 1
        before = self.kernel.datapath.sizes().max_flows
        entries = self.kernel.entries()
        with self.kernel.table(self.family) as table:
            current = table.which
        try:
            self.kernel.datapath.resize(size)
        except DatapathError:
            assert self.kernel.datapath.sizes().max_flows == before
            with self.kernel.table(self.family) as table:
                assert table.which == current
        else:
            assert self.kernel.datapath.sizes().max_flows == size
        assert self.kernel.entries() == entries

    @rule()
    def move(self) -> None:
        before = Counter(self.kernel.ended())
        waiting = self.waiting()
        moved = self.kernel.datapath.move_flows()
        gone = [known for known in self.known.values() if self.kernel.look(known.link.client) is None]
        assert sum((Counter(self.kernel.ended()) - before).values()) == len(gone)
        for known in gone:  # made way for others in a small table
            idle = self.idle(known) > self.patience(known)
            assert idle or known.state in GOES_BY_ITSELF or not known.state.startswith("tcp")
            del self.known[known.link.client]
        assert (moved is None) == (waiting is None)
        if moved is not None and waiting is not None:
            assert moved.left == (self.waiting() or 0)
            assert waiting - len(gone) <= moved.moved + moved.left <= waiting

    # ---- what the model says ----

    def any(self, data: st.DataObject) -> Known:
        return self.known[data.draw(st.sampled_from(sorted(self.known, key=lambda way: way.sport)))]

    def idle(self, known: Known) -> int:
        now = self.kernel.jiffies_ago(0)
        return min(now - seen & LOW for seen in known.seen)

    def patience(self, known: Known) -> int:
        return TIMEOUTS[known.state] * self.kernel.hz

    def waiting(self) -> int | None:
        """Connections in the table that was exchanged; None: there is none."""
        with self.kernel.datapath.flow_tables() as tables:
            old = [table for table in tables if table.family == self.family][1:]
            return sum(table.count() for table in old) // 2 if old else None

    def predicted(self, link: Link) -> str:
        """What opening it says: the answering direction comes first."""
        if self.owner(link.reply):
            return "taken"
        with self.kernel.table(self.family) as table:
            used = (table.rows["marks"]["mark"] >> 16 != 0).sum(axis=1).tolist()
            if not place(table, link.reply, used):
                return "full"
            if self.owner(link.client):
                return "exists"
            return "created" if place(table, link.client, used) else "full"

    def check(self, key: Way) -> Any:
        """Looks at an entry and compares all it says."""
        entry, known = self.kernel.look(key), self.owner(key)
        assert (entry is None) == (known is None)
        if entry is None or known is None:
            return None
        side = known.link.ways.index(key)
        assert entry.leaves == known.link.ways[1 - side].reversed()
        assert entry.paired
        assert (entry.packets, entry.bytes) == (known.packets[side], known.bytes[side])
        folded = self.kernel.bits["FLOW_FOLDED"]
        assert entry.state & ~folded == self.kernel.states_of(known.link)[side]
        if side == 0:
            assert entry.rare == known.link.endpoint
        nat = known.link.nat or 0
        assert entry.nat == (nat >> 8 if side else nat & 0xFF)
        with self.kernel.table(self.family) as table:
            assert entry.hit == (entry.table == table.which)
        return entry

    @invariant()
    def first_buckets_count_who_stands_in_the_second(self) -> None:
        counted, there = self.kernel.away(self.family)
        assert counted == there

    # ---- what Python reads ----

    @invariant()
    def python_reads_the_same(self) -> None:
        flows = self.kernel.datapath.flows()
        assert len(flows) == len(self.known)
        assert self.kernel.entries() == 2 * len(self.known)
        timeout = self.kernel.datapath.enum("timeout")
        for flow in flows:
            known = self.known[self.way(flow, "client", "destination")]
            assert self.way(flow, "source_out", "destination_out") == known.link.leaves
            carried = [int(flow[name]) for name in ("packets", "reply_packets", "bytes", "reply_bytes")]
            assert carried == known.packets + known.bytes
            assert int(flow["state"]) == timeout[f"TIMEOUT_{known.state.upper()}"]
            assert flow["paired"]
            assert flow["family"] == self.family
            assert int(flow["endpoint"]) == NONE
            assert int(flow["nat"]) == (NONE if known.link.nat is None else known.link.nat)
            assert abs(float(flow["idle_s"]) - self.idle(known) / self.kernel.hz) < NEARLY / 2

    def way(self, flow: Any, source: str, destination: str) -> Way:
        width = 4 if self.family == 4 else 16
        return Way(
            int(flow["proto"]),
            flow[source].tobytes()[:width],
            int(flow[f"{source}_port"]),
            flow[destination].tobytes()[:width],
            int(flow[f"{destination}_port"]),
        )


def place(table: FlowTable, key: Way, used: list[int]) -> bool:
    """Takes a place in the first of the key's buckets that has one."""
    first, second, _ = (int(column[0]) for column in table.choose(keys_of([key])))
    for bucket in (first, second):
        if used[bucket] < table.rows.dtype["slot"].shape[0]:
            used[bucket] += 1
            return True
    return False


def test_table_says_what_the_model_says(loaded: Kernel, family: int) -> None:
    loaded.reset(SIZES[0])
    machine = type("TableOfOneFamily", (Table,), {"kernel": loaded, "family": family})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_hash_is_the_same_in_the_kernel_and_in_python(kernel: Kernel, family: int) -> None:
    """Python finds by computing, not by searching: all that was opened, where it stands."""
    links = [
        Link(
            Way(UDP, address(family, 10, n), 1000 + n, address(family, 20, n % 7), 53),
            Way(UDP, address(family, 30, n % 3), 20000 + n, address(family, 40, n), 53),
        )
        for n in range(500)
    ]
    assert {kernel.open(link, make_room=True) for link in links} == {"created"}
    with kernel.table(family) as table:
        for side in (0, 1):
            keys = [link.ways[side] for link in links]
            places = table.find(keys_of(keys))
            assert len(np.unique(places)) == len(links) and (places >= 0).all()
            for key, at in zip(keys[::50], places[::50].tolist(), strict=True):
                entry = kernel.look(key)
                assert entry is not None and entry.bucket * 7 + entry.slot == at
