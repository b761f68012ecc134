# SPDX-License-Identifier: Apache-2.0
"""Whether Linux forwards packets at all: settings (sysctl) of the calling thread's network namespace."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

FAMILIES = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
OFF = "0"


def missing(family: int, interface: str | None = None) -> str | None:
    """The setting that has to be 1 for packets of the family, that come in by this interface, to be
    forwarded; None: they are. What cannot be read, as of a device that is gone, counts as set.
    """
    of_device = f"net/ipv{family}/conf/{interface}/forwarding"
    if _is_off(FAMILIES[family]) and (family == 6 or interface is None or _is_off(of_device)):
        return FAMILIES[family].replace("/", ".")
    if interface is not None and _is_off(of_device):
        return f"net.ipv{family}.conf.{interface.replace('.', '/')}.forwarding"
    return None


def _is_off(setting: str) -> bool:
    with suppress(OSError):
        return (Path("/proc/sys") / setting).read_text().strip() == OFF
    return False
