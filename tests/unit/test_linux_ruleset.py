# SPDX-License-Identifier: Apache-2.0
"""What programs print of rules, whatever bytes are in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clearway.daemon.accounts import Rules
from clearway.linux import ruleset
from clearway.linux.ruleset import Ruleset
from clearway.proof import Kind

COMMENTED = b'[1:60] -A FORWARD -m comment --comment "caf\xe9 \x85\r\x1e" -j DROP'


def test_comments_may_be_any_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed, program = tmp_path / "printed", tmp_path / "iptables-nft-save"
    printed.write_bytes(b"*filter\n:FORWARD ACCEPT [0:0]\n" + COMMENTED + b"\nCOMMIT\n")
    program.write_text(f"#!/bin/sh\nexec cat {printed}\n")
    program.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda *_names, **_where: str(program))
    monkeypatch.setattr("clearway.linux.nftables.generation", lambda: 1)
    monkeypatch.setattr(ruleset, "_listed", lambda _own: json.dumps({"nftables": OBJECTS}))
    found = ruleset.read_ruleset()
    assert found is not None
    rules = Rules.of(Ruleset(1, found.nft, {"ip": found.saves["ip"]}, frozenset()))
    [classified] = rules.proof.rules
    assert (classified.kind, classified.keeps) == (Kind.RESTORABLE, True)
    [rule, policy] = rules.counters.counters
    assert (policy.text, rule.packets, rule.text.partition(" --comment ")[2]) == (
        "policy accept",
        1,
        '"caf\ufffd \ufffd\r\x1e" -j DROP',
    )
    assert json.dumps(rule.text).encode()


WHERE = {"family": "ip", "table": "filter"}
BASE = {"type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}
OBJECTS = [
    {"table": {"family": "ip", "name": "filter", "handle": 1}},
    {"chain": {**WHERE, "name": "FORWARD", "handle": 1, **BASE}},
    {
        "rule": {
            **WHERE,
            "chain": "FORWARD",
            "handle": 4,
            "expr": [
                {"xt": {"type": "match", "name": "comment"}},
                {"counter": {"packets": 1, "bytes": 60}},
                {"drop": None},
            ],
        }
    },
]
