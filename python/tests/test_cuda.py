"""The package on a GPU: the CPU's bytes, torch's memory, streams, loss scaling, graphs. Skipped where there is none."""

import copy
import math
import time

import pytest
import torch
from common import largest_difference, raises, small_network

import stquant
from stquant._fake_quantize import FakeQuantize, Quantization, initial_steps


def has_backend():
    """A GPU, and a library that was built for it."""
    if not torch.cuda.is_available():
        return False
    try:
        stquant.AdamW([torch.nn.Parameter(torch.zeros(8, device="cuda"))])
    except NotImplementedError:
        return False
    return True


pytestmark = pytest.mark.skipif(not has_backend(), reason="needs a GPU and a library built with CUDA")

OPTIONS = {"lr": 1e-2, "decide_every": 7, "max_grad_norm": 10.0}


def on_gpu(network):
    return copy.deepcopy(network).cuda()


def give_same_gradients(network, seed):
    """Gradients are drawn on the CPU, so that they are the same everywhere."""
    for parameter in network.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad.copy_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def assert_same_steps(network, here, other, there):
    """Twelve steps of both optimizers on the same gradients: equal parameters and equal digests of the states."""
    for step in range(12):
        give_same_gradients(network, step)
        give_same_gradients(other, step)
        here.step()
        there.step()
    assert here._engine.digest() == there._engine.digest()
    assert all(torch.equal(a, b.cpu()) for a, b in zip(network.parameters(), other.parameters()))


@pytest.mark.parametrize("policy", [{"policy": "fixed", "fixed_bits": (3, 7)}, {"policy": "fixed", "fixed_bits": 5},
                                    {"policy": "float32"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_cpus_bytes(policy, dtype):
    """Twelve clipped steps on the same gradients: equal parameters and equal digests of the states."""
    network = small_network(dtype)
    other = on_gpu(network)
    # Norms of both are the library's own sums, which have the same bits on both devices.
    here, there = stquant.AdamW(network.parameters(), **OPTIONS, **policy), stquant.AdamW(other.parameters(), **OPTIONS, **policy)
    assert_same_steps(network, here, other, there)
    assert there.steps == 12


@pytest.mark.parametrize("shared", ["row", "column"])
def test_the_cpus_bytes_of_shared_second_moments(shared):
    network = small_network(torch.bfloat16)
    other = on_gpu(network)
    options = {**OPTIONS, "policy": "fixed", "bits": (4, shared)}
    here, there = stquant.AdamW(network.parameters(), **options), stquant.AdamW(other.parameters(), **options)
    assert_same_steps(network, here, other, there)


def test_second_moments_are_shared_where_the_policy_may():
    """Gradients of one size everywhere: sharing costs nothing, and the cap asks for it."""
    network = on_gpu(torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(3))))
    optimizer = stquant.AdamW(network.parameters(), lr=1e-3, decide_every=5, state_bits=3.2, shared_v=True)
    for step in range(40):
        for parameter in network.parameters():
            parameter.grad = torch.where(torch.rand_like(parameter) < 0.5, 1e-3, -1e-3)
        optimizer.step()
    widths = [optimizer._engine.tensor_info(index).v_bits for index in range(6)]
    assert any(width > 32 for width in widths)
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


def test_states_are_torch_memory():
    """torch's accounting shows planes and scales, and the cap holds on what it shows."""
    network = on_gpu(torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(8))))
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    optimizer = stquant.AdamW(network.parameters(), state_bits=5.0)
    optimizer.step()
    held = torch.cuda.memory_allocated() - before
    parameters = sum(p.numel() for p in network.parameters())
    assert 0.9 * optimizer.telemetry()["state_bytes"] < held <= parameters * 2 * 5.0 / 8
    del optimizer
    assert torch.cuda.memory_allocated() == before


def test_cap_holds_on_a_gpu():
    network = on_gpu(small_network())
    optimizer = stquant.AdamW(network.parameters(), state_bits=6.0, **OPTIONS)
    for step in range(22):
        give_same_gradients(network, step)
        optimizer.step()
    usage = optimizer._engine.usage()
    assert usage.peak_bytes <= usage.cap_bytes and optimizer.steps == 22
    assert "exempt" in stquant.memory_summary(optimizer)


def test_ordinary_steps_do_not_wait():
    """torch reports every synchronization of its own as an error; the library's would show as time (test_speed)."""
    network = on_gpu(small_network())
    optimizer = stquant.AdamW(network.parameters(), **OPTIONS)
    for step in range(2):
        give_same_gradients(network, step)
        optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.steps == 3


def test_other_stream():
    results = []
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        network = on_gpu(small_network())
        optimizer = stquant.AdamW(network.parameters(), **OPTIONS)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for step in range(16):
                give_same_gradients(network, step)
                optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        results.append([p.detach().clone() for p in network.parameters()])
    assert largest_difference(*results) == 0


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_non_finite_gradients_skip_the_step(bad):
    network = on_gpu(small_network())
    optimizer = stquant.AdamW(network.parameters(), **OPTIONS)
    for step in range(5):
        give_same_gradients(network, step)
        if step in (0, 3):
            network[2].bias.grad[3] = bad
            before = [p.detach().clone() for p in network.parameters()]
        optimizer.step()
        if step in (0, 3):
            assert largest_difference(before, network.parameters()) == 0
    assert (optimizer.steps, optimizer.skipped_steps) == (3, 2)


def test_grad_scaler():
    network = on_gpu(small_network())
    optimizer = stquant.AdamW(network.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**30, growth_interval=4)
    data = torch.randn(32, 256, device="cuda")
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = (network(data) - data).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert optimizer.skipped_steps > 0 and optimizer.steps + optimizer.skipped_steps == 60
    assert losses[-1] < 0.5 * losses[0]


def test_states_move_between_devices():
    """Saved on the GPU, resumed on the CPU and back: bit for bit, with fixed widths."""
    options = {**OPTIONS, "policy": "fixed", "fixed_bits": (5, 4)}
    network = on_gpu(small_network())
    optimizer = stquant.AdamW(network.parameters(), **options)
    for step in range(4):
        give_same_gradients(network, step)
        optimizer.step()
    here = copy.deepcopy(network).cpu()
    resumed = stquant.AdamW(here.parameters(), **options)
    resumed.load_state_dict(optimizer.state_dict())
    again = stquant.AdamW(copy.deepcopy(network).parameters(), **options)
    again.load_state_dict(resumed.state_dict())
    assert optimizer._engine.digest() == resumed._engine.digest() == again._engine.digest()
    for one, with_network in ((optimizer, network), (resumed, here)):
        give_same_gradients(with_network, 9)
        one.step()
    assert optimizer._engine.digest() == resumed._engine.digest()
    reference = torch.optim.AdamW(network.parameters(), fused=True)
    reference.load_state_dict(optimizer.full_precision_state_dict())
    give_same_gradients(network, 10)
    reference.step()
    optimizer.load_full_precision_state_dict(reference.state_dict())
    assert optimizer.steps == 6


# ---- CUDA graphs ----


def scheduled_rate(step):
    return 1e-2 * (1 + step % 5)


def run_with_graph(use_graph, steps):
    """Steps on given gradients, ordinary ones replayed from a graph; learning rates change at each step."""
    network = on_gpu(small_network())
    optimizer = stquant.AdamW(network.parameters(), lr=1e-2, decide_every=7, state_bits=6.0)
    graph = None
    for step in range(steps):
        give_same_gradients(network, step)
        optimizer.param_groups[0]["lr"] = scheduled_rate(step)
        if not use_graph or step < 2 or optimizer.decision_due():
            optimizer.step()
            continue
        optimizer.update_groups()
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step()
        graph.replay()
        optimizer.count_replay()
    assert optimizer.steps == steps
    return [p.detach().clone() for p in network.parameters()], optimizer


def test_graph_replays_are_steps():
    eager, one = run_with_graph(False, 24)
    replayed, other = run_with_graph(True, 24)
    assert largest_difference(eager, replayed) == 0
    assert one._engine.digest() == other._engine.digest()


def test_changed_groups_are_not_captured():
    network = on_gpu(small_network())
    optimizer = stquant.AdamW(network.parameters())
    for step in range(2):
        give_same_gradients(network, step)
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5
    with raises(RuntimeError, "update_groups()"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            optimizer.step()


def test_a_decision_is_not_captured():
    network = on_gpu(small_network())
    optimizer = stquant.AdamW(network.parameters(), decide_every=3)
    for step in range(2):
        give_same_gradients(network, step)
        optimizer.step()
    assert optimizer.decision_due()
    with raises(RuntimeError, "decision_due()"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            optimizer.step()


# ---- Speed: printed with -s; the bounds are those that the package promises on an H100 ----


def gpt2_xl_shapes(width=1600, layers=24):
    shapes = [(50257, width), (1024, width), (width,), (width,)]
    for _ in range(layers):
        shapes += [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,)]
        shapes += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return shapes


def test_decisions_wait_for_nothing():
    """Steps around a decision that changes no width, on a stream that is kept busy: none waits until it is done."""
    network = on_gpu(torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(4))))
    optimizer = stquant.AdamW(network.parameters(), lr=1e-3, decide_every=40, state_bits=5.0)
    busy = torch.randn(8192, 8192, device="cuda")
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    for _ in range(38):
        optimizer.step()
    torch.cuda.synchronize()
    widths = [optimizer._engine.tensor_info(index).m_bits for index in range(8)]
    waited = []
    for _ in range(2):  # steps 39 and 40: the second one measures
        for _ in range(6):
            busy @ busy
        begin = time.perf_counter()
        optimizer.step()
        waited.append(time.perf_counter() - begin)
    kept_busy = not torch.cuda.current_stream().query()
    print(f"steps 39 and 40 returned after {1e3 * waited[0]:.2f} and {1e3 * waited[1]:.2f} ms")
    optimizer.step()
    optimizer.step()
    assert kept_busy, "the products were over before the steps returned"
    assert optimizer.steps == 42 and len(widths) == 8


def test_speed():
    """292 bfloat16 tensors shaped as GPT-2, 820M parameters, through optimizer.step()."""
    parameters = [torch.nn.Parameter(torch.randn(s, device="cuda").bfloat16()) for s in gpt2_xl_shapes()]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    optimizer = stquant.AdamW(parameters, lr=1e-4, policy="fixed", fixed_bits=5)
    reference = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    times = {}
    for name, one in (("stquant", optimizer), ("torch fused", reference)):
        host, whole = [], []
        torch.cuda.synchronize()
        begin = time.perf_counter()
        one.step()
        torch.cuda.synchronize()
        first = time.perf_counter() - begin
        for _ in range(40):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            one.step()
            returned = time.perf_counter()
            torch.cuda.synchronize()
            host.append(returned - begin)
            whole.append(time.perf_counter() - begin)
        times[name] = [1000 * sorted(values)[len(values) // 2] for values in (host, whole)] + [1000 * first]
        print(f"\n{name}: host {times[name][0]:.3f} ms, whole step {times[name][1]:.3f} ms, first {times[name][2]:.1f} ms")
    bits = optimizer._engine.usage().final_bits
    print(f"{torch.cuda.get_device_name()}, {bits:.3f} bits a value, "
          f"{sum(p.numel() for p in parameters) / 1e6:.0f}M parameters in {len(parameters)} tensors")
    assert times["stquant"][1] < times["torch fused"][1]
    assert times["stquant"][0] < 0.5


QUANTIZATIONS = [
    Quantization(4), Quantization(2, "ste"), Quantization(3, "dsq"), Quantization(4, "stable", (0.15, 0.05, -0.02), group=24),
]


@pytest.mark.parametrize("settings", QUANTIZATIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fake_quantization_gives_the_cpus_bytes(settings, dtype):
    generator = torch.Generator().manual_seed(1)
    weight, gradient = (torch.randn(40, 1248, generator=generator).to(dtype) for _ in range(2))
    results = []
    for device in ("cpu", "cuda"):
        w = weight.detach().clone().to(device).requires_grad_()
        steps = (0.8 * initial_steps(w, settings)).requires_grad_()
        quantized = FakeQuantize.apply(w, steps, settings)
        quantized.backward(gradient.to(device))
        results.append([t.cpu() for t in (steps, quantized, w.grad, steps.grad)])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_fake_quantization_works_on_the_current_stream():
    """A captured graph refuses whatever waits for the device or works on another stream."""
    settings = Quantization(4)
    weight = torch.randn(64, 768, device="cuda", requires_grad=True)
    steps = initial_steps(weight, settings).requires_grad_()
    gradient = torch.randn(64, 768, device="cuda")
    FakeQuantize.apply(weight, steps, settings).backward(gradient)
    expected = weight.grad.clone(), steps.grad.clone()
    graph = torch.cuda.CUDAGraph()
    weight.grad = steps.grad = None
    with torch.cuda.graph(graph):
        gradients = torch.autograd.grad(FakeQuantize.apply(weight, steps, settings), (weight, steps), gradient)
    for tensor in gradients:
        tensor.zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected))


def test_prepared_models_train_and_export_from_a_gpu(tmp_path):
    network = small_network().cuda()
    plain = copy.deepcopy(network)
    stquant.qat.prepare(network, bits=4)
    assert all(step.is_cuda for step in stquant.qat.steps(network))
    optimizer = stquant.AdamW(stquant.qat.parameter_groups(network), lr=1e-3)
    x = torch.randn(32, 256, device="cuda")
    losses = []
    for _ in range(10):
        loss = (network(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    stquant.qat.export(network, tmp_path / "low.safetensors")
    plain.load_state_dict(stquant.qat.load(tmp_path / "low.safetensors"))
    assert torch.equal(plain(x), network(x))


def test_steps_elsewhere_are_refused():
    weight = torch.randn(8, 16, device="cuda")
    with raises(ValueError, "its steps are on cpu"):
        FakeQuantize.apply(weight, torch.ones(8), Quantization(4))
