"""Memory and speed of the large models: a few steps of GPT-2 XL or ViT-Base under one optimizer, states as PyTorch's allocator counts
them. Parameters and gradients are float32, products bfloat16; blocks run uncompiled and GPT-2 recomputes activations."""
import datetime
import json
import statistics
import time

import torch

import data
import models
import optimizers

STEPS, WARM = 50, 12


def make_batch(session, shape, generator):
    """GPT-2: sequences of the text. ViT: random images, since only time and bytes are measured."""
    device = session.device
    if shape.kind == "gpt2":
        text = session.source("gpt2").training
        starts = torch.randint(0, text.numel() - shape.context - 1, (shape.batch,), generator=generator, device=device)
        return data.windows(text, starts, shape.context)
    images = torch.randn(shape.batch, shape.channels, shape.image, shape.image, generator=generator, device=device)
    return images, torch.randint(0, shape.classes, (shape.batch,), generator=generator, device=device)


def make_model(session, shape):
    """The model with random weights, made on the device: the values do not matter, 1.5 billion of them from the host would take long."""
    with torch.device(session.device):
        model = models.make(shape, session.device)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() >= 2:
                    parameter.normal_(0, 0.02)
    model.recompute = shape.kind == "gpt2"
    return model


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(session, run, steps=STEPS):
    """The row of results.HEADLINE_FIELDS."""
    session.drop_model()
    shape, device = models.SHAPES[run["model"]], session.device
    generator = torch.Generator(device=device).manual_seed(run["seed"])
    batch = make_batch(session, shape, generator)
    model = make_model(session, shape)
    optimizer = optimizers.make(run["optimizer"], model, run["settings"], run["beta2"], run["seed"], steps, whole=True)
    optimizer.set_rate(run["rate"])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    whole, part = [], []
    for step in range(steps):
        synchronize(device)
        begun = time.perf_counter()
        with session.autocast():
            loss = model(*batch)
        (loss if shape.kind == "gpt2" else loss[0]).backward()
        synchronize(device)
        middle = time.perf_counter()
        optimizer.step()
        synchronize(device)
        ended = time.perf_counter()
        del loss
        optimizer.zero_gradients()
        if step >= min(WARM, steps // 2):
            whole.append(1e3 * (ended - begun))
            part.append(1e3 * (ended - middle))
    step_ms = statistics.median(whole)
    settings = run["settings"]
    per_step = shape.batch * (shape.context or 1)
    return {"date": datetime.date.today().isoformat(), "device": session.device_name(), "model": run["model"], "optimizer": run["optimizer"],
            "policy": settings.get("policy", ""), "cap_bits": settings.get("state_bits", ""), "parameters": optimizer.values() // 2,
            "state_bytes": optimizer.state_bytes, "all_in_bits": 8 * optimizer.state_bytes / optimizer.values(),
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else "", "step_ms": step_ms,
            "optimizer_ms": statistics.median(part), "tokens_per_s": 1e3 * per_step / step_ms, "steps": steps, "batch": shape.batch,
            "name": run["name"], "settings": json.dumps(settings, sort_keys=True)}
