"""The optimizers that are compared, behind one small interface, each with clipping to a global norm of 1 in its step.

Matrices decay by 0.1 and vectors do not, under every optimizer. The peers keep float32 states for vectors of fewer than 4,096 elements (all of them in
GPT-2 51M and ViT; flashoptim would code them), so vectors are left to PyTorch's fused AdamW beside a peer: the same states and arithmetic, and
far fewer launches. `whole` gives everything to the peer, for times and bytes.
"""
import os

os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
import torch  # noqa: E402

BETA1, EPSILON, WEIGHT_DECAY, CLIP = 0.9, 1e-8, 0.1, 1.0


def bytes_of(value):
    """Bytes of a state entry; those of the parts of a tensor that is made of others."""
    if not isinstance(value, torch.Tensor):
        parts = [part for part in vars(value).values() if isinstance(part, torch.Tensor)] if hasattr(value, "__dict__") else []
        return sum(map(bytes_of, parts))
    if hasattr(value, "__tensor_flatten__"):
        return sum(bytes_of(getattr(value, name)) for name in value.__tensor_flatten__()[0])
    return value.numel() * value.element_size()


class Candidate:
    """PyTorch optimizers over the parameters of one model. Its states are made in the first step, whose growth of allocated memory
    counts as their bytes on a GPU; on a CPU they are summed up."""

    def __init__(self, model, optimizers):
        self.parameters = list(model.parameters())
        self.optimizers = optimizers
        self.state_bytes = 0
        self.device = self.parameters[0].device

    def set_rate(self, rate):
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def _apply(self):
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        for optimizer in self.optimizers:
            optimizer.step()

    def step(self):
        if self.state_bytes:
            return self._apply()
        on_gpu = self.device.type == "cuda"
        before = torch.cuda.memory_allocated(self.device) if on_gpu else 0
        self._apply()
        if on_gpu:
            self.state_bytes = torch.cuda.memory_allocated(self.device) - before
        else:
            self.state_bytes = self.counted_bytes()

    def counted_bytes(self):
        """Bytes of the states, one by one."""
        states = [state for optimizer in self.optimizers for state in optimizer.state.values()]
        return sum(bytes_of(value) for state in states for value in state.values())

    def zero_gradients(self):
        for parameter in self.parameters:
            parameter.grad = None

    def values(self):
        """State values: two a parameter."""
        return 2 * sum(parameter.numel() for parameter in self.parameters)

    def report(self):
        """all_in_bits, peak_all_in_bits and skipped_steps of the run so far."""
        bits = 8 * self.state_bytes / self.values()
        return {"all_in_bits": bits, "peak_all_in_bits": bits, "skipped_steps": 0}

    def widths(self):
        """Code bits by state and tensor, where they differ."""
        return {}

    def load_float32(self, state):
        """Goes on from the state dict of PyTorch's AdamW over the same groups."""
        self.optimizers[0].load_state_dict(state)
        self.state_bytes = self.counted_bytes()


class Stquant(Candidate):
    """stquant.AdamW, which clips by itself and counts its own bytes."""

    first_step = 0  # steps that a float32 run made before

    def _apply(self):
        self.optimizers[0].step()

    def counted_bytes(self):
        return int(self.optimizers[0].telemetry()["state_bytes"])

    def report(self):
        numbers = self.optimizers[0].telemetry()
        # The mean over all steps, among which those before the switch count as none.
        mean = numbers["mean_state_bits"] * numbers["step"] / max(1, numbers["step"] - self.first_step)
        return {"all_in_bits": mean, "peak_all_in_bits": 8 * numbers["peak_state_bytes"] / self.values(),
                "skipped_steps": numbers["skipped_steps"]}

    def widths(self):
        numbers = self.optimizers[0].telemetry()
        return {name: round(value, 3) for name, value in numbers.items() if name.startswith(("m_bits/", "v_bits/", "mean_", "state_bits"))}

    def load_float32(self, state):
        self.optimizers[0].load_full_precision_state_dict(state)
        self.first_step = self.optimizers[0].steps


def groups(model, named=False):
    """Two param groups, matrices first; pairs with names for optimizers that take them."""
    pairs = list(model.named_parameters())
    chosen = [[pair for pair in pairs if pair[1].dim() >= 2], [pair for pair in pairs if pair[1].dim() < 2]]
    return [{"params": part if named else [parameter for _, parameter in part], "weight_decay": decay}
            for part, decay in zip(chosen, (WEIGHT_DECAY, 0.0))]


def _torch_adamw(parameter_groups, common):
    return torch.optim.AdamW(parameter_groups, fused=True, **common)


def _peer(name):
    """A function that makes the peer's optimizer over param groups."""
    def make(parameter_groups, common):
        if name == "bitsandbytes8":
            import bitsandbytes
            return bitsandbytes.optim.AdamW8bit(parameter_groups, **common)
        if name == "flashoptim":
            import flashoptim
            return flashoptim.FlashAdamW(parameter_groups, master_weight_bits=None, **common)
        import torchao.optim
        return {"torchao8": torchao.optim.AdamW8bit, "torchao4": torchao.optim.AdamW4bit}[name](parameter_groups, **common)
    return make


class RaisedAdamW(torch.optim.Optimizer):
    """AdamW with float32 states that keeps no v below `share` of the largest in its block of `block` values, which lie one behind the
    other: what torchao's 4 bits do to small v (1/16 of 128), without their rounding. Tells one cause of their effect from the other."""

    def __init__(self, parameter_groups, share, block, lr, betas, eps):
        super().__init__(parameter_groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.share, self.block, self.count = share, block, 0

    def raise_small(self, v):
        blocks = v.view(-1, self.block)
        torch.maximum(blocks, self.share * blocks.amax(dim=1, keepdim=True), out=blocks)

    @torch.no_grad()
    def step(self):
        self.count += 1
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["m"], state["v"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                m, v = state["m"], state["v"]
                m.lerp_(parameter.grad, 1 - beta1)
                v.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                self.raise_small(v)
                denominator = v.sqrt().div_((1 - beta2**self.count) ** 0.5).add_(group["eps"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.addcdiv_(m, denominator, value=-group["lr"] / (1 - beta1**self.count))


PEERS = ("bitsandbytes8", "torchao8", "torchao4", "flashoptim")
NAMES = ("adamw", *PEERS, "stquant", "raised")


def make(name, model, settings, beta2, seed, steps, whole=False):
    """The optimizer `name` over a model's parameters. `settings` are arguments of stquant.AdamW, or of RaisedAdamW; `seed` is that of its rounding,
    `steps` the planned length of the run."""
    common = {"lr": 1e-3, "betas": (BETA1, beta2), "eps": EPSILON}
    if name == "adamw":
        return Candidate(model, [_torch_adamw(groups(model), common)])
    if name == "stquant":
        import stquant
        optimizer = stquant.AdamW(groups(model, named=True), seed=seed, planned_steps=steps, max_grad_norm=CLIP, **common, **settings)
        return Stquant(model, [optimizer])
    if name == "raised":
        matrices, vectors = groups(model)
        return Candidate(model, [RaisedAdamW([matrices], **settings, **common), _torch_adamw([vectors], common)])
    if name not in PEERS:
        raise ValueError(f"There is no optimizer {name!r}; use one of {', '.join(NAMES)}.")
    matrices, vectors = groups(model)
    if whole:
        return Candidate(model, [_peer(name)([matrices, vectors], common)])
    return Candidate(model, [_peer(name)([matrices], common), _torch_adamw([vectors], common)])
