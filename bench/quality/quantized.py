"""Quantization-aware training of GPT-2 from a float32 checkpoint: what bench/qat_gpu runs in the process of one GPU.

The blocks run uncompiled, because rounded weights come out of a function of the library; the loss, with the largest matrix, is
compiled. One model serves all runs of a process: weights are loaded into it, quantization is put around them and taken off again.
"""
import math
import os
import time

import torch
from torch.nn.utils import parametrize

import data
import models
import training

BETAS, DECAY, CLIP = (0.9, 0.95), 0.1, 1.0
WORSE = 0.5  # nats above the start at which a run counts as diverged
SECOND_TEXT = 1000  # added to the seed of a base's order of the text, for the runs that go on from it


class Session:
    """What a process keeps between runs."""

    def __init__(self, device, tokens, work, shape, compiled):
        self.device, self.work, self.shape = torch.device(device), work, shape
        self.text = data.Text(tokens, self.device)
        self.model = models.make(shape, self.device)
        if compiled:
            self.model.loss = torch.compile(models.token_loss, dynamic=False)

    def loss(self, batch):
        try:
            return self.once(batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:
            if self.model.loss is models.token_loss:
                raise
            print(f"compiling failed, the loss runs uncompiled: {problem}", flush=True)
            self.model.loss = models.token_loss
            return self.once(batch)

    def once(self, batch):
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.model(*batch)

    def validation_loss(self):
        return training.text_loss(self.loss, self.text.validation, self.shape)

    def base(self, seed):
        return os.path.join(self.work, f"base-{seed}.pt")


def make_optimizer(model, states, seed, steps):
    """AdamW over matrices, vectors and steps of the quantization, float32 states or stquant's of so many bits."""
    import stquant
    groups = stquant.qat.parameter_groups(model, weight_decay=DECAY)
    if states == 32:
        return torch.optim.AdamW(groups, lr=1e-3, betas=BETAS, fused=model.token_embedding.weight.is_cuda)
    return stquant.AdamW(groups, lr=1e-3, betas=BETAS, state_bits=float(states), planned_steps=steps, seed=seed)


def train(session, run, order, step_rate):
    """All steps of a run; returns (mean training loss of the last tenth, milliseconds of a step), NaN where it diverged."""
    model, steps = session.model, len(order)
    optimizer = make_optimizer(model, run["states"], run["seed"], steps)
    scales = {id(parameter) for module in model.modules() for name, parameter in module.named_parameters(recurse=False) if name == "steps"}
    parameters, losses, begun, timed = list(model.parameters()), torch.zeros(steps, device=session.device), None, 0
    for step in range(steps):
        if step == steps // 5:
            begun, timed = now(session.device), steps - step
        rate = training.rate_at(step, steps, run["warmup"], run["rate"])
        for group in optimizer.param_groups:
            group["lr"] = rate * (step_rate if id(group["params"][0]) in scales else 1.0)
        loss = session.loss(data.windows(session.text.training, order[step], session.shape.context))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses[step] = loss.detach()
        if step % 50 == 49 and not math.isfinite(losses[: step + 1].sum().item()):
            return math.nan, math.nan
    milliseconds = 1e3 * (now(session.device) - begun) / timed
    return losses[-max(1, steps // 10) :].mean().item(), milliseconds


def now(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def make_base(session, run):
    """The float32 run that others start from; its weights and loss go to a file."""
    shape = session.shape
    session.model.initialize(run["seed"])
    order = data.text_order(run["seed"], session.text.training.numel(), shape.context, shape.batch, run["steps"]).to(session.device)
    train_loss, milliseconds = train(session, run, order, 1.0)
    loss = session.validation_loss()
    unfinished = f"{session.base(run['seed'])}.{os.getpid()}"
    torch.save({"model": session.model.state_dict(), "validation_loss": loss}, unfinished)
    os.replace(unfinished, session.base(run["seed"]))
    return {"validation_loss": loss, "train_loss": train_loss, "step_ms": milliseconds}


def quantize(model, run):
    import stquant
    stquant.qat.prepare(model, bits=run["bits"], estimator=run["estimator"], amplitudes=(run.get("amplitude") or 0.21,))


def unquantize(model):
    """The model as it was, but for its weights: the order of parameters too, by which norms are summed."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            module.register_parameter("bias", module._parameters.pop("bias"))  # behind the weight, as it was


def make_run(session, run):
    """The numbers of a run's row."""
    if run["kind"] == "base":
        return make_base(session, run)
    shape, content = session.shape, torch.load(session.base(run["seed"]), map_location=session.device)
    session.model.load_state_dict(content["model"])
    order = data.text_order(run["seed"] + SECOND_TEXT, session.text.training.numel(), shape.context, shape.batch, run["steps"])
    try:
        if run["bits"]:
            quantize(session.model, run)
        train_loss, milliseconds = train(session, run, order.to(session.device), run["step_rate"])
        loss = session.validation_loss() if math.isfinite(train_loss) else math.nan
    finally:
        unquantize(session.model)
    diverged = not math.isfinite(loss) or loss >= content["validation_loss"] + WORSE
    return {"start_loss": content["validation_loss"], "validation_loss": loss, "train_loss": train_loss, "diverged": int(diverged),
            "step_ms": milliseconds}
