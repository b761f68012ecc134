# SPDX-License-Identifier: Apache-2.0
"""Statements of nft's JSON as nft's own words, for people to read (man nft)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]
LONGEST = 200
QUOTED = frozenset({"iif", "iifname", "oif", "oifname"})
BARE = QUOTED | {"iifgroup", "oifgroup", "skuid", "skgid"}
"""Keys of meta that are written without it."""
PLAIN = frozenset({"accept", "drop", "return", "continue", "notrack", "masquerade", "redirect"})


def written(statements: Sequence[Json], comment: str = "") -> str:
    """A rule, cut off where it becomes long."""
    words = [_statement(kind, content) for one in statements for kind, content in one.items()]
    if comment:
        words.append(f'comment "{comment}"')
    text = " ".join(words)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _statement(kind: str, content: Any) -> str:
    try:
        return _known(kind, content)
    except (LookupError, TypeError, ValueError, AttributeError):
        return json.dumps({kind: content})


def _known(kind: str, content: Any) -> str:  # noqa: C901, PLR0912 - a table of words
    match kind:
        case "match":
            return _match(content)
        case "counter" | "limit" | "quota" if isinstance(content, Mapping) and "map" in content:
            return f"{kind} name {_value(content)}"
        case "counter":
            return f'counter name "{content}"' if isinstance(content, str) else "counter"
        case "jump" | "goto":
            return f"{kind} {content['target']}"
        case "vmap":
            return f"{_value(content['key'])} vmap {_map(content['data'])}"
        case "reject":
            return "reject" if not content else f"reject with {' '.join(map(str, content.values()))}"
        case "limit" if isinstance(content, Mapping):
            over = "over " if content.get("inv") else ""
            unit = content.get("rate_unit", "packets")
            rate = content["rate"] if unit == "packets" else f"{content['rate']} {unit}"
            return f"limit rate {over}{rate}/{content['per']}"
        case "limit" | "quota" if isinstance(content, str):
            return f'{kind} name "{content}"'
        case "ct helper" | "ct timeout" | "ct expectation":
            return f"{kind} set {_value(content, quote=True)}"
        case "ct count":
            return f"ct count {'over ' if content.get('inv') else ''}{content['val']}"
        case "log":
            return " ".join(["log", *(f"{key} {_quoted(value)}" for key, value in (content or {}).items())])
        case "mangle":
            return f"{_value(content['key'])} set {_value(content['value'])}"
        case "set":
            return f"{content['op']} {content['set']} {{ {_value(content['elem'])} }}"
        case "flow":
            return f"flow {content['op']} {content['flowtable']}"
        case "xt":
            return f"xt {content['type']} {content['name']}"
        case "dnat" | "snat" if isinstance(content, Mapping):
            port = f":{_value(content['port'])}" if "port" in content else ""
            return f"{kind} to {_value(content.get('addr', ''))}{port}"
        case _ if kind in PLAIN:
            return kind
    return json.dumps({kind: content})


def _match(content: Json) -> str:
    left, right, operator = content["left"], content["right"], content["op"]
    if isinstance(right, bool):
        return f"{_value(left)} {'exists' if right else 'missing'}"
    quote = isinstance(left, Mapping) and left.get("meta", {}).get("key") in QUOTED
    implied = operator == "in" or (operator == "==" and "&" not in left)
    return f"{_value(left)} {'' if implied else operator + ' '}{_value(right, quote=quote)}"


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _value(one: Any, *, quote: bool = False) -> str:
    if isinstance(one, str) and quote and not one.startswith("@"):
        return f'"{one}"'
    if isinstance(one, list):
        return ",".join(_value(part, quote=quote) for part in one)
    if not isinstance(one, Mapping):
        return str(one)
    [(kind, content)] = one.items()
    return _expression(kind, content, quote=quote)


def _expression(kind: str, content: Any, *, quote: bool) -> str:  # noqa: C901 - a table of words
    match kind:
        case "payload" if "field" in content:
            return f"{content['protocol']} {content['field']}"
        case "meta":
            return str(content["key"]) if content["key"] in BARE else f"meta {content['key']}"
        case "ct" | "rt":
            return " ".join([kind, *([content["dir"]] if "dir" in content else []), content["key"]])
        case "tcp option":
            return f"tcp option {content['name']} {content.get('field', '')}".rstrip()
        case "fib":
            return f"fib {' . '.join(content['flags'])} {content['result']}"
        case "concat":
            return " . ".join(_value(part) for part in content)
        case "map":
            return f"{_value(content['key'])} map {_map(content['data'])}"
        case "set":
            parts = content if isinstance(content, list) else [content]
            return f"{{ {', '.join(_value(part, quote=quote) for part in parts)} }}"
        case "elem":
            return _value(content["val"], quote=quote)
        case "prefix":
            return f"{content['addr']}/{content['len']}"
        case "range":
            return f"{content[0]}-{content[1]}"
        case "&" | "|" | "^" | "<<" | ">>":
            return f" {kind} ".join(_bits(part) for part in content)
    return json.dumps({kind: content})


def _bits(part: Any) -> str:
    return f"({' | '.join(map(str, part))})" if isinstance(part, list) else _value(part)


def _map(data: Any) -> str:
    if isinstance(data, str):
        return data
    pairs = (f"{_value(key)} : {_mapped(value)}" for key, value in data["set"])
    return f"{{ {', '.join(pairs)} }}"


def _mapped(value: Any) -> str:
    """A verdict, or a value or a name."""
    return written([value]) if isinstance(value, Mapping) else str(value)
