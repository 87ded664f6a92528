"""What DTensor parameters need besides a step: global norm, global factors. Everything else is local.

Norm: sums of squares in double, added over the mesh. Factors, at decision steps only: each gradient is gathered once and
measured by one rank; the eight numbers of every tensor are then added over the mesh, to which the others contributed
zeros. So every rank has the same bits, and they are those of the unsharded gradient.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
import torch.distributed as dist

from . import _binding, _layout
from ._engine import Engine, score_factors

_FACTOR_COUNT = len(_binding.Factors._fields_)


def local_gradient(parameter: Any, gradient: Any) -> torch.Tensor:
    """The part of a gradient that belongs to the parameter's local shard."""
    if _layout.is_sharded(gradient) and gradient.placements != parameter.placements:
        gradient = gradient.redistribute(parameter.device_mesh, parameter.placements)
    return _layout.local_tensor(gradient)


def _sharded_dimensions(parameter: Any) -> tuple[int, ...]:
    """Mesh dimensions over which a parameter is split; over the others its gradient is the same everywhere."""
    return tuple(index for index, placement in enumerate(parameter.placements) if not placement.is_replicate())


def _add_over_mesh(sums: torch.Tensor, mesh: Any, dimensions: tuple[int, ...]) -> None:
    for dimension in dimensions:
        dist.all_reduce(sums, group=mesh.get_group(dimension))


def global_norm(parameters: list[Any], gradients: list[torch.Tensor | None], device: torch.device) -> torch.Tensor:
    """2-norm over all gradients of all ranks, a float64 scalar on the device; not finite if an element is not."""
    parts: dict[Any, tuple[Any, tuple[int, ...], list[torch.Tensor]]] = {}
    for parameter, gradient in zip(parameters, gradients):
        if gradient is None:
            continue
        sharded = _layout.is_sharded(parameter)
        mesh = parameter.device_mesh if sharded else None
        dimensions = _sharded_dimensions(parameter) if sharded else ()
        parts.setdefault((mesh, dimensions), (mesh, dimensions, []))[2].append(gradient)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for mesh, dimensions, own in parts.values():
        filled = [gradient for gradient in own if gradient.numel() > 0]
        norms = torch._foreach_norm(filled, 2.0, dtype=torch.float64) if filled else []
        sums = torch.stack(norms).square().sum() if norms else torch.zeros_like(total)
        _add_over_mesh(sums, mesh, dimensions)
        total += sums
    return total.sqrt()


def _is_owner(index: int, mesh: Any) -> bool:
    """True on the one rank of a mesh that measures tensor `index`."""
    place = 0
    for size, coordinate in zip(mesh.shape, mesh.get_coordinate()):
        place = place * size + coordinate
    return index % mesh.size() == place


def _factors_of(engine: Engine, index: int, gradient: torch.Tensor, unscale: float) -> torch.Tensor:
    whole = gradient.cpu().contiguous()
    found = score_factors(engine.specs[index], whole, unscale, engine.settings.threads)
    return torch.tensor([getattr(found, name) for name, _ in _binding.Factors._fields_], dtype=torch.float64)


def global_factors(engine: Engine, parameters: list[Any], unscale: float) -> ctypes.Array:
    """Factors of every gradient that the library will ask for, the same on all ranks."""
    rows = torch.zeros(len(parameters), _FACTOR_COUNT, dtype=torch.float64)
    by_mesh: dict[Any, list[int]] = {}
    for index, (parameter, spec) in enumerate(zip(parameters, engine.specs)):
        if parameter.grad is None or spec.rows == 1 or spec.cols == 1 or spec.m_bits == 32:
            continue
        gradient = parameter.grad
        if not _layout.is_sharded(gradient):
            rows[index] = _factors_of(engine, index, gradient, unscale)
            continue
        by_mesh.setdefault(gradient.device_mesh, []).append(index)
        gradient = gradient.full_tensor()
        if _is_owner(index, parameter.device_mesh):
            rows[index] = _factors_of(engine, index, gradient, unscale)
    for mesh, indices in by_mesh.items():
        part = rows[indices].to(engine.device)
        _add_over_mesh(part, mesh, tuple(range(mesh.ndim)))
        rows[indices] = part.cpu()
    factors = (_binding.Factors * len(parameters))()
    for entry, row in zip(factors, rows.tolist()):
        for (name, _), value in zip(_binding.Factors._fields_, row):
            setattr(entry, name, value)
    return factors


def supply(engine: Engine, parameters: list[Any], gradients: list[torch.Tensor | None], scale: Any) -> list[Any]:
    """Puts the global norm and, at decision steps, the global factors into the step; returns what must outlive it."""
    norm = global_norm(parameters, gradients, engine.device)
    if scale is not None:
        norm = norm / scale.to(torch.float64).reshape(())
    given = engine.step_input
    given.norm_supplied = True
    given.norm_pointer = norm.data_ptr()
    given.factors = None
    kept: list[Any] = [norm]
    if engine.settings.policy in ("zones", "rate-distortion") and engine.decision_due() and math.isfinite(norm.item()):
        unscale = 1.0 if scale is None else 1.0 / scale.item()
        factors = global_factors(engine, parameters, unscale)
        given.factors = factors
        kept.append(factors)
    return kept
