# SPDX-License-Identifier: Apache-2.0
"""Which counters a path around netfilter has to make up for: those that the packets it carries would meet."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np

from clearway.importer.box import common
from clearway.importer.marks import ANY_MARK

from .marks import Column
from .passages import Mask, Passages, Rows, among
from .region import start, views_of
from .result import Counted
from .steps import Act, Chains, Step, StepChain, StepRule

Met = tuple[Counted, Rows]
NOBODY: Rows = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Counting:
    """Passages through a base chain. None of them is kept, so everything that they meet is certain. `marks`:
    of their packets, by passage; changed on the way.
    """

    base: StepChain
    chains: Chains
    passages: Passages
    marks: Column

    def met(self) -> Iterator[Met]:
        """Counters with the passages that meet them, in the order of the rules. A counter comes again where
        several jumps lead to it; a passage meets it as often as it is named.
        """
        left = yield from self._through(self.base, np.arange(len(self.passages)))
        if self.base.counts and len(left):
            yield Counted(self.base.policy), left

    def _through(self, chain: StepChain, rows: Rows) -> Generator[Met, None, Rows]:
        """The generator's value: those that come out."""
        out = [NOBODY]
        for rule, step, had in self._steps(chain):
            if not len(rows):
                break
            mask = self._mask(step, rows, had)
            if not mask.any():
                continue
            here, others = rows[mask], rows[~mask]
            match step.act:
                case Act.COUNT:
                    yield Counted(rule.name, step.text), here
                case Act.MARK:
                    self.marks[here] = step.mark.of(had[here], self.passages.mark[here])
                case Act.ACCEPT:
                    rows = others
                case Act.RETURN:
                    out.append(here)
                    rows = others
                case Act.JUMP:
                    left = yield from self._called(chain, step, here)
                    rows = np.concatenate([others, left])
                case Act.GOTO:
                    out.append((yield from self._called(chain, step, here)))
                    rows = others
        return np.concatenate([*out, rows])

    def _steps(self, chain: StepChain) -> Iterator[tuple[StepRule, Step, Column]]:
        """With the marks that packets have before the rule, which its steps ask for."""
        for rule in chain.rules:
            calls = sum(step.calls for step in rule.steps)
            had = self.marks.copy() if rule.marks or calls > 1 else self.marks
            for step in rule.steps:
                yield rule, step, had

    def _called(self, chain: StepChain, step: Step, rows: Rows) -> Generator[Met, None, Rows]:
        return self._through(self.chains[chain.label, step.text], rows)

    def _mask(self, step: Step, rows: Rows, had: Column) -> Mask:
        whole = start(self.base.hook, self.base.priority, self.passages.family)
        view = views_of(self.base.hook, self.base.priority)[0]
        mask = np.zeros(len(rows), np.bool_)
        for box in common(step.boxes, (whole,)):
            inside = self.passages.within(box, whole, view, rows)
            if box.mark is not ANY_MARK:
                inside &= among(had[rows], box.mark)
            mask |= inside
        return mask
