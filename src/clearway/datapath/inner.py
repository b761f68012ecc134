# SPDX-License-Identifier: Apache-2.0
"""Arrays inside of arrays (BPF_MAP_TYPE_ARRAY_OF_MAPS): of any size, mapped, and exchanged as a whole."""

from __future__ import annotations

import ctypes

from clearway.datapath import bpf, libbpf
from clearway.datapath.errors import DatapathError
from clearway.datapath.tables import BPF_MAP_TYPE_ARRAY

BPF_F_MMAPABLE = 1 << 10
BPF_F_INNER_MAP = 1 << 12


def create_inner(name: str, value_bytes: int, entries: int, no_memory: str) -> int:
    """The file descriptor of a new array. DatapathError that says `no_memory`, and how much it takes."""
    options = libbpf.MapCreateOpts(
        sz=ctypes.sizeof(libbpf.MapCreateOpts), map_flags=BPF_F_MMAPABLE | BPF_F_INNER_MAP
    )
    fd = libbpf.library().bpf_map_create(
        BPF_MAP_TYPE_ARRAY, name.encode(), 4, value_bytes, entries, ctypes.byref(options)
    )
    if fd < 0:
        raise DatapathError(no_memory.format(f"{value_bytes * entries / (1 << 20):,.0f} MiB"))
    return int(fd)


def put_inner(outer_fd: int, outer_name: str, place: int, fd: int) -> None:
    """From now on packets find this array there."""
    key, value = ctypes.c_uint32(place), ctypes.c_uint32(fd)
    update = libbpf.library().bpf_map_update_elem
    bpf.check(update(outer_fd, ctypes.byref(key), ctypes.byref(value), 0), outer_name)
