"""Which runs there are, which are due next, and the CSV files they end up in."""

import os
import pathlib
import sys

import training

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "bench"))
from runs import Rows  # noqa: E402

FIELDS = (
    "date,device,preset,task,states,seed,learning_rate,metric,score,image_to_text,text_to_image,train_loss,mean_bits,peak_bits,"
    "image_m_bits,image_v_bits,image_gradient,text_m_bits,text_v_bits,text_gradient,parameters,steps,batch,skipped_steps,step_ms"
).split(",")
WIDTH_FIELDS = "preset,task,states,seed,learning_rate,tensor,elements,first_step,every,m_bits,v_bits,log10_gradient".split(",")
KEY = ("preset", "task", "states", "seed", "learning_rate")
BASE_TASK, BASE_STATES = "retrieval", "float32"
MOST_RATES = 6  # of a sweep that goes on because the best rate was at its end


def job_of(row):
    return training.Job(row["task"], row["states"], int(row["seed"]), float(row["learning_rate"]))


class Table(Rows):
    """A CSV file of one preset's runs; rows of other presets stay in it. Numbers get six digits."""

    def __init__(self, path, preset, fields=FIELDS):
        super().__init__(path, fields, KEY, digits=6)
        self.rows = [row for row in self.rows if row["preset"] == preset]

    def jobs(self):
        return {job_of(row) for row in self.rows}


def scores_of(rows, task, seed):
    """{rate: score} of float32's runs with a seed."""
    return {
        float(row["learning_rate"]): float(row["score"])
        for row in rows
        if row["task"] == task and row["states"] == "float32" and int(row["seed"]) == seed
    }


def sweep_rates(scores, rates):
    """Rates of a sweep: those given, then twice or half the best one as long as it is at an end."""
    rates = list(rates)
    while 1 < len(rates) < MOST_RATES and all(rate in scores for rate in rates):
        best = max(rates, key=scores.get)
        if min(rates) < best < max(rates):
            break
        rates.append(best * 2 if best == max(rates) else best / 2)
    return rates


def base_path(folder, preset, seed, rate):
    """Where the weights of a float32 retrieval run are kept for fine-tuning."""
    return os.path.join(folder, f"base-{preset}-seed-{seed}-rate-{rate:g}.pt")


class Grid:
    """The runs that were asked for: for each task a sweep of float32's rate, then everything at the best one.

    Fine-tuning starts from the float32 retrieval run of the same seed.

    Arguments:
        tasks, states, seeds: lists of names and numbers.
        rates: {task: rates of the sweep}; a single one needs no sweep.
        has_base: function of (seed, rate): are the base's weights there?
    """

    def __init__(self, tasks, states, seeds, rates, has_base):
        self.tasks, self.states, self.seeds = tasks, states, seeds
        self.rates, self.has_base = rates, has_base

    def _sweep(self, task, rows):
        rates = sweep_rates(scores_of(rows, task, self.seeds[0]), self.rates[task])
        return [training.Job(task, "float32", self.seeds[0], rate) for rate in rates] if len(rates) > 1 else []

    def rate(self, task, rows):
        """The rate at which float32 scores best; None as long as its sweep is not complete."""
        scores = scores_of(rows, task, self.seeds[0])
        rates = sweep_rates(scores, self.rates[task])
        if len(rates) == 1:
            return rates[0]
        return max(rates, key=scores.get) if all(rate in scores for rate in rates) else None

    def base(self, seed, rows):
        """The job whose weights a seed's fine-tuning starts from; None as long as its rate is not known."""
        rate = self.rate(BASE_TASK, rows)
        return None if rate is None else training.Job(BASE_TASK, BASE_STATES, seed, rate)

    def wanted(self, rows):
        """All runs that are known to be needed, the most urgent first. Grows with what the sweeps find."""
        needs_base = any(task != BASE_TASK for task in self.tasks)
        jobs = self._sweep(BASE_TASK, rows) if needs_base or BASE_TASK in self.tasks else []
        if needs_base:
            jobs += [job for seed in self.seeds if (job := self.base(seed, rows))]
        for task in self.tasks:
            jobs += self._sweep(task, rows)
        by_states = sorted(self.states, key=lambda states: "mean cap" in states)
        for late in (False, True):  # runs beside the three seeds of everything come last
            for seed in self.seeds:
                for task in self.tasks:
                    rate = self.rate(task, rows)
                    chosen = [states for states in by_states if ("mean cap" in states) == late]
                    if rate is not None and (task == BASE_TASK or not late):
                        jobs += [training.Job(task, states, seed, rate) for states in chosen]
        return list(dict.fromkeys(jobs))

    def missing(self, rows):
        """Runs without a row, and base runs without weights."""
        done, wanted = {job_of(row) for row in rows}, self.wanted(rows)
        bases = {self.base(job.seed, rows) for job in wanted if job.task != BASE_TASK and job not in done}
        return [job for job in wanted if job not in done or (job in bases and not self.has_base(job.seed, job.rate))]

    def complete(self, rows):
        return not self.missing(rows) and all(self.rate(task, rows) is not None for task in self.tasks)

    def ready(self, rows, running):
        """Missing runs that can begin now."""
        jobs = []
        for job in self.missing(rows):
            base = None if job.task == BASE_TASK else self.base(job.seed, rows)
            if job in running or (job.task != BASE_TASK and (base is None or not self.has_base(base.seed, base.rate))):
                continue
            jobs.append(job)
        return jobs
