# SPDX-License-Identifier: Apache-2.0
"""How much kernel memory the data path of a configuration takes, empty and full.

An estimate: what the kernel's map types allocate (kernel/bpf/hashtab.c, arraymap.c, lpm_trie.c), in the size
classes of its allocator, without the few kilobytes of programs and of fixed small tables.
"""

from __future__ import annotations

from dataclasses import dataclass

from clearway.model import Config

# Sizes of the structures in bpf/types.h.
FLOW4_KEY, FLOW6_KEY, FLOW = 16, 40, 120
SERVICE_KEY, SERVICE = 24, 20
CLAIM, CLAIMED = 24, 4
ENDPOINT, WHEEL_SLOT, CURSOR, OPENED = 24, 4, 4, 8
NAT_KEY, NAT = 32, 32

HASH_BUCKET = 16  # struct bucket: a list head, a lock
HASH_ELEMENT = 48  # struct htab_elem, before key and value
ALLOCATOR_HEAD = 8  # bpf_mem_alloc keeps a list node before each element
TRIE_NODE = 40  # struct lpm_trie_node, before data and value
TRIE_KEY_LENGTH = 4  # prefixlen, which is not stored with the data
SIZE_CLASSES = (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096)
PAGE = 4096


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
        """When loaded, before the first flow."""
        return sum(table.empty_bytes for table in self.tables)

    @property
    def full_bytes(self) -> int:
        """When every table is full: max_flows connections of IPv4 and as many of IPv6."""
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


def estimate_memory(config: Config, cpus: int = 1) -> MemoryEstimate:
    """What the tables of a configuration take on a machine with so many possible CPUs."""
    flows, limits = 2 * config.conntrack.max_flows, config.limits
    return MemoryEstimate(
        (
            _hash("flow4_v1", flows, FLOW4_KEY, FLOW),
            _hash("flow6_v1", flows, FLOW6_KEY, FLOW),
            _hash("service_v1", 2 * limits.services, SERVICE_KEY, SERVICE),
            _hash("claim_v1", 2 * (limits.services + limits.endpoints), CLAIM, CLAIMED),
            _array("wheel_v1", limits.wheel_slots, WHEEL_SLOT),
            _array("endpoint_v1", limits.endpoints, ENDPOINT),
            _array("cursor_v1", limits.services, CURSOR),
            _array("opened_v1", limits.endpoints, OPENED, cpus),
            _trie("nat_v1", 2 * limits.nats, NAT_KEY, NAT),
        )
    )


def megabytes(count: int) -> str:
    """Bytes for people: "7 MiB", "1.2 GiB"."""
    if count >= 1 << 30:
        return f"{count / (1 << 30):.1f} GiB"
    return f"{max(1, round(count / (1 << 20)))} MiB"


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _allocated(size: int) -> int:
    return next((size_class for size_class in SIZE_CLASSES if size <= size_class), _round_up(size, PAGE))


def _hash(name: str, rows: int, key: int, value: int) -> TableMemory:
    """A hash table without preallocation: buckets at once, an element when it is born."""
    buckets = _power_of_two(rows) * HASH_BUCKET
    element = _allocated(ALLOCATOR_HEAD + HASH_ELEMENT + _round_up(key, 8) + _round_up(value, 8))
    return TableMemory(name, rows, buckets, buckets + rows * element)


def _array(name: str, rows: int, value: int, cpus: int = 1) -> TableMemory:
    """An array, all of it at once; a per-CPU one has a pointer for each row."""
    pointers = rows * 8 if cpus > 1 else 0
    size = _round_up(rows * _round_up(value, 8 if cpus > 1 else 4) * cpus + pointers, PAGE)
    return TableMemory(name, rows, size, size)


def _trie(name: str, rows: int, key: int, value: int) -> TableMemory:
    """A trie: a node for each row and, at worst, one more for each where two of them part."""
    node = _allocated(ALLOCATOR_HEAD + TRIE_NODE + key - TRIE_KEY_LENGTH + value)
    branch = _allocated(ALLOCATOR_HEAD + TRIE_NODE + key - TRIE_KEY_LENGTH)
    return TableMemory(name, rows, 0, rows * node + (rows - 1) * branch)
