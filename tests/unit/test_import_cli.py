# SPDX-License-Identifier: Apache-2.0
"""`clearway firewall import`: what is printed where, and the exit code."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from clearway.cli.main import run
from clearway.model import parse_config

CORPUS = Path(__file__).parent / "corpus" / "firewall"


def test_section_is_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filters, *nat = (CORPUS / "router.nft").read_text().split("table ip nat")
    assert len(nat) == 1
    file = tmp_path / "filters.nft"
    file.write_text(filters)
    assert run(["firewall", "import", str(file)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("firewall:\n")
    config = parse_config(out)
    assert config.firewall is not None
    assert [rule.name for rule in config.firewall.rules][:2] == ["input-4", "input-5"]
    assert set(config.firewall.sets) == {"bogons", "admins"}
    assert 'taken: line 35: iif "lo" accept: built in: clearway leaves the loopback interface alone\n' in err
    assert err.endswith("exact: all of 20 lines taken over\n")


def test_section_without_nat_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["firewall", "import", str(CORPUS / "router.nft")]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("# Incomplete: with 1 difference from it.\nfirewall:\n")
    [line] = [line for line in err.splitlines() if line.startswith("differs: ")]
    assert "masquerade" in line
    assert line.endswith("write it as nat:")


def test_incomplete_section_says_so_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["firewall", "import", str(CORPUS / "ufw.iptables")]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(
        "# Incomplete: without 7 rules of what it was made of, and with 3 differences from it.\nfirewall:\n"
    )
    assert parse_config(out).firewall is not None
    [line] = [line for line in err.splitlines() if line.startswith("NOT TAKEN: line 120: ")]
    assert line == (
        "NOT TAKEN: line 120: -A ufw6-before-input -m rt --rt-type 0 -j DROP: `-m rt`: clearway has nothing"
        " like it; the rules behind it decide instead: rule ufw6-before-input-4 accepts what it drops"
    )
    assert err.endswith("incomplete: 7 lines not taken over, 3 lines taken over with differences\n")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["firewall", "import", str(CORPUS / "firewalld.json"), "-o", "json"]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert not err
    assert found["exact"] is False
    assert set(found) == {"firewall", "taken", "not_taken", "differences", "notes", "exact"}
    assert set(found["not_taken"][0]) == {"line", "text", "why"}
    assert parse_config(json.dumps({"firewall": found["firewall"]})).firewall is not None


def test_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = (CORPUS / "mail.iptables").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert run(["firewall", "import", "-"]) == 0
    assert "name: input-admin-ssh" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"hello", "'hello' is neither of nft nor of iptables-save"),
        (b"\xff\xfe", "this is no text"),
        (b"", "there are no rules in it"),
        (None, "give a file that can be read"),
    ],
)
def test_what_cannot_be_read(
    content: bytes | None, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rules"
    if content is not None:
        file.write_bytes(content)
    assert run(["firewall", "import", str(file)]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"clearway: {file}: ")
    assert what in err
    assert err.count("\n") == 1


def test_group_alone_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["firewall"]) == 2
    assert "import" in capsys.readouterr().out
