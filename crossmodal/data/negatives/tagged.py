"""A caption as a tagger sees it: words with their classes, and noun phrases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Token:
    """A word or mark: coarse class `pos` (NOUN, ADJ, VERB, ...), fine `tag` (NN, NNS, ...), `start` in the caption."""

    text: str
    pos: str
    tag: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


@dataclass(frozen=True)
class Tagged:
    """A caption with its tokens, and noun phrases as half-open ranges of tokens."""

    caption: str
    tokens: tuple[Token, ...]
    noun_phrases: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(
        cls, caption: str, words: Iterable[tuple[str, str, str]], noun_phrases: Iterable[Sequence[int]] = ()
    ) -> Tagged:
        """From (text, pos, tag) of every token, in the order in which they stand in the caption."""
        tokens, at = [], 0
        for text, pos, tag in words:
            start = caption.index(text, at)
            tokens.append(Token(text, pos, tag, start))
            at = start + len(text)
        return cls(caption, tuple(tokens), tuple((a, b) for a, b in noun_phrases))

    def phrase(self, start: int, stop: int) -> str:
        """The caption's text from token `start` up to `stop`, which is not in it."""
        return self.caption[self.tokens[start].start : self.tokens[stop - 1].end]

    def replaced(self, words: Mapping[int, str]) -> str:
        """The caption with other words in the places of these tokens."""
        parts, at = [], 0
        for place in sorted(words):
            token = self.tokens[place]
            parts += [self.caption[at : token.start], words[place]]
            at = token.end
        return "".join([*parts, self.caption[at:]])

    def of_class(self, pos: str) -> list[int]:
        """The places of the tokens of a coarse class."""
        return [i for i, token in enumerate(self.tokens) if token.pos == pos]


class Tagger(Protocol):
    """Captions -> the same captions, tagged, in their order; `name` says what did it."""

    name: str

    def __call__(self, captions: Iterable[str]) -> Iterator[Tagged]: ...
