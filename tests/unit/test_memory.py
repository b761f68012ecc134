# SPDX-License-Identifier: Apache-2.0
"""Memory: what is told of a configuration, and what is refused because the machine has not got it."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearway.compiler import estimate_memory, memory, require_memory
from clearway.compiler.memory import megabytes
from clearway.daemon import engine, offline
from clearway.daemon.run import sizes_of
from clearway.datapath import Attachment, Datapath, bpf
from clearway.datapath import Sizes as DatapathSizes
from clearway.datapath.install import FILES, OBJECTS
from clearway.datapath.loader import read_layouts
from clearway.instance import Instance
from clearway.linux.memory import available_bytes, possible_cpus
from clearway.model import Config, ConfigError, Conntrack, parse_config
from clearway.model.sizes import FLOW_SLOTS, bucket_bytes, buckets_for, flows_in
from tests.unit.fake_tables import FakeDatapath
from tests.unit.test_compile import Sizes

MIB = 1 << 20
FAMILIES = (4, 6)


def configured(max_flows: int, **limits: int) -> Config:
    words = ", ".join(f"{name}: {size}" for name, size in limits.items())
    return parse_config(f"conntrack: {{max_flows: {max_flows}}}\nlimits: {{{words}}}")


# ---- what is told ----


def test_memory_grows_with_what_is_configured() -> None:
    small = estimate_memory(Config(), 1)
    large = estimate_memory(configured(4_000_000, wheel_slots=9_000_000), 8)
    assert small.empty_bytes < large.empty_bytes
    assert small.full_bytes < large.full_bytes
    assert str(small) == "60 MiB when loaded, up to 69 MiB with all tables full"


@pytest.mark.parametrize("cpus", range(1, 49))
def test_default_data_path_takes_less_than_64_mib(cpus: int) -> None:
    assert estimate_memory(Config(), cpus).empty_bytes < 64 * MIB


@pytest.mark.parametrize("family", FAMILIES)
def test_flow_table_takes_all_of_its_memory_at_once(family: int) -> None:
    table = next(t for t in estimate_memory(configured(1_048_576)).tables if t.name == f"flow{family}_v3")
    assert table.rows == buckets_for(1_048_576)
    assert table.empty_bytes == table.full_bytes
    # Two entries a connection of one line (IPv4) or two (IPv6); one more of 8 or 15 for marks; 80 % full.
    entries = 2 * 1_048_576 * 64 * {4: 1, 6: 2}[family]
    assert table.full_bytes == pytest.approx(entries * {4: 8 / 7, 6: 15 / 14}[family] / 0.8, rel=0.001)


@given(st.integers(1024, 67_108_864))
def test_flow_table_holds_its_connections_when_four_fifths_are_full(flows: int) -> None:
    buckets = buckets_for(flows)
    assert 2 * flows <= 0.8 * FLOW_SLOTS * buckets < 2 * flows + 0.8 * FLOW_SLOTS
    assert flows_in(buckets) >= flows > flows_in(buckets - 1)


@pytest.mark.parametrize(("count", "text"), [(1, "1 MiB"), (80 << 20, "80 MiB"), (1536 << 20, "1.5 GiB")])
def test_megabytes(count: int, text: str) -> None:
    assert megabytes(count) == text


# ---- the figures are those of the data path ----


def test_sizes_are_those_that_types_h_asserts() -> None:
    header = (Path(__file__).parents[2] / "bpf/types.h").read_text()
    found = re.findall(r'sizeof\(struct \w+\) == (\d+), "struct (\w+)"', header)
    structs = {name: int(size) for size, name in found}
    named = {
        name.lower(): size
        for name, size in vars(memory).items()
        if name.isupper() and name.lower() in structs
    }
    assert named == {name: structs[name] for name in named}
    assert {"carried", "claim", "egress", "endpoint", "fragment", "nat", "service", "tuple"} <= set(named)
    assert [bucket_bytes(family) for family in FAMILIES] == [structs["flow4_bucket"], structs["flow6_bucket"]]
    assert f"#define FLOW_SLOTS {FLOW_SLOTS}\n" in header


def test_every_table_of_more_than_a_few_rows_is_counted_with_its_rows() -> None:
    config = configured(4096, services=3, endpoints=5, nats=7, wheel_slots=11)
    estimated = {table.name: table.rows for table in estimate_memory(config, bpf.possible_cpus()).tables}
    sizes = sizes_of(config)
    for path in (OBJECTS / file for file in FILES.values()):
        if not path.exists():
            pytest.skip("the objects are not compiled: make build")
        for name, layout in read_layouts(path)[0].items():
            if name.startswith(("flow4_", "flow6_")):
                assert estimated[name] == buckets_for(4096)
            elif name in estimated:
                assert estimated[name] == sizes.rows().get(name, layout.max_entries)
            else:
                assert layout.max_entries <= 96


def test_smallest_flow_table_is_that_of_the_configuration() -> None:
    (least,) = (word.ge for word in Conntrack.model_fields["max_flows"].metadata if hasattr(word, "ge"))
    assert least == memory.FEWEST_FLOWS


# ---- what is refused ----


def refusal(config: Config, available: int, loaded: Sizes | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        require_memory(config, available, loaded=loaded)
    return str(error.value)


def test_refusal_tells_what_is_needed_what_there_is_and_what_would_fit() -> None:
    assert refusal(configured(4_194_304), 1024 * MIB) == (
        "conntrack.max_flows (line 1): with 4194304 the tables need 2,139 MiB of memory, "
        "1,024 MiB are available; use 1971200 or less"
    )


@given(st.integers(64 * MIB, 2048 * MIB))
def test_what_would_fit_fits_and_is_the_most(available: int) -> None:
    message = refusal(configured(67_108_864), available)
    fitting = int(re.findall(r"use (\d+) or less", message)[0])
    require_memory(configured(fitting), available)
    refusal(configured(fitting + 2 * memory.FEWEST_FLOWS), available)


def test_whole_estimate_is_needed_where_nothing_is_loaded() -> None:
    needed = estimate_memory(Config()).full_bytes
    require_memory(Config(), needed)
    refusal(Config(), needed - 1)


def test_tables_that_are_loaded_need_nothing_more() -> None:
    config = Config()
    require_memory(config, 0, loaded=loaded_for(config))


def test_flow_table_of_another_size_stands_beside_the_one_that_is_loaded() -> None:
    """Connections move from one to the other, so that there must be room for both."""
    loaded = loaded_for(configured(4_194_304))
    require_memory(configured(2_097_152), 1100 * MIB, loaded=loaded)
    assert refusal(configured(2_097_152), 512 * MIB, loaded).startswith(
        "conntrack.max_flows (line 1): with 2097152 the tables besides those that are loaded need 1,052 MiB"
    )


def test_other_tables_need_what_they_grow_by() -> None:
    """These are exchanged by a restart, which first gives back what is there."""
    loaded = loaded_for(configured(65_536, wheel_slots=8 * MIB))
    require_memory(configured(65_536, wheel_slots=16 * MIB), 64 * MIB, loaded=loaded)
    assert refusal(configured(65_536, wheel_slots=16 * MIB), 64 * MIB - 1, loaded) == (
        "limits (line 2): the tables besides those that are loaded need 64 MiB of memory, "
        "63 MiB are available; use lower ones, or free memory"
    )


def test_limits_are_named_when_not_even_the_smallest_flow_table_fits() -> None:
    assert refusal(configured(1024, wheel_slots=16 * MIB), 100 * MIB).startswith(
        "limits (line 2): the tables need"
    )


def test_unknown_memory_refuses_nothing() -> None:
    require_memory(configured(67_108_864), None)


def test_available_memory_is_what_the_kernel_tells() -> None:
    (line,) = re.findall(r"^MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    available = available_bytes()
    assert available is not None
    assert 1 * MIB < available <= int(line) * 1024


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({}, None),
        ({"": ("max", 0, 0)}, None),
        ({"a/b": (90 * MIB, 40 * MIB, 10 * MIB)}, 60 * MIB),
        ({"a": (50 * MIB, 40 * MIB, 0), "a/b": (90 * MIB, 40 * MIB, 0)}, 10 * MIB),
        ({"a": (30 * MIB, 40 * MIB, 5 * MIB), "a/b": ("max", 40 * MIB, 0)}, 0),
        ({"other": (MIB, 0, 0)}, None),
    ],
    ids=["none", "root", "own", "parent", "exceeded", "others"],
)
def test_memory_that_is_available_respects_control_groups(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    limits: dict[str, tuple[int | str, int, int]],
    left: int | None,
) -> None:
    """limits: of each group what may be taken, what is, and how much of that is files that can be dropped."""
    machine, groups = tmp_path / "meminfo", tmp_path / "cgroup"
    machine.write_text("MemTotal: 2048 kB\nMemAvailable:  1048576 kB\n")
    (tmp_path / "mine").write_text("9:name=systemd:/\n0::/a/b\n")
    for group, (limit, used, droppable) in limits.items():
        place = groups / group
        place.mkdir(parents=True, exist_ok=True)
        (place / "memory.max").write_text(f"{limit}\n")
        (place / "memory.current").write_text(f"{used}\n")
        (place / "memory.stat").write_text(f"anon 1\ninactive_file {droppable}\nactive_file 5\n")
    for name, path in (("_MEMINFO", machine), ("_MY_CGROUPS", tmp_path / "mine"), ("_CGROUPS", groups)):
        monkeypatch.setattr(f"clearway.linux.memory.{name}", path)
    assert available_bytes() == (1 << 30 if left is None else left)


@pytest.mark.parametrize(("text", "count"), [("0", 1), ("0-3", 4), ("0-1,4-7,9", 7)])
def test_cpus_that_are_possible_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, count: int
) -> None:
    possible = tmp_path / "possible"
    possible.write_text(text + "\n")
    monkeypatch.setattr("clearway.linux.memory._POSSIBLE_CPUS", possible)
    assert possible_cpus() == count


def loaded_for(config: Config) -> Sizes:
    """Sizes of a data path that was loaded with this configuration."""
    return Sizes(max_flows=config.conntrack.max_flows, **config.limits.model_dump())


# ---- who asks ----

SMALL, LARGE = configured(4096), configured(4_194_304)


class Loaded:
    """What Engine needs of a data path to which nothing was applied yet."""

    def __init__(self, config: Config) -> None:
        self._tables = FakeDatapath()
        self._sizes = sizes_of(config)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tables, name)

    def tables(self) -> list[str]:
        return []

    def most_flows(self) -> int:
        return 0

    def attachments(self) -> list[Attachment]:
        return []

    def sizes(self) -> DatapathSizes:
        return self._sizes

    def close(self) -> None:
        """Nothing is open."""


def test_daemon_refuses_to_plan_and_to_make_what_there_is_no_memory_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "available_bytes", lambda: 1024 * MIB)
    loaded = Loaded(SMALL)
    working = engine.Engine(cast(Datapath, loaded))
    machine = engine.Machine({})
    try:
        for act in (working.plan, working.change):
            with pytest.raises(
                ConfigError, match="need 2,103 MiB of memory, 1,024 MiB are available; use 20"
            ):
                act(SMALL, LARGE, machine)
        assert working.plan(SMALL, configured(1_048_576), machine).count("change") == 1
        assert loaded.active()[0] == 0
    finally:
        working.close()


@pytest.mark.parametrize("loaded", [None, SMALL], ids=["nothing loaded", "loaded"])
def test_plan_without_a_daemon_refuses_what_there_is_no_memory_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loaded: Config | None
) -> None:
    instance = Instance("test", tmp_path / "run", tmp_path / "state", tmp_path / "pins")
    monkeypatch.setattr("clearway.linux.memory.available_bytes", lambda: 1024 * MIB)
    monkeypatch.setattr(Datapath, "is_loaded", lambda _name: loaded is not None)
    monkeypatch.setattr(Datapath, "open", lambda _name: nullcontext(Loaded(loaded or SMALL)))
    with pytest.raises(ConfigError, match=r"^conntrack\.max_flows \(line 1\): with 4194304 the tables"):
        offline.plan(instance, LARGE)
    assert offline.plan(instance, SMALL).memory == estimate_memory(SMALL, possible_cpus())
