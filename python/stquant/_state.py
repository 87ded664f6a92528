"""State dictionaries: packed (bit-exact, as small as the states), portable (any sharding) and full precision (torch's).

Packed, for parameters that are whole here: `state[i]` has `step`, `record` (the bytes of stq_tensor_record) and copies of the
planes and scale words under the library's names.

Portable, for DTensors and on request: codes one to a byte in the parameter's shape, `m.codes` and `v.codes`, and a table of
scale words, `m.scales` and `v.scales`, with a row for each row of the parameter (see _planes.py), as DTensors of the
parameter's mesh and placements, so that torch.distributed.checkpoint can save and load them at any world size. Keys and
shapes do not depend on widths. Coded vectors, and tensors that are cut elsewhere than along their first dimension, have
their moments in float32 instead, as `m.values` and `v.values`; so have float32 states in either form.

The optimizer's own record (stq_adamw_record) is in `param_groups[0]['stquant']`, because torch's tools keep what is there.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch

from . import _binding, _layout, _planes
from ._engine import Engine

RECORD_KEY = "stquant"
_STATES = ("m", "v")


def _to_bytes(struct: ctypes.Structure) -> torch.Tensor:
    return torch.frombuffer(bytearray(bytes(struct)), dtype=torch.uint8)


def _from_bytes(kind: Any, tensor: torch.Tensor, what: str) -> Any:
    data = bytes(tensor.cpu().contiguous().view(torch.uint8).tolist())
    if len(data) != ctypes.sizeof(kind):
        raise ValueError(
            f"{what} of the state dict has {len(data)} bytes instead of {ctypes.sizeof(kind)}: it was written by another "
            "version of stquant."
        )
    return kind.from_buffer_copy(data)


# ---- Local tensors in the order of memory, and back ----


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a dense tensor as they lie in memory."""
    return torch.as_strided(tensor, (tensor.numel(),), (1,))


def _like(local: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_like(local, dtype=dtype, memory_format=torch.preserve_format)


def _shaped(parameter: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    """A tensor like the parameter (a DTensor for a DTensor) with these elements, in the order of memory."""
    local = _layout.local_tensor(parameter)
    values = _like(local.detach(), flat.dtype)
    _flat(values).copy_(flat)
    return _layout.like_parameter(parameter, values)


def _flattened(parameter: torch.Tensor, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The inverse: the local elements in the order of the parameter's memory. Whole tensors are cut for DTensors."""
    local = _layout.local_tensor(parameter)
    own = _layout.local_part(parameter, values)
    if own.shape != local.shape:
        raise ValueError(
            f"The state dict has a state of shape {tuple(values.shape)} for a parameter of shape {tuple(parameter.shape)}."
        )
    target = _like(local.detach(), dtype)
    target.copy_(own)
    return _flat(target)


# ---- Saving ----


def _has_codes(parameter: torch.Tensor) -> bool:
    """True if the portable form of a coded state is codes and scales: what is held here are whole rows."""
    return parameter.dim() >= 2 and parameter.is_contiguous() and _layout.cut_along_rows(parameter)


def _columns(parameter: torch.Tensor) -> int:
    return math.prod(parameter.shape[1:])


def _portable_state(
    engine: Engine, index: int, state: int, arrays: dict[str, torch.Tensor], parameter: Any, coded: bool
) -> dict[str, torch.Tensor]:
    name = _STATES[state]
    count = engine.specs[index].count
    if not coded or not _has_codes(parameter):
        return {f"{name}.values": _shaped(parameter, engine.read_state(index, state))}
    planes = {key[2:]: value for key, value in arrays.items() if key.startswith(name + ".")}
    if planes:
        info = engine.tensor_info(index)
        codes = _planes.unpack(planes, info.v_bits if state else info.m_bits, count)
        scales = planes["scales"]
    else:  # no gradient so far, or nothing held here
        codes = torch.zeros(count, dtype=torch.uint8, device=engine.device)
        scales = torch.zeros(_planes.blocks(count), dtype=torch.int16, device=engine.device)
    columns = _columns(parameter)
    table = _planes.scale_table(scales, count // columns, columns)
    return {
        f"{name}.codes": _shaped(parameter, codes),
        f"{name}.scales": _layout.rows_like_parameter(parameter, table),
    }


def tensor_states(engine: Engine, parameters: list[Any], portable: bool) -> list[dict[str, torch.Tensor]]:
    """The state dictionaries of all parameters."""
    record, tensors = engine.records()
    states = []
    for index, (parameter, arrays) in enumerate(zip(parameters, engine.buffers())):
        entry: dict[str, torch.Tensor] = {
            "step": torch.tensor(float(record.steps - tensors[index].missed)),
            "record": _to_bytes(tensors[index]),
        }
        if portable or _layout.is_sharded(parameter):
            coded = not engine.exempt(index)
            for state in range(2):
                entry.update(_portable_state(engine, index, state, arrays, parameter, coded))
        else:
            entry.update({name: array.clone() for name, array in arrays.items()})
        states.append(entry)
    return states


def optimizer_record(engine: Engine) -> torch.Tensor:
    """The bytes of stq_adamw_record as a uint8 tensor."""
    return _to_bytes(engine.records()[0])


# ---- Loading ----


def _planes_of(parameter: Any, entry: dict[str, torch.Tensor], state: int, bits: int) -> tuple[dict, int]:
    """(planes, their width) of one state in an entry of either form."""
    name = _STATES[state]
    if f"{name}.values" in entry:
        values = entry[f"{name}.values"]
        whole = values.shape == parameter.shape
        return {"values": _flattened(parameter, values, torch.float32) if whole else values.float()}, 32
    if f"{name}.codes" in entry:
        codes = _flattened(parameter, entry[f"{name}.codes"], torch.uint8)
        table = _layout.local_part(parameter, entry[f"{name}.scales"]).to(codes.device)
        columns = _columns(parameter)
        if tuple(table.shape) != (codes.numel() // columns, _planes.table_width(columns)):
            raise ValueError(f"'{name}.scales' of the state dict has shape {tuple(table.shape)}, which no state has.")
        return _planes.from_table(codes, table, columns, bits, state)
    return {key[2:]: value for key, value in entry.items() if key.startswith(name + ".")}, bits


def _write(engine: Engine, index: int, state: int, planes: dict, bits: int, target: dict[str, torch.Tensor]) -> None:
    """Fills one state from planes: copied where names and sizes are the states' own, encoded anew otherwise."""
    name = _STATES[state]
    own = {key[2:]: value for key, value in target.items() if key.startswith(name + ".")}
    same = {key: value.numel() for key, value in own.items()} == {key: value.numel() for key, value in planes.items()}
    shared = "shared" in own
    if shared and not same:
        raise ValueError(f"The shared second moment of parameter '{engine.specs[index].name}' has another size.")
    if same and not shared:
        for key, value in own.items():
            value.copy_(planes[key])
        return
    host = {key: value.cpu().contiguous() for key, value in planes.items()}
    engine.write_state(index, state, host, bits)


def load(engine: Engine, parameters: list[Any], entries: list[dict[str, Any] | None], record: torch.Tensor) -> None:
    """Fills a new engine from the entries of a state dict; None or {} stands for a parameter without a state."""
    own = _from_bytes(_binding.AdamwRecord, record, "The optimizer's record")
    tensors = (_binding.TensorRecord * len(parameters))()
    for index, entry in enumerate(entries):
        if entry:
            tensors[index] = _from_bytes(_binding.TensorRecord, entry["record"], f"Record {index}")
        else:
            tensors[index] = _binding.TensorRecord(missed=own.steps, last_log_n=math.nan)
    saved = [tuple(tensor.bits) for tensor in tensors]
    engine.restore(own, tensors)
    for index, (parameter, entry, target) in enumerate(zip(parameters, entries, engine.buffers())):
        for state in range(2):
            bits = saved[index][state]
            if entry and bits:
                planes, width = _planes_of(parameter, entry, state, bits)
                _write(engine, index, state, planes, width, target)


# ---- Full precision: torch.optim.AdamW's format ----


def full_precision_states(engine: Engine, parameters: list[Any]) -> list[dict[str, torch.Tensor]]:
    """`step`, `exp_avg` and `exp_avg_sq` of all parameters, float32; {} for those that never had a gradient."""
    record, tensors = engine.records()
    states: list[dict[str, torch.Tensor]] = []
    for index, parameter in enumerate(parameters):
        steps = record.steps - tensors[index].missed
        states.append({})
        if steps:
            states[-1] = {
                "step": torch.tensor(float(steps)),
                "exp_avg": _shaped(parameter, engine.read_state(index, 0)),
                "exp_avg_sq": _shaped(parameter, engine.read_state(index, 1)),
            }
    return states


def load_full_precision(engine: Engine, parameters: list[Any], entries: list[dict[str, Any] | None]) -> None:
    """Encodes torch's moments into a new engine, at widths that fit its cap."""
    counts = [int(float(entry["step"])) if entry else 0 for entry in entries]
    steps = max(counts)
    record = _binding.AdamwRecord(version=_binding.CONSTANTS["STQ_RECORD_VERSION"], steps=steps)
    record.seed = engine.settings.seed
    record.log_n_average = record.log_r_average = record.log_n_peak = record.volatility_average = math.nan
    tensors = (_binding.TensorRecord * len(parameters))()
    for tensor, count in zip(tensors, counts):
        tensor.missed = steps - count
        tensor.last_log_n = math.nan
        tensor.bits[:] = tensor.target[:] = [32, 32] if count else [0, 0]
    engine.restore(record, tensors)
    targets = engine.buffers()
    for index, (parameter, entry, count) in enumerate(zip(parameters, entries, counts)):
        if entry and "max_exp_avg_sq" in entry:
            raise ValueError("The state dict is of an AMSGrad run (max_exp_avg_sq), which stquant.AdamW does not do.")
        for state, name in enumerate(("exp_avg", "exp_avg_sq")):
            if entry and count:
                values = {"values": _flattened(parameter, entry[name], torch.float32)}
                _write(engine, index, state, values, 32, targets[index])
