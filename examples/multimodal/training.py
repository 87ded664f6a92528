"""One run: a model, an optimizer, a schedule, the loop, and what the states' widths did meanwhile."""

import math
import time
from dataclasses import dataclass

import models
import stquant
import torch

DATA_SEED = 1 << 21


@dataclass
class Preset:
    """Sizes of the models and lengths of the runs. Steps, batch and learning rates are (retrieval, fine-tuning)."""

    size: models.Size
    steps: tuple
    batch: tuple
    rates: tuple  # for the sweep; without one the second of them
    held_out: tuple  # pairs of a gallery, galleries, samples of the other tasks
    decisions: int = 20  # of the policy, in a run, beside the early ones


PRESETS = {
    # For tests: a run takes seconds.
    "tiny": Preset(models.Size(1, 128, 1, 128, 64), (20, 20), (32, 32), ((1e-3, 3e-3), (5e-4, 1e-3)), (100, 1, 300), 10),
    # A retrieval run takes some five minutes on two cores.
    "small": Preset(
        models.Size(3, 128, 2, 128, 64), (1400, 500), (128, 128),
        ((5e-4, 1e-3, 2e-3, 4e-3), (2.5e-4, 5e-4, 1e-3, 2e-3)), (1000, 4, 4000),
    ),
    # For a GPU: 14 million parameters.
    "large": Preset(
        models.Size(6, 384, 4, 256, 256), (1600, 1200), (512, 256),
        ((2.5e-4, 5e-4, 1e-3, 2e-3), (1e-4, 2e-4, 4e-4, 8e-4)), (1000, 8, 10000),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What identifies a run."""

    task: str
    states: str
    seed: int
    rate: float


# Names of how states are kept, and the optimizer's arguments. Float32 states are updated as by PyTorch's fused AdamW.
STATES = {
    "float32": {"policy": "float32"},
    "fixed 4,4": {"policy": "fixed", "fixed_bits": (4, 4)},
    **{
        f"{policy} {bits}": {"policy": policy, "state_bits": bits}
        for bits in (5.0, 3.5)
        for policy in ("zones", "rate-distortion")
    },
    # The paper's schedule: the cap is the mean over the run, so that the sum of all widths may rise after the restart too.
    **{
        f"{policy} 5.0, mean cap": {"policy": policy, "state_bits": 5.0, "cap_mode": "mean"}
        for policy in ("zones", "rate-distortion")
    },
}


def rate_at(step, steps, peak, restart):
    """Learning rate of a step from 0: linear warm-up over 5 %, then a cosine down to 1 %; with a restart, all of it twice."""
    if restart:
        half = steps // 2
        return rate_at(step % half if step < 2 * half else half - 1, half, peak, False)
    warm_up = max(steps // 20, 1)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = (step - warm_up) / max(steps - warm_up, 1)
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


class Widths:
    """Widths of all coded tensors, and the RMS of their gradients, half-way between decisions.

    Half-way, because a wider plane that a decision gave is there one step later. The RMS is that of the decision before.
    Runs that decide nothing have neither.
    """

    def __init__(self, model, every, followed):
        self.followed = followed
        self.first, self.every = max(every // 2, 1), every
        self.sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        self.tensors = {}  # name: (widths of m, widths of v, RMS of the gradient), three lists

    def note(self, optimizer, step):
        """To be called after each step, counted from 1."""
        if not self.followed or step % self.every != self.first % self.every:
            return
        numbers = optimizer.telemetry()
        for key, width in numbers.items():
            if key.startswith("m_bits/"):
                name = key.removeprefix("m_bits/")
                lists = self.tensors.setdefault(name, ([], [], []))
                for values, value in zip(lists, (width, numbers[f"v_bits/{name}"], numbers[f"n/{name}"])):
                    values.append(value)

    def of_towers(self):
        """Means over time: code bits a value of m and v by elements, and the gradient's RMS, of each tower."""
        result = {}
        for tower in ("image", "text"):
            chosen = [(self.sizes[name], lists) for name, lists in self.tensors.items() if name.startswith(tower + ".")]
            elements = sum(size for size, _ in chosen)
            if not chosen:
                continue
            for place, kind in enumerate(("m_bits", "v_bits")):
                mean = sum(size * sum(lists[place]) / len(lists[place]) for size, lists in chosen) / elements
                result[f"{tower}_{kind}"] = mean
            sizes, gradients = [size for size, _ in chosen], zip(*(lists[2] for _, lists in chosen))
            roots = [math.sqrt(sum(size * n * n for size, n in zip(sizes, at)) / elements) for at in gradients]
            result[f"{tower}_gradient"] = sum(roots) / len(roots)
        return result

    def rows(self):
        """One row a tensor, for the CSV file of widths: a digit a time for each moment, and gradients' RMS as log10."""
        for name, (m_bits, v_bits, gradients) in self.tensors.items():
            yield {
                "tensor": name,
                "elements": self.sizes[name],
                "first_step": self.first,
                "every": self.every,
                "m_bits": "".join(str(int(width)) for width in m_bits),
                "v_bits": "".join(str(int(width)) for width in v_bits),
                "log10_gradient": " ".join(f"{math.log10(max(n, 1e-30)):.2f}" for n in gradients),
            }


def wait_for(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def train(job, task, preset, device, base=None):
    """Makes a run.

    Arguments:
        job: which one.
        task: an instance of job.task's class on the device.
        base: weights of a TwoTowers to fine-tune, None to train from scratch.

    Returns:
        (a row of numbers, Widths, the trained weights)
    """
    fine = 0 if base is None else 1
    steps, batch = preset.steps[fine], preset.batch[fine]
    torch.manual_seed(job.seed)
    model = task.model(preset.size)  # drawn on the CPU: the same on every device
    if base is not None:
        model.start_from(base)
    model.to(device)
    every = max(steps // preset.decisions, 2)
    optimizer = stquant.AdamW(
        model.named_parameters(), lr=job.rate, betas=task.betas, weight_decay=0.05, max_grad_norm=1.0, decide_every=every,
        planned_steps=steps, seed=job.seed, threads=torch.get_num_threads(), **STATES[job.states],
    )  # fmt: skip
    generator = torch.Generator(device).manual_seed(DATA_SEED + job.seed)
    adaptive = STATES[job.states]["policy"] not in ("float32", "fixed")
    widths, last = Widths(model, every, adaptive), torch.zeros((), device=device)
    wait_for(device)
    begin = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, job.rate, task.restart)
        loss = task.loss(model, batch, generator)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        if step >= steps - steps // 10:
            last += loss.detach()
        widths.note(optimizer, step + 1)
    wait_for(device)
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        results = task.evaluate(model.eval())
    numbers = optimizer.telemetry()
    row = {
        **results, "metric": task.metric, "train_loss": last.item() / (steps // 10), "steps": steps, "batch": batch,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "mean_bits": numbers["mean_state_bits"], "peak_bits": peak_bits(numbers),
        "skipped_steps": numbers["skipped_steps"], "step_ms": 1000 * seconds / steps, **widths.of_towers(),
    }  # fmt: skip
    return row, widths, {name: value.detach().cpu() for name, value in model.state_dict().items()}


def peak_bits(numbers):
    """All-in bits a state value at the peak."""
    return numbers["state_bits"] * numbers["peak_state_bytes"] / numbers["state_bytes"]
