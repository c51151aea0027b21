"""What is said of a demo-world scene: statements, sentences, their truth, and edits that make them false."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import log2

import numpy as np

from crossmodal.data.scene_layout import (
    COLOURS,
    KINDS,
    RELATIONS,
    REVERSED,
    SIZES,
    Scene,
    SceneObject,
    centre,
    may_relate,
    relation_between,
)

EDITS = ("replaced_kind", "replaced_colour", "swapped_colours", "swapped_relation")

WORDS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "above"),
    "below": ("below", "below"),
    "on": ("on", "on top of"),
    "under": ("under", "under"),
}
_LISTS = ("{}", "there is {}", "a picture of {}", "a scene with {}")
_PAIRS = ("{} {}", "{} is {}", "there is {} {}", "a picture of {} {}")

_ENOUGH_BITS = {2: 13.5, 3: 15.5}  # below this, a caption fits too many scenes; by number of mentions
_OFF = 0.42  # of the picture: what is not as far from a side is at that side


@dataclass(frozen=True)
class Mention:
    """An object as far as a sentence describes it: what is None is left unsaid."""

    kind: str
    colour: str | None = None
    size: str | None = None

    def __str__(self) -> str:
        words = " ".join(word for word in (self.size, self.colour, self.kind) if word)
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    def fits(self, thing: SceneObject) -> bool:
        said = ((self.kind, thing.kind), (self.colour, thing.colour), (self.size, thing.size))
        return all(word in (None, truth) for word, truth in said)


@dataclass(frozen=True)
class Statement:
    """Objects that are there and relations (subject, relation, object) between them, by index of mention.

    `wording` chooses among equivalent phrasings. At most two relations, all of the first mention; mentions
    without a relation come last.
    """

    mentions: tuple[Mention, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    wording: int = 0

    def __str__(self) -> str:
        first, *others = (str(mention) for mention in self.mentions)
        if not self.relations:
            listed = ", ".join([first, *others[:-1]]) + f" and {others[-1]}"
            return _LISTS[self.wording % len(_LISTS)].format(listed)
        said: list[str] = []
        for at, (_, relation, other) in enumerate(self.relations):
            again = at > 0 and relation == self.relations[at - 1][1]
            words = "" if again else f"{WORDS[relation][self.wording // len(_PAIRS) % 2]} "
            said.append(words + others[other - 1])
        sentence = _PAIRS[self.wording % len(_PAIRS)].format(first, " and ".join(said))
        rest = others[len(said) :]
        return f"{sentence}, with {' and '.join(rest)} nearby" if rest else sentence

    def holds(self, scene: Scene, *, generous: bool = False) -> bool:
        """Whether distinct objects of the scene can be found for all mentions, in the stated relations.

        generous: grant a relation wherever the centres lie in that order, as the most lenient reader might.
        """
        grants: Callable[[SceneObject, str, SceneObject], bool] = (
            (lambda a, relation, b: may_relate(a.box, relation, b.box))
            if generous
            else (lambda a, relation, b: relation_between(a.box, b.box) == relation)
        )
        fitting = [[thing for thing in scene.objects if mention.fits(thing)] for mention in self.mentions]
        return any(
            len({id(thing) for thing in chosen}) == len(chosen)
            and all(grants(chosen[i], relation, chosen[j]) for i, relation, j in self.relations)
            for chosen in product(*fitting)
        )

    @property
    def distinct(self) -> bool:
        """Whether no two mentions read the same, as in "a star and a star"."""
        return len(set(self.mentions)) == len(self.mentions)

    @property
    def bits(self) -> float:
        """How much the statement tells, were everything it says drawn by lot."""
        bits = 2.0 * len(self.relations)
        for mention in self.mentions:
            bits += log2(len(KINDS))
            bits += log2(len(COLOURS)) if mention.colour else 0.0
            bits += log2(len(SIZES)) if mention.size else 0.0
        return bits


def describe(scene: Scene, rng: np.random.Generator) -> list[Statement]:
    """Five true statements that differ in what they mention.

    In this order: a list of all objects; a related pair with its colours; a related pair with sizes; a list
    of some objects with sizes; and two relations, or a relation and a third object, where the scene has it.
    """
    forms = (_everything, _coloured_pair, _sized_pair, _sized_list, _longer)
    statements: list[Statement] = []
    for form in forms:
        while True:
            statement = form(scene, rng)
            enough = statement.bits >= _ENOUGH_BITS[min(len(statement.mentions), 3)]
            if enough and statement.distinct and all(_content(statement) != _content(other) for other in statements):
                statements.append(statement)
                break
    return statements


def place(thing: SceneObject, rng: np.random.Generator) -> str:
    """A sentence that says what a thing is and where in the picture it stands."""
    x, y = centre(thing.box)
    away = (
        ("at the left", _OFF - x),
        ("at the right", x + _OFF - 1),
        ("at the top", _OFF - y),
        ("at the bottom", y + _OFF - 1),
    )
    named = [words for words, by in away if by > 0] or ["in the middle"]
    return f"{Mention(thing.kind, thing.colour)} {named[int(rng.integers(len(named)))]}"


def edits(statement: Statement, scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, Statement]]:
    """Minimal edits of a true statement that are false of its scene, as (name of the edit, statement).

    One of each of `EDITS` where the statement allows it. A replacement names a kind or colour that nothing
    in the scene has; the swaps keep every word and are false even to a generous reader of relations.
    """
    for edit, candidates in (
        ("replaced_kind", _replacements(statement, scene, "kind", KINDS)),
        ("replaced_colour", _replacements(statement, scene, "colour", COLOURS)),
        ("swapped_colours", _colour_swaps(statement)),
        ("swapped_relation", _relation_swaps(statement)),
    ):
        false = [
            candidate for candidate in candidates if not candidate.holds(scene, generous=True) and candidate.distinct
        ]
        if false:
            yield edit, false[int(rng.integers(len(false)))]


def _replacements(statement: Statement, scene: Scene, trait: str, values: tuple[str, ...]) -> list[Statement]:
    absent = [value for value in values if all(getattr(thing, trait) != value for thing in scene.objects)]
    return [
        _with_mention(statement, i, replace(mention, **{trait: value}))
        for i, mention in enumerate(statement.mentions)
        if getattr(mention, trait) is not None
        for value in absent
    ]


def _colour_swaps(statement: Statement) -> list[Statement]:
    swaps = []
    for j, second in enumerate(statement.mentions):
        for i, first in enumerate(statement.mentions[:j]):
            if None not in (first.colour, second.colour):
                swapped = _with_mention(statement, i, replace(first, colour=second.colour))
                swaps.append(_with_mention(swapped, j, replace(second, colour=first.colour)))
    return swaps


def _relation_swaps(statement: Statement) -> list[Statement]:
    """One relation reversed, wherever it stands: "left of a box and a star" becomes "right of" both."""
    swaps = []
    for reversed_one in sorted({relation for _, relation, _ in statement.relations}):
        relations = tuple((i, REVERSED[r] if r == reversed_one else r, j) for i, r, j in statement.relations)
        swaps.append(replace(statement, relations=relations))
    return swaps


def _with_mention(statement: Statement, index: int, mention: Mention) -> Statement:
    return replace(statement, mentions=(*statement.mentions[:index], mention, *statement.mentions[index + 1 :]))


def _content(statement: Statement) -> tuple[object, ...]:
    """What is mentioned, whatever the order and the wording."""
    mentions = statement.mentions
    said = {(mentions[i], relation, mentions[j]) for i, relation, j in statement.relations}
    return frozenset(mentions), frozenset(said)


def _wording(rng: np.random.Generator) -> int:
    return int(rng.integers(2 * len(_PAIRS)))


def _mention(thing: SceneObject, rng: np.random.Generator, *, colour: float, size: float) -> Mention:
    """Describe a thing, saying its colour and its size with these probabilities."""
    return Mention(
        thing.kind,
        thing.colour if rng.random() < colour else None,
        thing.size if rng.random() < size else None,
    )


def _everything(scene: Scene, rng: np.random.Generator) -> Statement:
    few = len(scene.objects) == 2
    order = rng.permutation(len(scene.objects))
    mentions = [_mention(scene.objects[i], rng, colour=1.0, size=0.8 if few else 0.1) for i in order]
    return Statement(tuple(mentions), wording=_wording(rng))


def _sized_list(scene: Scene, rng: np.random.Generator) -> Statement:
    count = int(rng.integers(2, min(len(scene.objects), 3) + 1))
    chosen = rng.choice(len(scene.objects), size=count, replace=False)
    mentions = [_mention(scene.objects[i], rng, colour=0.8, size=0.8) for i in chosen]
    return Statement(tuple(mentions), wording=_wording(rng))


def _pair(scene: Scene, rng: np.random.Generator, *, colour: float, size: float) -> Statement:
    i, relation, j = _drawn_relation(scene, rng)
    mentions = [_mention(scene.objects[k], rng, colour=colour, size=size) for k in (i, j)]
    return Statement(tuple(mentions), ((0, relation, 1),), _wording(rng))


def _coloured_pair(scene: Scene, rng: np.random.Generator) -> Statement:
    return _pair(scene, rng, colour=1.0, size=0.0)


def _sized_pair(scene: Scene, rng: np.random.Generator) -> Statement:
    return _pair(scene, rng, colour=0.8, size=0.7)


def _longer(scene: Scene, rng: np.random.Generator) -> Statement:
    """A related pair and a third object: related to the same subject where it is, else nearby."""
    if len(scene.objects) == 2:
        return _sized_pair(scene, rng)
    i, relation, j = _drawn_relation(scene, rng)
    third = int(rng.choice([k for k in range(len(scene.objects)) if k not in (i, j)]))
    mentions = tuple(_mention(scene.objects[k], rng, colour=0.85, size=0.2) for k in (i, j, third))
    relations = [(0, relation, 1)]
    second = relation_between(scene.objects[i].box, scene.objects[third].box)
    if second is not None:
        relations.append((0, second, 2))
    return Statement(mentions, tuple(relations), _wording(rng))


def _drawn_relation(scene: Scene, rng: np.random.Generator) -> tuple[int, str, int]:
    """A relation of the scene; its rarer kinds are drawn as often as the others where they occur."""
    present = [relation for relation in RELATIONS if any(r == relation for _, r, _ in scene.relations)]
    relation = present[int(rng.integers(len(present)))]
    found = [triple for triple in scene.relations if triple[1] == relation]
    return found[int(rng.integers(len(found)))]
