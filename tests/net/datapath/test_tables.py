# SPDX-License-Identifier: Apache-2.0
"""Tables against the kernel's own listing: every map type in use, whole batches, errors by name."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from clearway.datapath import DatapathError, Table, bpf, libbpf, tables
from clearway.datapath.install import FILES
from clearway.datapath.loader import LoadedObject, load_object
from tests.net.datapath.conftest import bpftool

Array = npt.NDArray[Any]
SIZES = {
    "service_v2": 512,
    "claim_v1": 1 << 20,
    "endpoint_v1": 300,
    "opened_v1": 300,
    "cursor_v1": 16,
    "wheel_v1": 70_000,
    "nat_v2": 64,
}
# One of each map type: hash, LRU hash, array, LPM trie, per-CPU array.
KINDS = ["service_v2", "fragment_v1", "endpoint_v1", "nat_v2", "opened_v1"]


@pytest.fixture
def loaded(objects: Path) -> Iterator[LoadedObject]:
    """Every table, not pinned: they go with the test."""
    with load_object(objects / FILES["sweep"], max_entries=SIZES) as made:
        yield made


class Tables:
    def __init__(self, loaded: LoadedObject) -> None:
        self.loaded = loaded
        self.open: list[Table] = []

    def __getitem__(self, name: str) -> Table:
        table = Table(os.dup(self.loaded.map_fd(name)))
        self.open.append(table)
        return table


@pytest.fixture
def of(loaded: LoadedObject) -> Iterator[Tables]:
    made = Tables(loaded)
    yield made
    for table in made.open:
        table.close()


def filled(table: Table, count: int, first: int = 0) -> tuple[Array, Array]:
    """Rows that differ in key and value, ready to be written."""
    keys, values = table.rows(count)
    numbers = np.arange(first, first + count)
    if table.name == "service_v2":
        keys["port"], keys["epoch"], values["id"] = numbers & 0xFFFF, numbers >> 16, numbers
    elif table.name == "fragment_v1":
        keys["id"], values["seen"] = numbers, numbers
    elif table.name == "nat_v2":
        keys["prefixlen"], keys["epoch"], values["id"] = 224, numbers, numbers
    elif table.name == "endpoint_v1":
        keys[:], values["service"] = numbers, numbers
    elif table.name == "opened_v1":
        keys[:], values["connections"] = numbers, np.arange(len(values))[:, np.newaxis] * 1000 + numbers
    else:
        keys["epoch"], values[:] = numbers, numbers
    return keys, values


def as_bytes(rows: Array) -> list[bytes]:
    return [row.tobytes() for row in np.ascontiguousarray(rows)]


def listed(table: Table) -> dict[bytes, Any]:
    """The rows as bpftool dumps them: key bytes to value bytes, or to a list of them for each CPU."""

    def octets(words: list[str]) -> bytes:
        return bytes(int(word, 16) for word in words)

    def value(entry: dict[str, Any]) -> Any:
        if "values" in entry:
            return [octets(cpu["value"]) for cpu in entry["values"]]
        return octets(entry["value"])

    dump = bpftool("map", "dump", "id", str(bpf.map_info(table.fd).id))
    return {octets(entry["key"]): value(entry) for entry in dump}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_is_what_the_kernel_lists(of: Tables, name: str) -> None:
    table = of[name]
    keys, values = filled(table, 40)
    table.update(keys, values)
    dump = listed(table)
    for row, key in enumerate(as_bytes(keys)):
        wanted = as_bytes(values[:, row]) if table.per_cpu else values[row].tobytes()
        assert dump[key] == wanted
    if not table.indexed:
        assert len(dump) == 40


@pytest.mark.parametrize("name", KINDS)
def test_items_are_all_rows(of: Tables, name: str) -> None:
    table = of[name]
    count = 60
    keys, values = filled(table, count)
    table.update(keys, values)
    read_keys, read_values = table.items()
    assert len(read_keys) == (table.max_entries if table.indexed else count)
    by_key = dict(zip(as_bytes(read_keys), range(len(read_keys)), strict=True))
    assert len(by_key) == len(read_keys)
    for row, key in enumerate(as_bytes(keys)):
        there = by_key[key]
        assert (read_values[..., there] == values[..., row]).all()


@pytest.mark.parametrize("name", KINDS)
def test_lookup_tells_which_rows_are_there(of: Tables, name: str) -> None:
    table = of[name]
    keys, values = filled(table, 20)
    table.update(keys, values)
    asked, _ = filled(table, 10, first=15)
    found_values, found = table.lookup(asked)
    assert found.tolist() == ([True] * 10 if table.indexed else [True] * 5 + [False] * 5)
    assert (found_values[..., :5] == values[..., 15:]).all()
    assert found_values[..., 5:].tobytes() == bytes(found_values[..., 5:].nbytes)


@pytest.mark.parametrize("name", ["service_v2", "fragment_v1", "nat_v2"])
def test_delete_counts_what_was_there_and_goes_on_behind_what_was_not(of: Tables, name: str) -> None:
    table = of[name]
    table.update(*filled(table, 30))
    keys, _ = filled(table, 60)
    shuffled = np.random.default_rng(2).permutation(60)
    assert table.delete(keys[shuffled]) == 30
    assert len(table.items()[0]) == 0
    assert table.delete(keys) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("service_v2", r"table service_v2 is full \(max 512\)"),
        ("nat_v2", r"table nat_v2 is full \(max 64\)"),
        ("endpoint_v1", r"table endpoint_v1 has no such index \(max 300\)"),
    ],
)
def test_full_table_says_so_and_keeps_what_fitted(of: Tables, name: str, message: str) -> None:
    table = of[name]
    with pytest.raises(DatapathError, match=message):
        table.update(*filled(table, table.max_entries + 1))
    assert len(table.items()[0]) == table.max_entries


@pytest.mark.parametrize("name", ["service_v2", "nat_v2"])
def test_create_only_does_not_overwrite(of: Tables, name: str) -> None:
    table = of[name]
    keys, values = filled(table, 5)
    table.update(keys[:3], values[:3], create_only=True)
    values["id"] += 100
    with pytest.raises(DatapathError, match=f"table {name} already has that row"):
        table.update(keys[2:], values[2:], create_only=True)
    assert table.lookup(keys)[0]["id"].tolist() == [0, 1, 2, 0, 0]


def test_plain_numbers_serve_as_keys_and_values(of: Tables) -> None:
    wheel = of["wheel_v1"]
    wheel.update(range(70_000), np.arange(70_000) % 7)
    values, found = wheel.lookup([0, 8, 69_999])
    assert values.tolist() == [0, 1, 69_999 % 7]
    assert found.all()
    keys, values = wheel.items()
    assert (values[keys.argsort()] == np.arange(70_000) % 7).all()


def test_nothing_is_written_or_deleted_for_no_rows(of: Tables) -> None:
    table = of["service_v2"]
    table.update(*table.rows(0))
    assert table.delete(table.rows(0)[0]) == 0
    assert table.lookup(table.rows(0)[0])[0].shape == (0,)
    assert [len(part) for part in table.items()] == [0, 0]


def test_per_cpu_values_have_a_row_for_each_cpu(of: Tables) -> None:
    table = of["opened_v1"]
    cpus = libbpf.library().libbpf_num_possible_cpus()
    keys, values = filled(table, 3)
    assert values.shape == (cpus, 3)
    table.update(keys, values)
    assert table.lookup(keys)[0]["connections"].tolist() == values["connections"].tolist()


@pytest.mark.parametrize("name", ["service_v2", "fragment_v1", "nat_v2", "opened_v1", "endpoint_v1"])
def test_kernel_without_batches_gives_the_same(
    of: Tables, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in ("bpf_map_lookup_batch", "bpf_map_update_batch", "bpf_map_delete_batch"):
        monkeypatch.setattr(libbpf.library(), call, lambda *_: -tables.ENOTSUPP)
    table = of[name]
    keys, values = filled(table, 50)
    table.update(keys, values)
    read_keys, read_values = table.items()
    order = {key: row for row, key in enumerate(as_bytes(read_keys))}
    for row, key in enumerate(as_bytes(keys)):
        assert (read_values[..., order[key]] == values[..., row]).all()
    if not table.indexed:
        assert len(read_keys) == 50
        assert table.delete(filled(table, 70)[0]) == 50


def test_bucket_larger_than_a_batch_is_read(of: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS_A_CALL", 1)
    table = of["service_v2"]
    keys, values = filled(table, 500)
    table.update(keys, values)
    read, _ = table.items()
    assert sorted(as_bytes(read)) == sorted(as_bytes(keys))


def test_rows_that_stay_are_read_once_while_others_come_and_go(of: Tables) -> None:
    table, other = of["claim_v1"], of["claim_v1"]
    table.update(*filled(table, 20_000))
    stop = threading.Event()

    def disturb() -> None:
        keys, values = filled(other, 5_000, first=100_000)
        while not stop.is_set():
            other.update(keys, values)
            other.delete(keys)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        for _ in range(10):
            numbers = table.items()[0]["epoch"].astype(np.int64)
            stayed = numbers[numbers < 20_000]
            assert sorted(stayed.tolist()) == list(range(20_000))
    finally:
        stop.set()
        disturber.join()


def test_trie_is_read_whole_while_it_changes(of: Tables) -> None:
    table, other = of["nat_v2"], of["nat_v2"]
    table.update(*filled(table, 20))
    stop = threading.Event()

    def disturb() -> None:
        keys, values = filled(other, 30, first=1000)
        while not stop.is_set():
            other.update(keys, values)
            other.delete(keys)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        for _ in range(50):
            epochs = set(table.items()[0]["epoch"].tolist())
            assert set(range(20)) <= epochs
    finally:
        stop.set()
        disturber.join()


def test_a_million_rows_are_read(of: Tables) -> None:
    table = of["claim_v1"]
    keys, values = filled(table, 1_000_000)
    table.update(keys, values)
    read_keys, read_values = table.items()
    assert len(read_keys) == 1_000_000
    assert (read_keys["epoch"] == read_values).all()
