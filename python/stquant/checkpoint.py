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
import struct
import sys
from typing import Any, Iterable

import torch

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}
_NAMES = {value: key for key, value in _TYPES.items()}
_STATES = ("exp_avg", "exp_avg_sq", "step")
_GROUPS = "torch.adamw.param_groups"
_LONGEST_HEADER = 100_000_000


# ---- safetensors ----


def write_safetensors(path: str | os.PathLike, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors under their names, under a temporary name first: an existing file is replaced by a whole one or not at all.

    Raises:
        ValueError: a type that the format has no name for. OSError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    ordered = sorted(tensors, key=lambda name: -tensors[name].element_size())  # each aligned to its own size
    for name in ordered:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise ValueError(f"'{name}' has the type {tensor.dtype}, which safetensors files do not have.")
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % 64)
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in ordered:
                data = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                file.write(memoryview(data.numpy()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata) of a file; names come in the order of the header.

    Raises:
        ValueError: the file is damaged or no safetensors file; the sentence names file, tensor and offset.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        field = file.read(8)
        length = struct.unpack("<Q", field)[0] if len(field) == 8 else size
        if length > min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"{path} has {size} bytes, and a header of {length} by its length field at offset 0.")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(f"{path}: no JSON header at offset 8: {error}") from None
        if not isinstance(header, dict):
            raise ValueError(f"{path}: no JSON object at offset 8.")
        metadata = header.pop("__metadata__", {})
        return {name: _read_tensor(file, path, name, entry, 8 + length, size) for name, entry in header.items()}, metadata


def _read_tensor(file: Any, path: Any, name: str, entry: dict[str, Any], start: int, size: int) -> torch.Tensor:
    try:
        dtype, shape, (begin, end) = _TYPES[entry["dtype"]], [int(extent) for extent in entry["shape"]], entry["data_offsets"]
        count = 1
        for extent in shape:
            count *= extent
        sound = min(shape, default=0) >= 0 and 0 <= begin <= end <= size - start
        sound = sound and end - begin == count * torch.empty((), dtype=dtype).element_size()
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"{path}: tensor '{name}' has no sound type, shape and offsets (in the header at offset 8).")
    if begin == end:
        return torch.empty(shape, dtype=dtype)
    file.seek(start + begin)
    data = bytearray(file.read(end - begin))
    if len(data) != end - begin:
        raise ValueError(f"{path}: tensor '{name}' is cut off at offset {start + begin + len(data)}.")
    return torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(shape)


# ---- AdamW ----


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
    saved = json.loads((metadata or {}).get(_GROUPS, "null"))
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
                state[index] = {key: tensors[f"state.{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                state[index]["step"] = state[index]["step"].to(torch.float32)
            index += 1
    return model, {"state": state, "param_groups": groups}


def from_torch(source: str | os.PathLike, target: str | os.PathLike, names: Iterable[str] | None = None) -> None:
    """Reads torch's file (a dict with ``model`` and ``optimizer``) and writes a safetensors file."""
    saved = torch.load(source, map_location="cpu", weights_only=True)
    if not isinstance(saved, dict) or not {"model", "optimizer"} <= saved.keys():
        raise ValueError(f"{source} is no dict with 'model' and 'optimizer', the state dicts of a model and its AdamW.")
    write_safetensors(target, *adamw_tensors(saved["model"], saved["optimizer"], names))


def to_torch(source: str | os.PathLike, target: str | os.PathLike, names: Iterable[str] | None = None) -> None:
    """Reads a safetensors file and writes torch's: a dict with ``model`` and ``optimizer``."""
    model, optimizer = adamw_state_dicts(*read_safetensors(source), names)
    torch.save({"model": model, "optimizer": optimizer}, target)


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
