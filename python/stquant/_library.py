"""Finds and loads libstquant, and turns its statuses into exceptions."""

from __future__ import annotations

import ctypes
import os
import pathlib

import torch  # first: it brings the OpenMP runtime that the library shares with it

from . import _binding

_FOLDER = pathlib.Path(__file__).resolve().parent


class CapTooSmallError(ValueError):
    """The cap on the state bytes is below the smallest possible one, which the message names."""


_EXCEPTIONS = {
    "STQ_INVALID_ARGUMENT": ValueError,
    "STQ_OUT_OF_MEMORY": MemoryError,
    "STQ_CAP_TOO_SMALL": CapTooSmallError,
    "STQ_UNSUPPORTED": NotImplementedError,
    "STQ_IO_ERROR": OSError,
    "STQ_CORRUPT": ValueError,
    "STQ_COMMUNICATION": RuntimeError,
    "STQ_DEVICE_ERROR": RuntimeError,
}
_BY_STATUS = {_binding.STATUSES[name]: exception for name, exception in _EXCEPTIONS.items()}


def _candidates() -> list[str]:
    """Where the library may be: the environment's word, the wheel's own copy, what the system knows."""
    chosen = os.environ.get("STQUANT_LIBRARY")
    if chosen:
        return [chosen]
    return [str(_FOLDER / "libstquant.so"), "libstquant.so.0.1"]


def _open(path: str) -> ctypes.CDLL:
    """Loads one file. Where neither torch nor the system offers an OpenMP runtime of gcc's name, the wheel's is used."""
    try:
        return ctypes.CDLL(path)
    except OSError as error:
        bundled = _FOLDER / "libgomp.so.1"
        if "libgomp" not in str(error) or not bundled.exists():
            raise
    ctypes.CDLL(str(bundled), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(path)


def _load() -> ctypes.CDLL:
    problems = []
    for path in _candidates():
        try:
            library = _open(path)
            _binding.declare(library)
        except (OSError, AttributeError) as error:
            problems.append(f"{path}: {error}")
            continue
        return library
    raise ImportError(
        "libstquant could not be loaded; install the package with pip, or set STQUANT_LIBRARY to the library's path. "
        + "; ".join(problems)
    )


library = _load()


def version() -> str:
    """Version of the loaded library."""
    return library.stq_version().decode()


def check(status: int) -> None:
    """Raises what a status other than STQ_OK means, with the library's sentence."""
    if status != 0:
        raise _BY_STATUS.get(status, RuntimeError)(library.stq_last_error().decode())


STQ_DTYPES = {
    torch.float32: _binding.DTYPES["STQ_FLOAT32"],
    torch.bfloat16: _binding.DTYPES["STQ_BFLOAT16"],
    torch.float16: _binding.DTYPES["STQ_FLOAT16"],
}
