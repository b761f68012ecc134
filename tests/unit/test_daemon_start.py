# SPDX-License-Identifier: Apache-2.0
"""Which configuration a daemon begins with: the file's, or what the API made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from clearway.daemon import state
from clearway.daemon.run import Start, choose_start
from clearway.instance import Instance
from clearway.model import Config, ConfigError, add_service, parse_config, to_data

TEXT = "services:\n  - {name: web, address: 203.0.113.10, port: 80, protocol: tcp}\n"
BY_FILE = parse_config(TEXT)
BY_API = add_service(BY_FILE, {"name": "dns", "address": "203.0.113.10", "port": 53, "protocol": "udp"})


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    return Instance("test", tmp_path / "run", tmp_path / "state", tmp_path / "pins")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "clearway.yaml"
    path.write_text(TEXT)
    return path


def keep(instance: Instance, config: Config | object, text: str = TEXT) -> None:
    """What an earlier daemon has stored, which began with a file of this text."""
    data = to_data(config, complete=True) if isinstance(config, Config) else config
    state.prepare(instance.state, state.State(state.file_hash(text.encode()), data, 1))
    state.commit(instance.state)


def begun(instance: Instance, file: Path, *, running: bool = True) -> Start:
    return choose_start(instance, file, running=running)


def test_first_start_takes_the_file(instance: Instance, file: Path) -> None:
    start = begun(instance, file, running=False)
    assert start.config == start.file.content == BY_FILE
    assert start.file.taken == state.file_hash(TEXT.encode())
    assert start.file.seen is not None


@pytest.mark.parametrize("running", [True, False])
def test_same_file_goes_on_with_what_the_api_made_of_it(
    instance: Instance, file: Path, running: bool
) -> None:
    keep(instance, BY_API)
    start = begun(instance, file, running=running)
    assert (start.config, start.file.content) == (BY_API, BY_FILE)


def test_edited_file_is_the_later_word(instance: Instance, file: Path) -> None:
    keep(instance, BY_API)
    file.write_text(TEXT + "\n")
    assert begun(instance, file).config == BY_FILE


def test_refused_file_is_an_error_at_the_first_start(instance: Instance, file: Path) -> None:
    file.write_text("servicse: []")
    with pytest.raises(ConfigError, match="servicse"):
        begun(instance, file, running=False)


@pytest.mark.parametrize("text", ["servicse: []", None], ids=["wrong", "missing"])
def test_refused_file_leaves_a_running_data_path_as_it_was(
    instance: Instance, file: Path, text: str | None
) -> None:
    keep(instance, BY_API)
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    start = begun(instance, file)
    assert start.config == BY_API
    assert start.file.refused
    assert "\n" not in start.file.refused
    with pytest.raises(ConfigError):
        begun(instance, file, running=False)


@pytest.mark.parametrize("stored", [{"services": "none"}, [], {"later": 1}])
def test_state_of_other_ideas_is_left_aside(instance: Instance, file: Path, stored: object) -> None:
    keep(instance, stored)
    assert begun(instance, file).config == BY_FILE


def test_damaged_state_is_left_aside(instance: Instance, file: Path) -> None:
    keep(instance, BY_API)
    instance.state.write_text("{")
    assert begun(instance, file).config == BY_FILE
