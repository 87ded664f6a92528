"""Steps of stquant.AdamW on a CPU: against torch's AdamW, and everything that torch's optimizers are used with."""

import copy
import math

import pytest
import torch
from common import give_gradients, largest_difference, pair_of_networks, raises, small_network, step_with

import stquant

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("policy", ["float32", "zones"])
def test_float32_states_are_torch_adamw(policy):
    """Exempt tensors are within 1e-6 of torch's over 100 steps. Both round each of the 100 updates of parameters below
    0.4, so that both are some 1e-7 from the same steps in double."""
    ours, optimizer, theirs, reference = pair_of_networks(
        lr=3e-3, betas=(0.9, 0.98), eps=1e-7, weight_decay=0.1, policy=policy, bits=32
    )
    for step in range(100):
        step_with(optimizer, ours, step)
        step_with(reference, theirs, step)
    assert largest_difference(ours.parameters(), theirs.parameters()) <= 1e-6


def test_eight_bits_keep_the_direction():
    """8-bit states from the same point on: the cosine of 20 accumulated updates, and of a single one, is above 0.999."""
    ours, optimizer, theirs, reference = pair_of_networks(lr=1e-3, weight_decay=0.0, policy="fixed", fixed_bits=8)
    start = [p.detach().clone() for p in theirs.parameters()]
    before = None
    for step in range(20):
        before = [[p.detach().clone() for p in n.parameters()] for n in (ours, theirs)]
        step_with(optimizer, ours, step)
        step_with(reference, theirs, step)
    for since_mine, since_other in [(start, start), before]:
        update = torch.cat([(p - s).flatten() for p, s in zip(ours.parameters(), since_mine)])
        expected = torch.cat([(p - s).flatten() for p, s in zip(theirs.parameters(), since_other)])
        cosine = torch.nn.functional.cosine_similarity(update.double(), expected.double(), dim=0).item()
        assert 0.999 < cosine < 1.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    """Every parameter dtype learns; the states' bytes stay under the cap."""
    network = small_network(dtype)
    optimizer = stquant.AdamW(network.parameters(), lr=1e-2, state_bits=5.0)
    before = [p.detach().clone() for p in network.parameters()]
    for step in range(3):
        step_with(optimizer, network, step)
    for old, new in zip(before, network.parameters()):
        assert new.dtype is dtype and new.isfinite().all() and (old != new).float().mean() > 0.9
    assert optimizer.telemetry()["peak_state_bytes"] * 8 <= 5.0 * 2 * sum(p.numel() for p in network.parameters())


def test_states_are_torch_memory():
    """Every plane and scale is a tensor of torch's: their bytes are the reported ones but for the host's records."""
    network = small_network()
    optimizer = stquant.AdamW(network.parameters(), state_bits=5.0)
    step_with(optimizer, network, 0)
    held = sum(tensor.numel() for tensor, _ in optimizer._engine.memory.tensors.values())
    reported = optimizer.telemetry()["state_bytes"]
    assert 0 < reported - held < 16384
    optimizer._engine.close()
    assert not optimizer._engine.memory.tensors


def test_equal_seeds_are_equal_bits():
    digests = []
    for seed in (1, 1, 2):
        network = small_network()
        optimizer = stquant.AdamW(network.parameters(), seed=seed)
        for step in range(4):
            step_with(optimizer, network, step)
        digests.append(optimizer._engine.digest())
    assert digests[0] == digests[1] != digests[2]


def test_param_groups_have_their_own_values():
    """lr, decay and bits of each group; the second group's learning rate of 0 leaves its tensors alone."""
    network = small_network()
    first, second = network[0], network[2]
    groups = [
        {"params": first.parameters(), "bits": (6, 3)},
        {"params": second.parameters(), "lr": 0.0, "bits": 32},
    ]
    optimizer = stquant.AdamW(groups, lr=1e-2, state_bits=20.0)
    before = copy.deepcopy(second.state_dict())
    step_with(optimizer, network, 0)
    widths = [(info.m_bits, info.v_bits) for info in map(optimizer._engine.tensor_info, range(4))]
    assert widths == [(6, 3), (6, 3), (32, 32), (32, 32)]
    assert all((second.state_dict()[key] == value).all() for key, value in before.items())


@pytest.mark.parametrize("groups", [False, True])
def test_names_that_occur_twice(groups):
    """As torch does, stquant.AdamW takes the named parameters of two models, whose names are the same."""
    models = [small_network(), small_network()]
    named = [list(model.named_parameters()) for model in models]
    optimizer = stquant.AdamW([{"params": one} for one in named] if groups else named[0] + named[1])
    for model in models:
        give_gradients(model.parameters(), 0)
    optimizer.step()
    numbers = optimizer.telemetry()
    assert numbers["m_bits/0.weight"] > 0 and numbers["m_bits/0.weight#2"] > 0
    assert [line.split()[0] for line in stquant.memory_summary(optimizer).splitlines()[1:9]] == [
        name + again for again in ("", "#2") for name, _ in named[0]
    ]


@pytest.mark.parametrize("along", ["row", "column"])
def test_shared_second_moment(along):
    """One mean a row or column: the bytes of v nearly vanish, and the network learns."""
    network = small_network()
    matrices = [network[0].weight, network[2].weight]
    vectors = [network[0].bias, network[2].bias]
    optimizer = stquant.AdamW([{"params": matrices, "bits": (4, along)}, {"params": vectors}], lr=1e-3)
    data = torch.randn(16, 256, generator=torch.Generator().manual_seed(2))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (network(data) - data).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    numbers = optimizer.telemetry()
    assert numbers["mean_v_bits"] < 0.2 and numbers["mean_m_bits"] == 4
    assert f" {along[:3]} " in stquant.memory_summary(optimizer)


def test_schedulers_change_the_step():
    """OneCycleLR moves the learning rate and beta1 of ours as it does torch's."""
    ours, optimizer, theirs, reference = pair_of_networks(lr=1e-3, policy="float32")
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1e-2, total_steps=30) for o in (optimizer, reference)
    ]
    for step in range(25):
        step_with(optimizer, ours, step)
        step_with(reference, theirs, step)
        for schedule in schedules:
            schedule.step()
    assert largest_difference(ours.parameters(), theirs.parameters()) < 1e-6
    assert optimizer.param_groups[0]["lr"] == reference.param_groups[0]["lr"]


def test_tensor_learning_rate():
    network = small_network()
    optimizer = stquant.AdamW(network.parameters(), lr=torch.tensor(0.0))
    before = [p.detach().clone() for p in network.parameters()]
    step_with(optimizer, network, 0)
    assert largest_difference(before, network.parameters()) == 0
    optimizer.param_groups[0]["lr"].fill_(1e-2)
    step_with(optimizer, network, 1)
    assert largest_difference(before, network.parameters()) > 1e-3


def test_closure():
    network = small_network()
    optimizer = stquant.AdamW(network.parameters(), lr=1e-2)
    data = torch.randn(8, 256, generator=torch.Generator().manual_seed(5))

    def closure():
        optimizer.zero_grad()
        loss = network(data).square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(10)]
    assert losses[-1] < 0.5 * losses[0]


def test_parameters_without_gradient_are_left_alone():
    """As in torch: no decay, no update, and a step count of their own."""
    ours, optimizer, theirs, reference = pair_of_networks(lr=1e-2, weight_decay=0.1, policy="float32")
    for step in range(9):
        for network, one in ((ours, optimizer), (theirs, reference)):
            give_gradients(network.parameters(), step)
            if step % 3:
                network[2].weight.grad = None
            one.step()
            one.zero_grad(set_to_none=True)
    assert largest_difference(ours.parameters(), theirs.parameters()) < 1e-6
    assert all(p.grad is None for p in ours.parameters())
    before = [p.detach().clone() for p in ours.parameters()]
    optimizer.step()
    assert largest_difference(before, ours.parameters()) == 0 and optimizer.steps == 9


def test_zero_grad_in_place():
    """set_to_none=False: zero gradients decay the moments, as in torch."""
    ours, optimizer, theirs, reference = pair_of_networks(lr=1e-2, policy="float32")
    for network, one in ((ours, optimizer), (theirs, reference)):
        step_with(one, network, 0)
        one.zero_grad(set_to_none=False)
        one.step()
    assert largest_difference(ours.parameters(), theirs.parameters()) < 1e-6


def test_gradients_in_other_places():
    """What is remembered of the step before changes nothing: the same tensors, new ones, other strides, none, parameters
    elsewhere and sparse gradients, against an optimizer that looks at everything in every step."""
    networks = [small_network(), small_network()]
    optimizers = [stquant.AdamW(network.parameters(), lr=1e-2, policy="fixed", fixed_bits=5) for network in networks]
    for step in range(14):
        for network, optimizer in zip(networks, optimizers):
            if step not in (1, 2):  # there the gradients stay the same tensors
                optimizer.zero_grad()
            if step == 2:
                network[0].weight.grad.mul_(0.5)
            if step not in (1, 2):
                give_gradients(network.parameters(), step)
            weight = network[2].weight
            if step in (5, 6, 9):
                weight.grad = weight.grad.t().contiguous().t()
            if step == 7:
                weight.grad = None
            if step == 8:
                weight.data = weight.data.clone()
            if step == 10:
                weight.grad.data = weight.grad.data.clone()
            if optimizer is optimizers[1]:
                optimizer._attached = None
            optimizer.step()
        assert largest_difference(networks[0].parameters(), networks[1].parameters()) == 0
    weight.grad = weight.grad.to_sparse()
    with raises(ValueError, "is sparse"):
        optimizers[1].step()


@pytest.mark.parametrize("norm", [1e-2, 1e6])
def test_clipping_is_clip_grad_norm(norm):
    ours, optimizer, theirs, reference = pair_of_networks(lr=1e-3, eps=1e-4, policy="float32", max_grad_norm=norm)
    for step in range(10):
        step_with(optimizer, ours, step)
        give_gradients(theirs.parameters(), step)
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), norm)
        reference.step()
        assert optimizer.telemetry()["gradient_norm"] == pytest.approx(expected.item(), rel=1e-5)
    # The clip factor is rounded once here and the gradients twice there: a relative 1e-7 of updates of the size lr.
    assert largest_difference(ours.parameters(), theirs.parameters()) < 1e-5


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_non_finite_gradients_skip_the_step(bad):
    network = small_network()
    optimizer = stquant.AdamW(network.parameters(), lr=1e-2)
    step_with(optimizer, network, 0)
    before, digest = [p.detach().clone() for p in network.parameters()], optimizer._engine.digest()
    give_gradients(network.parameters(), 1)
    network[2].bias.grad[3] = bad
    optimizer.step()
    assert largest_difference(before, network.parameters()) == 0
    assert optimizer._engine.digest() == digest
    assert (optimizer.steps, optimizer.skipped_steps) == (1, 1)


def test_grad_scaler():
    """Scaled losses train as unscaled ones; an overflow skips the step and lowers the scale."""
    data = torch.randn(16, 256, generator=torch.Generator().manual_seed(3))
    results = []
    for enabled in (False, True):
        network = small_network()
        optimizer = stquant.AdamW(network.parameters(), lr=1e-3, policy="float32", max_grad_norm=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        for step in range(6):
            optimizer.zero_grad()
            scaler.scale(network(data).square().mean()).backward()
            if enabled and step == 3:
                network[0].weight.grad[0, 0] = math.inf
                scaler.step(optimizer)
                scaler.update()
                assert scaler.get_scale() == 512.0 and optimizer.skipped_steps == 1
                optimizer.zero_grad()
                scaler.scale(network(data).square().mean()).backward()
            if step == 4:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert optimizer.steps == 6
        results.append([p.detach() for p in network.parameters()])
    # Powers of two scale exactly, so that only the order of the sums behind the norm could differ, which does not.
    assert largest_difference(*results) < 1e-7


def test_add_param_group_keeps_states():
    """A group added in the middle: the first group's states and widths stay, bit for bit."""
    network = small_network()
    optimizer = stquant.AdamW(network[0].parameters(), lr=1e-3, policy="fixed", fixed_bits=5)
    for step in range(5):
        give_gradients(network.parameters(), step)
        optimizer.step()
    other = copy.deepcopy(network)
    alone = stquant.AdamW(other[0].parameters(), lr=1e-3, policy="fixed", fixed_bits=5)
    alone.load_state_dict(optimizer.state_dict())
    optimizer.add_param_group({"params": network[2].parameters(), "lr": 1e-2})
    for step in range(5, 10):
        for mine, one in ((network, optimizer), (other, alone)):
            give_gradients(mine.parameters(), step)
            one.step()
    assert optimizer.steps == 10
    assert largest_difference(network[0].parameters(), other[0].parameters()) == 0
    assert (network[2].weight != other[2].weight).any()


def test_channels_last_and_transposed_parameters():
    """Dense parameters in other orders of memory, with gradients in any order, train as contiguous ones do."""
    generator = torch.Generator().manual_seed(4)
    weights = [torch.randn(32, 16, 3, 3, generator=generator), torch.randn(96, 64, generator=generator)]
    layouts = [weights[0].contiguous(memory_format=torch.channels_last), weights[1].t().contiguous().t()]
    results = []
    for tensors in (weights, layouts):
        parameters = [torch.nn.Parameter(t.clone(memory_format=torch.preserve_format)) for t in tensors]
        optimizer = stquant.AdamW(parameters, lr=1e-2, policy="float32")
        for step in range(3):
            give_gradients(parameters, step)
            optimizer.step()
        results.append(parameters)
    assert results[1][0].stride() == layouts[0].stride()
    assert largest_difference(*results) == 0


def test_scalars_empty_tensors_and_vectors():
    parameters = [torch.nn.Parameter(t) for t in (torch.tensor(2.0), torch.zeros(0, 5), torch.ones(7))]
    optimizer = stquant.AdamW(parameters, lr=0.1, weight_decay=0.0)
    give_gradients(parameters, 0)
    optimizer.step()
    assert parameters[0].item() != 2.0 and (parameters[2] != 1.0).all()


def test_autograd_sees_the_update():
    """The C library writes behind autograd's back; the version counter tells it, so that stale graphs raise."""
    weight = torch.nn.Parameter(torch.ones(5))
    optimizer = stquant.AdamW([weight], lr=0.1)
    loss = (weight**2).sum()
    weight.grad = torch.ones(5)
    optimizer.step()
    with raises(RuntimeError, "modified by an inplace operation"):
        loss.backward()


def test_hooks_run():
    network = small_network()
    optimizer = stquant.AdamW(network.parameters())
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    step_with(optimizer, network, 0)
    assert calls == ["before", "after"]


# ---- Refusals: one sentence that names the thing ----


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"lr": -1.0}, ["learning rate is -1"]),
        ({"betas": (0.9, 1.0)}, ["beta2 is 1"]),
        ({"eps": 0.0}, ["epsilon is 0"]),
        ({"policy": "wishful"}, ["'wishful'", "rate-distortion"]),
        ({"cap_mode": "never"}, ["'never'"]),
        ({"bits": 9}, ["bits is 9"]),
        ({"bits": (32, 4)}, ["bits is (32, 4)"]),
        ({"bits": (4, "diagonal")}, ["'diagonal'", "'row'"]),
        ({"bits": (4, "row"), "portable_state": True}, ["shared", "group0.0"]),
        ({"fixed_bits": 1}, ["fixed_bits"]),
        ({"error_compensation": 1.5}, ["error compensation is 1.5"]),
        ({"lowest_bits": 7, "highest_bits": 3}, ["7", "3"]),
        ({"decide_every": 0}, ["0"]),
    ],
)
def test_arguments_out_of_range(arguments, words):
    with raises(ValueError, *words):
        stquant.AdamW(small_network().parameters(), **arguments)


def test_cap_too_small_names_the_smallest():
    with raises(stquant.CapTooSmallError, "bytes"):
        stquant.AdamW(small_network().parameters(), state_bits=1.0)


def test_no_parameters():
    with raises(ValueError, "empty parameter list"):
        stquant.AdamW([])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float64])
def test_dtypes_that_are_not_supported(dtype):
    with raises(ValueError, str(dtype)):
        stquant.AdamW([torch.nn.Parameter(torch.zeros(4, dtype=dtype))])


def test_parameter_with_gaps():
    with raises(ValueError, "contiguous"):
        stquant.AdamW([torch.zeros(8, 8)[:, ::2].requires_grad_()])


def test_sparse_gradient():
    table = torch.nn.Embedding(10, 4, sparse=True)
    optimizer = stquant.AdamW(table.parameters())
    table(torch.tensor([1, 2])).sum().backward()
    with raises(ValueError, "'group0.0' is sparse"):
        optimizer.step()


def test_converted_model():
    network = small_network()
    optimizer = stquant.AdamW(network.named_parameters())
    step_with(optimizer, network, 0)
    network.to(torch.bfloat16)
    give_gradients(network.parameters(), 1)
    with raises(ValueError, "'0.weight' is now torch.bfloat16"):
        optimizer.step()


def test_a_failing_allocation_changes_nothing():
    network = small_network()
    optimizer = stquant.AdamW(network.parameters())
    before = [p.detach().clone() for p in network.parameters()]
    engine = optimizer._open()
    real, engine.memory.device = engine.memory.device, torch.device("cuda:99")
    give_gradients(network.parameters(), 0)
    with pytest.raises((AssertionError, RuntimeError)):  # torch's own error, whatever it is in this build
        optimizer.step()
    assert largest_difference(before, network.parameters()) == 0 and optimizer.steps == 0
    engine.memory.device = real
    optimizer.step()
    assert optimizer.steps == 1
