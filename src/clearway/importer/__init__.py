# SPDX-License-Identifier: Apache-2.0
"""Firewalls of Linux as clearway's `firewall:` section. Text in, rules and an account of every line out.

    text -> detect.py -> iptables.py, nft_text.py or nft_json.py, with conditions.py
         -> ruleset.py: chains of rules, each of boxes (box.py) of packets
         -> flatten.py: one list a hook, without jumps
         -> translate.py, judge.py, express.py: clearway's rules; account.py: what became of every line

index.py finds the boxes that may concern one, so that none of this compares every rule with every other.

Nothing is guessed: what has no exact counterpart is left out and said. Needs no kernel, and no `nft`.
"""

from .detect import import_firewall
from .errors import UnreadableError
from .result import Imported, Item

__all__ = ["Imported", "Item", "UnreadableError", "import_firewall"]
