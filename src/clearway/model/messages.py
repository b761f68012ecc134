# SPDX-License-Identifier: Apache-2.0
"""Pydantic's errors in the words of the file: no types, no jargon, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from .errors import PROBLEMS_FOUND, VALUE_REFUSED, Problem, Where, path_text, shown

TEXTS = {
    "literal_error": ("{value} is not known here", "use {expected}"),
    "greater_than_equal": ("{value} is too small", "use {least} or more"),
    "less_than_equal": ("{value} is too large", "use {most} or less"),
    "int_type": ("{value} is not a whole number", "write a number without quotes"),
    "bool_type": ("{value} is neither true nor false", "write true or false"),
    "tuple_type": ("a list is needed here, not {value}", "begin each item with a dash, or remove the key"),
    "model_type": (
        "a mapping is needed here, not {value}",
        "write keys and values ({keys}) or remove the key",
    ),
}
"""Type of pydantic's error -> what is wrong, what to do."""


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Every problem that validation against `model` found."""
    return [problem for details in error.errors(include_url=False) for problem in _problems(details, model)]


def models_in(annotation: object) -> list[type[BaseModel]]:
    """The models that a field's annotation holds: itself, or the items of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def _problems(details: ErrorDetails, model: type[BaseModel]) -> Iterator[Problem]:
    where: Where = details["loc"]
    context: Mapping[str, Any] = details.get("ctx", {})
    match details["type"]:
        case kind if kind == PROBLEMS_FOUND:
            yield from (problem.within(where) for problem in context["problems"])
        case kind if kind == VALUE_REFUSED:
            yield Problem(where, context["what"], context["fix"])
        case "missing":
            yield Problem(where, "is missing", _describe_missing(where, model))
        case "extra_forbidden" | "invalid_key":
            yield Problem(where, "unknown key", _suggest(where, model))
        case kind:
            what, fix = TEXTS.get(kind, ("{value} is not valid here", "see the reference for {path}"))
            words = {
                "value": shown(details["input"]),
                "path": path_text(where),
                "keys": ", ".join(_fields(where, model)),
                "expected": str(context.get("expected")).replace("'", ""),
                "least": context.get("ge"),
                "most": context.get("le"),
            }
            yield Problem(where, what.format_map(words), fix.format_map(words))


def _describe_missing(where: Where, model: type[BaseModel]) -> str:
    field = _fields(where[:-1], model).get(str(where[-1]))
    text = field.description if field and field.description else "it is needed"
    return f"add it: {text.rstrip('.')[0].lower()}{text.rstrip('.')[1:]}"


def _suggest(where: Where, model: type[BaseModel]) -> str:
    known = list(_fields(where[:-1], model))
    close = get_close_matches(str(where[-1]), known, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"


def _fields(where: Where, model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """The keys of the mapping at a place."""
    for part in where:
        if isinstance(part, str):
            field = model.model_fields.get(part)
            inner = models_in(field.annotation) if field else []
            if not inner:
                return {}
            model = inner[0]
    return model.model_fields
