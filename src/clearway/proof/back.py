# SPDX-License-Identifier: Apache-2.0
"""Rules that look for a route to a packet's sender (reverse path filters), as nft and iptables write them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .result import Back

RESULTS = frozenset({"oif", "oifname", "check"})
"""Of nft's fib, of which it may be asked whether they are there."""
FLAGS = frozenset({"saddr", "iif", "mark"})


def back_of(left: Mapping[str, Any]) -> tuple[Back, bool] | None:
    """What the left side of a match asks of a route to the sender, and whether by the packet's mark; None
    when it asks for something else (man nft, FIB EXPRESSIONS; net/netfilter/nft_fib.c).
    """
    content = left.get("fib", {})
    flags = set(content.get("flags", ()))
    if content.get("result") not in RESULTS or "saddr" not in flags or not flags <= FLAGS:
        return None
    return Back.STRICT if "iif" in flags else Back.LOOSE, "mark" in flags


def back_of_rpfilter(options: Collection[str], family: int) -> tuple[Back, bool]:
    """The same of `-m rpfilter` with these options (man iptables-extensions). Over IPv6 a strict one looks
    for routes by the device (net/ipv6/netfilter/ip6t_rpfilter.c).
    """
    strict = Back.DEVICE if family == 6 else Back.STRICT
    return Back.LOOSE if "--loose" in options else strict, "--validmark" in options
