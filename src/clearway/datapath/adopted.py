# SPDX-License-Identifier: Apache-2.0
"""Adopted connections that have ended, in the form that flows.connections() has for those that go on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from clearway.datapath.flows import CONNECTION, NONE

Array = npt.NDArray[Any]

TUPLES = {
    "client": ("client", "src"),
    "destination": ("client", "dst"),
    "source_out": ("leaves", "src"),
    "destination_out": ("leaves", "dst"),
}
PORTS = {"src": "sport", "dst": "dport"}


def ended_connections(records: Array) -> Array:
    """Rows of CONNECTION, from rows of struct adopted_record: who it was, the way it went, and what it had
    carried. Its state and its times, other than `born`, are not told.
    """
    flow, out = records["flow"], np.zeros(len(records), CONNECTION)
    out["family"], out["proto"] = flow["client"]["family"], flow["client"]["proto"]
    out["flags"], out["born"], out["paired"] = flow["state"], flow["created"], True
    out["service"] = out["endpoint"] = out["nat"] = NONE
    for name, (which, end) in TUPLES.items():
        out[name], out[f"{name}_port"] = flow[which][end], flow[which][PORTS[end]]
    for name in ("packets", "bytes", "reply_packets", "reply_bytes"):
        out[name] = flow[name]
    out["mark"] = flow["endpoint"]  # which adopted ones have none of
    for prefix, way in (("", "way"), ("reply_", "reply_way")):
        out[f"{prefix}inside"] = records[way]["inside"]
        out[f"{prefix}ifindex"] = records[way]["outside"]
    return out
