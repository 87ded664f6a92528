"""`stquant train vit` on images made here: both file formats, learning, the log, and bad input."""
import gzip
import json
import os
import random
import struct
import subprocess
import sys
import tempfile

import tap
from tap import check

COMMAND = os.environ["STQUANT_COMMAND"]
SEED = 41
SMALL = ["--layers", "2", "--width", "32", "--heads", "2", "--batch", "32", "--threads", "1", "--learning-rate", "0.006"]


def train(*arguments):
    return subprocess.run([COMMAND, "train", "vit", *map(str, arguments)], capture_output=True, text=True,
                          env={**os.environ, "OMP_WAIT_POLICY": "passive"})


def picture(generator, label, side, channels):
    """Noise, and a brighter quarter that tells the class."""
    down, right, half = label // 2 * side // 2, label % 2 * side // 2, side // 2
    return bytes(min(255, generator.randrange(60) + 150 * (down <= i // side % side < down + half
                                                            and right <= i % side < right + half))
                 for i in range(channels * side * side))


def write(path, content, compress=False):
    with (gzip.open if compress else open)(path, "wb") as file:
        file.write(content)


def idx(count, side, labels, pictures):
    images = struct.pack(">IIII", 0x803, count, side, side) + b"".join(pictures)
    return images, struct.pack(">II", 0x801, count) + bytes(labels)


def make_idx(folder, generator, count=1024, side=16, compress=True):
    ending = ".gz" if compress else ""
    os.makedirs(folder, exist_ok=True)
    for prefix, number in (("train", count), ("t10k", count // 4)):
        labels = [generator.randrange(4) for _ in range(number)]
        images, classes = idx(number, side, labels, [picture(generator, label, side, 1) for label in labels])
        write(os.path.join(folder, f"{prefix}-images-idx3-ubyte{ending}"), images, compress)
        write(os.path.join(folder, f"{prefix}-labels-idx1-ubyte{ending}"), classes, compress)
    return folder


def make_cifar(folder, generator):
    os.makedirs(folder)
    for name, number in [(f"data_batch_{i}.bin", 32) for i in range(1, 6)] + [("test_batch.bin", 50)]:
        labels = [generator.randrange(4) for _ in range(number)]
        write(os.path.join(folder, name),
              b"".join(bytes([label]) + picture(generator, label, 32, 3) for label in labels))
    return folder


def check_learning(folder, images):
    log, summary = os.path.join(folder, "run.jsonl"), os.path.join(folder, "summary.json")
    run = train("--data", images, *SMALL, "--flip", 0, "--steps", 160, "--validate-every", 40, "--optimizer", "fixed",
                "--state-bits", 8, "--log", log, "--summary", summary)
    if run.returncode != 0:
        check("a small model learns the classes", False, run.stderr)
        return
    with open(log) as file:
        lines = [json.loads(line) for line in file]
    with open(summary) as file:
        told = json.load(file)
    check("a small model learns the classes", lines[-1]["validation_top1"] > 0.95, lines[-1])
    check("the log has images, not tokens, a second", all(line["images_per_s"] > 0 and "tokens_per_s" not in line
                                                         for line in lines))
    validated = [line["step"] for line in lines if "validation_top1" in line]
    check("top-1 is logged with the validation loss", validated == [40, 80, 120, 160]
          and validated == [line["step"] for line in lines if "validation_loss" in line], validated)
    shape = {"layers": 2, "width": 32, "heads": 2, "patch": 4, "channels": 1, "rows": 16, "columns": 16, "classes": 10}
    check("the first line describes the run", lines[0]["run"]["model"] == "vit" and lines[0]["run"]["shape"] == shape,
          lines[0]["run"])
    names = [tensor["name"] for tensor in lines[0].get("tensors", [])]
    check("decisions name the tensors", not names or "patch.weight" in names and "h.1.mlp.c_fc.weight" in names, names)
    check("the summary has the same figures", told["validation_top1"] == lines[-1]["validation_top1"]
          and told["images_per_s"] > 0 and told["shape"] == shape, told)
    check("and the table", f"top-1               {100 * told['validation_top1']:.2f} %" in run.stdout, run.stdout)


def check_repeating(folder, images):
    losses = []
    for number in range(2):
        log = os.path.join(folder, f"repeat{number}.jsonl")
        run = train("--data", images, *SMALL, "--steps", 12, "--dropout", 0.2, "--optimizer", "adamw", "--log", log)
        with open(log) as file:
            losses.append([json.loads(line)["train_loss"] for line in file])
    check("the same seed gives the same losses, dropout, moves and mirrors included",
          run.returncode == 0 and len(losses[0]) == 12 and losses[0] == losses[1], losses)
    log = os.path.join(folder, "other.jsonl")
    train("--data", images, *SMALL, "--steps", 12, "--dropout", 0.2, "--optimizer", "adamw", "--log", log, "--seed", 2)
    with open(log) as file:
        check("another seed others", [json.loads(line)["train_loss"] for line in file] != losses[0])


def refused(name, status, sentence, *arguments):
    run = train(*arguments)
    lines = run.stderr.strip().splitlines()
    check(name, run.returncode == status and sentence in run.stderr and lines[0].startswith("stquant train vit: ")
          and len(lines) == 1, (run.returncode, run.stderr))


def damage(folder, images, name, change):
    """A copy of the images with one file changed."""
    os.makedirs(folder)
    for file in os.listdir(images):
        with open(os.path.join(images, file), "rb") as source:
            data = source.read()
        write(os.path.join(folder, file), change(data) if file == name else data)
    return folder


def check_bad_files(folder, images, plain, cifar):
    training, labels = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
    cases = (
        ("a truncated gz file", images, training + ".gz", lambda data: data[:len(data) // 2], "is a truncated gzip file"),
        ("a broken gz file", images, training + ".gz", lambda data: data[:2000] + b"\xff" * 2000 + data[4000:],
         "is a broken gzip file"),
        ("a wrong magic number", plain, training, lambda data: b"\x00\x00\x0d\x03" + data[4:],
         "is no idx file of images: it begins with 0x00000d03"),
        ("labels in the place of images", plain, training, lambda data: data[:3] + b"\x01" + data[4:], "is no idx file"),
        ("fewer images than the header says", plain, training, lambda data: data[:-5], "get it again"),
        ("an empty file", plain, training, lambda data: b"", "is no idx file of images"),
        ("labels out of range", plain, labels, lambda data: data[:-1] + b"\x0a", "has label 10, and --classes 10 allows"),
        ("fewer labels than images", plain, labels, lambda data: data[:4] + struct.pack(">I", 1023) + data[8:-1],
         "there are 1024 images"),
        ("test images of another size", plain, "t10k-images-idx3-ubyte",
         lambda data: struct.pack(">IIII", 0x803, 256, 8, 32) + data[16:], "they must have one size"),
        ("a CIFAR-10 file cut off", cifar, "data_batch_3.bin", lambda data: data[:-100], "no multiple of the 3073"),
        ("CIFAR-10 labels out of range", cifar, "test_batch.bin", lambda data: b"\x63" + data[1:], "image 0 has label 99"),
    )
    for number, (name, source, file, change, sentence) in enumerate(cases):
        refused(name, 1, sentence, "--data", damage(os.path.join(folder, f"bad{number}"), source, file, change))
    os.remove(os.path.join(damage(os.path.join(folder, "gone"), cifar, "", None), "data_batch_4.bin"))
    refused("a missing CIFAR-10 file", 1, "data_batch_4.bin: No such file", "--data", os.path.join(folder, "gone"))
    os.remove(os.path.join(damage(os.path.join(folder, "gone2"), plain, "", None), labels))
    refused("missing labels", 1, labels + ": No such file", "--data", os.path.join(folder, "gone2"))


def check_other_images(folder, images):
    """A checkpoint's model and images that it was not made for."""
    small = make_idx(os.path.join(folder, "small"), random.Random(SEED), count=64, side=8)
    run = os.path.join(folder, "run")
    options = [*SMALL, "--optimizer", "fixed", "--steps", 2]
    trained = train("--data", images, *options, "--checkpoint", run)
    for name, command, sentence in (
            ("eval", ["eval", run, "--data", small], "have another size than those of the model"),
            ("--resume", ["train", "vit", "--data", small, *options, "--resume", run], "give the same model"),
            ("--init", ["train", "vit", "--data", small, *options, "--init", os.path.join(run, "step-00000002")],
             "'positions.weight' has another shape")):
        result = subprocess.run([COMMAND, *map(str, command)], capture_output=True, text=True)
        check(f"{name} with images of another size", trained.returncode == 0 and result.returncode == 2 and sentence in result.stderr
              and result.stderr.count("\n") == 1, trained.stderr + result.stderr)


def check_bad_options(folder, images):
    refused("no data", 2, "There are no images to train on")
    refused("two folders", 2, "--data takes one folder", "--data", images, "--data", images)
    refused("a missing folder", 1, "holds no images that are known here", "--data", os.path.join(folder, "missing"))
    refused("a folder without images", 1, "holds no images that are known here", "--data", folder)
    refused("an unknown preset", 2, "the presets are tiny, small, base", "--data", images, "--preset", "huge")
    refused("a patch that does not divide the images", 2, "--patch must divide both sides", "--data", images, "--patch", 5)
    refused("heads that do not divide the width", 2, "no multiple of --heads", "--data", images, "--heads", 5)
    refused("a dropout of all", 2, "--dropout takes a number from 0 to 0.95", "--data", images, "--dropout", 1)
    refused("fewer classes than labels", 1, "and --classes 2 allows 0 to 1", "--data", images, "--classes", 2)
    refused("a second model", 2, "is not expected", "gpt2", "--data", images)


def main():
    generator = random.Random(SEED)
    with tempfile.TemporaryDirectory() as folder:
        images = make_idx(os.path.join(folder, "gz"), generator)
        plain = make_idx(os.path.join(folder, "plain"), generator, compress=False)
        cifar = make_cifar(os.path.join(folder, "cifar"), generator)
        check_learning(folder, images)
        check_repeating(folder, plain)
        run = train("--data", cifar, *SMALL, "--steps", 3, "--optimizer", "adamw")
        check("CIFAR-10's binary files are read", run.returncode == 0
              and "160 of 32 x 32 pixels, 3 channels; 50 test images" in run.stdout, run.stdout + run.stderr)
        check_bad_files(folder, images, plain, cifar)
        check_bad_options(folder, images)
        check_other_images(folder, plain)
    return tap.status()


if __name__ == "__main__":
    sys.exit(main())
