# SPDX-License-Identifier: Apache-2.0
"""Settings of the loopback device under which Linux fragments what clearway has translated.

Such a packet comes to Linux by the loopback device (bpf/clearway.bpf.c, leave_to_fragment), often with an
address of the node itself as its source. From any other device Linux takes that for a forgery; from this one
it does so unless `accept_local` is set, and where reverse paths are filtered strictly it must do that loosely
here (net/ipv4/fib_frontend.c, __fib_validate_source). Nobody but the node sends by its loopback device, so
nothing else is let in.
"""

from __future__ import annotations

from clearway.datapath import settings
from clearway.datapath.pins import Pins

CONF = "net/ipv4/conf"
STRICT, LOOSE = "1", "2"  # rp_filter; the greater one of `all` and the device counts


def let_in(where: Pins) -> None:
    """Changes the settings of the caller's network namespace. OSError where they may not be changed."""
    settings.change(where, f"{CONF}/lo/accept_local", "1")
    if STRICT in (settings.read(f"{CONF}/all/rp_filter"), settings.read(f"{CONF}/lo/rp_filter")):
        settings.change(where, f"{CONF}/lo/rp_filter", LOOSE)
