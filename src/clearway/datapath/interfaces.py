# SPDX-License-Identifier: Apache-2.0
"""What the kernel says about an interface that decides where its program goes: driver and XDP features.

Sockets are used, not sysfs: sysfs shows the network namespace it was mounted in, a socket that of the thread.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from clearway.datapath import bpf, libbpf
from clearway.datapath.errors import DatapathError

# <linux/netlink.h>, <linux/genetlink.h>, <linux/netdev.h>, <linux/ethtool.h>, <linux/rtnetlink.h>
NLM_F_REQUEST = 1
NLM_F_ACK = 4
NLM_F_DUMP = 0x300
NLMSG_ERROR = 2
NLMSG_DONE = 3
NETLINK_ROUTE = 0
NETLINK_GENERIC = 16
GENL_ID_CTRL = 16
CTRL_CMD_GETFAMILY = 3
CTRL_ATTR_FAMILY_ID = 1
CTRL_ATTR_FAMILY_NAME = 2
NETDEV_CMD_DEV_GET = 1
NETDEV_A_DEV_IFINDEX = 1
NETDEV_A_DEV_XDP_FEATURES = 3
NETDEV_XDP_ACT_BASIC = 1
NETDEV_XDP_ACT_REDIRECT = 2
NETDEV_XDP_ACT_NDO_XMIT = 4
SIOCETHTOOL = 0x8946
ETHTOOL_GDRVINFO = 3
DRVINFO_BYTES = 196
RTM_GETTFILTER = 46


@dataclass(frozen=True)
class InterfaceFacts:
    """`xdp_native`: the driver runs XDP programs; `xdp_transmit`: it sends frames that XDP redirects to it,
    now (drivers may say so only while they run a program). None: this kernel does not tell (before 6.3).
    """

    ifname: str
    ifindex: int
    driver: str
    xdp_native: bool | None
    xdp_transmit: bool | None


def interface_index(ifname: str) -> int:
    """The index in the caller's network namespace. DatapathError if there is no such interface."""
    try:
        return socket.if_nametoindex(ifname)
    except OSError:
        raise DatapathError(f"there is no interface {ifname} in this network namespace") from None


def interface_exists(ifname: str) -> bool:
    """Whether there is an interface of that name in the caller's network namespace."""
    try:
        return socket.if_nametoindex(ifname) > 0
    except OSError:
        return False


def interface_facts(ifname: str) -> InterfaceFacts:
    """What is known of an interface. DatapathError if there is none of that name."""
    ifindex = interface_index(ifname)
    features = xdp_features(ifindex)
    if features is None:
        return _facts_by_attachment(ifname, ifindex)
    native = NETDEV_XDP_ACT_BASIC | NETDEV_XDP_ACT_REDIRECT
    return InterfaceFacts(
        ifname,
        ifindex,
        driver(ifname),
        xdp_native=features & native == native,
        xdp_transmit=bool(features & NETDEV_XDP_ACT_NDO_XMIT),
    )


def _facts_by_attachment(ifname: str, ifindex: int) -> InterfaceFacts:
    """What can be known where the kernel does not tell: a driver that runs a program in native mode has
    native XDP, and has set up the queues to transmit; only veth needs its peer to take part.
    """
    options = libbpf.XdpQueryOpts(sz=ctypes.sizeof(libbpf.XdpQueryOpts))
    bpf.check(libbpf.library().bpf_xdp_query(ifindex, 0, ctypes.byref(options)), ifname)
    name = driver(ifname)
    if options.attach_mode != bpf.XDP_ATTACHED_DRV:
        return InterfaceFacts(ifname, ifindex, name, None, None)
    return InterfaceFacts(ifname, ifindex, name, True, None if name == "veth" else True)


def driver(ifname: str) -> str:
    """The driver's name as `ethtool -i` shows it; "" if the interface has none."""
    answer = array.array("B", struct.pack("I", ETHTOOL_GDRVINFO).ljust(DRVINFO_BYTES, b"\0"))
    address, _ = answer.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        try:
            fcntl.ioctl(handle, SIOCETHTOOL, struct.pack("16sP", ifname.encode(), address).ljust(40, b"\0"))
        except OSError:
            return ""
    return answer.tobytes()[4:36].split(b"\0")[0].decode(errors="replace")


def xdp_features(ifindex: int) -> int | None:
    """NETDEV_XDP_ACT_* bits by generic netlink; None if the kernel has no `netdev` family (before 6.3)."""
    with _netlink(NETLINK_GENERIC) as handle:
        try:
            name = _attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0")
            family = _ask_generic(handle, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, name)
            kind = int.from_bytes(family[CTRL_ATTR_FAMILY_ID], sys.byteorder)
            index = _attribute(NETDEV_A_DEV_IFINDEX, struct.pack("I", ifindex))
            device = _ask_generic(handle, kind, NETDEV_CMD_DEV_GET, index)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
                return None
            raise
        return int.from_bytes(device[NETDEV_A_DEV_XDP_FEATURES], sys.byteorder)


def has_filters(ifindex: int, parent: int) -> bool:
    """Whether any tc filter hangs on that parent of an interface's qdisc."""
    with _netlink(NETLINK_ROUTE) as handle:
        request = struct.pack("BxxxiIII", 0, ifindex, 0, parent, 0)  # struct tcmsg
        try:
            return any(True for _ in _ask(handle, RTM_GETTFILTER, NLM_F_DUMP, request))
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # no such qdisc
                return False
            raise


# ---- netlink ----


def _netlink(protocol: int) -> socket.socket:
    handle = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    handle.bind((0, 0))
    return handle


def _attribute(kind: int, data: bytes) -> bytes:
    """struct nlattr and its data, padded to 4 bytes."""
    padding = b"\0" * (-len(data) % 4)
    return struct.pack("HH", 4 + len(data), kind) + data + padding


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("HH", data)
        found[kind & 0x3FFF] = data[4:length]
        data = data[max(-(-length // 4) * 4, 4) :]
    return found


def _ask_generic(handle: socket.socket, family: int, command: int, attributes: bytes) -> dict[int, bytes]:
    """The attributes of the one answer to a generic netlink request."""
    request = struct.pack("BBxx", command, 1) + attributes
    answers = list(_ask(handle, family, NLM_F_ACK, request))
    if not answers:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    return _attributes(answers[0][4:])


def _ask(handle: socket.socket, kind: int, flags: int, payload: bytes) -> Iterator[bytes]:
    """Sends a request and yields the payloads of its answers; ends at the dump's end or the
    acknowledgement.
    """
    handle.send(struct.pack("IHHII", 16 + len(payload), kind, NLM_F_REQUEST | flags, 1, 0) + payload)
    while True:
        data = handle.recv(1 << 16)
        while len(data) >= 16:
            length, answer = struct.unpack_from("IH", data)
            if answer == NLMSG_DONE:
                return
            if answer == NLMSG_ERROR:
                (number,) = struct.unpack_from("i", data, 16)
                if number:
                    raise OSError(-number, os.strerror(-number))
                return
            yield data[16:length]
            data = data[-(-length // 4) * 4 :]
