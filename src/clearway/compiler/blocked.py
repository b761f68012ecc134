# SPDX-License-Identifier: Apache-2.0
"""Whether a source is blocked, and by which list: as the data path finds it, told from what lists say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from clearway.model import Config, IPAddress, ListContent, Prefixes, PrefixList


def blocked_by(
    config: Config, lists: Mapping[str, ListContent], address: IPAddress, seconds: float
) -> str | None:
    """The name of the blocklist by which packets from an address are dropped at that time, if they are.
    lists: what is in files, by path.
    """
    scrub = config.scrub
    if scrub is None or (found := _listed(scrub.blocklists, lists, address, seconds)) is None:
        return None
    return None if _listed(scrub.allowlists, lists, address, seconds) else found


def _listed(
    among: Sequence[PrefixList], lists: Mapping[str, ListContent], address: IPAddress, seconds: float
) -> str | None:
    """Of several the one whose entry lives longest, then the first."""
    return max(_entries(among, lists, address, seconds), key=lambda entry: entry[0], default=(0, None))[1]


def _entries(
    among: Sequence[PrefixList], lists: Mapping[str, ListContent], address: IPAddress, seconds: float
) -> Iterator[tuple[float, str]]:
    for one in among:
        content = ListContent.of(one.prefixes or Prefixes()) if one.file is None else lists.get(one.file)
        end = content.until(address) if content else None
        if end is not None and (end == 0 or end > seconds):
            yield end or math.inf, one.name
