# SPDX-License-Identifier: Apache-2.0
"""Loads one compiled object (NAME.bpf.o) with libbpf: sizes, constants and shared maps set, then into the
kernel.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clearway.datapath import bpf, libbpf
from clearway.datapath.btf import VARIABLE, Btf, MapLayout, map_layout
from clearway.datapath.errors import DatapathError, reason
from clearway.datapath.logs import captured_log, useful_line, write_log

VERSIONED = re.compile(r"_v\d+$")


@dataclass
class LoadedObject:
    """A loaded object's programs and maps by name, as file descriptors that live until close().

    `load_ms` is how long the kernel took for each program: verification and JIT.
    """

    path: Path
    handle: int
    programs: dict[str, int]
    maps: dict[str, int]
    load_ms: dict[str, float] = field(default_factory=dict)

    def program_fd(self, name: str) -> int:
        """KeyError-free: DatapathError names what the object has."""
        if name not in self.programs:
            raise DatapathError(f"{self.path.name} has no program {name}: it has {', '.join(self.programs)}")
        return self.programs[name]

    def map_fd(self, name: str) -> int:
        if name not in self.maps:
            raise DatapathError(f"{self.path.name} has no map {name}: it has {', '.join(self.maps)}")
        return self.maps[name]

    def enum(self, name: str) -> dict[str, int]:
        """Enumerators by name, as the object was compiled with."""
        return _types(self.handle).enum(name)

    def close(self) -> None:
        """Closes every file descriptor; what is pinned or attached stays."""
        if self.handle:
            libbpf.library().bpf_object__close(self.handle)
        self.handle = 0
        self.programs.clear()
        self.maps.clear()

    def __enter__(self) -> LoadedObject:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_object(path: Path) -> int:
    """libbpf's handle of an object file, opened and not loaded: needs no privileges. The caller closes it."""
    if not path.exists():
        raise DatapathError(f"{path.name} is not in {path.parent}: compile the objects with `make build`")
    options = libbpf.OpenOpts(sz=ctypes.sizeof(libbpf.OpenOpts))
    with captured_log() as log:
        handle = libbpf.library().bpf_object__open_file(os.fsencode(path), ctypes.byref(options))
    if not handle:
        raise DatapathError(f"{path.name} is not a usable BPF object: {useful_line(''.join(log))}")
    return int(handle)


def read_layouts(path: Path) -> tuple[dict[str, MapLayout], set[str]]:
    """Layouts of the tables of an object file, and the names of its constants; nothing is loaded.

    A table carries the version of its layout in its name ("flow4_v3") and is shared; maps without one are the
    object's own business.
    """
    handle = open_object(path)
    try:
        types = _types(handle)
        tables = {
            name: _layout(types, name, entry)
            for name, entry in _maps(handle).items()
            if VERSIONED.search(name)
        }
        return tables, set(types.variables(".rodata"))
    finally:
        libbpf.library().bpf_object__close(handle)


def load_object(
    path: Path,
    *,
    max_entries: Mapping[str, int] | None = None,
    rodata: Mapping[str, int | bool] | None = None,
    reuse: Mapping[str, int] | None = None,
    programs: Collection[str] | None = None,
    log_dir: Path | None = None,
) -> LoadedObject:
    """Loads an object into the kernel.

    max_entries: sizes of maps by name. rodata: values of `const volatile` globals by name. reuse: file
    descriptors of maps to use instead of new ones. programs: load only these, and no map of the object's
    own (default: all). DatapathError with the line of libbpf's or the verifier's log that matters; the
    whole log goes to `log_dir`.
    """
    library = libbpf.library()
    handle = open_object(path)
    with captured_log() as log:
        try:
            _prepare(handle, path, max_entries or {}, rodata or {}, reuse or {})
            if programs is not None:
                _restrict(handle, path, programs)
            bpf.check(library.bpf_object__load(handle))
            return _loaded(handle, path, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        except OSError as error:
            library.bpf_object__close(handle)
            text = "".join(log)
            kept = write_log(path.name, text, log_dir) if text else None
            said = useful_line(text) if text else reason(error)
            raise DatapathError(f"{path.name} does not load: {said}", kept) from None
        except BaseException:
            library.bpf_object__close(handle)
            raise


# ---- before loading ----


def _types(handle: int) -> Btf:
    return Btf(bpf.check_pointer(libbpf.library().bpf_object__btf(handle), "object without BTF"), owned=False)


def _programs(handle: int) -> dict[str, int]:
    """libbpf's handles of an object's programs, by name."""
    found, entry = {}, None
    while entry := libbpf.library().bpf_object__next_program(handle, entry):
        found[libbpf.library().bpf_program__name(entry).decode()] = entry
    return found


def _maps(handle: int) -> dict[str, int]:
    """libbpf's handles of an object's maps, by name; of the compiler's own data sections as ".rodata" and
    so on.
    """
    library = libbpf.library()
    found, entry = {}, None
    while entry := library.bpf_object__next_map(handle, entry):
        name = library.bpf_map__name(entry).decode()
        if library.bpf_map__is_internal(entry):
            name = name[name.index(".") :]  # libbpf puts the object's name in front
            name = name.removeprefix(VARIABLE)
        found[name] = entry
    return found


def _layout(types: Btf, name: str, entry: int) -> MapLayout:
    library = libbpf.library()
    return map_layout(
        types,
        name=name,
        type_ids=(library.bpf_map__btf_key_type_id(entry), library.bpf_map__btf_value_type_id(entry)),
        sizes=(library.bpf_map__key_size(entry), library.bpf_map__value_size(entry)),
        shape=(
            library.bpf_map__type(entry),
            library.bpf_map__map_flags(entry),
            library.bpf_map__max_entries(entry),
        ),
    )


def _prepare(
    handle: int,
    path: Path,
    max_entries: Mapping[str, int],
    rodata: Mapping[str, int | bool],
    reuse: Mapping[str, int],
) -> None:
    """Sets sizes, constants and shared maps of an opened object."""
    maps = _maps(handle)
    for name, count in max_entries.items():
        bpf.check(libbpf.library().bpf_map__set_max_entries(_entry(maps, name, path), count), name)
    for name, fd in reuse.items():
        bpf.check(libbpf.library().bpf_map__reuse_fd(_entry(maps, name, path), fd), name)
    if not rodata:
        return
    variables = _types(handle).variables(".rodata")
    size = ctypes.c_size_t()
    address = bpf.check_pointer(
        libbpf.library().bpf_map__initial_value(_entry(maps, ".rodata", path), ctypes.byref(size)), ".rodata"
    )
    for name, value in rodata.items():
        if name not in variables:
            raise DatapathError(f"{path.name} has no constant {name}: it has {', '.join(variables)}")
        offset, type_id = variables[name]
        data = np.asarray(value, _types(handle).dtype(type_id, name)).tobytes()
        if offset + len(data) > size.value:
            raise DatapathError(f"{path.name}: constant {name} lies outside .rodata")
        ctypes.memmove(address + offset, data, len(data))


def _restrict(handle: int, path: Path, wanted: Collection[str]) -> None:
    """Leaves only the wanted programs to be loaded, and no map but the compiler's own."""
    present = _programs(handle)
    if missing := set(wanted) - set(present):
        raise DatapathError(
            f"{path.name} has no program {', '.join(sorted(missing))}: it has {', '.join(present)}"
        )
    for name, entry in present.items():
        bpf.check(libbpf.library().bpf_program__set_autoload(entry, name in wanted), name)
    for name, entry in _maps(handle).items():
        if not name.startswith("."):
            bpf.check(libbpf.library().bpf_map__set_autocreate(entry, False), name)


def _entry(maps: Mapping[str, int], name: str, path: Path) -> int:
    if name not in maps:
        raise DatapathError(f"{path.name} has no map {name}: it has {', '.join(maps)}")
    return maps[name]


# ---- after loading ----


def _loaded(handle: int, path: Path, ended: int) -> LoadedObject:
    """File descriptors of what was loaded, and how long each program took.

    The kernel stamps a program when it begins to load it, libbpf loads them one after the other: a program
    took until the next one's stamp, the last one until `ended` (CLOCK_BOOTTIME, ns).
    """
    library = libbpf.library()
    fds = {name: library.bpf_program__fd(entry) for name, entry in _programs(handle).items()}
    programs = {name: fd for name, fd in fds.items() if fd >= 0}
    maps = {name: fd for name, entry in _maps(handle).items() if (fd := library.bpf_map__fd(entry)) >= 0}
    stamps = sorted((bpf.program_info(fd).load_time, name) for name, fd in programs.items())
    ends = [stamp for stamp, _ in stamps[1:]] + [ended]
    load_ms = {name: (end - stamp) / 1e6 for (stamp, name), end in zip(stamps, ends, strict=True)}
    return LoadedObject(path, handle, programs, maps, load_ms)
