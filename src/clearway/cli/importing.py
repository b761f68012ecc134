# SPDX-License-Identifier: Apache-2.0
"""`clearway firewall import`: rules brought along from Linux."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from io import StringIO
from typing import TYPE_CHECKING, Annotated

import typer

from clearway.cli.common import (
    CommandError,
    ExitCode,
    Output,
    OutputOption,
    options_of,
    print_json,
    say,
    something,
)
from clearway.cli.configure import read_file
from clearway.cli.text import things

if TYPE_CHECKING:
    from clearway.importer import Imported, Item

SHOWN_LENGTH = 200

RulesetArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="What `nft list ruleset` (also with -j), `iptables-save` or `ip6tables-save` printed;"
        " - reads it from standard input.",
        callback=something,
    ),
]


def firewall_import(
    context: typer.Context, file: RulesetArgument, output: OutputOption = Output.TABLE
) -> None:
    """Translate rules of nftables or iptables into a `firewall:` section.

    The section is printed, to be put into a configuration file; what became of every rule is said on standard
    error. It holds for what comes in by clearway's interfaces.

    Nothing is guessed: rules that have no exact counterpart are left out and named, and the exit code is 0
    only when there are none.

    \b
    Example:
      clearway firewall import rules.nft
    """
    from clearway.importer import UnreadableError, import_firewall

    options_of(context, output)
    try:
        found = import_firewall(_read(file))
    except UnreadableError as error:
        raise CommandError(ExitCode.REFUSED, f"{file}: {error}") from None
    if output is Output.JSON:
        print_json(found.to_dict())
    else:
        say(_section(found))
        print("\n".join(_account(found)), file=sys.stderr)
    if not found.exact:
        raise typer.Exit(ExitCode.REFUSED)


def _read(file: str) -> str:
    try:
        return read_file(file)[0].decode()
    except UnicodeDecodeError:
        raise CommandError(ExitCode.REFUSED, f"{file}: this is no text; give what nft printed") from None


def _section(found: Imported) -> str:
    """YAML. When something is missing, the file that it is put into says so too."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedSeq

    data = found.data()
    for rule in data.get("rules", ()):
        for key, value in rule.items():
            if isinstance(value, list):
                rule[key] = CommentedSeq(value)
                rule[key].fa.set_flow_style()
    stream = StringIO()
    yaml = YAML(typ="rt")
    yaml.dump({"firewall": data}, stream)
    return f"{_warning(found)}{stream.getvalue().rstrip()}"


def _warning(found: Imported) -> str:
    missing, differing = len(found.not_taken), len(found.differences)
    said = [f"without {things(missing, 'rule')} of what it was made of"] if missing else []
    said += [f"with {things(differing, 'difference')} from it"] if differing else []
    return f"# Incomplete: {', and '.join(said)}.\n" if said else ""


def _account(found: Imported) -> Iterable[str]:
    """A line for each rule, those that were not taken over last."""
    for items, what in (
        (found.taken, "taken"),
        (found.notes, "note"),
        (found.differences, "differs"),
        (found.not_taken, "NOT TAKEN"),
    ):
        for item in items:
            yield f"{what}: {_line(item)}{item.says}"
    if found.exact:
        yield f"exact: all of {things(len(found.taken), 'line')} taken over"
    else:
        missing, differing = things(len(found.not_taken), "line"), things(len(found.differences), "line")
        yield f"incomplete: {missing} not taken over, {differing} taken over with differences"


def _line(item: Item) -> str:
    if not item.line:
        return ""
    text = item.text if len(item.text) <= SHOWN_LENGTH else f"{item.text[:SHOWN_LENGTH]}..."
    return f"line {item.line}: {text}: "
