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
    """A promise: `value`, a ratio, is to be at least `limit`."""

    name: str
    limit: float
    value: float
    met: bool


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

    def ratio(self, case: str, metric: str) -> float:
        """How `case` compares; KeyError when it was not measured or has nothing to compare with."""
        for result in self.results:
            if (result.case, result.metric) == (case, metric) and result.ratio is not None:
                return result.ratio
        raise KeyError(f"{case}: {metric}")

    def expect(self, case: str, metric: str, limit: float) -> None:
        """Set a target: the ratio of a result taken up before is to be at least `limit`."""
        value = self.ratio(case, metric)
        self.targets.append(Target(f"{case}: {metric}", limit, value, value >= limit))

    def write(self, path: Path) -> None:
        """As JSON: {"machine": {}, "results": [], "targets": []}."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


def significant(value: float) -> float:
    """A count as it is, a measurement rounded to four digits: there is no more in it."""
    return value if isinstance(value, int) else float(f"{value:.4g}")
