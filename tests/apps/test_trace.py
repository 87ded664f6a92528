"""`stquant train --trace` and `stquant factors`: what a trace holds, that a run does not feel it, and broken traces."""
import json
import os
import subprocess
import sys
import tempfile

import tap
from tap import check

COMMAND = os.environ["STQUANT_COMMAND"]
ERRORS = 7  # widths 2 to 8


def run(*arguments):
    return subprocess.run([COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def train(folder, *more):
    text = os.path.join(folder, "text.txt")
    if not os.path.exists(text):
        with open(text, "w") as file:
            file.write("".join(f"line {i} of {i * i % 97}, and so on. " for i in range(2000)))
    return run("train", "gpt2", "--data", text, "--layers", "1", "--width", "64", "--heads", "2", "--context", "32", "--sequence-length", "16",
               "--batch", "2", "--steps", "60", "--decide-every", "20", "--threads", "1", "--sample-length", "0", "--validate-every", "0",
               "--validation-batches", "1", *more)


def check_trace(folder):
    path = os.path.join(folder, "trace.jsonl")
    plain, traced = os.path.join(folder, "plain.json"), os.path.join(folder, "traced.json")
    results = [train(folder, "--summary", plain), train(folder, "--summary", traced, "--trace", path)]
    check("runs with and without a trace", all(result.returncode == 0 for result in results), results[-1].stderr)
    losses = [json.load(open(name))["validation_loss"] for name in (plain, traced)]
    check("a trace does not disturb the run", losses[0] == losses[1], losses)
    lines = [json.loads(line) for line in open(path)]
    check("a first line with version and decays", lines[0]["stquant_trace"] == 1 and lines[0]["beta1"] == 0.9, lines[0])
    steps = [line["step"] for line in lines[1:]]
    check("a line for each decision", steps == [1, 10, 20, 30, 40, 60], steps)
    last = lines[-1]["tensors"]
    for state in ("m_error", "v_error"):
        lists = [tensor[state] for tensor in last]
        check(f"{state} has all widths and falls with them", lists and all(
            len(one) == ERRORS and one[0] > one[2] > one[4] > one[6] > 0 for one in lists), lists)
    names = {"n", "r", "sharpness", "kurtosis", "row_spread", "near_zero", "volatility", "depth", "m_range", "v_range", "zone"}
    check("every factor of every tensor", all(names <= set(tensor) for tensor in last), last[:1])
    return path


def check_factors(path):
    result = run("factors", path, "--k", "2", "--json")
    found = json.loads(result.stdout) if result.returncode == 0 else {}
    check("factors prints the selection", found and len(found["selected"]) == 2 and len(found["best"]) == 2
          and found["value"] >= found["bound"] * found["best_value"] - 1e-9 and 0 <= found["gamma"] <= 1, found or result.stderr)
    result = run("factors", path, "--held-out", path, "--json")
    found = json.loads(result.stdout) if result.returncode == 0 else {}
    check("held-out traces are scored", found and abs(found["held_out_value"] - found["value"]) < 1e-9, found or result.stderr)


def check_refusal(name, folder, text, *words):
    path = os.path.join(folder, "broken.jsonl")
    with open(path, "w") as file:
        file.write(text)
    result = run("factors", path)
    check(name, result.returncode == 1 and result.stderr.count("\n") == 1 and not result.stdout
          and all(word in result.stderr for word in words), result.stderr or result.returncode)


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = check_trace(folder)
        check_factors(path)
        text = open(path).read()
        lines = text.splitlines(keepends=True)
        name = json.loads(lines[3])["tensors"][0]["name"]
        check_refusal("an empty trace", folder, "", "empty")
        check_refusal("a truncated trace", folder, text[:-20], f"line {len(lines)}", "truncated")
        check_refusal("a trace without its last newline", folder, text[:-1], f"line {len(lines)}")
        check_refusal("a trace of another version", folder, text.replace('"stquant_trace": 1', '"stquant_trace": 2').replace(
            '"stquant_trace":1', '"stquant_trace":2'), "version 2")
        check_refusal("another file", folder, '{"step": 1}\n', "no trace")
        broken = json.loads(lines[3])
        broken["tensors"][0]["r"] = None
        check_refusal("a missing number", folder, "".join(lines[:3]) + json.dumps(broken) + "\n", "line 4", "'r'", name)
        broken = json.loads(lines[3])
        broken["tensors"][0]["m_error"][2] = None
        check_refusal("an error that is no number", folder, "".join(lines[:3]) + json.dumps(broken) + "\n", "line 4", "m_error", name)
        check_refusal("numbers beyond all floats", folder, "".join(lines[:3]) + lines[3].replace('"n":', '"n": 1e999, "old":', 1), "line 4")
        for name, widths, word in (("a pattern that matches nothing", "nothing=4,4", "nothing"), ("a width out of range", "wte=9,4", "wte=9,4"),
                                   ("a width of one moment alone", "wte=32,4", "32")):
            result = train(folder, "--bits-for", widths)
            check(name, result.returncode == 2 and word in result.stderr and result.stderr.count("\n") == 1, result.stderr)
        result = train(folder, "--bits-for", "wte=6,8", "--state-bits", "7")
        check("widths for a pattern", result.returncode == 0, result.stderr)
        result = train(folder, "--shared-v", "nothing*")
        check("a pattern of shared moments that matches nothing", result.returncode == 2 and "nothing*" in result.stderr, result.stderr)
        summary = os.path.join(folder, "summary.json")
        losses = []
        for more in (("--policy", "fixed", "--m-bits", "5"), ("--optimizer", "fixed", "--m-bits", "5")):
            result = train(folder, *more, "--summary", summary)
            losses.append(json.load(open(summary))["validation_loss"] if result.returncode == 0 else result.stderr)
        check("--policy fixed is --optimizer fixed", losses[0] == losses[1], losses)
        result = train(folder, "--state-bits", "1")
        check("a cap that cannot hold names the smallest", result.returncode == 2 and "smallest possible" in result.stderr, result.stderr)
    return tap.status()


if __name__ == "__main__":
    sys.exit(main())
