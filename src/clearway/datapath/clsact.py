# SPDX-License-Identifier: Apache-2.0
"""TC before TCX (kernel 6.6): a cls_bpf filter in direct-action mode on the clsact qdisc, at a place of its
own.
"""

from __future__ import annotations

import ctypes
import errno

from clearway.datapath import bpf, libbpf
from clearway.datapath.errors import DatapathError
from clearway.datapath.interfaces import has_filters
from clearway.datapath.logs import captured_log

# enum bpf_tc_attach_point, enum bpf_tc_flags (<bpf/libbpf.h>)
BPF_TC_INGRESS = 1
BPF_TC_EGRESS = 2
BPF_TC_F_REPLACE = 1
# <linux/pkt_sched.h>: what filters of clsact hang on
TC_H_CLSACT_INGRESS = 0xFFFFFFF2
TC_H_CLSACT_EGRESS = 0xFFFFFFF3
# Before filters that give no priority: the kernel counts those down from 49152 (net/sched/cls_api.c).
PRIORITY = 10
HANDLE = 0xC1EA


def ensure_qdisc(ifindex: int) -> bool:
    """Makes the clsact qdisc unless the interface has one. Returns whether it was made."""
    with captured_log():
        result = libbpf.library().bpf_tc_hook_create(ctypes.byref(_hook(ifindex, BPF_TC_INGRESS)))
    if result == -errno.EEXIST:
        return False
    bpf.check(result)
    return True


def remove_qdisc(ifindex: int) -> None:
    """Removes the clsact qdisc unless it is gone or somebody's filters hang on it."""
    if has_filters(ifindex, TC_H_CLSACT_INGRESS) or has_filters(ifindex, TC_H_CLSACT_EGRESS):
        return
    with captured_log():
        result = libbpf.library().bpf_tc_hook_destroy(
            ctypes.byref(_hook(ifindex, BPF_TC_INGRESS | BPF_TC_EGRESS))
        )
    if result not in (0, -errno.ENOENT, -errno.EINVAL, -errno.ENODEV):
        bpf.check(result)


def program_id(ifindex: int, point: int = BPF_TC_INGRESS) -> int:
    """The id of the program at clearway's place; 0 if there is none. point: enum bpf_tc_attach_point."""
    options = _options()
    with captured_log():
        result = libbpf.library().bpf_tc_query(ctypes.byref(_hook(ifindex, point)), ctypes.byref(options))
    if result in (-errno.ENOENT, -errno.EINVAL, -errno.ENODEV):  # no filter, no qdisc, no interface
        return 0
    bpf.check(result)
    return int(options.prog_id)


def attach(ifindex: int, program_fd: int, replaceable: set[int], point: int = BPF_TC_INGRESS) -> None:
    """Puts the program at clearway's place; replaces, in one step, a program whose id is in `replaceable`."""
    present = program_id(ifindex, point)
    if present and present not in replaceable:
        raise DatapathError(
            f"tc filter pref {PRIORITY} handle {HANDLE:#x} runs another program (id {present}): remove it"
        )
    options = _options()
    options.prog_fd = program_fd
    options.flags = BPF_TC_F_REPLACE if present else 0
    with captured_log():
        result = libbpf.library().bpf_tc_attach(ctypes.byref(_hook(ifindex, point)), ctypes.byref(options))
    bpf.check(result)


def detach(ifindex: int, removable: set[int], point: int = BPF_TC_INGRESS) -> None:
    """Takes the filter away if its program's id is in `removable`; no error if there is none."""
    if program_id(ifindex, point) not in removable:
        return
    with captured_log():
        result = libbpf.library().bpf_tc_detach(ctypes.byref(_hook(ifindex, point)), ctypes.byref(_options()))
    if result != -errno.ENOENT:
        bpf.check(result)


def _hook(ifindex: int, point: int) -> libbpf.TcHook:
    return libbpf.TcHook(sz=ctypes.sizeof(libbpf.TcHook), ifindex=ifindex, attach_point=point)


def _options() -> libbpf.TcOpts:
    return libbpf.TcOpts(sz=ctypes.sizeof(libbpf.TcOpts), handle=HANDLE, priority=PRIORITY)
