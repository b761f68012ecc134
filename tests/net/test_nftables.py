# SPDX-License-Identifier: Apache-2.0
"""What clearway asks nftables, and what it is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clearway.lab.namespace import Namespace
from clearway.linux.nftables import Chain, base_chains

RULES = """
table ip nat {
    chain post {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "wan" masquerade
        ip saddr 10.0.0.0/8 masquerade
    }
    chain pre { type nat hook prerouting priority dstnat; policy accept; }
}
table inet filter {
    chain forward { type filter hook forward priority filter; policy drop; jump more; }
    chain more { accept; }
}
"""


@pytest.fixture
def namespace(lab_names: Iterator[str]) -> Iterator[Namespace]:
    made = Namespace(f"cw-{next(lab_names)}")
    made.create()
    try:
        yield made
    finally:
        made.delete()


def test_chains_at_hooks_are_told_with_how_many_rules_they_have(namespace: Namespace) -> None:
    with namespace.entered():
        assert base_chains() == []
    namespace.run("nft", "-f", "-", stdin=RULES)
    with namespace.entered():
        found = base_chains()
    assert sorted(found, key=lambda chain: chain.name) == [
        Chain("inet filter", "forward", "filter", 1),
        Chain("ip nat", "post", "nat", 2),
        Chain("ip nat", "pre", "nat", 0),
    ]


def test_what_iptables_has_made_is_told(namespace: Namespace) -> None:
    rule = ("-A", "POSTROUTING", "-o", "wan", "-j", "MASQUERADE")
    namespace.run("iptables-nft", "-t", "nat", *rule)
    with namespace.entered():
        assert Chain("ip nat", "POSTROUTING", "nat", 1) in base_chains()
