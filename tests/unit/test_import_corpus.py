# SPDX-License-Identifier: Apache-2.0
"""Rulesets as ufw, firewalld, docker, a router and a mail server have them: what is taken, what not, and why.

They were written by hand, loaded, and printed again by nft 1.0.6 or iptables-save 1.8.9.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearway.importer import Imported, Item, UnreadableError, import_firewall
from clearway.importer.detect import read_ruleset
from tests.unit.import_reference import Followed, judged
from tests.unit.test_import_semantics import some_packet

CORPUS = Path(__file__).parent / "corpus" / "firewall"


@dataclass(frozen=True)
class Expected:
    """Rules with their actions; by the line, a part of what is said about it."""

    rules: str
    taken: int
    not_taken: dict[int, str] = field(default_factory=dict)
    differences: dict[int, str] = field(default_factory=dict)


EXPECTED = {
    "docker.iptables": Expected(
        rules="""
            docker-isolation-stage-2-2:drop docker-isolation-stage-2-1:drop docker-1:accept
            forward-5:accept forward-6:accept forward-9:accept forward-10:accept forward-policy:drop
        """,
        differences={
            39: "write it as nat:",
            41: "what the client sent",
        },
        taken=26,
    ),
    "docker.nft": Expected(
        rules="""
            docker-isolation-stage-2-2:drop docker-isolation-stage-2-1:drop docker-1:accept
            forward-5:accept forward-6:accept forward-9:accept forward-10:accept forward-policy:drop
        """,
        differences={
            18: "write it as nat:",
            23: "what the client sent",
        },
        taken=26,
    ),
    "firewalld.nft": Expected(
        rules="""
            filter_in_internal_allow-1:accept filter_in_internal_allow-2:accept
            filter_in_internal-2:accept filter_in_internal-3:reject filter_in_public_deny-1:drop
            filter_in_public_allow-1:accept filter_in_public_allow-2:accept
            filter_in_public_allow-3:accept filter_in_public-4:accept filter_in_public-5:reject
            filter_forward-5:reject filter_fwd_internal-1:accept filter_fwd_internal-2:reject
            filter_fwd_public-1:accept filter_fwd_public-2:reject
        """,
        not_taken={
            5: "hook prerouting",
            15: "conntrack's status",
            17: "conntrack calls invalid",
            25: "conntrack's status",
            27: "conntrack calls invalid",
            37: "does not judge what this machine sends",
        },
        differences={
            28: "clearway answers TCP with reset, UDP with port unreachable, other",
            55: "clearway answers TCP with reset, UDP with port unreachable",
            74: "clearway answers TCP with reset, UDP with port unreachable",
            84: "clearway answers TCP with reset, UDP with port unreachable",
            89: "clearway answers TCP with reset, UDP with port unreachable",
        },
        taken=37,
    ),
    "mail-legacy.iptables": Expected(
        rules="""
            abuse-2:drop abuse-2-2:drop input-5:drop input-5-2:drop input-5-3:drop input-5-4:drop
            input-6:accept input-7:accept input-admin-ssh:accept input-9:drop input-10:accept
            input-11:reject input-12:reject input-policy:drop forward-policy:drop
        """,
        taken=18,
    ),
    "mail.iptables": Expected(
        rules="""
            abuse-2:drop abuse-2-2:drop input-5:drop input-5-2:drop input-5-3:drop input-5-4:drop
            input-6:accept input-7:accept input-admin-ssh:accept input-9:drop input-10:accept
            input-11:reject input-12:reject input-policy:drop forward-policy:drop
        """,
        taken=18,
    ),
    "mail.nft": Expected(
        rules="""
            abuse-2:drop abuse-2-2:drop input-5:drop input-5-2:drop input-5-3:drop input-5-4:drop
            input-6:accept input-7:accept input-8:accept input-9:drop input-10:accept input-11:reject
            input-12:reject input-policy:drop forward-policy:drop
        """,
        taken=18,
    ),
    "router.nft": Expected(
        rules="""
            input-4:accept input-5:accept admin-1:accept admin-2:accept input-6:accept input-6-2:drop
            input-7:accept input-8:drop forward-bogons:drop forward-3:accept forward-3-2:accept
            forward-4:accept forward-5:accept forward-6:reject forward-7:reject forward-policy:drop
        """,
        taken=21,
        differences={62: "write it as nat:"},
    ),
    "ufw.iptables": Expected(
        rules="""
            ufw-before-input-5:accept ufw-before-input-6:accept ufw-before-input-7:accept
            ufw-before-input-8:accept ufw-before-input-9:accept ufw-before-input-11:accept
            ufw-before-input-12:accept ufw-user-input-allow-ssh:accept
            ufw-user-input-dapp_nginx-20full:accept ufw-user-input-3:drop
            ufw-user-limit-accept-1:accept ufw-skip-to-policy-input-1:drop
            ufw-skip-to-policy-input-1-2:drop ufw-skip-to-policy-input-1-3:drop
            ufw-skip-to-policy-input-1-4:drop ufw-skip-to-policy-input-1-5:drop
            ufw-skip-to-policy-input-1-6:drop input-policy:drop ufw6-before-input-4:accept
            ufw6-before-input-6:accept ufw6-before-input-7:accept ufw6-before-input-8:accept
            ufw6-before-input-17:accept ufw6-user-input-allow-ssh:accept input-policy-2:drop
            ufw-before-forward-2:accept ufw-before-forward-3:accept ufw-before-forward-4:accept
            ufw-before-forward-5:accept forward-policy:drop forward-policy-2:drop
        """,
        not_taken={
            74: "conntrack calls invalid",
            89: "conntrack calls invalid",
            104: "`-m recent`",
            106: "`-m recent`",
            107: "`-m recent`",
            120: "`-m rt`",
            123: "conntrack calls invalid",
        },
        differences={
            63: "without this limit",
            64: "without this limit",
            96: "rule input-policy decides is logged",
        },
        taken=90,
    ),
}


def imported(name: str) -> Imported:
    return import_firewall((CORPUS / name).read_text())


def matches(items: tuple[Item, ...], expected: dict[int, str]) -> bool:
    said = {item.line: item.says for item in items}
    return said.keys() == expected.keys() and all(expected[line] in said[line] for line in said)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_taken(name: str) -> None:
    found, expected = imported(name), EXPECTED[name]
    assert [f"{rule.name}:{rule.action}" for rule in found.firewall.rules] == expected.rules.split()
    assert matches(found.not_taken, expected.not_taken), found.not_taken
    assert matches(found.differences, expected.differences), found.differences
    assert len(found.taken) == expected.taken
    assert found.exact == (not expected.not_taken and not expected.differences)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_rule_is_accounted_for(name: str) -> None:
    """Each line that is a rule or a policy is said to be taken or not to be, once."""
    found = imported(name)
    lines = [item.line for item in (*found.taken, *found.not_taken)]
    assert len(lines) == len(set(lines))
    assert {item.line for item in found.differences} <= {item.line for item in found.taken}
    chains = read_ruleset((CORPUS / name).read_text()).chains.values()
    assert {rule.line for chain in chains for rule in chain.rules} <= set(lines)
    judged_chains = [
        one for one in chains if one.hook in {"input", "forward", "output"} and one.kind != "nat"
    ]
    assert {chain.line for chain in judged_chains} <= set(lines)


@pytest.mark.parametrize("name", EXPECTED)
def test_first_packets_get_the_same(name: str) -> None:
    text = (CORPUS / name).read_text()
    ruleset, found = read_ruleset(text), import_firewall(text)
    refused = {item.line for item in found.not_taken}
    chance = random.Random(name)
    for _ in range(1500):
        hook = chance.choice(("input", "forward"))
        one = some_packet(chance, hook)
        followed = Followed(ruleset, one, lambda _rule: chance.random() < 0.5)
        expected = followed.verdict(hook)
        if not refused & {rule.line for rule in followed.met}:
            assert judged(found.firewall, one, hook) == expected, (one, hook)


def test_iptables_and_the_tables_of_its_nft_backend_say_the_same() -> None:
    for name in ("docker", "mail"):
        one, other = imported(f"{name}.iptables"), imported(f"{name}.nft")
        # Comments are not in what nft prints.
        assert [rule.model_copy(update={"name": ""}) for rule in one.firewall.rules] == [
            rule.model_copy(update={"name": ""}) for rule in other.firewall.rules
        ]


def test_both_backends_of_iptables_say_the_same() -> None:
    assert imported("mail.iptables").firewall == imported("mail-legacy.iptables").firewall


@pytest.mark.parametrize("option", ["--tcp-flags", "--tcp-flags SYN", "--reject-with", "-j", "-s", "-i"])
def test_option_without_its_values_is_named(option: str) -> None:
    text = (
        f"# Generated by iptables-save v1.8.9\n*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp -m tcp {option}"
    )
    if option == "--reject-with":
        text = text.replace("-p tcp -m tcp", "-j REJECT")
    [item] = import_firewall(text).not_taken
    assert "has too few values" in item.says


DAMAGES = st.sampled_from(["cut", "drop a line", "drop a word", "repeat a line", "swap words"])


@settings(max_examples=60)
@given(st.sampled_from(sorted(path.name for path in CORPUS.iterdir())), DAMAGES, st.integers(0, 2**32))
def test_damaged_text_is_refused_or_imported(name: str, damage: str, seed: int) -> None:
    """And nothing else happens: no error comes out that is not meant for people."""
    chance = random.Random(seed)
    text = (CORPUS / name).read_text()
    lines = text.split("\n")
    number = chance.randrange(len(lines))
    words = lines[number].split(" ")
    match damage:
        case "cut":
            text = text[: chance.randrange(len(text))]
        case "drop a line":
            text = "\n".join(lines[:number] + lines[number + 1 :])
        case "repeat a line":
            text = "\n".join(lines[: number + 1] + lines[number:])
        case "drop a word":
            del words[chance.randrange(len(words))]
            text = "\n".join([*lines[:number], " ".join(words), *lines[number + 1 :]])
        case _:
            chance.shuffle(words)
            text = "\n".join([*lines[:number], " ".join(words), *lines[number + 1 :]])
    try:
        import_firewall(text)
    except UnreadableError as error:
        assert "\n" not in str(error)
