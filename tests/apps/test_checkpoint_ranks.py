#!/usr/bin/env python3
"""Checkpoints of several ranks: one file each, published when all are there, resumed on any number of ranks."""

import json
import os
import pathlib
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import tap
from tap import check, skip

COMMAND = os.environ["STQUANT_COMMAND"]
SMALL = ["--layers", "2", "--width", "64", "--heads", "2", "--context", "32", "--sequence-length", "32", "--batch", "12",
         "--threads", "1", "--sample-length", "0", "--decide-every", "7", "--validate-every", "10", "--warmup", "3",
         "--steps", "40", "--optimizer", "stquant"]
ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")


def launch(ranks, *arguments):
    launcher = ["mpirun", "--oversubscribe", "-n", str(ranks)] if ranks > 1 else []
    return subprocess.run([*launcher, COMMAND, *map(str, arguments)], text=True, capture_output=True, timeout=300,
                          env=ENVIRONMENT)


def digest(path):
    result = launch(1, "inspect", path, "--digest")
    return result.stdout.strip() if result.returncode == 0 else result.stderr


def losses(path):
    return {line["step"]: line["train_loss"] for line in map(json.loads, path.read_text().splitlines())}


def main():
    if not shutil.which("mpirun"):
        skip("checkpoints of several ranks", "there is no mpirun")
        return 0
    probe = launch(2, "train", "gpt2", "--help")
    if "without MPI" in probe.stderr:
        skip("checkpoints of several ranks", "the command is built without MPI")
        return 0
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="stquant-test-", dir=memory) as name:
        folder = pathlib.Path(name)
        generator = random.Random(1)
        text = folder / "text.txt"
        text.write_text(" ".join(generator.choice(["time", "house", "water", "of", "the"]) for _ in range(20000)))
        common = ["train", "gpt2", *SMALL, "--data", text]
        whole = launch(3, *common, "--checkpoint", folder / "three", "--save-every", 16, "--log", folder / "three.jsonl")
        check("three ranks save", whole.returncode == 0, whole.stderr)
        steps = sorted(path.name for path in (folder / "three").glob("step-*"))
        check("every rank at the same steps", steps == ["step-00000016", "step-00000032", "step-00000040"], steps)
        first = folder / "three" / "step-00000016"
        check("one file a rank", len(list(first.glob("model-*-of-00003.safetensors"))) == 3)
        verified = launch(1, "inspect", first, "--verify")
        check("every checksum is right", verified.returncode == 0, verified.stderr)
        again = launch(3, *common, "--resume", first, "--checkpoint", folder / "again")
        check("three ranks go on to the same digest",
              again.returncode == 0 and digest(folder / "again") == digest(folder / "three"), again.stderr)
        expected = losses(folder / "three.jsonl")
        for ranks in (1, 2, 4):
            log, target = folder / f"{ranks}.jsonl", folder / f"on-{ranks}"
            result = launch(ranks, *common, "--resume", first, "--checkpoint", target, "--log", log)
            found = losses(log) if log.exists() else {}
            # The gradients' sums differ in their order; the losses of a few steps hardly do.
            near = all(abs(found[step] - expected[step]) < 1e-3 for step in range(17, 22)) if found else False
            check(f"{ranks} ranks go on from three", result.returncode == 0 and near, result.stderr)
            back = launch(1, "convert", target, folder / f"single-{ranks}")
            check(f"and their {ranks} files make one of the same digest", back.returncode == 0 and
                  digest(folder / f"single-{ranks}") == digest(target), back.stderr)
        test_dead_rank(folder, common)
        test_termination(folder, common)
        test_termination_through_mpirun(folder, common)
        test_termination_beside_a_hung_rank(folder, common)
    return tap.status()


def begin(common, target, *options, launcher=()):
    """Three ranks of a run without an end, and their process ids once two checkpoints are published."""
    endless = [argument if argument != "40" else "100000" for argument in map(str, common)]
    process = subprocess.Popen(["mpirun", *launcher, "--oversubscribe", "-n", "3", COMMAND, *endless, "--checkpoint",
                                str(target), "--save-every", "5", "--keep", "3", *options],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    deadline = time.monotonic() + 120
    while len(list(target.glob("step-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], text=True, capture_output=True).stdout
    return process, sorted(int(child) for child in children.split())


def end(process):
    """What the ranks said, and after how many seconds they had all ended."""
    moment = time.monotonic()
    _, errors = process.communicate(timeout=120)
    return errors, time.monotonic() - moment


def newest(target):
    return max(int(path.name[5:]) for path in target.glob("step-*"))


def test_termination(folder, common):
    """SIGTERM to one rank: all save what they have after the same step, and leave."""
    target, log = folder / "told", folder / "told.jsonl"
    process, ranks = begin(common, target, "--log", str(log))
    os.kill(ranks[1], signal.SIGTERM)
    errors, seconds = end(process)
    check("a rank is told to end: all leave within 20 s", process.returncode == 143 and seconds < 20,
          f"{process.returncode} after {seconds:.1f} s: {errors}")
    last = max(losses(log))
    check("and the checkpoint is that of the last step", newest(target) == last, f"{newest(target)}, not {last}")
    verified = launch(1, "inspect", target, "--verify")
    check("and is whole", verified.returncode == 0, verified.stderr)


def test_termination_through_mpirun(folder, common):
    """mpirun, told to end, passes SIGTERM on after the time that it is told to wait, and kills after as much again. In the
    meantime it takes no output from the ranks, and the run goes on: a line at every step overfills the terminal that
    mpirun gives to rank 0."""
    target, log = folder / "passed", folder / "passed.jsonl"
    process, _ = begin(common, target, "--log", str(log), "--validate-every", "1", "--validation-batches", "1",
                       launcher=["--mca", "odls_base_sigkill_timeout", "10"])
    process.send_signal(signal.SIGTERM)
    errors, seconds = end(process)
    last = max(losses(log))
    check("mpirun is told to end: the last step is saved", newest(target) == last,
          f"{newest(target)}, not {last}, after {seconds:.1f} s: {errors}")


def test_termination_beside_a_hung_rank(folder, common):
    """Rank 0 hangs, in its log's pipe that nobody reads any more, and the others are told to end: they do not wait for
    it for long, and say so."""
    target, log = folder / "hung", folder / "pipe"
    os.mkfifo(log)
    pipe = os.open(log, os.O_RDWR)
    reader = threading.Thread(target=read_until, args=(pipe, target), daemon=True)
    reader.start()
    process, ranks = begin(common, target, "--log", str(log))
    reader.join(120)
    before, deadline = None, time.monotonic() + 60
    while before != newest(target) and time.monotonic() < deadline:
        before = newest(target)
        time.sleep(2)
    for rank in ranks[1:]:
        os.kill(rank, signal.SIGTERM)
    errors, seconds = end(process)
    os.close(pipe)
    check("beside a hung rank the others leave within 20 s", process.returncode not in (0, 143) and seconds < 20,
          f"{process.returncode} after {seconds:.1f} s: {errors}")
    check("with a sentence", "did not answer within" in errors, errors)
    verified = launch(1, "inspect", target, "--verify")
    check("and the newest checkpoint is whole", verified.returncode == 0, verified.stderr)


def read_until(pipe, target):
    """Reads the log until two checkpoints are published."""
    while len(list(target.glob("step-*"))) < 2:
        if select.select([pipe], [], [], 0.1)[0]:
            os.read(pipe, 65536)


def test_dead_rank(folder, common):
    """A rank is killed: the others end, and the last published checkpoint is whole."""
    target = folder / "dead"
    endless = [argument if argument != "40" else "100000" for argument in map(str, common)]
    process, ranks = begin(common, target)
    os.kill(ranks[-1], signal.SIGKILL)
    errors, seconds = end(process)
    check("a rank is killed: the others end within 30 s", process.returncode != 0 and seconds < 30, seconds)
    check("and it is told", "signal 9" in errors or "did not answer" in errors, errors)
    verified = launch(1, "inspect", target, "--verify")
    check("and the newest checkpoint is whole", verified.returncode == 0, verified.stderr)
    step = newest(target)
    resumed = launch(2, *endless[:endless.index("100000")], step + 5, *endless[endless.index("100000") + 1:],
                     "--resume", target, "--checkpoint", target)
    check("and resumes on fewer ranks", resumed.returncode == 0, resumed.stderr)
    left = [path.name for path in target.iterdir() if path.name.startswith(".step")]
    check("without anything half-written", not left, left)


if __name__ == "__main__":
    sys.exit(main())
