# SPDX-License-Identifier: Apache-2.0
"""Files that are no configuration: each gives clear lines, never a traceback."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clearway.model import ConfigError, config_from_data, load_config, parse_config
from tests.unit.test_config import COMPLETE

PROBLEM = re.compile(r"[^\n]+( \(line [0-9]+\))?: [^\n]+; [^\n]+")
JARGON = re.compile(
    r"NoneType|pydantic|Traceback|Input should|\bdict\b|\btuple\b|\bstr\b|\bint\b|object at|Error\b"
    r"|\btoken|\bstream|\bscalar|<block|<document|but (got|found)"
)


def only_problem(text: str | bytes) -> str:
    with pytest.raises(ConfigError) as refused:
        parse_config(text, "clearway.yaml")
    lines = str(refused.value).splitlines()
    assert len(lines) == 1
    return lines[0]


ADVICE = "check the indentation, quotes and brackets here and on the line before"
TAB = "a tab stands where YAML takes spaces only; use spaces, not tabs"

MALFORMED: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "clearway.yaml: is empty; write at least `interfaces: []`"),
    "comment only": ("# nothing\n", "clearway.yaml: is empty; write at least `interfaces: []`"),
    "key given twice": (
        "conntrack:\n  max_flows: 2048\n  midstream: drop\n  max_flows: 4096\n",
        "conntrack.max_flows (line 4): is given twice; keep one of them, the first is on line 2",
    ),
    "section given twice": (
        "services: []\nnat: []\nservices: []\n",
        "services (line 3): is given twice; keep one of them, the first is on line 1",
    ),
    "tab": (
        "conntrack:\n\tmax_flows: 2048\n",
        f"clearway.yaml (line 2): {TAB}",
    ),
    "tab after a colon": ("interfaces:\n  - name:\teth0\n", f"clearway.yaml (line 2): {TAB}"),
    "tab after a dash": ("interfaces:\n  -\tname: eth0\n", f"clearway.yaml (line 2): {TAB}"),
    "tab after spaces": ("conntrack:\n  \tmax_flows: 2048\n", f"clearway.yaml (line 2): {TAB}"),
    "IPv6 address without quotes": (
        "services:\n  - {address: 2001:db8:: , port: 80}\n",
        "clearway.yaml (line 2): a comma or } is missing; put IPv6 addresses in quotes",
    ),
    "IPv6 address without quotes in a list": (
        "nat: [::/0: a: b]\n",
        "clearway.yaml (line 1): a comma or ] is missing; put IPv6 addresses in quotes",
    ),
    "IPv6 address without quotes, begins with a colon": (
        "nat:\n  - {source: :: }\n",
        "clearway.yaml (line 2): a comma or } is missing; put IPv6 addresses in quotes",
    ),
    "IPv6 address with quotes, but no comma": (
        'services: [{address: "2001:db8::1" port: 80}]\n',
        f"clearway.yaml (line 1): a comma or }} is missing; {ADVICE}",
    ),
    "key within a value": (
        "conntrack: max_flows: 2048\n",
        f"clearway.yaml (line 1): a key with a value cannot stand here; {ADVICE}",
    ),
    "indented too little": (
        "interfaces:\n  - name: eth0\n   hook: tc\n",
        f"clearway.yaml (line 3): this does not fit what comes before it; {ADVICE}",
    ),
    "sign at the beginning of a value": (
        "interfaces: [{name: @eth0}]\n",
        "clearway.yaml (line 1): a value cannot begin with @ here; put it in quotes",
    ),
    "alias of nothing": (
        "interfaces: *all\n",
        "clearway.yaml (line 1): *all refers to nothing; put it in quotes, or write &all before it",
    ),
    "unknown escape": (
        'interfaces: "\\q"\n',
        "clearway.yaml (line 1): an escape (\\) in double quotes is unknown; "
        "write two backslashes for one, or use single quotes",
    ),
    "bracket left open": (
        "interfaces: [{name: eth0}\n",
        f"clearway.yaml (line 2): the bracket of line 1 is not closed with ]; {ADVICE}",
    ),
    "quote left open": (
        'services:\n  - name: "web\n',
        f"clearway.yaml (line 3): the quote of line 2 is not closed; {ADVICE}",
    ),
    "list": (
        "- name: eth0\n",
        "clearway.yaml (line 1): a mapping is needed, not a list; "
        "write keys and values: interfaces, services, nat, firewall, scrub, conntrack, limits",
    ),
    "text": (
        "hello",
        'clearway.yaml (line 1): a mapping is needed, not "hello"; '
        "write keys and values: interfaces, services, nat, firewall, scrub, conntrack, limits",
    ),
    "not UTF-8": (
        b"interfaces: []\n# caf\xe9\n",
        "clearway.yaml (line 2): is not UTF-8 text; save it as UTF-8",
    ),
    "UTF-16": (
        "interfaces: []".encode("utf-16"),
        "clearway.yaml (line 1): is not UTF-8 text; save it as UTF-8",
    ),
    "control character": (
        "interfaces: []\nnat: \x07",
        "clearway.yaml (line 2): the character U+0007 is not allowed in YAML; remove it",
    ),
    "number of thousands of digits": (
        "conntrack: {max_flows: " + "9" * 5000 + "}",
        'conntrack.max_flows (line 1): "'
        + "9" * 40
        + '..." is not a number this can be; write a smaller one',
    ),
    "two documents": (
        "interfaces: []\n---\nnat: []\n",
        "clearway.yaml (line 2): a second document begins here (--- or ...); keep one",
    ),
    "tag": (
        "interfaces: !!python/object:os.system {}",
        'interfaces (line 1): the tag "python/object:os.system" has no meaning here; remove it',
    ),
    "merge key": (
        "conntrack: {<<: {max_flows: 2048}}",
        'conntrack."<<" (line 1): unknown key; known here: max_flows, timeouts, midstream, when_full',
    ),
    "key that is a list": (
        "? [a, b]\n: 1\n",
        "clearway.yaml (line 1): a key must be plain text; write key: value",
    ),
    "anchor in itself": (
        "nat: &loop\n  - *loop\n",
        "nat (line 1): is nested too deeply; use at most 20 levels",
    ),
    "nested without end": (
        "nat: " + "[" * 5000,
        "clearway.yaml: is nested too deeply; use at most 20 levels",
    ),
    "anchors that unfold without end": (
        "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
        "a5 (line 1): more than 1000000 values; is this the right file?",
    ),
}


@pytest.mark.parametrize(("text", "problem"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_text_is_refused_in_one_line(text: str | bytes, problem: str) -> None:
    assert only_problem(text) == problem


def test_text_may_begin_with_a_byte_order_mark() -> None:
    assert parse_config(b"\xef\xbb\xbf" + COMPLETE.encode()) == parse_config(COMPLETE)


def test_anchors_may_be_used() -> None:
    text = """\
services:
  - name: web
    address: 203.0.113.10
    port: 80
    protocol: tcp
    endpoints: &servers [{address: 10.0.0.2, port: 80}]
  - {name: alt, address: 203.0.113.11, port: 80, protocol: tcp, endpoints: *servers}
"""
    config = parse_config(text)
    assert config.services[0].endpoints == config.services[1].endpoints != ()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(tmp_path / "clearway.yaml")
    assert (
        str(refused.value)
        == f"{tmp_path}/clearway.yaml: there is no such file; check the path, or name another with -c"
    )


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(tmp_path)
    assert str(refused.value) == f"{tmp_path}: is a directory; give the file in it"


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: [^\n]+; check the path$"):
        load_config(name)


def test_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be read: Not a directory; check the path$"):
        load_config(tmp_path / "file" / "clearway.yaml")


def test_what_never_ends_is_not_read_without_end() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    try:
        with pytest.raises(ConfigError, match="is empty"):
            load_config(f"/proc/self/fd/{reader}")
    finally:
        os.close(reader)
    with pytest.raises(ConfigError, match="larger than 64 MiB; is this the right file"):
        load_config("/dev/zero")


def test_file_is_named_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "clearway.yaml"
    path.write_text("interfaces: [\n")
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert refused.value.source == str(path)
    assert str(refused.value).startswith(f"{path} (line 2): ")


def check_words(error: ConfigError) -> None:
    """Every problem is one line that people can read; what they wrote themselves is quoted in it."""
    assert error.problems
    assert len(str(error).splitlines()) == len(error.problems)
    for problem in error.problems:
        assert PROBLEM.fullmatch(str(problem)), problem
        own = re.sub(r'"([^"\\]|\\.)*"|\'[^\']*\'', "", f"{problem.what}; {problem.fix}")
        assert not JARGON.search(own), problem


def refused_cleanly(text: str | bytes) -> None:
    """Whatever the text is: a configuration, or a ConfigError whose lines people can read."""
    try:
        parse_config(text)
    except ConfigError as error:
        check_words(error)


YAMLISH = st.text(st.sampled_from("ab0123.:-_#%&*!|>'\"{}[],? \n\t\\~<=@`/éü\x85\u2028\ufeff"), max_size=60)
SECTIONS = ["interfaces", "services", "nat", "conntrack", "name", "address", "port", "timeouts"]
NUMBERS = [".inf", ".nan", "1e400", "0x", "0o9", "0b", "1_0", "2001-01-01", "null", "true"]
SIGNS = [
    "&a",
    "*a",
    "<<",
    "!!set",
    "!!binary x",
    "? ",
    "- ",
    ": ",
    "\n",
    "  ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "|\n",
    ">-\n",
]
OTHER = ["%YAML 1.1\n", "%TAG ! x\n", "---\n", "...\n", '"\\x', "'"]
WORDS = st.sampled_from([*SECTIONS, *NUMBERS, *SIGNS, *OTHER])


@settings(max_examples=300)
@given(st.one_of(YAMLISH, st.lists(WORDS, max_size=15).map("".join), st.text(max_size=40)))
@example("%YAML 1")
@example("%YAML 1.x\n---\na: 1")
@example('"\\UFFFFFFFF"')
@example("a: !<> b")
@example("a: .nan\n")
@example("2001-01-01: 2001-99-99")
def test_any_text_is_read_or_refused_cleanly(text: str) -> None:
    refused_cleanly(text)


@settings(max_examples=100)
@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused_cleanly(data: bytes) -> None:
    refused_cleanly(data)


@settings(max_examples=200)
@given(
    st.integers(0, len(COMPLETE) - 1),
    st.integers(0, 6),
    st.one_of(YAMLISH, st.sampled_from(["null", "[]", "{}"])),
)
def test_damaged_configuration_is_read_or_refused_cleanly(place: int, length: int, text: str) -> None:
    refused_cleanly(COMPLETE[:place] + text + COMPLETE[place + length :])


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["interfaces", "services", "nat", "conntrack", "limits", "timeouts", "endpoints", "name"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(JSON)
def test_any_request_is_taken_or_refused_cleanly(data: object) -> None:
    try:
        config_from_data(data)
    except ConfigError as error:
        check_words(error)
