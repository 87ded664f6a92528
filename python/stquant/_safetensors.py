"""Safetensors files: written whole or not at all, read without trust. Nothing but torch is needed."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

import torch

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}
NAMES = {value: key for key, value in TYPES.items()}
_LONGEST_HEADER = 100_000_000


def replace_file(path: str | os.PathLike, write: Any) -> None:
    """Calls `write` with a file under a temporary name beside `path`, which then takes the place of `path`: an existing file is
    replaced by a whole one or not at all."""
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def write_safetensors(
    path: str | os.PathLike, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None, align: int = 64
) -> None:
    """Writes tensors under their names, under a temporary name first: an existing file is replaced by a whole one or not at all.
    The data begins at a multiple of `align`.

    Raises:
        ValueError: a type that the format has no name for. OSError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    ordered = sorted(tensors, key=lambda name: -tensors[name].element_size())  # each aligned to its own size
    for name in ordered:
        tensor = tensors[name]
        if tensor.dtype not in NAMES:
            raise ValueError(f"'{name}' has the type {tensor.dtype}, which safetensors files do not have.")
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % align)

    def write(file: Any) -> None:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in ordered:
            data = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            file.write(memoryview(data.numpy()))

    replace_file(path, write)


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
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: no JSON header at offset 8: {error}") from None
        if not isinstance(header, dict):
            raise ValueError(f"{path}: no JSON object at offset 8.")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError(f"{path}: __metadata__ is no object of strings (in the header at offset 8).")
        return {name: _read_tensor(file, path, name, entry, 8 + length, size) for name, entry in header.items()}, metadata


def _read_tensor(file: Any, path: Any, name: str, entry: Any, start: int, size: int) -> torch.Tensor:
    try:
        dtype, shape, (begin, end) = TYPES[entry["dtype"]], list(entry["shape"]), entry["data_offsets"]
        count = 1
        for extent in shape:
            count *= extent
        sound = all(type(number) is int for number in (*shape, begin, end))
        sound = sound and min(shape, default=0) >= 0 and 0 <= begin <= end <= size - start
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
