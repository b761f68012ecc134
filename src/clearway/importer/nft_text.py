# SPDX-License-Identifier: Apache-2.0
"""What `nft list ruleset` prints (man nft), read without nft."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .conditions import Element, NamedSet
from .errors import InexactError, UnreadableError
from .names import UniqueNames, plain
from .nft_rule import CHANGES, FAMILIES_OF, PRIORITIES, Table, Verdict, rule_of
from .nft_statements import Tokens, element_list, statements, verdict_elements
from .ruleset import Chain, Ruleset, Verb

TOKEN = re.compile(
    r"""(?P<string>"[^"\n]*")|(?P<comment>\#[^\n]*)|(?P<newline>\n)"""
    r"""|(?P<joined>\\[ \t]*\n)|(?P<space>[ \t\r]+)"""
    r"""|(?P<sign>[{}();,|&]|[!=<>]=|[<>!=])|(?P<word>[^\s{}();,|&!=<>"\#\\]+)"""
)
SKIPPED = ("counter", "quota", "limit", "flowtable", "ct", "secmark", "synproxy")
"""Objects of a table that rules may name, and that decide nothing by themselves."""
POLICY_BEHIND = re.compile(r";[ \t]*policy \w+")
HANDLE = re.compile(r"# handle \d+\s*")


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    line: int
    start: int
    end: int


def read_nft_text(text: str) -> Ruleset:
    """Raises UnreadableError."""
    return _Reader(text).ruleset()


def tokens_of(text: str) -> Iterator[Token]:
    position, line = 0, 1
    while position < len(text):
        found = TOKEN.match(text, position)
        if found is None:
            raise UnreadableError(f"line {line}: {text[position : position + 20]!r} is not nft's language")
        kind = str(found.lastgroup)
        if kind not in {"space", "joined"}:
            yield Token(kind, found[0].strip('"') if kind == "string" else found[0], line, *found.span())
        line += found[0].count("\n")
        position = found.end()
    yield Token("newline", "\n", line, position, position)


class _Reader:
    """Goes through the tokens once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(tokens_of(text))
        self.at = 0
        self.chains: dict[tuple[str, str], Chain] = {}
        self.tables: dict[str, Table] = {}
        self.pending: list[tuple[Chain, list[Token]]] = []
        self.labels = UniqueNames()

    def ruleset(self) -> Ruleset:
        while token := self._next_significant():
            if token.text == "table":
                self._table()
            elif token.text == "flush":
                self._rest_of_line()
            else:
                raise UnreadableError(
                    f"line {token.line}: {token.text!r} is not what `nft list ruleset` prints;"
                    " load the file with nft and give what that prints"
                )
        for chain, line in self.pending:  # sets may stand after the rules that name them
            self._rule(chain, line)
        return Ruleset(self.chains)

    # ---- tokens ----

    def _next(self) -> Token:
        if self.at >= len(self.tokens):
            raise UnreadableError(f"line {self.tokens[-1].line}: the text ends where }} is missing")
        self.at += 1
        return self.tokens[self.at - 1]

    def _next_significant(self) -> Token | None:
        """The next that is no comment and no end of a line; None at the end of the text."""
        while self.at < len(self.tokens):
            token = self._next()
            if token.kind not in {"comment", "newline"} and token.text != ";":
                return token
        return None

    def _need(self) -> Token:
        token = self._next_significant()
        if token is None:
            raise UnreadableError(f"line {self.tokens[-1].line}: the text ends where }} is missing")
        return token

    def _rest_of_line(self) -> list[Token]:
        """Up to the end of the line or `;`, but whole braces."""
        found: list[Token] = []
        depth = 0
        while True:
            token = self._next()
            depth += {"{": 1, "}": -1}.get(token.text, 0) if token.kind == "sign" else 0
            if depth < 0:
                self.at -= 1  # the brace that closes the block
                return found
            if depth == 0 and (token.kind == "newline" or token.text == ";"):
                return found
            if token.kind != "newline":
                found.append(token)

    def _words_until_brace(self) -> list[str]:
        found = []
        while (token := self._need()).text != "{":
            found.append(token.text)
        if not found:
            raise UnreadableError(f"line {token.line}: a name is missing before {{")
        return found

    # ---- blocks ----

    def _table(self) -> None:
        words = self._words_until_brace()
        family, name = ("ip", words[0]) if len(words) == 1 else (words[0], words[-1])
        table = f"{family} {name}"
        self.tables.setdefault(table, Table())
        dormant = False
        while (token := self._need()).text != "}":
            if token.text == "chain":
                self._chain(table, token.line)
            elif token.text in {"set", "map"}:
                self._set(table, token.text)
            elif token.text in SKIPPED:
                self._words_until_brace()
                self._block()
            elif token.text == "flags":
                dormant = "dormant" in [one.text for one in self._rest_of_line()]
            else:
                self._rest_of_line()
        if dormant:
            self.chains = {key: chain for key, chain in self.chains.items() if key[0] != table}

    def _block(self) -> list[list[Token]]:
        """The lines up to the brace that closes the block."""
        lines = []
        while self._need().text != "}":
            self.at -= 1
            lines.append(self._rest_of_line())
        return lines

    def _chain(self, table: str, line: int) -> None:
        name = self._words_until_brace()[-1]
        families = FAMILIES_OF.get(table.split(" ", maxsplit=1)[0], ())
        chain = self.chains.setdefault((table, name), Chain(name, table, line, f"chain {name}", families))
        for found in self._block():
            words = [token.text for token in found if token.kind != "comment"]
            if words[:1] == ["type"]:
                _read_header(chain, words, found[0].line)
                chain.line, chain.text = found[0].line, self._source(found)
            elif words in (["policy", "accept"], ["policy", "drop"]):
                chain.policy = Verb(words[1])
            elif words and words[0] not in {"comment", "devices", "flags"}:
                self.pending.append((chain, found))

    def _source(self, tokens: Sequence[Token]) -> str:
        """As it was written, up to `;` after a policy that stands behind it."""
        last = tokens[-1]
        rest = POLICY_BEHIND.match(self.text, last.end)
        return " ".join(self.text[tokens[0].start : rest.end() if rest else last.end].split())

    def _rule(self, chain: Chain, found: list[Token]) -> None:
        hidden = [token.text for token in found if token.kind == "comment" and not HANDLE.match(token.text)]
        tokens = [token for token in found if token.kind != "comment"]
        said = statements(Tokens([(token.kind, token.text) for token in tokens]))
        if hidden and said.mapped is None and said.verdict.verb is Verb.NOTHING:
            # Versions before 1.0 print what they cannot translate of iptables-nft behind a #.
            said.reasons.append(f"the rest of it may be hidden in the comment {hidden[0]}")
            said.verdict = Verdict(Verb.UNKNOWN)
        rule = rule_of(said, tokens[0].line, self._source(tokens), self.tables[chain.table])
        chain.rules.append(rule)

    def _set(self, table: str, kind: str) -> None:
        name = self._words_until_brace()[-1]
        unusable, elements = "", []
        for found in self._block():
            words = [token.text for token in found]
            if words[0] == "elements":
                elements = [(token.kind, token.text) for token in found if token.kind != "comment"][2:]
            elif words[0] == "timeout" or (words[0] == "flags" and {"dynamic", "timeout"} & set(words)):
                unusable = CHANGES
        if kind == "map":
            self._map(table, name, elements, unusable)
            return
        found_elements: tuple[Element, ...] = ()
        try:
            found_elements = element_list(Tokens(elements)) if elements else ()
        except InexactError as error:
            unusable = unusable or str(error)
        label = self.labels.unique(plain(name) or "set")
        self.tables[table].sets[name] = NamedSet(label, found_elements, unusable)

    def _map(self, table: str, name: str, elements: list[tuple[str, str]], unusable: str) -> None:
        found: tuple[tuple[Element, Verdict], ...] | str
        try:
            found = unusable or (verdict_elements(Tokens(elements)) if elements else ())
        except InexactError as error:
            found = str(error)
        self.tables[table].maps[name] = found


def _read_header(chain: Chain, words: Sequence[str], line: int) -> None:
    """type filter hook input priority filter - 10"""
    if len(words) < 6 or words[2] != "hook" or "priority" not in words:
        raise UnreadableError(f"line {line}: {' '.join(words)!r} is not how a chain begins")
    chain.kind, chain.hook = words[1], words[3]
    chain.priority = priority_of(words[words.index("priority") + 1 :])


def priority_of(words: Sequence[str]) -> int:
    """filter - 10: what is said by names, signs and numbers."""
    total, sign = 0, 1
    for word in words:
        if word in {"+", "-"}:
            sign = 1 if word == "+" else -1
        elif word in PRIORITIES:
            total += PRIORITIES[word]
        elif word.lstrip("+-").isdigit():
            total += sign * int(word)
    return total
