# SPDX-License-Identifier: Apache-2.0
"""Parts of the datapath layer that decide something without a kernel: the clock's rate, sizes, logs, names,
checks.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from clearway.datapath import bpf, features
from clearway.datapath.calls import RATES, WRAP, nearest_rate, rate_from_boot
from clearway.datapath.errors import DatapathError
from clearway.datapath.features import Check, jit_check, version_of
from clearway.datapath.install import Sizes
from clearway.datapath.logs import useful_line, write_log
from clearway.datapath.pins import Pins, mounted_by_ip_netns

# ---- the clock ----


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("uptime_s", [5, 120, 269, 331, 86_400, 30_000_000])
def test_rate_follows_from_jiffies_since_boot(rate: int, uptime_s: int) -> None:
    late_start_s = 0.3  # jiffies begin a little after the clock
    jiffies = WRAP - 300 * rate + int((uptime_s - late_start_s) * rate)
    assert rate_from_boot(jiffies, uptime_s) == rate


@pytest.mark.parametrize(("measured", "rate"), [(99.2, 100), (244.0, 250), (304.0, 300), (996.0, 1000)])
def test_measured_rate_is_rounded_to_what_kernels_are_built_with(measured: float, rate: int) -> None:
    assert nearest_rate(measured) == rate


# ---- sizes ----


def test_tables_hold_both_epochs() -> None:
    sizes = Sizes(max_flows=1000, services=20, endpoints=300, wheel_slots=4000, nats=5, rules=7)
    assert sizes.rows() == {
        "service_v2": 40,
        "claim_v1": 640,
        "origin_v2": 600,
        "cursor_v1": 20,
        "endpoint_v1": 300,
        "opened_v1": 300,
        "wheel_v1": 4000,
        "nat_v2": 10,
        "rule_v1": 16,
        "named_v1": 8,
        "judged_v1": 8 * bpf.possible_cpus(),
    }
    assert Sizes.of_tables({**sizes.rows(), "active_v2": 1}, 1000) == sizes


# ---- logs ----

VERIFIER_LOG = """\
libbpf: prog 'cw_xdp_known': BPF program load failed: Permission denied
libbpf: prog 'cw_xdp_known': -- BEGIN PROG LOAD LOG --
0: R1=ctx(off=0,imm=0) R10=fp0
; void *data = (void *)(long)x->data;
0: (61) r2 = *(u32 *)(r1 +0)          ; R1=ctx(off=0,imm=0) R2_w=pkt(off=0,r=0,imm=0)
; return *(__u8 *)data; @ parse.h:23
1: (71) r0 = *(u8 *)(r2 +0)
invalid access to packet, off=0 size=1, R2(id=0,off=0,r=0)
R2 offset is outside of the packet
processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
-- END PROG LOAD LOG --
libbpf: prog 'cw_xdp_known': failed to load: -13
libbpf: failed to load object '/x/xdp.bpf.o'
"""
TOO_LARGE_LOG = """\
libbpf: prog 'cw_tc': BPF program load failed: Argument list too long
libbpf: prog 'cw_tc': -- BEGIN PROG LOAD LOG --
9: (85) call bpf_map_lookup_elem#1    ; R0=map_value_or_null(id=2,off=0,ks=4,vs=8,imm=0)
from 9 to 12: R0=0 R6=ctx(off=0,imm=0)
; fib->tot_len = n; @ route.h:20
BPF program is too large. Processed 1000001 insn
processed 1000001 insns (limit 1000000) max_states_per_insn 37 total_states 1 peak_states 2 mark_read 3
verification time 912345 usec
stack depth 64+128
-- END PROG LOAD LOG --
"""
MAP_LOG = """\
libbpf: Error in bpf_create_map_xattr(claim_v1):Invalid argument(-22). Retrying without BTF.
libbpf: map 'claim_v1': failed to create: Invalid argument(-22)
libbpf: failed to load object '/x/xdp.bpf.o'
"""


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (
            VERIFIER_LOG,
            "cw_xdp_known: R2 offset is outside of the packet at `return *(__u8 *)data; @ parse.h:23`",
        ),
        (
            TOO_LARGE_LOG,
            "cw_tc: BPF program is too large. Processed 1000001 insn at `fib->tot_len = n; @ route.h:20`",
        ),
        (MAP_LOG, "map 'claim_v1': failed to create: Invalid argument(-22)"),
        ("", "libbpf said nothing"),
    ],
    ids=["verifier", "too large", "map", "empty"],
)
def test_the_useful_line_of_a_log(log: str, line: str) -> None:
    assert useful_line(log) == line


def test_whole_log_is_kept_and_named_in_the_error(tmp_path: Path) -> None:
    path = write_log("xdp.bpf.o", VERIFIER_LOG, tmp_path / "new")
    assert path.read_text() == VERIFIER_LOG
    assert path.stat().st_mode & 0o077 == 0
    error = DatapathError("xdp.bpf.o does not load", path)
    assert (str(error), error.log_path) == (f"xdp.bpf.o does not load (whole log: {path})", path)


# ---- names of pins ----


@pytest.mark.parametrize("name", ["", "a/b", "..", "with.dot", "x" * 65, "a b"])
def test_instance_names_that_bpffs_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(DatapathError, match="instance name"):
        Pins.of(name)


def test_interface_names_with_dots_are_pinned_and_read_back(tmp_path: Path) -> None:
    pins = Pins.of("x", tmp_path)
    for name in ("eth0", "eth0.10", "a.b.c"):
        pins.interface(name).mkdir(parents=True)
        assert "." not in pins.interface(name).name
    assert pins.interfaces() == ["a.b.c", "eth0", "eth0.10"]


@pytest.mark.parametrize("name", ["", "a/b", "a:b"])
def test_what_is_no_interface_name_is_refused(name: str) -> None:
    with pytest.raises(DatapathError, match="is not the name of an interface"):
        Pins.of("x").interface(name)


def test_newest_load_is_the_last_whole_one(tmp_path: Path) -> None:
    pins = Pins.of("x", tmp_path)
    for number, mark in ((2, "made:aa"), (10, "made:bb"), (11, None)):
        directory = pins.progs / str(number)
        directory.mkdir(parents=True)
        if mark:
            (directory / mark).mkdir()
    assert [load.number for load in pins.loads()] == [2, 10, 11]
    newest = pins.newest()
    assert newest is not None
    assert (newest.number, newest.fingerprint) == (10, "bb")


# ---- mounts ----

ROOT = "22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"


@pytest.mark.parametrize(
    ("sys", "expected"),
    [
        ("23 22 0:21 / /sys rw,nosuid shared:2 - sysfs sysfs rw\n", False),
        ("23 22 0:21 / /sys rw,nosuid - sysfs none rw\n", False),
        ("23 22 0:21 / /sys rw,relatime - sysfs blue rw\n", True),
        ("23 22 0:21 / /mnt rw,relatime - sysfs blue rw\n", False),
        ("23 22 0:21 / /sys rw,relatime - tmpfs blue rw\n", False),
    ],
)
def test_mounts_of_ip_netns_exec_bear_the_name_of_the_namespace(
    tmp_path: Path, sys: str, expected: bool
) -> None:
    (tmp_path / "blue").touch()
    assert mounted_by_ip_netns(ROOT + sys, names=tmp_path) is expected


# ---- checks ----


@pytest.mark.parametrize(("compiles", "ok"), [(True, True), (False, False), (None, True)])
def test_only_a_program_that_is_interpreted_asks_for_the_jit(compiles: bool | None, ok: bool) -> None:
    check = jit_check(compiles)
    assert check.ok is ok
    assert "unknown" in check.detail or compiles is not None


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("6.1.0-21-amd64", (6, 1)),
        ("6.18.44", (6, 18)),
        ("v1.1.2", (1, 1)),
        ("10.0-rc1", (10, 0)),
        ("next", (0, 0)),
    ],
)
def test_versions_are_compared_as_numbers(text: str, version: tuple[int, int]) -> None:
    assert version_of(text) == version


def test_everything_missing_is_said_at_once_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        Check("kernel", False, True, "Linux 5.10.0", "Linux 6.1 or newer is needed"),
        Check("libbpf", True, True, "1.1", "libbpf 1.1 or newer is needed"),
        Check("privileges", False, True, "CAP_BPF missing", "run as root"),
    ]
    monkeypatch.setattr(features, "must_haves", lambda: found)
    with pytest.raises(DatapathError) as error:
        features.require()
    assert str(error.value) == (
        "the data path cannot be loaded here: kernel: Linux 5.10.0, Linux 6.1 or newer is needed; "
        "privileges: CAP_BPF missing, run as root"
    )


def test_every_check_says_what_was_found_and_what_follows() -> None:
    found = features.checks()
    assert all(check.name and check.detail and check.fallback for check in found)
    assert len({check.name for check in found}) == len(found)
    assert {"kernel", "libbpf", "TCX", "kernel context", "IPv4 forwarding", "nft"} <= {c.name for c in found}


@pytest.mark.parametrize("lacking", ["context", "nft", "conntrack"])
def test_what_carrying_linux_connections_lacks_is_named(lacking: str) -> None:
    there = dict.fromkeys(("context", "nft", "conntrack"), True)
    assert features.adoption_check(**there).ok
    check = features.adoption_check(**{**there, lacking: False})
    words = {"context": "bpf_cast_to_kern_ctx", "nft": "nft.base_seq", "conntrack": "bpf_xdp_ct_lookup"}
    assert (check.ok, check.needed) == (False, False)
    assert check.detail.startswith(f"no {words[lacking]}")
    assert check.fallback.startswith("`clearway up` makes nothing faster")


@pytest.mark.parametrize("built_in", [True, False], ids=["built-in", "module"])
def test_connections_are_handed_over_only_where_nat_is_built_in(
    built_in: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the verifier the types of nf_nat as a module are not those of nf_conntrack."""

    class Types:
        def __init__(self, *functions: str) -> None:
            self._functions = functions

        def find(self, name: str, _kind: int) -> int | None:
            return 1 if name in self._functions else None

        def of_module(self, name: str) -> AbstractContextManager[Types]:
            return nullcontext({"nf_nat": Types(give), "nf_conntrack": Types(ask)}[name])

    ask, give = "bpf_xdp_ct_lookup", "bpf_ct_set_nat_info"
    kernel = Types(ask, give) if built_in else Types()
    monkeypatch.setattr("clearway.datapath.features.Btf.of_kernel", lambda: nullcontext(kernel))
    assert (features.has_conntrack(), features.has_handover()) == (True, built_in)


def test_old_kernel_is_refused_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: "5.10.0-30-amd64")
    (kernel, *_) = features.must_haves()
    assert (kernel.ok, kernel.needed, kernel.detail) == (False, True, "Linux 5.10.0-30-amd64")
