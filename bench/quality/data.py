"""Tokens and images on the training device, and the order in which a seed goes through them."""
import gzip
import lzma
import os
import pathlib

import numpy
import torch

HELD_OUT = 1_000_000  # the last tokens of the text are for validation
HELD_OUT_IMAGES = 5_000
PADDING = 2  # pixels around an image, for random crops
TEXTS = ("enwiki", "wikitext-test")
IMAGES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def unpack(source, target):
    """Unpacks the token files `source`/NAME.u16.xz into `target`, those that are there and not unpacked yet."""
    os.makedirs(target, exist_ok=True)
    for name in TEXTS:
        packed, plain = pathlib.Path(source) / f"{name}.u16.xz", pathlib.Path(target) / f"{name}.u16"
        if packed.exists() and not plain.exists():
            unfinished = plain.with_suffix(".part")
            unfinished.write_bytes(lzma.decompress(packed.read_bytes()))
            unfinished.rename(plain)


def tokens(folder, name, device):
    """The tokens of a raw little-endian uint16 file, int32 on the device."""
    raw = numpy.fromfile(pathlib.Path(folder) / f"{name}.u16", "<u2")
    return torch.from_numpy(raw.astype(numpy.int32)).to(device)


def windows(text, starts, length):
    """The sequences of `length` tokens at `starts` and the tokens that follow each place: two (B, length) int64 tensors."""
    places = starts[:, None] + torch.arange(length + 1, device=text.device)
    sequences = text[places].long()
    return sequences[:, :-1].contiguous(), sequences[:, 1:].contiguous()


def text_order(seed, count, length, batch, steps):
    """Starts of the sequences of each step, (steps, batch) int64: epoch after epoch over the text, each cut at another place and in
    another order. The same for every device and optimizer."""
    generator = numpy.random.default_rng([seed, 1])
    starts = numpy.empty(0, numpy.int64)
    while starts.size < steps * batch:
        first = generator.integers(length)
        whole = (count - 1 - first) // length
        starts = numpy.concatenate([starts, first + length * generator.permutation(whole)])
    return torch.from_numpy(starts[: steps * batch].reshape(steps, batch))


class Text:
    """The training text, its held-out end, and WikiText-103's test set."""

    name = "enwiki"

    def __init__(self, folder, device):
        whole = tokens(folder, "enwiki", device)
        held_out = min(HELD_OUT, whole.numel() // 10)
        self.training, self.validation = whole[:-held_out], whole[-held_out:]
        self.test = tokens(folder, "wikitext-test", device)


def read_idx(path):
    """The array of an idx file of bytes, packed as `path`.gz or `path`.xz."""
    with lzma.open(f"{path}.xz") if os.path.exists(f"{path}.xz") else gzip.open(f"{path}.gz") as file:
        content = file.read()
    sizes = [int.from_bytes(content[4 + 4 * place : 8 + 4 * place], "big") for place in range(content[3])]
    return numpy.frombuffer(content, numpy.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


class Images:
    """Fashion-MNIST on the device. Each part is a pair of images, padded, uint8, and labels, int64."""

    name = "fashion-mnist"

    def __init__(self, folder, device):
        arrays = [read_idx(pathlib.Path(folder) / name) for name in IMAGES]
        training, test = self._part(*arrays[:2], device), self._part(*arrays[2:], device)
        held_out = min(HELD_OUT_IMAGES, len(training[1]) // 12)
        self.training = tuple(part[:-held_out] for part in training)
        self.validation = tuple(part[-held_out:] for part in training)
        self.test = test

    @staticmethod
    def _part(images, labels, device):
        padded = numpy.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING)))
        return torch.from_numpy(padded).to(device), torch.from_numpy(labels.astype(numpy.int64)).to(device)


def image_order(seed, count, batch, epochs):
    """For each step and image its index, row and column shift and whether it is mirrored: (steps, batch, 4) int64."""
    generator = numpy.random.default_rng([seed, 2])
    steps = count // batch
    rows = []
    for _ in range(epochs):
        indices = generator.permutation(count)[: steps * batch]
        shifts = generator.integers(0, 2 * PADDING + 1, (2, indices.size))
        rows.append(numpy.stack([indices, *shifts, generator.integers(0, 2, indices.size)], 1))
    return torch.from_numpy(numpy.concatenate(rows).reshape(steps * epochs, batch, 4))


def crop(images, choice):
    """Images out of padded ones by rows of image_order: (B, 1, side, side) float32, normalized."""
    side = images.shape[-1] - 2 * PADDING
    index, down, right, mirrored = choice.unbind(1)
    line = torch.arange(side, device=images.device)
    columns = torch.where(mirrored[:, None] > 0, side - 1 - line, line) + right[:, None]
    cut = images[index[:, None, None], (down[:, None] + line)[:, :, None], columns[:, None, :]]
    return (cut[:, None].float() / 255 - 0.286) / 0.353


def middle(first, count, device):
    """Rows for `crop` that take `count` images from `first` on as they are."""
    choice = torch.full((count, 4), PADDING, dtype=torch.int64, device=device)
    choice[:, 0] = torch.arange(first, first + count, device=device)
    choice[:, 3] = 0
    return choice
