# SPDX-License-Identifier: Apache-2.0
"""How much kernel memory the data path of a configuration takes, empty and full.

An estimate: what the kernel's map types allocate (kernel/bpf/arraymap.c, hashtab.c, lpm_trie.c, ringbuf.c),
in the size classes of its allocator, without the few kilobytes of programs and of tables with a few rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from clearway.model import Config, Problem
from clearway.model.sizes import FLOW_LINES, bucket_bytes, buckets_for, flows_in

from .facts import TableSizes
from .tables import Tables

# Sizes of the structures in bpf/types.h.
CARRIED_KEY, CARRIED, EGRESS, TUPLE, INBOUND = 8, 16, 28, 40, 4
FRAGMENT_KEY, FRAGMENT = 40, 12
SERVICE_KEY, SERVICE, ORIGIN = 24, 20, 24
CLAIM, ENDPOINT, OPENED = 24, 24, 8
NAT_KEY, NAT = 32, 32
DEVICE, VLAN_KEY, VLAN, PORT = 32, 8, 4, 12
COUNTER, MARKING = 16, 5156
JUDGED, IDENTITY, LINE = 24, 8, 64
NUMBER = 4  # a key, a slot of a wheel, a round-robin position

# Rows that no configuration changes, as bpf/maps.h has them.
CARRIED_ROWS, EGRESS_ROWS, INBOUND_ROWS, FRAGMENT_ROWS = 65536, 8192, 16384, 4096
REFUSED_ROWS, NEIGHBOUR_ROWS, MARKINGS = 65536, 4096, 2
DEVICE_ROWS, PORT_ROWS, COUNTER_ROWS, LIST_ROWS = 4096, 4096, 192, 256
RECORDS_BYTES, ADOPTED_BYTES, EVENTS_BYTES = 1 << 22, 1 << 20, 1 << 20

HASH_BUCKET = 16  # struct bucket: a list head, a lock
HASH_ELEMENT = 48  # struct htab_elem, before key and value
ALLOCATOR_HEAD = 8  # bpf_mem_alloc keeps a list node before each element
TRIE_NODE = 40  # struct lpm_trie_node, before data and value
TRIE_KEY_LENGTH = 4  # prefixlen, which is not stored with the data
RING_PAGES = 3  # of a ring, before its data
RING_POINTERS = 16  # to each page of the data, which is mapped twice
SIZE_CLASSES = (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096)
PAGE = 4096

FEWEST_FLOWS = 1024
"""The smallest conntrack.max_flows."""


class Limits(Protocol):
    """How many things of the configuration the tables have room for."""

    @property
    def services(self) -> int: ...
    @property
    def endpoints(self) -> int: ...
    @property
    def nats(self) -> int: ...
    @property
    def wheel_slots(self) -> int: ...
    @property
    def rules(self) -> int: ...


@dataclass(frozen=True, slots=True)
class TableMemory:
    """One table: its rows, and bytes when it is empty and when it is full."""

    name: str
    rows: int
    empty_bytes: int
    full_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Kernel memory of all tables, in bytes."""

    tables: tuple[TableMemory, ...]

    @property
    def empty_bytes(self) -> int:
        """When loaded: flow tables take all of theirs at once."""
        return sum(table.empty_bytes for table in self.tables)

    @property
    def full_bytes(self) -> int:
        """When every table is full."""
        return sum(table.full_bytes for table in self.tables)

    def to_dict(self) -> dict[str, object]:
        tables = {
            table.name: {"rows": table.rows, "empty_bytes": table.empty_bytes, "full_bytes": table.full_bytes}
            for table in self.tables
        }
        return {"empty_bytes": self.empty_bytes, "full_bytes": self.full_bytes, "tables": tables}

    def __str__(self) -> str:
        empty, full = megabytes(self.empty_bytes), megabytes(self.full_bytes)
        return f"{empty} when loaded, up to {full} with all tables full"


def estimate_memory(config: Config, cpus: int = 1, tables: Tables | None = None) -> MemoryEstimate:
    """What the tables of a configuration take on a machine with so many possible CPUs. tables: as it was
    compiled; while classifiers and lists are exchanged there are two of each.
    """
    flows, others = _flow_tables(config.conntrack.max_flows), _other_tables(config.limits, cpus)
    return MemoryEstimate((*flows, *others, *(_lines(tables) if tables else ())))


def require_memory(
    config: Config, available: int | None, *, loaded: TableSizes | None = None, cpus: int = 1
) -> None:
    """ConfigError when the tables of a configuration need more memory than is available (None: unknown)
    besides those that are loaded.
    """
    if available is None:
        return
    asked = config.conntrack.max_flows
    # A table of another size stands beside the present one while connections move from that to this.
    flows = 0 if loaded is not None and loaded.max_flows == asked else _flow_bytes(asked)
    others = _growth(config.limits, loaded, cpus)
    if flows + others <= available:
        return
    beside = "" if loaded is None else " besides those that are loaded"
    what = (
        f"the tables{beside} need {-(-(flows + others) >> 20):,} MiB of memory, "
        f"{available >> 20:,} MiB are available"
    )
    fitting = _flows_fitting(available - others)
    if flows and fitting >= FEWEST_FLOWS:
        problem = Problem(("conntrack", "max_flows"), f"with {asked} {what}", f"use {fitting} or less")
    else:
        problem = Problem(("limits",), what, "use lower ones, or free memory")
    raise config.origin.error([problem])


def _growth(limits: Limits, loaded: Limits | None, cpus: int) -> int:
    """Memory that tables of these limits take beyond those that are loaded."""
    present = {table.name: table.full_bytes for table in _other_tables(loaded, cpus)} if loaded else {}
    return sum(max(0, table.full_bytes - present.get(table.name, 0)) for table in _other_tables(limits, cpus))


def megabytes(count: int) -> str:
    """Bytes for people: "7 MiB", "1.2 GiB"."""
    if count >= 1 << 30:
        return f"{count / (1 << 30):.1f} GiB"
    return f"{max(1, round(count / (1 << 20)))} MiB"


# ---- tables ----


def _flow_tables(max_flows: int) -> Iterator[TableMemory]:
    """One of each family; an entry may be any flow's, so that there is nothing to add when they fill."""
    for family in FLOW_LINES:
        yield _mapped_array(f"flow{family}_v3", buckets_for(max_flows), bucket_bytes(family))


def _lines(tables: Tables) -> Iterator[TableMemory]:
    """Classifiers, and lists of prefixes."""
    firewall, scrub = tables.firewall, tables.scrub
    for (after, family), classifier in ((firewall and firewall.classifiers) or {}).items():
        name = f"classifier_v3, IPv{family}{', after translation' if after else ''}"
        yield _mapped_array(name, len(classifier.lines), LINE)
    for (allow, family), image in ((scrub and scrub.images) or {}).items():
        if image is not None:
            kind = "allowlists" if allow else "blocklists"
            yield _mapped_array(f"prefixes_v1, IPv{family} {kind}", len(image.lines), LINE)


def _flow_bytes(max_flows: int) -> int:
    return sum(table.full_bytes for table in _flow_tables(max_flows))


def _flows_fitting(available: int) -> int:
    """The largest max_flows, in steps that people read easily, whose tables fit."""
    heads = PAGE * 2 * len(FLOW_LINES)
    buckets = max(0, available - heads) // sum(map(bucket_bytes, FLOW_LINES))
    return flows_in(buckets) // FEWEST_FLOWS * FEWEST_FLOWS


def _other_tables(limits: Limits, cpus: int) -> Iterator[TableMemory]:
    services, endpoints = limits.services, limits.endpoints
    yield _hash("carried_v1", CARRIED_ROWS, CARRIED_KEY, CARRIED)
    yield _ring("records_v1", RECORDS_BYTES)
    yield _ring("adopted_v1", ADOPTED_BYTES)
    yield _ring("events_v1", EVENTS_BYTES)
    yield _array("egress_v2", EGRESS_ROWS, EGRESS)
    yield _array("marking_v1", MARKINGS, MARKING)
    yield _array("refused_v1", REFUSED_ROWS, IDENTITY)
    yield _array("neighbour_v1", NEIGHBOUR_ROWS, IDENTITY)
    yield _lru_hash("inbound_v1", INBOUND_ROWS, TUPLE, INBOUND)
    yield _lru_hash("fragment_v1", FRAGMENT_ROWS, FRAGMENT_KEY, FRAGMENT)
    yield _hash("service_v2", 2 * services, SERVICE_KEY, SERVICE)
    yield _hash("claim_v1", 2 * (services + endpoints), CLAIM, NUMBER)
    yield _hash("origin_v2", 2 * endpoints, SERVICE_KEY, ORIGIN)
    yield _array("wheel_v1", limits.wheel_slots, NUMBER)
    yield _array("endpoint_v1", endpoints, ENDPOINT)
    yield _array("cursor_v1", services, NUMBER)
    yield _cpu_array("opened_v1", endpoints, OPENED, cpus)
    yield _trie("nat_v2", 2 * limits.nats, NAT_KEY, NAT)
    yield _array("rule_v1", 2 * (limits.rules + 1), NUMBER)
    yield _array("named_v1", limits.rules + 1, IDENTITY)
    yield _array("judged_v1", cpus * (limits.rules + 1), JUDGED)
    yield _hash("device_v1", DEVICE_ROWS, NUMBER, DEVICE)
    yield _hash("vlan_v1", DEVICE_ROWS, VLAN_KEY, VLAN)
    yield _array("port_v1", PORT_ROWS, PORT)
    yield _cpu_array("counter_v1", COUNTER_ROWS, COUNTER, cpus)
    yield _array("list_v1", 2 * LIST_ROWS, IDENTITY)
    yield _cpu_array("listed_v1", LIST_ROWS, COUNTER, cpus)


# ---- what a kind of table takes ----


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _allocated(size: int) -> int:
    return next((size_class for size_class in SIZE_CLASSES if size <= size_class), _round_up(size, PAGE))


def _element(key: int, value: int) -> int:
    return HASH_ELEMENT + _round_up(key, 8) + _round_up(value, 8)


def _hash(name: str, rows: int, key: int, value: int) -> TableMemory:
    """A hash table without preallocation: buckets at once, an element when it is born."""
    buckets = _power_of_two(rows) * HASH_BUCKET
    return TableMemory(
        name, rows, buckets, buckets + rows * _allocated(ALLOCATOR_HEAD + _element(key, value))
    )


def _lru_hash(name: str, rows: int, key: int, value: int) -> TableMemory:
    """A hash table that forgets what was not used for longest: all elements at once."""
    return _whole(name, rows, _power_of_two(rows) * HASH_BUCKET + rows * _element(key, value))


def _array(name: str, rows: int, value: int) -> TableMemory:
    return _whole(name, rows, rows * _round_up(value, 8))


def _mapped_array(name: str, rows: int, value: int) -> TableMemory:
    """An array that user space can map: its head has pages of its own."""
    return _whole(name, rows, PAGE + rows * _round_up(value, 8))


def _cpu_array(name: str, rows: int, value: int, cpus: int) -> TableMemory:
    """An array of pointers to a row for each CPU."""
    return _whole(name, rows, rows * (8 + _round_up(value, 8) * cpus))


def _ring(name: str, size: int) -> TableMemory:
    return _whole(name, size, size + RING_PAGES * PAGE + size // PAGE * RING_POINTERS)


def _trie(name: str, rows: int, key: int, value: int) -> TableMemory:
    """A trie: a node for each row and, at worst, one more for each where two of them part."""
    node = _allocated(ALLOCATOR_HEAD + TRIE_NODE + key - TRIE_KEY_LENGTH + value)
    branch = _allocated(ALLOCATOR_HEAD + TRIE_NODE + key - TRIE_KEY_LENGTH)
    return TableMemory(name, rows, 0, rows * node + (rows - 1) * branch)


def _whole(name: str, rows: int, size: int) -> TableMemory:
    """A table that takes all of its memory at once."""
    size = _round_up(size, PAGE)
    return TableMemory(name, rows, size, size)
