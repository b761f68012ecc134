# SPDX-License-Identifier: Apache-2.0
"""YAML text to plain data, with the line of every key.

Only what a configuration needs: mappings with plain keys, lists, text, numbers, true, false, null. Keys that
are given twice, merge keys and other tags are refused, each with its line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from .errors import ConfigError, Origin, Problem, Where, shown

SIZE_MAX = 64 * 1024 * 1024
DEPTH_MAX = 20
"""Deeper than any configuration; also where an anchor that contains itself is noticed."""
VALUES_MAX = 1_000_000
"""Bounds what anchors that repeat anchors can unfold to."""
DIGITS_MAX = 40

# The parser lets a few of its own accidents out on malformed directives, anchors and escapes.
PARSER_ACCIDENTS = (
    YAMLError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    OverflowError,
)
TAG = "tag:yaml.org,2002:"
SCALARS = ("null", "bool", "int", "float", "str", "timestamp")

CHECK_LINE = "check the indentation, quotes and brackets here and on the line before"
NOT_YAML = "is not YAML that can be understood"
CHECK_SIGNS = "check its directives (%), anchors (&), tags (!) and escapes in quotes"
DOES_NOT_FIT = "this does not fit what comes before it"
PARSER_WORDS: tuple[tuple[str, str, str], ...] = (
    (r"found character '\\t' .*", "a tab stands where YAML takes spaces only", "use spaces, not tabs"),
    (r"found character '(.)' .*", "a value cannot begin with {0} here", "put it in quotes"),
    (r"but found another document", "a second document begins here (--- or ...)", "keep one"),
    (r"expected ',' or '(.)', but got '<stream end>'", "the bracket{1} is not closed with {0}", CHECK_LINE),
    (r"expected ',' or '(.)', but got .*", "a comma or {0} is missing", CHECK_LINE),
    (r"found unexpected (?:end of stream|document separator)", "the quote{1} is not closed", CHECK_LINE),
    (r"mapping values are not allowed here", "a key with a value cannot stand here", CHECK_LINE),
    (r"sequence entries are not allowed here", "a list item (-) cannot stand here", CHECK_LINE),
    (r"could not find expected ':'", "a key has no colon after it", CHECK_LINE),
    (r"expected <block end>, .*", DOES_NOT_FIT, CHECK_LINE),
    (r"expected '<document start>', .*", DOES_NOT_FIT, CHECK_LINE),
    (r"expected the node content, .*", "a value is missing here", CHECK_LINE),
    (r"found undefined alias '(.*)'", "*{0} refers to nothing", "put it in quotes, or write &{0} before it"),
    (
        r"found unknown escape character .*",
        "an escape (\\) in double quotes is unknown",
        "write two backslashes for one, or use single quotes",
    ),
)
"""The parser's words, what they mean ({0} is what they name, {1} where it begins), and what to do."""

IPV6_BARE = re.compile(r"""(?<![\w:"'\[.])\[?[0-9A-Fa-f]*:[0-9A-Fa-f]*:""")
"""What looks like the beginning of an IPv6 address without quotes."""


@dataclass(frozen=True, slots=True)
class Document:
    """What a YAML text says, and on which line each key stands."""

    data: object
    origin: Origin


def read_document(text: str | bytes, source: str) -> Document:
    """Read one YAML document. Raises ConfigError with every problem of its form."""
    root = _compose(_decode(text, source), source)
    reader = _Reader()
    data = reader.read(root, (), 0)
    origin = Origin(source, reader.lines)
    if reader.problems:
        raise origin.error(reader.problems)
    return Document(data, origin)


def quick_json(text: str | bytes) -> object:
    """What a text says that is JSON, which is YAML, too, but read a hundred times faster: rules by the ten
    thousand are written by programs. None: it is not JSON, or something is wrong with it; read_document()
    tells what.
    """
    if len(text) > SIZE_MAX or text.lstrip()[:1] not in (b"{", "{"):
        return None
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except (ValueError, RecursionError):
        return None


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _refused(source: str, what: str, fix: str, line: int | None = None) -> ConfigError:
    return ConfigError([Problem((source,), what, fix, line)], source)


def _decode(text: str | bytes, source: str) -> str:
    if len(text) > SIZE_MAX:
        raise _refused(source, f"larger than {SIZE_MAX // 1024 // 1024} MiB", "is this the right file?")
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise _refused(source, "is not UTF-8 text", "save it as UTF-8", line) from None


def _compose(text: str, source: str) -> Node:
    try:
        root: Node | None = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        what, fix = _explained(error, text, line)
        raise _refused(source, what, fix, line) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"the character U+{ord(text[error.position]):04X} is not allowed in YAML"
        raise _refused(source, what, "remove it", line) from None
    except RecursionError:
        raise _refused(source, "is nested too deeply", f"use at most {DEPTH_MAX} levels") from None
    except PARSER_ACCIDENTS:
        raise _refused(source, NOT_YAML, CHECK_SIGNS) from None
    if root is None:
        raise _refused(source, "is empty", "write at least `interfaces: []`")
    return root


def _explained(error: MarkedYAMLError, text: str, line: int | None) -> tuple[str, str]:
    """What the parser's error means, and what to do about it."""
    problem = " ".join(str(error.problem or error.context or "").split())
    begins = "" if error.context_mark is None else f" of line {error.context_mark.line + 1}"
    what, fix = NOT_YAML, CHECK_SIGNS
    for words, meaning, advice in PARSER_WORDS:
        match = re.fullmatch(words, problem)
        if match:
            named = match[1] if match.re.groups else ""
            what, fix = meaning.format(named, begins), advice.format(named)
            break
    lines = text.splitlines()
    if fix == CHECK_LINE and line is not None and line <= len(lines) and IPV6_BARE.search(lines[line - 1]):
        fix = "put IPv6 addresses in quotes"
    return what, fix


class _Reader:
    """Turns nodes into data; notes lines and problems on the way."""

    def __init__(self) -> None:
        self.lines: dict[Where, int] = {}
        self.problems: list[Problem] = []
        self.values = 0

    def read(self, node: Node, where: Where, depth: int) -> object:
        line = node.start_mark.line + 1
        self.lines.setdefault(where, line)
        self.values += 1
        if depth > DEPTH_MAX:
            self._once(where[:1], "is nested too deeply", f"use at most {DEPTH_MAX} levels", line)
            return None
        if self.values > VALUES_MAX:
            self._once(where[:1], f"more than {VALUES_MAX} values", "is this the right file?", line)
            return None
        tag = str(node.tag).removeprefix(TAG)
        match node:
            case MappingNode() if tag == "map":
                return self._mapping(node, where, depth)
            case SequenceNode() if tag == "seq":
                return [self.read(item, (*where, index), depth + 1) for index, item in enumerate(node.value)]
            case ScalarNode() if tag in SCALARS:
                return self._scalar(node.value, tag, where, line)
        self.problems.append(Problem(where, f"the tag {shown(tag)} has no meaning here", "remove it", line))
        return None

    def _once(self, where: Where, what: str, fix: str, line: int) -> None:
        """Note a problem that would otherwise come again with every node below."""
        if all(problem.what != what for problem in self.problems[-2:]):
            self.problems.append(Problem(where, what, fix, line))

    def _mapping(self, node: MappingNode, where: Where, depth: int) -> Mapping[str, object]:
        data: dict[str, object] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                self.problems.append(Problem(where, "a key must be plain text", "write key: value", line))
                continue
            key = key_node.value
            place = (*where, key)
            if key in data:
                fix = f"keep one of them, the first is on line {self.lines[place]}"
                self.problems.append(Problem(place, "is given twice", fix, line))
                continue
            self.lines[place] = line
            data[key] = self.read(value_node, place, depth + 1)
        return data

    def _scalar(self, text: str, tag: str, where: Where, line: int) -> object:
        match tag:
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return self._integer(text, where, line)
            case "float":
                return text if _is_text_float(text) else float(text.replace("_", ""))
        return text

    def _integer(self, text: str, where: Where, line: int) -> int | None:
        digits = text.replace("_", "")
        base = {"0x": 16, "0o": 8, "0b": 2}.get(digits.lstrip("+-")[:2].lower(), 10)
        if len(digits) <= DIGITS_MAX:
            try:
                return int(digits, base)
            except ValueError:
                pass
        self.problems.append(
            Problem(where, f"{shown(text)} is not a number this can be", "write a smaller one", line)
        )
        return None


def _is_text_float(text: str) -> bool:
    """Whether what YAML calls a float is none for Python (.inf): it stays text, and is refused as such."""
    try:
        float(text.replace("_", ""))
    except ValueError:
        return True
    return False
