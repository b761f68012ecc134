# SPDX-License-Identifier: Apache-2.0
"""docs/cli.md says what the commands say: every command, its options, its example, the exit codes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from clearway.cli.common import ExitCode, Options
from clearway.cli.main import build_app

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "cli.md").read_text()
EVERYWHERE = {"--help", "-h", "--output", "-o"}  # described once, for all commands

LISTED = (  # what a user was promised
    "up",
    "run",
    "explain flow",
    "explain rules",
    "plan",
    "apply",
    "status",
    "get services",
    "get endpoints",
    "get flows",
    "follow",
    "get nat",
    "get lists",
    "get rules",
    "get interfaces",
    "get reasons",
    "service add",
    "service remove",
    "endpoint add",
    "endpoint remove",
    "endpoint drain",
    "firewall test",
    "firewall log",
    "firewall set",
    "firewall import",
    "down",
    "doctor",
    "lab up",
    "lab down",
    "lab shell",
    "demo",
)


def commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command without commands below it, by what is typed after `clearway`."""
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from commands(below, (*words, name))
    else:
        yield " ".join(words), command


ROOT_COMMAND = typer.main.get_command(build_app())
COMMANDS = dict(commands(ROOT_COMMAND))
every_command = pytest.mark.parametrize("name", COMMANDS)


def section(name: str) -> str:
    """The part of the page about a command."""
    _before, heading, after = DOCS.partition(f"### clearway {name}\n")
    assert heading, f"docs/cli.md has no heading for clearway {name}"
    return re.split(r"\n##", after)[0]


def examples(name: str) -> list[str]:
    """Command lines under `Example:` in the help."""
    help_text = COMMANDS[name].help or ""
    _before, heading, after = help_text.partition("Example:")
    assert heading, f"the help of clearway {name} has no example"
    return [line.strip() for line in after.splitlines() if line.strip()]


def test_every_command_that_was_promised_is_there() -> None:
    assert set(COMMANDS) == set(LISTED)


@every_command
def test_page_has_the_example_of_the_help(name: str) -> None:
    text = section(name)
    assert all(f"\n{example}\n" in text for example in examples(name))


@every_command
def test_example_is_a_right_command_line(name: str) -> None:
    [example] = examples(name)
    program, *arguments = shlex.split(example)
    assert program == "clearway"
    assert arguments[: len(name.split())] == name.split()
    command = COMMANDS[name]
    context = click.Context(ROOT_COMMAND, obj=Options())
    command.make_context(name, arguments[len(name.split()) :], parent=context)  # raises when it is wrong


@every_command
def test_page_has_every_option(name: str) -> None:
    options = {word for parameter in COMMANDS[name].params for word in parameter.opts if word.startswith("-")}
    text = section(name)
    missing = [option for option in options - EVERYWHERE if f"`{option}`" not in text]
    assert not missing


@every_command
def test_every_command_speaks_json(name: str) -> None:
    assert any("--output" in parameter.opts for parameter in COMMANDS[name].params)


@every_command
def test_every_parameter_says_what_it_is(name: str) -> None:
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"


def test_page_has_no_command_that_is_not() -> None:
    assert set(re.findall(r"^### clearway (.*)$", DOCS, re.MULTILINE)) == set(COMMANDS)


def test_page_has_every_exit_code() -> None:
    table = dict(re.findall(r"^\| (\d+) \| (.*) \|$", DOCS, re.MULTILINE))
    assert {int(code) for code in table} == {int(code) for code in ExitCode}


def test_page_has_every_reason_with_its_meaning() -> None:
    """In the words of bpf/reasons.h, where that has any."""
    header = (ROOT / "bpf" / "reasons.h").read_text()
    listed = re.findall(r"REASON_(\w+)(?: = \d+)?,[ \t]*(?:/\* (.*?) \*/)?", header)
    table = dict(re.findall(r"^\| `((?:forward|answer|punt|drop)_\w+)` \| (.+) \|$", DOCS, re.MULTILINE))
    assert list(table) == [name.lower() for name, _comment in listed if name != "COUNT"]
    for name, comment in listed:
        assert not comment or table[name.lower()] == comment


def test_page_has_every_way_that_a_connection_ends() -> None:
    header = (ROOT / "bpf" / "types.h").read_text()
    ways = [
        name.lower().replace("_", " ") for name in re.findall(r"^\tFLOW_END_(\w+),", header, re.MULTILINE)
    ]
    table = DOCS.split("| `why` |", 1)[1].split("\n\n", 1)[0]
    assert re.findall(r"^\| `([a-z ]+)` \|", table, re.MULTILINE) == [way for way in ways if way != "count"]
