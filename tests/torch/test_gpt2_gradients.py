"""Loss and every gradient of a small GPT-2 against PyTorch with the same weights.

The models are compared in float64 on PyTorch's side, so that the difference is the trainer's own
rounding. The threshold for every tensor is a relative error (Euclidean norm) below 1e-4.
"""

import os
import subprocess
import sys
import tempfile

import numpy
import torch
import torch.nn.functional as functional

THRESHOLD = 1e-4


def read_dump(path, sequences, length):
    with open(path, "rb") as file:
        loss = float(file.readline().split()[1])
        shapes = []
        while line := file.readline().split():
            shapes.append((line[0].decode(), int(line[1]), int(line[2])))
        tokens = numpy.fromfile(file, numpy.int32, sequences * (length + 1))
        tensors = [{}, {}]
        for part in tensors:
            for name, rows, cols in shapes:
                values = numpy.fromfile(file, numpy.float32, rows * cols)
                vector = rows == 1 and not name.startswith("w")
                part[name] = values.reshape((cols,) if vector else (rows, cols))
        assert not file.read(1), "the dump is longer than its header says"
    return loss, tokens.reshape(sequences, length + 1), tensors[0], tensors[1]


def forward(p, tokens, layers, heads):
    """The mean loss; p maps names to tensors, in float64."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    batch, length = inputs.shape
    width = p["wte.weight"].shape[1]
    x = p["wte.weight"][inputs] + p["wpe.weight"][:length]
    for layer in range(layers):
        h = {key.removeprefix(f"h.{layer}."): value for key, value in p.items() if key.startswith(f"h.{layer}.")}
        y = functional.layer_norm(x, (width,), h["ln_1.weight"], h["ln_1.bias"])
        qkv = y @ h["attn.c_attn.weight"] + h["attn.c_attn.bias"]
        q, k, v = (part.view(batch, length, heads, width // heads).transpose(1, 2) for part in qkv.split(width, 2))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).reshape(batch, length, width)
        x = x + y @ h["attn.c_proj.weight"] + h["attn.c_proj.bias"]
        y = functional.layer_norm(x, (width,), h["ln_2.weight"], h["ln_2.bias"])
        y = functional.gelu(y @ h["mlp.c_fc.weight"] + h["mlp.c_fc.bias"], approximate="tanh")
        x = x + y @ h["mlp.c_proj.weight"] + h["mlp.c_proj.bias"]
    x = functional.layer_norm(x, (width,), p["ln_f.weight"], p["ln_f.bias"])
    logits = x @ p["wte.weight"].T
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten().long())


def compare(kernels, layers, width, heads, context, vocabulary, sequences, length, seed):
    sizes = [layers, width, heads, context, vocabulary, sequences, length, seed]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "dump")
        command = [os.path.join(os.environ["STQUANT_BUILD"], "tests", "dump_gpt2"), *map(str, sizes), path]
        subprocess.run(command, check=True, env={**os.environ, "STQUANT_TRAIN_KERNELS": kernels})
        loss, tokens, values, gradients = read_dump(path, sequences, length)
    parameters = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()}
    expected = forward(parameters, torch.tensor(tokens), layers, heads)
    expected.backward()
    worst, where = abs(loss / expected.item() - 1), "loss"
    for name, parameter in parameters.items():
        reference = parameter.grad.numpy()
        error = numpy.linalg.norm(gradients[name] - reference) / numpy.linalg.norm(reference)
        if not error <= worst:
            worst, where = error, name
    passed = worst < THRESHOLD
    print(f"{'ok' if passed else 'not ok'} - {kernels} kernels, sizes {sizes}: largest relative error {worst:.2e} ({where})")
    return passed


def main():
    results = [
        compare("avx512", 2, 64, 4, 48, 256, 3, 48, 1),
        compare("avx2", 2, 64, 4, 48, 256, 3, 48, 1),
        compare("generic", 2, 64, 4, 48, 256, 3, 48, 1),
        compare("avx512", 3, 48, 3, 160, 101, 2, 147, 2),  # several blocks of queries, odd sizes
        compare("avx2", 3, 48, 3, 160, 101, 2, 147, 2),
        compare("generic", 1, 20, 5, 9, 7, 1, 1, 3),  # one token
        compare("avx512", 1, 36, 1, 70, 5000, 5, 67, 4),  # logits in several parts
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
