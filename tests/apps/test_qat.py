#!/usr/bin/env python3
"""Quantization-aware training by the command: both models, checkpoints, packed weights, what is refused."""

import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

import tap
from tap import check

COMMAND = os.environ["STQUANT_COMMAND"]
SMALL = ["--layers", "2", "--width", "64", "--heads", "2", "--context", "32", "--sequence-length", "32", "--batch", "4",
         "--threads", "1", "--sample-length", "0", "--decide-every", "7", "--validate-every", "10", "--warmup", "3"]


def run(*arguments):
    return subprocess.run([COMMAND, *map(str, arguments)], text=True, capture_output=True, timeout=600,
                          env=dict(os.environ, OMP_NUM_THREADS="1"))


def train(*arguments):
    return run("train", "gpt2", *SMALL, *arguments)


def evaluate(path, data):
    result = run("eval", path, "--data", data, "--threads", 1, "--json")
    return json.loads(result.stdout)["loss"] if result.returncode == 0 else result.stderr


def as_logged(losses):
    """With the digits that the log has."""
    return [float(f"{loss:.9g}") for loss in losses]


def inspect(path):
    return json.loads(run("inspect", path, "--json").stdout)


def digest(path):
    return run("inspect", path, "--digest").stdout


def refused(name, parts, result):
    lines = [line for line in result.stderr.strip().splitlines() if not line.startswith("Try ")]
    check(f"refused: {name}", result.returncode == 2 and len(lines) == 1 and all(part in lines[0] for part in parts),
          f"status {result.returncode}: {result.stderr!r}")


def last_loss(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return lines[0]["run"], lines[-1]["validation_loss"]


def test_estimators(folder, text):
    """From a float32 run: each estimator trains, and packed weights have the loss that the run logged, to the last bit."""
    plain = train("--data", text, "--steps", 60, "--optimizer", "adamw", "--checkpoint", folder / "float",
                  "--log", folder / "float.jsonl")
    check("a float32 run to begin from", plain.returncode == 0, plain.stderr)
    begin = last_loss(folder / "float.jsonl")[1]
    for bits, estimator, options in ((2, "ste", ["--optimizer", "adamw"]), (3, "dsq", ["--optimizer", "fixed"]),
                                     (4, "stable", ["--optimizer", "stquant", "--state-bits", "5"])):
        name, base = f"{estimator} at {bits} bits", folder / estimator
        result = train("--data", text, "--steps", 40, *options, "--init", folder / "float", "--qat", bits,
                       "--qat-estimator", estimator, "--checkpoint", base / "run", "--log", base.with_suffix(".jsonl"))
        check(f"{name}: trains", result.returncode == 0, result.stderr)
        described, loss = last_loss(base.with_suffix(".jsonl"))
        check(f"{name}: the log tells it", described["qat_bits"] == bits and described["qat_estimator"] == estimator)
        check(f"{name}: near the float32 run's loss or below", loss < begin + 0.1, f"{loss} after {begin}")
        packed = run("convert", "--to", "packed", base / "run", base / "packed")
        check(f"{name}: packs", packed.returncode == 0, packed.stderr)
        losses = [evaluate(base / part, text) for part in ("run", "packed")]
        check(f"{name}: the same loss from fake-quantized and packed weights, and in the log", losses[0] == losses[1] and
              as_logged(losses) == [loss, loss],
              losses)
        arrays = {array["name"]: array for array in inspect(base / "packed")["arrays"]}
        codes = arrays["h.1.mlp.c_fc.codes"]
        check(f"{name}: codes of {bits} bits, steps for each output",
              codes["dtype"] == "U8" and codes["shape"] == [64 * 256 * bits // 8]
              and arrays["h.1.mlp.c_fc.steps"]["shape"] == [256] and "h.1.mlp.c_fc.weight" not in arrays, codes)
        run("convert", "--to", "gpt2", base / "run", base / "gpt2")
        whole = json.loads(run("eval", base / "gpt2", "--data", text, "--threads", 1, "--batch", 4,
                               "--sequence-length", 32, "--json").stdout)
        check(f"{name}: as a GPT-2 of rounded floats too", whole["loss"] == losses[0], whole)
    sample = run("sample", base / "packed", "--length", 20, "--threads", 1)
    check("packed weights write the same sample", sample.returncode == 0 and
          sample.stdout == run("sample", base / "run", "--length", 20, "--threads", 1).stdout, sample.stderr)


def test_resume(folder, text):
    """A run that goes on ends as one that was never interrupted, steps and their states included."""
    common = ["--data", text, "--optimizer", "stquant", "--gradient-accumulation", 2, "--qat", 3, "--steps", 40]
    whole = train(*common, "--checkpoint", folder / "whole", "--save-every", 15)
    check("a run with --qat saves", whole.returncode == 0, whole.stderr)
    later = train(*common, "--resume", folder / "whole" / "step-00000015", "--checkpoint", folder / "later")
    check("goes on to the same digest", later.returncode == 0 and digest(folder / "later") == digest(folder / "whole") != "",
          later.stderr)
    tensors = {tensor["name"]: tensor for tensor in inspect(folder / "whole")["tensors"]}
    check("steps have float32 states", tensors["h.0.attn.c_attn.steps"]["m_bits"] == 32)
    again = train("--data", text, "--steps", 1, "--learning-rate", 0, "--init", folder / "whole", "--qat", 3,
                  "--log", folder / "again.jsonl")
    check("--init takes the steps over", again.returncode == 0 and
          [last_loss(folder / "again.jsonl")[1]] == as_logged([evaluate(folder / "whole", text)]), again.stderr)
    other = train("--data", text, "--steps", 1, "--init", folder / "whole", "--qat", 4)
    check("--init at other bits begins with new steps", other.returncode == 0, other.stderr)
    refused("resuming at other bits", ["--qat 3", "--init"],
            train("--data", text, "--qat", 4, "--steps", 50, "--resume", folder / "whole"))
    refused("resuming without --qat", ["--qat 3", "--init"], train("--data", text, "--steps", 50, "--resume", folder / "whole"))
    exchanged = train("--data", text, "--qat", 3, "--steps", 41, "--qat-estimator", "ste", "--resume", folder / "whole")
    check("another estimator is told", 'qat_estimator is "ste", was "stable"' in exchanged.stdout,
          exchanged.stdout + exchanged.stderr)


def test_refusals(folder, text):
    for name, parts, options in (
            ("an amplitude past the limit", ["0.2251"], ["--qat", 4, "--qat-amplitude", 0.226]),
            ("harmonics that turn the gradient", ["scale them down"], ["--qat", 4, "--qat-amplitude", "0.2,0.1"]),
            ("amplitudes that are no numbers", ["'0.2,x'"], ["--qat", 4, "--qat-amplitude", "0.2,x"]),
            ("nine bits", ["'9'"], ["--qat", 9]),
            ("an estimator without bits", ["--qat"], ["--qat-estimator", "ste"]),
            ("an unknown estimator", ["'lsq'"], ["--qat", 4, "--qat-estimator", "lsq"])):
        refused(name, parts, train("--data", text, "--steps", 5, *options))
    refused("resuming a float32 run with --qat", ["--init"],
            train("--data", text, "--steps", 90, "--qat", 4, "--resume", folder / "float"))
    refused("packing a float32 run", ["--qat"], run("convert", "--to", "packed", folder / "float", folder / "none"))
    refused("packing into a run that has gone on", ["later step, 40"],
            run("convert", "--to", "packed", folder / "whole" / "step-00000015", folder / "whole"))
    before = digest(folder / "stable" / "run")
    refused("packing a run into its own folder", ["can go on from"],
            run("convert", "--to", "packed", folder / "stable" / "run", folder / "stable" / "run"))
    check("and the run is as it was", digest(folder / "stable" / "run") == before != "")
    again = run("convert", "--to", "packed", folder / "stable" / "run", folder / "stable" / "packed")
    check("packed weights may be packed anew", again.returncode == 0, again.stderr)
    refused("packing what is packed", ["already"],
            run("convert", "--to", "packed", folder / "stable" / "packed", folder / "none"))
    refused("training packed weights", ["packed"],
            train("--data", text, "--steps", 5, "--qat", 4, "--init", folder / "stable" / "packed"))


def test_vit(folder):
    import test_vit as vit  # makes the images
    images = vit.make_idx(str(folder / "images"), random.Random(7), count=128)
    small = ["--layers", 2, "--width", 32, "--heads", 2, "--batch", 32, "--threads", 1, "--data", images, "--dropout", 0.1,
             "--shift", 0, "--optimizer", "fixed"]
    result = run("train", "vit", *small, "--steps", 30, "--qat", 4, "--checkpoint", folder / "vit", "--log",
                 folder / "vit.jsonl")
    packed = run("convert", "--to", "packed", folder / "vit", folder / "vit-packed")
    check("a Vision Transformer trains and packs", result.returncode == 0 and packed.returncode == 0,
          result.stderr + packed.stderr)
    losses = [evaluate(folder / part, images) for part in ("vit", "vit-packed")]
    check("its packed weights have the logged loss", losses[0] == losses[1] and
          as_logged(losses[:1]) == [last_loss(folder / "vit.jsonl")[1]], losses)


def main():
    generator = random.Random(3)
    words = "the cat sat on a mat and dogs ran far away under blue skies while rain fell slowly".split()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        text = folder / "text.txt"
        text.write_text(" ".join(generator.choice(words) for _ in range(20000)))
        test_estimators(folder, text)
        test_resume(folder, text)
        test_refusals(folder, text)
        test_vit(folder)
    return tap.status()


if __name__ == "__main__":
    sys.exit(main())
