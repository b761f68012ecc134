# SPDX-License-Identifier: Apache-2.0
"""The words of one nft rule as statements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from .conditions import MEANINGS, Condition, Element, known
from .errors import InexactError
from .nft_rule import CHANGES, Statements, Verdict, VerdictMap
from .ruleset import Verb

TWO_WORDS = frozenset(
    (
        "ip",
        "ip6",
        "tcp",
        "udp",
        "sctp",
        "dccp",
        "udplite",
        "th",
        "icmp",
        "icmpv6",
        "meta",
        "ct",
        "vlan",
        "ether",
    )
)
INTERFACE_KEYS = frozenset({"iif", "iifname", "oif", "oifname"})
OPERATORS = {
    "==": "==",
    "!=": "!=",
    "<": "<",
    ">": ">",
    "<=": "<=",
    ">=": ">=",
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "gt": ">",
    "le": "<=",
    "ge": ">=",
    "!": "!",
}
BITS = frozenset({"tcp flags", "ct state"})
"""What has several values at once: `a,b` is any of them."""
LOG_OPTIONS = frozenset({"prefix", "group", "snaplen", "queue-threshold", "level", "flags"})
PLAIN_VERDICTS = frozenset({"accept", "drop", "return"})
NO_EFFECT: tuple[tuple[str, ...], ...] = (("meta", "nftrace", "set"), ("flow", "add"), ("flow", "offload"))
SIDE_EFFECTS = frozenset({"add", "update", "delete", "notrack", "dup", "fwd", "dnat", "snat", "masquerade"})


class Tokens:
    """Kinds and texts, taken from the front."""

    def __init__(self, tokens: Sequence[tuple[str, str]]) -> None:
        self.tokens = list(tokens)
        self.at = 0

    def __bool__(self) -> bool:
        return self.at < len(self.tokens)

    def peek(self, ahead: int = 0) -> str:
        """ "" at the end. Strings are never taken for words of the language."""
        at = self.at + ahead
        if at >= len(self.tokens):
            return ""
        kind, text = self.tokens[at]
        return f'"{text}"' if kind == "string" else text

    def take(self) -> str:
        if not self:
            raise InexactError("it ends too early")
        self.at += 1
        return self.tokens[self.at - 1][1]

    def take_if(self, *texts: str) -> bool:
        if self.peek() not in texts:
            return False
        self.at += 1
        return True

    def need(self, text: str) -> None:
        if not self.take_if(text):
            raise InexactError(f"{self.peek() or 'its end'} stands where {text} is needed")

    def rest(self) -> str:
        return " ".join(self.peek(ahead) for ahead in range(len(self.tokens) - self.at))


def statements(tokens: Tokens) -> Statements:
    """What a rule says. From the first statement that is not known on, only its verdict is looked for."""
    said = Statements()
    while tokens:
        begin = tokens.at
        try:
            _statement(tokens, said)
        except InexactError as error:
            tokens.at = begin
            said.reasons.append(f"`{_shown(tokens)}`: {error}")
            _only_verdict(tokens, said)
            break
    return said


def _shown(tokens: Tokens) -> str:
    """The beginning of what is left."""
    text = tokens.rest()
    return text if len(text) <= 60 else f"{text[:57]}..."


def _statement(tokens: Tokens, said: Statements) -> None:
    reader = READERS.get(tokens.peek())
    if reader is not None:
        reader(tokens, said)
    elif any(all(tokens.peek(i) == word for i, word in enumerate(words)) for words in NO_EFFECT):
        tokens.at = len(tokens.tokens) if tokens.peek() == "flow" else tokens.at + 4
    elif _is_side_effect(tokens):
        said.side_effect = tokens.rest()
        raise InexactError("changes packets or state, which no rule of a firewall does here")
    else:
        _expression(tokens, said)


def _is_side_effect(tokens: Tokens) -> bool:
    option = (tokens.peek(), tokens.peek(1)) == ("tcp", "option")
    return tokens.peek() in SIDE_EFFECTS or tokens.peek(4 if option else 2) == "set"


def _counter(tokens: Tokens, _said: Statements) -> None:
    tokens.need("counter")
    if tokens.take_if("name"):
        tokens.take()
    while tokens.take_if("packets", "bytes"):
        tokens.take()


def _comment(tokens: Tokens, said: Statements) -> None:
    tokens.need("comment")
    said.comment = tokens.take()


def _log(tokens: Tokens, said: Statements) -> None:
    tokens.need("log")
    said.log = True
    while tokens.peek() in LOG_OPTIONS:
        tokens.take()
        tokens.take()
        while tokens.take_if(","):
            tokens.take()


def _plain_verdict(tokens: Tokens, said: Statements) -> None:
    said.verdict = Verdict(Verb(tokens.take()))


def _continue(tokens: Tokens, _said: Statements) -> None:
    tokens.need("continue")


def _to_chain(tokens: Tokens, said: Statements) -> None:
    verb = Verb(tokens.take())
    said.verdict = Verdict(verb, tokens.take())


def _reject(tokens: Tokens, said: Statements) -> None:
    tokens.need("reject")
    how = "default"
    if tokens.take_if("with"):
        how = tokens.take()
        tokens.take_if("type")
        how = f"{how} {tokens.take()}"
    said.verdict = Verdict(Verb.REJECT, how)


def _limit(tokens: Tokens, said: Statements) -> None:
    """limit rate [over] 5/second [burst 5 packets]"""
    begin = tokens.at
    tokens.need("limit")
    tokens.need("rate")
    tokens.take_if("over")
    rate = tokens.take()
    if "/" not in rate:  # 10 mbytes/second
        tokens.take()
    if tokens.take_if("burst"):
        tokens.take()
        tokens.take()
    words = " ".join(text for _kind, text in tokens.tokens[begin : tokens.at])
    said.reasons.append(f"`{words}`: clearway has nothing like it")


def _queue(tokens: Tokens, said: Statements) -> None:
    said.verdict = Verdict(Verb.UNKNOWN, tokens.rest())
    tokens.at = len(tokens.tokens)


READERS: Mapping[str, Callable[[Tokens, Statements], None]] = {
    "counter": _counter,
    "comment": _comment,
    "log": _log,
    "limit": _limit,
    "accept": _plain_verdict,
    "drop": _plain_verdict,
    "return": _plain_verdict,
    "continue": _continue,
    "jump": _to_chain,
    "goto": _to_chain,
    "reject": _reject,
    "queue": _queue,
}
VERDICTS = frozenset({"accept", "drop", "return", "jump", "goto", "reject", "queue"})


def _only_verdict(tokens: Tokens, said: Statements) -> None:
    """Of a rule that is not understood: its verdict, its comment, and whether it logs."""
    if not said.side_effect:
        said.verdict = Verdict(Verb.UNKNOWN)
    depth = 0
    while tokens:
        word = tokens.peek()
        depth += {"{": 1, "}": -1}.get(word, 0)
        if depth == 0 and word in VERDICTS | {"comment", "log"} and tokens.peek(1) != "set":
            with suppress(InexactError):  # it ends too early, which is no verdict
                READERS[word](tokens, said)
            continue
        if depth == 0 and word == "vmap":
            said.verdict = Verdict(Verb.UNKNOWN, "a map of verdicts")
        tokens.at += 1


def _expression(tokens: Tokens, said: Statements) -> None:
    keys = [_key(tokens)]
    while tokens.take_if("."):
        keys.append(_key(tokens))
    if tokens.take_if("vmap"):
        name = tokens.peek()
        if name.startswith("@"):
            said.mapped = VerdictMap(tuple(keys), name=tokens.take()[1:])
        else:
            said.mapped = VerdictMap(tuple(keys), verdict_elements(tokens))
        return
    said.ask(_condition(tuple(keys), tokens))


def _key(tokens: Tokens) -> str:
    first = tokens.take()
    if first in INTERFACE_KEYS:
        return f"meta {first}"
    if first == "fib" and (tokens.peek(), tokens.peek(1)) == ("daddr", "type"):
        tokens.at += 2
        return "fib daddr type"
    if first not in TWO_WORDS:
        raise InexactError("clearway has nothing like it")
    key = f"{first} {tokens.take()}"
    if not known(key) and key not in MEANINGS:
        raise InexactError("clearway has nothing like it")
    return key


def _condition(keys: tuple[str, ...], tokens: Tokens) -> Condition:
    mask = _mask(tokens) if tokens.take_if("&") else ""
    written = OPERATORS.get(tokens.peek())
    if written:
        tokens.take()
    if tokens.peek() == "{":
        return Condition(keys, written or "==", element_list(tokens), mask)
    bits = len(keys) == 1 and keys[0] in BITS
    elements = _listed(tokens, keys)
    if tokens.take_if("/"):  # VALUE / MASK
        value = "|".join(element[0] for element in elements)
        return Condition(keys, written or "==", ((value,),), "|".join(_flag_list(tokens)))
    if len(elements) > 1 and (not bits or written in {"==", "!="}):
        raise InexactError("a list without braces is not known here")
    any_of = bits and not mask and written is None
    return Condition(keys, "in" if any_of else written or "==", elements, mask)


def _listed(tokens: Tokens, keys: tuple[str, ...]) -> tuple[Element, ...]:
    if len(keys) == 1 and keys[0] in BITS:
        return tuple((text,) for text in _flag_list(tokens))
    return (_element(tokens),)


def _flag_list(tokens: Tokens) -> list[str]:
    """a,b or a|b or (a|b): the latter is one."""
    found = [_ored(tokens)]
    while tokens.take_if(","):
        found.append(_ored(tokens))
    return found


def _ored(tokens: Tokens) -> str:
    if tokens.take_if("("):
        text = _ored(tokens)
        tokens.need(")")
        return text
    text = tokens.take()
    while tokens.take_if("|"):
        text += f"|{tokens.take()}"
    return text


def _mask(tokens: Tokens) -> str:
    return "|".join(_flag_list(tokens))


def _element(tokens: Tokens) -> Element:
    """A value, or values joined by dots."""
    found = [_ored(tokens)]
    while tokens.take_if("."):
        found.append(_ored(tokens))
    return tuple(found)


def element_list(tokens: Tokens) -> tuple[Element, ...]:
    """{ VALUE [. VALUE]... [comment TEXT] [counter ...], ... }"""
    tokens.need("{")
    found = []
    while not tokens.take_if("}"):
        found.append(_element(tokens))
        _skip_options(tokens)
        if tokens.peek() != "}":
            tokens.need(",")
    return tuple(found)


def _skip_options(tokens: Tokens) -> None:
    """What may stand behind an element and does not change what it means."""
    while tokens.peek() in {"comment", "counter"}:
        READERS[tokens.peek()](tokens, Statements())
    if tokens.peek() in {"timeout", "expires"}:
        raise InexactError(CHANGES)
    if tokens.peek() in {"limit", "quota", "ct"}:
        raise InexactError("its elements have conditions")


def verdict_elements(tokens: Tokens) -> tuple[tuple[Element, Verdict], ...]:
    """{ KEY : VERDICT, ... }"""
    tokens.need("{")
    found = []
    while not tokens.take_if("}"):
        element = _element(tokens)
        _skip_options(tokens)
        tokens.need(":")
        said = Statements()
        if tokens.peek() not in VERDICTS - {"queue"}:
            raise InexactError(f"clearway has no verdict like {tokens.peek()}")
        READERS[tokens.peek()](tokens, said)
        found.append((element, said.verdict))
        _skip_options(tokens)
        if tokens.peek() != "}":
            tokens.need(",")
    return tuple(found)
