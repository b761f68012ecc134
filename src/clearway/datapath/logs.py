# SPDX-License-Identifier: Apache-2.0
"""What libbpf and the kernel's verifier say: collected, kept in a file, and the one line that matters."""

from __future__ import annotations

import ctypes
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clearway.datapath import libbpf

LIBBPF_WARN = 0
# One message can be a whole verifier log, for which libbpf reserves 16 MB.
LOG_BYTES = 16 << 20
# Lines of a verifier log that tell how it walked, not why it stopped (kernel/bpf/verifier.c, log.c).
WALK = re.compile(
    r"^\s*(\d+: |;|from \d+ to|R\d+(_\w+)?=|func#|frame\d|last_idx|regs=|parent |mark_precise|caller:"
    r"|callee:|returning from|to caller|processed \d+ insns|verification time|stack depth|Validating "
    r"|max_states|--|$)"
)


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Collects libbpf's warnings while it lasts. The library has one callback: other threads wait."""
    lines: list[str] = []

    def collect(level: int, text_format: bytes, arguments: int) -> int:
        if level == LIBBPF_WARN:
            buffer = ctypes.create_string_buffer(LOG_BYTES)
            libbpf.libc().vsnprintf(
                buffer, ctypes.c_size_t(LOG_BYTES), text_format, ctypes.c_void_p(arguments)
            )
            lines.append(buffer.value.decode(errors="replace"))
        return 0

    callback = libbpf.PrintFunction(collect)
    with libbpf.print_lock():
        before = libbpf.library().libbpf_set_print(ctypes.cast(callback, ctypes.c_void_p))
        try:
            yield lines
        finally:
            libbpf.library().libbpf_set_print(before)


def useful_line(log: str) -> str:
    """The line of a libbpf or verifier log that says what was wrong, for people."""
    program = re.search(r"^libbpf: prog '(\w+)': BPF program load failed", log, re.MULTILINE)
    verdict = re.search(r"BEGIN PROG LOAD LOG --\n(.*?)-- END PROG LOAD LOG", log, re.DOTALL)
    if verdict:
        said = [line.strip() for line in verdict[1].splitlines() if not WALK.match(line)]
        source = [line.strip(" ;") for line in verdict[1].splitlines() if line.startswith(";")]
        where = f" at `{source[-1]}`" if source else ""
        if said:
            return f"{program[1] if program else 'a program'}: {said[-1]}{where}"
    lines = [
        line.removeprefix("libbpf: ").strip()
        for line in log.splitlines()
        if line.strip() and "Retrying without BTF" not in line  # an attempt, the verdict follows
    ]
    return lines[0] if lines else "libbpf said nothing"


def write_log(name: str, log: str, directory: Path | None) -> Path:
    """Keeps a whole log in a new file of `directory` (default: the system's place for temporary files)."""
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    descriptor, path = tempfile.mkstemp(prefix=f"{name}-", suffix=".log", dir=directory)
    with os.fdopen(descriptor, "w") as file:
        file.write(log)
    return Path(path)
