"""Quantization-aware training of weights (StableQAT): the model computes with weights of few bits, the optimizer trains
the floats behind them and one step for each output. docs/qat.md has the formulas.

    stquant.qat.prepare(model, bits=4)
    optimizer = stquant.AdamW(stquant.qat.parameter_groups(model, weight_decay=0.1), lr=1e-4)
    ...                                    # train as ever
    stquant.qat.export(model, "low.safetensors")
    other.load_state_dict(stquant.qat.load("low.safetensors"))
"""

from __future__ import annotations

import fnmatch
import json
import os
from typing import Iterable, Iterator, Sequence

import torch
from torch.nn.utils import parametrize

from ._safetensors import read_safetensors, write_safetensors
from ._fake_quantize import FakeQuantize, Quantization, initial_steps, pack, unpack

__all__ = ["Quantization", "export", "load", "parameter_groups", "prepare", "steps"]

HEADS = ("lm_head", "head", "classifier", "score", "*.lm_head", "*.head", "*.classifier", "*.score")
_METADATA = "stquant_qat"


class _Quantizer(torch.nn.Module):
    """Stands between a layer and its weight (torch.nn.utils.parametrize)."""

    def __init__(self, weight: torch.Tensor, settings: Quantization):
        super().__init__()
        self.settings = settings
        self.steps = torch.nn.Parameter(initial_steps(weight, settings))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return FakeQuantize.apply(weight, self.steps.float(), self.settings)


def _embeddings(model: torch.nn.Module) -> set[int]:
    """Parameters that are embeddings: layers that share one are the model's head."""
    return {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}


def _weights(model: torch.nn.Module, skip: Iterable[str]) -> Iterator[tuple[torch.nn.Module, str]]:
    """(module, attribute) of the weights to quantize: linear layers and the joint input of torch's attention."""
    embeddings, patterns = _embeddings(model), tuple(skip)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            attribute = "weight"
        elif isinstance(module, torch.nn.MultiheadAttention) and module.in_proj_weight is not None:
            attribute = "in_proj_weight"
        else:
            continue
        if parametrize.is_parametrized(module, attribute):
            raise ValueError(f"The weight of {name!r} is parametrized already; prepare a model once.")
        if id(getattr(module, attribute)) not in embeddings and not any(fnmatch.fnmatch(name, p) for p in patterns):
            yield module, attribute


def prepare(
    model: torch.nn.Module,
    bits: int = 4,
    *,
    estimator: str = "stable",
    amplitudes: Sequence[float] = (0.21,),
    softness: float = 0.2,
    group: int = 0,
    skip: Iterable[str] = HEADS,
) -> torch.nn.Module:
    """Has the linear layers of `model` compute with weights of `bits` bits; returns the model, which is changed in place.

    Embeddings, layers that share a weight with one, norms, biases and activations stay as they are, and so do layers whose
    names match a pattern of `skip` (by default the usual names of output heads). Call it before the optimizer is made: each
    layer gets a parameter of steps, set from the weights as they are. ValueError if a setting is wrong or nothing is left
    to quantize; the model is then as it was.
    """
    settings = Quantization(bits, estimator, tuple(map(float, amplitudes)), softness, group)
    found = list(_weights(model, skip))
    if not found:
        raise ValueError("The model has no linear layer to quantize; name fewer in `skip`.")
    quantizers = [_Quantizer(getattr(module, attribute), settings) for module, attribute in found]
    for (module, attribute), quantizer in zip(found, quantizers):
        parametrize.register_parametrization(module, attribute, quantizer, unsafe=True)
    return model


def steps(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The steps of a prepared model."""
    return [module.steps for module in model.modules() if isinstance(module, _Quantizer)]


def parameter_groups(model: torch.nn.Module, weight_decay: float = 0.01, step_rate: float | None = None, lr: float | None = None):
    """Groups for an optimizer: matrices with weight decay, vectors without, and the steps without. With `lr` and
    `step_rate` the steps learn with lr x step_rate."""
    chosen = {id(parameter) for parameter in steps(model)}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        {"params": steps(model), "weight_decay": 0.0},
    ]
    if step_rate is not None:
        if lr is None:
            raise ValueError("step_rate is a share of a learning rate; give lr too.")
        groups[2]["lr"] = lr * step_rate
    return [group for group in groups if group["params"]]


# ---- Files ----

def _plain_name(name: str) -> str:
    """The name that a parameter has without parametrization."""
    return name.replace(".parametrizations.", ".").removeprefix("parametrizations.").removesuffix(".original")


def _stem(weight: str) -> str:
    """"a.b.weight" and "a.b.in_proj_weight" -> what codes and steps are named by."""
    return weight.removesuffix(".weight")


def _collect(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, dict]]:
    """Arrays under their names in the file, and what tells how the quantized ones are to be read."""
    arrays: dict[str, torch.Tensor] = {}
    described: dict[str, dict] = {}
    quantizers = {name: module for name, module in model.named_modules() if isinstance(module, _Quantizer)}
    for name, tensor in model.state_dict().items():
        owner, _, last = name.rpartition(".")
        if last == "steps" and owner in quantizers:
            continue
        quantizer = quantizers.get(owner + ".0") if last == "original" else None
        if quantizer is None:
            arrays[name] = tensor
            continue
        weight, settings = _plain_name(name), quantizer.settings
        arrays[_stem(weight) + ".codes"] = pack(tensor, quantizer.steps, settings)
        arrays[_stem(weight) + ".steps"] = quantizer.steps.detach().float()
        described[weight] = {"bits": settings.bits, "group": settings.group, "shape": list(tensor.shape)}
    return arrays, described


def export(model: torch.nn.Module, path: str | os.PathLike) -> None:
    """Writes a prepared model as one safetensors file: NAME.codes (bits of the weights, packed) and NAME.steps for each
    quantized weight, everything else under its own name. docs/qat.md describes the codes. ValueError if nothing is
    quantized; an existing file is replaced once the new one is complete."""
    arrays, described = _collect(model)
    if not described:
        raise ValueError("The model has no quantized weights; stquant.qat.prepare makes them.")
    ordered = {name: arrays[name] for name in sorted(arrays)}
    write_safetensors(path, ordered, {_METADATA: json.dumps(described)}, align=8)


def _described(path: str | os.PathLike, text: str) -> dict[str, tuple[int, int, int, int]]:
    """What the metadata tell of each quantized weight: bits, group, rows and columns."""
    try:
        entries = json.loads(text)
        found = {weight: (entry["bits"], entry["group"], *entry["shape"]) for weight, entry in entries.items()}
        sound = all(len(numbers) == 4 and all(type(number) is int for number in numbers) for numbers in found.values())
    except (ValueError, TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise ValueError(f"{path}: the metadata '{_METADATA}' do not tell bits, group and shape of each weight.")
    return found


def load(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """What export() wrote, as a state dictionary of the model before prepare(): quantized weights as float32, with the
    values that the prepared model computed with. ValueError if the file is something else or damaged."""
    arrays, metadata = read_safetensors(path)
    if _METADATA not in metadata:
        raise ValueError(f"{path} was not written by stquant.qat.export.")
    for weight, (bits, group, rows, cols) in _described(path, metadata[_METADATA]).items():
        codes, scales = (arrays.pop(_stem(weight) + end, None) for end in (".codes", ".steps"))
        if codes is None or scales is None or codes.dtype != torch.uint8 or not scales.is_floating_point():
            raise ValueError(f"{path} lacks codes (U8) or steps (floats) of {weight}.")
        arrays[weight] = unpack(codes, scales, Quantization(bits=bits, estimator="ste", group=group), rows, cols)
    return arrays
