"""The C interface of libstquant as ctypes sees it: every struct, enumeration and prototype that the package uses.

Nothing else in the package knows about C types. python/tests/test_binding.py compiles a program against the headers
and compares sizes, offsets, values and argument counts with what is written here.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    CFUNCTYPE, POINTER, Structure, c_bool, c_char_p, c_double, c_float, c_int, c_int64, c_size_t, c_uint8, c_uint32,
    c_uint64, c_void_p,
)

# ---- Enumerations: C enums are ints ----

STATUSES = {
    "STQ_OK": 0,
    "STQ_INVALID_ARGUMENT": 1,
    "STQ_OUT_OF_MEMORY": 2,
    "STQ_CAP_TOO_SMALL": 3,
    "STQ_UNSUPPORTED": 4,
    "STQ_IO_ERROR": 5,
    "STQ_CORRUPT": 6,
    "STQ_COMMUNICATION": 7,
    "STQ_DEVICE_ERROR": 8,
}
DTYPES = {"STQ_FLOAT32": 0, "STQ_BFLOAT16": 1, "STQ_FLOAT16": 2, "STQ_UINT8": 3}
DEVICES = {"STQ_DEVICE_CPU": 0, "STQ_DEVICE_CUDA": 1}
POLICIES = {
    "STQ_POLICY_FLOAT32": 0,
    "STQ_POLICY_FIXED": 1,
    "STQ_POLICY_ZONES": 2,
    "STQ_POLICY_RATE_DISTORTION": 3,
}
CAP_MODES = {"STQ_CAP_PEAK": 0, "STQ_CAP_MEAN": 1}
SHARED_MODES = {"STQ_SHARED_OFF": 0, "STQ_SHARED_AUTO": 1}
ZONES = {
    "STQ_ZONE_EXEMPT": 0,
    "STQ_ZONE_CRITICAL": 1,
    "STQ_ZONE_MAGNITUDE": 2,
    "STQ_ZONE_STRUCTURAL": 3,
    "STQ_ZONE_REDUNDANT": 4,
}
STATES = {"STQ_FIRST_MOMENT": 0, "STQ_SECOND_MOMENT": 1}
PARTS = {
    "STQ_PART_BASE": 0,
    "STQ_PART_BIT0": 1,
    "STQ_PART_BIT3": 4,
    "STQ_PART_SCALES": 5,
    "STQ_PART_VALUES": 6,
    "STQ_PART_SHARED": 7,
}
ESTIMATORS = {"STQ_QAT_STRAIGHT_THROUGH": 0, "STQ_QAT_STABLE": 1, "STQ_QAT_SOFT": 2}
CONSTANTS = {
    "STQ_BLOCK": 128,
    "STQ_RECORD_VERSION": 1,
    "STQ_BITS_SHARED_ROW": 64,
    "STQ_BITS_SHARED_COL": 65,
    "STQ_QAT_MAX_HARMONICS": 8,
}
ENUMERATIONS = [
    STATUSES, DTYPES, DEVICES, POLICIES, CAP_MODES, SHARED_MODES, ZONES, STATES, PARTS, ESTIMATORS, CONSTANTS,
]

# ---- Structs: field for field as in the headers ----


class Allocator(Structure):
    """stq_allocator"""

    ALLOCATE = CFUNCTYPE(c_void_p, c_void_p, c_size_t)
    RELEASE = CFUNCTYPE(None, c_void_p, c_void_p, c_size_t)
    _fields_ = [
        ("context", c_void_p),
        ("allocate", ALLOCATE),
        ("release", RELEASE),
        ("granularity", c_size_t),
    ]


class Tensor(Structure):
    """stq_tensor"""

    _fields_ = [
        ("name", c_char_p),
        ("rows", c_int64),
        ("cols", c_int64),
        ("first", c_int64),
        ("count", c_int64),
        ("parameter_type", c_int),
        ("gradient_type", c_int),
        ("group", c_uint32),
        ("m_bits", c_uint32),
        ("v_bits", c_uint32),
        ("depth", c_float),
    ]


class Planes(Structure):
    """stq_planes"""

    _fields_ = [
        ("base", c_void_p),
        ("bit", c_void_p * 4),
        ("scales", c_void_p),
        ("bits", c_uint32),
    ]


class Factors(Structure):
    """stq_factors"""

    _fields_ = [
        ("n", c_double),
        ("r", c_double),
        ("sharpness", c_double),
        ("kurtosis", c_double),
        ("row_spread", c_double),
        ("near_zero", c_double),
        ("volatility", c_double),
        ("depth", c_double),
    ]


class PolicyConfig(Structure):
    """stq_policy_config"""

    _fields_ = [
        ("size", c_size_t),
        ("kind", c_int),
        ("state_bits", c_double),
        ("cap_bytes", c_uint64),
        ("cap_mode", c_int),
        ("fixed_m_bits", c_uint32),
        ("fixed_v_bits", c_uint32),
        ("lowest_bits", c_uint32),
        ("highest_bits", c_uint32),
        ("decide_every", c_int64),
        ("planned_steps", c_int64),
        ("shared_v", c_int),
        ("decision_delay", c_int64),
        ("annealing", c_double),
    ]


class AdamwGroup(Structure):
    """stq_adamw_group"""

    _fields_ = [
        ("learning_rate", c_double),
        ("beta1", c_double),
        ("beta2", c_double),
        ("epsilon", c_double),
        ("weight_decay", c_double),
    ]


class AdamwConfig(Structure):
    """stq_adamw_config"""

    _fields_ = [
        ("size", c_size_t),
        ("groups", POINTER(AdamwGroup)),
        ("group_count", c_size_t),
        ("policy", PolicyConfig),
        ("seed", c_uint64),
        ("error_compensation", c_double),
        ("exempt_below", c_int64),
        ("allocator", POINTER(Allocator)),
        ("threads", c_int),
        ("device", c_int),
        ("device_index", c_int),
        ("counts_as_cpu", c_bool),
    ]


class Step(Structure):
    """stq_step"""

    _fields_ = [
        ("size", c_size_t),
        ("parameters", c_void_p),
        ("gradients", c_void_p),
        ("unscale", c_double),
        ("max_gradient_norm", c_double),
        ("norm_supplied", c_bool),
        ("gradient_norm", c_double),
        ("norm_pointer", c_void_p),
        ("loss_scale", c_void_p),
        ("found_infinite", c_void_p),
        ("factors", POINTER(Factors)),
        ("stream", c_void_p),
    ]


class StepResult(Structure):
    """stq_step_result"""

    _fields_ = [
        ("gradient_norm", c_double),
        ("skipped", c_bool),
        ("decided", c_bool),
        ("waiting", c_bool),
    ]


class Memory(Structure):
    """stq_memory"""

    _fields_ = [
        ("parameters", c_uint64),
        ("state_bytes", c_uint64),
        ("peak_bytes", c_uint64),
        ("cap_bytes", c_uint64),
        ("smallest_bytes", c_uint64),
        ("all_in_bits", c_double),
        ("final_bits", c_double),
        ("peak_bits", c_double),
    ]


class TensorInfo(Structure):
    """stq_tensor_info"""

    _fields_ = [
        ("name", c_char_p),
        ("m_bits", c_uint32),
        ("v_bits", c_uint32),
        ("bytes", c_uint64),
        ("zone", c_int),
        ("factors", Factors),
    ]


class AdamwRecord(Structure):
    """stq_adamw_record"""

    _fields_ = [
        ("version", c_uint32),
        ("pending", c_uint32),
        ("steps", c_int64),
        ("skipped", c_int64),
        ("seed", c_uint64),
        ("peak_bytes", c_uint64),
        ("bits_sum", c_double),
        ("decisions", c_int64),
        ("forced", c_int64),
        ("last_step", c_int64),
        ("last_bytes", c_uint64),
        ("spent", c_double),
        ("log_n_average", c_double),
        ("log_r_average", c_double),
        ("log_n_peak", c_double),
        ("volatility_average", c_double),
        ("reheating", c_double),
    ]


class TensorRecord(Structure):
    """stq_tensor_record"""

    _fields_ = [
        ("bits", c_uint8 * 2),
        ("target", c_uint8 * 2),
        ("asked", c_uint8 * 2),
        ("zone", c_uint8),
        ("sharing", c_uint8),
        ("missed", c_int64),
        ("last_log_n", c_double),
        ("factors", Factors),
    ]


class Buffer(Structure):
    """stq_buffer"""

    _fields_ = [
        ("tensor", c_char_p),
        ("index", c_size_t),
        ("state", c_int),
        ("part", c_int),
        ("element_size", c_uint32),
        ("data", c_void_p),
        ("bytes", c_uint64),
    ]


class QatConfig(Structure):
    """stq_qat_config"""

    _fields_ = [
        ("size", c_size_t),
        ("bits", c_uint32),
        ("estimator", c_int),
        ("group", c_int64),
        ("harmonics", c_uint32),
        ("amplitudes", c_double * CONSTANTS["STQ_QAT_MAX_HARMONICS"]),
        ("softness", c_double),
        ("device", c_int),
        ("stream", c_void_p),
    ]


# C name of each struct above, for the test.
STRUCTS = {
    "stq_allocator": Allocator,
    "stq_tensor": Tensor,
    "stq_planes": Planes,
    "stq_factors": Factors,
    "stq_policy_config": PolicyConfig,
    "stq_adamw_group": AdamwGroup,
    "stq_adamw_config": AdamwConfig,
    "stq_step": Step,
    "stq_step_result": StepResult,
    "stq_memory": Memory,
    "stq_tensor_info": TensorInfo,
    "stq_adamw_record": AdamwRecord,
    "stq_tensor_record": TensorRecord,
    "stq_buffer": Buffer,
    "stq_qat_config": QatConfig,
}

# ---- Functions: name -> (result, arguments) ----

_optimizer = c_void_p
_status = c_int

FUNCTIONS = {
    "stq_version": (c_char_p, []),
    "stq_last_error": (c_char_p, []),
    "stq_status_name": (c_char_p, [_status]),
    "stq_zone_name": (c_char_p, [c_int]),
    "stq_policy_defaults": (PolicyConfig, []),
    "stq_block_count": (c_int64, [c_int64]),
    "stq_plane_count": (c_uint32, [c_uint32]),
    "stq_plane_bytes": (c_uint64, [c_int64, c_uint32, c_uint32]),
    "stq_decode": (_status, [c_void_p, POINTER(Planes), c_int, c_int64]),
    "stq_score_factors": (_status, [POINTER(Tensor), c_void_p, c_float, c_int, POINTER(Factors)]),
    "stq_adamw_defaults": (AdamwConfig, []),
    "stq_adamw_create": (_status, [POINTER(_optimizer), POINTER(AdamwConfig), POINTER(Tensor), c_size_t]),
    "stq_adamw_destroy": (None, [_optimizer]),
    "stq_adamw_step": (_status, [_optimizer, POINTER(Step), POINTER(StepResult)]),
    "stq_adamw_decision_due": (_status, [_optimizer, POINTER(c_bool)]),
    "stq_adamw_only_enqueues": (_status, [_optimizer, POINTER(c_bool)]),
    "stq_adamw_gradient_norm": (_status, [_optimizer, POINTER(c_double)]),
    "stq_adamw_set_stream": (_status, [_optimizer, c_void_p]),
    "stq_adamw_set_group": (_status, [_optimizer, c_size_t, POINTER(AdamwGroup)]),
    "stq_adamw_memory": (_status, [_optimizer, POINTER(Memory)]),
    "stq_adamw_tensor": (_status, [_optimizer, c_size_t, POINTER(TensorInfo)]),
    "stq_adamw_step_count": (c_int64, [_optimizer]),
    "stq_adamw_skipped_count": (c_int64, [_optimizer]),
    "stq_adamw_plan": (_status, [POINTER(AdamwConfig), POINTER(Tensor), c_size_t, POINTER(Memory)]),
    "stq_part_name": (c_char_p, [c_int, c_int]),
    "stq_adamw_save_records": (_status, [_optimizer, POINTER(AdamwRecord), POINTER(TensorRecord), c_size_t]),
    "stq_adamw_restore": (_status, [_optimizer, POINTER(AdamwRecord), POINTER(TensorRecord), c_size_t]),
    "stq_adamw_fit": (
        _status,
        [_optimizer, POINTER(AdamwRecord), POINTER(TensorRecord), c_size_t, POINTER(c_bool)],
    ),
    "stq_adamw_buffers": (_status, [_optimizer, POINTER(Buffer), c_size_t, POINTER(c_size_t)]),
    "stq_adamw_read_state": (_status, [_optimizer, c_size_t, c_int, c_void_p, c_int64, c_int64]),
    "stq_adamw_write_state": (_status, [_optimizer, c_size_t, c_int, POINTER(Planes), c_int64, c_int64]),
    "stq_adamw_digest": (_status, [_optimizer, POINTER(c_uint64)]),
    "stq_qat_defaults": (QatConfig, []),
    "stq_qat_check": (_status, [POINTER(QatConfig), c_int64]),
    "stq_qat_step_count": (c_int64, [POINTER(QatConfig), c_int64, c_int64]),
    "stq_qat_initial_steps": (_status, [c_void_p, POINTER(QatConfig), c_void_p, c_int, c_int64, c_int64]),
    "stq_qat_forward": (_status, [c_void_p, POINTER(QatConfig), c_void_p, c_void_p, c_int, c_int64, c_int64]),
    "stq_qat_backward": (
        _status,
        [c_void_p, c_void_p, POINTER(QatConfig), c_void_p, c_void_p, c_void_p, c_int, c_int64, c_int64],
    ),
    "stq_qat_packed_bytes": (c_uint64, [POINTER(QatConfig), c_int64, c_int64]),
    "stq_qat_pack": (_status, [c_void_p, POINTER(QatConfig), c_void_p, c_void_p, c_int, c_int64, c_int64]),
    "stq_qat_unpack": (_status, [c_void_p, POINTER(QatConfig), c_void_p, c_void_p, c_int64, c_int64]),
}


def declare(library: ctypes.CDLL) -> None:
    """Sets result and argument types of every function on a loaded library; AttributeError names one that it lacks."""
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
