#!/usr/bin/env python3
"""Trains on images and texts with float32, fixed and adaptive optimizer states, and compares what the models can do.

    python examples/multimodal/run.py                                 # about ten minutes on two cores
    python examples/multimodal/run.py --grid --preset large --devices cuda:0,cuda:1 --jobs 3

Without --grid: image-text retrieval, float32 against rate-distortion at 5.0 bits, one seed, one learning rate. With --grid:
three tasks, all ways to keep the states, three seeds, after a sweep of float32's learning rate for each task. Each run
becomes a row of the CSV file at once; runs that have a row are not made again, so that an interrupted grid goes on where it
stopped. table.py makes tables and a picture of it.
"""

import argparse
import collections
import datetime
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import platform
import subprocess
import sys
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
MOST_FAILURES = 5  # a run that fails is left out; so many are not about single runs


def device_name(device):
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def serve(connection, device_text, threads, options):
    """A process that makes one run after the other: receives a job and the path of a base or None, sends what came out."""
    import tasks
    import torch
    import training

    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")
    device = torch.device(device_text)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    preset, known = training.PRESETS[options.preset], {}
    while True:
        job, base = connection.recv()
        try:
            if job.task not in known:
                gallery, galleries, samples = preset.held_out
                sizes = (gallery, galleries) if job.task == "retrieval" else (samples,)
                known[job.task] = tasks.TASKS[job.task](options.data, device, *sizes)
            weights = torch.load(base, weights_only=True) if base else None
            row, widths, weights = training.train(job, known[job.task], preset, device, weights)
            row["device"] = device_name(device)
            if (job.task, job.states) == ("retrieval", "float32"):
                path = base_path(options, job)
                torch.save(weights, f"{path}.new")
                os.replace(f"{path}.new", path)
            connection.send((row, list(widths.rows()), None))
        except Exception:
            connection.send((None, [], traceback.format_exc()))


def base_path(options, job):
    import grid

    return grid.base_path(options.work, options.preset, job.seed, job.rate)


class Worker:
    """A process that runs jobs on a device, one at a time."""

    def __init__(self, device, threads, options):
        self.arguments = device, threads, options
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, device, threads, options), daemon=True)
        self.process.start()
        other.close()
        self.job, self.began = None, 0.0

    def begin(self, job, base):
        self.job, self.began = job, time.monotonic()
        self.connection.send((job, base))


class Driver:
    """Hands runs to the processes and writes down what comes back."""

    def __init__(self, options, plan, table, widths):
        self.options, self.plan, self.table, self.widths = options, plan, table, widths
        self.durations = collections.defaultdict(float)  # longest run of a task so far, seconds
        self.failed = set()
        self.end = time.monotonic() + options.deadline

    def _next(self, running):
        """A run that can begin and is likely to end before the deadline."""
        for job in self.plan.ready(self.table.rows, running):
            if job not in self.failed and time.monotonic() + self.durations[job.task] < self.end:
                return job
        return None

    def _base(self, job):
        if job.task == "retrieval":
            return None
        return base_path(self.options, self.plan.base(job.seed, self.table.rows))

    def _finish(self, worker):
        job, worker.job = worker.job, None
        try:
            row, widths, error = worker.connection.recv()
        except EOFError:
            row, widths, error = None, [], "its process ended\n"
        if row is None:
            self.failed.add(job)
            worker.process.kill()  # after an error of the device nothing else would run there either
            worker.process.join()
            print(f"{job.task}, {job.states}, seed {job.seed}, rate {job.rate:g} failed: {error}", file=sys.stderr, flush=True)
            return
        self.durations[job.task] = max(self.durations[job.task], time.monotonic() - worker.began)
        if job in self.table.jobs():
            return  # only the weights were missing
        names = {"preset": self.options.preset, "task": job.task, "states": job.states, "seed": job.seed,
                 "learning_rate": job.rate}
        self.table.add({"date": datetime.date.today().isoformat(), **names, **row})
        if job.task == "retrieval" and widths and self.plan.rate(job.task, self.table.rows) == job.rate:
            for one in widths:
                self.widths.add({**names, **one})
        print(f"{job.task}, {job.states}, seed {job.seed}, rate {job.rate:g}: {row['metric']} {row['score']:.2f} at "
              f"{row['peak_bits']:.2f} bits, {row['step_ms']:.1f} ms a step, {time.monotonic() - worker.began:.0f} s", flush=True)

    def run(self, workers):
        """Until nothing is left that can be begun, or the deadline. Ends the processes."""
        while time.monotonic() < self.end:
            for worker in workers:
                running = {one.job for one in workers if one.job}
                if worker.job is None and (job := self._next(running)):
                    worker.begin(job, self._base(job))
            busy = {worker.connection: worker for worker in workers if worker.job}
            if not busy:
                break
            for connection in multiprocessing.connection.wait(busy, min(max(self.end - time.monotonic(), 0), 3600)):
                self._finish(busy[connection])
            if len(self.failed) > MOST_FAILURES:
                print("Too many runs failed.", file=sys.stderr)
                break
            workers = [one if one.process.is_alive() or one.job else Worker(*one.arguments) for one in workers]
        for worker in workers:
            worker.process.kill()


def read_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with Fashion-MNIST's idx files (default: scripts/fetch-images finds it)")
    parser.add_argument("--preset", choices=("tiny", "small", "large"), default="small", help="sizes and lengths (small)")
    parser.add_argument("--grid", action="store_true", help="all tasks, states and seeds, with sweeps of the learning rate")
    parser.add_argument("--tasks", help="retrieval, collages, sentences: instead of those above, with commas")
    parser.add_argument("--states", help='for example "float32;zones 3.5": instead of those above, with semicolons')
    parser.add_argument("--seeds", type=int, help="number of seeds (3 with --grid, 1 without)")
    parser.add_argument("--devices", default="", help="with commas, for example cuda:0,cuda:1 (default: cuda:0 if there, or cpu)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time on each device (1)")
    parser.add_argument("--threads", type=int, default=0, help="threads of a run on a CPU (all cores)")
    parser.add_argument("--deadline", type=float, default=1e9, help="end after so many seconds, whatever is missing")
    parser.add_argument("--csv", default=str(ROOT / "bench/results/multimodal.csv"), help="rows of runs")
    parser.add_argument("--widths", help="rows of widths over time (default: beside --csv, NAME-widths.csv)")
    parser.add_argument("--work", default=str(ROOT / "build/multimodal"), help="folder for weights to fine-tune")
    return parser, parser.parse_args()


def chosen(parser, text, separator, all_of_them, default, what):
    """A list out of an option, checked."""
    if text is None:
        return default
    names = [name.strip() for name in text.split(separator) if name.strip()]
    for name in names:
        if name not in all_of_them:
            parser.error(f"there are no {what} called '{name}'; there are {', '.join(map(str, all_of_them))}")
    return names or default


def plan_of(parser, options):
    import grid
    import tasks
    import training

    whole = options.grid
    preset, names = training.PRESETS[options.preset], list(tasks.TASKS)
    chosen_tasks = chosen(parser, options.tasks, ",", names, names if whole else ["retrieval"], "tasks")
    states = list(training.STATES)
    chosen_states = chosen(parser, options.states, ";", states, states if whole else ["float32", "rate-distortion 5.0"], "states")
    seeds = list(range(1, 1 + (options.seeds or (3 if whole else 1))))
    rates = {name: preset.rates[name != "retrieval"] for name in names}
    if not whole:
        rates = {name: of_task[1:2] for name, of_task in rates.items()}
    return grid.Grid(chosen_tasks, chosen_states, seeds, rates,
                     lambda seed, rate: os.path.exists(grid.base_path(options.work, options.preset, seed, rate)))


def main():
    parser, options = read_options()
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    import grid
    import torch

    plan = plan_of(parser, options)
    if options.data is None:
        options.data = subprocess.run([ROOT / "scripts/fetch-images"], check=True, capture_output=True, text=True).stdout.strip()
    if not any(os.path.exists(os.path.join(options.data, f"train-images-idx3-ubyte.{kind}")) for kind in ("gz", "xz")):
        parser.error(f"{options.data} does not hold train-images-idx3-ubyte.gz; scripts/fetch-images prints a folder that does")
    os.makedirs(options.work, exist_ok=True)
    table = grid.Table(options.csv, options.preset)
    widths = grid.Table(options.widths or options.csv.removesuffix(".csv") + "-widths.csv", options.preset, grid.WIDTH_FIELDS)
    devices = options.devices.split(",") if options.devices else ["cuda:0" if torch.cuda.is_available() else "cpu"]
    cores = options.threads or max((os.cpu_count() or 1) // options.jobs, 1)
    workers = [Worker(device, cores if device == "cpu" else 1, options) for _ in range(options.jobs) for device in devices]
    Driver(options, plan, table, widths).run(workers)
    left = plan.missing(table.rows)
    if left or not plan.complete(table.rows):
        print(f"{len(left)} runs are missing; the same command goes on", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
