"""bench/quality on a CPU with models and data of a toy's size: rows, pairs of seeds, the sweep, going on, failures, tables."""
import csv
import gzip
import json
import lzma
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy

SOURCE = pathlib.Path(os.environ["STQUANT_SOURCE"])
HEADER = ("date,device,model,data,optimizer,policy,cap_bits,seed,learning_rate,beta2,tokens,validation_loss,test_loss,all_in_bits,"
          "peak_all_in_bits,peak_memory_bytes,step_ms,tokens_per_s,top1,")
ROWS = 17  # the plan's 14 and the three that the sweeps go on for
failures = 0


def check(passed, what):
    global failures
    failures += not passed
    print(f"{'ok' if passed else 'not ok'} - {what}", flush=True)


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header + array.tobytes())


def make_data(folder):
    """Token files with a simple rule and images whose brightness is their class."""
    generator = numpy.random.default_rng(0)
    for name, count in (("enwiki", 60_000), ("wikitext-test", 2_000)):
        tokens = numpy.cumsum(generator.integers(0, 3, count)) % 200
        (folder / f"{name}.u16.xz").write_bytes(lzma.compress(tokens.astype("<u2").tobytes(), preset=1))
    for name, count in (("train", 1_200), ("t10k", 200)):
        labels = generator.integers(0, 10, count).astype(numpy.uint8)
        images = (generator.integers(0, 100, (count, 28, 28)) + 10 * labels[:, None, None]).astype(numpy.uint8)
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels)


def run(folder, plan, *more):
    command = [sys.executable, SOURCE / "bench/quality/run", "--plan", plan, "--data", folder, "--csv", folder / "out/quality.csv", "--headline-csv",
               folder / "out/headline.csv", "--device", "cpu", "--no-compile", "--threads", "1", *more]
    environment = {"STQUANT_LIBRARY": os.path.join(os.environ["STQUANT_BUILD"], "libstquant.so"), **os.environ}
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=280)
    if result.returncode not in (0, 2):
        print(result.stdout, result.stderr)
    return result


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def find(rows, name, seed, model="gpt2-toy"):
    """The row of a run at the rate that the sweep chose."""
    own = [row for row in rows if row["name"] == name and row["model"] == model and row["seed"] == str(seed)]
    return min(own, key=lambda row: float(row["validation_loss"]))


def test_rows(folder):
    out = folder / "out"
    result = run(folder, "toy")
    rows = rows_of(out / "quality.csv")
    check(result.returncode == 0 and len(rows) == ROWS, f"a row for each run: {len(rows)}")
    check((out / "quality.csv").read_text().startswith(HEADER), "the header is the documented one")
    best = {model: find(rows, "float32", 1, model)["learning_rate"] for model in ("gpt2-toy", "vit-toy")}
    check(all(row["learning_rate"] == best[row["model"]] for row in rows if row["seed"] == "2" or row["optimizer"] == "stquant"),
          "other runs take the best rate of the sweep")
    with open(out / "quality-curves.jsonl") as file:
        curves = [json.loads(line) for line in file]
    first = {(curve["model"], curve["name"], curve["seed"], curve["learning_rate"]): curve["loss"][0] for curve in curves}
    pairs = [(loss, first[(key[0], "float32", *key[2:])]) for key, loss in first.items() if "stquant" in key[1] and "continued" not in key[1]]
    check(len(pairs) == 6 and all(ours == theirs for ours, theirs in pairs), "equal seeds begin with equal weights and data")
    check(len({loss for key, loss in first.items() if key[1] == "float32" and key[0] == "gpt2-toy"}) == 2, "other seeds with others")
    float32, fixed = find(rows, "float32", 1), find(rows, "stquant fixed 4,4", 1)
    check(float(float32["all_in_bits"]) > 31.9 and 4.25 < float(fixed["peak_all_in_bits"]) < 6, "bits with everything included")
    check(find(rows, "float32 continued", 1)["validation_loss"] == float32["validation_loss"], "a checkpoint goes on as the run did")
    check(find(rows, "stquant fixed 5,5 continued", 1)["validation_loss"] != float32["validation_loss"], "and otherwise under stquant")
    check(all(float(row["top1"]) > 10 for row in rows if row["model"] == "vit-toy"), "images have a top-1 above chance")


def test_resume(folder):
    path = folder / "out/quality.csv"
    lines = path.read_text().splitlines(keepends=True)
    result = run(folder, "toy")
    check(path.read_text() == "".join(lines) and "0 runs not made" in result.stdout, "a finished plan makes no run")
    dropped = next(place for place, line in enumerate(lines) if "fixed 4,4" in line and "gpt2-toy" in line)
    path.write_text("".join(lines[:dropped] + lines[dropped + 1 :]))
    run(folder, "toy")
    rows = rows_of(path)
    before = next(csv.DictReader([lines[0], lines[dropped]]))
    check(len(rows) == ROWS and rows[-1]["validation_loss"] == before["validation_loss"], "a missing run is made again, with the same result")
    run(folder, "toy", "--suffix", ", other", "--deadline", "0")
    check(len(rows_of(path)) == ROWS, "no run begins that cannot end before the deadline")


def test_failure(folder):
    plan = folder / "plan.json"
    headline = {"name": "stquant", "model": "gpt2-toy", "optimizer": "stquant", "seed": 1, "rate": 1e-4, "settings": {"state_bits": 8.0},
                "headline": True, "steps": 4}
    impossible = {"name": "impossible", "model": "gpt2-toy", "optimizer": "stquant", "seed": 1, "rate": 0.01, "settings": {"state_bits": 0.5}}
    plan.write_text(json.dumps([impossible, headline]))
    result = run(folder, str(plan))
    failed, large = rows_of(folder / "out/quality-failures.csv"), rows_of(folder / "out/headline.csv")
    check(len(failed) == 1 and "CapTooSmall" in failed[0]["reason"], "a run that fails is listed with its reason")
    check(result.returncode == 1, "and the exit status tells")
    check(len(large) == 1 and 6 < float(large[0]["all_in_bits"]) <= 32, "and the next, a short one for memory and time, is made")
    result = run(folder, "no-such-plan")
    check(result.returncode == 2 and "no-such-plan" in result.stderr, "an unknown plan is named")


def test_table(folder):
    command = [sys.executable, SOURCE / "bench/quality/table", "--csv", folder / "out/quality.csv", "--headline-csv", folder / "out/headline.csv"]
    if shutil.which("gnuplot"):
        command += ["--plot", folder / "out/plot.svg", "--model", "gpt2-toy"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    line = next((line for line in result.stdout.splitlines() if line.startswith("| stquant fixed 4,4 | 2 |")), "")
    check(result.returncode == 0 and line.count(" ± ") == 3, f"the table has means and deviations {result.stderr}")
    if "--plot" in command:
        check("<svg" in (folder / "out/plot.svg").read_text(), "the frontier is drawn")
    sys.path.insert(0, str(SOURCE / "bench/quality"))
    from importlib import machinery, util
    loader = machinery.SourceFileLoader("quality_table", str(SOURCE / "bench/quality/table"))
    table = util.module_from_spec(util.spec_from_loader("quality_table", loader))
    loader.exec_module(table)
    # Mean 0.2, deviation 0.1, three values: 0.2 + 2.920 * 0.1 / sqrt(3).
    check(abs(table.upper_bound([0.1, 0.2, 0.3]) - 0.368586) < 1e-4, "the upper 95 % bound is Student's")


def test_plans():
    """Every row that docs/quality.md has is of a named plan, but for those of the policy before and a run that was made twice."""
    sys.path.insert(0, str(SOURCE / "bench/quality"))
    import plans
    known = {(one["name"], one["model"], one["seed"], one["beta2"], json.dumps(one["settings"], sort_keys=True))
             for plan in plans.PLANS.values() for one in plan()}
    rows = [(row["name"], row["model"], int(row["seed"]), float(row["beta2"]),
             json.dumps(json.loads(row["settings"]), sort_keys=True))
            for row in rows_of(SOURCE / "bench/results/quality.csv") if "ranks by error" not in row["name"] and row["name"] != "float32 again"]
    missing = sorted({row for row in rows if row not in known})
    check(len(rows) > 40 and not missing, f"named plans make every row of the table {missing or ''}")


def main():
    test_plans()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_data(folder)
        for test in (test_rows, test_resume, test_failure, test_table):
            test(folder)
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
