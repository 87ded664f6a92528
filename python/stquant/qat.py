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
import pathlib
import struct
from typing import Iterable, Iterator, Sequence

import torch
from torch.nn.utils import parametrize

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

_TYPES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.uint8: "U8",
    torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64", torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _TYPES.items()}


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


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def _write(path: pathlib.Path, arrays: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, widest elements first so that every array is aligned; visible once it is complete."""
    header: dict[str, object] = {"__metadata__": metadata}
    order = sorted(arrays, key=lambda name: (-arrays[name].element_size(), name))
    position = 0
    for name in order:
        tensor = arrays[name]
        if tensor.dtype not in _TYPES:
            raise TypeError(f"{name} has the type {tensor.dtype}, which the file cannot hold.")
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in order:
                if arrays[name].numel():
                    file.write(_bytes(arrays[name]))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def export(model: torch.nn.Module, path: str | os.PathLike) -> None:
    """Writes a prepared model as one safetensors file: NAME.codes (bits of the weights, packed) and NAME.steps for each
    quantized weight, everything else under its own name. docs/qat.md describes the codes. ValueError if nothing is
    quantized; an existing file is replaced once the new one is complete."""
    arrays, described = _collect(model)
    if not described:
        raise ValueError("The model has no quantized weights; stquant.qat.prepare makes them.")
    _write(pathlib.Path(path), arrays, {"format": "pt", _METADATA: json.dumps(described)})


def _read(path: pathlib.Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    content = path.read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        arrays = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= len(content) - 8 - length:
                raise ValueError(f"the array {name} lies outside the file")
            dtype = _DTYPES[entry["dtype"]]
            raw = torch.frombuffer(bytearray(content[8 + length + begin : 8 + length + end]), dtype=dtype) if end > begin \
                else torch.empty(0, dtype=dtype)
            arrays[name] = raw.reshape(entry["shape"])
    except (struct.error, KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is no safetensors file that can be read: {error}.") from error
    return arrays, metadata


def load(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """What export() wrote, as a state dictionary of the model before prepare(): quantized weights as float32, with the
    values that the prepared model computed with. ValueError if the file is something else or damaged."""
    arrays, metadata = _read(pathlib.Path(path))
    if _METADATA not in metadata:
        raise ValueError(f"{path} was not written by stquant.qat.export.")
    for weight, entry in json.loads(metadata[_METADATA]).items():
        names = _stem(weight) + ".codes", _stem(weight) + ".steps"
        if not all(name in arrays for name in names):
            raise ValueError(f"{path} lacks codes or steps of {weight}.")
        codes, scales = (arrays.pop(name) for name in names)
        settings = Quantization(bits=entry["bits"], estimator="ste", group=entry["group"])
        arrays[weight] = unpack(codes, scales, settings, *entry["shape"])
    return arrays
