# SPDX-License-Identifier: Apache-2.0
"""What was measured, against what, and whether that is good enough: plain data, and its form as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Result:
    """One figure. `reference` names the case it is compared with, `ratio` is value / that case's value."""

    case: str  # "masquerade IPv4, xdp"
    metric: str
    value: float
    unit: str
    reference: str | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Target:
    """A promise: `value` is to be at least `limit`, or at most. `unit` "x": they are ratios."""

    name: str
    limit: float
    value: float
    at_most: bool = False
    unit: str = "x"

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def as_dict(self) -> dict[str, object]:
        return {"name": self.name, "limit": self.limit, "value": self.value, "met": self.met}


@dataclass
class Report:
    """Everything of one run."""

    machine: dict[str, object]
    results: list[Result] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    def add(
        self, metric: str, unit: str, samples: Mapping[str, Sequence[float]], reference: str | None = None
    ) -> None:
        """Take up a metric of several cases, each with a sample a round.

        A value is the median of its samples. A ratio to the case `reference` is the median of the rounds'
        own ratios: a round is short, so a machine that is busy now and then disturbs both alike.
        """
        compared = samples.get(reference) if reference is not None else None
        for case, values in samples.items():
            value = significant(median(values))
            if compared is None or case == reference:
                self.results.append(Result(case, metric, value, unit))
            else:
                ratio = median(mine / theirs for mine, theirs in zip(values, compared, strict=True))
                self.results.append(Result(case, metric, value, unit, reference, round(ratio, 3)))

    def result(self, case: str, metric: str) -> Result:
        """KeyError when it was not measured."""
        for result in self.results:
            if (result.case, result.metric) == (case, metric):
                return result
        raise KeyError(f"{case}: {metric}")

    def ratio(self, case: str, metric: str) -> float:
        """How `case` compares; KeyError when it was not measured or has nothing to compare with."""
        ratio = self.result(case, metric).ratio
        if ratio is None:
            raise KeyError(f"{case}: {metric} is compared with nothing")
        return ratio

    def expect(self, case: str, metric: str, limit: float, *, at_most: bool = False) -> None:
        """Set a target: the ratio of a result taken up before is to be at least `limit`, or at most."""
        self.targets.append(Target(f"{case}: {metric}", limit, self.ratio(case, metric), at_most))

    def expect_at_most(self, case: str, metric: str, limit: float) -> None:
        """Set a target: the value itself of a result taken up before is to be at most `limit`."""
        result = self.result(case, metric)
        self.targets.append(Target(f"{case}: {metric}", limit, result.value, True, result.unit))

    def write(self, path: Path) -> None:
        """As JSON: {"machine": {}, "results": [], "targets": []}."""
        path.parent.mkdir(parents=True, exist_ok=True)
        targets = [target.as_dict() for target in self.targets]
        path.write_text(json.dumps({**asdict(self), "targets": targets}, indent=2) + "\n")


def significant(value: float) -> float:
    """A count as it is, a measurement rounded to four digits: there is no more in it."""
    return value if isinstance(value, int) else float(f"{value:.4g}")
