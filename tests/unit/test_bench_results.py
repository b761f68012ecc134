# SPDX-License-Identifier: Apache-2.0
"""How `make bench` gets from samples to ratios and targets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.results import Report, significant


def test_value_is_the_median_of_the_samples() -> None:
    report = Report({})
    report.add("rate", "1/s", {"linux": [10.0, 30.0, 20.0]})
    (result,) = report.results
    assert (result.value, result.reference, result.ratio) == (20.0, None, None)


def test_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    report = Report({})
    # A machine that was busy in the last two rounds: medians alone would say 10 / 20.
    report.add(
        "rate", "1/s", {"linux": [20.0, 20.0, 20.0, 4.0, 4.0], "tc": [40.0, 40.0, 40.0, 10.0, 8.0]}, "linux"
    )
    linux, tc = report.results
    assert linux.ratio is None
    assert (tc.reference, tc.ratio) == ("linux", 2.0)


def test_case_that_was_not_measured_cannot_be_a_reference() -> None:
    report = Report({})
    report.add("rate", "1/s", {"tc": [40.0]}, "linux")
    assert report.results[0].ratio is None
    with pytest.raises(KeyError):
        report.expect("tc", "rate", 1.0)


@pytest.mark.parametrize(("measured", "met"), [(15.0, True), (14.0, False)])
def test_target_is_met_from_its_limit_on(measured: float, met: bool) -> None:
    report = Report({})
    report.add("rate", "1/s", {"linux": [10.0], "tc": [measured]}, "linux")
    report.expect("tc", "rate", 1.5)
    assert [target.met for target in report.targets] == [met]


@pytest.mark.parametrize(("measured", "met"), [(15.0, True), (16.0, False)])
def test_ratio_may_be_held_to_an_upper_limit(measured: float, met: bool) -> None:
    report = Report({})
    report.add("time", "ns", {"hash": [10.0], "table": [measured]}, "hash")
    report.expect("table", "time", 1.5, at_most=True)
    assert [target.met for target in report.targets] == [met]


@pytest.mark.parametrize(("measured", "met"), [(900.0, True), (901.0, False)])
def test_value_may_be_held_to_an_upper_limit(measured: float, met: bool) -> None:
    report = Report({})
    report.add("time", "ns", {"table": [measured]})
    report.expect_at_most("table", "time", 900)
    (target,) = report.targets
    assert (target.value, target.unit, target.met) == (measured, "ns", met)


def test_value_that_was_not_measured_cannot_have_a_limit() -> None:
    with pytest.raises(KeyError):
        Report({}).expect_at_most("table", "time", 900)


@pytest.mark.parametrize(("value", "rounded"), [(1234567.0, 1235000.0), (0.123456, 0.1235), (104729, 104729)])
def test_measurements_are_rounded_and_counts_are_not(value: float, rounded: float) -> None:
    assert significant(value) == rounded


def test_report_is_written_as_documented(tmp_path: Path) -> None:
    report = Report({"cores": 2})
    report.add("rate", "1/s", {"linux": [10.0], "tc": [20.0]}, "linux")
    report.expect("tc", "rate", 1.5)
    report.write(tmp_path / "deep/transit.json")
    assert json.loads((tmp_path / "deep/transit.json").read_text()) == {
        "machine": {"cores": 2},
        "results": [
            {
                "case": "linux",
                "metric": "rate",
                "value": 10.0,
                "unit": "1/s",
                "reference": None,
                "ratio": None,
            },
            {
                "case": "tc",
                "metric": "rate",
                "value": 20.0,
                "unit": "1/s",
                "reference": "linux",
                "ratio": 2.0,
            },
        ],
        "targets": [{"name": "tc: rate", "limit": 1.5, "value": 2.0, "met": True}],
    }
