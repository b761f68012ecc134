# SPDX-License-Identifier: Apache-2.0
"""What `nft -j list ruleset` prints (man libnftables-json). A rule's line is its place in the list."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .conditions import Condition, Element, NamedSet
from .errors import InexactError, UnreadableError
from .names import UniqueNames, plain
from .nft_rule import (
    CHANGES,
    FAMILIES_OF,
    Statements,
    Table,
    Verdict,
    VerdictMap,
    rule_of,
)
from .ruleset import Chain, Ruleset, Verb

NO_EFFECT = frozenset({"counter", "flow"})
SIDE_EFFECTS = frozenset({"mangle", "notrack", "set", "dup", "fwd", "ct helper", "ct timeout"})
VERDICTS = frozenset({"accept", "drop", "return", "jump", "goto", "reject", "continue"})
LOGGING_TARGETS = frozenset({"LOG", "NFLOG", "ULOG"})
Json = Mapping[str, Any]


def read_nft_json(text: str) -> Ruleset:
    """Raises UnreadableError."""
    try:
        objects = json.loads(text)["nftables"]
        return _Reader().ruleset(objects)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableError(f"this is not what `nft -j list ruleset` prints: {error}") from None


class _Reader:
    def __init__(self) -> None:
        self.chains: dict[tuple[str, str], Chain] = {}
        self.tables: dict[str, Table] = {}
        self.dormant: set[str] = set()
        self.labels = UniqueNames()

    def ruleset(self, objects: list[Json]) -> Ruleset:
        kinds = {"table": self._table, "chain": self._chain, "set": self._set, "map": self._map}
        for number, one in enumerate(objects, 1):
            [(kind, content)] = one.items()
            if kind in kinds:
                kinds[kind](content, number)
        for number, one in enumerate(objects, 1):
            if "rule" in one:
                self._rule(one["rule"], number)
        return Ruleset({key: one for key, one in self.chains.items() if key[0] not in self.dormant})

    def _table(self, content: Json, _number: int) -> None:
        name = f"{content['family']} {content['name']}"
        self.tables[name] = Table()
        flags = content.get("flags", ())
        if flags == content["name"]:  # nftables 1.0.6 writes that in the place of any flag
            raise UnreadableError(
                f"this nft does not say whether table {name} is dormant; use `nft list ruleset`"
            )
        if "dormant" in flags:
            self.dormant.add(name)

    def _chain(self, content: Json, number: int) -> None:
        table, name = table_of(content), content["name"]
        chain = Chain(name, table, number, f"chain {name}", FAMILIES_OF.get(content["family"], ()))
        if "hook" in content:
            chain.kind, chain.hook = content["type"], content["hook"]
            chain.priority, chain.policy = content["prio"], Verb(content.get("policy", "accept"))
            chain.text = f"chain {name}: hook {chain.hook}, policy {chain.policy}"
        self.chains[table, name] = chain

    def _set(self, content: Json, _number: int) -> None:
        label = self.labels.unique(plain(content["name"]) or "set")
        self.tables[table_of(content)].sets[content["name"]] = set_of(content, label)

    def _map(self, content: Json, _number: int) -> None:
        self.tables[table_of(content)].maps[content["name"]] = map_of(content)

    def _rule(self, content: Json, number: int) -> None:
        table, chain = table_of(content), content["chain"]
        said = Statements(comment=content.get("comment", ""))
        for one in content["expr"]:
            try:
                _statement(one, said)
            except InexactError as error:
                said.reasons.append(str(error))
        text = f"{chain} handle {content.get('handle', '?')}: {json.dumps(content['expr'])}"
        self.chains[table, chain].rules.append(rule_of(said, number, text, self.tables[table]))


def table_of(content: Json) -> str:
    """Family and name of the table that an object is in."""
    return f"{content['family']} {content['table']}"


def set_of(content: Json, label: str) -> NamedSet:
    """A named set, with why its content is not known if that is so."""
    unusable, elements = _unusable(content), []
    try:
        elements = [_element(one) for one in content.get("elem", ())]
    except InexactError as error:
        unusable = unusable or str(error)
    return NamedSet(label, tuple(elements), unusable)


def map_of(content: Json) -> tuple[tuple[Element, Verdict], ...] | str:
    """The elements of a named map of verdicts, or why they are not known."""
    try:
        return _unusable(content) or verdict_elements_of(content.get("elem", ()))
    except InexactError as error:
        return str(error)


def _unusable(content: Json) -> str:
    flags = content.get("flags", ())
    return CHANGES if "timeout" in content or {"dynamic", "timeout"} & set(flags) else ""


def _statement(one: Json, said: Statements) -> None:
    [(kind, content)] = one.items()
    if kind in NO_EFFECT:
        return
    if kind == "match":
        said.ask(match_of(content))
    elif kind == "log":
        said.log = True
    elif kind in VERDICTS:
        said.verdict = verdict_of(kind, content)
    elif kind == "vmap":
        said.mapped = verdict_map_of(content)
    elif kind == "xt":
        _extension(content, said)
    elif kind in SIDE_EFFECTS:
        said.side_effect = json.dumps(one)
        raise InexactError(f"{kind} changes packets or state, which no rule of a firewall does here")
    else:
        if kind not in {"limit", "quota", "ct count"}:
            said.verdict = Verdict(Verb.UNKNOWN, kind)
        raise InexactError(f"{kind}: clearway has nothing like it")


def _extension(content: Json, said: Statements) -> None:
    """Of what iptables-nft put there, the JSON tells no more than the name."""
    name = content["name"]
    if content["type"] == "match" and name == "comment":
        return
    if content["type"] == "target":
        said.log = said.log or name in LOGGING_TARGETS
        said.verdict = Verdict(Verb.NOTHING if name in LOGGING_TARGETS else Verb.UNKNOWN, name)
        if name in LOGGING_TARGETS:
            return
    raise InexactError(f"JSON does not tell what {content['type']} {name} holds; give iptables-save's output")


def verdict_of(kind: str, content: Any) -> Verdict:
    """`kind` is one of VERDICTS."""
    if kind == "continue":
        return Verdict(Verb.NOTHING)
    if kind in {"jump", "goto"}:
        return Verdict(Verb(kind), content["target"])
    if kind != "reject" or not content:
        return Verdict(Verb(kind), "default" if kind == "reject" else "")
    how = content.get("type", "default")
    return Verdict(Verb.REJECT, f"{how} {content['expr']}" if "expr" in content else how)


def match_of(content: Json) -> Condition:
    """What a `match` statement asks for. InexactError when it is nothing that is known here."""
    left, right, mask = content["left"], content["right"], ""
    if isinstance(left, Mapping) and "&" in left:
        left, bits = left["&"]
        mask = _bits(bits)
    keys = keys_of(left)
    elements = _right(right, "" if content["op"] in {"in", "!"} and not mask else "|")
    return Condition(keys, content["op"], elements, mask)


def keys_of(left: Json) -> tuple[str, ...]:
    [(kind, content)] = left.items()
    if kind == "concat":
        return tuple(key for one in content for key in keys_of(one))
    if kind == "payload" and "field" in content:
        return (f"{content['protocol']} {content['field']}",)
    if kind == "fib" and content == {"result": "type", "flags": ["daddr"]}:
        return ("fib daddr type",)
    if kind == "meta" or (kind == "ct" and "dir" not in content):
        return (f"{kind} {content['key']}",)
    raise InexactError(f"{kind}: clearway has nothing like it")


def _right(right: Any, joined: str) -> tuple[Element, ...]:
    """`joined` is what a list means: several values at once (|), or any of them."""
    if isinstance(right, list):
        if joined:
            return ((_bits(right),),)
        return tuple((_value(one),) for one in right)
    if isinstance(right, Mapping) and "set" in right:
        content = right["set"]
        return tuple(_element(one) for one in (content if isinstance(content, list) else [content]))
    return (_element(right),)


def _element(one: Any) -> Element:
    if isinstance(one, Mapping) and "elem" in one:
        if {"timeout", "expires", "limit", "quota"} & set(one["elem"]):
            raise InexactError(CHANGES)
        return _element(one["elem"]["val"])
    if isinstance(one, Mapping) and "concat" in one:
        return tuple(_value(part) for part in one["concat"])
    return (_value(one),)


def _value(one: Any) -> str:
    match one:
        case bool():
            raise InexactError("whether something exists: clearway has nothing like it")
        case str() | int():
            return str(one)
        case {"range": [first, last]}:
            return f"{first}-{last}"
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case {"|": parts}:
            return _bits(parts)
    raise InexactError(f"{json.dumps(one)} is not a known value")


def _bits(parts: Any) -> str:
    """Flags, joined by |: a list, one alone, or nested pairs."""
    if isinstance(parts, Mapping) and "|" in parts:
        return _bits(parts["|"])
    if isinstance(parts, list):
        return "|".join(_bits(part) for part in parts)
    return str(parts)


def verdict_map_of(content: Json) -> VerdictMap:
    """Of a `vmap` statement. InexactError when its keys or elements are not known here."""
    keys, data = keys_of(content["key"]), content["data"]
    if isinstance(data, str):
        return VerdictMap(keys, name=data.removeprefix("@"))
    return VerdictMap(keys, verdict_elements_of(data["set"]))


def verdict_elements_of(pairs: Any) -> tuple[tuple[Element, Verdict], ...]:
    found = []
    for key, value in pairs:
        [(kind, content)] = value.items()
        if kind not in VERDICTS:
            raise InexactError(f"{kind} is not a verdict")
        found.append((_element(key), verdict_of(kind, content)))
    return tuple(found)
