# SPDX-License-Identifier: Apache-2.0
"""Building: what compiles the data path, and what a wheel carries."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """\
#define SEC(name) __attribute__((section(name), used))
#include "answer.h"
SEC("xdp") int program(void *context) { return context ? ANSWER : 0; }
SEC("license") char terms[] = "Dual BSD/GPL";
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository of its own with the real compile script, one header and one program for both hooks."""
    for directory in ("tools", "bpf"):
        (tmp_path / directory).mkdir()
    shutil.copy(ROOT / "tools/build_bpf.py", tmp_path / "tools")
    (tmp_path / "bpf/answer.h").write_text("#define ANSWER 1\n")
    (tmp_path / "bpf/clearway.bpf.c").write_text(PROGRAM)
    return tmp_path


def compile_in(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/build_bpf.py", *arguments]
    return subprocess.run(command, cwd=project, check=False, text=True, capture_output=True)


def objects_in(project: Path) -> dict[str, int]:
    """Name and time of change of every object."""
    directory = project / "src/clearway/datapath/objects"
    return {path.name: path.stat().st_mtime_ns for path in directory.glob("*.bpf.o")}


@pytest.fixture
def built(project: Path) -> Path:
    """The same, compiled."""
    done = compile_in(project)
    assert done.returncode == 0, done.stderr
    assert len(objects_in(project)) == 2
    return project


def make_newer(path: Path) -> None:
    os.utime(path, ns=(time.time_ns(), time.time_ns()))


def test_one_source_becomes_an_object_for_each_hook(built: Path) -> None:
    assert objects_in(built).keys() == {"xdp.bpf.o", "tc.bpf.o"}


def test_nothing_is_compiled_twice(built: Path) -> None:
    before = objects_in(built)
    done = compile_in(built)
    assert (done.returncode, done.stdout) == (0, "")
    assert objects_in(built) == before


@pytest.mark.parametrize("changed", ["bpf/answer.h", "bpf/clearway.bpf.c", "tools/build_bpf.py"])
def test_change_of_an_input_compiles_again(built: Path, changed: str) -> None:
    before = objects_in(built)
    make_newer(built / changed)
    compile_in(built)
    after = objects_in(built)
    assert all(after[name] > before[name] for name in before)


def test_object_without_source_goes(built: Path) -> None:
    shutil.copy(built / "bpf/clearway.bpf.c", built / "bpf/old.bpf.c")
    compile_in(built)
    assert "old.bpf.o" in objects_in(built)
    (built / "bpf/old.bpf.c").unlink()
    compile_in(built)
    assert objects_in(built).keys() == {"xdp.bpf.o", "tc.bpf.o"}


def test_warning_is_an_error_and_leaves_the_last_object(built: Path) -> None:
    before = objects_in(built)
    (built / "bpf/clearway.bpf.c").write_text(PROGRAM + "static int unused;\n")
    done = compile_in(built)
    assert done.returncode == 1
    assert "unused variable" in done.stderr
    assert "Traceback" not in done.stderr
    assert objects_in(built) == before


def test_missing_compiler_is_said_in_one_line(project: Path) -> None:
    done = compile_in(project, "--clang", "clang-0")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "clearway: clang-0 is missing: make build as root installs clang, CLANG=NAME takes another"
    ]


def test_wheel_is_pure_and_carries_the_data_path(tmp_path: Path) -> None:
    uv = [str(Path(sys.prefix) / "bin/uv"), "--quiet", "--offline"]
    build = [
        *uv,
        "build",
        "--wheel",
        "--no-build-isolation",
        "--python",
        sys.executable,
        "--out-dir",
        str(tmp_path),
    ]
    subprocess.run([*build, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")

    venv.create(tmp_path / "user", with_pip=False, symlinks=True)
    python = str(tmp_path / "user/bin/python")
    subprocess.run([*uv, "pip", "install", "--python", python, "--no-deps", str(wheel)], check=True)
    (package,) = (tmp_path / "user/lib").glob("python3*/site-packages/clearway")
    for name in ("xdp", "tc", "sweep"):
        installed = package / f"datapath/objects/{name}.bpf.o"
        assert installed.read_bytes() == (ROOT / f"src/clearway/datapath/objects/{name}.bpf.o").read_bytes()
    assert (package / "lab/quickstart.yaml").read_bytes() == (ROOT / "examples/quickstart.yaml").read_bytes()
    assert (tmp_path / "user/bin/clearway").exists()


def test_lock_names_no_registry_and_pins_everything_by_hash() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert not [line for line in lines if "://" in line]
    pinned = [line for line in lines if "==" in line and not line.startswith(" ")]
    followed = [lines[lines.index(line) + 1].strip() for line in pinned]
    assert len(pinned) > 20
    assert all(line.startswith("--hash=sha256:") for line in followed)
