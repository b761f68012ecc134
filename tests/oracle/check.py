# SPDX-License-Identifier: Apache-2.0
"""The verdict about a case, with everything that is needed to see it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.oracle.case import Case
from tests.oracle.lab import Pair, Side
from tests.oracle.play import Played, no_fault, play
from tests.oracle.script import script

RESULTS = Path(__file__).parents[2] / "build" / "oracle"


def check(pair: Pair, case: Case, fault: Callable[[Side], None] = no_fault) -> Played:
    """Play a case; what became of it.

    AssertionError where the labs differ, with the differences and a script that shows them. Script and case
    are in build/oracle as well. (Of a case that is made smaller and smaller the last one stays there.)
    """
    played = play(pair, case, fault)
    if not played.differences:
        return played
    text = script(case, played, pair.hook)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{pair.hook}.json").write_text(case.to_json())
    written = RESULTS / f"{pair.hook}.sh"
    written.write_text(text)
    raise AssertionError(
        "\n".join(
            [
                *played.differences,
                f"Again: python -m tests.oracle --hook {pair.hook} --replay {written.with_suffix('.json')}",
                f"or by this script, {written}:",
                text,
            ]
        )
    )
