"""The three tasks: what a batch is, what is minimised, and how well a model does on what was held out."""

import captions
import images
import models
import sentences
import torch
from torch.nn import functional


def average_precision(scores, labels):
    """Mean over classes of the average precision, per cent; scores and labels are (samples, classes)."""
    order = scores.argsort(dim=0, descending=True)
    right = labels.gather(0, order)
    ranks = torch.arange(1, len(scores) + 1, device=scores.device)[:, None]
    precision = right.cumsum(0) / ranks
    return 100 * ((precision * right).sum(0) / right.sum(0).clamp(min=1)).mean().item()


def recall_at_1(pictures, texts):
    """Per cent of pictures whose nearest text is theirs, and of texts whose nearest picture is; both (pairs, dimensions)."""
    similarity = pictures @ texts.T
    own = torch.arange(len(similarity), device=similarity.device)
    return tuple(100 * (similarity.argmax(dim).eq(own)).float().mean().item() for dim in (1, 0))


def in_parts(model, *inputs, size=1000):
    """The model's outputs for many samples, a part at a time."""
    parts = [model(*(one[at : at + size] for one in inputs)) for at in range(0, len(inputs[0]), size)]
    return [torch.cat(one) for one in zip(*parts)] if isinstance(parts[0], tuple) else torch.cat(parts)


class Retrieval:
    """Which caption belongs to which picture. The score is Recall@1, the mean of both directions.

    Held-out pairs are in galleries of `gallery` pairs, no two of which have the same facts.
    """

    name, metric, tower = "retrieval", "Recall@1", None
    betas, restart = (0.9, 0.98), True

    def __init__(self, folder, device, gallery=1000, galleries=8):
        self.train, self.test = images.garments(folder, device)
        self.captions = captions.Captions(device)
        generator = torch.Generator(device).manual_seed(20260404)
        self.galleries = [self._gallery(gallery, generator) for _ in range(galleries)]

    def _gallery(self, count, generator):
        index = torch.randperm(len(self.test.images), device=generator.device, generator=generator)
        pictures, facts = images.scenes(self.test, index[: 2 * (count + count // 2)].view(-1, 2), generator)
        text = self.captions.write(facts, generator)
        _, group = facts.flatten(1).unique(dim=0, return_inverse=True)
        # The first of each group of equal facts.
        order = torch.arange(len(group), device=group.device)
        first = torch.full_like(group, len(group)).scatter_reduce(0, group, order, "amin")
        kept = first[first < len(group)].sort().values[:count]
        assert len(kept) == count, "too few different pairs"
        return pictures[kept], text[kept]

    def model(self, size):
        return models.TwoTowers(size)

    def loss(self, model, count, generator):
        pictures, facts = images.scenes(self.train, self.train.draw(2 * count, generator).view(-1, 2), generator)
        image, text = model(pictures, self.captions.write(facts, generator))
        logits = model.log_scale.exp().clamp(max=100) * image @ text.T
        own = torch.arange(count, device=logits.device)
        return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2

    def evaluate(self, model):
        """score, image_to_text and text_to_image in per cent."""
        results = [recall_at_1(*in_parts(model, *gallery)) for gallery in self.galleries]
        to_text, to_image = (sum(one) / len(results) for one in zip(*results))
        return {"score": (to_text + to_image) / 2, "image_to_text": to_text, "text_to_image": to_image}


class Collages:
    """Which classes of garments are in a collage. The score is the mean average precision."""

    name, metric, tower = "collages", "mAP", "image"
    betas, restart = (0.9, 0.999), False

    def __init__(self, folder, device, held_out=10000):
        self.train, self.test = images.garments(folder, device)
        self.held_out = images.collages(self.test, held_out, torch.Generator(device).manual_seed(20260405))

    def model(self, size):
        return models.Classifier(size, "image", 10)

    def loss(self, model, count, generator):
        pictures, labels = images.collages(self.train, count, generator)
        return functional.binary_cross_entropy_with_logits(model(pictures), labels)

    def evaluate(self, model):
        pictures, labels = self.held_out
        return {"score": average_precision(in_parts(model, pictures), labels)}


class SentencePairs:
    """Whether a sentence implies another, contradicts it, or neither. The score is the accuracy."""

    name, metric, tower = "sentences", "accuracy", "text"
    betas, restart = (0.9, 0.999), False

    def __init__(self, folder, device, held_out=10000):
        self.sentences = sentences.Sentences(device)
        self.held_out = self.sentences.draw("t10k", held_out, torch.Generator(device).manual_seed(20260406))

    def model(self, size):
        return models.Classifier(size, "text", 3)

    def loss(self, model, count, generator):
        text, labels = self.sentences.draw("train", count, generator)
        return functional.cross_entropy(model(text), labels)

    def evaluate(self, model):
        text, labels = self.held_out
        return {"score": 100 * in_parts(model, text).argmax(1).eq(labels).float().mean().item()}


TASKS = {task.name: task for task in (Retrieval, Collages, SentencePairs)}
