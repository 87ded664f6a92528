"""One training run: a model from a seed's initial weights through a seed's order of the data under one optimizer.

A run is a dict (plans.py makes them): `name`, `model` (a key of models.SHAPES), `optimizer`, `settings` (of stquant.AdamW), `seed`, `rate`, `beta2`,
and optionally `part`: "continue" starts at SWITCH of the steps from the float32 run of the same seed and rate, whose states go on in
float32 or are encoded by stquant there.
"""
import datetime
import fcntl
import json
import math
import os
import platform
import statistics
import sys
import time
import traceback

import torch

import data
import models
import optimizers

SWITCH = 0.6
LEAST_RATE = 0.1  # the cosine ends at this share of the rate
CURVE_POINTS = 60
CHECK_EVERY = 100
TIMED_FROM = 0.08  # steps before this share are left out of the step time: compilation, first decisions


class Diverged(Exception):
    """The training loss is no number any more, or far above where it began."""


def rate_at(step, steps, warmup, peak):
    """Linear warm-up, then a cosine down to LEAST_RATE; steps count from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (LEAST_RATE + (1 - LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress)))


class Clock:
    """Wall time of the steps and, of some, of the optimizer's part, with the device's work done."""

    def __init__(self, device):
        self.on_gpu = device.type == "cuda"
        self.seconds, self.steps, self.begun, self.pairs = 0.0, 0, None, []

    def now(self):
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self):
        self.begun = self.now()

    def stop(self):
        if self.begun is not None:
            self.seconds += self.now() - self.begun
            self.begun = None

    def count(self):
        self.steps += self.begun is not None

    def optimizer(self, step):
        """Calls `step` and remembers how long it took on the device (on a CPU: here)."""
        if not self.on_gpu:
            begun = time.perf_counter()
            step()
            self.pairs.append(1e3 * (time.perf_counter() - begun))
            return
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        step()
        pair[1].record()
        self.pairs.append(pair)

    def milliseconds(self):
        """(mean of a step, median of an optimizer step)."""
        self.stop()
        self.now()
        taken = [pair[0].elapsed_time(pair[1]) if self.on_gpu else pair for pair in self.pairs]
        return 1e3 * self.seconds / max(1, self.steps), statistics.median(taken) if taken else math.nan


class Session:
    """What a process keeps between runs: the data, one model with its compiled functions, a folder for checkpoints."""

    def __init__(self, device, tokens, images, work, compile_models, amp):
        self.device, self.folders, self.work = torch.device(device), {"gpt2": tokens, "vit": images}, work
        self.compile_models = compile_models
        self.amp = amp
        self.sources, self.key, self.model = {}, None, None

    def source(self, kind):
        if kind not in self.sources:
            self.sources[kind] = (data.Text if kind == "gpt2" else data.Images)(self.folders[kind], self.device)
        return self.sources[kind]

    def get_model(self, key):
        """The model of this key; another one is given up, so that a run's peak memory is its own."""
        if self.key != key:
            self.drop_model()
            self.model, self.key = models.make(models.SHAPES[key], self.device), key
            if self.compile_models:
                self.model.use_compiled()
        return self.model

    def drop_model(self):
        self.key = self.model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)

    def device_name(self):
        return torch.cuda.get_device_name() if self.device.type == "cuda" else f"CPU {platform.machine()}"


class Task:
    """The batches of a run and the loss on them; what differs between text and images."""

    def __init__(self, session, run):
        self.session, self.shape = session, models.SHAPES[run["model"]]
        self.source = session.source(self.shape.kind)
        self.model = session.get_model(run["model"])
        self.order = self.make_order(run["seed"]).to(session.device)
        self.steps = len(self.order)

    def loss(self, batch):
        with self.session.autocast():
            return self.model(*batch)

    def report(self):
        """validation_loss, test_loss and, for images, top1. Gradients stay enabled: the compiled functions are the training's."""
        return {"validation_loss": self.held_out(self.source.validation)[0], "test_loss": self.held_out(self.source.test)[0]}


def text_loss(loss, text, shape):
    """Mean of `loss` over the whole batches of a text, at most `shape.evaluation_batches` of them, and at least one, whole or not.

    Gradients stay enabled: the compiled functions are the training's.
    """
    starts = torch.arange(0, text.numel() - shape.context, shape.context, device=text.device)
    count = max(1, len(starts) // shape.batch)
    if shape.evaluation_batches:
        count = min(count, shape.evaluation_batches)
    total = torch.zeros((), device=text.device, dtype=torch.float64)
    for place in range(count):
        chosen = starts[place * shape.batch : (place + 1) * shape.batch]
        total += loss(data.windows(text, chosen, shape.context)).detach()
    return total.item() / count


class TextTask(Task):
    def make_order(self, seed):
        shape = self.shape
        steps = shape.tokens // (shape.batch * shape.context)
        return data.text_order(seed, self.source.training.numel(), shape.context, shape.batch, steps)

    def batch(self, step):
        return data.windows(self.source.training, self.order[step], self.shape.context)

    def training_loss(self, step):
        return self.loss(self.batch(step))

    def tokens_per_step(self):
        return self.shape.batch * self.shape.context

    def held_out(self, text):
        """(mean loss, None)."""
        return text_loss(self.loss, text, self.shape), None


class ImageTask(Task):
    def make_order(self, seed):
        return data.image_order(seed, len(self.source.training[0]), self.shape.batch, self.shape.epochs)

    def batch(self, step):
        images, labels = self.source.training
        return data.crop(images, self.order[step]), labels[self.order[step][:, 0]]

    def training_loss(self, step):
        return self.loss(self.batch(step))[0]

    def tokens_per_step(self):
        return self.shape.batch

    def held_out(self, part):
        """(mean loss, share classified rightly) of images that are not cropped; all but what does not fill the last batch."""
        images, labels = part
        batch = next(size for size in range(self.shape.batch, 0, -1) if len(labels) % size == 0)
        total, right = torch.zeros((), device=images.device, dtype=torch.float64), 0
        for first in range(0, len(labels), batch):
            whole = data.crop(images, data.middle(first, batch, images.device)), labels[first : first + batch]
            loss, correct = self.loss(whole)
            total += loss.detach()
            right += correct
        return total.item() * batch / len(labels), int(right) / len(labels)

    def report(self):
        test_loss, right = self.held_out(self.source.test)
        return {"validation_loss": self.held_out(self.source.validation)[0], "test_loss": test_loss, "top1": 100 * right}


def make_task(session, run):
    return (TextTask if models.SHAPES[run["model"]].kind == "gpt2" else ImageTask)(session, run)


def try_compiled(task):
    """One forward and backward pass; where compiling fails, the model runs uncompiled from then on."""
    if not task.model.compiled:
        return
    try:
        task.training_loss(0).backward()
    except Exception as problem:
        if isinstance(problem, torch.OutOfMemoryError):
            raise
        traceback.print_exc()
        print("compiling failed; this model runs uncompiled", file=sys.stderr, flush=True)
        task.model.use_eager()
    for parameter in task.model.parameters():
        parameter.grad = None


def checkpoint_path(session, run):
    return os.path.join(session.work, f"{run['model']}-{run['seed']}-{run['rate']:g}-{run['beta2']:g}.pt")


def save_checkpoint(path, model, optimizer):
    unfinished = f"{path}.{os.getpid()}"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, unfinished)
    os.replace(unfinished, path)


def ensure_checkpoint(session, run):
    """The float32 run's checkpoint at SWITCH; made here where no run has left it, by one process at a time."""
    path = checkpoint_path(session, run)
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(path):
            first = {**run, "optimizer": "adamw", "settings": {}, "part": "whole", "checkpoint": True}
            train(session, first, stop_at_switch=True)
    return path


def begin(session, run, task):
    """The optimizer and the first step: initial weights of the seed, or a float32 checkpoint."""
    if run.get("part") != "continue":
        task.model.initialize(run["seed"])
        return optimizers.make(run["optimizer"], task.model, run["settings"], run["beta2"], run["seed"], task.steps), 0
    content = torch.load(ensure_checkpoint(session, run), map_location=session.device)
    task.model.load_state_dict(content["model"])
    optimizer = optimizers.make(run["optimizer"], task.model, run["settings"], run["beta2"], run["seed"], task.steps)
    optimizer.load_float32(content["optimizer"])
    return optimizer, switch_step(task.steps)


def switch_step(steps):
    return max(1, int(SWITCH * steps))


def steps_of(run, task, optimizer, clock, losses, first, last, bits):
    """The steps first .. last - 1. Losses go to a device tensor, which is read now and then only."""
    ceiling = None
    for step in range(first, last):
        if step - first == int(TIMED_FROM * (last - first)):
            clock.start()
        optimizer.set_rate(rate_at(step, task.steps, task.shape.warmup, run["rate"]))
        loss = task.training_loss(step)
        loss.backward()
        if step % 20 == 10:
            clock.optimizer(optimizer.step)
        else:
            optimizer.step()
        optimizer.zero_gradients()
        losses[step] = loss.detach()
        clock.count()
        if step % CHECK_EVERY == CHECK_EVERY - 1 or step == last - 1:
            recent = losses[max(first, step - 9) : step + 1].mean().item()
            ceiling = ceiling or losses[first].item() + 2
            if not math.isfinite(recent) or recent > ceiling:
                raise Diverged
            bits.append([step + 1, round(optimizer.report()["all_in_bits"], 4)])


def train(session, run, stop_at_switch=False):
    """Makes the run; returns (row of results.FIELDS, loss curve). A run that diverges has a row too, without losses."""
    task = make_task(session, run)
    task.model.initialize(run["seed"])
    try_compiled(task)
    optimizer, first = begin(session, run, task)
    if session.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock, bits = Clock(session.device), []
    losses = torch.zeros(task.steps, device=session.device)
    switch, diverged = switch_step(task.steps), 0
    try:
        if run.get("checkpoint") and first == 0:
            steps_of(run, task, optimizer, clock, losses, first, switch, bits)
            clock.stop()
            save_checkpoint(checkpoint_path(session, run), task.model, optimizer.optimizers[0])
            if stop_at_switch:
                return None
            first = switch
        steps_of(run, task, optimizer, clock, losses, first, task.steps, bits)
    except Diverged:
        diverged = 1
    step_ms, optimizer_ms = clock.milliseconds()
    row = describe(session, run, task)
    row.update(optimizer.report(), diverged=diverged, step_ms=step_ms, optimizer_ms=optimizer_ms)
    row["tokens_per_s"] = 1e3 * task.tokens_per_step() / step_ms if step_ms else math.nan
    if session.device.type == "cuda":
        row["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    row.update(task.report() if not diverged else {"validation_loss": math.nan, "test_loss": math.nan})
    row["train_loss"] = losses[-max(1, task.steps // 20) :].mean().item() if not diverged else math.nan
    return row, curve_of(row, losses, bits, optimizer)


def describe(session, run, task):
    """The columns that say which run it is."""
    settings = run["settings"]
    policy = settings.get("policy", "") if run["optimizer"] == "stquant" else ""
    if policy == "fixed":
        policy = "fixed " + ",".join(map(str, settings["fixed_bits"]))
    return {"date": datetime.date.today().isoformat(), "device": session.device_name(), "model": run["model"],
            "data": task.source.name + (", continued" if run.get("part") == "continue" else ""),
            "optimizer": run["optimizer"], "policy": policy, "cap_bits": settings.get("state_bits", ""), "seed": run["seed"],
            "learning_rate": run["rate"], "beta2": run["beta2"], "tokens": task.steps * task.tokens_per_step(),
            "name": run["name"], "steps": task.steps, "parameters": sum(p.numel() for p in task.model.parameters()),
            "compiled": int(task.model.compiled), "settings": json.dumps(settings, sort_keys=True)}


def curve_of(row, losses, bits, optimizer):
    """A compact record of the run: means of the training loss over CURVE_POINTS stretches, state bits on the way, final widths."""
    stretch = max(1, len(losses) // CURVE_POINTS)
    whole = losses[: len(losses) // stretch * stretch].view(-1, stretch).mean(1)
    kept = {key: row[key] for key in ("name", "model", "data", "seed", "learning_rate", "beta2")}
    return {**kept, "stretch": stretch, "loss": [round(value, 4) if math.isfinite(value) else None for value in whole.tolist()],
            "bits": bits, "widths": optimizer.widths()}
