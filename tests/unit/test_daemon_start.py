# SPDX-License-Identifier: Apache-2.0
"""Which configuration a daemon begins with: the file's, or what the API made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clearway.daemon import state
from clearway.daemon.run import Start, choose_start
from clearway.instance import Instance
from clearway.model import Config, ConfigError, Problem, add_service, parse_config, to_data

TEXT = "services:\n  - {name: web, address: 203.0.113.10, port: 80, protocol: tcp}\n"
BY_FILE = parse_config(TEXT)
BY_API = add_service(BY_FILE, {"name": "dns", "address": "203.0.113.10", "port": 53, "protocol": "udp"})


def accepted(_config: Config) -> None:
    """A check that refuses nothing."""


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


def begun(
    instance: Instance, file: Path, *, running: bool = True, check: Callable[[Config], None] = accepted
) -> Start:
    return choose_start(instance, file, running=running, check=check)


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


def refuses(refused: Config) -> Callable[[Config], None]:
    """A check that the machine is not good enough for one configuration."""

    def check(config: Config) -> None:
        if config == refused:
            raise config.origin.error([Problem(("conntrack", "max_flows"), "it is too large", "use less")])

    return check


def test_what_the_machine_cannot_do_is_an_error_at_the_first_start(instance: Instance, file: Path) -> None:
    for running in (False, True):
        with pytest.raises(ConfigError, match="it is too large"):
            begun(instance, file, running=running, check=refuses(BY_FILE))


def test_what_the_machine_cannot_do_leaves_a_running_data_path_as_it_was(
    instance: Instance, file: Path
) -> None:
    keep(instance, BY_API, text="services: []")
    start = begun(instance, file, check=refuses(BY_FILE))
    assert start.config == BY_API
    assert start.file.refused == "conntrack.max_flows (line 1): it is too large; use less"
    with pytest.raises(ConfigError):
        begun(instance, file, running=False, check=refuses(BY_FILE))


def test_machine_is_asked_about_what_is_to_be_in_force(instance: Instance, file: Path) -> None:
    keep(instance, BY_API)
    assert begun(instance, file, running=False, check=refuses(BY_FILE)).config == BY_API
    with pytest.raises(ConfigError):
        begun(instance, file, running=False, check=refuses(BY_API))


@pytest.mark.parametrize("stored", [{"services": "none"}, [], {"later": 1}])
def test_state_of_other_ideas_is_left_aside(instance: Instance, file: Path, stored: object) -> None:
    keep(instance, stored)
    assert begun(instance, file).config == BY_FILE


def test_damaged_state_is_left_aside(instance: Instance, file: Path) -> None:
    keep(instance, BY_API)
    instance.state.write_text("{")
    assert begun(instance, file).config == BY_FILE
