# SPDX-License-Identifier: Apache-2.0
"""Compiles the BPF programs: the one place that knows how. Needs nothing but Python, clang and llvm-strip.

    tools/build_bpf.py              bpf/*.bpf.c   -> src/clearway/datapath/objects/*.bpf.o
    tools/build_bpf.py bench        bench/*.bpf.c -> build/bench/objects/*.bpf.o, and the data path once more
                                    over kernel hash maps (bench/table_hash.h): yardstick_xdp, yardstick_tc
    tools/build_bpf.py tests        tests/flowtable/*.bpf.c -> build/tests/objects/*.bpf.o

`make build`, `make lint` and the wheel's build hook call it. An object is compiled again when its source, a
header, this script or the compiler (noted in NAME.command beside it) has changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATAPATH = Path("bpf/clearway.bpf.c")
HOOKS = ("XDP", "TC")
YARDSTICK = '-DFLOW_TABLE_HEADER="../bench/table_hash.h"'
# Parameters may be unused, as in the kernel: a callback takes what its caller gives, both shims the same.
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-microsoft-anon-tag")
FLAGS = ("-O2", "-g", "-mcpu=v3", "-target", "bpf", "-fms-extensions", *WARNINGS, "-I", "bpf")


@dataclass(frozen=True)
class Unit:
    """One object to make: `source` (relative to the repository) compiled with `defines` into `NAME.bpf.o`."""

    source: Path
    name: str
    defines: tuple[str, ...] = ()


class BuildError(Exception):
    """Something is missing or does not compile; the text is for the user."""


def units_in(directory: str) -> list[Unit]:
    """Every object made from `directory`. The data path's one source becomes two: one for each hook."""
    units = []
    for path in sorted((ROOT / directory).glob("*.bpf.c")):
        source = path.relative_to(ROOT)
        if source == DATAPATH:
            units += [Unit(source, "xdp", ("-DHOOK_XDP",)), Unit(source, "tc", ("-DHOOK_TC",))]
        else:
            units.append(Unit(source, source.name.removesuffix(".bpf.c")))
    if directory == "bench":
        for hook in HOOKS:
            units.append(Unit(DATAPATH, f"yardstick_{hook.lower()}", (f"-DHOOK_{hook}", YARDSTICK)))
    return units


def run(*command: str) -> str:
    """Runs a tool in the repository's root, returns what it printed; raises BuildError with what it said."""
    done = subprocess.run(
        command, check=False, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout.rstrip()}")
    return done.stdout


def find_strip(clang: str) -> str:
    """llvm-strip of the same LLVM as `clang` (clang-19 -> llvm-strip-19), else the one there is."""
    version = clang.removeprefix("clang") if clang.startswith("clang-") else ""
    for name in (f"llvm-strip{version}", "llvm-strip"):
        if shutil.which(name):
            return name
    raise BuildError("llvm-strip is missing: make build as root installs it, or apt-get install llvm")


def command_of(unit: Unit, clang: str) -> tuple[str, ...]:
    return (clang, *FLAGS, *unit.defines, "-c", str(unit.source))


def is_current(unit: Unit, target: Path, recipe: str) -> bool:
    """True when `target` was made from what is there now: newer than each input, by the same recipe."""
    note = target.with_suffix(".command")
    if not target.exists() or not note.exists() or note.read_text() != recipe:
        return False
    source = ROOT / unit.source
    # The programs of tests contain others of the data path, sources and all.
    included = {"bpf": "*.[ch]", "bench": "*.h", str(unit.source.parent): "*.[ch]"}
    inputs = [source, Path(__file__)]
    for directory, pattern in included.items():
        inputs += (ROOT / directory).glob(pattern)
    made = target.stat().st_mtime_ns
    return all(path.stat().st_mtime_ns < made for path in inputs)


def compile_unit(unit: Unit, target: Path, clang: str, strip: str, recipe: str) -> None:
    """Compiles into a temporary file and moves it into place, so that nobody ever loads half an object.

    The object is as old as the begin of its making: what is edited meanwhile is newer.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    began = time.time_ns()
    try:
        run(*command_of(unit, clang), "-o", str(scratch))
        run(strip, "-g", str(scratch))
        os.utime(scratch, ns=(began, began))
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
    target.with_suffix(".command").write_text(recipe)


def build(directory: str, output: Path, clang: str) -> list[Path]:
    """Brings every object of `directory` up to date in `output`; returns those that were compiled now.

    Objects whose source is gone are removed. Raises BuildError.
    """
    units = units_in(directory)
    if not units:
        raise BuildError(f"no {directory}/*.bpf.c to compile")
    if shutil.which(clang) is None:
        raise BuildError(f"{clang} is missing: make build as root installs clang, CLANG=NAME takes another")
    strip = find_strip(clang)
    version = run(clang, "--version").splitlines()[0]
    made = []
    for unit in units:
        target = output / f"{unit.name}.bpf.o"
        recipe = f"{version}\n{' '.join(command_of(unit, clang))}\n"
        if not is_current(unit, target, recipe):
            compile_unit(unit, target, clang, strip, recipe)
            made.append(target)
    wanted = {unit.name for unit in units}
    for path in output.glob("*.bpf.*"):
        if path.name.split(".", 1)[0] not in wanted:
            path.unlink()
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description="Compiles the BPF programs.")
    parser.add_argument("what", nargs="?", choices=("datapath", "bench", "tests"), default="datapath")
    parser.add_argument("--clang", default=os.environ.get("CLANG", "clang"), help="compiler (or $CLANG)")
    parser.add_argument("--output", type=Path, help="directory for the objects, instead of the usual one")
    arguments = parser.parse_args()
    directory, usual = {
        "datapath": ("bpf", ROOT / "src/clearway/datapath/objects"),
        "bench": ("bench", ROOT / "build/bench/objects"),
        "tests": ("tests/flowtable", ROOT / "build/tests/objects"),
    }[arguments.what]
    try:
        made = build(directory, arguments.output or usual, arguments.clang)
    except BuildError as error:
        print(f"clearway: {error}", file=sys.stderr)
        return 1
    for path in made:
        print(f"compiled {os.path.relpath(path)} ({path.stat().st_size:,} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
