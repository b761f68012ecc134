# SPDX-License-Identifier: Apache-2.0
"""Everything about the node's devices and rules that a data path could change: compared before and after."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

from clearway.lab import Lab

SYS_BPF = 321  # x86_64
BPF_PROG_QUERY = 16
BPF_TCX_INGRESS, BPF_TCX_EGRESS = 46, 47


def node_state(lab: Lab) -> dict[str, str]:
    """By topic, as the tools print it."""
    return {
        "links": lab.node.ip("-details", "-oneline", "link", "show"),
        "qdiscs": lab.node.run("tc", "qdisc", "show").stdout,
        "filters": "".join(
            lab.node.run("tc", "filter", "show", "dev", name, "ingress", check=False).stdout
            for name in lab.interfaces
        ),
        "tcx": ", ".join(f"{name} {tcx_programs(lab, name)}" for name in lab.interfaces),
        "rules": lab.node.run("nft", "list", "ruleset").stdout,
        "settings": lab.node.run("grep", "-rs", ".", "/proc/sys/net/ipv4/conf", check=False).stdout,
        "routes": lab.node.ip("route", "show") + lab.node.ip("-6", "route", "show"),
    }


def tcx_programs(lab: Lab, interface: str) -> int:
    """How many programs TCX runs there; bpf(2) itself, because Debian 12's bpftool does not know of them."""
    with lab.node.entered():
        index = socket.if_nametoindex(interface)
        return sum(_query(index, kind) for kind in (BPF_TCX_INGRESS, BPF_TCX_EGRESS))


def _query(index: int, attach_type: int) -> int:
    # union bpf_attr.query: target_ifindex, attach_type, query_flags, attach_flags, prog_ids, prog_cnt, ...
    attributes = ctypes.create_string_buffer(struct.pack("=IIIIQI", index, attach_type, 0, 0, 0, 0), 128)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(SYS_BPF, BPF_PROG_QUERY, attributes, len(attributes)) != 0:
        if ctypes.get_errno() == errno.EINVAL:
            return 0  # a kernel before 6.6, without TCX
        raise OSError(ctypes.get_errno(), "BPF_PROG_QUERY")
    (count,) = struct.unpack_from("=I", attributes, 24)
    return int(count)
