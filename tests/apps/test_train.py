#!/usr/bin/env python3
"""The command `stquant train`: what it writes, what it refuses, how it ends."""

import fcntl
import gzip
import json
import os
import pathlib
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

import tap
from tap import check

COMMAND = os.environ["STQUANT_COMMAND"]
SMALL = ["--layers", "1", "--width", "64", "--heads", "2", "--context", "32", "--sequence-length", "16",
         "--batch", "4", "--threads", "1", "--sample-length", "20"]


def run(*arguments, **options):
    return subprocess.run([COMMAND, *map(str, arguments)], text=True, capture_output=True, timeout=300, **options)


def train(*arguments, **options):
    return run("train", "gpt2", *SMALL, *arguments, **options)


def words(count, seed=1):
    generator = random.Random(seed)
    vocabulary = ["time", "house", "water", "green", "walk", "of", "the", "and", "a", "in"]
    return " ".join(generator.choice(vocabulary) for _ in range(count)) + ".\n"


def refused(name, status, parts, result, absent=()):
    """Exit status, one sentence on standard error with these parts, none of the files."""
    sentence = result.stderr.strip()
    lines = sentence.split("\nTry `")[0].splitlines()  # what argp adds may go on in another line
    good = result.returncode == status and len(lines) == 1 and all(part in sentence for part in parts)
    good = good and not any(pathlib.Path(path).exists() for path in absent)
    check(f"refused: {name}", good, f"status {result.returncode}: {sentence!r}")


def read_log(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_log(folder, text):
    log, summary = folder / "run.jsonl", folder / "summary.json"
    result = train("--data", text, "--steps", 40, "--validate-every", 10, "--decide-every", 10, "--log", log,
                   "--summary", summary, "--state-bits", "8")
    check("a run ends with status 0", result.returncode == 0, result.stderr)
    lines = read_log(log)
    fields = {"step", "train_loss", "learning_rate", "gradient_norm", "tokens_per_s", "state_bytes", "peak_state_bytes",
              "mean_bits"}
    check("every step has its line", [line["step"] for line in lines] == list(range(1, 41)))
    check("every line has the fields", all(fields <= set(line) for line in lines))
    check("validation losses where they are due",
          [line["step"] for line in lines if "validation_loss" in line] == [10, 20, 30, 40])
    decisions = [line for line in lines if "tensors" in line]
    tensor_fields = {"name", "n", "r", "zone", "m_bits", "v_bits"}
    check("decisions list every tensor", {line["step"] for line in decisions} >= {1, 10, 20, 30} and
          all(len(line["tensors"]) == 16 and tensor_fields <= set(tensor) for line in decisions
              for tensor in line["tensors"]))
    check("the loss falls", lines[-1]["train_loss"] < lines[0]["train_loss"] - 1)
    outcome = json.loads(summary.read_text())
    check("the summary agrees with the log",
          outcome["validation_loss"] == lines[-1]["validation_loss"] and outcome["steps_done"] == 40 and
          outcome["state_bytes"] == lines[-1]["state_bytes"] and
          outcome["peak_state_bytes"] == lines[-1]["peak_state_bytes"] and outcome["step_ms"] > 0)
    check("the summary's bits follow from its bytes",
          abs(outcome["peak_all_in_bits"] - 4 * outcome["peak_state_bytes"] / outcome["parameters"]) < 1e-6 and
          abs(outcome["memory_reduction"] - (1 - outcome["peak_all_in_bits"] / 32)) < 1e-6 and
          outcome["peak_all_in_bits"] <= 8)
    check("the table shows the loss", f"{outcome['validation_loss']:.4f} nats a byte" in result.stdout)
    check("plain lines where there is no terminal", "\r" not in result.stdout and "\x1b" not in result.stdout)


def losses(folder, name, *arguments):
    log = folder / f"{name}.jsonl"
    result = train("--steps", 12, "--log", log, *arguments)
    return result.returncode, [(line["train_loss"], line["gradient_norm"]) for line in read_log(log)]


def test_repeatable(folder, text):
    for optimizer in ("adamw", "fixed", "stquant"):
        arguments = ["--data", text, "--optimizer", optimizer, "--state-bits", "8"]
        for threads in ("1", "2"):
            same = ["--threads", threads, *arguments]
            check(f"{optimizer} with {threads} threads repeats bit for bit",
                  losses(folder, "a", *same) == losses(folder, "b", *same))
    base = losses(folder, "a", "--data", text)
    check("another seed is another run", losses(folder, "b", "--data", text, "--seed", 2) != base)
    packed = folder / "packed"
    packed.mkdir()
    (packed / "text.gz").write_bytes(gzip.compress(text.read_bytes()))
    check("a folder with the text gzipped is the same run", losses(folder, "b", "--data", packed) == base)
    halves = ["--gradient-accumulation", 2, "--batch", 2, "--clip", 0]
    whole = losses(folder, "a", "--data", text, "--clip", 0)[1]
    parts = losses(folder, "b", "--data", text, *halves)[1]
    # The same sequences in the same step; float32 sums in another order.
    check("accumulation is the larger batch", max(abs(a[0] - b[0]) for a, b in zip(whole, parts)) < 2e-3,
          f"{whole} {parts}")


def test_bad_options(folder, text):
    log = folder / "refused.jsonl"
    cases = [
        ("no subcommand", 2, ["Usage"], []),
        ("unknown subcommand", 2, ["no command 'tarin'"], ["tarin"]),
                ("unknown model", 2, ["no model 'gpt3'"], ["train", "gpt3", "--data", text]),
        ("no data", 2, ["--data"], ["train", "gpt2"]),
        ("unknown option", 2, ["--fast"], ["train", "gpt2", "--fast"]),
        ("unknown preset", 2, ["'huge'", "tiny, small, 124m"], ["train", "gpt2", "--preset", "huge", "--data", text]),
        ("unknown optimizer", 2, ["'sgd'", "adamw, fixed or stquant"],
         ["train", "gpt2", "--optimizer", "sgd", "--data", text]),
    ]
    for name, status, parts, arguments in cases[1:]:
        refused(name, status, parts, run(*arguments))
    result = run()
    check("refused: no subcommand", result.returncode == 2 and "Usage" in result.stderr)
    for option, value in [("steps", "0"), ("steps", "many"), ("steps", "1.5"), ("batch", "-1"), ("clip", "-1"),
                          ("learning-rate", "fast"), ("learning-rate", "nan"), ("beta2", "1"), ("threads", "0"),
                          ("validation-share", "1"), ("state-bits", ""), ("m-bits", "9"), ("temperature", "inf"),
                          ("seed", "99999999999999999999")]:
        refused(f"--{option} {value!r}", 2, [f"--{option}", f"'{value}'"],
                train("--data", text, f"--{option}={value}", "--log", log), [log])
    refused("a cap below the smallest one", 2, ["cap", "smallest"],
            train("--data", text, "--state-bits", "0.5", "--log", log), [log])
    refused("a width between two", 2, ["4.5", "--state-bits"],
            train("--data", text, "--optimizer", "fixed", "--state-bits", "4.5", "--log", log), [log])
    refused("heads that do not divide the width", 2, ["--heads 3"], train("--data", text, "--heads", "3"))
    refused("a sequence beyond the context", 2, ["--context 32"], train("--data", text, "--sequence-length", "33"))
    refused("a vocabulary too small", 2, ["--vocabulary 100"], train("--data", text, "--vocabulary", "100"))
    refused("a model larger than the memory", 1, ["available", "parameters"],
            run("train", "gpt2", "--preset", "1.5b", "--width", "16000", "--data", text, "--log", log), [log])
    refused("a batch larger than the memory", 1, ["available", "--batch"],
            train("--data", text, "--batch", "1000000", "--sequence-length", "32", "--log", log), [log])


def test_device(folder, text):
    """With a GPU the runs themselves are compared: scripts/check-trainer-gpu, tests/cuda/test_emulated_trainer.sh."""
    log, folders = folder / "device.jsonl", [folder / "no-run"]
    for word in ("gpu", "cuda:", "cuda:-1", "cuda:1x", "CPU", ""):
        refused(f"--device '{word}'", 2, ["--device takes cpu, cuda or cuda:N", f"'{word}'"],
                train("--data", text, f"--device={word}", "--log", log), [log])
    result = train("--data", text, "--steps", 2, "--device", "cpu", "--log", log)
    check("the log tells that the optimizer is on the CPU", result.returncode == 0 and
          read_log(log)[0]["run"]["device"] == "cpu" and "gpu" not in read_log(log)[0]["run"], result.stderr)
    log.unlink()
    result = train("--data", text, "--device", "cuda", "--log", log, "--checkpoint", folders[0], "--steps", 2)
    if result.returncode == 0:
        check("there is a GPU, and the log names it", read_log(log)[0]["run"]["device"] == "cuda", read_log(log)[0])
        return
    way_out = "train with --device cpu"
    parts = ["-DSTQUANT_CUDA=ON", way_out] if "built without" in result.stderr else ["no GPU that CUDA can use", way_out]
    refused("--device cuda without a GPU", 1, parts, result, [log, *folders])
    result = run("train", "vit", "--data", folder, "--device", "cuda:0")
    refused("and for the other model, before its data are read", 1, parts, result)


def test_bad_data(folder, text):
    log = folder / "refused.jsonl"
    empty, binary, short, fake = (folder / name for name in ("empty.txt", "binary.txt", "short.txt", "fake.gz"))
    empty.write_bytes(b"")
    binary.write_bytes(b"text\0more text" * 100)
    short.write_bytes(b"short")
    fake.write_bytes(b"plain text\n" * 100)
    nothing = folder / "nothing"
    nothing.mkdir()
    cut = folder / "cut.gz"
    cut.write_bytes(gzip.compress(words(5000).encode())[:-20])
    cases = [("missing", folder / "missing", ["missing", "No such file"]), ("empty", empty, ["empty.txt", "empty"]),
             ("binary", binary, ["binary.txt", "byte 4"]), ("short", short, ["--sequence-length"]),
             ("not gzip", fake, ["fake.gz"]), ("truncated gzip", cut, ["cut.gz", "truncated"]),
             ("empty folder", nothing, ["nothing", "no files"])]
    if os.geteuid() != 0:
        closed = folder / "closed.txt"
        closed.write_text("text")
        closed.chmod(0)
        cases.append(("unreadable", closed, ["closed.txt", "Permission denied"]))
    for name, path, parts in cases:
        refused(f"data: {name}", 1, parts, train("--data", path, "--log", log), [log])
    refused("one good and one bad file", 1, ["empty.txt"], train("--data", text, "--data", empty, "--log", log), [log])


def test_full_disk(folder, text):
    result = train("--data", text, "--steps", 5, "--log", "/dev/full")
    check("a full disk while logging ends the run", result.returncode == 1 and "/dev/full" in result.stderr and
          "No space left" in result.stderr and "validation loss" not in result.stdout, result.stderr)
    refused("a log in no folder", 1, ["Cannot write the log"],
            train("--data", text, "--steps", 5, "--log", folder / "none" / "run.jsonl"))
    with open("/dev/full", "w") as full:
        result = subprocess.run([COMMAND, "train", "gpt2", *SMALL, "--data", text, "--steps", "2"], stdout=full,
                                stderr=subprocess.PIPE, text=True, timeout=300)
    check("a full disk behind standard output is told", result.returncode == 1 and "standard output" in result.stderr,
          result.stderr)


def test_stop(folder, text):
    for number in (signal.SIGINT, signal.SIGTERM):
        log, summary = folder / f"stop-{number}.jsonl", folder / f"stop-{number}.json"
        process = subprocess.Popen([COMMAND, "train", "gpt2", *SMALL, "--data", text, "--steps", "1000000",
                                    "--validate-every", "0", "--log", log, "--summary", summary], text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_bytes().count(b"\n") >= 5) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        output, errors = process.communicate(timeout=120)
        lines = read_log(log)
        stopped = re.search(r"Stopped by a signal after step (\d+) of 1000000", output)
        check(f"{number.name} stops after a whole step",
              process.returncode == 128 + number and stopped and int(stopped[1]) == len(lines) and errors == "" and
              not summary.exists(), f"status {process.returncode}: {output[-200:]} {errors}")


def test_terminal(folder, text):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    process = subprocess.Popen([COMMAND, "train", "gpt2", *SMALL, "--data", text, "--steps", "300"], stdout=slave,
                               stderr=subprocess.STDOUT)
    os.close(slave)
    output = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        output += part
    os.close(master)
    status = process.wait(timeout=120)
    written = output.decode().split("--- sample")[0]
    lines = [line for line in re.split(r"[\r\n]+", written.replace("\x1b[K", "")) if line.startswith("step ")]
    check("on a terminal one line is written over", status == 0 and "\r" in written and "\x1b[K" in written and
          len(lines) > 3, written[-300:])
    check("it is cut to the terminal's width", max(map(len, lines)) <= 49, repr(max(lines, key=len)))


def test_divergence(folder, text):
    result = train("--data", text, "--steps", 400, "--learning-rate", "1000", "--clip", "0", "--optimizer", "adamw",
                   "--warmup", "0", "--log", folder / "diverged.jsonl")
    lines = read_log(folder / "diverged.jsonl")
    if result.returncode == 0:  # layer norms may keep even this finite; then nothing may have been skipped
        check("a hopeless learning rate: finite to the end", not any("skipped" in line for line in lines))
    else:
        check("a hopeless learning rate: reported and ended",
              result.returncode == 1 and "not finite" in result.stderr and "--learning-rate" in result.stderr)


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        text = folder / "text.txt"
        text.write_text(words(20000))
        for test in (test_log, test_repeatable, test_bad_options, test_device, test_bad_data, test_full_disk, test_stop,
                     test_terminal, test_divergence):
            test(folder, text)
    return tap.status()


if __name__ == "__main__":
    sys.exit(main())
