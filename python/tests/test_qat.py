"""Quantization-aware training in PyTorch: gradients, prepared models, exported files."""

import json
import math
import os
import pathlib
import struct
import subprocess

import pytest
import torch

import stquant
from common import raises, seeded, small_network
from stquant import qat
from stquant._safetensors import read_safetensors
from stquant._fake_quantize import FakeQuantize, Quantization, initial_steps, pack, unpack

ALL = [
    Quantization(bits, estimator, amplitudes, 0.3, group)
    for bits in (1, 2, 3, 4, 8)
    for estimator, amplitudes in (("ste", (0.21,)), ("stable", (0.21,)), ("stable", (0.15, 0.02, -0.01)), ("dsq", (0.21,)))
    for group in (0, 16)
]


def matrix(seed, rows=24, cols=48):
    return torch.randn(rows, cols, generator=seeded(seed))


def factor(settings, d):
    """The estimator's factor in float64, as docs/qat.md has it."""
    if settings.estimator == "ste":
        return torch.ones_like(d)
    if settings.estimator == "dsq":
        k = math.log(2 / settings.softness - 1)
        return k / (2 * math.tanh(k / 2)) / torch.cosh(k * (0.5 - d.abs())) ** 2
    s = sum(math.sqrt(2) * math.pi * a * torch.cos((2 * k + 1) * math.pi * d) for k, a in enumerate(settings.amplitudes))
    return (1 - s) / (1 + s)


def slope(settings):
    """The largest derivative of the factor by d."""
    d = torch.linspace(-0.5, 0.5, 20001, dtype=torch.float64)
    return (factor(settings, d).diff() / d.diff()).abs().max().item()


def evaluate(settings, weight, steps, gradient):
    """Quantized weight and both gradients in float64; and where v is so near to an edge (1e-5) that float32 may choose
    the other side of it."""
    lowest, highest = -(2 ** (settings.bits - 1)), 2 ** (settings.bits - 1) - 1
    rows, cols = weight.shape
    step = steps.double().reshape(rows, -1).repeat_interleave(cols // (steps.numel() // rows), dim=1)
    v, g = weight.double() / step, gradient.double()
    d = v - v.round()
    inside = (v >= lowest) & (v <= highest)
    weight_gradient = torch.where(inside, g * factor(settings, d), 0.0)
    term = torch.where(inside, -d, torch.where(v < lowest, float(lowest), float(highest)))
    step_gradient = (g * term).reshape(steps.numel(), -1).sum(1) / math.sqrt(rows * cols * max(highest, 1))
    edge = ((d.abs() - 0.5).abs() < 1e-5) | ((v - lowest).abs() < 1e-5) | ((v - highest).abs() < 1e-5)
    return step * v.round().clamp(lowest, highest), weight_gradient, step_gradient.reshape(steps.shape), edge


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_against_the_formulas(settings):
    weight = matrix(1).requires_grad_()
    gradient = matrix(2)
    steps = (0.77 * initial_steps(weight, settings)).requires_grad_()  # some weights are clipped
    quantized = FakeQuantize.apply(weight, steps, settings)
    quantized.backward(gradient)
    expected, weight_gradient, step_gradient, edge = evaluate(settings, weight.detach(), steps.detach(), gradient)
    assert edge.sum() < 0.01 * edge.numel()
    assert torch.where(edge, 0.0, (quantized - expected).abs()).max() <= 1e-6 * expected.abs().max()
    # v, up to 2^(bits - 1), is rounded to 24 bits before d is taken; the factor itself is within 4e-6.
    bound = (2.0 ** (settings.bits - 1 - 24) * slope(settings) + 4e-6) * gradient.abs()
    assert torch.where(edge, 0.0, (weight.grad - weight_gradient).abs() - bound).max() <= 0
    rows_at_edge = edge.reshape(steps.numel(), -1).any(1).reshape(steps.shape)
    bound = 1e-5 * gradient.abs().sum() / math.sqrt(weight.numel())
    assert torch.where(rows_at_edge, 0.0, (steps.grad - step_gradient).abs()).max() <= bound


def test_zero_amplitude_is_straight_through():
    results = []
    for settings in (Quantization(3, "stable", (0.0,)), Quantization(3, "ste")):
        weight = matrix(3).requires_grad_()
        steps = (0.7 * initial_steps(weight, settings)).requires_grad_()
        FakeQuantize.apply(weight, steps, settings).backward(matrix(4))
        results.append((weight.grad, steps.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    settings = Quantization(4)
    weight, gradient = matrix(5).to(dtype).requires_grad_(), matrix(6).to(dtype)
    steps = initial_steps(weight, settings).requires_grad_()
    quantized = FakeQuantize.apply(weight, steps, settings)
    quantized.backward(gradient)
    wide = weight.detach().float().requires_grad_()
    wide_steps = steps.detach().clone().requires_grad_()
    expected = FakeQuantize.apply(wide, wide_steps, settings)
    expected.backward(gradient.float())
    assert quantized.dtype == weight.grad.dtype == dtype and steps.grad.dtype == torch.float32
    assert torch.equal(quantized, expected.to(dtype)) and torch.equal(weight.grad, wide.grad.to(dtype))
    assert torch.equal(steps.grad, wide_steps.grad)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("group", [0, 12])
def test_packing(bits, group):
    settings = Quantization(bits, group=group)
    weight = matrix(bits, 5, 36)  # 180 weights: the last byte is not full at odd widths
    steps = 0.7 * initial_steps(weight, settings)
    codes = pack(weight, steps, settings)
    assert codes.numel() == (180 * bits + 7) // 8
    assert torch.equal(unpack(codes, steps, settings, 5, 36), FakeQuantize.apply(weight, steps, settings))
    with raises(ValueError, "no codes of 5 x 37"):
        unpack(codes, steps, Quantization(bits), 5, 37)


class Language(torch.nn.Module):
    """An embedding that is the head as well, an encoder block, a linear layer, and a head of its own."""

    def __init__(self):
        super().__init__()
        self.tokens = torch.nn.Embedding(50, 32)
        self.block = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.middle = torch.nn.Linear(32, 32)
        self.tied = torch.nn.Linear(32, 50, bias=False)
        self.tied.weight = self.tokens.weight
        self.lm_head = torch.nn.Linear(32, 50)

    def forward(self, tokens):
        x = self.middle(self.block(self.tokens(tokens)))
        return self.tied(x) + self.lm_head(x)


def language(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Language()


def test_what_is_quantized():
    model = qat.prepare(language(), bits=3)
    names = sorted(name for name, _ in model.named_parameters() if name.endswith("steps"))
    assert names == [
        "block.linear1.parametrizations.weight.0.steps",
        "block.linear2.parametrizations.weight.0.steps",
        "block.self_attn.out_proj.parametrizations.weight.0.steps",
        "block.self_attn.parametrizations.in_proj_weight.0.steps",
        "middle.parametrizations.weight.0.steps",
    ]
    for row in model.middle.weight:
        assert row.unique().numel() <= 8
    assert model.lm_head.weight is model.lm_head._parameters["weight"]
    with raises(ValueError, "once"):
        qat.prepare(model)


def test_refusals():
    for words, arguments in (
        (("0.2251",), {"amplitudes": [0.226]}),
        (("1 to 8",), {"bits": 9}),
        (("'lsq'", "stable"), {"estimator": "lsq"}),
        (("amplitudes",), {"amplitudes": []}),
        (("group",), {"group": 7}),
        (("skip",), {"skip": ["*"]}),
    ):
        model = language()
        with raises(ValueError, *words):
            qat.prepare(model, **arguments)
        assert not qat.steps(model)
    with raises(ValueError, "prepare"):
        qat.export(language(), "unused.safetensors")
    with raises(TypeError, "float64"):
        qat.prepare(language().double())


@pytest.mark.parametrize("optimizer", [stquant.AdamW, torch.optim.AdamW])
def test_training_lowers_the_loss(optimizer):
    model = qat.prepare(small_network(), bits=4)
    target = small_network(seed=1)
    groups = qat.parameter_groups(model, weight_decay=0.1, lr=2e-3, step_rate=0.5)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.0] and groups[2]["lr"] == 1e-3
    trained = optimizer(groups, lr=2e-3)
    inputs = torch.randn(64, 256, generator=seeded(7))
    before = [step.detach().clone() for step in qat.steps(model)]
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.mse_loss(model(inputs), target(inputs).detach())
        trained.zero_grad()
        loss.backward()
        trained.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(not torch.equal(old, new) for old, new in zip(before, qat.steps(model)))


@pytest.mark.parametrize("group", [0, 16])
def test_export(tmp_path, group):
    """The exported model's outputs are the prepared model's, bit for bit; the file has low-bit weights."""
    model = qat.prepare(language(), bits=3, group=group)
    model.eval()
    tokens = torch.randint(50, (2, 9), generator=seeded(8))
    path = tmp_path / "low.safetensors"
    qat.export(model, path)
    fresh = language(seed=9)
    fresh.load_state_dict(qat.load(path))
    fresh.eval()
    with torch.no_grad():
        assert torch.equal(fresh(tokens), model(tokens))
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    assert header["middle.codes"]["dtype"] == "U8" and header["middle.codes"]["shape"] == [32 * 32 * 3 // 8]
    assert "middle.weight" not in header and header["lm_head.weight"]["dtype"] == "F32"
    assert [p.name for p in tmp_path.iterdir()] == ["low.safetensors"]


def test_damaged_files(tmp_path):
    path = tmp_path / "low.safetensors"
    qat.export(qat.prepare(small_network()), path)
    content = path.read_bytes()
    for damaged in (b"", content[:7], content[:100], content[:-1], b"\xff" * 100, content.replace(b"data_offsets", b"data_offsetz")):
        path.write_bytes(damaged)
        with raises(ValueError, "low.safetensors"):
            qat.load(path)
    for before, after, words in (
        (b'\\"bits\\"', b'\\"bats\\"', "bits, group and shape"),
        (b'\\"group\\": 0', b'\\"group\\":[]', "bits, group and shape"),
        (b"[320, 256]}", b"[320,2,56]}"[:11], "bits, group and shape"),
        (b'"0.codes":{"dtype":"U8"', b'"0.codes":{"dtype":"I8"', "codes"),
    ):
        assert before in content and len(before) == len(after), (before, content[:600])
        path.write_bytes(content.replace(before, after))
        with raises(ValueError, words):
            qat.load(path)
    path.write_bytes(content.replace(b"stquant_qat", b"stquant_qaz"))
    with raises(ValueError, "stquant.qat.export"):
        qat.load(path)


def test_state_dict_and_copies():
    """A prepared model's checkpoint goes into another prepared model."""
    model, other = qat.prepare(language(), bits=4), qat.prepare(language(seed=3), bits=4)
    other.load_state_dict(model.state_dict())
    tokens = torch.randint(50, (2, 9), generator=seeded(8))
    assert torch.equal(other(tokens), model(tokens))


COMMAND = os.environ.get("STQUANT_COMMAND")


@pytest.mark.skipif(not COMMAND, reason="needs the command (STQUANT_COMMAND)")
def test_weights_of_the_trainer(tmp_path):
    """What `stquant convert --to packed` writes is what this package reads, packs and computes from the run's floats."""

    def run(*arguments):
        return subprocess.run([COMMAND, *map(str, arguments)], check=True, capture_output=True, cwd=tmp_path)

    def arrays(folder):
        return read_safetensors(next(pathlib.Path(tmp_path, folder).rglob("*.safetensors")))[0]

    (tmp_path / "text.txt").write_text("the cat sat on the mat and ran away " * 100)
    run("train", "gpt2", "--data", "text.txt", "--layers", 1, "--width", 32, "--heads", 2, "--context", 16,
        "--sequence-length", 16, "--batch", 2, "--threads", 1, "--steps", 3, "--sample-length", 0, "--optimizer", "adamw",
        "--qat", 3, "--checkpoint", "run")
    run("convert", "--to", "packed", "run", "packed")
    run("convert", "--to", "gpt2", "run", "rounded")
    trained, packed, rounded = arrays("run"), arrays("packed"), arrays("rounded")
    settings = Quantization(3)
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        weight, steps = trained[f"h.0.{name}.weight"].T.contiguous(), trained[f"h.0.{name}.steps"]
        assert torch.equal(pack(weight, steps, settings), packed[f"h.0.{name}.codes"])
        assert torch.equal(steps, packed[f"h.0.{name}.steps"])
        expected = FakeQuantize.apply(weight, steps, settings)
        assert torch.equal(expected.T, rounded[f"transformer.h.0.{name}.weight"])
        # As docs/qat.md tells a stranger to decode them.
        raw = packed[f"h.0.{name}.codes"]
        bits = (raw[:, None] >> torch.arange(8) & 1).reshape(-1)[: weight.numel() * 3].reshape(*weight.shape, 3)
        codes = (bits << torch.arange(3)).sum(2) - 4
        assert torch.equal(steps[:, None] * codes, expected)
