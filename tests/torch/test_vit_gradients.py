"""Loss, top-1 and every gradient of a small Vision Transformer against PyTorch with the same weights.

The model on PyTorch's side cuts patches by a strided convolution and runs in float64, so that the difference is the
trainer's own rounding. The threshold for every tensor is a relative error (Euclidean norm) below 1e-4.
"""

import os
import subprocess
import sys
import tempfile

import numpy
import torch
import torch.nn.functional as functional

THRESHOLD = 1e-4


def read_dump(path, images, channels, rows, columns):
    with open(path, "rb") as file:
        loss, correct = float(file.readline().split()[1]), int(file.readline().split()[1])
        shapes = []
        while line := file.readline().split():
            shapes.append((line[0].decode(), int(line[1]), int(line[2])))
        pixels = numpy.fromfile(file, numpy.float32, images * channels * rows * columns)
        labels = numpy.fromfile(file, numpy.int32, images)
        tensors = [{}, {}]
        for part in tensors:
            for name, height, width in shapes:
                part[name] = numpy.fromfile(file, numpy.float32, height * width).reshape(height, width)
        assert not file.read(1), "the dump is longer than its header says"
    return loss, correct, pixels.reshape(images, channels, rows, columns), labels, tensors[0], tensors[1]


def forward(p, pixels, layers, heads, patch):
    """The logits; p maps names to tensors, in float64."""
    channels, width = pixels.shape[1], p["class_token"].shape[1]
    kernel = p["patch.weight"].T.reshape(width, channels, patch, patch)
    patches = functional.conv2d(pixels, kernel, p["patch.bias"].flatten(), stride=patch).flatten(2).transpose(1, 2)
    x = torch.cat([p["class_token"].expand(len(pixels), 1, width), patches], 1) + p["positions.weight"]
    batch, length = x.shape[:2]
    for layer in range(layers):
        h = {key.removeprefix(f"h.{layer}."): value for key, value in p.items() if key.startswith(f"h.{layer}.")}
        y = functional.layer_norm(x, (width,), h["ln_1.weight"][0], h["ln_1.bias"][0])
        qkv = y @ h["attn.c_attn.weight"] + h["attn.c_attn.bias"]
        q, k, v = (part.view(batch, length, heads, width // heads).transpose(1, 2) for part in qkv.split(width, 2))
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + y @ h["attn.c_proj.weight"] + h["attn.c_proj.bias"]
        y = functional.layer_norm(x, (width,), h["ln_2.weight"][0], h["ln_2.bias"][0])
        y = functional.gelu(y @ h["mlp.c_fc.weight"] + h["mlp.c_fc.bias"], approximate="tanh")
        x = x + y @ h["mlp.c_proj.weight"] + h["mlp.c_proj.bias"]
    x = functional.layer_norm(x[:, 0], (width,), p["ln_f.weight"][0], p["ln_f.bias"][0])
    return x @ p["head.weight"] + p["head.bias"]


def compare(kernels, layers, width, heads, patch, channels, rows, columns, classes, images, seed):
    sizes = [layers, width, heads, patch, channels, rows, columns, classes, images, seed]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "dump")
        command = [os.path.join(os.environ["STQUANT_BUILD"], "tests", "dump_vit"), *map(str, sizes), path]
        subprocess.run(command, check=True, env={**os.environ, "STQUANT_TRAIN_KERNELS": kernels})
        loss, correct, pixels, labels, values, gradients = read_dump(path, images, channels, rows, columns)
    parameters = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()}
    logits = forward(parameters, torch.tensor(pixels, dtype=torch.float64), layers, heads, patch)
    expected = functional.cross_entropy(logits, torch.tensor(labels).long())
    expected.backward()
    expected_correct = int((logits.argmax(1).numpy() == labels).sum())
    worst, where = abs(loss / expected.item() - 1), "loss"
    for name, parameter in parameters.items():
        reference = parameter.grad.numpy()
        error = numpy.linalg.norm(gradients[name] - reference) / numpy.linalg.norm(reference)
        if not error <= worst:
            worst, where = error, name
    passed = worst < THRESHOLD and correct == expected_correct
    print(f"{'ok' if passed else 'not ok'} - {kernels} kernels, sizes {sizes}: largest relative error {worst:.2e} "
          f"({where}), {correct} of {images} right, as PyTorch's {expected_correct}")
    return passed


def main():
    results = [
        compare("avx512", 2, 64, 4, 4, 1, 28, 28, 10, 5, 1),
        compare("avx2", 2, 64, 4, 4, 1, 28, 28, 10, 5, 1),
        compare("generic", 2, 64, 4, 4, 1, 28, 28, 10, 5, 1),
        compare("avx512", 3, 48, 3, 4, 3, 32, 32, 10, 4, 2),  # CIFAR-10's shape
        compare("avx2", 1, 36, 2, 3, 2, 12, 21, 7, 9, 3),  # odd sizes, images wider than high
        compare("generic", 1, 20, 5, 6, 1, 6, 6, 3, 1, 4),  # one patch, one image
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
