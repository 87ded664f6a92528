"""State dictionaries: bit-exact resume, other caps, torch's format both ways, damaged input."""

import copy
import io
import pickle

import pytest
import torch
from common import give_gradients, largest_difference, raises, small_network, step_with

import stquant
from stquant import _planes

POLICIES = [
    {"policy": "zones", "state_bits": 5.0},
    {"policy": "rate-distortion", "state_bits": 4.5},
    {"policy": "fixed", "fixed_bits": (3, 7)},
    {"policy": "float32"},
    {"policy": "rate-distortion", "state_bits": 4.0, "shared_v": True},
]


def trained(steps, dtype=torch.float32, **arguments):
    """A network and an optimizer after some steps; the odd gradient keeps tensors apart."""
    network = small_network(dtype)
    optimizer = stquant.AdamW(network.named_parameters(), lr=1e-2, decide_every=7, **arguments)
    for step in range(steps):
        step_with(optimizer, network, step, scale=1.0 + step % 3)
    return network, optimizer


def through_file(state_dict):
    """What torch.save and a safe torch.load make of it."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_equal_runs(one, other, steps):
    """Both (network, optimizer) pairs go on with the same gradients and stay the same bits."""
    for step in steps:
        for network, optimizer in (one, other):
            step_with(optimizer, network, step)
    assert largest_difference(one[0].parameters(), other[0].parameters()) == 0
    assert one[1]._engine.digest() == other[1]._engine.digest()
    assert one[1].telemetry() == other[1].telemetry()


@pytest.mark.parametrize("arguments", POLICIES, ids=lambda arguments: arguments["policy"] + "-shared" * ("shared_v" in arguments))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("portable", [False, True])
def test_resume_is_bit_exact(arguments, dtype, portable):
    network, optimizer = trained(12, dtype, portable_state=portable, **arguments)
    saved = through_file({"model": network.state_dict(), "optimizer": optimizer.state_dict()})
    other, resumed = trained(0, dtype, portable_state=portable, **arguments)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.steps == 12
    assert_equal_runs((network, optimizer), (other, resumed), range(12, 40))


def test_state_dict_is_packed():
    """As small as the states: bytes of all tensors are those of the optimizer, less its host records."""
    _, optimizer = trained(3, state_bits=5.0)
    state = optimizer.state_dict()["state"]
    planes = sum(
        tensor.numel() * tensor.element_size()
        for entry in state.values()
        for name, tensor in entry.items()
        if name not in ("step", "record")
    )
    used = optimizer.telemetry()["state_bytes"]
    assert 0.9 * used < planes <= used
    assert {tensor.dtype for name, tensor in state[0].items() if "scales" in name} == {torch.int16}


def test_before_the_first_step():
    network, optimizer = trained(0)
    saved = through_file(optimizer.state_dict())
    assert saved["state"] == {}
    _, other = trained(5)
    other.load_state_dict(saved)
    assert other.steps == 0


def test_groups_come_along():
    network, optimizer = trained(2)
    optimizer.param_groups[0]["lr"] = 0.125
    other_network, other = trained(0)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.125
    assert other.param_groups[0]["params"][0] is other_network[0].weight
    assert "stquant" not in other.param_groups[0]


def test_scheduler_and_optimizer_resume_together():
    runs = []
    for interrupted in (False, True):
        network, optimizer = trained(0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
        for step in range(16):
            if interrupted and step == 9:
                states = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
                optimizer = stquant.AdamW(network.named_parameters(), lr=1.0, decide_every=7)
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
                optimizer.load_state_dict(states[0])
                schedule.load_state_dict(states[1])
            step_with(optimizer, network, step)
            schedule.step()
        runs.append(list(network.parameters()))
    assert largest_difference(*runs) == 0


@pytest.mark.parametrize("portable", [False, True])
def test_smaller_cap(portable):
    """A state saved under a larger cap is encoded anew; the moments stay what they were but for the wider rounding."""
    _, optimizer = trained(12, policy="fixed", fixed_bits=8, portable_state=portable)
    _, smaller = trained(0, policy="zones", state_bits=4.2)
    smaller.load_state_dict(optimizer.state_dict())
    usage = smaller._engine.usage()
    assert usage.state_bytes <= usage.cap_bytes
    for index in (0, 2):
        before, after = (o.full_precision_state_dict()["state"][index]["exp_avg"] for o in (optimizer, smaller))
        assert torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0) > 0.97


@pytest.mark.parametrize("along", ["row", "column"])
def test_shared_second_moments(along):
    """They resume bit for bit, and become codes where they may not be shared any more."""
    network, optimizer = trained(0)
    other, resumed = trained(0)
    for one in (optimizer, resumed):
        one.param_groups[0]["bits"] = (5, along)
    for step in range(6):
        step_with(optimizer, network, step)
    other.load_state_dict(network.state_dict())
    resumed.load_state_dict(through_file(optimizer.state_dict()))
    assert_equal_runs((network, optimizer), (other, resumed), range(6, 12))
    saved = optimizer.state_dict()
    saved["param_groups"][0]["bits"] = None
    _, coded = trained(0, state_bits=8.0)
    coded.load_state_dict(saved)
    before, after = (one._engine.read_state(0, 1) for one in (optimizer, coded))
    assert 2 <= coded._engine.tensor_info(0).v_bits <= 8
    assert torch.nn.functional.cosine_similarity(before, after, dim=0) > 0.95


def test_other_exemptions():
    """Coded states become float32 ones and the other way round, when groups say so."""
    network, optimizer = trained(5, policy="fixed", fixed_bits=8)
    exempt = stquant.AdamW(network.named_parameters(), policy="fixed", bits=32)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["bits"] = 32
    exempt.load_state_dict(saved)
    assert torch.equal(exempt._engine.read_state(0, 0), optimizer._engine.read_state(0, 0))
    assert exempt._engine.tensor_info(0).m_bits == 32


def test_missing_gradients_are_remembered():
    def run(interrupted):
        network, optimizer = trained(0, policy="fixed")
        for step in range(9):
            give_gradients(network.parameters(), step)
            if step < 5:
                network[2].weight.grad = None
            if interrupted and step in (3, 7):
                state = through_file(optimizer.state_dict())
                optimizer = stquant.AdamW(network.named_parameters(), policy="fixed")
                optimizer.load_state_dict(state)
            optimizer.step()
        return network.parameters()

    assert largest_difference(run(False), run(True)) == 0


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_alone(how):
    network, optimizer = trained(4)
    other, copied = how((network, optimizer))
    assert copied.param_groups[0]["params"][0] is other[0].weight
    assert_equal_runs((network, optimizer), (other, copied), range(4, 9))


def test_hooks():
    _, optimizer = trained(1)
    calls = []
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "extra": 7})
    optimizer.register_load_state_dict_pre_hook(lambda o, state: calls.append(state.pop("extra")))
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("after loading"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["before saving", 7, "after loading"]


# ---- torch's format ----


def test_to_torch_and_back_in_the_middle_of_a_run():
    """float32 states move to torch.optim.AdamW and back without a trace."""
    network, optimizer = trained(6, policy="float32")
    other = copy.deepcopy(network)
    reference = torch.optim.AdamW(other.named_parameters(), lr=1.0)
    reference.load_state_dict(optimizer.full_precision_state_dict())
    for step in range(6, 12):
        step_with(reference, other, step)
    again = stquant.AdamW(other.named_parameters(), policy="float32")
    again.load_full_precision_state_dict(reference.state_dict())
    assert again.steps == 12 and again.param_groups[0]["lr"] == 1e-2
    for step in range(6, 18):
        step_with(optimizer, network, step)
    for step in range(12, 18):
        step_with(again, other, step)
    assert largest_difference(network.parameters(), other.parameters()) < 1e-6


def test_coded_states_go_to_torch_as_they_decode():
    network, optimizer = trained(6)
    state = optimizer.full_precision_state_dict()["state"]
    assert torch.equal(state[0]["exp_avg"].flatten(), optimizer._engine.read_state(0, 0))
    assert torch.equal(state[2]["exp_avg_sq"].flatten(), optimizer._engine.read_state(2, 1))
    assert state[0]["step"] == 6 and state[0]["exp_avg"].shape == network[0].weight.shape


def test_float32_run_goes_on_under_a_cap():
    network = small_network()
    reference = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for step in range(20):
        step_with(reference, network, step)
    optimizer = stquant.AdamW(network.parameters(), state_bits=5.0)
    optimizer.load_full_precision_state_dict(reference.state_dict())
    usage = optimizer._engine.usage()
    assert usage.state_bytes <= usage.cap_bytes and optimizer.steps == 20
    state = reference.state_dict()["state"]
    for index, name in ((0, "exp_avg"), (2, "exp_avg")):
        coded = optimizer._engine.read_state(index, 0)
        assert torch.nn.functional.cosine_similarity(coded, state[index][name].flatten(), dim=0) > 0.98
    step_with(optimizer, network, 20)
    assert optimizer.steps == 21


def test_memory_order_survives():
    """Moments of a channels-last weight come back in their places."""
    weight = torch.nn.Parameter(torch.randn(64, 32, 3, 3).contiguous(memory_format=torch.channels_last))
    optimizer = stquant.AdamW([weight], policy="float32", betas=(0.0, 0.9))
    weight.grad = torch.randn(64, 32, 3, 3)
    gradient = weight.grad.clone()
    optimizer.step()
    moments = optimizer.full_precision_state_dict()["state"][0]
    assert torch.equal(moments["exp_avg"], gradient)
    other = stquant.AdamW([weight], policy="float32", betas=(0.0, 0.9))
    other.load_full_precision_state_dict(optimizer.full_precision_state_dict())
    assert other._engine.digest() == optimizer._engine.digest()


# ---- Planes ----


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [1, 127, 128, 1000])
def test_planes_unpack_and_pack(bits, count):
    """All codes of all widths, at whole and cut blocks, against the layout in stquant/quant.h, bit by bit."""
    codes = torch.randint(0, 1 << bits, (count,), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
    planes = _planes.pack(codes, bits)
    assert torch.equal(_planes.unpack(planes, bits, count), codes)
    base = 4 if bits >= 4 else 2
    for i in (0, count // 2, count - 1):
        code = planes["base"][i * base // 8].item() >> (i * base % 8) & ((1 << base) - 1)
        for place in range(bits - base):
            code = code << 1 | planes[f"bit{place}"][i // 8].item() >> (i % 8) & 1
        assert code == codes[i].item()


def test_portable_codes_are_the_planes():
    _, optimizer = trained(3, policy="fixed", fixed_bits=(5, 3))
    packed = copy.deepcopy(optimizer.state_dict()["state"][0])
    optimizer.portable_state = True
    portable = optimizer.state_dict()["state"][0]
    assert portable["m.codes"].shape == (320, 256) and portable["m.scales"].shape == (320, 3)
    for key, value in _planes.pack(portable["m.codes"].flatten(), 5).items():
        assert torch.equal(value, packed["m." + key])
    assert torch.equal(portable["v.scales"][:, 1:].flatten(), packed["v.scales"])


@pytest.mark.parametrize("columns", [64, 100, 128, 320, 1000])
@pytest.mark.parametrize("state", [0, 1])
def test_rows_in_other_blocks_decode_to_the_same_values(columns, state):
    """Rows 3 to 9 of a tensor, taken out of its table, decode to what they were, whatever blocks they lay in."""
    weight = torch.nn.Parameter(torch.zeros(12, columns))
    optimizer = stquant.AdamW([weight], policy="fixed", fixed_bits=(5, 6), exempt_below=1, portable_state=True)
    give_gradients([weight], columns)
    optimizer.step()
    entry = optimizer.state_dict()["state"][0]
    name, bits = "mv"[state], (5, 6)[state]
    codes, table = entry[name + ".codes"][3:10].flatten(), entry[name + ".scales"][3:10]
    planes, width = _planes.from_table(codes, table, columns, bits, state)
    expected = optimizer._engine.read_state(0, state).view(12, columns)[3:10].flatten()
    if width == 32:
        assert 3 * columns % 128 != 0 and torch.equal(planes["values"], expected)
    else:
        assert 3 * columns % 128 == 0
        again = _planes.scale_table(planes["scales"], 7, columns)
        assert torch.equal(again, table) and torch.equal(_planes.unpack(planes, bits, 7 * columns), codes)


# ---- Damaged and foreign input ----


def expect_unchanged(optimizer, state, exception, *words):
    digest, groups = optimizer._engine.digest(), copy.deepcopy(optimizer.param_groups[0]["lr"])
    with raises(exception, *words):
        optimizer.load_state_dict(state)
    assert optimizer._engine.digest() == digest and optimizer.param_groups[0]["lr"] == groups


def test_foreign_and_damaged_states():
    network, optimizer = trained(4, policy="fixed")
    foreign = torch.optim.AdamW(network.parameters())
    step_with(foreign, network, 0)
    expect_unchanged(optimizer, foreign.state_dict(), ValueError, "load_full_precision_state_dict")
    good = copy.deepcopy(optimizer.state_dict())

    def damaged(change):
        state = copy.deepcopy(good)
        state["param_groups"][0]["lr"] = 77.0
        change(state)
        return state

    def set_version(state):
        state["param_groups"][0]["stquant"][0] = 9

    def cut_plane(state):
        state["state"][0]["m.base"] = state["state"][0]["m.base"][:-1]

    def lose_plane(state):
        del state["state"][2]["v.base"]

    def cut_record(state):
        state["state"][0]["record"] = state["state"][0]["record"][:-1]

    def wrong_width(state):
        state["state"][0]["record"][0] = 77

    expect_unchanged(optimizer, damaged(set_version), NotImplementedError, "version 9")
    expect_unchanged(optimizer, damaged(cut_plane), ValueError, "m.base", "0.weight")
    expect_unchanged(optimizer, damaged(lose_plane), ValueError, "v.base", "2.weight")
    expect_unchanged(optimizer, damaged(cut_record), ValueError, "another")
    expect_unchanged(optimizer, damaged(wrong_width), ValueError, "0.weight", "77")
    optimizer.load_state_dict(good)


def test_other_groups():
    network, optimizer = trained(1)
    other = stquant.AdamW(network[0].parameters())
    with raises(ValueError, "[4]", "[2]"):
        other.load_state_dict(optimizer.state_dict())


def test_other_shapes():
    network, optimizer = trained(1, policy="fixed")
    other = torch.nn.Sequential(torch.nn.Linear(200, 320), torch.nn.Linear(320, 256))
    one = stquant.AdamW(other.parameters(), policy="fixed")
    with raises(ValueError, "m.base", "0.weight"):
        one.load_state_dict(optimizer.state_dict())
    with raises(ValueError, "(320, 256)", "(320, 200)"):
        one.load_full_precision_state_dict(optimizer.full_precision_state_dict())


def test_amsgrad_is_refused():
    network = small_network()
    reference = torch.optim.AdamW(network.parameters(), amsgrad=True)
    step_with(reference, network, 0)
    with raises(ValueError, "AMSGrad"):
        stquant.AdamW(network.parameters()).load_full_precision_state_dict(reference.state_dict())
