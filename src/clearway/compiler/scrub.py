# SPDX-License-Identifier: Apache-2.0
"""From lists of prefixes to what the data path looks up: for each kind and family all of them in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

from clearway.model import Config, ListContent, Prefixes, PrefixList, Problem, Scrub
from clearway.model.scrub import LISTS_MAX

from .allocate import NoRoomError, assign_ids
from .facts import Clock, HostFacts
from .firewall import identity_of
from .prefix_index import prefix_image
from .tables import ScrubTables

FAMILIES = (4, 6)
NOTHING = ListContent.of(Prefixes())
ENTRIES_MAX = 1_048_576
"""Of each family, in all lists of a kind."""


def compile_scrub(config: Config, facts: HostFacts, before: ScrubTables | None) -> ScrubTables | None:
    """None: nothing is listed by anybody. While a file is not known what was before stays, if there is
    anything; otherwise the others count. Raises ConfigError when it is more than there is room for.
    """
    scrub = config.scrub
    if scrub is None or not scrub.lists:
        return None
    if before is not None and any(
        one.file is not None and one.file not in facts.lists for one in scrub.lists
    ):
        return before
    contents = {one.name: _content(one, facts.lists) for one in scrub.lists}
    _require_room(config, scrub, contents)
    numbers = _numbers(scrub, before.numbers if before else {})
    digest = _digest(scrub, contents, numbers, facts.clock)
    if before is not None and before.digest == digest:
        return before
    seed = int.from_bytes(digest[:8])
    images = {
        (allow, family): prefix_image(
            [(numbers[identity_of(one.name)], contents[one.name].families[family]) for one in lists],
            family,
            facts.clock,
            seed,
        )
        for allow, lists in _kinds(scrub)
        for family in FAMILIES
    }
    return ScrubTables(digest, numbers, images)


def _kinds(scrub: Scrub) -> tuple[tuple[bool, Sequence[PrefixList]], ...]:
    return (False, scrub.blocklists), (True, scrub.allowlists)


def _content(one: PrefixList, lists: Mapping[str, ListContent]) -> ListContent:
    return (
        lists.get(one.file, NOTHING) if one.file is not None else ListContent.of(one.prefixes or Prefixes())
    )


def _require_room(config: Config, scrub: Scrub, contents: Mapping[str, ListContent]) -> None:
    problems = [
        Problem(
            ("scrub", "allowlists" if allow else "blocklists"),
            f"{listed:,} entries of IPv{family} are more than the {ENTRIES_MAX:,} that there is room for",
            "use fewer, or shorter prefixes",
        )
        for allow, lists in _kinds(scrub)
        for family in FAMILIES
        if (listed := sum(len(contents[one.name].families[family]) for one in lists)) > ENTRIES_MAX
    ]
    if problems:
        raise config.origin.error(problems)


def _numbers(scrub: Scrub, held: Mapping[int, int]) -> dict[int, int]:
    """Of each list, by its identity: what counters hang on."""
    wanted = [identity_of(one.name) for one in scrub.lists]
    try:
        return assign_ids(wanted, held, LISTS_MAX)[0]
    except NoRoomError:
        # Numbers of lists that go are given out at once only if there are no others, as ids of services.
        kept = {key: held[key] for key in wanted if key in held}
        return assign_ids(wanted, kept, LISTS_MAX)[0]


def _digest(
    scrub: Scrub, contents: Mapping[str, ListContent], numbers: Mapping[int, int], clock: Clock
) -> bytes:
    """Where anything expires, of when as well: the clock by which that was said may have been set since."""
    digest = blake2b(digest_size=16)
    if any(content.expires for content in contents.values()):
        digest.update(clock.step.to_bytes(8, signed=True))
    for allow, lists in _kinds(scrub):
        for one in lists:
            digest.update(bytes([allow, numbers[identity_of(one.name)]]) + contents[one.name].digest)
            digest.update(one.name.encode() + b"\0")
    return digest.digest()
