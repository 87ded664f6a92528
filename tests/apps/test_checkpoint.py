#!/usr/bin/env python3
"""Checkpoints of the command: saving, killing, resuming, converting, inspecting, what is refused."""

import fcntl
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

import tap
from tap import check

COMMAND = os.environ["STQUANT_COMMAND"]
LONG = bool(os.environ.get("STQUANT_LONG"))
SMALL = ["--layers", "2", "--width", "64", "--heads", "2", "--context", "32", "--sequence-length", "32", "--batch", "4",
         "--threads", "1", "--sample-length", "0", "--decide-every", "7", "--validate-every", "10", "--warmup", "3"]


def run(*arguments, **options):
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    return subprocess.run([COMMAND, *map(str, arguments)], text=True, capture_output=True, timeout=600,
                          env=environment, **options)


def train(*arguments, **options):
    return run("train", "gpt2", *SMALL, *arguments, **options)


def digest(path):
    result = run("inspect", path, "--digest")
    return result.stdout.strip() if result.returncode == 0 else f"status {result.returncode}: {result.stderr}"


def inspect(path):
    return json.loads(run("inspect", path, "--json").stdout)


def read_log(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(lines):
    return {line["step"]: (line["train_loss"], line.get("validation_loss")) for line in lines}


def refused(name, status, parts, result):
    lines = [line for line in result.stderr.strip().splitlines() if not line.startswith("Try ")]
    good = result.returncode == status and len(lines) == 1 and all(part in lines[0] for part in parts)
    check(f"refused: {name}", good, f"status {result.returncode}: {result.stderr!r}")


MODES = {
    "float32": ["--optimizer", "adamw"],
    "fixed widths": ["--optimizer", "fixed", "--m-bits", "5", "--v-bits", "3"],
    "zones": ["--optimizer", "stquant", "--policy", "zones"],
    "rate-distortion": ["--optimizer", "stquant", "--policy", "rate-distortion"],
    "mean cap, error compensation": ["--optimizer", "stquant", "--cap-mode", "mean", "--error-compensation", "0.5"],
}


def test_resume(folder, text):
    for name, options in MODES.items():
        base = folder / name.replace(" ", "-")
        base.mkdir()
        common = ["--data", text, "--steps", 40, "--gradient-accumulation", 2, *options]
        first = train(*common, "--checkpoint", base / "a", "--save-every", 9, "--log", base / "a.jsonl")
        check(f"{name}: a run that saves ends well", first.returncode == 0, first.stderr)
        saved = sorted(path.name for path in (base / "a").glob("step-*"))
        # Those that come due while a slow disk still has the one before are left out.
        check(f"{name}: checkpoints where they are due, and the last",
              len(saved) >= 2 and set(saved) <= {"step-00000009", "step-00000018", "step-00000027", "step-00000036", "step-00000040"}
              and saved[-1] == "step-00000040", saved)
        for start in saved[:-1][:2]:
            log = base / "b.jsonl"
            shutil.copy(base / "a.jsonl", log)
            second = train(*common, "--resume", base / "a" / start, "--checkpoint", base / start, "--log", log)
            check(f"{name}: goes on from {start} to the same digest",
                  second.returncode == 0 and digest(base / start) == digest(base / "a"), second.stderr)
            check(f"{name}: with the same losses in the log", losses(read_log(log)) == losses(read_log(base / "a.jsonl")))
        plain = train(*common, "--log", base / "c.jsonl")
        check(f"{name}: saving changes nothing", plain.returncode == 0 and
              losses(read_log(base / "c.jsonl")) == losses(read_log(base / "a.jsonl")))


def test_other_options(folder, text):
    """Caps and modes that differ from the run's: told, and the cap holds."""
    base = folder / "other"
    train("--data", text, "--steps", 30, "--optimizer", "stquant", "--state-bits", 7, "--checkpoint", base / "a")
    for name, options in {"a lower cap": ["--state-bits", "5.0"], "float32 states": ["--optimizer", "adamw"],
                          "fixed widths": ["--optimizer", "fixed", "--state-bits", "4"]}.items():
        target = base / name.replace(" ", "-")
        result = train("--data", text, "--steps", 50, *options, "--resume", base / "a", "--checkpoint", target,
                       "--summary", base / "summary.json")
        check(f"resumed with {name}", result.returncode == 0 and "widths of the states were changed" in result.stdout,
              result.stdout + result.stderr)
    summary = json.loads((base / "summary.json").read_text())
    check("the differences are told", "optimizer is \"fixed\", was \"stquant\"" in result.stdout and
          "steps is 50, was 30" in result.stdout, result.stdout)
    low = inspect(base / "a-lower-cap")
    check("the lower cap holds for the states", 8 * low["state_bytes"] / low["state_values"] <= 5.0, low["state_bytes"])
    check("fixed widths are those asked for", summary["steps_done"] == 50 and
          {tensor["m_bits"] for tensor in inspect(base / "fixed-widths")["tensors"]} == {4, 32})
    high = train("--data", text, "--steps", 60, "--optimizer", "stquant", "--resume", base / "float32-states")
    check("float32 states go on under a cap", high.returncode == 0, high.stderr)


def kill_run(arguments, seconds):
    process = subprocess.Popen([COMMAND, "train", "gpt2", *SMALL, *map(str, arguments)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, env=dict(os.environ, OMP_NUM_THREADS="1"))
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    error = process.stderr.read().decode()
    process.stderr.close()
    process.wait()
    return process.returncode, error


def test_kill(folder, text):
    """kill -9 at random moments: the newest checkpoint verifies, and the run that goes on ends as if nothing was."""
    kills = 200 if LONG else 20
    seed = int(os.environ.get("STQUANT_SEED", random.SystemRandom().randrange(10**6)))
    generator = random.Random(seed)
    print(f"# kill -9: seed {seed}")
    common = ["--data", text, "--steps", 300, "--optimizer", "stquant", "--save-every", 3, "--keep", 2]
    begin = time.monotonic()
    train(*common, "--checkpoint", folder / "whole")
    window = 0.4 * (time.monotonic() - begin)
    expected = digest(folder / "whole")
    done = finished = wrong = published_kills = chain = 0
    while done < kills:
        chain += 1
        target = folder / f"chain-{chain}"
        while done < kills:
            has_one = target.exists() and run("inspect", target, "--verify").returncode == 0
            resume = ["--resume", target] if has_one else []
            # Several kills on the way to the end: what is killed has been resumed before. The window follows the
            # machine's speed, which the first run may have met in a slow or a fast phase.
            status, error = kill_run([*common, "--checkpoint", target, *resume], generator.uniform(0, window))
            if status == 0 or "already" in error: # the last kill came after the last checkpoint
                window *= 1.0 if has_one else 0.7
                break
            done += 1
            if status != -signal.SIGKILL:
                wrong += 1
                print(f"# status {status}: {error}")
            published = sorted(target.glob("step-*")) if target.exists() else []
            published_kills += bool(published)
            window *= 1.0 if published else 1.1
            verified = run("inspect", target, "--verify") if published else None
            if verified and verified.returncode != 0:
                wrong += 1
                print(f"# after kill {done}: {verified.stderr}")
        last = train(*common, "--checkpoint", target, *(["--resume", target] if list(target.glob("step-*")) else []))
        at_end = "already" in last.stderr
        if last.returncode != 0 and not at_end or digest(target) != expected:
            wrong += 1
            print(f"# chain {chain}: status {last.returncode}, {last.stderr}, {digest(target)}")
        finished += 1
        left = [path.name for path in target.iterdir() if path.name.startswith(".step")]
        if left:
            wrong += 1
            print(f"# chain {chain}: {left} is left")
        shutil.rmtree(target)
    check(f"{kills} kills, {finished} runs taken to their end: every newest checkpoint verifies, every digest is right",
          wrong == 0, f"{wrong} wrong; seed {seed}")
    check("half of the kills or more left a checkpoint behind", 2 * published_kills >= kills, f"{published_kills} of {kills}")


def test_signal(folder, text):
    """SIGTERM: saves and leaves; --keep."""
    common = ["--data", text, "--steps", 3000, "--optimizer", "stquant"]
    target = folder / "term"
    process = subprocess.Popen([COMMAND, "train", "gpt2", *SMALL, *map(str, common), "--checkpoint", str(target),
                                "--save-every", "20", "--keep", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(target.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1].decode()
    check("SIGTERM: status 143", process.returncode == 143, error)
    steps = sorted(int(path.name[5:]) for path in target.glob("step-*"))
    check("SIGTERM: a last checkpoint, and no more than --keep", 1 <= len(steps) <= 2, steps)
    verified = run("inspect", target, "--verify")
    check("SIGTERM: it verifies", verified.returncode == 0 and "every checksum is right" in verified.stdout,
          verified.stderr)


def begin_unread(folder, text, kind):
    """A run that shows a line at every step to a terminal or a small pipe which nobody reads; its log and checkpoints."""
    log, target = folder / f"{kind}.jsonl", folder / kind
    reading, writing = os.openpty() if kind == "terminal" else os.pipe()
    if kind == "pipe":
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    options = [*SMALL, "--validate-every", "1", "--validation-batches", "1", "--steps", "1000000", "--save-every", "50",
               "--optimizer", "stquant"]
    process = subprocess.Popen([COMMAND, "train", "gpt2", "--data", text, *options, "--log", log, "--checkpoint", target],
                               stdout=writing, stderr=subprocess.PIPE, env=dict(os.environ, OMP_NUM_THREADS="1"))
    os.close(writing)
    return process, reading, log, target


def lines_of(log):
    return log.read_bytes().count(b"\n") if log.exists() else 0


def test_signal_unread(folder, text):
    """Nobody reads what a run shows, as under an mpirun that was told to end: SIGTERM saves and leaves all the same."""
    for kind in ("terminal", "pipe"):
        process, reading, log, target = begin_unread(folder, text, kind)
        deadline, before = time.monotonic() + 60, -1
        if kind == "terminal":  # its buffer holds 170 lines or so
            while lines_of(log) < 500 and time.monotonic() < deadline:
                time.sleep(0.05)
            check("a terminal that nobody reads does not hold up a run", lines_of(log) >= 500, lines_of(log))
        else:
            while (lines_of(log) < 20 or lines_of(log) != before) and time.monotonic() < deadline:
                before = lines_of(log)
                time.sleep(1)
        process.send_signal(signal.SIGTERM)
        try:
            error = process.communicate(timeout=20)[1].decode()
        except subprocess.TimeoutExpired:
            process.kill()
            error = process.communicate()[1].decode() + "it was still there after 20 s"
        last, newest = lines_of(log), max((int(path.name[5:]) for path in target.glob("step-*")), default=None)
        check(f"SIGTERM beside a {kind} that nobody reads: the last step is saved",
              process.returncode == 143 and newest == last, f"{process.returncode}, {newest}, not {last}: {error}")
        os.close(reading)


def limit_files(bytes_allowed):
    def before():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_allowed, bytes_allowed))
    return before


def test_full_disk(folder, text):
    common = ["--data", text, "--steps", 60, "--optimizer", "stquant"]
    target = folder / "full"
    train(*common[:2], "--steps", 20, *common[4:], "--checkpoint", target)
    before = digest(target)
    result = train(*common, "--resume", target, "--checkpoint", target, "--save-every", 10, "--log",
                   folder / "full.jsonl", preexec_fn=limit_files(100000))
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: checkpoint of step")]
    check("files that cannot grow: a warning for each checkpoint, with the reason",
          warnings and all("File too large" in line and "The run goes on" in line for line in warnings), result.stderr)
    check("the run goes on to its end", read_log(folder / "full.jsonl")[-1]["step"] == 60 and
          "steps               60" in result.stdout, result.stdout)
    check("and ends with status 1, as its last checkpoint is missing", result.returncode == 1 and
          "The last checkpoint, of step 60, is not written" in result.stderr, result.stderr)
    check("the last good checkpoint is as it was", digest(target) == before)
    check("nothing half-written is left", sorted(path.name for path in target.iterdir()) == [".lock", "step-00000020"],
          sorted(path.name for path in target.iterdir()))


def test_damaged(folder, text):
    """A damaged newest checkpoint: named, and the one before is taken."""
    common = ["--data", text, "--steps", 60, "--optimizer", "stquant"]
    target = folder / "damaged"
    train(*common, "--checkpoint", target, "--save-every", 10)
    expected = digest(target)
    shutil.rmtree(target / "step-00000060")
    newest = sorted(target.glob("step-*"))[-1]
    part = newest / "model-00001-of-00001.safetensors"
    content = bytearray(part.read_bytes())
    content[-3] ^= 4
    part.write_bytes(content)
    result = run("inspect", target, "--verify")
    refused("a flipped bit", 1, [part.name, "tensor 'state.", "offsets", "does not match its checksum"], result)
    again = train(*common, "--resume", target, "--checkpoint", target)
    check("the checkpoint before the damaged one is taken, with a warning",
          again.returncode == 0 and "warning: " in again.stderr and "is tried" in again.stderr and
          digest(target) == expected, again.stdout + again.stderr)
    shutil.rmtree(target / "step-00000060")
    (newest / "model.safetensors.index.json").write_text("{}")
    result = run("inspect", target)
    check("a checkpoint without a sound index does not count", result.returncode == 0 and
          newest.name not in result.stdout.splitlines()[0], result.stdout + result.stderr)


def test_eval_and_sample(folder, text):
    log, target = folder / "eval.jsonl", folder / "eval"
    train("--data", text, "--steps", 60, "--checkpoint", target, "--log", log)
    logged = read_log(log)[-1]["validation_loss"]
    result = run("eval", target, "--data", text, "--json", "--threads", 1)
    loss = json.loads(result.stdout)["loss"]
    check("eval gives the validation loss that was logged", abs(loss - logged) < 1e-7 * logged, f"{loss}, {logged}")
    everything = json.loads(run("eval", target, "--data", text, "--json", "--validation-share", 1).stdout)
    check("eval of all the text", abs(everything["loss"] - logged) < 0.1 * logged, everything)
    plain = run("eval", target, "--data", text)
    check("eval prints a table", "nats a byte" in plain.stdout and "perplexity" in plain.stdout, plain.stderr)
    samples = [run("sample", target, "--prompt", "the ", "--length", 50, "--seed", seed).stdout for seed in (1, 1, 2)]
    check("sample goes on from the prompt", samples[0].startswith("the ") and len(samples[0]) >= 50)
    check("sample is a function of its seed", samples[0] == samples[1] != samples[2])
    refused("no data", 2, ["--data"], run("eval", target))
    refused("a sequence longer than the context", 2, ["--sequence-length", "32"],
            run("eval", target, "--data", text, "--sequence-length", 33))
    refused("data that is missing", 1, ["nothing.txt"], run("eval", target, "--data", folder / "nothing.txt"))


def read_safetensors(path):
    """A reader of a few lines, as docs/format.md describes the files."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:8 + length])
    metadata = header.pop("__metadata__", {})
    data = content[8 + length:]
    return metadata, {name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
                      for name, entry in header.items()}


def write_description(source, target, changes):
    """A checkpoint of one file like `source`, alone and so without an index, whose application tells `changes` as well."""
    content = source.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:8 + length])
    told = json.loads(header["__metadata__"]["stquant"])
    told["application"].update(changes)
    header["__metadata__"]["stquant"] = json.dumps(told)
    head = json.dumps(header).encode()
    head += b" " * (-(8 + len(head)) % 4096)
    target.write_bytes(struct.pack("<Q", len(head)) + head + content[8 + length:])


def test_descriptions_out_of_range(folder, text):
    """What a foreign file tells of its run is used within the range of the options, which go before it."""
    target, alone = folder / "told", folder / "told.safetensors"
    train("--data", text, "--steps", 5, "--checkpoint", target)
    part = next(target.glob("step-*/*.safetensors"))
    expected = json.loads(run("eval", target, "--data", text, "--json", "--threads", 1).stdout)["loss"]
    write_description(part, alone, {})
    found = run("eval", alone, "--data", text, "--json", "--threads", 1)
    check("a description that is sound is used", found.returncode == 0 and json.loads(found.stdout)["loss"] == expected, found.stderr)
    for key, wrong in (("batch", 0), ("batch", -3), ("batch", 1e300), ("batch", 2.5), ("batch", "4"), ("batch", None), ("sequence_length", -1),
                       ("sequence_length", 1e19), ("validation_batches", 0), ("validation_batches", 1e12), ("validation_share", 0),
                       ("validation_share", -0.5), ("validation_share", 2)):
        write_description(part, alone, {key: wrong})
        option = "--" + key.replace("_", "-")
        refused(f"{key} {wrong!r} of a checkpoint", 1, [key, alone.name, option], run("eval", alone, "--data", text))
    write_description(part, alone, {"batch": -3})
    check("the option goes before it", run("eval", alone, "--data", text, "--batch", 4).returncode == 0)
    for wrong in (-1, 9, 2.5, 1e300, "4"):
        write_description(part, alone, {"qat_bits": wrong})
        for command in (("eval", alone, "--data", text), ("sample", alone)):
            refused(f"qat_bits {wrong!r} of a checkpoint, {command[0]}", 1, ["qat_bits", alone.name], run(*command))
    write_description(part, alone, {"qat_bits": 4, "qat_softness": -1})
    refused("a negative qat_softness", 1, ["qat_softness", alone.name], run("eval", alone, "--data", text))


def test_convert(folder, text):
    base = folder / "convert"
    base.mkdir()
    common = ["--data", text, "--steps", 40, "--optimizer", "stquant"]
    train(*common, "--steps", 20, "--checkpoint", base / "half", "--warmup", 3)
    train(*common, "--checkpoint", base / "a", "--resume", base / "half")
    whole = digest(base / "a")
    for ranks in (3, 5, 1):
        source, target = base / ("parts-3" if ranks == 5 else "half"), base / f"parts-{ranks}"
        result = run("convert", source, target, "--ranks", ranks)
        files = len(list(target.glob("step-00000020/*.safetensors")))
        check(f"convert to {ranks} parts keeps the digest", result.returncode == 0 and files == ranks and
              digest(target) == digest(base / "half"), result.stderr)
        resumed = train(*common, "--resume", target, "--checkpoint", base / f"resumed-{ranks}")
        check(f"{ranks} parts resume to the same digest", digest(base / f"resumed-{ranks}") == whole, resumed.stderr)
    index = json.loads((base / "parts-3" / "step-00000020" / "model.safetensors.index.json").read_text())
    names = set()
    for file in set(index["weight_map"].values()):
        metadata, tensors = read_safetensors(base / "parts-3" / "step-00000020" / file)
        names |= set(tensors)
        check(f"a reader of a few lines finds all tensors of {file}", metadata["format"] == "pt" and
              all(index["weight_map"][name] == file for name in tensors) and
              json.loads(metadata["stquant"])["ranks"] == 3)
    check("the index names every tensor", names == set(index["weight_map"]))
    result = run("convert", base / "half", base / "float32", "--to", "float32")
    check("convert to float32 states", result.returncode == 0 and
          {tensor["m_bits"] for tensor in inspect(base / "float32")["tensors"]} == {32}, result.stderr)
    result = run("convert", base / "float32", base / "low", "--state-bits", 5)
    low = inspect(base / "low")
    check("convert to widths under a cap", result.returncode == 0 and
          8 * low["state_bytes"] / low["state_values"] <= 5.0, result.stderr)
    result = run("convert", base / "half", base / "fixed", "--m-bits", 6, "--v-bits", 2)
    check("convert to given widths", {(tensor["m_bits"], tensor["v_bits"]) for tensor in
                                      inspect(base / "fixed")["tensors"]} == {(6, 2), (32, 32)}, result.stderr)
    resumed = train(*common, "--resume", base / "low")
    check("converted widths resume", resumed.returncode == 0, resumed.stderr)
    result = run("convert", base / "half", base / "adamw.safetensors", "--to", "torch")
    _, tensors = read_safetensors(base / "adamw.safetensors")
    check("convert to PyTorch's states", result.returncode == 0 and
          tensors["state.wte.weight.exp_avg"][:2] == ("F32", [256, 64]) and
          struct.unpack("<f", tensors["state.ln_f.bias.step"][2]) == (20.0,), result.stderr)
    back = run("convert", base / "adamw.safetensors", base / "back", "--to", "float32")
    _, one = read_safetensors(base / "back" / "step-00000020" / "model-00001-of-00001.safetensors")
    _, two = read_safetensors(base / "float32" / "step-00000020" / "model-00001-of-00001.safetensors")
    check("and back: the same moments and parameters", back.returncode == 0 and
          {name: entry[2] for name, entry in one.items()} == {name: entry[2] for name, entry in two.items()},
          back.stderr)
    result = train(*common, "--resume", base / "adamw.safetensors")
    check("PyTorch's states resume", result.returncode == 0 and "resumed    step 20" in result.stdout, result.stderr)
    result = run("convert", base / "half", base / "weights", "--to", "gpt2")
    one = json.loads(run("eval", base / "half", "--data", text, "--json", "--threads", 1).stdout)["loss"]
    two = json.loads(run("eval", base / "weights", "--data", text, "--json", "--threads", 1, "--batch", 4,
                         "--sequence-length", 32).stdout)["loss"]
    check("weights in Hugging Face's naming have the same loss", result.returncode == 0 and one == two, f"{one}, {two}")
    refused("widths that exclude each other", 2, ["--state-bits", "--m-bits"],
            run("convert", base / "half", base / "x", "--state-bits", 5, "--m-bits", 4, "--v-bits", 4))
    refused("one width alone", 2, ["--m-bits", "--v-bits"], run("convert", base / "half", base / "x", "--m-bits", 4))
    refused("an impossible cap", 2, ["smallest possible"],
            run("convert", base / "half", base / "x", "--state-bits", 0.5))
    refused("a folder with a later step", 2, ["later step"], run("convert", base / "half", base / "a"))
    refused("nothing to convert", 2, ["nowhere"], run("convert", base / "nowhere", base / "x"))


def test_init(folder, text):
    base = folder / "init"
    train("--data", text, "--steps", 30, "--checkpoint", base)
    run("convert", base, folder / "weights", "--to", "gpt2")
    result = train("--data", text, "--steps", 5, "--init", folder / "weights", "--log", folder / "init.jsonl")
    check("a run begins with the weights of --init", result.returncode == 0 and
          read_log(folder / "init.jsonl")[0]["train_loss"] < 3.5, result.stderr)


def test_refusals(folder, text):
    target = folder / "refusals"
    train("--data", text, "--steps", 10, "--checkpoint", target)
    refused("a folder with checkpoints, without --resume", 2, ["step 10", "--resume"],
            train("--data", text, "--steps", 20, "--checkpoint", target))
    refused("a run that is at its end", 2, ["step 10", "--steps"], train("--data", text, "--steps", 10, "--resume", target))
    refused("another shape", 2, ["shape", "\"layers\":1"],
            train("--data", text, "--steps", 20, "--resume", target, "--layers", 1))
    refused("no checkpoint to resume", 2, ["none"], train("--data", text, "--steps", 20, "--resume", folder / "none"))
    (folder / "empty").mkdir()
    refused("a folder without checkpoints", 1, ["empty"], train("--data", text, "--steps", 20, "--resume", folder / "empty"))
    refused("a file where a folder should be", 1, ["text.txt"],
            train("--data", text, "--steps", 20, "--checkpoint", text))
    refused("text as a checkpoint", 1, ["text.txt", "safetensors"], run("inspect", text))
    refused("two checkpoints", 2, ["one checkpoint"], run("inspect", target, target))
    holder = subprocess.Popen([COMMAND, "train", "gpt2", *SMALL, "--data", str(text), "--steps", "100000",
                               "--checkpoint", str(folder / "held")], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (folder / "held" / ".lock").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    refused("the folder of another run", 1, ["Another run"],
            train("--data", text, "--steps", 20, "--checkpoint", folder / "held"))
    holder.kill()
    holder.wait()
    help_text = run("--help").stdout
    check("the commands are listed", all(name in help_text for name in ("inspect", "convert", "eval", "sample")))


def test_inspect(folder, text):
    target = folder / "inspect"
    train("--data", text, "--steps", 40, "--optimizer", "stquant", "--checkpoint", target)
    table = run("inspect", target).stdout
    check("inspect prints every tensor and the total", "h.1.mlp.c_proj.weight" in table and "less than float32" in table)
    told = json.loads(run("inspect", target, "--json", "--digest", "--verify").stdout)
    check("inspect --json", told["step"] == 40 and told["verified"] and told["digest"] == digest(target) and
          told["application"]["model"] == "gpt2" and len(told["tensors"]) == len(told["arrays"]) == 28)
    coded = [tensor for tensor in told["tensors"] if tensor["m_bits"] < 32]
    # 6 dB a bit, about 20 at 4 bits (docs/codec.md's compander).
    check("signal-to-noise ratios by width", coded and
          all(abs(tensor["m_snr_db"] - (20 + 6 * (tensor["m_bits"] - 4))) < 3 for tensor in coded),
          [(tensor["m_bits"], tensor["m_snr_db"]) for tensor in coded])
    check("the states are at least 84 % smaller than float32 ones",
          told["state_bytes"] <= 0.16 * 4 * told["state_values"], told["state_bytes"])


def main():
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="stquant-test-", dir=memory) as name:
        folder = pathlib.Path(name)
        generator = random.Random(1)
        vocabulary = ["time", "house", "water", "green", "walk", "of", "the", "and", "a", "in"]
        text = folder / "text.txt"
        text.write_text(" ".join(generator.choice(vocabulary) for _ in range(20000)) + ".\n")
        for test in (test_resume, test_other_options, test_inspect, test_eval_and_sample, test_descriptions_out_of_range, test_convert, test_init,
                     test_signal, test_signal_unread, test_full_disk, test_damaged, test_refusals, test_kill):
            test(folder, text)
    return tap.status()


if __name__ == "__main__":
    sys.exit(main())
