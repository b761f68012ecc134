# SPDX-License-Identifier: Apache-2.0
"""bpf(2) as typed functions: file descriptors, numbers and paths in, OSError out. Tables have their own file.

libbpf's wrappers where it has them; the system call itself for what libbpf 1.1 lacks (TCX links).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_uint32
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clearway.datapath import libbpf

# enum bpf_cmd
BPF_PROG_QUERY = 16
BPF_LINK_CREATE = 28
# enum bpf_prog_type
BPF_PROG_TYPE_SCHED_CLS = 3
BPF_PROG_TYPE_XDP = 6
# enum bpf_attach_type
BPF_XDP = 37
BPF_TCX_INGRESS = 46  # since 6.6
BPF_TCX_EGRESS = 47
# enum bpf_link_type
BPF_LINK_TYPE_NETFILTER = 10  # since 6.4
# <linux/bpf_mprog.h>
BPF_MPROG_MAX = 64
# <linux/if_link.h>
XDP_FLAGS_SKB_MODE = 1 << 1
XDP_FLAGS_DRV_MODE = 1 << 2
XDP_ATTACHED_DRV = 1
# <linux/membarrier.h>
MEMBARRIER_CMD_GLOBAL = 1
# System call numbers: (bpf, membarrier)
SYSCALLS = {"x86_64": (321, 324), "aarch64": (280, 283), "riscv64": (280, 283)}

Info = TypeVar("Info", libbpf.MapInfo, libbpf.ProgramInfo, libbpf.LinkInfo)


class LinkCreate(ctypes.Structure):
    """The struct `link_create` of union bpf_attr, without options."""

    _fields_ = (
        ("prog_fd", c_uint32),
        ("target_ifindex", c_uint32),
        ("attach_type", c_uint32),
        ("flags", c_uint32),
        ("options", ctypes.c_uint64 * 8),
    )


class ProgramQuery(ctypes.Structure):
    """The struct `query` of union bpf_attr."""

    _fields_ = (
        ("target_ifindex", c_uint32),
        ("attach_type", c_uint32),
        ("query_flags", c_uint32),
        ("attach_flags", c_uint32),
        ("prog_ids", ctypes.c_uint64),
        ("count", c_uint32),
        ("pad", c_uint32),
        ("flags_and_links", ctypes.c_uint64 * 3),
        ("revision", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class NetfilterLink:
    """family: NFPROTO_IPV4 or NFPROTO_IPV6. hook: enum nf_inet_hooks."""

    family: int
    hook: int


def check(result: int, what: str = "") -> int:
    """Passes on what libbpf returned, or raises the OSError that a negative number stands for."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), what or None)
    return result


def possible_cpus() -> int:
    return check(libbpf.library().libbpf_num_possible_cpus())


def check_pointer(pointer: int | None, what: str = "") -> int:
    """Passes on a pointer that libbpf returned, or raises the OSError that NULL and errno stand for."""
    if not pointer:
        number = ctypes.get_errno() or errno.EINVAL
        raise OSError(number, os.strerror(number), what or None)
    return pointer


def syscall(index: int, *arguments: Any) -> int:
    """Makes system call SYSCALLS[machine][index]; returns its result, raises OSError."""
    numbers = SYSCALLS.get(platform.machine())
    if numbers is None:
        raise OSError(errno.ENOSYS, f"system call numbers of {platform.machine()} are not known")
    result = int(libbpf.libc().syscall(numbers[index], *arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# ---- pins ----


def obj_pin(fd: int, path: Path) -> None:
    """Pins a program, map or link. bpffs refuses names that contain a dot (EPERM)."""
    check(libbpf.library().bpf_obj_pin(fd, os.fsencode(path)), str(path))


def obj_get(path: Path) -> int:
    """A new file descriptor of what is pinned at `path`."""
    return check(libbpf.library().bpf_obj_get(os.fsencode(path)), str(path))


@contextmanager
def pinned(path: Path) -> Iterator[int]:
    """The file descriptor of what is pinned at `path`, for the length of a with block."""
    fd = obj_get(path)
    try:
        yield fd
    finally:
        os.close(fd)


def is_link(fd: int) -> bool:
    """Whether the file descriptor is a link (else a program or a map)."""
    name = Path(f"/proc/self/fd/{fd}").readlink().name  # anon_inode:bpf_link, or [bpf_link] in some versions
    return "bpf_link" in name


# ---- what the kernel says about its objects ----


def _info(fd: int, info: Info) -> Info:
    length = c_uint32(ctypes.sizeof(info))
    check(libbpf.library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(length)))
    return info


def map_info(fd: int) -> libbpf.MapInfo:
    return _info(fd, libbpf.MapInfo())


def program_info(fd: int) -> libbpf.ProgramInfo:
    return _info(fd, libbpf.ProgramInfo())


def link_info(fd: int) -> libbpf.LinkInfo:
    """`ifindex` is 0 when the interface of an XDP or TCX link is gone."""
    return _info(fd, libbpf.LinkInfo())


def link_numbers() -> Iterator[int]:
    """Ids of all BPF links of the machine. PermissionError without CAP_SYS_ADMIN."""
    following = c_uint32(0)
    while True:
        result = libbpf.library().bpf_link_get_next_id(following.value, ctypes.byref(following))
        if result == -errno.ENOENT:
            return
        check(result)
        yield following.value


def netfilter_link(number: int) -> NetfilterLink | None:
    """What a link with this id attaches to; None if that is not netfilter. OSError when it is gone."""
    fd = check(libbpf.library().bpf_link_get_fd_by_id(number))
    try:
        info = link_info(fd)
    finally:
        os.close(fd)
    # What an XDP link has of the union are a device and its point: here a family and a hook.
    return NetfilterLink(info.ifindex, info.attach_type) if info.type == BPF_LINK_TYPE_NETFILTER else None


def tcx_programs(ifindex: int, attach_type: int) -> frozenset[int]:
    """Ids of the programs on TCX of a device in the caller's network namespace, by links or without; none
    where the kernel has no TCX (before 6.6) or the device is gone.
    """
    found = (c_uint32 * BPF_MPROG_MAX)()
    attr = ProgramQuery(ifindex, attach_type, prog_ids=ctypes.addressof(found), count=len(found))
    try:
        syscall(0, BPF_PROG_QUERY, ctypes.byref(attr), ctypes.sizeof(attr))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENODEV):
            return frozenset()
        raise
    return frozenset(found[: attr.count])


# ---- programs and links ----


def load_instructions(program_type: int, name: str, instructions: bytes) -> int:
    """Loads a program given as eBPF machine code, for probing. Returns its file descriptor."""
    count = len(instructions) // 8
    load = libbpf.library().bpf_prog_load
    return check(load(program_type, name.encode(), b"GPL", ctypes.c_char_p(instructions), count, None), name)


def link_create(program_fd: int, ifindex: int, attach_type: int, flags: int = 0) -> int:
    """Attaches a program to an interface of the caller's network namespace. Returns the link's file
    descriptor.
    """
    attr = LinkCreate(program_fd, ifindex, attach_type, flags)
    return syscall(0, BPF_LINK_CREATE, ctypes.byref(attr), ctypes.sizeof(attr))


def link_update(link_fd: int, program_fd: int) -> None:
    """Replaces the program of a link: each packet is seen by the old or by the new one."""
    check(libbpf.library().bpf_link_update(link_fd, program_fd, None))


def link_detach(link_fd: int) -> None:
    """Detaches a link at once, whoever else holds it."""
    check(libbpf.library().bpf_link_detach(link_fd))


def wait_for_packets_in_flight() -> None:
    """Returns when no CPU runs a program that was replaced before this call (an RCU grace period)."""
    syscall(1, MEMBARRIER_CMD_GLOBAL, 0, 0)
