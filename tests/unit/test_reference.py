# SPDX-License-Identifier: Apache-2.0
"""The reference of the configuration says what the models say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from clearway.model import Config
from clearway.model.messages import models_in

ROOT = Path(__file__).resolve().parents[2]


def keys(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        for inner in models_in(field.annotation):
            yield from keys(inner)


def test_committed_reference_is_what_the_models_say() -> None:
    command = [sys.executable, "tools/configuration_reference.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_every_key_is_in_the_reference() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    missing = [key for key in keys(Config) if f"| `{key}` |" not in text]
    assert not missing


def test_every_key_says_what_it_means() -> None:
    def undescribed(model: type[BaseModel]) -> Iterator[str]:
        for name, field in model.model_fields.items():
            if not field.description:
                yield f"{model.__name__}.{name}"
            for inner in models_in(field.annotation):
                yield from undescribed(inner)

    assert list(undescribed(Config)) == []
