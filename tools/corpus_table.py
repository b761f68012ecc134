# SPDX-License-Identifier: Apache-2.0
"""What clearway carries of the traffic through the rulesets in tests/corpus, as a table. Root: it loads them.

python -m tools.corpus_table            prints it
python -m tools.corpus_table --write    puts it into docs/transparent.md
python -m tools.corpus_table --check    fails when docs/transparent.md has another one
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from clearway.lab.run import LabError
from clearway.proof import Passage, Proof, RuleName, Sources, prove
from tests.corpus.router import loaded
from tests.corpus.rulesets import NAMES, Address, Direction, Ruleset, Traffic, Tuple, read

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "transparent.md"
BEGIN, END = "<!-- python -m tools.corpus_table --write -->\n", "<!-- end of the table -->\n"
CODE = re.compile(r"`[^`]*`")
"""How a rule is spelt depends on the version of nft and iptables."""


def table() -> str:
    """The table in Markdown, a row for each ruleset. LabError when the caller is not root."""
    head = ["| ruleset | rules | accelerated | kept in Linux |", "|---|--:|--:|---|"]
    return "\n".join([*head, *(row(read(name)) for name in NAMES)]) + "\n"


def row(ruleset: Ruleset) -> str:
    with loaded(ruleset) as router:
        listed = router.listed()
        proof = prove(Sources(nft=listed, saves={"ip": router.saved(4), "ip6": router.saved(6)}))
    rules = sum("rule" in item for item in json.loads(listed)["nftables"])
    kept: defaultdict[str, list[Traffic]] = defaultdict(list)
    for traffic in ruleset.traffic:
        if traffic.forwarded and (why := why_kept(proof, traffic)) is not None:
            kept[why].append(traffic)
    cells = [ruleset.title, f"{rules:,}", f"{100 - sum(map(share, kept.values())):g} %", reasons(kept)]
    return f"| {' | '.join(cells)} |"


def why_kept(proof: Proof, traffic: Traffic) -> str | None:
    """What keeps a connection in Linux: either of its directions is enough."""
    for direction in traffic.directions:
        keep = proof.why_kept(passage(traffic, direction))
        if keep is not None:
            return keep.why if keep.rule is None else code(keep.rule)
    return None


def code(rule: RuleName) -> str:
    """A rule by its chain and text; its place says less, and changes with the kernel that numbers it."""
    text = f"{rule.chain}: {rule.text.removeprefix(f'-A {rule.chain} ')}"
    return f"`{text}`".replace("|", "\\|")


def share(several: list[Traffic]) -> float:
    return sum(traffic.share for traffic in several)


def reasons(kept: dict[str, list[Traffic]]) -> str:
    said = (f"{share(all_):g} % ({'; '.join(one.name for one in all_)}): {why}" for why, all_ in kept.items())
    return "<br>".join(said) or "nothing"


def passage(traffic: Traffic, direction: Direction) -> Passage:
    return Passage(
        family=traffic.family,
        protocol=traffic.protocol,
        arrives=fields(direction.arrives),
        leaves=fields(direction.leaves),
        inside=direction.inside,
        outside=direction.outside,
        mark=traffic.mark,
    )


def fields(packet: Tuple) -> tuple[Address, int, Address, int]:
    return packet.source, packet.sport, packet.destination, packet.dport


def written(text: str) -> str:
    """The document with another table. ValueError when it has no place for one."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{DOCUMENT} has no place for the table: {BEGIN.strip()} ... {END.strip()}")
    return f"{before}{BEGIN}{table()}{END}{after}"


def same(one: str, other: str) -> bool:
    """Whether two documents say the same, in whatever words of nft and iptables."""
    return CODE.sub("", one) == CODE.sub("", other)


def main() -> int:
    try:
        match sys.argv[1:]:
            case []:
                print(table(), end="")
            case ["--write"]:
                DOCUMENT.write_text(written(DOCUMENT.read_text()))
            case ["--check"]:
                if not same(text := DOCUMENT.read_text(), written(text)):
                    raise ValueError(
                        f"{DOCUMENT} is not what is proved: python -m tools.corpus_table --write"
                    )
            case _:
                raise ValueError("python -m tools.corpus_table [--write | --check]")
    except (LabError, ValueError) as error:
        print(f"clearway: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
