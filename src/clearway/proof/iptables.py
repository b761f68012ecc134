# SPDX-License-Identifier: Apache-2.0
"""What iptables-nft-save and ip6tables-nft-save print (man iptables-extensions), as steps.

Matches are asked in their order; the counters of a rule count what meets all of them, then the target acts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from clearway.importer.conditions import Condition
from clearway.importer.errors import InexactError, UnreadableError
from clearway.importer.iptables import (
    CHAIN,
    COUNTERS,
    IN_FAMILY,
    MODULES,
    OPTIONS,
    PRIORITIES,
    Line,
    Reader,
    reading,
    words_of,
)
from clearway.importer.marks import MARK_MAX
from clearway.importer.nft_rule import Table

from .back import back_of_rpfilter
from .mangle import FieldChange, change_of_target
from .marks import CONNECTION, PACKET, Change, number
from .nft import LIMITS
from .result import RuleName
from .steps import Act, Chains, StepChain, StepRule, Steps, unproven

VERDICTS = {"ACCEPT": Act.ACCEPT, "DROP": Act.DROP, "REJECT": Act.DROP, "RETURN": Act.RETURN}
OF_MARKS = {"mark": "meta mark", "connmark": "ct mark"}
KNOWN = MODULES | set(OF_MARKS) | {"pkttype", "rpfilter"}
TRACKING = frozenset(
    [
        *(("-m", name) for name in ("conntrack", "state", "connmark")),
        *(("-j", name) for name in ("SNAT", "DNAT", "MASQUERADE", "REDIRECT", "NETMAP", "CONNMARK")),
    ]
)
"""For whose sake the kernel tracks connections."""
RPFILTER = ("--loose", "--validmark", "--accept-local", "--invert")
HEADERS = frozenset({"rt", "frag", "hbh", "dst"})
"""Modules for extension headers of IPv6, which meet nothing where there is none."""


def read_save(text: str, family: int) -> Chains:
    """The chains of all tables that the text holds. Raises UnreadableError."""
    chains: Chains = {}
    lines: list[tuple[StepChain, str]] = []
    table = ""
    for place, line in enumerate(text.split("\n"), 1):
        said = COUNTERS.sub("", line.strip(), count=1) if line.startswith("[") else line.strip()
        if said.startswith("*"):
            table = said[1:].strip()
        elif found := CHAIN.fullmatch(said):
            chains[f"{IN_FAMILY[family]} {table}", found[1]] = _chain(found[1], found[2], table, family)
        elif said.startswith("-A "):
            key = f"{IN_FAMILY[family]} {table}", said.split(" ", 2)[1]
            if key not in chains:
                raise UnreadableError(f"line {place}: there is no chain {key[1]}")
            lines.append((chains[key], said))
        elif said and not said.startswith("#") and said != "COMMIT":
            raise UnreadableError(f"line {place}: {said[:40]!r} is not what iptables-save prints")
    for chain, said in lines:
        chain.rules.append(_rule(said, chain, family, chains))
    return chains


def _chain(name: str, policy: str, table: str, family: int) -> StepChain:
    chain = StepChain(IN_FAMILY[family], table, name, (family,))
    if policy != "-":
        chain.kind = "nat" if table == "nat" else "filter"
        chain.hook, chain.priority = name.lower(), PRIORITIES.get(table, 0)
        if chain.kind == "nat" and chain.hook in {"postrouting", "input"}:
            chain.priority = -chain.priority
        chain.drops, chain.counts = policy == "DROP", True
    return chain


def _rule(text: str, chain: StepChain, family: int, chains: Chains) -> StepRule:
    words = list(words_of(text))[2:]
    steps, line = _Matches(family), Line(family)
    steps.read(line, words)
    steps.tracks = frozenset() if TRACKING.isdisjoint(pairwise(words)) else frozenset([family])
    steps.add(Act.COUNT)
    _target(steps, line, calls=(chain.label, line.target) in chains)
    return steps.rule(RuleName(chain.family, chain.table, chain.name, len(chain.rules) + 1, None, text))


class _Matches(Steps):
    """The matches of a rule. `module`: of which the options are read. `rpfilter`: its options so far."""

    def __init__(self, family: int) -> None:
        super().__init__(Table(limits=LIMITS), (family,))
        self.family = family
        self.module = ""
        self.rpfilter: list[str] = []

    def read(self, line: Line, words: list[str]) -> None:
        options: Mapping[str, Reader] = {
            **OPTIONS,
            "-m": self._module,
            "-f": _fragment,
            "--mark": self._mark,
            "--pkt-type": _packet_type,
            **{option: self._rpfilter(option) for option in RPFILTER},
        }
        asked = doubted = 0
        for _option in reading(line, words, options):
            for condition in line.conditions[asked:]:
                self.ask(condition)
            for why in line.reasons[doubted:]:
                option, said, _error = why.partition("`: ")
                if said:
                    self.doubt(unproven(f"{option}`"))
                else:  # a value is missing, or looks like an option: what follows may mean anything
                    self.opaque(why)
            asked, doubted = len(line.conditions), len(line.reasons)
        self._filter()

    def _rpfilter(self, option: str) -> Reader:
        def read(_line: Line, _values: list[str], _negated: bool) -> None:
            if self.module != "rpfilter":
                raise InexactError("it is not known here")
            self.rpfilter.append(option)

        return read

    def _filter(self) -> None:
        """When all options of -m rpfilter have been read. It matters to what meets all other matches."""
        if self.rpfilter:
            back, marked = back_of_rpfilter(self.rpfilter, self.family)
            self.ask_back(back, exists="--invert" not in self.rpfilter, marked=marked)
        self.rpfilter = []

    def _module(self, _line: Line, values: list[str], _negated: bool) -> None:
        """Of known ones the options say everything; others may count, or change, with every packet."""
        self.module = values[0]
        if self.module in HEADERS:
            self.never()
        elif self.module == "rpfilter":
            self._filter()
            self.rpfilter = ["-m rpfilter"]
        elif self.module not in KNOWN:
            self.opaque(f"-m {self.module} is not known to be the same for every packet")
            raise InexactError("it is not known here")

    def _mark(self, line: Line, values: list[str], negated: bool) -> None:
        if self.module not in OF_MARKS:
            raise InexactError("it is not known here")
        value, _slash, mask = values[0].partition("/")
        operator = "!=" if negated else "=="
        line.conditions.append(Condition((OF_MARKS[self.module],), operator, ((value,),), mask))


def _fragment(line: Line, _values: list[str], negated: bool) -> None:
    operator = "==" if negated else "!="
    line.conditions.append(Condition(("ip frag-off",), operator, (("0",),), "0x1fff"))


def _packet_type(line: Line, values: list[str], negated: bool) -> None:
    line.conditions.append(Condition(("meta pkttype",), "!=" if negated else "==", ((values[0],),)))


def _target(steps: Steps, line: Line, *, calls: bool) -> None:
    target = line.target
    if calls:
        steps.add(Act.GOTO if line.goto else Act.JUMP, target)
    elif target in VERDICTS:
        steps.add(VERDICTS[target], target.lower())
    elif target == "TCPMSS":
        steps.clamp()
    elif target in {"MARK", "CONNMARK"}:
        try:
            _set_mark(steps, target, line.target_words)
        except (InexactError, ValueError):
            steps.opaque(f"-j {' '.join([target, *line.target_words])} is not known here")
    elif change := _change(line):
        steps.mangle(change)
    elif target:
        steps.opaque(f"-j {target} does something with every packet")


def _change(line: Line) -> FieldChange | None:
    try:
        return change_of_target(line.target, line.target_words)
    except ValueError:
        return None


def _set_mark(steps: Steps, target: str, words: Sequence[str]) -> None:
    """What xt_mark.c and xt_connmark.c do. ValueError, InexactError."""
    match target, words:
        case "MARK", ["--set-xmark", said]:
            steps.set_mark(_replaced(PACKET, said))
        case "CONNMARK", ["--set-xmark", said]:
            steps.save_mark(_replaced(CONNECTION, said))
        case "CONNMARK", ["--save-mark", *masks]:
            nfmask, ctmask = _masks(masks)
            steps.save_mark(CONNECTION & ~ctmask ^ PACKET & nfmask)
        case "CONNMARK", ["--restore-mark", *masks]:
            nfmask, ctmask = _masks(masks)
            steps.set_mark(PACKET & ~nfmask ^ CONNECTION & ctmask)
        case _:
            raise InexactError("it is not known here")


def _replaced(mark: Change, said: str) -> Change:
    """VALUE[/MASK]"""
    value, _slash, mask = said.partition("/")
    return mark & ~number(int(mask, 0) if mask else MARK_MAX) ^ number(int(value, 0))


def _masks(words: Sequence[str]) -> tuple[Change, Change]:
    """Of the packet's mark and of the connection's."""
    said = dict(zip(words[::2], words[1::2], strict=True))
    masks = [number(int(said.pop(name, hex(MARK_MAX)), 0)) for name in ("--nfmask", "--ctmask")]
    if said:
        raise InexactError("it is not known here")
    return masks[0], masks[1]
