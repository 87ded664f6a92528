"""stquant.AdamW: torch's AdamW with its two moments in 2 to 8 bits each, under a cap on the bytes of all states."""

from __future__ import annotations

import copy
import itertools
import operator
import weakref
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any, Callable, Iterable

import torch
from torch.optim import Optimizer

from . import _binding, _layout, _sharded, _state
from ._engine import SHARED_WIDTHS, Engine, Settings, TensorSpec, is_exempt, plan
from ._library import STQ_DTYPES, library

# What torch.optim.AdamW's groups have besides ours.
_TORCH_GROUP = {
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": True,
}

# A valid address for tensors of no elements, whose own is 0: to the library that would mean "no gradient".
_NOTHING = torch.zeros(1)


def _group_values(group: dict[str, Any]) -> tuple:
    """A param group as the library takes it. A tensor learning rate is read, which waits for its device."""
    beta1, beta2 = group["betas"]
    return (float(group["lr"]), float(beta1), float(beta2), float(group["eps"]), float(group["weight_decay"]))


def _widths(bits: Any, where: str) -> tuple[int, int]:
    """(m, v) widths of a group's `bits`: None = the policy chooses (0, 0), an int for both, or a pair."""
    if bits is None:
        return 0, 0
    pair = (bits, bits) if isinstance(bits, int) else tuple(SHARED_WIDTHS.get(width, width) for width in bits)
    widths = range(2, 9)
    coded = len(pair) == 2 and pair[0] in widths and (pair[1] in widths or pair[1] in SHARED_WIDTHS.values())
    if not coded and pair != (32, 32):
        raise ValueError(
            f"{where}: bits is {bits!r}; use None (the policy chooses), a width of 2 to 8, a pair of them for the first "
            "and second moment, the second of which may be 'row' or 'column' (shared), or 32 for float32 states."
        )
    return pair


@dataclass
class _Attached:
    """What the library's arrays of pointers hold since the step before, where every parameter had a gradient."""

    addresses: list[int]  # of the parameters, then of the gradients
    references: list[weakref.ref]  # to the gradients; none if they were replaced since all was looked at
    plain: bool  # all parameters are contiguous


class AdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2019) whose states take a fraction of the memory. Works like ``torch.optim.AdamW``.

    The first and second moment of every parameter are packed codes of 2 to 8 bits with one 16-bit scale for 128 values.
    Every ``decide_every`` steps the policy decides the width of each tensor and moment from the gradients, so that all
    states together stay under the cap. Vectors, scalars and small tensors keep float32 states. A step is one call of
    the library: gradients are unscaled, clipped and applied in one pass, and a gradient that is not finite anywhere
    skips the step whole (``skipped_steps`` counts them).

    Arguments:
        params: parameters, named parameters or param groups, as for any torch optimizer: strided float32, bfloat16
            or float16 tensors on one device (CPU or CUDA), or DTensors. bfloat16 parameters are written with stochastic
            rounding. A group may have its own ``lr``, ``betas``, ``eps``, ``weight_decay`` and ``bits``.
        lr: learning rate, >= 0.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the root of the bias-corrected second moment, >= 1e-30.
        weight_decay: decoupled: a step multiplies parameters by ``1 - lr * weight_decay``.
        state_bits: the cap: bits per state value with everything included (codes, scales, padding, records); float32
            states are 32. Where it is too low, the error names the smallest possible one. Models without a tensor
            that the policy could choose a width for have no cap.
        policy: how widths are chosen: ``'zones'``, ``'rate-distortion'``, ``'fixed'`` (see ``fixed_bits``) or
            ``'float32'``; None is the library's default.
        bits: widths of the tensors of a group, usually given per group: None leaves them to the policy, 2 to 8 is a
            width for both moments, a pair one for each, 32 keeps float32 states. A second moment may be shared: ``(4,
            'row')`` keeps one mean for each row instead of codes, ``(4, 'column')`` for each column.
        fixed_bits: widths of (first, second moment) under ``policy='fixed'``; the cap is not applied then.
        cap_bytes: the cap in bytes instead of ``state_bits``; that of the whole model, however it is sharded.
        cap_mode: ``'peak'``: the cap holds at every step; ``'mean'``: it is the mean over ``planned_steps``.
        lowest_bits, highest_bits: range of the widths that the policy may choose, 2 to 8.
        decide_every: steps between decisions; there are others at steps 1, 10 and 30.
        decision_delay: steps from the one whose gradients a decision is made from to the one that changes the widths, 0 to
            16. None is 0 on a CPU and 2 on a GPU, where a decision then waits for nothing; the same number gives the same
            bytes on both.
        planned_steps: length of the run, 0 = unknown. Annealing and ``cap_mode='mean'`` use it.
        shared_v: the policy may share second moments along rows or columns where they vary little; None is the library's
            default. Not with ``portable_state`` or DTensors.
        annealing: 1 = the policy's differences between tensors shrink over the first half of the run, 0 = they stay.
        error_compensation: share in [0, 1] of the first moment's rounding error that is applied to the parameter at once;
            None is the library's default.
        exempt_below: tensors of fewer (global) elements keep float32 states.
        seed: of the stochastic rounding. Replicas with equal seeds and gradients stay bit-identical.
        max_grad_norm: clips the global gradient norm inside the step (no call of ``clip_grad_norm_`` needed); None or 0
            = no clipping.
        threads: OpenMP threads on a CPU, 0 = all; results do not depend on it.
        portable_state: ``state_dict()`` in the form that torch.distributed.checkpoint can load whatever the widths are: one
            byte a code. DTensor parameters always have it.

    Raises:
        ValueError: an argument is out of range, a parameter is not of a supported kind, or the cap is too small.
    """

    # torch.amp.GradScaler: hand over scale and found_inf instead of unscaling in a pass of its own.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        state_bits: float = 5.0,
        policy: str | None = None,
        bits: int | tuple[int, int | str] | None = None,
        fixed_bits: int | tuple[int, int] = (4, 4),
        cap_bytes: int | None = None,
        cap_mode: str = "peak",
        lowest_bits: int = 2,
        highest_bits: int = 8,
        decide_every: int = 100,
        decision_delay: int | None = None,
        planned_steps: int = 0,
        shared_v: bool | None = None,
        annealing: float = 1.0,
        error_compensation: float | None = None,
        exempt_below: int = 4096,
        seed: int = 0,
        max_grad_norm: float | None = None,
        threads: int = 0,
        portable_state: bool = False,
    ):
        defaults = library.stq_adamw_defaults()
        self._settings = Settings(
            policy=_policy_name(defaults.policy.kind) if policy is None else policy,
            state_bits=state_bits,
            cap_bytes=cap_bytes or 0,
            cap_mode=cap_mode,
            fixed_bits=_widths(fixed_bits, "fixed_bits"),
            lowest_bits=lowest_bits,
            highest_bits=highest_bits,
            decide_every=decide_every,
            decision_delay=decision_delay,
            planned_steps=planned_steps,
            shared_v=bool(defaults.policy.shared_v) if shared_v is None else shared_v,
            annealing=annealing,
            error_compensation=defaults.error_compensation if error_compensation is None else error_compensation,
            exempt_below=exempt_below,
            seed=seed,
            threads=threads,
        )
        self.max_grad_norm = max_grad_norm
        self.portable_state = portable_state
        self._engine: Engine | None = None
        self._flat: list[torch.Tensor] = []
        self._replays = 0
        self._attached: _Attached | None = None
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, bits=bits))
        specs, device = self._describe()
        plan(self._settings_for(specs), self._groups(), specs, device)

    def _settings_for(self, specs: list[TensorSpec]) -> Settings:
        """The settings; without a cap where no tensor leaves anything to choose, as in models of vectors alone."""
        settings = self._settings
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if self.portable_state or any(map(_layout.is_sharded, parameters)):
            shared = [spec.name for spec in specs if spec.v_bits in SHARED_WIDTHS.values()]
            if shared:
                raise ValueError(f"Parameter '{shared[0]}': a shared second moment needs whole parameters and packed state.")
            settings = replace(settings, shared_v=False)
        free = [spec for spec in specs if spec.m_bits == 0 and not is_exempt(spec, settings)]
        if free or settings.policy == "float32":
            return settings
        return replace(settings, policy="fixed")

    # ---- Parameters and groups ----

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a param group, as for any torch optimizer. States so far stay, at narrower widths only where the cap
        needs it; ``state_bits`` counts for the larger list."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _widths(group["bits"], f"Param group {len(self.param_groups) - 1}")
            for parameter in group["params"]:
                self._check_parameter(parameter)
            if self._engine is not None:
                states = self._tensor_states(self._engine)
                record = _state.optimizer_record(self._engine)
                self._load(states + [None] * len(group["params"]), record)
        except Exception:
            self.param_groups.pop()
            raise

    def _check_parameter(self, parameter: torch.Tensor) -> None:
        local = _layout.local_tensor(parameter)
        what = f"A parameter of shape {tuple(parameter.shape)}"
        if parameter.dtype not in STQ_DTYPES:
            raise ValueError(f"{what} is {parameter.dtype}; stquant.AdamW takes float32, bfloat16 and float16.")
        if local.layout is not torch.strided or not _layout.is_dense(local):
            raise ValueError(f"{what} is sparse or has gaps or overlaps in memory; make it contiguous.")
        if local.device.type not in ("cpu", "cuda"):
            raise ValueError(f"{what} is on {local.device}; stquant.AdamW works on CPU and CUDA.")

    def _groups(self) -> list[tuple]:
        return [_group_values(group) for group in self.param_groups]

    def _names(self) -> list[str]:
        """One unique name a parameter: its own where the optimizer was given named parameters.

        torch allows the same name twice (those of two models); from the second time on it gets a number.
        """
        names: dict[str, None] = {}
        for index, group in enumerate(self.param_groups):
            own = group.get("param_names")
            for name in own or [f"group{index}.{place}" for place in range(len(group["params"]))]:
                unique, uses = name, 1
                while unique in names:
                    uses += 1
                    unique = f"{name}#{uses}"
                names[unique] = None
        return list(names)

    def _describe(self) -> tuple[list[TensorSpec], torch.device]:
        flat = [(parameter, index) for index, group in enumerate(self.param_groups) for parameter in group["params"]]
        if not flat:
            raise ValueError("stquant.AdamW got no parameters.")
        devices = {_layout.local_tensor(parameter).device for parameter, _ in flat}
        if len(devices) > 1:
            names = " and ".join(sorted(map(str, devices)))
            raise ValueError(f"The parameters are on {names}; make one optimizer for each device.")
        specs = [
            _layout.describe(
                parameter,
                name,
                index,
                _widths(self.param_groups[index]["bits"], f"Param group {index}"),
                place / max(len(flat) - 1, 1),
            )
            for place, ((parameter, index), name) in enumerate(zip(flat, self._names()))
        ]
        return specs, devices.pop()

    def _make_engine(self) -> Engine:
        specs, device = self._describe()
        return Engine(self._settings_for(specs), self._groups(), specs, device)

    def _use(self, engine: Engine) -> Engine:
        """Takes an engine that was made for the present parameters."""
        self._engine = engine
        self._flat = [parameter for group in self.param_groups for parameter in group["params"]]
        self._sharded = any(map(_layout.is_sharded, self._flat))
        self._attached = None
        self.state.clear()
        for parameter in self._flat:
            self.state[parameter] = {}  # torch's tools take an empty `state` for an optimizer before its first step
        return engine

    def _open(self) -> Engine:
        """The library's optimizer; made at the first step, when parameters have their final place."""
        return self._engine or self._use(self._make_engine())

    # ---- The step ----

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step from the parameters' ``.grad``; parameters without one are left alone.

        Arguments:
            closure: reevaluates the model with gradients enabled and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: a gradient is sparse or complex, or a parameter changed its dtype or device since the first step.
            MemoryError or torch.OutOfMemoryError: there is no memory for the states; nothing was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        engine = self._open()
        capturing = engine.device.type == "cuda" and self._is_capturing(engine)
        gradients = self._attach(engine)
        if not any(gradient is not None for gradient in gradients):
            return loss
        self._push_groups(engine, capturing)
        given = engine.step_input
        given.max_gradient_norm = self.max_grad_norm or 0.0
        scale, found = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        given.loss_scale = None if scale is None else scale.data_ptr()
        given.found_infinite = None if found is None else found.data_ptr()
        kept: list[Any] = [gradients, scale, found]
        if self._sharded:
            kept.append(_sharded.supply(engine, self._flat, gradients, scale))
        engine.step()
        if capturing:  # the step is recorded, not made
            engine.expected_steps -= 1
            self._replays = 1
        changed = self._flat
        if self._attached is None:
            changed = [p for p, g in zip(self._local(), gradients) if g is not None]
        torch.autograd.graph.increment_version(changed)
        return loss

    def _local(self) -> list[torch.Tensor]:
        """The parameters' elements that this process holds."""
        return [_layout.local_tensor(parameter) for parameter in self._flat] if self._sharded else self._flat

    def _is_capturing(self, engine: Engine) -> bool:
        """True if the step goes into a CUDA graph. Otherwise lets the library count what a graph has done meanwhile."""
        if torch.cuda.is_current_stream_capturing():
            if engine.expects_decision():
                raise RuntimeError(
                    "A CUDA graph cannot capture a step that decides widths; take such steps without a graph, where "
                    "decision_due() says so."
                )
            return True
        if self._replays:
            self._replays = 0
            engine.steps
        return False

    def _attach(self, engine: Engine) -> list[torch.Tensor | None]:
        """Fills the library's arrays of pointers; returns the gradients that they point to (local ones of DTensors)."""
        given = [parameter.grad for parameter in self._flat]
        if self._attached is not None and self._attach_again(engine, given):
            return given
        gradients = self._fill_pointers(engine, given)
        self._attached = None
        if not self._sharded and all(one is other and one is not None for one, other in zip(given, gradients)):
            addresses = self._addresses(given)
            if all(addresses):
                plain = all(map(torch.Tensor.is_contiguous, self._flat))
                # Weak references: gradients that are set to None must not stay in memory for this.
                self._attached = _Attached(addresses, list(map(weakref.ref, given)), plain)
        return gradients

    def _addresses(self, gradients: list[torch.Tensor]) -> list[int]:
        return list(map(torch.Tensor.data_ptr, itertools.chain(self._flat, gradients)))

    def _attach_again(self, engine: Engine, given: list[torch.Tensor | None]) -> bool:
        """True if the library has the pointers to these gradients now, found without a look at everything in Python, which
        would take the host longer than all else in a step. Either they are the tensors of the step before, at the
        addresses that they had. Or they are new ones, as after every ``zero_grad()``, for parameters that are where they
        were: dtypes and contiguity are then what can differ, since torch lets ``.grad`` have no other shape or device."""
        attached = self._attached
        try:
            addresses = self._addresses(given)
        except (TypeError, RuntimeError):  # None, or a layout without storage: sparse
            return False
        if attached.references and all(map(operator.is_, given, [reference() for reference in attached.references])):
            return addresses == attached.addresses
        count = len(given)
        if not attached.plain or addresses[:count] != attached.addresses[:count] or not all(addresses):
            return False
        if [gradient.dtype for gradient in given] != engine.dtypes or not all(map(torch.Tensor.is_contiguous, given)):
            return False
        if addresses != attached.addresses:
            engine.gradients[:] = addresses[count:]
        self._attached = _Attached(addresses, [], True)
        return True

    def _fill_pointers(self, engine: Engine, given: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
        parameters, pointers = engine.parameters, engine.gradients
        on_gpu = engine.device.type == "cuda"
        gradients: list[torch.Tensor | None] = []
        for index, (parameter, gradient, spec) in enumerate(zip(self._flat, given, engine.specs)):
            if gradient is None:
                pointers[index] = None
                gradients.append(None)
                continue
            if self._sharded:
                gradient = _sharded.local_gradient(parameter, gradient)
                parameter = _layout.local_tensor(parameter)
            if parameter.dtype is not spec.dtype or parameter.is_cuda is not on_gpu:
                raise ValueError(
                    f"Parameter '{spec.name}' is now {parameter.dtype} on {parameter.device}; its states were made for "
                    f"{spec.dtype} on {engine.device}. Make a new optimizer after moving or converting a model."
                )
            if not (
                gradient.layout is torch.strided
                and gradient.dtype is spec.dtype
                and gradient.stride() == parameter.stride()
            ):
                gradient = _matching_gradient(parameter, gradient, spec.name)
            parameters[index] = parameter.data_ptr()
            pointers[index] = gradient.data_ptr() or _NOTHING.data_ptr()
            gradients.append(gradient)
        return gradients

    # ---- CUDA graphs ----

    def decision_due(self) -> bool:
        """True if the next step has to do with a decision: its gradients are measured (steps 1, 10, 30 and every
        ``decide_every``), the decision comes within ``decision_delay`` steps, or widths change. Such a step must be taken
        without a graph.

        An ordinary step can be captured, alone or with forward and backward pass, once the first step is made and
        while gradients stay in their place (``zero_grad(set_to_none=False)``). The graph stays valid after decisions::

            for batch in data:
                if optimizer.decision_due():
                    eager_iteration(batch)      # forward, backward and optimizer.step() into the same gradients
                else:
                    graph.replay()
                    optimizer.count_replay()
        """
        engine = self._open()
        if not engine.expects_decision():
            return False
        engine.steps  # steps in flight, or replayed, may have been skipped
        return engine.decision_under_way()

    def count_replay(self) -> None:
        """To be called after each replay of a graph that contains a step: nothing else tells the host about it."""
        engine = self._open()
        engine.expected_steps += 1
        self._replays += 1
        torch.autograd.graph.increment_version(self._local())

    def update_groups(self) -> None:
        """Brings learning rates and other values of ``param_groups`` to the device without a step, for steps that a
        graph replays (and before one is captured); ``step()`` does so itself."""
        self._push_groups(self._open(), False)

    def _push_groups(self, engine: Engine, capturing: bool) -> None:
        engine.use_current_stream()
        groups = self._groups()
        changed = engine.changed_groups(groups)
        if changed and capturing:
            raise RuntimeError(
                f"Param group {changed[0]} has changed since the last step; call update_groups() before the capture, or "
                "every replay would set these values again."
            )
        for index in changed:
            engine.set_group(index, groups[index])

    # ---- State dictionaries ----

    def _tensor_states(self, engine: Engine) -> list[dict[str, torch.Tensor]]:
        return _state.tensor_states(engine, self._flat, self.portable_state)

    def _packed_groups(self) -> list[dict[str, Any]]:
        """The param groups with indices for parameters."""
        groups, start = [], 0
        for group in self.param_groups:
            packed = {key: value for key, value in group.items() if key != "params"}
            packed["params"] = list(range(start, start + len(group["params"])))
            start += len(group["params"])
            groups.append(packed)
        return groups

    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state: ``state`` by parameter index and ``param_groups``, as for any torch optimizer.

        ``state[i]`` has the packed planes (uint8) and scale words (int16) of the two moments, or float32 values for exempt
        tensors, and the record of the tensor; ``param_groups[0]['stquant']`` the record of the optimizer, with the format's
        version. Loading it resumes bit for bit. The tensors are copies: further steps do not change them. With
        ``portable_state`` and for DTensors codes take a byte each, in the shape (and sharding) of the parameter.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        groups = self._packed_groups()
        state: dict[int, Any] = {}
        if self._engine is not None:
            groups[0][_state.RECORD_KEY] = _state.optimizer_record(self._engine)
            state = dict(enumerate(self._tensor_states(self._engine)))
        return self._after_state_dict({"state": state, "param_groups": groups})

    def _after_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        for hook in self._optimizer_state_dict_post_hooks.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    @torch._disable_dynamo
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what ``state_dict`` returned, from any device. The states of this optimizer are replaced.

        Under a smaller cap, or another policy or exemption, states are encoded anew at widths that fit; otherwise the
        run goes on bit for bit. The saved ``seed`` is taken over.

        Raises:
            ValueError: other groups or shapes, a damaged record, or no stquant state (``load_full_precision_state_dict``
                takes torch.optim.AdamW's). Nothing is changed then.
        """
        state_dict = self._before_loading(state_dict)
        groups = state_dict["param_groups"]
        record = next((group[_state.RECORD_KEY] for group in groups if _state.RECORD_KEY in group), None)
        if record is None and state_dict["state"]:
            raise ValueError(
                "This is not the state dict of a stquant.AdamW; use load_full_precision_state_dict for the state of "
                "torch.optim.AdamW."
            )
        self._replace(state_dict, lambda entries: self._load(entries, record))

    def full_precision_state_dict(self) -> dict[str, Any]:
        """The state as ``torch.optim.AdamW.state_dict()`` has it: ``step``, ``exp_avg`` and ``exp_avg_sq`` (float32, shaped
        as the parameters, DTensors for DTensors), so that the run can go on with float32 states there. Decoding rounds
        nothing. Takes 8 bytes a parameter."""
        groups = []
        for group in self._packed_groups():
            known = {key: value for key, value in group.items() if key != "bits"}
            groups.append({**known, **_TORCH_GROUP})
        states = _state.full_precision_states(self._engine, self._flat) if self._engine else []
        return {"state": {index: entry for index, entry in enumerate(states) if entry}, "param_groups": groups}

    @torch.no_grad()
    def load_full_precision_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of ``torch.optim.AdamW`` (or Adam): moments are encoded at widths under the cap; groups
        take over ``lr``, ``betas``, ``eps`` and ``weight_decay``.

        Raises:
            ValueError: other groups or shapes, an AMSGrad state, or moments that are not finite. Nothing is changed then.
        """
        state_dict = self._before_loading(state_dict)
        keys = ("params", "param_names", "lr", "betas", "eps", "weight_decay", "initial_lr")
        groups = [{key: group[key] for key in keys if key in group} for group in state_dict["param_groups"]]
        self._replace({**state_dict, "param_groups": groups}, self._load_full_precision)

    def _before_loading(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        saved = [len(group["params"]) for group in state_dict["param_groups"]]
        own = [len(group["params"]) for group in self.param_groups]
        if saved != own:
            raise ValueError(
                f"The state dict has param groups of {saved} parameters; this optimizer has groups of {own}."
            )
        return state_dict

    def _replace(self, state_dict: dict[str, Any], load: Callable[[list], None]) -> None:
        """Takes over the groups of a state dict and loads its states, by the order of parameters; all or nothing."""
        old = [dict(group) for group in self.param_groups]
        entries = []
        for group, saved in zip(self.param_groups, state_dict["param_groups"]):
            entries += [state_dict["state"].get(key) for key in saved["params"]]
            known = {key: value for key, value in saved.items() if key not in ("params", _state.RECORD_KEY)}
            group.update(copy.deepcopy(known))
        try:
            load(entries)
        except Exception:
            for group, before in zip(self.param_groups, old):
                group.clear()
                group.update(before)
            raise
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _load(self, entries: list[dict[str, Any] | None], record: torch.Tensor | None) -> None:
        engine = self._make_engine()
        if record is not None:
            parameters = [parameter for group in self.param_groups for parameter in group["params"]]
            _state.load(engine, parameters, entries, record)
        self._use(engine)

    def _load_full_precision(self, entries: list[dict[str, Any] | None]) -> None:
        engine = self._make_engine()
        if any(entries):
            parameters = [parameter for group in self.param_groups for parameter in group["params"]]
            _state.load_full_precision(engine, parameters, entries)
        self._use(engine)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy.deepcopy: the library's handle is left out, its state goes along packed."""
        kept = {key: value for key, value in self.__dict__.items() if key not in ("_engine", "_flat", "_attached", "state")}
        kept["packed"] = None
        if self._engine is not None:
            kept["packed"] = (self._tensor_states(self._engine), _state.optimizer_record(self._engine))
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state.pop("packed", None)
        self._engine, self._flat, self._attached, self.state = None, [], None, defaultdict(dict)
        super().__setstate__(state)
        if packed is not None:
            self._load(*packed)

    # ---- What it can tell ----

    @property
    def steps(self) -> int:
        """Steps made so far, skipped ones not counted."""
        return self._engine.steps if self._engine else 0

    @property
    def skipped_steps(self) -> int:
        """Steps skipped because a gradient was not finite."""
        return self._engine.skipped if self._engine else 0

    def telemetry(self) -> dict[str, float]:
        """Numbers for a logger such as TensorBoard or W&B, flat and of plain Python types.

        Returns:
            ``step``, ``skipped_steps``, ``gradient_norm`` (of the last step, after unscaling, before clipping; NaN before
            the first step),
            ``state_bytes``, ``peak_state_bytes``, ``state_bits`` (all-in bits per state value now), ``mean_state_bits``
            (over the steps so far), ``mean_m_bits`` and ``mean_v_bits`` (code bits, over the coded tensors, weighted by
            elements), and for each coded tensor ``m_bits/NAME``, ``v_bits/NAME``, ``n/NAME``, ``r/NAME`` (magnitude and
            complexity of its gradient at the last decision). Bytes are those of this process.
        """
        from ._report import telemetry

        return telemetry(self._open())


def _matching_gradient(parameter: torch.Tensor, gradient: torch.Tensor, name: str) -> torch.Tensor:
    """A copy of a gradient in its parameter's dtype and memory layout."""
    if gradient.layout is not torch.strided:
        raise ValueError(
            f"The gradient of '{name}' is sparse; stquant.AdamW needs dense ones (sparse=False in embeddings)."
        )
    if gradient.is_complex():
        raise ValueError(f"The gradient of '{name}' is complex; stquant.AdamW takes real ones.")
    return torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(gradient)


def _policy_name(kind: int) -> str:
    names = {value: name for name, value in _binding.POLICIES.items()}
    return names[kind].removeprefix("STQ_POLICY_").lower().replace("_", "-")
