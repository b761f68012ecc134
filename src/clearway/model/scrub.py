# SPDX-License-Identifier: Apache-2.0
"""The first line of defence, as the user can say it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from .errors import Problem, refuse, shown
from .fields import Model, Name, Several, checked
from .firewall_values import parse_set, set_texts
from .prefixes import Prefixes

LISTS_MAX = 256


def parse_list_file(value: object) -> str:
    """The absolute path of a file, also as a URL (file:///etc/bad.txt)."""
    text = value if isinstance(value, str) else ""
    url = urlsplit(text)
    if url.scheme == "file" and url.netloc in ("", "localhost"):
        text = unquote(url.path)
    elif url.scheme and "://" in text:
        raise refuse(
            f"{shown(value)} is not on this machine",
            "have a timer fetch it, and give the path of the file: it is taken anew when it changes",
        )
    if not text.startswith("/") or not text.isprintable():
        raise refuse(f"{shown(value)} is not the path of a file", "write for example /etc/clearway/bad.txt")
    return text


def parse_list_prefixes(value: object) -> Prefixes:
    members = parse_set(value)
    if not isinstance(members, Prefixes) and members:
        raise refuse("these are ports", "write prefixes such as 192.0.2.0/24 or 2001:db8::/32")
    return members if isinstance(members, Prefixes) else Prefixes()


ListFile = Annotated[
    str, PlainValidator(parse_list_file), WithJsonSchema({"type": "string", "title": "file"})
]
ListPrefixes = Annotated[
    Prefixes,
    PlainValidator(parse_list_prefixes),
    PlainSerializer(set_texts, when_used="json"),
    WithJsonSchema({"type": "array", "items": {"type": "string"}}),
]


class PrefixList(Model):
    """Sources, by prefix. Exactly one of `file` and `prefixes` is given."""

    name: Name = Field(description="Name of the list, for people and commands; counters hang on it.")
    file: ListFile | None = Field(
        default=None,
        description="Absolute path, or `file://` URL. A prefix or an address a line, what follows `#` or `;`"
        " is a comment; or a JSON object a line:"
        ' `{"prefix": "192.0.2.0/24", "expires": "2027-01-31T12:00:00Z"}`, also `cidr`, `address` or `ip` for'
        " `prefix`, also seconds since the epoch for the time, which may be left out. When the file changes"
        " it is taken anew; while that fails, the old content stays. Put a new one in its place by renaming:"
        " what is half written would be taken. The systemd units hide /home, /root and /tmp.",
    )
    prefixes: ListPrefixes | None = Field(default=None, description="The prefixes themselves.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        return checked(self, _list_problems(self))

    @property
    def path(self) -> Path | None:
        return None if self.file is None else Path(self.file)


class Scrub(Model):
    """What is dropped before anything else is done with it, by its source alone: before there is any state of
    it, and whether or not it belongs to a connection that is known.
    """

    blocklists: Several[PrefixList] = Field(
        default=(),
        description="Packets from these sources are dropped (`drop_blocklist`). Where entries overlap, the"
        " one that lives longest counts, then the list that stands first. Up to 1,048,576 entries of each"
        " family.",
    )
    allowlists: Several[PrefixList] = Field(
        default=(), description="Packets from these sources are not, whatever blocklists say. As many."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        return checked(self, _scrub_problems(self))

    @property
    def lists(self) -> tuple[PrefixList, ...]:
        return (*self.blocklists, *self.allowlists)


def _list_problems(one: PrefixList) -> list[Problem]:
    if (one.file is None) != (one.prefixes is None):
        return []
    if one.file is None:
        return [Problem((), "neither file nor prefixes says what is listed", "give one of them")]
    return [Problem(("prefixes",), "file is set too", "keep one of them")]


def _scrub_problems(scrub: Scrub) -> list[Problem]:
    problems = []
    if len(scrub.lists) > LISTS_MAX:
        what = f"{len(scrub.lists)} lists are too many"
        problems.append(Problem(("blocklists",), what, f"put them together: there is room for {LISTS_MAX}"))
    seen: set[str] = set()
    for key, lists in (("blocklists", scrub.blocklists), ("allowlists", scrub.allowlists)):
        for index, one in enumerate(lists):
            if one.name in seen:
                what = f"there is already a list {one.name}"
                problems.append(Problem((key, index, "name"), what, "give every one a name of its own"))
            seen.add(one.name)
    return problems
