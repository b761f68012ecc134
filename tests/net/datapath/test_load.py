# SPDX-License-Identifier: Apache-2.0
"""Loading: everything pinned, adopted by the next process, replaced without a gap, refused without damage."""

from __future__ import annotations

import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clearway.compiler import estimate_memory
from clearway.datapath import Datapath, DatapathError, Sizes, features, libbpf, remove
from clearway.datapath.btf import VARIABLE
from clearway.datapath.calls import SweepResult
from clearway.datapath.flowstore import Moving
from clearway.datapath.install import FILES
from clearway.datapath.pins import BPFFS, Pins
from clearway.model import config_from_data
from clearway.model.sizes import bucket_bytes, buckets_for
from tests.net.datapath.conftest import SIZES, bpftool

STAGES = ("again", "known", "open", "adopt", "icmp", "answer")
FLOW_TABLES = ("flow4_v3", "flow6_v3")
PAGE = 4096


def pinned_under(instance: str) -> set[str]:
    root = BPFFS / instance
    return {str(path.relative_to(root)) for path in root.rglob("*")} if root.exists() else set()


def test_every_program_is_in_the_kernel_as_told(datapath: Datapath) -> None:
    told = {p.name: p for p in datapath.programs()}
    assert {"cw_xdp", "cw_tc", "cw_tc_behind", "sweep", "move", "clock"} <= set(told)
    assert {f"cw_{hook}_{stage}" for hook in ("xdp", "tc") for stage in STAGES} <= set(told)
    for name, program in told.items():
        listed = bpftool("prog", "show", "id", str(program.id))
        assert listed["name"] == name[:15]
        assert listed["tag"] == program.tag
        assert listed["bytes_xlated"] == program.instructions * 8
        assert listed["bytes_jited"] == program.jited_bytes
        assert program.verified > 0
        assert program.load_ms is not None and program.load_ms > 0


def test_every_table_is_in_the_kernel_with_its_size(datapath: Datapath) -> None:
    wanted = SIZES.rows()
    for name in datapath.tables():
        table = datapath.table(name)
        listed = bpftool("map", "show", "pinned", str(BPFFS / datapath.instance / "maps" / name))
        assert listed["name"].removeprefix(VARIABLE) == name
        assert listed["max_entries"] == table.max_entries == wanted.get(name, table.max_entries)
        assert (listed["bytes_key"], listed["bytes_value"]) == (
            table.key_dtype.itemsize,
            table.value_dtype.itemsize,
        )
    assert set(wanted) <= set(datapath.tables())
    assert datapath.sizes() == SIZES


def test_flow_tables_are_in_the_kernel_with_their_size(datapath: Datapath) -> None:
    with datapath.flow_tables() as tables:
        assert [(table.family, table.buckets) for table in tables] == [
            (family, buckets_for(SIZES.max_flows)) for family in (4, 6)
        ]
    for family in (4, 6):
        listed = inner_table(datapath, family)
        assert (listed["type"], listed["max_entries"]) == ("array", buckets_for(SIZES.max_flows))
        assert listed["bytes_value"] == bucket_bytes(family)


def inner_table(datapath: Datapath, family: int) -> dict[str, Any]:
    """The only flow table of a family, as bpftool tells it."""
    outer = str(BPFFS / datapath.instance / "maps" / f"flow{family}_v3")
    (entry,) = (
        one for one in bpftool("map", "dump", "pinned", outer) if "value" in one and "error" not in one
    )
    number = int.from_bytes(bytes(int(octet, 16) for octet in entry["value"]), "little")
    listed = bpftool("map", "show", "id", str(number))
    assert isinstance(listed, dict)
    return listed


def test_tables_take_the_memory_that_was_estimated(datapath: Datapath) -> None:
    """As the kernel accounts for it; kernels before 6.4 do so in another way."""
    named = ("services", "endpoints", "nats", "wheel_slots", "rules")
    limits = {name: getattr(SIZES, name) for name in named}
    config = config_from_data({"conntrack": {"max_flows": SIZES.max_flows}, "limits": limits})
    estimated = {
        table.name: table.empty_bytes
        for table in estimate_memory(config, libbpf.library().libbpf_num_possible_cpus()).tables
    }
    if features.version_of(platform.release()) < (6, 4):
        pytest.skip("this kernel tells no memory of its tables")
    for name in set(datapath.tables()) - set(FLOW_TABLES):
        taken = accounted(datapath.table(name).fd)
        assert taken == pytest.approx(estimated.get(name, 0), abs=2 * PAGE), name
    for family in (4, 6):
        listed = inner_table(datapath, family)
        assert listed["bytes_memlock"] == pytest.approx(estimated[f"flow{family}_v3"], abs=2 * PAGE)


def accounted(fd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith("memlock:"))
    return int(found)


@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_tail_calls_lead_to_the_programs_of_the_same_load(datapath: Datapath, hook: str) -> None:
    ids = {p.name: p.id for p in datapath.programs()}
    listed = bpftool(
        "map", "dump", "pinned", str(BPFFS / datapath.instance / "progs" / "1" / f"{hook}_stages")
    )
    found = {entry["key"][0]: entry["value"] for entry in listed if isinstance(entry["value"], list)}
    for index, stage in enumerate(STAGES):
        number = int.from_bytes(bytes(int(byte, 16) for byte in found[f"0x{index:02x}"]), "little")
        assert number == ids[f"cw_{hook}_{stage}"]


def test_all_objects_share_one_set_of_tables(datapath: Datapath) -> None:
    shared = bpftool("map", "show", "pinned", str(BPFFS / datapath.instance / "maps" / "flow4_v3"))["id"]
    for name in ("sweep", "cw_xdp", "cw_tc"):
        (program,) = (p for p in datapath.programs() if p.name == name)
        assert shared in bpftool("prog", "show", "id", str(program.id))["map_ids"]


def test_restart_adopts_the_running_programs(own_datapath: Datapath, instance: str, objects: Path) -> None:
    before = {p.name: p.id for p in own_datapath.programs()}
    own_datapath.set_epoch(7)
    own_datapath.close()
    with Datapath.load(instance, SIZES, objects=objects) as again:
        assert again.adopted
        assert {p.name: p.id for p in again.programs()} == before
        assert again.active() == (7, 0)
        assert all(p.load_ms is None for p in again.programs())


def test_open_needs_no_object_file_and_knows_the_types(datapath: Datapath) -> None:
    instance = datapath.instance
    with Datapath.open(instance) as other:
        assert other.enum("reason")["REASON_FORWARD_FLOW"] == 0
        assert other.struct("clock_args").names == ("jiffies", "boot_ns")
        assert other.tables() == datapath.tables()
        with pytest.raises(
            DatapathError, match=f"instance {instance} has no table absent_v1: it has active_v2"
        ):
            other.table("absent_v1")
        with pytest.raises(DatapathError, match=f"instance {instance} has no program absent"):
            other.program_fd("absent")


def test_upgrade_loads_anew_over_the_same_tables(
    own_datapath: Datapath, instance: str, changed_objects: Path
) -> None:
    before = {p.name: p.id for p in own_datapath.programs()}
    own_datapath.set_epoch(3)
    with Datapath.load(instance, SIZES, objects=changed_objects) as upgraded:
        assert not upgraded.adopted
        after = {p.name: p.id for p in upgraded.programs()}
        assert set(after) == set(before)
        assert not set(after.values()) & set(before.values())
        assert upgraded.active() == (3, 0)
    assert {name for name in pinned_under(instance) if name.startswith("progs/1")} == set()


def test_other_sizes_are_refused_and_nothing_changes(datapath: Datapath, objects: Path) -> None:
    instance = datapath.instance
    before = pinned_under(instance)
    with pytest.raises(DatapathError) as error:
        Datapath.load(instance, replace(SIZES, services=65, nats=17), objects=objects)
    assert "table service_v2 has max_entries 128, needed 130" in str(error.value)
    assert "table nat_v2 has max_entries 32, needed 34" in str(error.value)
    assert f"`clearway --instance {instance} down`" in str(error.value)
    assert pinned_under(instance) == before


def test_flow_tables_that_are_there_are_kept_by_a_load_that_asks_for_others(
    datapath: Datapath, objects: Path
) -> None:
    """Only resize() exchanges them, because connections have to move."""
    with Datapath.load(datapath.instance, replace(SIZES, max_flows=8192), objects=objects) as again:
        assert again.adopted
        assert again.sizes() == SIZES


def test_flow_tables_of_another_size_are_put_in_force_and_the_old_ones_given_back(
    own_datapath: Datapath,
) -> None:
    assert own_datapath.move_flows() is None
    own_datapath.resize(8192)
    assert own_datapath.sizes() == replace(SIZES, max_flows=8192)
    assert buckets(own_datapath) == [buckets_for(8192)] * 2 + [buckets_for(4096)] * 2
    assert own_datapath.move_flows() == Moving(moved=0, left=0)
    assert buckets(own_datapath) == [buckets_for(8192)] * 2
    assert inner_table(own_datapath, 4)["max_entries"] == buckets_for(8192)
    own_datapath.resize(1024)
    own_datapath.resize(2048)  # what an earlier exchange has left is moved first
    assert own_datapath.sizes().max_flows == 2048
    assert len(own_datapath.flows()) == 0


def test_flow_tables_that_were_made_and_not_put_in_force_are_given_back(datapath: Datapath) -> None:
    before = inner_table(datapath, 4)
    with datapath.resized(8192):
        pass
    assert datapath.sizes() == SIZES
    assert inner_table(datapath, 4) == before


def test_flow_tables_that_there_is_no_memory_for_are_refused(datapath: Datapath) -> None:
    with pytest.raises(DatapathError, match="no memory for the IPv4 flow table: it takes"):
        datapath.resize(1 << 31)
    assert datapath.sizes() == SIZES


def buckets(datapath: Datapath) -> list[int]:
    with datapath.flow_tables() as tables:
        return [table.buckets for table in tables]


def test_object_that_does_not_load_leaves_the_former_load(
    own_datapath: Datapath, instance: str, changed_objects: Path, tmp_path: Path
) -> None:
    before = pinned_under(instance)
    ids = [p.id for p in own_datapath.programs()]
    (changed_objects / FILES["tc"]).write_bytes(b"\x7fELF is not all it takes")
    with pytest.raises(DatapathError, match=r"tc\.bpf\.o is not a usable BPF object"):
        Datapath.load(instance, SIZES, objects=changed_objects)
    assert pinned_under(instance) == before
    with Datapath.open(instance) as still:
        assert [p.id for p in still.programs()] == ids


def test_failed_first_load_leaves_nothing_and_keeps_the_log(
    instance: str, objects: Path, tmp_path: Path
) -> None:
    with pytest.raises(DatapathError, match="does not load") as error:
        Datapath.load(instance, replace(SIZES, endpoints=0), objects=objects, log_dir=tmp_path)
    assert error.value.log_path is not None
    assert "failed to create" in error.value.log_path.read_text()
    assert error.value.log_path.parent == tmp_path
    assert not (BPFFS / instance).exists()


def test_missing_objects_say_what_to_do(instance: str, tmp_path: Path) -> None:
    with pytest.raises(
        DatapathError, match=r"sweep\.bpf\.o is not in .*: compile the objects with `make build`"
    ):
        Datapath.load(instance, SIZES, objects=tmp_path)
    assert not (BPFFS / instance).exists()


def test_unfinished_load_of_a_killed_process_is_cleared_away(
    own_datapath: Datapath, instance: str, objects: Path, changed_objects: Path
) -> None:
    pins = Pins.of(instance)
    (pins.progs / "2").mkdir()
    with Datapath.load(instance, SIZES, objects=objects) as again:
        assert again.adopted
    assert [load.number for load in pins.loads()] == [1]


def test_lost_table_is_made_again_with_new_programs(
    own_datapath: Datapath, instance: str, objects: Path
) -> None:
    Pins.of(instance).maps.joinpath("config_v4").unlink()
    with Datapath.load(instance, SIZES, objects=objects) as repaired:
        assert not repaired.adopted
        assert repaired.table("config_v4").max_entries == 2


def test_remove_leaves_no_trace(own_datapath: Datapath, instance: str) -> None:
    ids = [p.id for p in own_datapath.programs()]
    own_datapath.remove()
    assert not (BPFFS / instance).exists()
    deadline = time.monotonic() + 10  # the kernel empties tables of tail calls in its own time
    while left := {p["id"] for p in bpftool("prog", "show")} & set(ids):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert not Pins.of(instance).root.exists()
    with pytest.raises(
        DatapathError, match=f"instance {instance} is not loaded: start it with `clearway run`"
    ):
        Datapath.open(instance)
    remove(instance)  # once more is no error


def test_instances_do_not_share_anything(datapath: Datapath, instance: str, objects: Path) -> None:
    second = f"{instance}-b"
    try:
        with Datapath.load(second, Sizes(8, 1, 1, 1, 1, 1), objects=objects) as other:
            other.set_epoch(datapath.active()[0] + 5)
            assert datapath.active()[0] != other.active()[0]
            assert not {p.id for p in other.programs()} & {p.id for p in datapath.programs()}
    finally:
        remove(second)
    assert datapath.clock().jiffies > 0


def test_clock_agrees_with_the_system(datapath: Datapath) -> None:
    with Path("/proc/uptime").open() as file:
        uptime = float(file.read().split()[0])
    clock = datapath.clock()
    assert clock.boot_ns / 1e9 == pytest.approx(uptime, abs=2)
    assert (clock.jiffies - (1 << 32)) / clock.hz + 300 == pytest.approx(uptime, abs=5)


def test_epoch_and_mirror_do_not_disturb_each_other(datapath: Datapath) -> None:
    mirror = datapath.active()[1]
    datapath.set_epoch(4)
    datapath.bump_mirror()
    datapath.bump_mirror()
    assert datapath.active() == (4, mirror + 2)
    datapath.set_epoch(5)
    assert datapath.active() == (5, mirror + 2)


def test_sweep_of_empty_tables_finds_nothing(datapath: Datapath) -> None:
    assert datapath.sweep() == datapath.sweep(thorough=True) == SweepResult(0, 0)
    assert [datapath.sweep(0.4).ended for _ in range(6)] == [False, False, True] * 2
    assert len(datapath.flows()) == 0


def test_map_without_layout_is_no_table(own_datapath: Datapath, instance: str) -> None:
    pin = str(BPFFS / instance / "maps" / "foreign")
    shape = ("type", "hash", "key", "4", "value", "4", "entries", "1", "name", "foreign")
    bpftool("map", "create", pin, *shape)
    with pytest.raises(DatapathError, match="table foreign has no BTF: it was not made by clearway"):
        own_datapath.table("foreign")
