# SPDX-License-Identifier: Apache-2.0
"""Pydantic's errors in the words of the file: no types, no jargon, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from .errors import PROBLEMS_FOUND, VALUE_REFUSED, Problem, Where, path_text, shown
from .protocols import TCP_FLAGS

TEXTS = {
    "literal_error": ("{value} is not known here", "use {expected}"),
    "greater_than_equal": ("{value} is too small", "use {least} or more"),
    "less_than_equal": ("{value} is too large", "use {most} or less"),
    "int_type": ("{value} is not a whole number", "{whole}"),
    "bool_type": ("{value} is neither true nor false", "write true or false"),
    "tuple_type": ("a list is needed here, not {value}", "begin each item with a dash, or remove the key"),
    "model_type": (
        "a mapping is needed here, not {value}",
        "write keys and values ({keys}) or remove the key",
    ),
}
"""Type of pydantic's error -> what is wrong, what to do."""
UNKNOWN_KEY = {"extra_forbidden", "invalid_key"}

ALIKE = 0.6
ALIKE_ELSEWHERE_KNOWN = 0.8
"""How alike (difflib's ratio) two keys must be for one to be taken for the other mistyped."""

OTHER_NAMES = {
    "saddr": "source",
    "src": "source",
    "daddr": "destination",
    "dst": "destination",
    "sport": "source_ports",
    "dport": "destination_ports",
    "port": "destination_ports",
    "ports": "destination_ports",
    "iif": "interface_in",
    "iifname": "interface_in",
    "oif": "interface_out",
    "oifname": "interface_out",
    "target": "action",
    "verdict": "action",
    "policy": "default",
}
"""What nftables, iptables or habit call a key that is known here by another name."""


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Every problem that validation against `model` found."""
    found = error.errors(include_url=False)
    missing = {details["loc"] for details in found if details["type"] == "missing"}
    mistyped: set[Where] = set()
    for details in found:
        if details["type"] in UNKNOWN_KEY:
            close = _close(details["loc"], model, missing)
            if close is not None:
                mistyped.add((*details["loc"][:-1], close))
    return [
        problem
        for details in found
        if details["type"] != "missing" or details["loc"] not in mistyped
        for problem in _problems(details, model, missing)
    ]


def models_in(annotation: object) -> list[type[BaseModel]]:
    """The models that a field's annotation holds: itself, or the items of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def _problems(details: ErrorDetails, model: type[BaseModel], missing: Set[Where]) -> Iterator[Problem]:
    where: Where = details["loc"]
    context: Mapping[str, Any] = details.get("ctx", {})
    match details["type"]:
        case kind if kind == PROBLEMS_FOUND:
            yield from (problem.within(where) for problem in context["problems"])
        case kind if kind == VALUE_REFUSED:
            yield Problem(where, context["what"], context["fix"])
        case "missing":
            yield Problem(where, "is missing", _describe_missing(where, model))
        case kind if kind in UNKNOWN_KEY:
            yield Problem(where, "unknown key", _suggest(where, model, missing))
        case kind:
            what, fix = TEXTS.get(kind, ("{value} is not valid here", "see the reference for {path}"))
            words = {
                "value": shown(details["input"]),
                "path": path_text(where),
                "keys": ", ".join(_fields(where, model)),
                "expected": str(context.get("expected")).replace("'", ""),
                "whole": _whole_number(details["input"]),
                "least": context.get("ge"),
                "most": context.get("le"),
            }
            yield Problem(where, what.format_map(words), fix.format_map(words))


def _describe_missing(where: Where, model: type[BaseModel]) -> str:
    field = _fields(where[:-1], model).get(str(where[-1]))
    text = field.description if field and field.description else "it is needed"
    known = ", ".join(get_args(field.annotation)) if field and get_origin(field.annotation) is Literal else ""
    return f"add it: {text.rstrip('.')[0].lower()}{text.rstrip('.')[1:]}{known and f' ({known})'}"


def _whole_number(value: object) -> str:
    quoted = isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+", value)
    return "write it without quotes" if quoted else "use a whole number"


def _suggest(where: Where, model: type[BaseModel], missing: Set[Where]) -> str:
    if "tcp_flags" in _fields(where[:-1], model) and set(str(where[-1]).split("/")) <= set(TCP_FLAGS):
        return "put the whole value of tcp_flags in quotes, because within braces a comma ends it"
    close = _close(where, model, missing)
    if close is not None:
        return f"did you mean {close}?"
    homes = _belongs(where, model)
    return (
        f"it belongs to {' or '.join(homes)}"
        if homes
        else f"known here: {', '.join(_fields(where[:-1], model))}"
    )


def _close(where: Where, model: type[BaseModel], missing: Set[Where]) -> str | None:
    """The key that an unknown one was meant to be: rather one that is missing."""
    known = list(_fields(where[:-1], model))
    if (meant := OTHER_NAMES.get(str(where[-1]))) in known:
        return meant
    absent = [key for key in known if (*where[:-1], key) in missing]
    cutoff = ALIKE_ELSEWHERE_KNOWN if _belongs(where, model) else ALIKE
    for keys in (absent, known):
        close = get_close_matches(str(where[-1]), keys, n=1, cutoff=cutoff)
        if close:
            return close[0]
    return None


def _belongs(where: Where, model: type[BaseModel]) -> list[str]:
    """Where a key that is unknown at its place is known: below that place or, if not there, anywhere."""
    key = str(where[-1])
    return _homes(key, _model_at(where[:-1], model)) or _homes(key, model)


def _homes(key: str, model: type[BaseModel] | None, place: str = "") -> list[str]:
    """The places within a model whose mappings have the key: endpoints[]."""
    homes = []
    for name, field in model.model_fields.items() if model else ():
        for inner in models_in(field.annotation):
            path = f"{place}{name}" + ("" if inner is field.annotation else "[]")
            homes += [path] if key in inner.model_fields else []
            homes += _homes(key, inner, f"{path}.")
    return homes


def _fields(where: Where, model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """The keys of the mapping at a place."""
    found = _model_at(where, model)
    return found.model_fields if found else {}


def _model_at(where: Where, model: type[BaseModel]) -> type[BaseModel] | None:
    for part in where:
        if isinstance(part, str):
            field = model.model_fields.get(part)
            inner = models_in(field.annotation) if field else []
            if not inner:
                return None
            model = inner[0]
    return model
