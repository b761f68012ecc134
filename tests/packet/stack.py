# SPDX-License-Identifier: Apache-2.0
"""How much of the stack programs take, as kernel 6.1 counts it: newer ones round less and do not notice."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

STACK_BYTES = 512
FRAME_STEP = 32
"""A frame counts in steps of so many bytes (check_max_stack_depth, kernel/bpf/verifier.c)."""

SECTION = re.compile(r"Disassembly of section (\S+):")
FUNCTION = re.compile(r"([0-9a-f]{16}) <(\w+)>:")
ON_STACK = re.compile(r"r10 [-+] (-?(?:0x[0-9a-f]+|\d+))|r\d+ \+= -(0x[0-9a-f]+|\d+)$")
LOCAL_CALL = re.compile(r" +(\d+):\t85 10 00 00 .*call (-?(?:0x[0-9a-f]+|\d+))")
TEXT = ".text"


@dataclass
class Function:
    """One that is compiled by itself. `calls`: names, and offsets into the section of functions (.text)."""

    depth: int = 0
    calls: set[str | int] = field(default_factory=set)


def functions(path: Path) -> dict[str | int, Function]:
    """Of an object, by name; those of the section of functions by their offset in it as well."""
    listing = subprocess.run(
        ["llvm-objdump", "-dr", str(path)], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str | int, Function] = {}
    section, current, last, called = "", Function(), "", 0
    for line in listing.splitlines():
        if begins := SECTION.match(line):
            section = begins[1]
        elif named := FUNCTION.match(line):
            if not named[2].startswith("LBB"):
                current = found[named[2]] = Function()
                if section == TEXT:
                    found[int(named[1], 16)] = current
        elif "R_BPF_64_32" in line:
            name = line.split()[-1]
            current.calls.discard(called)
            current.calls.add(name if name != TEXT else 8 * (int(last.rsplit(maxsplit=1)[-1], 0) + 1))
        elif line.endswith(f"R_BPF_64_64\t{TEXT}"):
            current.calls.add(int(last.split()[-2], 0))
        else:
            last = line
            call = LOCAL_CALL.match(line)  # within the section, unless a relocation follows
            called = 8 * (int(call[1]) + int(call[2], 0) + 1) if call else -1
            if call:
                current.calls.add(called)
            for deep in ON_STACK.finditer(line):
                below = abs(int(deep[1] or deep[2], 0))
                current.depth = max(current.depth, below if below <= STACK_BYTES else 0)
    return found


def deepest(path: Path) -> dict[str, int]:
    """For each function of an object, bytes of the stack that it takes with all it calls."""
    known = functions(path)
    return {name: _deepest(known, name) for name in known if isinstance(name, str)}


def _deepest(known: Mapping[str | int, Function], name: str | int) -> int:
    @cache
    def walk(name: str | int) -> int:
        function = known.get(name)
        if function is None:  # the kernel's
            return 0
        own = -(-max(function.depth, 1) // FRAME_STEP) * FRAME_STEP
        return own + max((walk(called) for called in function.calls), default=0)

    return walk(name)
