# SPDX-License-Identifier: Apache-2.0
"""Files of lists: what is wrong with one of them harms nobody, and is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clearway.daemon import listfiles
from clearway.daemon.listfiles import UNREST, ListFiles, ListWatch
from clearway.model import Config, ConfigError, config_from_data


def config(*paths: Path) -> Config:
    lists = [{"name": f"list{number}", "file": str(path)} for number, path in enumerate(paths)]
    return config_from_data({"interfaces": [], "scrub": {"blocklists": lists}})


def everything(_path: str) -> bool:
    return True


def nothing(_path: str) -> bool:
    return False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "bad.txt"
    made.write_text("192.0.2.1\n")
    return made


def test_file_is_read_once_until_it_changes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ListFiles()
    [first] = files.load(config(path), everything).values()
    monkeypatch.setattr(listfiles, "read_list", lambda *_: pytest.fail("it is the same file"))
    [again] = files.load(config(path), everything).values()
    assert again is first and len(first) == 1
    monkeypatch.undo()
    path.write_text("192.0.2.1\n192.0.2.2\n")
    [changed] = files.load(config(path), everything).values()
    assert len(changed) == 2


def broken(path: Path, how: str) -> None:
    if how == "broken":
        path.write_text("192.0.2.1\nbad\n")
        return
    path.unlink()
    match how:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "empty":
            path.touch()
        case "large":
            path.write_text("#\n")
            os.truncate(path, listfiles.SIZE_MAX + 1)


HOW = {
    "missing": "cannot be read: No such file or directory",
    "fifo": "is no file",
    "directory": "cannot be read: Is a directory",
    "device": "is no file",
    "empty": "is empty",
    "large": "is larger than 256 MiB",
    "broken": '(line 2): "bad" is not an IPv4 or IPv6 prefix',
}


@pytest.mark.parametrize("how", HOW)
def test_file_that_breaks_stays_as_it_was_and_is_told(path: Path, how: str) -> None:
    files = ListFiles()
    held = files.load(config(path), everything)
    broken(path, how)
    assert files.load(config(path), nothing) == held
    [sentence] = files.waiting(config(path))
    assert f"{path}" in sentence and HOW[how] in sentence and sentence.endswith("what it was before stays")
    with pytest.raises(ConfigError) as caught:
        files.load(config(path), everything)
    assert HOW[how] in str(caught.value) and "scrub.blocklists[0].file" in str(caught.value)


@pytest.mark.parametrize("how", HOW)
def test_file_that_was_never_right_is_left_out(path: Path, how: str) -> None:
    broken(path, how)
    files = ListFiles()
    assert files.load(config(path), nothing) == {}
    [sentence] = files.waiting(config(path))
    assert HOW[how] in sentence and sentence.endswith("nothing is taken of it")
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_text("192.0.2.1\n")
    assert len(files.load(config(path), everything)) == 1
    assert files.waiting(config(path)) == []


def test_few_words_are_said_of_a_file_that_is_no_list(path: Path) -> None:
    path.write_text("one,two,three\n" * 200_000)
    with pytest.raises(ConfigError) as caught:
        ListFiles().load(config(path), everything)
    assert len(caught.value.problems) == 10


def test_what_a_plan_names_is_not_what_is_in_force(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("192.0.2.0/24\n")
    files = ListFiles()
    files.load(config(path), everything)
    files.load(config(other), everything)
    assert files.seen(str(path)) is not None and files.seen(str(other)) is not None
    files.forget_others(config(path))
    assert files.seen(str(other)) is None


def test_change_is_told_once_when_it_has_rested(path: Path) -> None:
    files = ListFiles()
    files.load(config(path), everything)
    watch = ListWatch(files)
    assert watch.look(config(path), 0) == []
    path.write_text("192.0.2.1\n192.0.2.2\n")
    assert [watch.look(config(path), now) for now in (0.5, 1.0, 1.5)] == [[], [str(path)], []]
    files.load(config(path), everything)
    assert watch.look(config(path), 2.0) == []
    path.unlink()
    assert [watch.look(config(path), now) for now in (2.5, 3.0, 3.5)] == [[], [str(path)], []]


def test_file_that_never_rests_is_told_now_and_then(path: Path) -> None:
    files = ListFiles()
    files.load(config(path), everything)
    watch = ListWatch(files)
    told = []
    for step in range(40):
        with path.open("a") as file:
            file.write(f"192.0.2.{step}\n")
        told.append(bool(watch.look(config(path), step / 2)))
    assert sum(told) >= 2
    assert told.index(True) / 2 <= UNREST + 1
