"""The autograd function of fake quantization over the C library, and its settings."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from typing import Any

import torch

from . import _binding
from ._library import STQ_DTYPES, check, library

_CPU = torch.device("cpu")
ESTIMATORS = {"ste": "STQ_QAT_STRAIGHT_THROUGH", "stable": "STQ_QAT_STABLE", "dsq": "STQ_QAT_SOFT"}


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How a weight is fake-quantized: bits 1 to 8; the estimator of its gradient and what that takes; `group` weights of
    a row share a step, 0 for the whole row."""

    bits: int = 4
    estimator: str = "stable"
    amplitudes: tuple[float, ...] = (0.21,)
    softness: float = 0.2
    group: int = 0

    def config(self, cols: int, device: torch.device = _CPU) -> _binding.QatConfig:
        """The library's struct, checked for rows of `cols` weights; ValueError names what is wrong. On a GPU it works on
        the current stream."""
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"There is no estimator {self.estimator!r}; use one of {', '.join(ESTIMATORS)}.")
        most = _binding.CONSTANTS["STQ_QAT_MAX_HARMONICS"]
        if not 1 <= len(self.amplitudes) <= most:
            raise ValueError(f"{len(self.amplitudes)} amplitudes were given; use 1 to {most}.")
        if not 1 <= self.bits <= 8:
            raise ValueError(f"Weights cannot have {self.bits} bits; use 1 to 8.")
        config = library.stq_qat_defaults()
        config.bits = self.bits
        config.estimator = _binding.ESTIMATORS[ESTIMATORS[self.estimator]]
        config.group = self.group
        config.harmonics = len(self.amplitudes)
        config.amplitudes = (ctypes.c_double * most)(*self.amplitudes)
        config.softness = self.softness
        if device.type == "cuda":
            config.device = _binding.DEVICES["STQ_DEVICE_CUDA"]
            config.stream = torch.cuda.current_stream(device).cuda_stream
        check(library.stq_qat_check(ctypes.byref(config), cols))
        return config


def _matrix(weight: torch.Tensor) -> torch.Tensor:
    """The weight as the library reads it: contiguous, rows of outputs."""
    if weight.device.type not in ("cpu", "cuda"):
        raise NotImplementedError(
            f"Fake quantization works on the CPU and on CUDA GPUs; the weight is on {weight.device}. Move the model."
        )
    if weight.dtype not in STQ_DTYPES:
        raise TypeError(f"Weights of type {weight.dtype} cannot be quantized; use float32, bfloat16 or float16.")
    return weight.detach().contiguous()


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Makes a GPU the current one, as the library's passes want it."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _arguments(config: _binding.QatConfig, weight: torch.Tensor, steps: torch.Tensor) -> tuple[Any, Any, int, int, int]:
    """What most functions of the library take after their results: pointers, type, rows and columns."""
    rows, cols = weight.shape
    if steps.device != weight.device:
        raise ValueError(f"The weight is on {weight.device}, its steps are on {steps.device}; move the whole model.")
    if steps.numel() != library.stq_qat_step_count(ctypes.byref(config), rows, cols):
        raise ValueError(f"A weight of {rows} x {cols} does not have {steps.numel()} steps.")
    return weight.data_ptr(), steps.data_ptr(), STQ_DTYPES[weight.dtype], rows, cols


def initial_steps(weight: torch.Tensor, settings: Quantization) -> torch.Tensor:
    """Steps (float32) from the weights: rows, or rows x groups where the settings have groups. Computed on the CPU."""
    matrix = _matrix(weight).cpu()
    rows, cols = matrix.shape
    config = settings.config(cols)
    shape = (rows, cols // settings.group) if settings.group else (rows,)
    steps = torch.empty(shape, dtype=torch.float32)
    check(
        library.stq_qat_initial_steps(
            steps.data_ptr(), ctypes.byref(config), matrix.data_ptr(), STQ_DTYPES[matrix.dtype], rows, cols
        )
    )
    return steps.to(weight.device)


class FakeQuantize(torch.autograd.Function):
    """weight (rows, cols), steps (float32) -> the fake-quantized weight; gradients of both in one pass."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, steps: torch.Tensor, settings: Quantization) -> torch.Tensor:
        matrix, steps = _matrix(weight), steps.detach().contiguous()
        config = settings.config(matrix.shape[1], matrix.device)
        quantized = torch.empty_like(matrix)
        weights, scales, *rest = _arguments(config, matrix, steps)
        with _on(matrix.device):
            check(library.stq_qat_forward(quantized.data_ptr(), ctypes.byref(config), weights, scales, *rest))
        ctx.save_for_backward(matrix, steps)
        ctx.settings = settings
        return quantized

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        matrix, steps = ctx.saved_tensors
        config = ctx.settings.config(matrix.shape[1], matrix.device)
        gradient = gradient.to(matrix.dtype).contiguous()
        weight_gradient, step_gradient = torch.empty_like(matrix), torch.empty_like(steps)
        weights, scales, *rest = _arguments(config, matrix, steps)
        with _on(matrix.device):
            check(
                library.stq_qat_backward(
                    weight_gradient.data_ptr(), step_gradient.data_ptr(), ctypes.byref(config), weights, scales,
                    gradient.data_ptr(), *rest,
                )
            )
        return weight_gradient, step_gradient, None


def pack(weight: torch.Tensor, steps: torch.Tensor, settings: Quantization) -> torch.Tensor:
    """The codes, `bits` bits each without gaps, as a vector of bytes."""
    matrix, steps = _matrix(weight).cpu(), steps.detach().cpu().float().contiguous()
    config = settings.config(matrix.shape[1])
    codes = torch.empty(library.stq_qat_packed_bytes(ctypes.byref(config), *matrix.shape), dtype=torch.uint8)
    weights, scales, *rest = _arguments(config, matrix, steps)
    check(library.stq_qat_pack(codes.data_ptr(), ctypes.byref(config), weights, scales, *rest))
    return codes


def unpack(codes: torch.Tensor, steps: torch.Tensor, settings: Quantization, rows: int, cols: int) -> torch.Tensor:
    """The float32 weight of codes and steps: the bytes that the fake-quantized one had."""
    config = settings.config(cols)
    if codes.numel() != library.stq_qat_packed_bytes(ctypes.byref(config), rows, cols):
        raise ValueError(f"{codes.numel()} bytes are no codes of {rows} x {cols} weights of {settings.bits} bits.")
    weight, steps = torch.empty(rows, cols), steps.float().contiguous()
    _, scales, _, _, _ = _arguments(config, weight, steps)
    check(
        library.stq_qat_unpack(
            weight.data_ptr(), ctypes.byref(config), codes.contiguous().data_ptr(), scales, rows, cols
        )
    )
    return weight
