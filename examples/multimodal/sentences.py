"""Pairs of sentences about garments with quantifiers and negation: does the first imply the second, contradict it, or neither?

A sentence says that a region of the kinds of things there can be (class x brightness x orientation, 120 kinds) is empty or
that it is not: "every boot is dark" says that boots that are not dark do not exist. Of each of the ten classes there is at
least one thing. The relation of two sentences then follows by set inclusion, for all pairs at once.
"""

import torch
import words

LENGTH = 28
ENTAILMENT, CONTRADICTION, NEUTRAL = 0, 1, 2
HELD_OUT = 8  # one pair of meanings of so many is never trained on

# Classes by their numbers in words.CLASSES, then names of groups.
NOUNS = [(names, (number,)) for number, names in enumerate(words.CLASSES)] + [
    (("footwear", "footwear"), (5, 7, 9)),
    (("clothing", "clothing"), (0, 1, 2, 3, 4, 6)),
    (("garment", "garment"), (0, 1, 2, 3, 4, 5, 6, 7, 9)),
    (("thing", "thing"), tuple(range(10))),
]
# Words of a predicate, brightnesses and orientations that have it.
PREDICATES = [(names, (level,), range(4)) for level, names in enumerate(words.BRIGHTNESSES)] + [
    (("upright", "upright"), range(3), (0,)),
    (("turned left", "facing left"), range(3), (1,)),
    (("upside down", "on its-head"), range(3), (2,)),
    (("turned right", "facing right"), range(3), (3,)),
    (("turned", "turned"), range(3), (1, 2, 3)),
]
# (words before the noun, does the sentence say that the region is empty, is the predicate's negation what is written)
FORMS = [
    (("no", "not one"), True, False),
    (("every", "each"), True, True),
    (("it is false that some", "it is false that at least one"), True, False),
    (("some", "at least one"), False, False),
    (("not every", "not each"), False, True),
    (("it is false that no", "it is not true that no"), False, False),
]


def _kinds(classes, brightnesses, orientations):
    kinds = torch.zeros(10, 3, 4, dtype=torch.bool)
    for one in classes:
        for level in brightnesses:
            kinds[one, level, list(orientations)] = True
    return kinds.flatten()


def _regions():
    """Rows (noun, modifier: 0 none or 1 + brightness, predicate, negated) and their regions, (regions, 120)."""
    rows, regions = [], []
    for noun, (_, classes) in enumerate(NOUNS):
        for modifier in range(4):
            subject = _kinds(classes, range(3) if modifier == 0 else (modifier - 1,), range(4))
            for predicate, (_, brightnesses, orientations) in enumerate(PREDICATES):
                if modifier > 0 and predicate < 3:
                    continue  # a dark boot that is dark
                truth = _kinds(range(10), brightnesses, orientations)
                for negated in (0, 1):
                    rows.append((noun, modifier, predicate, negated))
                    regions.append(subject & (~truth if negated else truth))
    return torch.tensor(rows), torch.stack(regions)


def _relations(regions):
    """Relations (2 regions, 2 regions) of the sentences "region i is empty" (first half) and "region i is not empty"."""
    count = len(regions)
    inside = (regions.float() @ (~regions).float().T) == 0  # [i, j]: region i lies in region j
    covered = torch.zeros(count, count, dtype=torch.bool)  # [i, j]: i and j together hold a whole class
    for one in range(10):
        rest = ~regions & _kinds((one,), range(3), range(4))
        covered |= (rest.float() @ (~regions).float().T) == 0
    relations = torch.full((2 * count, 2 * count), NEUTRAL)
    empty, some = slice(0, count), slice(count, 2 * count)
    for first, second, entailed, contradicted in (
        (empty, empty, inside.T, covered),
        (empty, some, covered, inside.T),
        (some, empty, torch.zeros_like(inside), inside),
        (some, some, inside, torch.zeros_like(inside)),
    ):
        block = relations[first, second]  # a view
        block[entailed] = ENTAILMENT
        block[contradicted] = CONTRADICTION
    return relations


def _related(rows):
    """Pairs of regions whose nouns overlap and whose predicates are of one kind: else the words alone would tell."""
    nouns = torch.stack([_kinds(classes, range(3), range(4)) for _, classes in NOUNS])[rows[:, 0]]
    overlap = nouns.float() @ nouns.float().T > 0
    of_brightness = rows[:, 2] < 3
    return overlap & (of_brightness[:, None] == of_brightness[None, :])


class Sentences:
    """Draws pairs of sentences, and their relation, from the training part or the one held out."""

    def __init__(self, device):
        self.rows, regions = _regions()
        relations = _relations(regions)
        related = _related(self.rows).repeat(2, 2)
        first, second = torch.meshgrid(torch.arange(len(relations)), torch.arange(len(relations)), indexing="ij")
        held_out = (first * 7919 + second * 104729) % 1009 % HELD_OUT == 0
        keep = related & (first != second)
        self.pairs = {
            part: [((relations == label) & keep & where).nonzero().to(device) for label in range(3)]
            for part, where in (("train", ~held_out), ("t10k", held_out))
        }
        self.rows = self.rows.to(device)
        self.nouns = words.phrases([names for names, _ in NOUNS], device)
        self.predicates = words.phrases([names for names, *_ in PREDICATES], device)
        self.modifiers = words.phrases([("", ""), *words.BRIGHTNESSES], device)
        self.openings = words.phrases([names for names, *_ in FORMS], device)
        self.turns = torch.tensor([turn for *_, turn in FORMS], device=device)
        self.be = words.phrases(("is",), device)[0]
        self.negation = words.phrases(("", "not"), device)

    def _write(self, meaning, generator):
        """Words (batch, slots) of sentences; a meaning is a region, plus the number of regions if it is not empty."""
        device = meaning.device
        noun, modifier, predicate, negated = self.rows[meaning % len(self.rows)].unbind(1)
        not_empty = (meaning >= len(self.rows)).long()
        form = torch.randint(3, meaning.shape, device=device, generator=generator) + 3 * not_empty
        synonym = torch.randint(2, (4, len(meaning)), device=device, generator=generator)
        negated = negated ^ self.turns[form]
        parts = [self.openings[form, synonym[0]], self.modifiers[modifier, synonym[1]], self.nouns[noun, synonym[2]]]
        parts += [self.be.expand(len(meaning), 1), self.negation[negated.long()], self.predicates[predicate, synonym[3]]]
        return torch.cat(parts, dim=1)

    def draw(self, part, count, generator):
        """Pairs (count, 28) and relations (count,), all three equally likely."""
        device = self.rows.device
        labels = torch.randint(3, (count,), device=device, generator=generator)
        place = torch.rand(count, device=device, generator=generator)
        pairs = torch.empty(count, 2, dtype=torch.long, device=device)
        for label, choices in enumerate(self.pairs[part]):
            chosen = choices[(place * len(choices)).long().clamp(max=len(choices) - 1)]
            pairs = torch.where((labels == label)[:, None], chosen, pairs)
        first, second = self._write(pairs[:, 0], generator), self._write(pairs[:, 1], generator)
        start = torch.full((count, 1), words.START, device=device)
        joined = torch.cat([start, first, torch.full_like(start, words.SEPARATOR), second], dim=1)
        return words.closed_up(joined, LENGTH), labels
