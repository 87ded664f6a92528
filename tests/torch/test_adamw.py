"""The library's AdamW with float32 states against PyTorch's over 100 steps, step by step.

For each element |difference| <= 1e-6 max(|p|, learning rate). The comparison is with fused=True, whose order of
operations the library follows: PyTorch's other implementation rounds differently and is itself up to five of
these bounds away from the fused one, because a parameter that comes close to zero keeps the rounding errors of its
larger past.
"""

import os
import subprocess
import sys
import tempfile

import numpy
import torch

SHAPES = [(48, 64), (100,), (300, 20)]
STEPS = 100


def read_list(numbers, position):
    tensors = []
    for shape in SHAPES:
        count = int(numpy.prod(shape))
        tensors.append(torch.from_numpy(numbers[position : position + count].reshape(shape).copy()))
        position += count
    return tensors, position


def compare(learning_rate, beta1, beta2, epsilon, weight_decay, clip, seed):
    arguments = [learning_rate, beta1, beta2, epsilon, weight_decay, clip, seed]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "dump")
        command = [os.path.join(os.environ["STQUANT_BUILD"], "tests", "dump_adamw"), *map(str, arguments), path]
        subprocess.run(command, check=True)
        numbers = numpy.fromfile(path, numpy.float32)
    initial, position = read_list(numbers, 0)
    parameters = [torch.nn.Parameter(value) for value in initial]
    optimizer = torch.optim.AdamW(parameters, learning_rate, (beta1, beta2), epsilon, weight_decay, fused=True)
    worst = 0.0
    for step in range(STEPS):
        rate = learning_rate / (1 + step / 50)
        gradients, position = read_list(numbers, position)
        ours, position = read_list(numbers, position)
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        if clip:
            # As torch.nn.utils.clip_grad_norm_, with the norm in double as the library has it.
            norm = torch.cat([gradient.flatten() for gradient in gradients]).double().norm().item()
            for gradient in gradients:
                gradient.mul_(min(1.0, clip / (norm + 1e-6)))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        for parameter, our in zip(parameters, ours):
            bound = 1e-6 * parameter.detach().abs().clamp(min=rate)
            worst = max(worst, ((our - parameter.detach()).abs() / bound).max().item())
    assert position == len(numbers), "the dump is longer than 100 steps"
    moved = max((a - b.detach()).abs().max().item() for a, b in zip(read_list(numbers, 0)[0], parameters))
    assert moved > learning_rate, "the parameters hardly moved: this compares nothing"
    passed = worst <= 1
    print(f"{'ok' if passed else 'not ok'} - {arguments}: largest difference {worst:.3f} of the bound")
    return passed


def main():
    results = [
        compare(1e-3, 0.9, 0.999, 1e-8, 0.01, 0, 1),
        compare(3e-3, 0.9, 0.95, 1e-8, 0.1, 0, 2),
        compare(1e-4, 0.8, 0.99, 1e-6, 0, 0, 3),
        compare(1e-3, 0.9, 0.999, 1e-8, 0.1, 1.0, 4),
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
