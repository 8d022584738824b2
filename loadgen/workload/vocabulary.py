"""Vocabulary: words of which a tokenizer makes one token each, and prompts of exactly so many tokens written with them.

Every common tokenizer has short English words with the space before them as one token. Which ones a server's has, and
how many tokens it adds to a prompt (its template, a first token), is found by counting a few texts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

import msgspec
from msgspec.structs import replace

from loadgen.workload.item import Item
from loadgen.workload.traffic import BLOCK_TOKENS

_WORDS = (
    "the and for are but not you all any can had her was one our out day get has him his how man new now old "
    "see two way who boy did its let put say she too use act add age ago air arm art ask bad bag bed big bit "
    "box bus buy car cat cup cut dog dry due ear eat egg end eye far few fit fly fun gas god got gun guy hit "
    "hot ice job key kid law lay leg lie lot low map may met mom net nor odd off oil own pay per ran raw red "
    "rid row run sea set sir sit six sky son sun tax tea ten tie tip top try van via war wet why win yes yet"
)
CANDIDATES = tuple(_WORDS.split())
"""Of three letters each: a server that counts a token per four characters counts one for each, too."""
OPENER = "Say"
"""Begins every prompt: the first word of a text may be cut otherwise than the same word after a space."""
ENOUGH = 64
FEWEST = 8
"""With fewer words of one token a tokenizer cuts texts in another way, and lengths are estimated."""
TRIES = 6
Count = Callable[[str], int]
"""Tokens of a prompt with this text, whatever the server adds to it included."""


class Vocabulary(msgspec.Struct, frozen=True):
    """What decides the texts of prompts, for one tokenizer."""

    words: tuple[str, ...]
    base: int
    """Tokens of a prompt that is OPENER alone."""
    tokens_per_word: float = 1.0
    """1: every word is one token, so that lengths are exact."""

    @property
    def exact(self) -> bool:
        return self.tokens_per_word == 1.0

    def text(self, item: Item, seed: int) -> str:
        """A prompt of the item's `input_tokens` (at least `base`); equal `blocks` begin with equal words."""
        assert item.input_tokens is not None
        left = max(0, round((item.input_tokens - self.base) / self.tokens_per_word))
        words = [OPENER]
        block_words = round(BLOCK_TOKENS / self.tokens_per_word)
        for block in item.blocks:
            words += self._drawn(f"{seed}/block/{block}", min(block_words, left))
            left -= min(block_words, left)
        return " ".join([*words, *self._drawn(f"{seed}/{item.id}", left)])

    def written(self, items: Iterable[Item], seed: int) -> tuple[Item, ...]:
        """The items with their texts."""
        return tuple(
            item if item.input_tokens is None else replace(item, question=self.text(item, seed)) for item in items
        )

    def _drawn(self, seed: str, count: int) -> list[str]:
        return random.Random(seed).choices(self.words, k=count) if count else []


def learn_vocabulary(count: Count) -> Vocabulary:
    """The words that are one token each, by counting texts: at most `ENOUGH`, in some 10 to 60 counts."""
    base = count(OPENER)
    words = _single(CANDIDATES, base, count)
    if len(words) >= FEWEST:
        return Vocabulary(tuple(words), base)
    whole = count(" ".join([OPENER, *CANDIDATES]))
    return Vocabulary(CANDIDATES, base, max(whole - base, 1) / len(CANDIDATES))


def _single(words: Sequence[str], base: int, count: Count) -> list[str]:
    """Those of one token: a text whose count is off is looked through by halves."""
    tokens = count(" ".join([OPENER, *words])) - base if words else 0
    if tokens == len(words):
        return list(words)
    if len(words) == 1 or tokens >= 2 * len(words):
        return []
    found = _single(words[: len(words) // 2], base, count)
    return found if len(found) >= ENOUGH else found + _single(words[len(words) // 2 :], base, count)


def fitted(text: str, tokens: int, count: Count) -> str:
    """The text with words added or taken away until it has that many tokens, or as near as a few tries come."""
    words = text.split(" ")
    for _ in range(TRIES):
        off = tokens - count(" ".join(words))
        if not off:
            break
        share = max(1, abs(off) * len(words) // max(tokens, 1))
        words = [*words, *words[1 : share + 1]] if off > 0 else words[: max(1, len(words) - share)]
    return " ".join(words)
