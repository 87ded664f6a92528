"""How a parameter lies in memory: its folded global shape, the slice that this process holds, and its local tensor.

A DTensor (FSDP2's fully_shard, tensor parallelism) is a slice of a global tensor; everything else is whole.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch

from ._engine import TensorSpec


def is_sharded(tensor: Any) -> bool:
    """True for DTensors. Their module is not imported for this: where it was not, there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The elements that this process holds."""
    if not is_sharded(tensor):
        return tensor
    local = tensor._local_tensor
    wait = getattr(local, "wait", None)  # the result of a collective that may still run
    return wait() if wait else local


def is_dense(tensor: torch.Tensor) -> bool:
    """True if the elements lie one after the other, in whatever order of dimensions."""
    return torch.ops.aten.is_non_overlapping_and_dense(tensor)


def _memory_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> list[int]:
    """Sizes other than 1 in the order of memory, outermost first: channels-last or transposed weights fold as they lie."""
    sizes = [(stride, -index, size) for index, (size, stride) in enumerate(zip(shape, strides)) if size != 1]
    return [size for _, _, size in sorted(sizes, reverse=True)]


def fold(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int]:
    """(rows, cols) of a tensor: its outermost dimension by all others; (1, n) for vectors and scalars."""
    if 0 in shape:
        return 1, 1
    sizes = _memory_order(shape, strides)
    if len(sizes) < 2:
        return 1, math.prod(sizes)
    return sizes[0], math.prod(sizes[1:])


def _slice_of(tensor: Any) -> tuple[int, bool]:
    """Index of the first element of a DTensor's local shard in the row-major global tensor, and whether the shard is
    a contiguous range of it."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape = tuple(tensor.shape)
    local, offset = compute_local_shape_and_global_offset(shape, tensor.device_mesh, tensor.placements)
    first, stride = 0, 1
    for size, start in zip(reversed(shape), reversed(tuple(offset))):
        first += start * stride
        stride *= size
    count = math.prod(local)
    contiguous = tuple(local[1:]) == shape[1:]
    # Where nothing is held, or the range is none, the index only has to be inside the tensor.
    return min(first, max(math.prod(shape) - count, 0)), contiguous


def contiguous_range(tensor: torch.Tensor) -> bool:
    """True if the local elements are a contiguous range of the global tensor, as with Shard(0) and Replicate()."""
    return not is_sharded(tensor) or _slice_of(tensor)[1]


def describe(parameter: torch.Tensor, name: str, group: int, bits: tuple[int, int], depth: float) -> TensorSpec:
    """The parameter's entry in the library's list of tensors."""
    local = local_tensor(parameter)
    rows, cols = fold(tuple(parameter.shape), tuple(parameter.stride()))
    first = _slice_of(parameter)[0] if is_sharded(parameter) else 0
    return TensorSpec(
        name=name,
        rows=rows,
        cols=cols,
        first=first,
        count=local.numel(),
        dtype=parameter.dtype,
        group=group,
        m_bits=bits[0],
        v_bits=bits[1],
        depth=depth,
    )


# ---- Tensors that are sharded as a parameter is ----


def like_parameter(parameter: Any, local: torch.Tensor) -> torch.Tensor:
    """`local` as a DTensor of the parameter's shape, mesh and placements; itself where the parameter is none."""
    if not is_sharded(parameter):
        return local
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def rows_like_parameter(parameter: Any, local: torch.Tensor) -> torch.Tensor:
    """`local` as a matrix with a row for each row of the parameter, sharded as those are."""
    if not is_sharded(parameter):
        return local
    from torch.distributed.tensor import DTensor

    columns = local.shape[1]
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=torch.Size((parameter.shape[0], columns)),
        stride=(columns, 1),
    )


def local_part(parameter: Any, values: torch.Tensor) -> torch.Tensor:
    """What this process holds of a DTensor, or of a whole tensor that belongs to a DTensor parameter."""
    if is_sharded(values):
        if values.placements != parameter.placements:
            values = values.redistribute(parameter.device_mesh, parameter.placements)
        return local_tensor(values)
    if not is_sharded(parameter) or values.shape == local_tensor(parameter).shape:
        return values
    from torch.distributed.tensor import distribute_tensor

    values = values.to(local_tensor(parameter).device)
    return local_tensor(distribute_tensor(values, parameter.device_mesh, parameter.placements, src_data_rank=None))


def cut_along_rows(parameter: torch.Tensor) -> bool:
    """True if every process holds whole rows: not sharded, or along the first dimension only."""
    if not is_sharded(parameter):
        return True
    return all(placement.is_replicate() or placement.is_shard(0) for placement in parameter.placements)
