"""DDP, FSDP2 (DTensor), tensor parallelism and torch.distributed.checkpoint, over gloo with several processes.

Gradients of the comparisons are given, not computed, so that sharded and whole runs see the same bits.
"""

import copy
import math

import pytest
import ranks as ranks_of
import torch
import torch.distributed as dist
from common import seeded, small_network

import stquant

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no distributed package")

# rows x columns: whole blocks in a row; blocks across rows, with even and odd cuts; fewer rows than ranks; vectors.
SHAPES = [(50, 128), (96, 320), (33, 200), (2, 64), (300,), (2,), ()]
OPTIONS = {"lr": 1e-2, "decide_every": 4, "max_grad_norm": 20.0, "state_bits": 6.0}


BACKENDS = ["gloo"] + (["nccl"] if torch.cuda.is_available() and torch.cuda.device_count() > 1 else [])


def run(ranks, function, *arguments, backend):
    """On that many processes; with NCCL at most one a GPU."""
    ranks_of.run(ranks if backend == "gloo" else min(ranks, torch.cuda.device_count()), function, *arguments, backend=backend)


def device():
    """Where this rank works."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def whole_parameters(seed=1):
    generator = seeded(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device())) for shape in SHAPES]


def gradients_of(step):
    generator = seeded(1000 + step)
    return [(torch.randn(shape, generator=generator) * (1 + i)).to(device()) for i, shape in enumerate(SHAPES)]


def sharded_parameters(mesh, placements, seed=1):
    from torch.distributed.tensor import Replicate, distribute_tensor

    shards = []
    for parameter in whole_parameters(seed):
        own = placements if parameter.dim() else [Replicate()] * mesh.ndim
        shards.append(torch.nn.Parameter(distribute_tensor(parameter.detach(), mesh, own)))
    return shards


def take_steps(optimizer, parameters, steps):
    """Steps on given gradients, cut as the parameters are."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    for step in steps:
        for parameter, gradient in zip(parameters, gradients_of(step)):
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = gradient
        optimizer.step()


def whole_run(steps, **options):
    parameters = whole_parameters()
    optimizer = stquant.AdamW(parameters, **{**OPTIONS, **options})
    take_steps(optimizer, parameters, steps)
    return parameters, optimizer


def widths(optimizer):
    infos = map(optimizer._engine.tensor_info, range(len(optimizer._flat)))
    return [(info.m_bits, info.v_bits) for info in infos]


def gathered(parameters):
    from torch.distributed.tensor import DTensor

    return [p.detach().full_tensor() if isinstance(p, DTensor) else p.detach() for p in parameters]


# ---- DDP ----


def ddp_replicas(rank, ranks):
    from torch.nn.parallel import DistributedDataParallel

    network = DistributedDataParallel(small_network().to(device()))
    optimizer = stquant.AdamW(network.parameters(), lr=1e-3, decide_every=3, max_grad_norm=1.0)
    data = torch.randn(10, 8, 256, generator=seeded(rank)).to(device())
    for batch in data:
        optimizer.zero_grad()
        (network(batch) - batch).square().mean().backward()
        optimizer.step()
    digests = [None] * ranks
    dist.all_gather_object(digests, (optimizer._engine.digest(), [p.sum().item() for p in network.parameters()]))
    assert all(digest == digests[0] for digest in digests)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ddp_replicas_stay_bit_identical(backend):
    run(2, ddp_replicas, backend=backend)


# ---- DTensor shards against the whole ----


def shards_equal_the_whole(rank, ranks, policy):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard

    mesh = init_device_mesh(device(), (ranks,))
    parameters = sharded_parameters(mesh, [Shard(0)])
    optimizer = stquant.AdamW(parameters, policy=policy, **OPTIONS)
    expected, whole = whole_run(range(9), policy=policy)
    take_steps(optimizer, parameters, range(9))
    assert widths(optimizer) == widths(whole)
    for index, (mine, other) in enumerate(zip(gathered(parameters), expected)):
        rows_end_with_blocks = index in (0, 3) or other.dim() < 2
        if rows_end_with_blocks or policy == "float32":
            assert torch.equal(mine, other), SHAPES[index]
        else:  # other blocks, other roundings: the same steps but for those
            assert torch.nn.functional.cosine_similarity(mine.flatten(), other.flatten(), dim=0) > 0.999
    total = torch.tensor(float(optimizer._engine.usage().state_bytes), device=device())
    dist.all_reduce(total)
    assert total < 1.35 * whole._engine.usage().state_bytes + 16384 * ranks  # the records are on every rank


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", ["zones", "float32"])
def test_shards_equal_the_whole(policy, backend):
    """Three ranks: uneven shards and empty ones. Widths, clipping and parameters are those of one process."""
    run(3, shards_equal_the_whole, policy, backend=backend)


def bad_gradient_on_one_rank(rank, ranks):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard

    mesh = init_device_mesh(device(), (ranks,))
    parameters = sharded_parameters(mesh, [Shard(0)])
    optimizer = stquant.AdamW(parameters, **OPTIONS)
    take_steps(optimizer, parameters, range(2))
    before = [p.to_local().clone() for p in parameters]
    if rank == 1:
        parameters[0].grad.to_local()[0, 0] = math.nan
    optimizer.step()
    assert (optimizer.steps, optimizer.skipped_steps) == (2, 1)
    assert all(torch.equal(p.to_local(), old) for p, old in zip(parameters, before))
    parameters[1].grad = None
    if rank == 1:
        parameters[0].grad.to_local()[0, 0] = 0.0
    optimizer.step()
    assert optimizer.steps == 3 and torch.equal(parameters[1].to_local(), before[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_gradient_on_one_rank_skips_the_step_on_all(backend):
    run(2, bad_gradient_on_one_rank, backend=backend)


def other_placements(rank, ranks):
    """Columns (tensor parallelism), and rows on a two-dimensional mesh with replicas."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    expected, whole = whole_run(range(6))
    columns = init_device_mesh(device(), (ranks,))
    hybrid = init_device_mesh(device(), (2, ranks // 2), mesh_dim_names=("replicate", "shard"))
    for mesh, placements in ((columns, [Shard(1)]), (hybrid, [Replicate(), Shard(0)])):
        chosen = [index for index, shape in enumerate(SHAPES) if len(shape) == 2]
        parameters = [
            torch.nn.Parameter(
                distribute_tensor(p.detach(), mesh, placements if i in chosen else [Replicate()] * mesh.ndim)
            )
            for i, p in enumerate(whole_parameters())
        ]
        optimizer = stquant.AdamW(parameters, **OPTIONS)
        take_steps(optimizer, parameters, range(6))
        assert widths(optimizer) == widths(whole)
        for mine, other in zip(gathered(parameters), expected):
            assert torch.nn.functional.cosine_similarity(mine.flatten(), other.flatten(), dim=0) > 0.999
        state = copy.deepcopy(optimizer.state_dict())
        again = stquant.AdamW(parameters, **OPTIONS)
        again.load_state_dict(state)
        assert widths(again) == widths(optimizer) and again.steps == 6


@pytest.mark.parametrize("backend", BACKENDS)
def test_columns_and_hybrid_meshes(backend):
    run(2, other_placements, backend=backend)


# ---- FSDP2 ----


def fsdp_trains(rank, ranks):
    from torch.distributed.fsdp import fully_shard

    data = torch.randn(1, 8, 256, generator=seeded(7)).expand(20, -1, -1).to(device())
    losses = []
    for sharded in (False, True):
        network = small_network(seed=3).to(device())
        if sharded:
            for layer in (network[0], network[2]):
                fully_shard(layer)
            fully_shard(network)
        optimizer = stquant.AdamW(network.parameters(), lr=1e-3, max_grad_norm=1.0)
        own = []
        for batch in data:
            optimizer.zero_grad()
            loss = (network(batch) - batch).square().mean()  # the same batch on every rank: the mean is the gradient
            loss.backward()
            optimizer.step()
            own.append(loss.item())
        losses.append(own)
        summary = stquant.memory_summary(optimizer)
        assert "all states" in summary
    # The gradients of the ranks are averaged in another order than they are computed in: floating-point noise.
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[1][-1] < 0.7 * losses[1][0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_fsdp2_trains_as_one_process(backend):
    run(2, fsdp_trains, backend=backend)


# ---- torch.distributed.checkpoint ----


class Holder(torch.nn.Module):
    """A module around given parameters, for torch's state-dict tools."""

    def __init__(self, parameters):
        super().__init__()
        self.weights = torch.nn.ParameterList(parameters)


def checkpointed(module, optimizer):
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, states = get_state_dict(module, optimizer)
    return {"model": model, "optimizer": states}


def save_run(rank, ranks, folder, steps):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard

    parameters = sharded_parameters(init_device_mesh(device(), (ranks,)), [Shard(0)])
    optimizer = stquant.AdamW(parameters, **OPTIONS)
    take_steps(optimizer, parameters, range(steps))
    dcp.save(checkpointed(Holder(parameters), optimizer), checkpoint_id=folder)


def load_run(rank, ranks, folder, steps, more, exact):
    """Resumes a checkpoint at this number of ranks and compares with a run of that number that was never interrupted."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import set_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard

    mesh = init_device_mesh(device(), (ranks,))
    expected = sharded_parameters(mesh, [Shard(0)])
    uninterrupted = stquant.AdamW(expected, **OPTIONS)
    take_steps(uninterrupted, expected, range(steps + more))

    parameters = sharded_parameters(mesh, [Shard(0)], seed=99)
    optimizer = stquant.AdamW(parameters, **{**OPTIONS, "lr": 7.0})
    holder = Holder(parameters)
    state = checkpointed(holder, optimizer)
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(holder, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    assert optimizer.steps == steps and optimizer.param_groups[0]["lr"] == OPTIONS["lr"]
    take_steps(optimizer, parameters, range(steps, steps + more))
    assert widths(optimizer) == widths(uninterrupted)
    for index, (mine, other) in enumerate(zip(gathered(parameters), gathered(expected))):
        if exact or index in (0, 3) or other.dim() < 2:
            assert torch.equal(mine, other), SHAPES[index]
        else:
            assert torch.nn.functional.cosine_similarity(mine.flatten(), other.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpoint_at_other_world_sizes(tmp_path, backend):
    """Saved on 3 ranks (2 with NCCL); resumed on 3 bit for bit, on 2 (1) bit for bit where rows end with blocks."""
    folder = str(tmp_path / "checkpoint")
    ranks = 3 if backend == "gloo" else 2
    run(ranks, save_run, folder, 6, backend=backend)
    run(ranks, load_run, folder, 6, 5, True, backend=backend)
    run(ranks - 1, load_run, folder, 6, 5, False, backend=backend)


def move_precision(rank, ranks):
    """Full-precision dictionaries of shards: to torch's AdamW and back."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    parameters = sharded_parameters(init_device_mesh(device(), (ranks,)), [Shard(0)])
    optimizer = stquant.AdamW(parameters, policy="float32", lr=1e-2)
    take_steps(optimizer, parameters, range(3))
    state = optimizer.full_precision_state_dict()
    assert isinstance(state["state"][0]["exp_avg"], DTensor)
    reference = torch.optim.AdamW(parameters, foreach=False)
    reference.load_state_dict(state)
    take_steps(reference, parameters, range(3, 5))
    back = stquant.AdamW(parameters, policy="float32")
    back.load_full_precision_state_dict(reference.state_dict())
    take_steps(back, parameters, range(5, 8))
    expected, _ = whole_run(range(8), policy="float32", max_grad_norm=None)
    assert all((mine - other).abs().max() < 1e-6 for mine, other in zip(gathered(parameters), expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_full_precision_of_shards(backend):
    run(2, move_precision, backend=backend)


# ---- ZeroRedundancyOptimizer ----


def zero_redundancy(rank, ranks):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    parameters, expected = whole_parameters(), whole_parameters()
    optimizer = ZeroRedundancyOptimizer(parameters, stquant.AdamW, lr=1e-2, policy="fixed", fixed_bits=8)
    take_steps(optimizer, parameters, range(4))
    reference = torch.optim.AdamW(expected, lr=1e-2)
    take_steps(reference, expected, range(4))
    for mine, other in zip(parameters, expected):
        assert torch.nn.functional.cosine_similarity(mine.flatten(), other.flatten(), dim=0) > 0.999
    held = torch.tensor(float(optimizer.optim._engine.usage().parameters), device=device())
    total = held.clone()
    dist.all_reduce(total)
    assert total == sum(p.numel() for p in parameters) and held < total


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_redundancy_optimizer(backend):
    run(2, zero_redundancy, backend=backend)
