# SPDX-License-Identifier: Apache-2.0
"""The objects of both compilers pass this kernel's verifier, with and without what newer kernels have."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clearway.datapath import bpf, features
from clearway.datapath.loader import load_object
from clearway.lab.run import patience
from tests.packet.stack import STACK_BYTES, deepest

ROOT = Path(__file__).parents[2]
CONNTRACK = re.compile(r"call (bpf_(?:skb_|xdp_)?ct_\w+)")
OBJECTS = ("xdp", "tc", "sweep")
SIZES = {
    "service_v2": 8,
    "claim_v1": 8,
    "origin_v2": 8,
    "endpoint_v1": 8,
    "opened_v1": 8,
    "cursor_v1": 8,
    "wheel_v1": 64,
    "nat_v2": 8,
    "rule_v1": 8,
    "named_v1": 8,
    "judged_v1": 8,
}


@pytest.fixture(scope="module", params=["clang", "clang-19"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the objects that one compiler makes."""
    compiler = str(request.param)
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    directory = tmp_path_factory.mktemp(compiler)
    build = [sys.executable, "tools/build_bpf.py", "--clang", compiler, "--output", str(directory)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=100 * patience())
    return directory


def asked_of_conntrack(program: int) -> set[str]:
    """Functions of conntrack that a loaded program calls: older kernels have none, and refuse it."""
    number = str(bpf.program_info(program).id)
    listing = ["bpftool", "prog", "dump", "xlated", "id", number]
    return set(CONNTRACK.findall(subprocess.run(listing, capture_output=True, text=True, check=True).stdout))


def kernel_has(name: str) -> bool:
    return next(check.ok for check in features.checks() if check.name == name)


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("newer", [True, False], ids=["all-features", "fallbacks"])
def test_object_passes_the_verifier(compiled: Path, name: str, newer: bool, tmp_path: Path) -> None:
    if newer and not kernel_has("kernel context"):
        pytest.skip("this kernel has no bpf_cast_to_kern_ctx")
    facts = {
        "cw_kernel_context": newer,
        "cw_csum_ipv6_flag": newer and kernel_has("IPv6 checksum flag"),
        "cw_conntrack": newer and kernel_has("conntrack kfuncs"),
        "cw_adoption": newer and features.has_adoption(),
        "cw_handover": newer and features.has_handover(),
    }
    used = SIZES if name != "sweep" else {}
    constants: dict[str, int | bool] = {"cw_hz": 250, **(facts if name != "sweep" else {})}
    loaded = load_object(compiled / f"{name}.bpf.o", max_entries=used, rodata=constants, log_dir=tmp_path)
    try:
        entry = {"xdp": "cw_xdp", "tc": "cw_tc", "sweep": "sweep"}[name]
        assert loaded.program_fd(entry) > 0
        called = {call for program in loaded.programs.values() for call in asked_of_conntrack(program)}
        assert bool(called) == (facts["cw_conntrack"] and name != "sweep")
    finally:
        loaded.close()


@pytest.mark.parametrize("name", OBJECTS)
def test_stack_is_enough_for_kernels_that_round_more(compiled: Path, name: str) -> None:
    depths = deepest(compiled / f"{name}.bpf.o")
    assert {name: depth for name, depth in depths.items() if depth > STACK_BYTES} == {}
    assert max(depths.values()) > STACK_BYTES / 2  # they were found
