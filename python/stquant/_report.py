"""What an optimizer tells about itself: bytes, widths, factors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._engine import SHARED_WIDTHS, Engine, TensorSpec, zone_name

if TYPE_CHECKING:
    from .adamw import AdamW


def _coded(engine: Engine) -> list[tuple]:
    """(spec, info) of the tensors that have coded states now."""
    pairs = [(spec, engine.tensor_info(index)) for index, spec in enumerate(engine.specs)]
    return [(spec, info) for spec, info in pairs if 2 <= info.m_bits <= 8]


def _v_bits(spec: TensorSpec, info: Any) -> float:
    """Bits a value of the second moment; a shared one has a float32 for each row or column."""
    if info.v_bits == SHARED_WIDTHS["row"]:
        return 32 / spec.cols
    if info.v_bits == SHARED_WIDTHS["column"]:
        return 32 / spec.rows
    return info.v_bits


def telemetry(engine: Engine) -> dict[str, float]:
    """See AdamW.telemetry."""
    usage = engine.usage()
    coded = _coded(engine)
    v_bits = [_v_bits(spec, info) for spec, info in coded]
    elements = sum(spec.count for spec, _ in coded) or 1
    numbers: dict[str, float] = {
        "step": engine.steps,
        "skipped_steps": engine.skipped,
        "gradient_norm": engine.gradient_norm(),
        "state_bytes": usage.state_bytes,
        "peak_state_bytes": usage.peak_bytes,
        "state_bits": usage.final_bits,
        "mean_state_bits": usage.all_in_bits,
        "mean_m_bits": sum(info.m_bits * spec.count for spec, info in coded) / elements,
        "mean_v_bits": sum(bits * spec.count for bits, (spec, _) in zip(v_bits, coded)) / elements,
    }
    for bits, (spec, info) in zip(v_bits, coded):
        numbers[f"m_bits/{spec.name}"] = info.m_bits
        numbers[f"v_bits/{spec.name}"] = bits
        numbers[f"n/{spec.name}"] = info.factors.n
        numbers[f"r/{spec.name}"] = info.factors.r
    return numbers


def _size(count: float) -> str:
    """Bytes with a binary unit, three digits or more."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _width_name(bits: int) -> str:
    return {SHARED_WIDTHS["row"]: "row", SHARED_WIDTHS["column"]: "col"}.get(bits, str(bits))


def _row(name: str, elements: int, m_bits: str, v_bits: str, bits: str, size: str, zone: str) -> str:
    return f"{name:<44.44} {elements:>13} {m_bits:>3} {v_bits:>3} {bits:>8} {size:>11}  {zone}".rstrip()


def memory_summary(optimizer: AdamW) -> str:
    """A table of the optimizer's states: for every tensor elements, widths, bits per state value and bytes; then the
    total with everything included, the peak, the cap, and what float32 states would take. Bytes are those of this
    process. Before the first step all widths are 0.

    Arguments:
        optimizer: a stquant.AdamW.
    """
    engine = optimizer._open()
    lines = [_row("tensor", "elements", "m", "v", "bits", "bytes", "zone")]
    for index, spec in enumerate(engine.specs):
        info = engine.tensor_info(index)
        bits = 4 * info.bytes / spec.count if spec.count else 0.0
        lines.append(
            _row(spec.name, spec.count, str(info.m_bits), _width_name(info.v_bits), f"{bits:.2f}", _size(info.bytes),
                 zone_name(info.zone))
        )
    usage = engine.usage()
    float32 = 8 * usage.parameters
    lines += [
        f"all states         {_size(usage.state_bytes):>11}  {usage.final_bits:.3f} bits a value, records and padding included",
        f"peak               {_size(usage.peak_bytes):>11}  {usage.peak_bits:.3f} bits a value",
        f"cap                {_size(usage.cap_bytes):>11}  of the whole model" if usage.cap_bytes else "cap                       none",
        f"float32 would be   {_size(float32):>11}  {100 * (1 - usage.peak_bytes / max(float32, 1)):.1f} % saved at the peak",
    ]
    return "\n".join(lines)
