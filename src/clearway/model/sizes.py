# SPDX-License-Identifier: Apache-2.0
"""How large flow tables are: buckets of entries, two entries a connection (bpf/types.h).

Both who makes them and who says beforehand what they take reckon with these figures.
"""

from __future__ import annotations

FLOW_SLOTS = 7  # entries of a bucket
LINE = 64  # bytes: the marks of a bucket, and what entries are a multiple of
FLOW_LINES = {4: 1, 6: 2}  # of an entry, by family
FLOW_LOAD_PERCENT = 80
"""How full a table is with the connections that it was made for: beyond that places get scarce."""


def bucket_bytes(family: int) -> int:
    return LINE * (1 + FLOW_SLOTS * FLOW_LINES[family])


def buckets_for(max_flows: int) -> int:
    """Buckets of a table that was made for that many connections."""
    return -(-2 * max_flows * 100 // (FLOW_SLOTS * FLOW_LOAD_PERCENT))


def flows_in(buckets: int) -> int:
    """The most connections that a table of so many buckets can be made for."""
    return buckets * FLOW_SLOTS * FLOW_LOAD_PERCENT // (2 * 100)
