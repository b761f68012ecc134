# SPDX-License-Identifier: Apache-2.0
"""What this kernel, machine and process can do: for `clearway doctor`, and for one clear error before
loading.

Kernel features are asked of the kernel (its BTF, or a program of a few instructions), not derived from its
version.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import shutil
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clearway.datapath import bpf, btf, libbpf, pins, test_run
from clearway.datapath.btf import Btf
from clearway.datapath.errors import DatapathError, reason

KERNEL = (6, 1)
LIBBPF = (1, 1)
# <linux/capability.h>
CAP_NET_ADMIN = 12
CAP_SYS_ADMIN = 21
CAP_BPF = 39
# <linux/bpf.h>
BPF_F_PSEUDO_HDR = 1 << 4
BPF_F_IPV6 = 1 << 7
BPF_FUNC_L4_CSUM_REPLACE = 11
# <linux/sockios.h>, <net/if.h>
SIOCGIFFLAGS = 0x8913
IFF_UP = 1
# Opcodes (Documentation/bpf/standardization/instruction-set.rst)
MOV64_IMM, CALL, EXIT = 0xB7, 0x85, 0x95
TOOLS = {
    "ip": "iproute2: needed for the lab and the demo",
    "nft": "nftables: needed for the demo's comparison",
    "ethtool": "ethtool: needed for the lab's offload settings",
}


@dataclass(frozen=True)
class Check:
    """One thing looked at. `needed`: without it nothing loads. `detail`: what was found. `fallback`: what
    happens without it, or what to do when it is needed.
    """

    name: str
    ok: bool
    needed: bool
    detail: str
    fallback: str


def checks() -> list[Check]:
    """Every check; the first ones are those that the later ones build on."""
    return [*must_haves(), *_kernel_features(), *_settings(), *_tools()]


def require() -> None:
    """DatapathError naming everything that is needed and missing, and what to do about each."""
    missing = [check for check in must_haves() if not check.ok]
    if missing:
        said = "; ".join(f"{check.name}: {check.detail}, {check.fallback}" for check in missing)
        raise DatapathError(f"the data path cannot be loaded here: {said}")


# ---- must-haves ----


def must_haves() -> list[Check]:
    return [_kernel_version(), _libbpf_version(), _privileges(), _kernel_btf(), _programs_load(), _bpffs()]


def _kernel_version() -> Check:
    release = platform.release()
    return Check(
        "kernel",
        version_of(release) >= KERNEL,
        True,
        f"Linux {release}",
        f"Linux {KERNEL[0]}.{KERNEL[1]} or newer is needed",
    )


def version_of(text: str) -> tuple[int, int]:
    """Major and minor number at the beginning of a version; (0, 0) if there are none."""
    found = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _libbpf_version() -> Check:
    fallback = f"libbpf {LIBBPF[0]}.{LIBBPF[1]} or newer is needed (Debian: libbpf1)"
    try:
        version = libbpf.library().libbpf_version_string().decode().removeprefix("v")
    except DatapathError as error:
        return Check("libbpf", False, True, str(error), fallback)
    return Check("libbpf", version_of(version) >= LIBBPF, True, version, fallback)


def _privileges() -> Check:
    """CAP_BPF and CAP_NET_ADMIN are what programs need; mounting bpffs needs CAP_SYS_ADMIN, which contains
    CAP_BPF.
    """
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    effective = int(found[1], 16) if found else 0
    lacking = []
    if not effective >> CAP_NET_ADMIN & 1:
        lacking.append("CAP_NET_ADMIN")
    if not (effective >> CAP_BPF & 1 or effective >> CAP_SYS_ADMIN & 1):
        lacking.append("CAP_BPF")
    detail = f"{' and '.join(lacking)} missing" if lacking else "CAP_BPF and CAP_NET_ADMIN"
    return Check("privileges", not lacking, True, detail, "run as root")


def _kernel_btf() -> Check:
    ok = Path("/sys/kernel/btf/vmlinux").exists()
    return Check(
        "kernel BTF",
        ok,
        True,
        "/sys/kernel/btf/vmlinux" if ok else "/sys/kernel/btf/vmlinux is missing",
        "a kernel with CONFIG_DEBUG_INFO_BTF is needed",
    )


def _programs_load() -> Check:
    """Whether the kernel takes an XDP and a TC program at all: CONFIG_BPF_SYSCALL, lockdown, seccomp, ..."""
    fallback = "bpf(2) has to be allowed (container profile, lockdown) and built in"
    try:
        for kind in (bpf.BPF_PROG_TYPE_XDP, bpf.BPF_PROG_TYPE_SCHED_CLS):
            os.close(bpf.load_instructions(kind, "cw_probe", _program(0)))
    except DatapathError as error:
        return Check("BPF programs", False, True, str(error), fallback)
    except OSError as error:
        return Check("BPF programs", False, True, f"refused: {reason(error)}", fallback)
    return Check("BPF programs", True, True, "XDP and TC programs load", fallback)


def _bpffs() -> Check:
    """Loading mounts it where it is missing and will be seen by others: a kernel that can is enough then."""
    mounted = pins.is_mounted()
    if not mounted and pins.in_own_mount_namespace():
        detail = f"not mounted at {pins.BPFFS} in this mount namespace (`ip netns exec` makes one of its own)"
        return Check("BPF filesystem", False, True, detail, "enter by `nsenter --net=/run/netns/NAME`")
    possible = "\tbpf" in Path("/proc/filesystems").read_text()
    detail = f"mounted at {pins.BPFFS}" if mounted else f"not mounted at {pins.BPFFS}, done when loading"
    if not possible:
        detail = "this kernel has no BPF filesystem"
    return Check(
        "BPF filesystem", mounted or possible, True, detail, "a kernel with CONFIG_BPF_SYSCALL is needed"
    )


# ---- kernel features ----


def has_kernel_context() -> bool:
    """Whether a program can reach the packet's network namespace and its generation numbers (kfunc since
    6.2).
    """
    return _in_kernel(_context_in)


def has_nft_generation() -> bool:
    """Whether struct net tells a program which nftables ruleset is in force (since 6.17)."""
    return _in_kernel(lambda types: types.has_member("netns_nftables", "base_seq"))


def has_conntrack() -> bool:
    """Whether a program can ask Linux' conntrack for a connection (since 5.18 on XDP and TC)."""
    return _in_kernel(lambda types: _function_in(types, "nf_conntrack", "bpf_xdp_ct_lookup"))


def has_adoption() -> bool:
    """Whether connections of Linux can be carried: it can be asked for them, and a change of its rules shows
    in the very next packet.
    """
    return has_kernel_context() and has_nft_generation() and has_conntrack()


def has_handover() -> bool:
    """Whether a program can give conntrack a connection with its translation (since 6.1).

    Not where nf_nat is a module: its function takes no connection that one of nf_conntrack has made, because
    for the verifier each module has types of its own (kernel/bpf/btf.c, btf_struct_ids_match).
    """
    return has_conntrack() and _in_kernel(
        lambda types: types.find("bpf_ct_set_nat_info", btf.FUNC) is not None
    )


def has_csum_ipv6_flag() -> bool:
    """Whether bpf_l4_csum_replace knows BPF_F_IPV6 (since 6.16, and stable kernels of mid-2025).

    An offset out of range is refused after the flags were: EFAULT says that they are known, EINVAL that not.
    """
    flags = BPF_F_PSEUDO_HDR | BPF_F_IPV6 | 4
    code = (
        _instruction(MOV64_IMM, 2, imm=0x10000)
        + _instruction(MOV64_IMM, 3)
        + _instruction(MOV64_IMM, 4)
        + _instruction(MOV64_IMM, 5, imm=flags)
        + _instruction(CALL, imm=BPF_FUNC_L4_CSUM_REPLACE)
        + _instruction(EXIT)
    )
    with suppress(OSError):
        fd = bpf.load_instructions(bpf.BPF_PROG_TYPE_SCHED_CLS, "cw_probe", code)
        try:
            return test_run.run_tc(fd, bytes(64)).code == -errno.EFAULT
        finally:
            os.close(fd)
    return False


def has_tcx() -> bool:
    """Whether TC programs attach as links (since 6.6)."""
    return _in_kernel(lambda types: types.find("tcx_link", btf.STRUCT) is not None)


def has_live_frames() -> bool:
    """Whether test runs can send real frames (BPF_F_TEST_XDP_LIVE_FRAMES, since 5.18)."""
    with suppress(OSError):
        fd = bpf.load_instructions(bpf.BPF_PROG_TYPE_XDP, "cw_probe", _program(1))  # XDP_DROP
        try:
            test_run.run_live(fd, bytes(64), ifindex=0, repeat=1)
        finally:
            os.close(fd)
        return True
    return False


def adoption_check(*, context: bool, nft: bool, conntrack: bool) -> Check:
    """What has_adoption() needs, in one row."""
    needs = (
        ("nft.base_seq in struct net (Linux 6.17)", nft),
        ("bpf_cast_to_kern_ctx (Linux 6.2)", context),
        ("bpf_xdp_ct_lookup (nf_conntrack)", conntrack),
    )
    missing = [f"no {what}" for what, there in needs if not there]
    return Check(
        "carrying Linux' connections",
        not missing,
        False,
        ", ".join(missing or [what for what, _there in needs]),
        "`clearway up` makes nothing faster"
        + ("" if nft else "; changes of rules are noticed by netlink, a moment later"),
    )


def _kernel_features() -> list[Check]:
    context, tcx, live = has_kernel_context(), has_tcx(), has_live_frames()
    csum = has_csum_ipv6_flag()
    conntrack = has_conntrack()
    nft = has_nft_generation()
    return [
        Check(
            "kernel context",
            context,
            False,
            "bpf_cast_to_kern_ctx" if context else "no kfunc bpf_cast_to_kern_ctx (Linux 6.2)",
            "route changes reach established flows by netlink events, a moment later",
        ),
        adoption_check(context=context, nft=nft, conntrack=conntrack),
        Check(
            "conntrack kfuncs",
            conntrack,
            False,
            "bpf_xdp_ct_lookup" if conntrack else "no kfunc bpf_xdp_ct_lookup (nf_conntrack not loaded?)",
            "answers to what nftables forwards inwards are told by the packets on their way in alone",
        ),
        Check(
            "TCX",
            tcx,
            False,
            "TC programs attach as links" if tcx else "no TCX (Linux 6.6)",
            "TC programs attach to the clsact qdisc",
        ),
        Check(
            "IPv6 checksum flag",
            csum,
            False,
            "bpf_l4_csum_replace knows BPF_F_IPV6" if csum else "no BPF_F_IPV6 (Linux 6.16)",
            "skb->csum of IPv6 packets is put right by other means",
        ),
        Check(
            "live frames",
            live,
            False,
            "BPF_F_TEST_XDP_LIVE_FRAMES" if live else "no BPF_F_TEST_XDP_LIVE_FRAMES",
            "make bench cannot generate packets in the kernel",
        ),
    ]


def _context_in(types: Btf) -> bool:
    return types.find("bpf_cast_to_kern_ctx", btf.FUNC) is not None and types.has_member(
        "netns_ipv4", "rt_genid"
    )


def _function_in(types: Btf, module: str, name: str) -> bool:
    """Whether the kernel, or this module of it, has the function."""
    if types.find(name, btf.FUNC) is not None:
        return True
    with suppress(OSError), types.of_module(module) as of_module:
        return of_module.find(name, btf.FUNC) is not None
    return False


def _in_kernel(holds: Callable[[Btf], bool]) -> bool:
    """Whether something holds for the running kernel's types; not, if it has none."""
    with suppress(OSError), Btf.of_kernel() as types:
        return holds(types)
    return False


def _instruction(opcode: int, destination: int = 0, imm: int = 0) -> bytes:
    """struct bpf_insn without source register and offset."""
    return struct.pack("BBhi", opcode, destination, 0, imm)


def _program(code: int) -> bytes:
    """A program that returns `code`."""
    return _instruction(MOV64_IMM, 0, imm=code) + _instruction(EXIT)


# ---- settings and tools ----


def _settings() -> list[Check]:
    return [
        jit_check(_compiles()),
        *(
            Check(
                f"{family} forwarding",
                _sysctl(path) == "1",
                False,
                f"{path.replace('/', '.')} = {_sysctl(path) or 'unknown'} in this network namespace",
                f"nothing is routed: sysctl -w {path.replace('/', '.')}=1",
            )
            for family, path in (("IPv4", "net/ipv4/ip_forward"), ("IPv6", "net/ipv6/conf/all/forwarding"))
        ),
        _fragmenting(),
    ]


def _compiles() -> bool | None:
    """Whether the kernel compiles programs; None: it takes none from us. Asked of a program, because
    net.core.bpf_jit_enable shows only in the first network namespace.
    """
    with suppress(OSError, DatapathError):
        fd = bpf.load_instructions(bpf.BPF_PROG_TYPE_XDP, "cw_probe", _program(0))
        try:
            return int(bpf.program_info(fd).jited_prog_len) > 0
        finally:
            os.close(fd)
    return None


def jit_check(compiles: bool | None) -> Check:
    """What it means that programs are compiled, or not; None: unknown."""
    found = {True: "programs are compiled", False: "programs are interpreted", None: "unknown"}[compiles]
    slow = "several times slower: in the host's network namespace, sysctl -w net.core.bpf_jit_enable=1"
    return Check("JIT", compiles is not False, False, found, slow)


def _fragmenting() -> Check:
    """See loopback.py."""
    lost = "what has to be fragmented after it was translated is lost"
    setting = Path("/proc/sys/net/ipv4/conf/lo/accept_local")
    if not _is_up("lo"):
        return Check("fragmenting", False, False, "the loopback device is down", f"{lost}: ip link set lo up")
    return Check(
        "fragmenting",
        _sysctl("net/ipv4/conf/lo/accept_local") == "1" or os.access(setting, os.W_OK),
        False,
        "Linux does it, by way of the loopback device",
        f"{lost}: sysctl -w net.ipv4.conf.lo.accept_local=1, which may not be changed from here",
    )


def _is_up(ifname: str) -> bool:
    """In the caller's network namespace, by its interface's flags (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, suppress(OSError):
        row = fcntl.ioctl(asking, SIOCGIFFLAGS, ifname.encode().ljust(40, b"\0"))
        return bool(int.from_bytes(row[16:18], sys.byteorder) & IFF_UP)
    return False


def _sysctl(path: str) -> str:
    """The value of a sysctl, of the caller's network namespace where it has one; "" if it cannot be read."""
    with suppress(OSError):
        return (Path("/proc/sys") / path).read_text().strip()
    return ""


def _tools() -> list[Check]:
    found = {tool: shutil.which(tool) for tool in TOOLS}
    return [
        Check(tool, bool(found[tool]), False, found[tool] or "not installed", TOOLS[tool]) for tool in TOOLS
    ]
