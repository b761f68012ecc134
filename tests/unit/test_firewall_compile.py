# SPDX-License-Identifier: Apache-2.0
"""From firewall rules to tables: what keeps its counter, what is the same, what is applied."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from clearway.compiler import (
    FirewallTables,
    HostFacts,
    Tables,
    compile_tables,
    identity_of,
    plan_configs,
    plan_tables,
)
from clearway.daemon import core
from clearway.daemon.apply import apply_tables, read_tables
from clearway.datapath.errors import DatapathError
from clearway.model import Config, ConfigError, config_from_data
from tests.unit.fake_tables import FakeDatapath
from tests.unit.test_compile import Sizes

FACTS = HostFacts(32768, 60999, {"lo": 1, "eth0": 2, "eth1": 3}, Sizes(rules=16))


def rule(name: str, action: str = "accept", **keys: Any) -> dict[str, Any]:
    return {"name": name, "action": action, **keys}


def configured(*rules: dict[str, Any], **firewall: Any) -> Config:
    return config_from_data({"firewall": {"rules": list(rules), **firewall}, "limits": {"rules": 16}})


def compiled(config: Config, before: Tables | None = None, facts: HostFacts = FACTS) -> FirewallTables:
    firewall = compile_tables(config, facts, before).firewall
    assert firewall is not None
    return firewall


def then(config: Config, before: Tables) -> Tables:
    return compile_tables(config, FACTS, before)


def counter(tables: Tables, name: str) -> int:
    assert tables.firewall is not None
    return tables.firewall.counters[identity_of(name)]


def test_no_firewall_no_tables() -> None:
    assert compile_tables(config_from_data({}), FACTS).firewall is None


def test_default_stands_behind_the_rules() -> None:
    found = compiled(configured(rule("a"), rule("b", "reject", log=True), default="drop"))
    assert [(row.action, row.log) for row in found.rules] == [
        ("accept", False),
        ("reject", True),
        ("drop", False),
    ]
    assert found.rules[-1].identity == identity_of("")


def test_rules_keep_their_counters_when_others_come_go_and_move() -> None:
    first = then(configured(rule("a"), rule("b"), rule("c")), Tables())
    second = then(configured(rule("d"), rule("c", "drop"), rule("a")), first)
    assert counter(second, "a") == counter(first, "a")
    assert counter(second, "c") == counter(first, "c")
    assert counter(second, "") == counter(first, "")
    assert first.firewall is not None
    assert counter(second, "d") not in first.firewall.counters.values()


def test_counter_that_became_free_is_the_last_to_be_given_out_again() -> None:
    tables = then(configured(rule("a")), Tables())
    seen = {counter(tables, "a")}
    for number in range(14):
        tables = then(configured(rule(f"r{number}")), tables)
        assert counter(tables, f"r{number}") not in seen
        seen.add(counter(tables, f"r{number}"))


def test_all_rules_may_be_exchanged_at_once() -> None:
    first = then(configured(*(rule(f"a{n}") for n in range(16))), Tables())
    second = then(configured(*(rule(f"b{n}") for n in range(16))), first)
    assert second.firewall is not None
    assert len({row.counter for row in second.firewall.rules}) == 17


def test_the_same_rules_are_not_compiled_again() -> None:
    first = then(configured(rule("a", source="10.0.0.0/8")), Tables())
    second = then(configured(rule("a", source="10.0.0.0/8")), first)
    assert second.firewall is first.firewall


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (rule("a", source="10.0.0.0/8"), rule("a", source="10.0.0.0/9"), False),
        (rule("a", source="10.0.0.0/8"), rule("a", source=["10.0.0.0/8"]), True),
        (rule("a", source="10.0.0.0/8"), rule("a", "drop", source="10.0.0.0/8"), False),
        (rule("a", source="@s"), rule("a", source="@t"), False),
        (rule("a", interface_in="eth0"), rule("a", interface_in="eth1"), False),
    ],
)
def test_digest_tells_what_is_asked(one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    sets = {"s": ["10.0.0.0/8"], "t": ["10.0.0.0/8", "11.0.0.0/8"]}
    digests = {compiled(configured(each, sets=sets)).digest for each in (one, other)}
    assert (len(digests) == 1) is same


def test_digest_is_the_same_in_another_process() -> None:
    program = (
        "from tests.unit.test_firewall_compile import *;"
        "print(compiled(configured(rule('a', source=['10.0.0.0/8', '::/0'], protocol='tcp'))).digest.hex())"
    )
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    mine = compiled(configured(rule("a", source=["10.0.0.0/8", "::/0"], protocol="tcp"))).digest.hex()
    assert ran.stdout.strip() == mine


def test_change_of_what_a_set_holds_is_a_change() -> None:
    first = then(configured(rule("a", source="@s"), sets={"s": ["10.0.0.0/8"]}), Tables())
    second = then(configured(rule("a", source="@s"), sets={"s": ["10.0.0.0/9"]}), first)
    assert second != first


def test_interface_that_is_not_there_is_refused_when_it_is_named_first() -> None:
    with pytest.raises(ConfigError, match=r"firewall.rules\[0\].interface_in: there is no interface eth7"):
        compiled(configured(rule("a", interface_in="eth7")))


def test_rules_for_an_interface_that_has_gone_stay_and_meet_nothing() -> None:
    config = configured(
        rule("a", "drop", interface_in=["eth0", "eth1"]), rule("b", "drop", interface_out="eth1")
    )
    kept = core.without(config, {"eth1"}).firewall
    assert kept is not None
    assert [(one.interface_in, one.interface_out) for one in kept.rules] == [(("eth0",), None), (None, ())]
    facts = replace(FACTS, interfaces={"lo": 1, "eth0": 2})
    found = compiled(core.without(config, {"eth1"}), facts=facts)
    assert [row.action for row in found.rules] == ["drop", "drop", "accept"]
    assert found.classifiers is not None and found.classifiers[False, 4].rows == 1
    waiting = core.waiting(config, facts.interfaces)
    assert waiting == ("no packet meets firewall rules for interface eth1, which is not there",)


def test_rules_compiled_for_interfaces_are_compiled_again_when_these_are_made_anew() -> None:
    config = configured(rule("a", interface_in="eth0"))
    before = core.basis(config, {"eth0": 2}, (1, 2))
    assert core.basis(config, {"eth0": 9}, (1, 2)) != before
    assert core.basis(configured(rule("a")), {"eth0": 9}, (1, 2)).interfaces == ()


def test_plan_says_what_a_rule_asks() -> None:
    before = configured(rule("a", protocol="tcp", destination_ports=[22, "80-81"]), sets={"s": [1]})
    after = configured(rule("b", "drop"), rule("a", protocol="tcp", destination_ports=23), sets={"s": [2]})
    plan = plan_configs(before, after, FACTS)
    text = plan.human()
    assert "+ rule b drop everything" in text
    assert "~ destination_ports: 22 80-81 -> 23" in text
    assert "~ after: none -> b" in text
    assert "~ set s" in text
    first = plan_configs(None, before, FACTS).human()
    assert "+ firewall  with default accept" in first or "+ firewall with default accept" in first
    assert "+ set s with 1 port" in first


def test_plan_tells_the_memory_of_classifiers() -> None:
    config = configured(rule("a"))
    tables = compile_tables(config, FACTS)
    names = [table.name for table in plan_configs(None, config, FACTS, tables).memory.tables]
    assert {"classifier_v3, IPv4", "classifier_v3, IPv6", "rule_v1", "judged_v1"} <= set(names)


SAME = "firewall: rule b is never reached: rule a before it decides about all that it asks for"
TOGETHER = "firewall: rule b is never reached: rules a, c before it decide about all that it asks for"
WEB: dict[str, Any] = {"protocol": "tcp", "destination_ports": 80}
PING: dict[str, Any] = {"protocol": ["icmp", "icmpv6"], "icmp_types": "echo-request"}


@pytest.mark.parametrize(
    ("rules", "warnings"),
    [
        ([rule("a", **WEB), rule("b", "drop", **WEB)], [SAME]),
        ([rule("a", **PING), rule("b", "drop", **PING)], [SAME]),
        ([rule("a", source="10.0.0.0/8"), rule("b", "drop", source="10.0.0.0/8")], [SAME]),
        ([rule("a", source="@s"), rule("b", source="@s", log=True)], [SAME]),
        ([rule("a"), rule("b", "drop", source="10.0.0.0/8")], [SAME]),
        ([rule("a", source="10.0.0.0/8"), rule("b", "drop", source="10.1.0.0/16")], [SAME]),
        ([rule("a", source="10.0.0.0/8"), rule("b", "drop", source=["10.1.0.0/16", "fd00::/8"])], []),
        ([rule("a", after_translation=True), rule("b", after_translation=True)], [SAME]),
        (
            [rule("a", protocol="tcp"), rule("c", protocol="udp"), rule("b", protocol=["udp", "tcp"])],
            [TOGETHER],
        ),
        # something is left for it, maybe in one family only
        ([rule("a", **WEB), rule("b", protocol="tcp", destination_ports=[80, 81])], []),
        ([rule("a", source="10.0.0.0/8"), rule("b", source=["10.0.0.0/8", "fd00::/8"])], []),
        ([rule("a", protocol="icmp", icmp_types="echo-request"), rule("b", **PING)], []),
        ([rule("a"), rule("b", after_translation=True)], []),
        # no packet meets it, whatever is before
        ([rule("a", source=["@e", "@f"]), rule("b", source=["@e", "@f"])], []),
    ],
)
def test_plan_warns_of_rules_that_are_never_reached(rules: list[dict[str, Any]], warnings: list[str]) -> None:
    config = configured(*rules, sets={"s": ["192.0.2.0/24"], "e": [], "f": []})
    tables = compile_tables(config, FACTS)
    assert list(plan_configs(None, config, FACTS, tables).warnings) == warnings
    assert list(plan_tables(Tables(), tables, config, FACTS).warnings) == warnings


def test_plan_warns_of_a_few_of_many() -> None:
    hidden = [rule(f"r{n}", source=f"10.0.0.{n}") for n in range(30)]
    config = config_from_data({"firewall": {"rules": [rule("all"), *hidden]}})
    facts = replace(FACTS, sizes=None)
    warnings = plan_configs(None, config, facts, compile_tables(config, facts)).warnings
    assert len(warnings) == 21
    assert warnings[-1] == "firewall: 10 more rules are never reached"


# ---- applied ----


def applied(fake: FakeDatapath, config: Config, before: Tables) -> Tables:
    return apply_tables(fake, before, compile_tables(config, FACTS, before), wait=lambda: None).tables


def test_what_is_applied_is_read_back() -> None:
    fake = FakeDatapath()
    config = configured(
        rule("a", "drop", source="10.0.0.0/8"),
        rule("b", "reject", log=True, after_translation=True),
        default="drop",
    )
    tables = applied(fake, config, Tables())
    found = read_tables(fake)
    assert found == tables
    assert found.firewall is not None and found.firewall.after
    assert found.firewall.classifiers is None


def test_only_classifiers_of_the_epoch_in_force_stay() -> None:
    fake = FakeDatapath()
    tables = applied(fake, configured(rule("a")), Tables())
    first = dict(fake.classifiers.content)
    assert len(first) == 2
    tables = applied(fake, configured(rule("b", "drop", protocol="tcp")), tables)
    assert len(fake.classifiers.content) == 2 and not first.keys() & fake.classifiers.content.keys()
    applied(fake, config_from_data({"limits": {"rules": 16}}), tables)
    assert fake.classifiers.content == {}


def test_daemon_that_starts_again_finds_the_same_rules_in_force() -> None:
    fake = FakeDatapath()
    config = configured(rule("a", source="10.0.0.0/8"))
    tables = applied(fake, config, Tables())
    held = dict(fake.classifiers.content)
    again = read_tables(fake)
    result = apply_tables(fake, again, compile_tables(config, FACTS, again), wait=lambda: None)
    assert not result.switched and result.tables == tables and fake.classifiers.content == held


def test_classifiers_go_on_when_something_else_changes() -> None:
    fake = FakeDatapath()
    config = configured(rule("a", source="10.0.0.0/8"))
    tables = applied(fake, config, Tables())
    lines = sorted(fake.classifiers.content.values())
    applied(
        fake,
        config.model_copy(
            update={"conntrack": config_from_data({"conntrack": {"midstream": "drop"}}).conntrack}
        ),
        tables,
    )
    assert sorted(fake.classifiers.content.values()) == lines


@pytest.mark.parametrize("fail_at", range(6))
def test_failure_leaves_the_old_rules_in_force(fail_at: int) -> None:
    fake = FakeDatapath()
    tables = applied(fake, configured(rule("a")), Tables())
    held = dict(fake.classifiers.content)
    fake.writes.count, fake.writes.fail_at = 0, fail_at
    with pytest.raises(DatapathError):
        applied(fake, configured(rule("b", "drop"), rule("c")), tables)
    fake.writes.fail_at = None
    assert read_tables(fake) == tables
    assert {place: fake.classifiers.content[place] for place in held} == held


def test_counter_of_a_new_rule_begins_at_zero() -> None:
    fake = FakeDatapath()
    tables = applied(fake, configured(rule("a")), Tables())
    judged, stride = fake.table("judged_v1"), fake.table("named_v1").max_entries
    keys, values = judged.items()
    values = values.copy()
    values["packets"] = 7
    judged.update(keys, values)
    tables = applied(fake, configured(rule("a"), rule("b")), tables)
    by_cpu = judged.items()[1]["packets"].reshape(-1, stride)
    counted = {name: by_cpu[:, counter(tables, name)].tolist() for name in ("a", "b", "")}
    assert counted == {"a": [7, 7], "b": [0, 0], "": [7, 7]}
