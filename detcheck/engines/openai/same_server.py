"""Whether two base URLs lead to one server: then comparing them compares nothing."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from urllib.parse import urlsplit

from detcheck.engines.openai.client import Address, address_of
from detcheck.engines.openai.endpoint import Endpoint
from detcheck.engines.openai.metrics import Counters
from detcheck.engines.openai.probing import probe
from detcheck.evidence import EndpointCheck

GREETING = "Say hello."
ROUNDS = 2
COUNTERS_S = 0.1
"""Time that a server gets to count a reply that has just ended; three times."""
DAY_S = 86_400
LOOK_S = 5.0
"""Time for a connection that only shows where it leads."""
WEB_PORTS = (80, 443)
_NUMBER = re.compile(r"(?:\d+|(?<=[-_])[0-9a-f]+)$")
_VERSION = re.compile(r"(?<![\d.])\d+\.\d+(?:\.\d+)?(?![\d.])")


@dataclass(slots=True)
class Sighting:
    """Signs, in the replies of one endpoint, of the server behind it."""

    id_numbers: list[int] = field(default_factory=list)
    """Numbers at the end of its replies' ids, one a round; fewer if some ids have none."""
    id_step: int | None = None
    """By how much that number grew between two replies with no other endpoint asked between."""
    instance: set[tuple[str, str]] = field(default_factory=set)
    """Headers that name a machine or process."""
    address: Address | None = None
    """Where its connections lead."""
    moved_with: set[str] = field(default_factory=set)
    """Placements whose counters were equal to its own while only one of the two was asked."""


async def check(endpoints: Sequence[Endpoint], temperature: float) -> None:
    """Ask all endpoints in turn, twice, and add a check to all but the first.

    The check is decisive: an endpoint that is another's server makes the verdict inconclusive.
    """
    sightings = {one.placement: await _first_look(one, temperature) for one in endpoints}
    for _ in range(ROUNDS):
        for asked in endpoints:
            await _look(asked, endpoints, sightings, temperature)
    found = {
        (one.placement, other.placement): sign
        for one, other in combinations(endpoints, 2)
        if (sign := _sign(one, other, sightings)) is not None
    }
    for endpoint in endpoints[1:]:
        same = [one for (one, other) in found if other == endpoint.placement]
        endpoint.checks.append(_check(same, found[same[0], endpoint.placement] if same else ""))


async def one_place(one_url: str, other_url: str) -> str | None:
    """The sign that both URLs lead to one port; None if there is none. Connects to both."""
    one, other = [await address_of(url, LOOK_S) for url in (one_url, other_url)]
    return _one_place(one_url, other_url, one, other)


def _check(same: Sequence[str], sign: str) -> EndpointCheck:
    name = "another server"
    if not same:
        return EndpointCheck(name, True, "nothing shows that it is the server of another endpoint")
    sentence = f"it is the server of {same[0]} ({sign}): there is nothing to compare"
    return EndpointCheck(name, False, sentence, decisive=True)


async def _first_look(endpoint: Endpoint, temperature: float) -> Sighting:
    """Two replies of one endpoint in a row: how it numbers them."""
    endpoint.on_wait(f"looking whether {endpoint.name} is another endpoint's server")
    replies = [(await probe(endpoint, GREETING, temperature)).reply for _ in range(2)]
    first, second = (_number(reply.reply_id) for reply in replies)
    step = None if first is None or second is None else second - first
    return Sighting(id_step=step, address=await endpoint.client.address())


async def _look(
    asked: Endpoint,
    endpoints: Sequence[Endpoint],
    sightings: dict[str, Sighting],
    temperature: float,
) -> None:
    """Ask one endpoint, and read the counters of all before and afterwards."""
    own, place = sightings[asked.placement], asked.placement
    before = {one.placement: await one.watch.read() for one in endpoints}
    reply = (await probe(asked, GREETING, temperature)).reply
    number = _number(reply.reply_id)
    own.id_numbers += [] if number is None else [number]
    own.instance |= reply.instance
    for _ in range(3):
        after = {one.placement: await one.watch.read() for one in endpoints}
        if after[place] != before[place]:
            break
        await asyncio.sleep(COUNTERS_S)
    for other in sightings:
        if other != place and _moved_together(place, other, before, after):
            own.moved_with.add(other)


def _moved_together(
    asked: str, other: str, before: dict[str, Counters], after: dict[str, Counters]
) -> bool:
    """True if two servers' counters are equal throughout, although only one was asked."""
    then, now = before[asked].generation_tokens, after[asked].generation_tokens
    grown = then is not None and now is not None and now > then
    return grown and before[asked] == before[other] and after[asked] == after[other]


def _sign(one: Endpoint, other: Endpoint, sightings: dict[str, Sighting]) -> str | None:
    """The sign that both are one server; None if there is none."""
    ours, theirs = sightings[one.placement], sightings[other.placement]
    if other.placement in ours.moved_with and one.placement in theirs.moved_with:
        return "their counters move together"
    started = one.watch.started_at, other.watch.started_at
    if started[0] is not None and started[0] == started[1]:
        return "both name the same start of their process"
    if _counted_in_turn(ours, theirs):
        return "the ids of their replies are counted by one counter"
    shared = sorted(pair for pair in ours.instance & theirs.instance if _is_specific(pair[1]))
    if shared:
        return f"both answer with the header {shared[0][0]}: {shared[0][1]}"
    return _one_place(one.name, other.name, ours.address, theirs.address)


def _counted_in_turn(ours: Sighting, theirs: Sighting) -> bool:
    """True if the other's replies are counted between one's own: the own step then grows."""
    if not len(ours.id_numbers) == len(theirs.id_numbers) == ROUNDS:
        return False
    first, second = zip(ours.id_numbers, theirs.id_numbers, strict=True)
    grew = all(
        one.id_step is not None and 0 < one.id_step < one.id_numbers[1] - one.id_numbers[0]
        for one in (ours, theirs)
    )
    return grew and first[0] < first[1] < second[0] < second[1]


def _number(reply_id: str | None) -> int | None:
    """The number at the end of an id, decimal or hexadecimal; None if it is made of the time."""
    match = _NUMBER.search(reply_id or "")
    if match is None or len(match[0]) > 16:
        return None
    number = int(match[0], 10 if match[0].isdecimal() and not match[0].startswith("0") else 16)
    now = time.time()
    made_of_time = any(abs(number / 10**digits - now) < DAY_S for digits in (0, 3, 6))
    return None if made_of_time else number


def _is_specific(value: str) -> bool:
    """True if a header's value can name one instance: a version or a product's name does not."""
    without_versions = _VERSION.sub("", value) if value.count(".") < 3 else value
    return len(value) >= 6 and any(character.isdigit() for character in without_versions)


def _one_place(
    one_url: str, other_url: str, one: Address | None, other: Address | None
) -> str | None:
    """The sign that both connections lead to one port, if no name can tell two servers there apart.

    A port of the web may serve several names, each with a server of its own behind it.
    """
    ours, theirs = urlsplit(one_url), urlsplit(other_url)
    if one is None or other is None or one.port != other.port or ours.path != theirs.path:
        return None
    if one.is_here and other.is_here:
        return "both URLs lead to one port of this machine"
    by_name = one.port in WEB_PORTS and ours.hostname != theirs.hostname
    return None if one.ip != other.ip or by_name else "both URLs lead to one address and path"
