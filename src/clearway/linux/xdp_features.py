# SPDX-License-Identifier: Apache-2.0
"""What XDP can do on each device, as the kernel's generic netlink family `netdev` tells (Linux 6.3).

Documentation/netlink/specs/netdev.yaml; include/uapi/linux/{genetlink,netdev}.h.
"""

from __future__ import annotations

import struct

from clearway.linux.netlink import (
    NETLINK_GENERIC,
    NLM_F_DUMP,
    Conversation,
    Message,
    NetlinkError,
    attribute,
    attributes,
    text,
    u16,
    u32,
)

NETDEV_XDP_ACT_NDO_XMIT = 1 << 2  # takes frames that XDP redirects to it

_GENL_ID_CTRL = 16
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME, _CTRL_ATTR_MCAST_GROUPS = 1, 2, 7
_CTRL_ATTR_MCAST_GRP_NAME, _CTRL_ATTR_MCAST_GRP_ID = 1, 2

_NETDEV_CMD_DEV_GET = 1
_NETDEV_A_DEV_IFINDEX, _NETDEV_A_DEV_XDP_FEATURES = 1, 3
_NETDEV_GROUP = "mgmt"

_GENLMSG = struct.Struct("=BBH")


class XdpFeatures:
    """Asks the family. `available` is False on kernels that do not have it; `group` announces changes."""

    def __init__(self) -> None:
        self._kernel = Conversation(NETLINK_GENERIC)
        self._family, self.group = _find_family(self._kernel, "netdev", _NETDEV_GROUP)

    @property
    def available(self) -> bool:
        return self._family != 0

    def read(self) -> dict[int, int]:
        """The NETDEV_XDP_ACT_* bits of every device of this namespace, by ifindex."""
        if not self.available:
            return {}
        answer = self._kernel.ask(self._family, _GENLMSG.pack(_NETDEV_CMD_DEV_GET, 1, 0), NLM_F_DUMP)
        return dict(_decode(message) for message in answer)

    def close(self) -> None:
        self._kernel.close()


def _decode(message: Message) -> tuple[int, int]:
    found = attributes(message.body, _GENLMSG.size)
    features = found.get(_NETDEV_A_DEV_XDP_FEATURES, bytes(8))
    return u32(found[_NETDEV_A_DEV_IFINDEX]), int(struct.unpack("=Q", features)[0])


def _find_family(kernel: Conversation, name: str, group: str) -> tuple[int, int]:
    """The numbers of a generic netlink family and of one of its groups; zeros when the kernel has none."""
    body = _GENLMSG.pack(_CTRL_CMD_GETFAMILY, 1, 0)
    try:
        answer = kernel.ask(_GENL_ID_CTRL, body + attribute(_CTRL_ATTR_FAMILY_NAME, name.encode() + b"\0"))
    except NetlinkError:
        return 0, 0
    found = attributes(answer[0].body, _GENLMSG.size)
    for entry in attributes(found.get(_CTRL_ATTR_MCAST_GROUPS, b"")).values():
        described = attributes(entry)
        if text(described[_CTRL_ATTR_MCAST_GRP_NAME]) == group:
            return u16(found[_CTRL_ATTR_FAMILY_ID]), u32(described[_CTRL_ATTR_MCAST_GRP_ID])
    return u16(found[_CTRL_ATTR_FAMILY_ID]), 0
