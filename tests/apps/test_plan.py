#!/usr/bin/env python3
"""The command `stquant plan`: its figures, its table and what it refuses."""

import json
import os
import subprocess
import sys

import tap
from tap import check

COMMAND = os.environ["STQUANT_COMMAND"]
# GPT-2's published sizes, and the small ones by hand: V C + T C + L (12 C^2 + 13 C) + 2 C.
PARAMETERS = {"124m": 124439808, "355m": 354823168, "774m": 774030080, "1.5b": 1557611200}


def plan(*arguments, **options):
    return subprocess.run([COMMAND, "plan", *map(str, arguments)], text=True, capture_output=True, timeout=300,
                          **options)


def count(model):
    c = model["width"]
    return model["vocabulary"] * c + model["context"] * c + model["layers"] * (12 * c * c + 13 * c) + 2 * c


def vector_elements(model):
    """Elements of the tensors that keep float32 states: gains and biases, and matrices below 4,096 elements."""
    c = model["width"]
    vectors = 13 * c * model["layers"] + 2 * c
    small = sum(rows * c for rows in (model["vocabulary"], model["context"]) if rows * c < 4096)
    return vectors + small


def check_preset(name):
    result = plan("--preset", name, "--json", "--state-bits", "5.0")
    figures = json.loads(result.stdout)
    states = {key: value["bytes"] for key, value in figures["states"].items()}
    parameters = figures["parameters"]
    check(f"{name}: parameters", parameters == count(figures["model"]) == PARAMETERS.get(name, parameters))
    check(f"{name}: bytes of parameters and gradients",
          figures["parameter_bytes"] == figures["gradient_bytes"] == 4 * parameters)
    # Two float32 values a parameter, and less than 1 % for records and rounding.
    check(f"{name}: float32 states", 8 * parameters <= states["float32"] <= 8.08 * parameters)
    vectors = vector_elements(figures["model"])
    for bits in (8, 4):
        # `bits` and a 16-bit scale word for 128 values; 8 bytes an element where states stay float32; less than 1 % for
        # rounding, and a record of at most 640 bytes a tensor.
        expected = 8 * vectors + (parameters - vectors) * 2 * (bits + 16 / 128) / 8
        actual = states[f"fixed_{bits}_bits"]
        check(f"{name}: {bits}-bit states", expected <= actual <= 1.01 * expected + 640 * figures["tensors"], f"{actual} {expected}")
    check(f"{name}: ours is under its cap and near it",
          0.99 * 5 * parameters / 4 - 4096 <= states["stquant"] <= 5 * parameters / 4, str(states))
    smallest = figures["states"]["smallest_cap"]["bits"]
    above = plan("--preset", name, "--state-bits", smallest * 1.0001)
    below = plan("--preset", name, "--state-bits", smallest * 0.999)
    check(f"{name}: the smallest cap is possible", above.returncode == 0, above.stderr)
    check(f"{name}: a smaller one is refused and the smallest named",
          below.returncode == 2 and below.stdout == "" and str(states["smallest_cap"]) in below.stderr, below.stderr)
    table = plan("--preset", name).stdout
    check(f"{name}: the table has the same bytes",
          all(str(value) in table for value in [*states.values(), 4 * parameters, figures["activation_bytes"]]), table)


def check_overrides():
    figures = json.loads(plan("--preset", "124m", "--layers", 3, "--width", 96, "--heads", 6, "--context", 50,
                              "--vocabulary", 1000, "--batch", 2, "--sequence-length", 40, "--json").stdout)
    check("overrides of single sizes", figures["model"] == {"layers": 3, "width": 96, "heads": 6, "context": 50,
                                                            "vocabulary": 1000})
    check("overridden parameters", figures["parameters"] == count(figures["model"]))
    twice = json.loads(plan("--preset", "124m", "--layers", 3, "--width", 96, "--heads", 6, "--context", 50,
                            "--vocabulary", 1000, "--batch", 4, "--sequence-length", 40, "--json").stdout)
    check("activations grow with the batch", 1.5 < twice["activation_bytes"] / figures["activation_bytes"] < 2.1)


def check_refusals():
    for name, parts, arguments in [
            ("unknown preset", ["'2b'", "tiny, small, 124m"], ["--preset", "2b"]),
            ("impossible cap", ["smallest"], ["--preset", "124m", "--state-bits", "1"]),
            ("no number", ["--state-bits", "'five'"], ["--state-bits", "five"]),
            ("heads", ["--heads 5"], ["--preset", "tiny", "--heads", "5"]),
            ("sequence too long", ["--context 128"], ["--preset", "tiny", "--sequence-length", "129"]),
            ("stray argument", ["'gpt2'"], ["gpt2"])]:
        result = plan(*arguments)
        check(f"refused: {name}", result.returncode == 2 and result.stdout == "" and
              all(part in result.stderr for part in parts) and result.stderr.count("\n") <= 2, result.stderr)


def check_full_disk():
    """What a command prints and nobody takes is a failure of all of them."""
    for words in ([], ["--version"], ["--help"], ["plan"], ["plan", "--json"], ["train", "--help"],
                  ["bench", "policy", "--tensors", "10", "--repeats", "1"]):
        with open("/dev/full", "w") as full:
            result = subprocess.run([COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
        expected = (2, "Usage") if not words else (1, "disk full")
        check(f"a full disk behind `{' '.join(['stquant', *words])}` is told",
              result.returncode == expected[0] and expected[1] in result.stderr, result.stderr)


def main():
    for preset in ("tiny", "small", *PARAMETERS):
        check_preset(preset)
    check_overrides()
    check_refusals()
    check_full_disk()
    return tap.status()


if __name__ == "__main__":
    sys.exit(main())
