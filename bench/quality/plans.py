"""Named lists of runs, the most telling first. A run's `rate` is a number, or None: the best of the sweep of `rate_model` times
`rate_factor`, known once that sweep has ended."""

BETA2 = 0.95
SEEDS = (1, 2, 3)
RATES = {"gpt2-51m": (1e-3, 2e-3, 4e-3, 8e-3), "vit-11m": (1.25e-4, 2.5e-4, 5e-4, 1e-3), "gpt2-toy": (1e-2, 2e-2), "vit-toy": (1e-3, 2e-3)}
RATE_STEP = 2.0  # between neighbours, and to the next one where the best is at an end
# GPT-2 124M is not swept: the rate that is best for 51M, less by the ratio of the widths.
RATE_FROM = {"gpt2-124m": ("gpt2-51m", 512 / 768)}


def run(name, model, optimizer, seed, settings=None, rate=None, beta2=BETA2, **more):
    rate_model, factor = RATE_FROM.get(model, (model, 1.0))
    return {"name": name, "model": model, "optimizer": optimizer, "seed": seed, "settings": settings or {}, "rate": rate, "beta2": beta2,
            "rate_model": rate_model, "rate_factor": factor, **more}


def float32(model, seed, rate=None, beta2=BETA2):
    more = {"checkpoint": True} if model in ("gpt2-51m", "gpt2-toy") and beta2 == BETA2 else {}
    return run("float32", model, "adamw", seed, rate=rate, beta2=beta2, **more)


def sweep(model):
    """The float32 runs with seed 1 that decide the rate."""
    return [float32(model, 1, rate) for rate in RATES[model]]


def fixed(m, v, **settings):
    return f"stquant fixed {m},{v}", {"policy": "fixed", "fixed_bits": [m, v], **settings}


def adaptive(policy, cap, suffix="", **settings):
    return f"stquant {policy} {cap:g}{suffix}", {"policy": policy, "state_bits": cap, **settings}


def ours(model, pair, seeds=SEEDS, beta2=BETA2, **more):
    name, settings = pair
    return [run(name, model, "stquant", seed, settings, beta2=beta2, **more) for seed in seeds]


def peer(model, name, seeds=SEEDS, beta2=BETA2):
    return [run(name, model, name, seed, beta2=beta2) for seed in seeds]


def raised(model):
    """A control for torchao4: float32 states, but no v below a sixteenth of the largest of its block."""
    return [run("float32 raised", model, "raised", seed, {"share": 1 / 16, "block": 128}) for seed in SEEDS]


def continued(model, seeds):
    """From the float32 checkpoint on: in float32, and under stquant at two caps."""
    runs = []
    for seed in seeds:
        runs.append(run("float32 continued", model, "adamw", seed, part="continue"))
        for cap in (5.0, 3.5):
            name, settings = adaptive("rate-distortion", cap)
            runs.append(run(f"{name} continued", model, "stquant", seed, settings, part="continue"))
    return runs


def headline():
    kinds = [("float32", "adamw", {}), ("bitsandbytes8", "bitsandbytes8", {}), ("torchao4", "torchao4", {}),
             ("stquant 5", "stquant", {"state_bits": 5.0})]
    return [run(name, model, optimizer, 1, settings, rate=1e-4, headline=True)
            for model in ("gpt2-xl", "vit-base") for name, optimizer, settings in kinds]


GPT, VIT, LARGE = "gpt2-51m", "vit-11m", "gpt2-124m"
RD, ZONES = "rate-distortion", "zones"


def seeds(model):
    return [float32(model, seed) for seed in SEEDS[1:]]


def adaptive_list():
    """What the caps can do: both policies over the caps, then variants at 3.5 bits and the other cases."""
    runs = []
    for cap in (3.5, 5.0, 3.0, 4.25):
        runs += ours(GPT, adaptive(RD, cap))
    runs += ours(GPT, adaptive(ZONES, 3.5)) + ours(GPT, fixed(3, 3))
    runs += ours(GPT, adaptive(RD, 2.5, " shared", shared_v=True))
    for policy in (RD, ZONES):
        runs += ours(GPT, adaptive(policy, 3.5, " compensated", error_compensation=1.0))
    runs += ours(GPT, adaptive(RD, 3.5), beta2=0.999) + ours(GPT, adaptive(RD, 5.0), beta2=0.999)
    runs += ours(VIT, adaptive(RD, 5.0)) + ours(VIT, adaptive(RD, 3.5))
    runs += ours(LARGE, adaptive(RD, 5.0), seeds=(1,)) + ours(LARGE, adaptive(RD, 3.5), seeds=(1,))
    runs += ours(GPT, adaptive(ZONES, 5.0)) + ours(GPT, adaptive(ZONES, 3.0)) + ours(GPT, adaptive(ZONES, 4.25))
    return runs + ours(GPT, adaptive(ZONES, 2.5, " shared", shared_v=True)) + ours(GPT, fixed(3, 3), beta2=0.999)


def required():
    """What the comparison cannot do without: three seeds of the best policy and of the peers, both beta2, images, the larger model, a switch."""
    runs = ours(GPT, adaptive(RD, 3.5)) + ours(GPT, adaptive(RD, 5.0)) + peer(GPT, "torchao4") + seeds(VIT)
    runs += ours(VIT, adaptive(RD, 5.0)) + ours(VIT, adaptive(RD, 3.5)) + ours(GPT, fixed(4, 4))
    runs += [float32(GPT, seed, beta2=0.999) for seed in SEEDS] + ours(GPT, adaptive(RD, 3.5), beta2=0.999)
    runs += [float32(LARGE, 1)] + ours(LARGE, adaptive(RD, 5.0), seeds=(1,)) + peer(GPT, "bitsandbytes8")
    return runs + continued(GPT, SEEDS) + ours(GPT, adaptive(RD, 5.0), beta2=0.999)


def five():
    """The fourth and the fifth seed of what the comparison is about."""
    runs = []
    for seed in (4, 5):
        for model in (GPT, VIT):
            runs += [float32(model, seed)] + ours(model, adaptive(RD, 3.5), (seed,)) + ours(model, adaptive(RD, 5.0), (seed,))
        runs += ours(GPT, adaptive(RD, 3.0), (seed,)) + ours(GPT, fixed(4, 4), (seed,)) + peer(GPT, "torchao4", (seed,))
    return runs


def large():
    """Two seeds of the larger model, in float32 and at the two caps."""
    runs = []
    for seed in (1, 2):
        runs += [float32(LARGE, seed)] + ours(LARGE, adaptive(RD, 5.0), (seed,)) + ours(LARGE, adaptive(RD, 3.5), (seed,))
    return runs


def toy():
    """A plan for tests: two seeds of float32 and stquant, of both models, on a CPU within seconds."""
    runs = []
    for model in ("gpt2-toy", "vit-toy"):
        runs += sweep(model) + [float32(model, 2)] + ours(model, fixed(4, 4), seeds=(1, 2))
    runs += ours("gpt2-toy", adaptive(RD, 8.0), seeds=(1, 2), beta2=BETA2)
    name, settings = fixed(5, 5)
    return runs + [run("float32 continued", "gpt2-toy", "adamw", 1, part="continue"),
                   run(f"{name} continued", "gpt2-toy", "stquant", 1, settings, part="continue")]


PLANS = {
    "sweep": lambda: sweep(GPT) + sweep(VIT),
    "seeds": lambda: seeds(GPT) + seeds(VIT),
    "peers": lambda: peer(GPT, "torchao4") + ours(GPT, fixed(4, 4)) + peer(GPT, "bitsandbytes8"),
    "beta2": lambda: [float32(GPT, seed, beta2=0.999) for seed in SEEDS],
    "large": large,
    "continued": lambda: continued(GPT, SEEDS),
    "headline": headline,
    "adaptive": adaptive_list,
    "required": required,
    "five": five,
    "more-peers": lambda: peer(VIT, "torchao4") + peer(GPT, "flashoptim") + peer(GPT, "torchao8") + peer(VIT, "bitsandbytes8") + raised(GPT),
    "toy": toy,
}
PLANS["base"] = lambda: [one for name in ("sweep", "seeds", "peers", "beta2", "large", "continued") for one in PLANS[name]()]
PLANS["all"] = lambda: [one for name in ("sweep", "seeds", "headline", "required", "adaptive", "more-peers") for one in PLANS[name]()]


def without_repeats(runs):
    kept, seen = [], set()
    for one in runs:
        key = (one["name"], one["model"], one["seed"], one["rate"], one["beta2"])
        if key not in seen:
            seen.add(key)
            kept.append(one)
    return kept
