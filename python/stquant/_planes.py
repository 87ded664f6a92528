"""Codes one to a byte and scale words by rows: the form in which a state can be cut along any row, at any width.

The planes are those of stquant/quant.h: the most significant bits of a code in a nibble (widths 4 to 8) or a pair (2 and
3), each further bit in a plane of its own, most significant first, blocks of 128 values padded with zeros.
"""

from __future__ import annotations

import ctypes

import torch

from . import _binding
from ._library import check, library

BLOCK = _binding.CONSTANTS["STQ_BLOCK"]
_CHUNK = 1 << 20  # values decoded at once


def blocks(count: int) -> int:
    """Blocks that `count` values take."""
    return (count + BLOCK - 1) // BLOCK


def _base_bits(bits: int) -> int:
    return 4 if bits >= 4 else 2


def _spread(plane: torch.Tensor, width: int) -> torch.Tensor:
    """The fields of `width` bits of every byte, lowest first."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=plane.device)
    return ((plane[:, None] >> shifts) & ((1 << width) - 1)).flatten()


def _gather(fields: torch.Tensor, width: int) -> torch.Tensor:
    """Bytes whose fields of `width` bits are the values of `fields`, lowest first."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=fields.device)
    return (fields.view(-1, 8 // width) << shifts).sum(dim=1, dtype=torch.uint8)


def unpack(planes: dict[str, torch.Tensor], bits: int, count: int) -> torch.Tensor:
    """`count` codes as uint8 out of `base`, `bit0`, ..."""
    codes = _spread(planes["base"], _base_bits(bits))
    for place in range(bits - _base_bits(bits)):
        codes = codes << 1 | _spread(planes[f"bit{place}"], 1)
    return codes[:count]


def pack(codes: torch.Tensor, bits: int) -> dict[str, torch.Tensor]:
    """The planes `base`, `bit0`, ... of flat uint8 codes."""
    padded = torch.zeros(blocks(codes.numel()) * BLOCK, dtype=torch.uint8, device=codes.device)
    padded[: codes.numel()] = codes
    further = bits - _base_bits(bits)
    planes = {"base": _gather(padded >> further, _base_bits(bits))}
    for place in range(further):
        planes[f"bit{place}"] = _gather(padded >> (further - 1 - place) & 1, 1)
    return planes


# ---- Scale words by rows ----
#
# Blocks run over the elements that a process holds, across the ends of rows. A row of the table therefore has the place of
# the row's first element in its block (the phase), and then the scale words of the blocks that the row touches.


def table_width(columns: int) -> int:
    """Columns of the table for rows of `columns` values. Rows of whole blocks always begin with a block."""
    if columns % BLOCK == 0:
        return 1 + columns // BLOCK
    return 1 + (columns + BLOCK - 2) // BLOCK + 1


def _row_blocks(rows: int, columns: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(phase of each row, indices (rows, table_width - 1) of the blocks it touches, the last one repeated)."""
    start = torch.arange(rows, device=device) * columns
    first, last = start // BLOCK, (start + columns - 1) // BLOCK
    steps = torch.arange(table_width(columns) - 1, device=device)
    return start % BLOCK, torch.minimum(first[:, None] + steps, last[:, None])


def scale_table(scales: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The table (rows, table_width(columns)), int16, of the scale words of rows x columns values."""
    phase, touched = _row_blocks(rows, columns, scales.device)
    return torch.cat([phase.to(torch.int16)[:, None], scales[touched]], dim=1)


def from_table(codes: torch.Tensor, table: torch.Tensor, columns: int, bits: int, state: int) -> tuple[dict, int]:
    """(planes, their width) of flat codes and their table: planes and scales of `bits` bits where the blocks here are the
    blocks of the table, else float32 `values` (width 32): the rows have come into other blocks."""
    rows = table.shape[0]
    phase, touched = _row_blocks(rows, columns, table.device)
    if torch.equal(phase.to(torch.int16), table[:, 0]):
        planes = pack(codes, bits)
        planes["scales"] = torch.zeros(blocks(rows * columns), dtype=torch.int16, device=table.device)
        planes["scales"][touched] = table[:, 1:]
        return planes, bits
    codes, table = codes.cpu().view(rows, columns), table.cpu()
    chunk = max(_CHUNK // columns, 1)
    parts = [
        _decode_rows(codes[at : at + chunk], table[at : at + chunk], bits, state) for at in range(0, rows, chunk)
    ]
    return {"values": torch.cat(parts)}, 32


def _decode_rows(codes: torch.Tensor, table: torch.Tensor, bits: int, state: int) -> torch.Tensor:
    """Values of some rows, flat: each row is laid into blocks of its own, behind its phase."""
    rows, columns = codes.shape
    width = (table.shape[1] - 1) * BLOCK
    places = table[:, :1].long() + torch.arange(columns)
    padded = torch.zeros(rows, width, dtype=torch.uint8).scatter_(1, places, codes)
    planes = pack(padded.flatten(), bits)
    scales = table[:, 1:].contiguous()
    source = _binding.Planes(base=planes["base"].data_ptr(), scales=scales.data_ptr(), bits=bits)
    for place in range(bits - _base_bits(bits)):
        source.bit[place] = planes[f"bit{place}"].data_ptr()
    values = torch.empty(rows, width, dtype=torch.float32)
    check(library.stq_decode(values.data_ptr(), ctypes.byref(source), state, values.numel()))
    return values.gather(1, places).flatten()
