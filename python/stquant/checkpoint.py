"""torch's own checkpoint files and safetensors files with the states of AdamW, as docs/format.md names them.

    python -m stquant.checkpoint from-torch run.pt adamw.safetensors    # then: stquant convert adamw.safetensors RUN
    python -m stquant.checkpoint to-torch adamw.safetensors run.pt      # of: stquant convert RUN adamw.safetensors --to torch

A file of torch's is what `torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)` writes, with
the optimizer a torch.optim.AdamW. In the safetensors file a parameter T has the entries T, state.T.exp_avg, state.T.exp_avg_sq
and state.T.step. Nothing but torch is needed, and only tensors are unpickled.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
from typing import Any, Iterable

import torch

from ._safetensors import read_safetensors, replace_file, write_safetensors

__all__ = ["adamw_state_dicts", "adamw_tensors", "from_torch", "read_safetensors", "to_torch", "write_safetensors"]

_STATES = ("exp_avg", "exp_avg_sq", "step")
_GROUPS = "torch.adamw.param_groups"


def _parameter_names(model: dict[str, torch.Tensor], optimizer: dict[str, Any], names: Iterable[str] | None) -> dict[int, str]:
    """Names by the optimizer's indices: as given, as the optimizer knows them, or in the order of the model's state dict."""
    indices = [index for group in optimizer["param_groups"] for index in group["params"]]
    if names is None and all("param_names" in group for group in optimizer["param_groups"]):
        names = [name for group in optimizer["param_groups"] for name in group["param_names"]]
    elif names is None:
        # Tied parameters are there twice, and the optimizer has them once; buffers come behind a module's parameters.
        seen, names = set(), []
        for name, tensor in model.items():
            key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
            if tensor.is_floating_point() and (tensor.numel() == 0 or key not in seen):
                seen.add(key)
                names.append(name)
    names = list(names)
    if len(names) != len(indices):
        raise ValueError(
            f"The model has {len(names)} parameters, the optimizer {len(indices)}: give the names of the optimizer's, in its order."
        )
    return dict(zip(indices, names))


def adamw_tensors(
    model: dict[str, torch.Tensor], optimizer: dict[str, Any], names: Iterable[str] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata) for write_safetensors() of the state dicts of a model and its torch.optim.AdamW.

    ``names`` are those of the optimizer's parameters in its order, as in ``model``; by default what the optimizer was given
    (``named_parameters()``), or else the order of the model's state dict.

    Raises:
        ValueError: names that do not fit, moments of another shape than their parameter, or AMSGrad.
    """
    by_index = _parameter_names(model, optimizer, names)
    tensors = dict(model)  # with buffers and whatever is not trained
    for index, entry in optimizer["state"].items():
        name = by_index[index]
        if name not in model:
            raise ValueError(f"The model's state dict has no '{name}': give the names of the optimizer's parameters, in its order.")
        if "max_exp_avg_sq" in entry:
            raise ValueError("The optimizer is an AMSGrad run (max_exp_avg_sq), which has no place in this file.")
        for key in _STATES[:2]:
            if key not in entry or "step" not in entry:
                raise ValueError(f"The optimizer has no {', '.join(_STATES)} of '{name}': it is no torch.optim.AdamW (or Adam).")
            if entry[key].shape != model[name].shape:
                raise ValueError(f"{key} of '{name}' has the shape {tuple(entry[key].shape)}: give the optimizer's own names.")
            tensors[f"state.{name}.{key}"] = entry[key]
        tensors[f"state.{name}.step"] = torch.as_tensor(entry["step"], dtype=torch.float32).reshape(())
    groups = [
        {**{key: value for key, value in group.items() if isinstance(value, (bool, int, float, tuple, list, type(None)))},
         "params": [by_index[index] for index in group["params"]]}
        for group in optimizer["param_groups"]
    ]
    return tensors, {_GROUPS: json.dumps(groups)}


def _saved_groups(text: str) -> list[dict[str, Any]] | None:
    """The param groups in the metadata, with names for parameters; None where there are none."""
    try:
        groups = json.loads(text)
        sound = groups is None or all(all(isinstance(name, str) for name in group["params"]) for group in groups)
    except (ValueError, TypeError, KeyError):
        sound = False
    if not sound:
        raise ValueError(f"The metadata '{_GROUPS}' are no list of param groups with names in 'params'.")
    return groups


def adamw_state_dicts(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None, names: Iterable[str] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(model, optimizer) state dicts out of the tensors of a file: the inverse of adamw_tensors().

    ``names`` are those of the optimizer's parameters in its order (``[name for name, _ in model.named_parameters()]``); by
    default that of the groups in the metadata, or of the file. Without groups in the metadata, as in files of `stquant
    convert`, all parameters are in one group with torch's defaults: set lr and its like after loading.
    """
    model = {name: tensor for name, tensor in tensors.items() if not name.startswith("state.")}
    default = torch.optim.AdamW([torch.nn.Parameter(torch.empty(0))]).state_dict()["param_groups"][0]
    saved = _saved_groups((metadata or {}).get(_GROUPS, "null"))
    order = list(names) if names is not None else [name for group in saved for name in group["params"]] if saved else list(model)
    if not saved or sorted(order) != sorted(name for group in saved for name in group["params"]):
        saved = [{"params": order}]
    unknown = [name for name in order if name not in model]
    if unknown:
        raise ValueError(f"There is no parameter '{unknown[0]}' in the file.")
    groups, state, index = [], {}, 0
    for group in saved:
        own = sorted(group["params"], key=order.index)
        known = {**default, **group, "params": list(range(index, index + len(own))), "param_names": own}
        known["betas"] = tuple(known["betas"])
        groups.append(known)
        for name in own:
            if f"state.{name}.exp_avg" in tensors:
                missing = [key for key in _STATES if f"state.{name}.{key}" not in tensors]
                if missing:
                    raise ValueError(f"The file has no 'state.{name}.{missing[0]}' beside the other states of '{name}'.")
                state[index] = {key: tensors[f"state.{name}.{key}"] for key in ("step", *_STATES[:2])}
                state[index]["step"] = state[index]["step"].to(torch.float32)
            index += 1
    return model, {"state": state, "param_groups": groups}


def from_torch(source: str | os.PathLike, target: str | os.PathLike, names: Iterable[str] | None = None) -> None:
    """Reads torch's file (a dict with ``model`` and ``optimizer``) and writes a safetensors file."""
    try:
        saved = torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, IndexError, AttributeError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{source} is no file of torch.save() with nothing but tensors and plain values in it: {reason}") from error
    parts = [saved.get(key) for key in ("model", "optimizer")] if isinstance(saved, dict) else [None]
    if not all(isinstance(part, dict) for part in parts) or not {"state", "param_groups"} <= parts[1].keys():
        raise ValueError(f"{source} is no dict with 'model' and 'optimizer', the state dicts of a model and its AdamW.")
    write_safetensors(target, *adamw_tensors(saved["model"], saved["optimizer"], names))


def to_torch(source: str | os.PathLike, target: str | os.PathLike, names: Iterable[str] | None = None) -> None:
    """Reads a safetensors file and writes torch's: a dict with ``model`` and ``optimizer``, whole or not at all."""
    model, optimizer = adamw_state_dicts(*read_safetensors(source), names)
    replace_file(target, lambda file: torch.save({"model": model, "optimizer": optimizer}, file))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m stquant.checkpoint", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("direction", choices=("from-torch", "to-torch"))
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--names", help="file with the names of the optimizer's parameters, one a line, in its order")
    options = parser.parse_args(arguments)
    try:
        names = None
        if options.names:
            with open(options.names, encoding="utf-8") as file:
                names = file.read().split()
        (from_torch if options.direction == "from-torch" else to_torch)(options.source, options.target, names)
    except (OSError, ValueError) as error:
        print(f"stquant.checkpoint: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
