# SPDX-License-Identifier: Apache-2.0
"""Size and load time of every program of the data path.

Each compiler's objects go through the verifier here, so a compiler that makes a program too complex shows.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.progress import Progress
from bench.results import Report
from clearway.datapath import bpf, libbpf
from clearway.datapath.loader import load_object
from clearway.lab.run import run

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = ("xdp", "tc", "sweep")
COMPILERS = ("clang", "clang-19")
LOADS = 3


def compiler_version(compiler: str) -> str | None:
    """Such as "clang 14.0.6"; None if it is not installed."""
    if shutil.which(compiler) is None:
        return None
    said = run([compiler, "--version"]).stdout
    found = re.search(r"clang version (\S+)", said)
    return f"clang {found[1] if found else said.splitlines()[0]}"


def sizes(report: Report, progress: Progress) -> None:
    """Compile by each compiler that is there, load each object LOADS times."""
    versions = {version: compiler for compiler in COMPILERS if (version := compiler_version(compiler))}
    for version, compiler in versions.items():
        with progress.step(f"programs compiled by {version}"):
            directory = ROOT / "build/bench" / version.replace(" ", "-")
            build = [sys.executable, str(ROOT / "tools/build_bpf.py"), "--clang", compiler]
            run([*build, "--output", str(directory)], timeout=120)
            _take_up(report, version, [_load(directory / f"{name}.bpf.o") for name in OBJECTS])


# program -> of each load: what the kernel says of it, and the milliseconds it took
Loads = dict[str, list[tuple[libbpf.ProgramInfo, float]]]


def _load(path: Path) -> Loads:
    """Load an object LOADS times."""
    loads: Loads = {}
    for _ in range(LOADS):
        with load_object(path) as loaded:
            for program, load_ms in loaded.load_ms.items():
                info = bpf.program_info(loaded.program_fd(program))
                loads.setdefault(program, []).append((info, load_ms))
    return loads


def _take_up(report: Report, version: str, objects: Sequence[Loads]) -> None:
    found = {f"{program}, {version}": loads for loaded in objects for program, loads in loaded.items()}
    infos = {case: loads[0][0] for case, loads in found.items()}
    # Eight bytes an instruction (struct bpf_insn). Verified: what the verifier walked through, branch by
    # branch.
    report.add("instructions", "", {case: [info.xlated_prog_len // 8] for case, info in infos.items()})
    report.add("verified instructions", "", {case: [info.verified_insns] for case, info in infos.items()})
    report.add("translated", "bytes", {case: [info.xlated_prog_len] for case, info in infos.items()})
    report.add("machine code", "bytes", {case: [info.jited_prog_len] for case, info in infos.items()})
    report.add("load time", "ms", {case: [load_ms for _, load_ms in loads] for case, loads in found.items()})
