# SPDX-License-Identifier: Apache-2.0
"""Raw prototypes of libbpf.so.1 (1.1 or newer) and the structs they take. No logic: bpf.py, btf.py and
loader.py check results and raise.

Integer functions return a negative error number, pointer functions NULL with errno set (libbpf 1.0
conventions). Structs are spelt as in <bpf/bpf.h>, <bpf/libbpf.h> and <linux/bpf.h>; those that begin with
`sz` may be shorter than the library's own, it takes what lies beyond as zero.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from ctypes import (
    POINTER,
    c_bool,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)

from clearway.datapath.errors import DatapathError

SONAME = "libbpf.so.1"

# int (*)(enum libbpf_print_level level, const char *format, va_list ap). A va_list argument is passed as a
# pointer on x86-64 and arm64, which is all that handing it on to vsnprintf needs.
PrintFunction = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)


class OpenOpts(ctypes.Structure):
    """struct bpf_object_open_opts, up to what is used."""

    _fields_ = (
        ("sz", c_size_t),
        ("object_name", c_char_p),
        ("relaxed_maps", c_bool),
        ("pin_root_path", c_char_p),
    )


class LinkUpdateOpts(ctypes.Structure):
    """struct bpf_link_update_opts."""

    _fields_ = (("sz", c_size_t), ("flags", c_uint32), ("old_prog_fd", c_uint32))


class MapCreateOpts(ctypes.Structure):
    """struct bpf_map_create_opts, up to what is used."""

    _fields_ = (
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
    )


class MapBatchOpts(ctypes.Structure):
    """struct bpf_map_batch_opts."""

    _fields_ = (("sz", c_size_t), ("elem_flags", c_uint64), ("flags", c_uint64))


class TestRunOpts(ctypes.Structure):
    """struct bpf_test_run_opts."""

    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class XdpQueryOpts(ctypes.Structure):
    """struct bpf_xdp_query_opts."""

    _fields_ = (
        ("sz", c_size_t),
        ("prog_id", c_uint32),
        ("drv_prog_id", c_uint32),
        ("hw_prog_id", c_uint32),
        ("skb_prog_id", c_uint32),
        ("attach_mode", c_uint8),
    )


class TcHook(ctypes.Structure):
    """struct bpf_tc_hook."""

    _fields_ = (("sz", c_size_t), ("ifindex", c_int), ("attach_point", c_int), ("parent", c_uint32))


class TcOpts(ctypes.Structure):
    """struct bpf_tc_opts."""

    _fields_ = (
        ("sz", c_size_t),
        ("prog_fd", c_int),
        ("flags", c_uint32),
        ("prog_id", c_uint32),
        ("handle", c_uint32),
        ("priority", c_uint32),
    )


class MapInfo(ctypes.Structure):
    """struct bpf_map_info."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", ctypes.c_char * 16),
        ("ifindex", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("btf_id", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_id", c_uint32),
        ("map_extra", c_uint64),
    )


class ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", ctypes.c_char * 16),
        ("ifindex", c_uint32),
        ("gpl_compatible", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("nr_jited_ksyms", c_uint32),
        ("nr_jited_func_lens", c_uint32),
        ("jited_ksyms", c_uint64),
        ("jited_func_lens", c_uint64),
        ("btf_id", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("func_info", c_uint64),
        ("nr_func_info", c_uint32),
        ("nr_line_info", c_uint32),
        ("line_info", c_uint64),
        ("jited_line_info", c_uint64),
        ("nr_jited_line_info", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("jited_line_info_rec_size", c_uint32),
        ("nr_prog_tags", c_uint32),
        ("prog_tags", c_uint64),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
        ("recursion_misses", c_uint64),
        ("verified_insns", c_uint32),
        ("attach_btf_obj_id", c_uint32),
        ("attach_btf_id", c_uint32),
        ("pad", c_uint32),
    )


class LinkInfo(ctypes.Structure):
    """struct bpf_link_info with what XDP and TCX links have of its union (`attach_type`: TCX only); those of
    netfilter have a family and a hook in their place.
    """

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("pad", c_uint32),
        ("ifindex", c_uint32),
        ("attach_type", c_uint32),
        ("rest", c_uint64 * 2),
    )


PROTOTYPES: dict[str, tuple[object, ...]] = {
    # name: (result, *arguments)
    "libbpf_version_string": (c_char_p,),
    "libbpf_set_print": (c_void_p, c_void_p),
    "libbpf_num_possible_cpus": (c_int,),
    # objects
    "bpf_object__open_file": (c_void_p, c_char_p, POINTER(OpenOpts)),
    "bpf_object__load": (c_int, c_void_p),
    "bpf_object__close": (None, c_void_p),
    "bpf_object__btf": (c_void_p, c_void_p),
    "bpf_object__next_program": (c_void_p, c_void_p, c_void_p),
    "bpf_object__next_map": (c_void_p, c_void_p, c_void_p),
    "bpf_program__name": (c_char_p, c_void_p),
    "bpf_program__fd": (c_int, c_void_p),
    "bpf_program__set_autoload": (c_int, c_void_p, c_bool),
    "bpf_map__name": (c_char_p, c_void_p),
    "bpf_map__fd": (c_int, c_void_p),
    "bpf_map__type": (c_int, c_void_p),
    "bpf_map__key_size": (c_uint32, c_void_p),
    "bpf_map__value_size": (c_uint32, c_void_p),
    "bpf_map__max_entries": (c_uint32, c_void_p),
    "bpf_map__map_flags": (c_uint32, c_void_p),
    "bpf_map__btf_key_type_id": (c_uint32, c_void_p),
    "bpf_map__btf_value_type_id": (c_uint32, c_void_p),
    "bpf_map__is_internal": (c_bool, c_void_p),
    "bpf_map__set_max_entries": (c_int, c_void_p, c_uint32),
    "bpf_map__set_autocreate": (c_int, c_void_p, c_bool),
    "bpf_map__reuse_fd": (c_int, c_void_p, c_int),
    "bpf_map__initial_value": (c_void_p, c_void_p, POINTER(c_size_t)),
    # BTF
    "btf__free": (None, c_void_p),
    "btf__new": (c_void_p, c_char_p, c_uint32),
    "btf__load_vmlinux_btf": (c_void_p,),
    "btf__load_module_btf": (c_void_p, c_char_p, c_void_p),
    "btf__load_from_kernel_by_id": (c_void_p, c_uint32),
    "btf__find_by_name_kind": (c_int32, c_void_p, c_char_p, c_uint32),
    "btf__type_cnt": (c_uint32, c_void_p),
    "btf__type_by_id": (c_void_p, c_void_p, c_uint32),
    "btf__resolve_size": (c_int64, c_void_p, c_uint32),
    "btf__name_by_offset": (c_char_p, c_void_p, c_uint32),
    # bpf(2)
    "bpf_obj_pin": (c_int, c_int, c_char_p),
    "bpf_obj_get": (c_int, c_char_p),
    "bpf_obj_get_info_by_fd": (c_int, c_int, c_void_p, POINTER(c_uint32)),
    "bpf_prog_load": (c_int, c_int, c_char_p, c_char_p, c_void_p, c_size_t, c_void_p),
    "bpf_prog_test_run_opts": (c_int, c_int, POINTER(TestRunOpts)),
    "bpf_link_update": (c_int, c_int, c_int, POINTER(LinkUpdateOpts)),
    "bpf_link_detach": (c_int, c_int),
    "bpf_link_get_next_id": (c_int, c_uint32, POINTER(c_uint32)),
    "bpf_link_get_fd_by_id": (c_int, c_uint32),
    "bpf_map_create": (c_int, c_uint32, c_char_p, c_uint32, c_uint32, c_uint32, POINTER(MapCreateOpts)),
    "bpf_map_get_fd_by_id": (c_int, c_uint32),
    "bpf_map_lookup_elem": (c_int, c_int, c_void_p, c_void_p),
    "bpf_map_update_elem": (c_int, c_int, c_void_p, c_void_p, c_uint64),
    "bpf_map_delete_elem": (c_int, c_int, c_void_p),
    "bpf_map_get_next_key": (c_int, c_int, c_void_p, c_void_p),
    "bpf_map_lookup_batch": (
        c_int,
        c_int,
        c_void_p,
        c_void_p,
        c_void_p,
        c_void_p,
        POINTER(c_uint32),
        POINTER(MapBatchOpts),
    ),
    "bpf_map_update_batch": (c_int, c_int, c_void_p, c_void_p, POINTER(c_uint32), POINTER(MapBatchOpts)),
    "bpf_map_delete_batch": (c_int, c_int, c_void_p, POINTER(c_uint32), POINTER(MapBatchOpts)),
    # netlink
    "bpf_xdp_query": (c_int, c_int, c_int, POINTER(XdpQueryOpts)),
    "bpf_tc_hook_create": (c_int, POINTER(TcHook)),
    "bpf_tc_hook_destroy": (c_int, POINTER(TcHook)),
    "bpf_tc_attach": (c_int, POINTER(TcHook), POINTER(TcOpts)),
    "bpf_tc_detach": (c_int, POINTER(TcHook), POINTER(TcOpts)),
    "bpf_tc_query": (c_int, POINTER(TcHook), POINTER(TcOpts)),
}


@functools.cache
def library() -> ctypes.CDLL:
    """libbpf with every prototype declared. Raises DatapathError if it is missing or too old."""
    try:
        loaded = ctypes.CDLL(SONAME, use_errno=True)
    except OSError:
        raise DatapathError(f"{SONAME} is missing: install libbpf 1.1 or newer (Debian: libbpf1)") from None
    for name, (result, *arguments) in PROTOTYPES.items():
        try:
            function = getattr(loaded, name)
        except AttributeError:
            version = f"{loaded.libbpf_major_version()}.{loaded.libbpf_minor_version()}"
            raise DatapathError(
                f"libbpf {version} lacks {name}: install 1.1 or newer (Debian: libbpf1)"
            ) from None
        function.restype = result
        function.argtypes = arguments
    return loaded


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library, for system calls that Python has no function for."""
    return ctypes.CDLL(None, use_errno=True)


@functools.cache
def print_lock() -> threading.RLock:
    """Held while the library's one print callback is somebody's own."""
    return threading.RLock()
