# SPDX-License-Identifier: Apache-2.0
"""What goes wrong: a whole text that cannot be read, or one part of a rule that has no exact counterpart."""

from __future__ import annotations


class UnreadableError(Exception):
    """The text is no ruleset that is known here. str() says where, what, and what to do."""


class InexactError(Exception):
    """A part of a rule cannot be said exactly in a clearway rule. str() says why."""
