#!/usr/bin/env python3
"""Tables of the rows that run.py has written, and a picture of the towers' widths over time. Needs no PyTorch.

    python examples/multimodal/table.py --preset large
    python examples/multimodal/table.py --preset large --plot docs/multimodal.svg     # needs gnuplot

Scores are per cent, mean and standard deviation over seeds at the learning rate that is best for float32. Differences
are between runs of the same seed on the same kind of device. "bound" is the lower 95 % bound of the mean difference to
float32 (one-sided, Student's t). Parity asks that it is at least -0.5 points: "no" where the mean itself is lower, "open"
where the seeds do not decide.
"""

import argparse
import collections
import csv
import os
import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import towers  # noqa: E402
from spread import upper_bound, with_deviation  # noqa: E402

TASKS = ("retrieval", "collages", "sentences")
PARITY = 0.5


def read(path, preset):
    if not os.path.exists(path):
        return []
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if row["preset"] == preset]


def at_best_rate(rows):
    """Rows at the rate at which float32's first seed scores best (the only seed that has all rates), and that rate."""
    baseline = [row for row in rows if row["states"] == "float32"]
    if not baseline:
        return [], None
    first = min(int(row["seed"]) for row in baseline)
    sweep = [row for row in baseline if int(row["seed"]) == first]
    best = max(sweep, key=lambda row: float(row["score"]))["learning_rate"]
    return [row for row in rows if row["learning_rate"] == best], best


def pair(row):
    """What two runs share that are compared: the seed, and whether its data were drawn on a GPU or on a CPU."""
    return row["seed"], row["device"].startswith("NVIDIA")


def paired(rows, others):
    """Differences of the score between rows and the others that share their pair()."""
    scores = {pair(row): float(row["score"]) for row in others}
    places = [(pair(row), float(row["score"])) for row in rows]
    return [score - scores[place] for place, score in places if place in scores]


def lower_bound(differences):
    """One-sided 95 % bound of the mean; None with fewer than two differences."""
    return -upper_bound([-value for value in differences]) if len(differences) > 1 else None


def parity(differences):
    bound = lower_bound(differences)
    if bound is None:
        return ""
    return "yes" if bound >= -PARITY else "no" if statistics.mean(differences) < -PARITY else "open"


def by_states(rows):
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row["states"]].append(row)
    return groups


def task_table(rows, task):
    """Markdown lines of one task."""
    of_task = [row for row in rows if row["task"] == task]
    chosen, rate = at_best_rate(of_task)
    if not chosen:
        return []
    sweep = sorted({(float(row["learning_rate"]), float(row["score"])) for row in of_task
                    if row["states"] == "float32" and row["seed"] == chosen[0]["seed"]})
    one, groups = chosen[0], by_states(chosen)
    devices = ", ".join(sorted({row["device"] for row in chosen}))
    yield (f"\n**{task}**, {one['metric']}; {int(one['parameters']) / 1e6:.1f} million parameters, {one['steps']} steps of "
           f"{one['batch']}, {devices}.")
    yield "Learning rates of float32: " + ", ".join(f"{r:g}: {score:.2f}" for r, score in sweep) + f"; used: {float(rate):g}.\n"
    metric = f"{one['metric']}, %"
    yield f"| states | seeds | peak bits | mean bits | {metric} | against float32 | bound | parity | against fixed 4,4 |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for states, of_states in groups.items():
        other = [] if states == "float32" else paired(of_states, groups["float32"])
        fixed = paired(of_states, groups.get("fixed 4,4", [])) if states not in ("float32", "fixed 4,4") else []
        bound = lower_bound(other)
        peak, mean = (statistics.mean(float(row[key]) for row in of_states) for key in ("peak_bits", "mean_bits"))
        scores = with_deviation([float(row["score"]) for row in of_states], 2)
        yield (f"| {states} | {len(of_states)} | {peak:.2f} | {mean:.2f} | {scores} | {with_deviation(other, 2, '+')} | "
               f"{'' if bound is None else f'{bound:+.2f}'} | {parity(other)} | {with_deviation(fixed, 2, '+')} |")


def runs_of(rows, widths):
    """({states: rows of its runs}, {states: towers.Run of each seed}) of the retrieval task at its best rate."""
    chosen, rate = at_best_rate([row for row in rows if row["task"] == "retrieval"])
    groups = collections.defaultdict(list)
    for row in widths:
        if row["learning_rate"] == rate:
            groups[row["states"], row["seed"]].append(row)
    runs = collections.defaultdict(list)
    for (states, _), of_run in groups.items():
        runs[states].append(towers.Run(of_run, int(chosen[0]["steps"])))
    return by_states(chosen), runs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", help="rows of which preset (small)")
    parser.add_argument("--csv", default=str(ROOT / "bench/results/multimodal.csv"), help="rows of runs")
    parser.add_argument("--widths", help="rows of widths over time (default: beside --csv, NAME-widths.csv)")
    parser.add_argument("--plot", help="also draw this SVG file")
    options = parser.parse_args()
    rows = read(options.csv, options.preset)
    if not rows:
        print(f"{options.csv} has no runs of the preset {options.preset}; run.py makes them", file=sys.stderr)
        return 1
    widths = read(options.widths or options.csv.removesuffix(".csv") + "-widths.csv", options.preset)
    retrieval, runs = runs_of(rows, widths)
    for task in TASKS:
        print(*task_table(rows, task), sep="\n")
    print(*towers.table(retrieval, runs), sep="\n")
    if options.plot:
        towers.plot(options.plot, runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
