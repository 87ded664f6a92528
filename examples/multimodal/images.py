"""Fashion-MNIST on the device, and the pictures made of it: two garments side by side, and collages of up to eight.

Everything is indexed and computed with tensors; nothing is done sample by sample.
"""

import functools
import gzip
import lzma
import os
import pathlib

import torch

SIDE = 28
HEIGHT, WIDTH = SIDE, 2 * SIDE  # of every picture that a model sees
ORIENTATIONS, CROPS = 4, 3  # upright, turned left, upside down, turned right; whole, upper part, lower part
VISIBLE = 0.1  # pixels above this share of full brightness belong to the garment
# Tertiles over the training set, drawn as scenes() draws it: brightness of the visible pixels, share of them.
BRIGHTNESS_LEVELS = (0.33, 0.49)
COVER_LEVELS = (0.44, 0.65)


def read_idx(path):
    """A uint8 tensor from an idx file of bytes, packed as `path`.gz or `path`.xz."""
    with lzma.open(f"{path}.xz") if os.path.exists(f"{path}.xz") else gzip.open(f"{path}.gz") as file:
        raw = bytearray(file.read())
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an idx file of bytes.")
    dimensions = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return torch.frombuffer(raw, dtype=torch.uint8, offset=4 + 4 * raw[3]).view(dimensions)


def _views():
    """Indices into a picture of 784 pixels, (4 orientations x 3 crops, 784): one gather turns and crops at once."""
    grid = torch.arange(SIDE * SIDE).view(SIDE, SIDE)
    enlarged = torch.arange(SIDE) * 20 // SIDE  # 20 of the 28 rows and columns fill the picture
    crops = [grid, grid[enlarged][:, enlarged + 4], grid[enlarged + 8][:, enlarged + 4]]
    return torch.stack([torch.rot90(crop, turns).flatten() for turns in range(ORIENTATIONS) for crop in crops])


class Garments:
    """Images (count, 784) in [0, 1] and their classes (count,), both on the device.

    Arguments:
        folder: holds the four idx files of Fashion-MNIST, as .gz or .xz.
        part: "train" (60,000 images) or "t10k" (10,000, held out).
    """

    def __init__(self, folder, part, device):
        folder = pathlib.Path(folder)
        images = read_idx(folder / f"{part}-images-idx3-ubyte")
        self.images = (images.flatten(1).to(device).float() / 255).contiguous()
        self.classes = read_idx(folder / f"{part}-labels-idx1-ubyte").to(device).long()
        self.views = _views().to(device)
        # On the device once: a copy in each step would wait for it.
        self.brightness_levels = torch.tensor(BRIGHTNESS_LEVELS, device=device)
        self.cover_levels = torch.tensor(COVER_LEVELS, device=device)

    def draw(self, count, generator):
        """Random indices of images."""
        return torch.randint(len(self.images), (count,), device=self.images.device, generator=generator)


@functools.cache
def garments(folder, device):
    """The training and the held-out images, read once."""
    return Garments(folder, "train", device), Garments(folder, "t10k", device)


def _integers(limit, shape, generator):
    return torch.randint(limit, shape, device=generator.device, generator=generator)


def scenes(source, index, generator):
    """Two garments side by side.

    Arguments:
        source: Garments.
        index: (batch, 2) indices of images, left and right.

    Returns:
        pictures (batch, 28, 56) and what can be said about them, (batch, 2, 5): class, brightness, cover (each 0 to 2,
        measured on the picture as shown), orientation, crop.
    """
    orientation = _integers(ORIENTATIONS, index.shape, generator)
    crop = _integers(CROPS, index.shape, generator)
    gain = 0.35 + 0.65 * torch.rand(index.shape, device=index.device, generator=generator)
    shown = source.images[index].gather(2, source.views[orientation * CROPS + crop])
    visible = shown > VISIBLE
    shown = shown * gain[..., None]
    count = visible.sum(2).clamp(min=1)
    brightness = torch.bucketize((shown * visible).sum(2) / count, source.brightness_levels)
    cover = torch.bucketize(count / SIDE**2, source.cover_levels)
    facts = torch.stack([source.classes[index], brightness, cover, orientation, crop], dim=2)
    return shown.view(-1, 2, SIDE, SIDE).transpose(1, 2).reshape(-1, HEIGHT, WIDTH), facts


def collages(source, count, generator):
    """Garments of half the size, randomly turned, in some of the 2 x 4 fields of a picture.

    Returns:
        pictures (count, 28, 56) and which of the ten classes are there, (count, 10) of 0 and 1.
    """
    half = SIDE // 2
    index = source.draw(count * 8, generator)
    orientation = _integers(ORIENTATIONS, index.shape, generator)
    there = _integers(2, index.shape, generator)
    gain = (0.35 + 0.65 * torch.rand(index.shape, device=index.device, generator=generator)) * there
    shown = source.images[index].gather(1, source.views[orientation * CROPS])
    shown = shown.view(-1, half, 2, half, 2).mean((2, 4)) * gain[:, None, None]
    pictures = shown.view(count, 2, 4, half, half).transpose(2, 3).reshape(count, HEIGHT, WIDTH)
    labels = torch.zeros(count, 10, device=index.device)
    labels.scatter_reduce_(1, source.classes[index].view(count, 8), there.view(count, 8).float(), "amax")
    return pictures, labels
