# SPDX-License-Identifier: Apache-2.0
"""Which of the known languages a text is in."""

from __future__ import annotations

import re

from .errors import UnreadableError
from .iptables import read_iptables
from .nft_json import read_nft_json
from .nft_text import read_nft_text
from .result import Imported
from .ruleset import Ruleset
from .translate import translate


def import_firewall(text: str) -> Imported:
    """Raises UnreadableError when the text as a whole is not understood."""
    return translate(read_ruleset(text))


def read_ruleset(text: str) -> Ruleset:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise UnreadableError("there are no rules in it")
    if lines[0].lstrip().startswith("{"):
        return read_nft_json(text)
    if lines[0].startswith("*"):
        return read_iptables(text)
    if re.match(r"\s*(table|flush)\b", lines[0]):
        return read_nft_text(text)
    raise UnreadableError(
        f"{lines[0].strip()[:40]!r} is neither of nft nor of iptables-save; give what `nft list ruleset`,"
        " `nft -j list ruleset`, `iptables-save` or `ip6tables-save` prints"
    )
