# SPDX-License-Identifier: Apache-2.0
"""Programs of others that packets meet beside ours, and whose coming and going nobody is told of."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass

from clearway.datapath import bpf

FAMILIES = {2: 4, 10: 6}
"""NFPROTO_IPV4 and NFPROTO_IPV6, <linux/netfilter.h>: the kernel lets programs see no others."""
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
"""enum nf_inet_hooks"""


@dataclass(frozen=True, order=True)
class Hook:
    """Where netfilter runs a program, in some network namespace: the kernel does not tell in which."""

    family: int
    name: str


@dataclass(frozen=True)
class Others:
    """Devices with programs on TCX, for what arrives and for what leaves; and hooks of netfilter with
    programs, None where that is not told (without CAP_SYS_ADMIN).
    """

    ingress: frozenset[int] = frozenset()
    egress: frozenset[int] = frozenset()
    hooks: frozenset[Hook] | None = frozenset()


class Lookout:
    """Looks for them, now and again."""

    def __init__(self) -> None:
        self._links: dict[int, Hook | None] = {}  # every BPF link by its id; None: none of netfilter's

    def look(self, ifindexes: Iterable[int], own: frozenset[int]) -> Others:
        """On these devices of the caller's network namespace; own: ids of programs that do not count.
        OSError.
        """
        devices = list(ifindexes)
        ingress, egress = (
            frozenset(one for one in devices if not own.issuperset(bpf.tcx_programs(one, point)))
            for point in (bpf.BPF_TCX_INGRESS, bpf.BPF_TCX_EGRESS)
        )
        return Others(ingress, egress, self._hooks())

    def _hooks(self) -> frozenset[Hook] | None:
        """Of links that have been seen before nothing is asked: there may be thousands of others."""
        try:
            self._links = {number: self._hook(number) for number in bpf.link_numbers()}
        except PermissionError:
            return None
        return frozenset(hook for hook in self._links.values() if hook)

    def _hook(self, number: int) -> Hook | None:
        if number in self._links:
            return self._links[number]
        try:
            found = bpf.netfilter_link(number)
        except OSError as error:
            if error.errno != errno.ENOENT:  # it is gone by now
                raise
            return None
        return None if found is None else Hook(FAMILIES[found.family], HOOKS[found.hook])
