"""Captions of scenes: what is on the left and on the right, in one of three constructions, with synonyms."""

import torch
import words

LENGTH = 25


class Captions:
    """Writes captions for the facts that images.scenes() returns."""

    def __init__(self, device):
        self.tables = [
            words.phrases(table, device)
            for table in (words.CLASSES, words.BRIGHTNESSES, words.COVERS, words.ORIENTATIONS, words.CROPS)
        ]
        # What stands before the first garment, between the two, and whether the right one comes first.
        self.before = words.phrases(("", "on the left", ""), device)
        self.between = words.phrases(("beside", "on the right", "to the right of"), device)
        self.right_first = torch.tensor([False, False, True], device=device)
        self.article = torch.tensor(words.NUMBERS["a"], device=device)
        self.start = torch.tensor(words.START, device=device)

    def _garment(self, facts, generator):
        """Words of one garment, (batch, slots), from facts (batch, 5): the top of, a, dark, slim, coat, turned left."""
        synonym = torch.randint(2, facts.shape, device=facts.device, generator=generator)
        parts = [table[facts[:, i], synonym[:, i]] for i, table in enumerate(self.tables)]
        kind, brightness, cover, orientation, crop = parts
        article = self.article.expand(len(facts), 1)
        return torch.cat([crop, article, brightness, cover, kind, orientation], dim=1)

    def write(self, facts, generator):
        """Captions (batch, 25) for facts (batch, 2, 5)."""
        form = torch.randint(len(self.before), (len(facts),), device=facts.device, generator=generator)
        swapped = self.right_first[form][:, None, None]
        facts = torch.where(swapped, facts.flip(1), facts)
        pieces = [self.start.expand(len(facts), 1), self.before[form], self._garment(facts[:, 0], generator)]
        pieces += [self.between[form], self._garment(facts[:, 1], generator)]
        return words.closed_up(torch.cat(pieces, dim=1), LENGTH)
