"""bench/qat_gpu on a CPU with a toy's model and text: the sweep, its extension, other seeds, low-bit states, going on, tables."""
import csv
import lzma
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy

SOURCE = pathlib.Path(os.environ["STQUANT_SOURCE"])
failures = 0


def check(passed, what):
    global failures
    failures += not passed
    print(f"{'ok' if passed else 'not ok'} - {what}", flush=True)


def call(folder, *more):
    words = [sys.executable, SOURCE / "bench/qat_gpu", "--csv", folder / "rows.csv", "--model", "gpt2-toy", "--base-steps", "6", "--steps",
             "3", "--seeds", "2", *more]
    return subprocess.run(list(map(str, words)), env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        generator = numpy.random.default_rng(0)
        for text, count in (("enwiki", 20_000), ("wikitext-test", 2_000)):
            tokens = numpy.cumsum(generator.integers(0, 3, count)) % 200
            (folder / f"{text}.u16.xz").write_bytes(lzma.compress(tokens.astype("<u2").tobytes(), preset=1))
        make = ("--data", folder, "--work", folder / "work", "--device", "cpu", "--no-compile", "--jobs", "1")
        first = call(folder, *make)
        check(first.returncode == 0, "the grid runs")
        if first.returncode:
            print(first.stdout[-3000:], first.stderr[-3000:], sep="\n")
            return
        with open(folder / "rows.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        cells = {(row["bits"], row["estimator"]) for row in rows}
        check(len(cells) == 10, "three widths of three estimators, and float32")
        seeds = {cell: {row["seed"] for row in rows if (row["bits"], row["estimator"]) == cell} for cell in cells}
        check(all(found == {"1", "2"} for found in seeds.values()), "every seed has run at the best rate")
        check({row["bits"] for row in rows if row["states"] == "5"} == {"2", "3", "4"}, "and with states of 5 bits")
        check(len({tuple(row[key] for key in ("bits", "estimator", "states", "seed", "learning_rate")) for row in rows}) == len(rows),
              "no run was made twice")
        again = call(folder, *make)
        check(again.returncode == 0 and "loss" not in again.stdout.split("| bits")[0], "a second call finds nothing to run")
        tables = call(folder, "--tables")
        check(tables.stdout.count("| stable | 5 |") == 3 and "The sweeps" in tables.stdout, "the tables have every line")
        check(call(folder).returncode == 2, "no folder of data is a usage error")


main()
sys.exit(failures > 0)
