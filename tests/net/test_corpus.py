# SPDX-License-Identifier: Apache-2.0
"""The corpus of rulesets loads here, and does to traffic what its descriptions say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.corpus.conversation import converse
from tests.corpus.router import Router, loaded
from tests.corpus.rulesets import NAMES, Ruleset, read


@pytest.fixture(scope="module", params=NAMES)
def ruleset(request: pytest.FixtureRequest) -> Ruleset:
    return read(request.param)


@pytest.fixture(scope="module", autouse=True)
def _root(lab_names: Iterator[str]) -> None:
    """Machines are namespaces: skipped with the reason where none can be made."""


@pytest.fixture(scope="module")
def router(ruleset: Ruleset) -> Iterator[Router]:
    with loaded(ruleset) as running:
        yield running


COUNTS = re.compile(r"\[\d+:\d+\]|packets \d+ bytes \d+")


def printed(router: Router, how: str) -> str:
    """What the counterpart of a loader prints."""
    match how:
        case "nft":
            return router.listed(as_json=False)
        case "iptables-restore":
            return router.saved(4)
        case _:
            return router.saved(6)


def without_counts(texts: dict[str, str]) -> dict[str, str]:
    """The machine says something now and then by itself, which its rules count."""
    return {how: COUNTS.sub("", text) for how, text in texts.items()}


def rules_in(how: str, text: str) -> int:
    """How many rules a file of the corpus has: in nft's, the lines of its chains."""
    if how != "nft":
        return sum(line.startswith("-A ") for line in text.splitlines())
    chains = re.findall(r"^\tchain .*?^\t}", text, re.MULTILINE | re.DOTALL)
    return sum(len(re.findall(r"^\t\t(?!type )", chain, re.MULTILINE)) for chain in chains)


def test_shares_add_up(ruleset: Ruleset) -> None:
    assert sum(traffic.share for traffic in ruleset.traffic) == 100
    assert all(bool(traffic.share) == traffic.forwarded for traffic in ruleset.traffic)


def test_what_is_printed_loads_again(router: Router, ruleset: Ruleset) -> None:
    loaders = ruleset.load.values()
    first = {how: printed(router, how) for how in loaders}
    router.node.run("nft", "flush", "ruleset")
    for how, text in first.items():
        router.load(how, text)
    again = {how: printed(router, how) for how in loaders}
    assert without_counts(again) == without_counts(first)


def test_every_rule_is_listed_as_json(router: Router, ruleset: Ruleset) -> None:
    listed = sum("rule" in item for item in json.loads(router.listed())["nftables"])
    assert listed == sum(rules_in(how, text) for how, text in ruleset.texts)


def test_traffic_is_forwarded_and_translated_as_described(router: Router, ruleset: Ruleset) -> None:
    seen = {}
    for traffic in ruleset.traffic:
        with ExitStack() as closing:
            seen[traffic.name] = converse(router, traffic, closing).passes()
    assert seen == {traffic.name: traffic.forwarded for traffic in ruleset.traffic}
