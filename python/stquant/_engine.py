"""One stq_adamw of the library, its memory out of torch's allocator."""

from __future__ import annotations

import ctypes
import math
import weakref
from dataclasses import dataclass
from typing import Any, Sequence

import torch

from . import _binding
from ._library import STQ_DTYPES, check, library


# Widths of a second moment that is one mean a row, or a column.
SHARED_WIDTHS = {
    "row": _binding.CONSTANTS["STQ_BITS_SHARED_ROW"],
    "column": _binding.CONSTANTS["STQ_BITS_SHARED_COL"],
}
_ELEMENTS = {1: torch.uint8, 2: torch.int16, 4: torch.float32}


@dataclass(frozen=True)
class TensorSpec:
    """One parameter as the library sees it: the global shape folded to two dimensions, and the slice held here."""

    name: str
    rows: int
    cols: int
    first: int
    count: int
    dtype: torch.dtype
    group: int
    m_bits: int
    v_bits: int
    depth: float

    @property
    def whole(self) -> bool:
        """True if the slice is the tensor."""
        return self.count == self.rows * self.cols


@dataclass(frozen=True)
class Settings:
    """What an optimizer is created with, beyond its tensors and groups. Units as in stquant.AdamW."""

    policy: str
    state_bits: float
    cap_bytes: int
    cap_mode: str
    fixed_bits: tuple[int, int]
    lowest_bits: int
    highest_bits: int
    decide_every: int
    decision_delay: int | None
    planned_steps: int
    shared_v: bool
    annealing: float
    error_compensation: float
    exempt_below: int
    seed: int
    threads: int


def is_exempt(spec: TensorSpec, settings: Settings) -> bool:
    """True if the tensor keeps float32 states, by the library's rule."""
    if settings.policy == "float32" or spec.m_bits == 32:
        return True
    small = spec.rows == 1 or spec.cols == 1 or spec.rows * spec.cols < settings.exempt_below
    return spec.m_bits == 0 and small


class TorchMemory:
    """Allocator callbacks that hand out the storage of torch tensors, so that torch counts the bytes."""

    GRANULARITY = {"cpu": 64, "cuda": 512}

    def __init__(self, device: torch.device):
        self.device = device
        self.tensors: dict[int, tuple[torch.Tensor, Any]] = {}
        self.error: BaseException | None = None
        self.struct = _binding.Allocator(
            context=None,
            allocate=_binding.Allocator.ALLOCATE(self._allocate),
            release=_binding.Allocator.RELEASE(self._release),
            granularity=self.GRANULARITY[device.type],
        )

    def _stream(self) -> Any:
        return torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None

    def _allocate(self, _context: Any, size: int) -> int | None:
        try:
            tensor = torch.empty(size, dtype=torch.uint8, device=self.device)
        except Exception as error:  # an exception cannot pass through C; the status that C returns stands for it
            self.error = error
            return None
        self.tensors[tensor.data_ptr()] = (tensor, self._stream())
        return tensor.data_ptr()

    def _release(self, _context: Any, pointer: int, _size: int) -> None:
        tensor, stream = self.tensors.pop(pointer)
        # The kernels that used it were enqueued on the present stream; its memory must not be reused before they end.
        if stream is not None and stream != self._stream():
            tensor.record_stream(self._stream())

    def tensor(self, pointer: int, size: int) -> torch.Tensor:
        """The `size` bytes at `pointer`, which lie in one allocation, as a uint8 tensor that shares them."""
        start = pointer if pointer in self.tensors else max(address for address in self.tensors if address <= pointer)
        whole = self.tensors[start][0]
        return whole[pointer - start : pointer - start + size]


def decision_delay(settings: Settings, device: torch.device) -> int:
    """Steps that a decision is put off by: where nothing else is asked for, two on a GPU, which then never waits for it."""
    if settings.decision_delay is not None:
        return settings.decision_delay
    return 2 if device.type == "cuda" else 0


def _policy_config(settings: Settings, device: torch.device) -> _binding.PolicyConfig:
    config = library.stq_policy_defaults()
    kind = "STQ_POLICY_" + settings.policy.upper().replace("-", "_")
    mode = "STQ_CAP_" + settings.cap_mode.upper()
    if kind not in _binding.POLICIES:
        names = ", ".join(repr(name[11:].lower().replace("_", "-")) for name in _binding.POLICIES)
        raise ValueError(f"There is no policy {settings.policy!r}; use one of {names}.")
    if mode not in _binding.CAP_MODES:
        raise ValueError(f"There is no cap_mode {settings.cap_mode!r}; use 'peak' or 'mean'.")
    config.kind = _binding.POLICIES[kind]
    config.cap_mode = _binding.CAP_MODES[mode]
    config.state_bits = settings.state_bits
    config.cap_bytes = settings.cap_bytes
    config.fixed_m_bits, config.fixed_v_bits = settings.fixed_bits
    config.lowest_bits = settings.lowest_bits
    config.highest_bits = settings.highest_bits
    config.decide_every = settings.decide_every
    config.decision_delay = decision_delay(settings, device)
    config.planned_steps = settings.planned_steps
    config.shared_v = _binding.SHARED_MODES["STQ_SHARED_AUTO" if settings.shared_v else "STQ_SHARED_OFF"]
    config.annealing = settings.annealing
    return config


def _config(
    settings: Settings, groups: Sequence[tuple], device: torch.device, memory: TorchMemory | None
) -> _binding.AdamwConfig:
    config = library.stq_adamw_defaults()
    config.groups = (_binding.AdamwGroup * len(groups))(*groups)
    config.group_count = len(groups)
    config.policy = _policy_config(settings, device)
    config.seed = settings.seed
    config.error_compensation = settings.error_compensation
    config.exempt_below = settings.exempt_below
    config.threads = settings.threads
    config.device = _binding.DEVICES["STQ_DEVICE_" + device.type.upper()]
    config.device_index = device.index or 0
    if memory is not None:
        config.allocator = ctypes.pointer(memory.struct)
    return config


def _tensor_array(specs: Sequence[TensorSpec]) -> ctypes.Array:
    return (_binding.Tensor * len(specs))(
        *(
            _binding.Tensor(
                name=spec.name.encode(),
                rows=spec.rows,
                cols=spec.cols,
                first=spec.first,
                count=spec.count,
                parameter_type=STQ_DTYPES[spec.dtype],
                gradient_type=STQ_DTYPES[spec.dtype],
                group=spec.group,
                m_bits=spec.m_bits,
                v_bits=spec.v_bits,
                depth=spec.depth,
            )
            for spec in specs
        )
    )


def plan(
    settings: Settings, groups: Sequence[tuple], specs: Sequence[TensorSpec], device: torch.device
) -> _binding.Memory:
    """Bytes that such an optimizer would take; raises what creating it would raise, and allocates nothing."""
    config = _config(settings, groups, device, None)
    granularity = _binding.Allocator(granularity=TorchMemory.GRANULARITY[device.type])
    granularity.allocate = _binding.Allocator.ALLOCATE(lambda context, size: None)
    granularity.release = _binding.Allocator.RELEASE(lambda context, pointer, size: None)
    config.allocator = ctypes.pointer(granularity)
    memory = _binding.Memory()
    check(library.stq_adamw_plan(config, _tensor_array(specs), len(specs), memory))
    return memory


class Engine:
    """A handle on a stq_adamw, destroyed with this object. Methods raise what the library refuses."""

    def __init__(
        self, settings: Settings, groups: Sequence[tuple], specs: Sequence[TensorSpec], device: torch.device
    ):
        self.specs = list(specs)
        self.dtypes = [spec.dtype for spec in specs]
        self.settings = settings
        self.device = device
        self.memory = TorchMemory(device)
        self._groups = list(groups)
        config = _config(settings, groups, device, self.memory)
        handle = ctypes.c_void_p()
        self._call(library.stq_adamw_create(handle, config, _tensor_array(specs), len(specs)))
        self.handle = handle
        # The finalizer holds the memory: the library gives its planes back through it.
        self._finalizer = weakref.finalize(self, _destroy, handle, self.memory)
        count = len(specs)
        self.parameters = (ctypes.c_void_p * count)()
        self.gradients = (ctypes.c_void_p * count)()
        self.step_input = _binding.Step(
            size=ctypes.sizeof(_binding.Step),
            parameters=ctypes.addressof(self.parameters),
            gradients=ctypes.addressof(self.gradients),
            unscale=1.0,
        )
        self.result = _binding.StepResult(gradient_norm=math.nan)
        self.expected_steps = 0
        self.only_enqueues = False
        self.use_current_stream()

    def _call(self, status: int) -> None:
        error, self.memory.error = self.memory.error, None
        if status != 0 and error is not None:
            raise error
        check(status)

    def step(self) -> None:
        """One step with self.step_input, whose arrays the caller has filled. On a GPU the outcome is not asked for, because
        the library would wait for the device."""
        on_cpu = self.device.type == "cpu"
        expected = on_cpu or self.expects_decision()
        self._call(library.stq_adamw_step(self.handle, self.step_input, self.result if on_cpu else None))
        self.expected_steps += not (on_cpu and self.result.skipped)
        if expected:
            self.only_enqueues = self._only_enqueues()

    def expects_decision(self) -> bool:
        """True if the next step may have to do with a decision: gradients are measured, a decision is put off, widths
        change; should no step have been skipped that the host does not know of."""
        step = self.expected_steps + 1
        return not self.only_enqueues or step in (1, 10, 30) or step % self.settings.decide_every == 0

    def _only_enqueues(self) -> bool:
        only = ctypes.c_bool()
        self._call(library.stq_adamw_only_enqueues(self.handle, only))
        return only.value

    def decision_under_way(self) -> bool:
        """True if the next step has to do with a decision, by the counts that the library has."""
        self.only_enqueues = self._only_enqueues()
        return not self.only_enqueues

    def decision_due(self) -> bool:
        """True if the next step measures its gradients for a decision, and reads the factors that it is given."""
        due = ctypes.c_bool()
        self._call(library.stq_adamw_decision_due(self.handle, due))
        return due.value

    def use_current_stream(self) -> None:
        """Has the library work on torch's current stream of this GPU; nothing on a CPU."""
        if self.device.type == "cuda":
            stream = torch.cuda.current_stream(self.device).cuda_stream
            self.step_input.stream = stream
            self._call(library.stq_adamw_set_stream(self.handle, stream))

    def changed_groups(self, groups: Sequence[tuple]) -> list[int]:
        """Indices of the groups whose values are not those that the library has."""
        return [index for index, group in enumerate(groups) if group != self._groups[index]]

    def set_group(self, index: int, group: tuple) -> None:
        """Hands over (learning rate, beta1, beta2, epsilon, weight decay) of a group."""
        self._call(library.stq_adamw_set_group(self.handle, index, _binding.AdamwGroup(*group)))
        self._groups[index] = group

    def usage(self) -> _binding.Memory:
        """Byte counts of the states."""
        memory = _binding.Memory()
        self._call(library.stq_adamw_memory(self.handle, memory))
        return memory

    def tensor_info(self, index: int) -> _binding.TensorInfo:
        """Widths, bytes, zone and factors of one tensor."""
        info = _binding.TensorInfo()
        self._call(library.stq_adamw_tensor(self.handle, index, info))
        return info

    def digest(self) -> int:
        """64-bit digest of all states."""
        value = ctypes.c_uint64()
        self._call(library.stq_adamw_digest(self.handle, value))
        return value.value

    @property
    def steps(self) -> int:
        """Steps made, skipped ones not counted. Waits for steps that a GPU has not finished."""
        self.expected_steps = library.stq_adamw_step_count(self.handle)
        return self.expected_steps

    @property
    def skipped(self) -> int:
        """Steps skipped because a gradient was not finite."""
        return library.stq_adamw_skipped_count(self.handle)

    # ---- State access ----

    def exempt(self, index: int) -> bool:
        """True if a tensor keeps float32 states."""
        return is_exempt(self.specs[index], self.settings)

    def records(self) -> tuple[_binding.AdamwRecord, ctypes.Array]:
        """What the optimizer remembers besides its buffers: one record of its own, one for each tensor."""
        record = _binding.AdamwRecord()
        tensors = (_binding.TensorRecord * len(self.specs))()
        self._call(library.stq_adamw_save_records(self.handle, record, tensors, len(tensors)))
        return record, tensors

    def restore(self, record: _binding.AdamwRecord, tensors: ctypes.Array) -> bool:
        """Puts records back and allocates planes, whose contents the caller writes; `tensors` receives the widths.
        Returns True if widths had to change to fit this optimizer's cap and policy."""
        changed = ctypes.c_bool()
        self._call(library.stq_adamw_fit(self.handle, record, tensors, len(tensors), changed))
        self._call(library.stq_adamw_restore(self.handle, record, tensors, len(tensors)))
        self.expected_steps = record.steps
        self.only_enqueues = False
        return changed.value

    def buffers(self) -> list[dict[str, torch.Tensor]]:
        """For each tensor its state arrays by name (`m.base`, `v.scales`, ...), sharing the states' memory: uint8
        planes, int16 scale words (bit patterns of uint16), float32 values."""
        count = ctypes.c_size_t()
        self._call(library.stq_adamw_buffers(self.handle, None, 0, count))
        found = (_binding.Buffer * count.value)()
        self._call(library.stq_adamw_buffers(self.handle, found, len(found), count))
        arrays: list[dict[str, torch.Tensor]] = [{} for _ in self.specs]
        for buffer in found:
            name = library.stq_part_name(buffer.state, buffer.part).decode()
            tensor = self.memory.tensor(buffer.data, buffer.bytes).view(_ELEMENTS[buffer.element_size])
            arrays[buffer.index][name] = tensor
        return arrays

    def read_state(self, index: int, state: int) -> torch.Tensor:
        """One moment of the elements held here, decoded: float32 in host memory, flat in the parameter's memory order.
        `state` is 0 for the first moment and 1 for the second."""
        spec = self.specs[index]
        values = torch.empty(spec.count, dtype=torch.float32)
        if spec.count:
            self._call(
                library.stq_adamw_read_state(self.handle, index, state, values.data_ptr(), spec.first, spec.count)
            )
        return values

    def write_state(self, index: int, state: int, planes: dict[str, torch.Tensor], bits: int) -> None:
        """Encodes one moment of the elements held here from host planes of `bits` bits (32: float32 `values`; shared
        widths: `shared`)."""
        spec = self.specs[index]
        sizes = self._sizes(spec, bits, planes)
        for name, size in sizes.items():
            held = planes[name].numel() * planes[name].element_size() if name in planes else 0
            if held != size:
                raise ValueError(
                    f"State '{'mv'[state]}.{name}' of parameter '{spec.name}' has {held} bytes instead of {size}."
                )
        if spec.count == 0:
            return
        names = [name for name in sizes if name != "scales"]
        source = _binding.Planes(bits=bits, base=planes[names[0]].data_ptr())
        for place, name in enumerate(names[1:]):
            source.bit[place] = planes[name].data_ptr()
        if "scales" in sizes:
            source.scales = planes["scales"].data_ptr()
        self._call(library.stq_adamw_write_state(self.handle, index, state, source, spec.first, spec.count))

    @staticmethod
    def _sizes(spec: TensorSpec, bits: int, planes: dict[str, torch.Tensor]) -> dict[str, int]:
        """Names and bytes of the arrays that a state of this width has; base first."""
        if bits == 32:
            return {"values": 4 * spec.count}
        if bits in SHARED_WIDTHS.values():
            # The means, of which nothing may be missing, and behind them factors and probes.
            means = 4 * (spec.rows if bits == SHARED_WIDTHS["row"] else spec.cols)
            held = 4 * planes["shared"].numel() if "shared" in planes else 0
            return {"shared": max(held, means)}
        names = ["base", *(f"bit{place}" for place in range(library.stq_plane_count(bits) - 1))]
        sizes = {name: library.stq_plane_bytes(spec.count, bits, place) for place, name in enumerate(names)}
        return {**sizes, "scales": 2 * library.stq_block_count(spec.count)}

    def gradient_norm(self) -> float:
        """Global norm of the gradients of the last step, unscaled and not clipped; NaN before the first. Waits for a GPU."""
        norm = ctypes.c_double()
        self._call(library.stq_adamw_gradient_norm(self.handle, norm))
        return norm.value

    def close(self) -> None:
        """Frees the states now."""
        self._finalizer()


def _destroy(handle: ctypes.c_void_p, memory: TorchMemory) -> None:
    library.stq_adamw_destroy(handle)
    memory.tensors.clear()


def zone_name(zone: int) -> str:
    """Name of a zone of the policy."""
    return library.stq_zone_name(zone).decode()


def score_factors(spec: TensorSpec, gradient: torch.Tensor, unscale: float, threads: int) -> _binding.Factors:
    """Factors of a whole gradient in host memory."""
    factors = _binding.Factors()
    tensor = _tensor_array([spec])
    tensor[0].first, tensor[0].count = 0, spec.rows * spec.cols
    check(library.stq_score_factors(tensor, gradient.data_ptr(), unscale, threads, factors))
    return factors
