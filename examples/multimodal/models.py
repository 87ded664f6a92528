"""The models: an image tower and a text tower (transformers), and what is put on them for each task."""

import math
from dataclasses import dataclass

import images
import torch
import words
from torch import nn
from torch.nn import functional

CONTEXT = 32  # longest text


@dataclass
class Size:
    """Sizes of both towers."""

    image_layers: int
    image_width: int
    text_layers: int
    text_width: int
    shared: int  # dimensions in which images and texts are compared
    patch: int = 7
    head: int = 32  # dimensions of an attention head


class Block(nn.Module):
    """Pre-norm transformer block without a causal mask; input and output are (batch, tokens, width)."""

    def __init__(self, width, head):
        super().__init__()
        self.heads = width // head
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        split = self.attention(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (batch, heads, tokens, width / heads)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class ImageTower(nn.Module):
    """Vision Transformer: pictures (batch, 28, 56) to the state of the class token, (batch, width)."""

    def __init__(self, size):
        super().__init__()
        self.patch = size.patch
        tokens = (images.HEIGHT // size.patch) * (images.WIDTH // size.patch)
        self.patches = nn.Linear(size.patch**2, size.image_width)
        self.token = nn.Parameter(torch.zeros(1, 1, size.image_width))
        self.positions = nn.Parameter(torch.zeros(tokens + 1, size.image_width))
        self.blocks = nn.ModuleList(Block(size.image_width, size.head) for _ in range(size.image_layers))
        self.norm = nn.LayerNorm(size.image_width)

    def forward(self, pictures):
        batch, height, width = pictures.shape
        rows, columns = height // self.patch, width // self.patch
        cut = pictures.view(batch, rows, self.patch, columns, self.patch).transpose(2, 3)
        cut = cut.reshape(batch, rows * columns, self.patch**2)
        x = self.patches(2 * cut - 0.5)  # pixels have mean 0.2 to 0.3
        x = torch.cat([self.token.expand(batch, 1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])


class TextTower(nn.Module):
    """Texts (batch, up to 32 words) to the state of the first word, (batch, width). Padding is a word like any other."""

    def __init__(self, size):
        super().__init__()
        self.embedding = nn.Embedding(len(words.WORDS), size.text_width)
        self.positions = nn.Parameter(torch.zeros(CONTEXT, size.text_width))
        self.blocks = nn.ModuleList(Block(size.text_width, size.head) for _ in range(size.text_layers))
        self.norm = nn.LayerNorm(size.text_width)

    def forward(self, text):
        x = self.embedding(text) + self.positions[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])


class TwoTowers(nn.Module):
    """Unit vectors (batch, shared) of pictures and of texts: the nearer, the better the text describes the picture."""

    def __init__(self, size):
        super().__init__()
        self.image, self.text = ImageTower(size), TextTower(size)
        self.image.shared = nn.Linear(size.image_width, size.shared, bias=False)
        self.text.shared = nn.Linear(size.text_width, size.shared, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        initialise(self)

    def forward(self, pictures, text):
        image, text = self.image.shared(self.image(pictures)), self.text.shared(self.text(text))
        return functional.normalize(image, dim=1), functional.normalize(text, dim=1)


class Classifier(nn.Module):
    """One of the towers and a linear layer: logits (batch, classes)."""

    def __init__(self, size, tower, classes):
        super().__init__()
        make, width = {"image": (ImageTower, size.image_width), "text": (TextTower, size.text_width)}[tower]
        self.add_module(tower, make(size))
        self.tower = tower
        self.classes = nn.Linear(width, classes)
        initialise(self)

    def forward(self, inputs):
        return self.classes(getattr(self, self.tower)(inputs))

    def start_from(self, weights):
        """Takes the tower's weights from those of a TwoTowers."""
        own = {name: value for name, value in weights.items() if name.startswith(self.tower) and ".shared." not in name}
        missing, unexpected = self.load_state_dict(own, strict=False)
        assert not unexpected and all(name.startswith("classes") for name in missing), (missing, unexpected)


def initialise(model):
    """Normal weights; what writes into the residual stream starts smaller the more of it there is."""
    depths = {tower: len(getattr(model, tower).blocks) for tower in ("image", "text") if hasattr(model, tower)}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            deviation = 0.02 if "positions" in name or "embedding" in name else parameter.shape[-1] ** -0.5
            if name.endswith(("output.weight", "down.weight")):
                deviation /= math.sqrt(2 * depths[name.split(".")[0]])
            nn.init.normal_(parameter, std=deviation)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
