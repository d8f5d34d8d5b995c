"""The pieces of a streamed reply: their text and tokens, and which of them repeat others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from detcheck.engines.openai.candidates import Ranked

FEWEST_CUMULATIVE = 3
"""So many chunks that each begin with the one before are taken for the whole text so far."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The text and tokens of one chunk."""

    text: str
    token_ids: tuple[int, ...] = ()
    ranked: tuple[Ranked, ...] = ()
    reasoning: tuple[tuple[str, str], ...] = ()
    """(field, text) of the reasoning with which `text` begins; equal texts are in it once."""

    @property
    def thought(self) -> str:
        """The reasoning at the beginning of `text`."""
        return _joined(text for _, text in self.reasoning)

    @property
    def answer(self) -> str:
        """`text` without its reasoning."""
        return self.text.removeprefix(self.thought)


def _joined(texts: Iterable[str]) -> str:
    """The texts one after the other, equal ones once."""
    return "".join(dict.fromkeys(texts))


def said_once(pieces: Sequence[Piece], counted: int | None) -> Sequence[Piece]:
    """The pieces without those that repeat the others.

    Some servers send the whole text again in the last chunk, or all of it so far in every chunk.
    `counted` is the number of tokens that the server counted, None if it did not: it tells a
    repeat from an answer that says something twice.
    """
    pieces = _one_field(pieces)
    once = _without_repeats(pieces, counted)
    if once is pieces and any(piece.reasoning for piece in pieces):
        return _each_once(pieces, counted)
    return once


def _without_repeats(pieces: Sequence[Piece], counted: int | None) -> Sequence[Piece]:
    """`pieces` themselves if none repeats all of the text before it."""
    spoken = [index for index, piece in enumerate(pieces) if piece.text]
    if _cumulative([pieces[index].text for index in spoken]):
        return _last_of_cumulative(pieces, spoken[-1])
    if len(spoken) > 1 and _repeats(pieces, spoken, counted):
        return [piece for index, piece in enumerate(pieces) if index != spoken[-1]]
    return pieces


def _one_field(pieces: Sequence[Piece]) -> Sequence[Piece]:
    """The pieces without the fields of reasoning that hold, over the reply, the text of another."""
    whole: defaultdict[str, list[str]] = defaultdict(list)
    for piece in pieces:
        for name, text in piece.reasoning:
            whole[name].append(text)
    names_of: dict[str, str] = {}
    for name, texts in whole.items():
        names_of.setdefault("".join(texts), name)
    if len(names_of) == len(whole):
        return pieces
    kept = [
        tuple(pair for pair in piece.reasoning if pair[0] in names_of.values()) for piece in pieces
    ]
    return [
        replace(piece, reasoning=fields, text=_joined(text for _, text in fields) + piece.answer)
        for piece, fields in zip(pieces, kept, strict=True)
    ]


def _each_once(pieces: Sequence[Piece], counted: int | None) -> Sequence[Piece]:
    """The pieces without reasoning that repeats all reasoning before it, and answers likewise."""
    thoughts = _once_of([piece.thought for piece in pieces], pieces, counted)
    answers = _once_of([piece.answer for piece in pieces], pieces, counted)
    kept = []
    for piece, thought, answer in zip(pieces, thoughts, answers, strict=True):
        if thought or answer or not piece.text:
            reasoning = piece.reasoning if thought else ()
            kept.append(replace(piece, text=thought + answer, reasoning=reasoning))
    return kept


def _once_of(texts: Sequence[str], pieces: Sequence[Piece], counted: int | None) -> list[str]:
    """`texts`, one of each piece, with empty ones instead of repeats."""
    of_texts = [replace(piece, text=text) for piece, text in zip(pieces, texts, strict=True)]
    spoken = [index for index, text in enumerate(texts) if text]
    once = list(texts)
    if _cumulative([texts[index] for index in spoken]):
        once[: spoken[-1]] = [""] * spoken[-1]
    elif len(spoken) > 1 and _repeats(of_texts, spoken, counted):
        once[spoken[-1]] = ""
    return once


def token_ids(pieces: Sequence[Piece]) -> tuple[int, ...]:
    """The token ids of all pieces."""
    return tuple(token_id for piece in pieces for token_id in piece.token_ids)


def ranked(pieces: Sequence[Piece]) -> tuple[Ranked, ...]:
    """The log-probabilities of all pieces."""
    return tuple(one for piece in pieces for one in piece.ranked)


def covers_text(pieces: Sequence[Piece]) -> bool:
    """True if every piece of text came with token ids, and no fewer than log-probabilities."""
    return all(len(piece.token_ids) >= (len(piece.ranked) or bool(piece.text)) for piece in pieces)


def most_tokens(pieces: Sequence[Piece]) -> int:
    """The most tokens that the shown text can have: text without a token count has one a byte."""
    return sum(_most_tokens(piece) for piece in pieces)


def _most_tokens(piece: Piece) -> int:
    number = max(len(piece.token_ids), len(piece.ranked))
    if number and not piece.ranked:
        return number
    size = _num_bytes(piece.text) - sum(_num_bytes(one.token) for one in piece.ranked)
    return number + max(0, size)


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def token_ends(pieces: Sequence[Piece], *, by_ids: bool) -> tuple[int, ...] | None:
    """For each token (by ids, else by log-probabilities) the length of the text at its end.

    Text that comes without a token was held back, and belongs to the token before it. None if
    there is no token, or none before such a text.
    """
    ends: list[int] = []
    length = 0
    for piece in pieces:
        number = len(piece.token_ids if by_ids else piece.ranked)
        if piece.text and not number and not ends:
            return None
        ends += _ends(length, piece, number)
        length += len(piece.text)
        if ends and not number:
            ends[-1] = length
    return (*ends[:-1], length) if ends else None


def _ends(start: int, piece: Piece, number: int) -> list[int]:
    """Where the tokens of one piece end in the whole text.

    By the tokens' own text if that is the piece's text. Otherwise (bytes of a character were held
    back, or several tokens came in one chunk without their text) they share the text evenly: an
    end may then be some characters off, the order never.
    """
    texts = [one.token for one in piece.ranked]
    if len(texts) == number and "".join(texts) == piece.text:
        return [start + end for end in accumulate(map(len, texts))]
    return [start + len(piece.text) * (index + 1) // number for index in range(number)]


def num_new_tokens(
    before: Sequence[Piece], text: str, ids: Sequence[int], ranked: Sequence[Ranked]
) -> int:
    """Tokens that a chunk brings after the pieces `before`: text and ids may both be cumulative."""
    number = max(len(ids), len(ranked))
    known = before[-1].token_ids if before else ()
    if not known or not text.startswith(before[-1].text) or tuple(ids[: len(known)]) != known:
        return number
    repeats = len(ids) > len(known) or says_again(before, text)
    return number - len(known) if repeats else number


def says_again(before: Sequence[Piece], text: str) -> bool:
    """True if `text` is all of the text of several pieces `before`, and brings nothing new."""
    if len(before) < 2:
        return False
    earlier, last = (piece.text for piece in before[-2:])
    if text == last and earlier and last != earlier and last.startswith(earlier):
        return True  # each piece is the whole text so far
    length = sum(len(piece.text) for piece in before)
    return len(text) == length and text == "".join(piece.text for piece in before)


def _cumulative(texts: Sequence[str]) -> bool:
    """True if every text begins with the one before it and is longer; the last may come again."""
    while len(texts) > 1 and texts[-1] == texts[-2]:
        texts = texts[:-1]
    if len(texts) < FEWEST_CUMULATIVE:
        return False
    return all(len(one) < len(two) and two.startswith(one) for one, two in pairwise(texts))


def _last_of_cumulative(pieces: Sequence[Piece], last: int) -> Sequence[Piece]:
    """The last text with the tokens of all pieces, unless they are cumulative as well."""
    whole, before = pieces[last], pieces[:last]
    ids, others = whole.token_ids, token_ids(before[-1:])
    if ids[: len(others)] == others and len(ids) > len(others) > 0:
        return [whole, *(piece for piece in pieces[last + 1 :] if not piece.text)]
    return [Piece(whole.text, token_ids(pieces), ranked(pieces))]


def _repeats(pieces: Sequence[Piece], spoken: Sequence[int], counted: int | None) -> bool:
    """True if the last text is all of the text before it, sent again."""
    last, before = pieces[spoken[-1]], [pieces[index] for index in spoken[:-1]]
    if last.text != "".join(piece.text for piece in before):
        return False
    tokens, own = _num_tokens(pieces[: spoken[-1]]), _num_tokens([last])
    several = len(before) > 1
    if tokens and counted is not None:
        # Without tokens of its own it has one at least; an end-of-sequence token may be counted
        # and not shown.
        return tokens + own > counted if own else tokens + 1 > counted - several
    if tokens:
        return not own or (several and own == tokens)
    if own and counted is not None:
        return len(before) + own > counted
    return several or counted == 1


def _num_tokens(pieces: Sequence[Piece]) -> int:
    return max(len(token_ids(pieces)), len(ranked(pieces)))
