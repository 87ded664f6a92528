"""GPT-2 and ViT in PyTorch, of any size, over one transformer block.

B: batch, T: tokens of a sequence (or patches of an image), C: width, H: heads, V: vocabulary. Parameters are float32; the caller
chooses the arithmetic by torch.autocast. Blocks are compiled as one function that all blocks share, and the loss as another, so that a
model compiles in the time of a block whatever its depth.
"""
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Shape:
    """A model, and how it is trained unless a run says otherwise. `kind` is "gpt2" or "vit"; `tokens` is the text of a run in tokens
    (gpt2), `epochs` the passes over the images (vit); `seconds` a first guess of a run's time on an H100."""

    kind: str
    width: int
    layers: int
    heads: int
    batch: int
    context: int = 0
    vocabulary: int = 50304  # GPT-2's 50,257, rounded up to a multiple of 64
    tokens: int = 0
    patch: int = 4
    image: int = 28
    channels: int = 1
    classes: int = 10
    epochs: int = 0
    warmup: int = 100
    evaluation_batches: int = 0  # at most so many batches of a held-out text; 0: all
    seconds: float = 60.0


SHAPES = {
    "gpt2-51m": Shape("gpt2", 512, 8, 8, batch=64, context=512, tokens=50_000_000, seconds=70),
    "gpt2-124m": Shape("gpt2", 768, 12, 12, batch=64, context=512, tokens=50_000_000, seconds=130),
    "gpt2-xl": Shape("gpt2", 1600, 48, 25, batch=8, context=1024),
    "vit-11m": Shape("vit", 384, 6, 6, batch=1000, epochs=30, warmup=300, seconds=45),
    "vit-base": Shape("vit", 768, 12, 12, batch=128, patch=16, image=224, channels=3, classes=1000),
}
SHAPES["gpt2-toy"] = replace(SHAPES["gpt2-51m"], width=64, layers=2, heads=2, batch=4, context=32, vocabulary=512, tokens=128 * 30, warmup=5,
                             evaluation_batches=3, seconds=5)
SHAPES["vit-toy"] = replace(SHAPES["vit-11m"], width=64, layers=1, heads=2, patch=7, batch=100, epochs=1, warmup=5, seconds=5)


class Block(nn.Module):
    """A transformer block with normalization before attention and before the MLP: (B, T, C) to (B, T, C)."""

    def __init__(self, width, heads, causal):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_input, self.attention_output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_input, self.mlp_output = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        packed = self.attention_input(self.attention_norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4)  # (B, H, T, C / H) each
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.attention_output(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp_output(F.gelu(self.mlp_input(self.mlp_norm(x)), approximate="tanh"))


def apply_block(block, x):
    return block(x)


def token_loss(x, norm, weight, targets):
    """Mean cross-entropy of the next tokens: x is (B, T, C), weight (V, C), targets (B, T)."""
    logits = F.linear(norm(x), weight)
    return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.reshape(-1))


def class_loss(x, norm, classifier, labels):
    """Mean cross-entropy of the classes, and the images classified rightly: x is (B, T, C), labels (B)."""
    logits = classifier(norm(x).mean(1)).float()
    return F.cross_entropy(logits, labels), (logits.argmax(-1) == labels).sum()


class Model(nn.Module):
    """What both models share: the blocks, and whether they run compiled."""

    def __init__(self, shape, causal):
        super().__init__()
        self.shape = shape
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads, causal) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.recompute = False  # activations of a block are computed again in the backward pass instead of kept
        self.use_eager()

    def use_eager(self):
        self.compiled, self.block, self.loss = False, apply_block, type(self).LOSS

    def use_compiled(self):
        self.compiled = True
        self.block = torch.compile(apply_block, dynamic=False)
        self.loss = torch.compile(type(self).LOSS, dynamic=False)

    def through_blocks(self, x):
        for block in self.blocks:
            x = checkpoint(self.block, block, x, use_reentrant=False) if self.recompute else self.block(block, x)
        return x

    @torch.no_grad()
    def initialize(self, seed):
        """GPT-2's initial weights out of a seed, the same whatever the device: matrices of deviation 0.02, those that add to the
        residual stream smaller by the root of their number; gains 1, biases 0."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                residual = name.endswith(("attention_output.weight", "mlp_output.weight"))
                deviation = 0.02 / math.sqrt(2 * self.shape.layers) if residual else 0.02
                parameter.copy_(torch.empty(parameter.shape).normal_(0, deviation, generator=generator))
            else:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)


class GPT(Model):
    """GPT-2 with the head tied to the token embedding: tokens (B, T) and targets (B, T) to the mean loss."""

    LOSS = staticmethod(token_loss)

    def __init__(self, shape):
        super().__init__(shape, causal=True)
        self.token_embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.position_embedding = nn.Embedding(shape.context, shape.width)

    def forward(self, tokens, targets):
        x = self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]
        return self.loss(self.through_blocks(x), self.norm, self.token_embedding.weight, targets)


class ViT(Model):
    """ViT with the mean of the patches instead of a class token: images (B, channels, rows, columns) in [-1, 1] or so and labels
    (B) to the mean loss and the number of images classified rightly."""

    LOSS = staticmethod(class_loss)

    def __init__(self, shape):
        super().__init__(shape, causal=False)
        patches = (shape.image // shape.patch) ** 2
        self.patch_embedding = nn.Linear(shape.channels * shape.patch**2, shape.width)
        self.position_embedding = nn.Embedding(patches, shape.width)
        self.classifier = nn.Linear(shape.width, shape.classes)

    def forward(self, images, labels):
        batch, channels, side, _ = images.shape
        patch, count = self.shape.patch, side // self.shape.patch
        cut = images.view(batch, channels, count, patch, count, patch).permute(0, 2, 4, 1, 3, 5)
        x = self.patch_embedding(cut.reshape(batch, count * count, -1)) + self.position_embedding.weight
        return self.loss(self.through_blocks(x), self.norm, self.classifier, labels)


def make(shape, device):
    """The model of a shape on a device; its weights are not yet set (initialize)."""
    return (GPT if shape.kind == "gpt2" else ViT)(shape).to(device)
