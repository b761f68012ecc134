# SPDX-License-Identifier: Apache-2.0
"""Tables in memory with the layouts of bpf/types.h, that can fail at any write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from clearway.datapath.calls import Clock
from clearway.datapath.errors import DatapathError

Array = npt.NDArray[Any]
ADDRESS = ("u1", (16,))

INDEX_FIELDS = ("words", "shift", "bucket_line", "buckets", "probes", "range_line")

NUMBER = np.dtype("<u4")
CONFIG = np.dtype(
    [
        ("epoch", "<u4"),
        ("services", "<u4"),
        ("nats", "<u4"),
        ("origins", "<u4"),
        ("midstream", "<u4"),
        ("when_full", "<u4"),
        ("timeout_ms", "<u4", (9,)),
        ("next_endpoint", "<u4"),
        ("next_nat", "<u4"),
        ("next_rule", "<u4"),
        ("firewall", "<u4"),
        ("otherwise", "<u4"),
        ("rules", "<u4"),
        ("counters", "<u4"),
        ("firewall_digest", "u1", (16,)),
        ("scrub", "<u4"),
        ("scrub_digest", "u1", (16,)),
    ]
)
SERVICE_KEY = np.dtype(
    [("epoch", "<u4"), ("port", ">u2"), ("proto", "u1"), ("family", "u1"), ("address", *ADDRESS)]
)
SERVICE = np.dtype(
    [
        ("id", "<u4"),
        ("wheel_base", "<u4"),
        ("wheel_slots", "<u4"),
        ("port_min", "<u2"),
        ("port_max", "<u2"),
        ("mode", "u1"),
        ("algorithm", "u1"),
        ("stateless", "u1"),
        ("bypass", "u1"),
    ]
)
ORIGIN = np.dtype([("address", *ADDRESS), ("port", ">u2"), ("bypass", "u1"), ("pad", "u1", (5,))])
CLAIM = np.dtype([("epoch", "<u4"), ("family", "<u4"), ("address", *ADDRESS)])
ENDPOINT = np.dtype(
    [("address", *ADDRESS), ("port", ">u2"), ("family", "u1"), ("state", "u1"), ("service", "<u4")]
)
NAT_KEY = np.dtype(
    [("prefixlen", "<u4"), ("epoch", "<u4"), ("ifindex", "<u4"), ("family", "<u4"), ("source", *ADDRESS)]
)
NAT = np.dtype(
    [
        ("id", "<u4"),
        ("addresses", "<u4"),
        ("port_min", "<u2"),
        ("port_max", "<u2"),
        ("bypass", "u1"),
        ("pad", "u1", (3,)),
        ("first", *ADDRESS),
    ]
)
IDENTITY = np.dtype("<u8")
INDEX = np.dtype([("seed", "<u8"), *((name, "<u4") for name in INDEX_FIELDS)])
SCRUBBING = np.dtype([("on", "<u4"), ("pad", "<u4"), ("index", INDEX, (8,))])
COUNTER = np.dtype([("packets", "<u8"), ("bytes", "<u8")])
JUDGED = np.dtype([("packets", "<u8"), ("bytes", "<u8"), ("last", "<u8")])
OPENED = np.dtype([("connections", "<u8")])

ENUMS = {
    "service_mode": ["MODE_NAT", "MODE_FULL_NAT"],
    "service_algorithm": ["ALGORITHM_MAGLEV", "ALGORITHM_ROUND_ROBIN"],
    "endpoint_state": ["ENDPOINT_FREE", "ENDPOINT_ACTIVE", "ENDPOINT_DRAINING"],
    "midstream": ["MIDSTREAM_PICK_UP", "MIDSTREAM_DROP", "MIDSTREAM_RESET"],
    "firewall_action": ["FIREWALL_ACCEPT", "FIREWALL_DROP", "FIREWALL_REJECT"],
    "when_full": ["WHEN_FULL_DROP", "WHEN_FULL_STATELESS"],
    "timeout": [
        "TIMEOUT_TCP_SYN_SENT",
        "TIMEOUT_TCP_SYN_RECEIVED",
        "TIMEOUT_TCP_ESTABLISHED",
        "TIMEOUT_TCP_HALF_CLOSED",
        "TIMEOUT_TCP_TIME_WAIT",
        "TIMEOUT_TCP_CLOSED",
        "TIMEOUT_UDP",
        "TIMEOUT_UDP_STREAM",
        "TIMEOUT_ICMP",
        "TIMEOUT_COUNT",
    ],
}


class Killed(BaseException):
    """The process is gone: nothing that it would still do happens."""


@dataclass
class Writes:
    """Counts rows that are written or deleted, shows the tables to a watcher, and fails as it is told."""

    count: int = 0
    fail_at: int | None = None
    and_after: bool = False
    error: Callable[[], BaseException] = lambda: DatapathError("no memory")
    watch: Callable[[], None] = lambda: None
    log: list[str] = field(default_factory=list)

    def one(self, what: str) -> None:
        """To be called before each write."""
        self.watch()
        number, self.count = self.count, self.count + 1
        if self.fail_at is not None and (
            number == self.fail_at or (self.and_after and number > self.fail_at)
        ):
            raise self.error()
        self.log.append(what)


class FakeTable:
    """An array (indexed) or hash table."""

    def __init__(
        self, name: str, key: np.dtype[Any], value: np.dtype[Any], size: int, indexed: bool, writes: Writes
    ):
        self.name, self.key_dtype, self.value_dtype, self.max_entries = name, key, value, size
        self.indexed, self.writes = indexed, writes
        self.content: dict[bytes, bytes] = {}
        if indexed:
            self.content = {np.array(n, key).tobytes(): bytes(value.itemsize) for n in range(size)}

    def rows(self, count: int) -> tuple[Array, Array]:
        return np.zeros(count, self.key_dtype), np.zeros(count, self.value_dtype)

    def items(self) -> tuple[Array, Array]:
        keys = np.frombuffer(b"".join(self.content), self.key_dtype)
        return keys, np.frombuffer(b"".join(self.content.values()), self.value_dtype)

    def lookup(self, keys: npt.ArrayLike) -> tuple[Array, Array]:
        wanted = [key.tobytes() for key in np.atleast_1d(np.asarray(keys, self.key_dtype))]
        empty = bytes(self.value_dtype.itemsize)
        values = np.frombuffer(b"".join(self.content.get(key, empty) for key in wanted), self.value_dtype)
        return values, np.array([key in self.content for key in wanted], dtype=bool)

    def update(self, keys: npt.ArrayLike, values: npt.ArrayLike, create_only: bool = False) -> None:
        given = np.asarray(values, self.value_dtype).reshape(-1)
        for key, value in zip(np.atleast_1d(np.asarray(keys, self.key_dtype)), given, strict=True):
            if self.indexed and key.tobytes() not in self.content:
                raise DatapathError(f"table {self.name} has no such index (max {self.max_entries})")
            if (
                not self.indexed
                and key.tobytes() not in self.content
                and len(self.content) >= self.max_entries
            ):
                raise DatapathError(f"table {self.name} is full (max {self.max_entries})")
            self.writes.one(f"write {self.name}")
            self.content[key.tobytes()] = value.tobytes()

    def delete(self, keys: npt.ArrayLike) -> int:
        assert not self.indexed, "rows of an array cannot be deleted"
        deleted = 0
        for key in np.atleast_1d(np.asarray(keys, self.key_dtype)):
            self.writes.one(f"delete {self.name}")
            deleted += self.content.pop(key.tobytes(), None) is not None
        return deleted


class FakeDatapath:
    """What apply.py needs of a data path."""

    def __init__(
        self, services: int = 8, endpoints: int = 64, nats: int = 8, wheel_slots: int = 20000, rules: int = 16
    ) -> None:
        self.writes = Writes()
        self.epoch, self.mirror = 0, 7
        self.classifiers = FakeLines("classifier_v3", self.writes)
        self.prefixes = FakeLines("prefixes_v1", self.writes)

        def table(name: str, key: np.dtype[Any], value: np.dtype[Any], size: int, indexed: bool) -> FakeTable:
            return FakeTable(name, key, value, size, indexed, self.writes)

        self.tables = {
            "config_v4": table("config_v4", NUMBER, CONFIG, 2, True),
            "service_v2": table("service_v2", SERVICE_KEY, SERVICE, 2 * services, False),
            "claim_v1": table("claim_v1", CLAIM, NUMBER, 2 * (services + endpoints), False),
            "origin_v2": table("origin_v2", SERVICE_KEY, ORIGIN, 2 * endpoints, False),
            "endpoint_v1": table("endpoint_v1", NUMBER, ENDPOINT, endpoints, True),
            "wheel_v1": table("wheel_v1", NUMBER, NUMBER, wheel_slots, True),
            "nat_v2": table("nat_v2", NAT_KEY, NAT, 2 * nats, False),
            "rule_v1": table("rule_v1", NUMBER, NUMBER, 2 * (rules + 1), True),
            "named_v1": table("named_v1", NUMBER, IDENTITY, rules + 1, True),
            "judged_v1": table("judged_v1", NUMBER, JUDGED, 2 * (rules + 1), True),
            "scrub_v1": table("scrub_v1", NUMBER, SCRUBBING, 1, True),
            "list_v1": table("list_v1", NUMBER, IDENTITY, 16, True),
            "listed_v1": table("listed_v1", NUMBER, COUNTER, 8, True),
            "opened_v1": table("opened_v1", NUMBER, OPENED, endpoints, True),
        }

    def table(self, name: str) -> FakeTable:
        return self.tables[name]

    def enum(self, name: str) -> dict[str, int]:
        if name == "firewall":  # bits
            return {"FIREWALL_ON": 1, "FIREWALL_AFTER": 2}
        return {constant: number for number, constant in enumerate(ENUMS[name])}

    def clock(self) -> Clock:
        return Clock(jiffies=1 << 32, boot_ns=0, hz=250)

    def active(self) -> tuple[int, int]:
        return self.epoch, self.mirror

    def set_epoch(self, epoch: int) -> None:
        self.writes.one("switch")
        self.epoch = epoch


@dataclass
class FakeLines:
    """A table of arrays of lines."""

    name: str
    writes: Writes
    content: dict[int, bytes] = field(default_factory=dict)

    def put(self, place: int, lines: Array) -> None:
        self.writes.one(f"write {self.name}")
        self.content[place] = lines.tobytes()

    def copy(self, source: int, place: int) -> None:
        self.writes.one(f"write {self.name}")
        self.content[place] = self.content[source]

    def drop(self, place: int) -> None:
        self.content.pop(place, None)
