#!/usr/bin/env python3
"""Checkpoints of several ranks: one file each, published when all are there, resumed on any number of ranks."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

COMMAND = os.environ["STQUANT_COMMAND"]
SMALL = ["--layers", "2", "--width", "64", "--heads", "2", "--context", "32", "--sequence-length", "32", "--batch", "12",
         "--threads", "1", "--sample-length", "0", "--decide-every", "7", "--validate-every", "10", "--warmup", "3",
         "--steps", "40", "--optimizer", "stquant"]
ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
results = []


def check(name, condition, detail=""):
    results.append(bool(condition))
    print(f"{'ok' if condition else 'not ok'} - {name}" + ("" if condition or not detail else f": {detail}"), flush=True)


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
        print("ok - checkpoints of several ranks # SKIP there is no mpirun")
        return 0
    probe = launch(2, "train", "gpt2", "--help")
    if "without MPI" in probe.stderr:
        print("ok - checkpoints of several ranks # SKIP the command is built without MPI")
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
    return 0 if all(results) and results else 1


def test_dead_rank(folder, common):
    """A rank is killed: the others end, and the last published checkpoint is whole."""
    target = folder / "dead"
    endless = [argument if argument != "40" else "100000" for argument in map(str, common)]
    process = subprocess.Popen(["mpirun", "--oversubscribe", "-n", "3", COMMAND, *endless, "--checkpoint", str(target),
                                "--save-every", "5", "--keep", "3"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               env=ENVIRONMENT)
    deadline = time.monotonic() + 120
    while len(list(target.glob("step-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], text=True, capture_output=True).stdout
    ranks = sorted(int(child) for child in children.split())
    os.kill(ranks[-1], signal.SIGKILL)
    begin = time.monotonic()
    process.communicate(timeout=120)
    check("a rank is killed: the others end within 30 s", process.returncode != 0 and time.monotonic() - begin < 30,
          time.monotonic() - begin)
    verified = launch(1, "inspect", target, "--verify")
    check("and the newest checkpoint is whole", verified.returncode == 0, verified.stderr)
    step = int(max(path.name for path in target.glob("step-*"))[5:])
    resumed = launch(2, *endless[:endless.index("100000")], step + 5, *endless[endless.index("100000") + 1:],
                     "--resume", target, "--checkpoint", target)
    check("and resumes on fewer ranks", resumed.returncode == 0, resumed.stderr)
    left = [path.name for path in target.iterdir() if path.name.startswith(".step")]
    check("without anything half-written", not left, left)


if __name__ == "__main__":
    sys.exit(main())
