# SPDX-License-Identifier: Apache-2.0
"""What Linux' rules have counted, with what clearway has carried around them."""

from __future__ import annotations

from clearway.api.views import LinuxCounterView, LinuxCounterViews
from clearway.daemon.accountant import Accountant
from clearway.daemon.accounts import Sum
from clearway.daemon.linux_counters import LinuxCounter, linux_counters
from clearway.linux.nft import NftablesError
from clearway.linux.ruleset import read_ruleset


def counter_views(accountant: Accountant, own: str) -> LinuxCounterViews:
    """As both are now. own: the name of clearway's own tables. NetlinkError and DatapathError."""
    try:
        ruleset = read_ruleset(own)
    except NftablesError as error:
        return LinuxCounterViews(linux=[], why=str(error))
    if ruleset is None:
        return LinuxCounterViews(linux=[], why="Linux' rules do not stop changing")
    sums = accountant.sums()
    counters = linux_counters(ruleset).counters
    return LinuxCounterViews(linux=[_view(one, sums.get(one.place, Sum())) for one in counters], why="")


def _view(counter: LinuxCounter, carried: Sum) -> LinuxCounterView:
    return LinuxCounterView(
        kind=counter.place.kind,
        family=counter.place.family,
        table=counter.place.table,
        chain=counter.chain,
        handle=counter.place.handle,
        rule=counter.text,
        packets=counter.packets + carried.packets,
        bytes=counter.bytes + carried.bytes,
        carried_packets=carried.packets,
        carried_bytes=carried.bytes,
    )
