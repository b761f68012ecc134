# SPDX-License-Identifier: Apache-2.0
"""What `nft -j list ruleset` prints (man libnftables-json), as steps. Nothing in it is too strange:
what is not known here is opaque.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from operator import and_, or_, xor
from typing import Any

from clearway.importer.box import Boxes, common
from clearway.importer.conditions import Condition, Limits, boxes_of
from clearway.importer.errors import InexactError, UnreadableError
from clearway.importer.nft_json import (
    VERDICTS,
    keys_of,
    map_of,
    match_of,
    set_of,
    table_of,
    verdict_map_of,
    verdict_of,
)
from clearway.importer.nft_rule import FAMILIES_OF, Table, Verdict, VerdictMap, map_elements, rejected
from clearway.importer.ruleset import Verb

from .back import back_of
from .mangle import change_of
from .marks import KEYS, Change, marks_of, number
from .result import RuleName
from .steps import Act, Chains, StepChain, Steps, unproven
from .written import written

Json = Mapping[str, Any]
LIMITS = Limits(combinations=4096, complement=4096)
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError)
"""What reading JSON that is not as expected comes to."""
ACTS = {
    Verb.ACCEPT: Act.ACCEPT,
    Verb.DROP: Act.DROP,
    Verb.REJECT: Act.DROP,
    Verb.JUMP: Act.JUMP,
    Verb.GOTO: Act.GOTO,
    Verb.RETURN: Act.RETURN,
}
WHY = {
    "limit": "counts packets against a rate",
    "quota": "counts bytes against a quota",
    "ct count": "counts connections",
    "log": "logs packets",
    "queue": "gives packets to a program",
    "set": "changes a set",
    "map": "changes a map",
    "meter": "changes a set",
    "dup": "copies packets",
    "fwd": "sends packets elsewhere",
    "tproxy": "gives packets to a socket",
    "synproxy": "answers for a server",
    "notrack": "takes packets from conntrack",
    "last": "notes the time of each packet",
}
ONLY_LOOKS = frozenset(
    (
        *("meta", "ct", "payload", "exthdr", "tcp option", "ip option", "rt", "fib", "socket", "osf"),
        *("ipsec", "tunnel", "jhash", "symhash", "concat", "&", "|", "^", "<<", ">>"),
    )
)
"""Expressions that change nothing by being asked."""
BITWISE = {"&": and_, "|": or_, "^": xor}
SHIFTS = {"<<": 1, ">>": -1}
MARKS = PACKETS_MARK, CONNECTIONS_MARK = {"meta": {"key": "mark"}}, {"ct": {"key": "mark"}}


TRACKING = ("ct", "masquerade", "redirect")
"""Words for whose sake connections are tracked, in every family of the table."""
OF_FAMILY = {"ip": (4,), "ip6": (6,)}


@dataclass(slots=True)
class NftRuleset:
    """`extended`: tables with expressions of which JSON tells no more than the name (xt)."""

    chains: Chains = field(default_factory=dict)
    extended: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Table:
    """A table's sets, and those of them that packets change."""

    content: Table = field(default_factory=lambda: Table(limits=LIMITS))
    changed: set[str] = field(default_factory=set)
    branches: dict[VerdictMap, list[tuple[Boxes, Verdict]]] = field(default_factory=dict)


def read_nft(text: str) -> NftRuleset:
    """Raises UnreadableError when this is not JSON of nft at all."""
    if not text.strip():
        return NftRuleset()
    try:
        objects = [next(iter(one.items())) for one in json.loads(text)["nftables"]]
        return _Reader(objects).found
    except (*UNREADABLE, RecursionError) as error:
        raise UnreadableError(f"this is not what `nft -j list ruleset` prints: {error!r}") from None


class _Reader:
    def __init__(self, objects: list[tuple[str, Json]]) -> None:
        self.found = NftRuleset()
        names = {content["name"] for kind, content in objects if kind == "table"}
        self.dormant = {
            f"{content['family']} {content['name']}"
            for kind, content in objects
            if kind == "table" and _dormant(content, names)
        }
        self.tables: dict[str, _Table] = {}
        for kind, content in objects:
            if kind == "rule":
                self._table(content).changed.update(_changes(content))
        for kind, content in objects:
            if kind in {"set", "map"}:
                self._set(kind, content)
            elif kind == "chain" and table_of(content) not in self.dormant:
                self.found.chains[table_of(content), content["name"]] = _chain(content)
        for kind, content in objects:
            if kind == "rule" and table_of(content) not in self.dormant:
                self._rule(content)

    def _table(self, content: Json) -> _Table:
        return self.tables.setdefault(table_of(content), _Table())

    def _set(self, kind: str, content: Json) -> None:
        table, name = self._table(content), content["name"]
        if "stmt" in content or _has_statements(content.get("elem", ())):
            table.changed.add(name)
        if kind == "set":
            table.content.sets[name] = set_of(content, "")
        elif content.get("map") == "verdict":
            table.content.maps[name] = map_of(content)

    def _rule(self, content: Json) -> None:
        table = self._table(content)
        chain = self.found.chains[table_of(content), content["chain"]]
        expressions = content.get("expr", [])
        if any("xt" in one for one in expressions):
            self.found.extended.add(table_of(content))
        text = written(expressions, content.get("comment", ""))
        position = len(chain.rules) + 1
        name = RuleName(chain.family, chain.table, chain.name, position, content.get("handle"), text)
        steps = _Statements(table, chain.families)
        steps.read(expressions)
        steps.tracks = frozenset(_tracked(expressions, chain.families))
        chain.rules.append(steps.rule(name))


def _dormant(content: Json, names: set[str]) -> bool:
    """nftables 1.0.6 prints the name of some table in the place of flags: then it cannot be told."""
    flags = content.get("flags", ())
    return "dormant" in flags if isinstance(flags, list) else flags == "dormant" and flags not in names


def _chain(content: Json) -> StepChain:
    family = content["family"]
    chain = StepChain(family, content["table"], content["name"], FAMILIES_OF.get(family, ()))
    if "hook" in content:
        chain.kind, chain.hook = content["type"], content["hook"]
        chain.priority, chain.drops = content["prio"], content.get("policy") == "drop"
        devices = content.get("dev", ())
        chain.devices = (devices,) if isinstance(devices, str) else tuple(devices)
    return chain


def _changes(content: Json) -> Iterator[str]:
    """Names of the sets that a rule changes."""
    for one in content.get("expr", ()):
        for kind in ("set", "map"):
            if isinstance(one.get(kind), Mapping) and isinstance(one[kind].get(kind), str):
                yield one[kind][kind].removeprefix("@")


def _has_statements(part: Any) -> bool:
    """Whether elements of a set do more than being in it."""
    if isinstance(part, list):
        return any(_has_statements(one) for one in part)
    if not isinstance(part, Mapping):
        return False
    if "elem" in part and set(part["elem"]) - {"val", "comment"}:
        return True
    return any(_has_statements(one) for one in part.values())


class _Statements(Steps):
    """The statements of a rule."""

    def __init__(self, table: _Table, families: tuple[int, ...]) -> None:
        super().__init__(table.content, families)
        self.of_table = table

    def read(self, statements: list[Json]) -> None:
        for one in statements:
            [(kind, content)] = one.items()
            try:
                self._statement(kind, content)
            except (*UNREADABLE, InexactError):
                self.opaque(f"`{written([one])}` is not known here")

    def _statement(self, kind: str, content: Any) -> None:
        match kind:
            case "match":
                self._match(content)
            case "counter" if not content or isinstance(content, str) or "packets" in content:
                self.add(Act.COUNT, content if isinstance(content, str) else "")
            case "flow" if content["op"] == "add":
                # Done with the rule is, too, who is in the flowtable already (NFT_BREAK, nft_flow_offload.c).
                self.doubt(f"stands behind `{written([{kind: content}])}`, which ends the rule for some")
            case "vmap":
                self._verdict_map(content)
            case "mangle":
                self._mangle(content)
            case "xt" if isinstance(content, Mapping) and content.get("name") == "comment":
                pass
            case "xt":
                self.opaque("JSON does not tell what this is; iptables-nft-save does")
            case _ if kind in VERDICTS:
                self._verdict(verdict_of(kind, content), self.boxes)
            case _:
                self.opaque(WHY.get(kind, f"`{written([{kind: content}])}` is not known here"))

    def _verdict(self, verdict: Verdict, boxes: Boxes) -> None:
        if verdict.verb in ACTS:
            target = verdict.target if verdict.verb in {Verb.JUMP, Verb.GOTO} else verdict.verb.value
            self.add(ACTS[verdict.verb], target, rejected(boxes, verdict))

    def _match(self, content: Json) -> None:
        left, right = content["left"], content["right"]
        if "exthdr" in left:
            self._header(content)
            return
        if asked := back_of(left):
            back, marked = asked
            self.ask_back(back, exists=_exists(content), marked=marked)
            return
        condition = None
        with suppress(InexactError):
            condition = match_of(content)
        if self._changed(right) or not set(left) <= ONLY_LOOKS or _has(left, "numgen"):
            self.narrow(condition.keys if condition else ())
            self.opaque(f"`{written([{'match': content}])}` changes by being asked, or by itself")
        if condition is None:
            self.doubt(unproven(f"`{written([{'match': content}])}`"))
        else:
            self.ask(condition)

    def _header(self, content: Json) -> None:
        """An extension header of IPv6. Nothing has one, and what asks for a field of it is not met either."""
        if not isinstance(content["right"], bool) or content["right"] == (content["op"] == "=="):
            self.never()
        elif any(box.family == 4 for box in self.boxes):  # IPv4 may meet it or not, by the version of nft
            self.doubt(unproven(f"`{written([{'match': content}])}`"))

    def _changed(self, part: Any) -> bool:
        named = isinstance(part, str) and part.startswith("@") and part[1:] in self.of_table.changed
        return named or _has_statements(part)

    def _verdict_map(self, content: Json) -> None:
        """Who meets no element is done with the rule (NFT_BREAK, net/netfilter/nft_lookup.c), and so is who
        comes back from a chain that an element leads to: only `continue` goes on.
        """
        if self._changed(content["data"]) or _has(content["key"], "numgen"):
            self.opaque(f"`{written([{'vmap': content}])}` changes by being asked, or by itself")
        mapped = verdict_map_of(content)
        if len(mapped.keys) == 1 and mapped.keys[0] in KEYS:
            self._branch_by_mark(mapped)
            return
        going_on: Boxes = ()
        for boxes, verdict in self._branches(mapped):
            if here := common(self.boxes, boxes):
                going_on += self._element(verdict, here)
        self.boxes = going_on

    def _element(self, verdict: Verdict, boxes: Boxes) -> Boxes:
        """What of the packets that meet it goes on in the rule."""
        self._verdict(verdict, boxes)
        return boxes if verdict.verb is Verb.NOTHING else ()

    def _branch_by_mark(self, mapped: VerdictMap) -> None:
        [key] = mapped.keys
        if key == "ct mark":
            self.add(Act.CONNMARK)
        going_on: Boxes = ()
        for element, verdict in map_elements(mapped, self.table):
            wanted = marks_of(Condition(mapped.keys, "==", (element,)), {})
            going_on += self._element(verdict, self.mark_of(key).where(wanted, self.boxes))
        self.boxes = going_on

    def _branches(self, mapped: VerdictMap) -> list[tuple[Boxes, Verdict]]:
        """Once for each map: it may be large, and many rules name the same."""
        known = self.of_table.branches
        if mapped not in known:
            known[mapped] = [
                (boxes_of(Condition(mapped.keys, "==", (key,)), {}, LIMITS), verdict)
                for key, verdict in map_elements(mapped, self.table)
            ]
        return known[mapped]

    def _mangle(self, content: Json) -> None:
        key, value = content["key"], content["value"]
        if key == PACKETS_MARK:
            self.set_mark(self._mark(value))
        elif key == CONNECTIONS_MARK:
            self.save_mark(self._mark(value))
        elif "tcp option" in key and key["tcp option"].get("name") == "maxseg":
            self.clamp()
        elif change := change_of(key, value):
            self.narrow([key["payload"]["protocol"]])
            self.mangle(change)
        else:
            if "field" in key.get("payload", ()):
                self.narrow([key["payload"]["protocol"]])
            self.opaque(f"`{written([{'mangle': content}])}` changes packets or their connection")

    def _mark(self, value: Any) -> Change:
        """What an expression of marks is. InexactError when it is of something else."""
        if isinstance(value, int):
            return number(value)
        if value in MARKS:
            return self.mark_of(" ".join(keys_of(value)))
        [(operator, parts)] = value.items()
        if operator in SHIFTS:
            shifted, bits = parts
            return self._mark(shifted).shifted(SHIFTS[operator] * bits)
        if operator not in BITWISE:
            raise InexactError(f"{operator} is not known of marks")
        return reduce(BITWISE[operator], map(self._mark, parts))


def _exists(content: Json) -> bool:
    """Of a match whether something is there, rather than missing. ValueError for other matches."""
    if not isinstance(content["right"], bool) or content["op"] not in {"==", "!="}:
        raise ValueError(content)
    return bool(content["right"] == (content["op"] == "=="))


def _has(part: Any, word: str) -> bool:
    if isinstance(part, Mapping):
        return word in part or any(_has(one, word) for one in part.values())
    return isinstance(part, list) and any(_has(one, word) for one in part)


def _tracked(expressions: list[Json], families: tuple[int, ...]) -> Iterator[int]:
    """Families whose connections are tracked for the sake of a rule (nf_ct_netns_get; net/netfilter/nft_ct.c,
    nft_masq.c, and nft_nat.c, where it is the family of the address).
    """
    for one in expressions:
        for content in (one.get("snat"), one.get("dnat")):
            if content is not None:
                yield from OF_FAMILY.get((content or {}).get("family", ""), families)
        if any(_has(one, word) for word in TRACKING):
            yield from families
