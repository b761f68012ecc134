# SPDX-License-Identifier: Apache-2.0
"""What clearway asks nftables, and what it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from clearway.lab.namespace import Namespace
from clearway.linux import nft
from clearway.linux.nft import NftablesError
from clearway.linux.nftables import Chain, base_chains
from clearway.linux.ruleset import read_ruleset

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


def listed(own: str) -> dict[str, list[str]]:
    """What read_ruleset() says there is: names, by kind."""
    ruleset = read_ruleset(own)
    assert ruleset is not None
    found: dict[str, list[str]] = {}
    for entry in json.loads(ruleset.nft)["nftables"]:
        for kind, thing in entry.items():
            found.setdefault(kind, []).append(thing.get("name", ""))
    return found


def test_ruleset_is_listed_but_for_clearways_own_tables(namespace: Namespace) -> None:
    namespace.run("nft", "-f", "-", stdin=RULES)
    with namespace.entered():
        everything, others = listed("absent"), listed("nat")
    assert sorted(everything["table"]) == ["filter", "nat"]
    assert sorted(everything["chain"]) == ["forward", "more", "post", "pre"]
    assert len(everything["rule"]) == 4
    assert (others["table"], sorted(others["chain"])) == (["filter"], ["forward", "more"])
    assert len(others["rule"]) == 2


@pytest.mark.parametrize("own", ["absent", "nat"])
def test_ruleset_that_is_not_listed_is_not_taken_for_an_empty_one(
    namespace: Namespace, own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace.run("nft", "-f", "-", stdin=RULES)
    silent = tmp_path / "nft"
    silent.write_text("""#!/bin/sh\necho '{"nftables": [{"metainfo": {"version": "1.0.6"}}]}'\n""")
    silent.chmod(0o755)
    monkeypatch.setattr(nft, "PATH", str(tmp_path))
    with namespace.entered(), pytest.raises(NftablesError, match="nft does not list all"):
        read_ruleset(own)
