"""torch's own files and safetensors files, both ways, and through the command where it is built."""

import json
import os
import struct
import subprocess
import threading

import common
import pytest
import torch

from stquant import _safetensors, checkpoint

COMMAND = os.environ.get("STQUANT_COMMAND")


def make_run(steps=5, named=False, groups=False):
    """A network, an AdamW after a few steps, and a parameter that never had a gradient."""
    network = torch.nn.Sequential(common.small_network(), torch.nn.LayerNorm(3))
    parameters = network.named_parameters() if named else network.parameters()
    if groups:
        matrices = [parameter for parameter in network.parameters() if parameter.dim() == 2]
        vectors = [parameter for parameter in network.parameters() if parameter.dim() < 2]
        parameters = [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "lr": 2e-3, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.8, 0.95))
    for step in range(steps):
        common.give_gradients(network.parameters(), step)
        network[1].weight.grad = None
        optimizer.step()
    return network, optimizer


def go_on(network, optimizer):
    for step in range(10, 13):
        common.give_gradients(network.parameters(), step)
        optimizer.step()
    return [parameter.detach().clone() for parameter in network.parameters()]


@pytest.mark.parametrize("named", [False, True])
def test_round_trip_goes_on_exactly(tmp_path, named):
    network, optimizer = make_run(named=named)
    original, middle, back = tmp_path / "run.pt", tmp_path / "adamw.safetensors", tmp_path / "back.pt"
    torch.save({"model": network.state_dict(), "optimizer": optimizer.state_dict()}, original)
    assert checkpoint.main(["from-torch", str(original), str(middle)]) == 0
    names = tmp_path / "names"
    names.write_text("\n".join(name for name, _ in network.named_parameters()))
    assert checkpoint.main(["to-torch", str(middle), str(back), "--names", str(names)]) == 0
    saved = torch.load(back, weights_only=True)
    other, fresh = make_run(steps=0, named=named)
    other.load_state_dict(saved["model"], strict=False)
    fresh.load_state_dict(saved["optimizer"])
    assert fresh.param_groups[0]["betas"] == (0.8, 0.95)
    assert len(saved["optimizer"]["state"]) == len(list(network.parameters())) - 1
    assert all(torch.equal(a, b) for a, b in zip(go_on(network, optimizer), go_on(other, fresh)))


def test_groups(tmp_path):
    network, optimizer = make_run(groups=True)
    names = [name for name, tensor in network.named_parameters() if tensor.dim() == 2]
    names += [name for name, tensor in network.named_parameters() if tensor.dim() < 2]
    path = tmp_path / "adamw.safetensors"
    checkpoint.write_safetensors(path, *checkpoint.adamw_tensors(network.state_dict(), optimizer.state_dict(), names))
    model, state = checkpoint.adamw_state_dicts(*checkpoint.read_safetensors(path))
    other, fresh = make_run(steps=0, groups=True)
    other.load_state_dict(model, strict=False)
    fresh.load_state_dict(state)
    assert [group["weight_decay"] for group in fresh.param_groups] == [0.3, 0.0]
    assert fresh.param_groups[1]["lr"] == 2e-3
    assert all(torch.equal(a, b) for a, b in zip(go_on(network, optimizer), go_on(other, fresh)))


@pytest.mark.skipif(not COMMAND, reason="the command is not built (STQUANT_COMMAND)")
def test_through_the_command(tmp_path):
    """torch's file -> safetensors -> a run with float32 states -> safetensors -> torch's file: the same moments."""
    network, optimizer = make_run()
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    tensors, metadata = checkpoint.adamw_tensors(
        {name: tensor for name, tensor in network.named_parameters()}, optimizer.state_dict()
    )
    checkpoint.write_safetensors(first, tensors, metadata)
    run = tmp_path / "run"
    subprocess.run([COMMAND, "convert", first, run, "--to", "float32"], check=True)
    subprocess.run([COMMAND, "convert", run, second, "--to", "torch"], check=True)
    again, _ = checkpoint.read_safetensors(second)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)
    # And packed: the sizes of the moments shrink, their values hardly change.
    subprocess.run([COMMAND, "convert", first, tmp_path / "low", "--m-bits", "8", "--v-bits", "8"], check=True)
    subprocess.run([COMMAND, "convert", tmp_path / "low", second, "--to", "torch"], check=True)
    again, _ = checkpoint.read_safetensors(second)
    for name in (name for name in tensors if name.endswith("exp_avg") and tensors[name].numel() > 4096):
        error = (again[name] - tensors[name]).norm() / tensors[name].norm()
        assert error < 10 ** (-40 / 20), f"{name}: {error}"  # 8 bits: 44 dB for Gaussian moments (docs/codec.md)


def test_types_and_shapes(tmp_path):
    path = tmp_path / "all.safetensors"
    generator = common.seeded(1)
    tensors = {f"t.{dtype}": (torch.randn(3, 5, generator=generator) * 50).to(dtype) for dtype in _safetensors.NAMES}
    tensors.update(scalar=torch.tensor(2.5), empty=torch.empty(0, 4), turned=torch.randn(4, 3, generator=generator).T)
    checkpoint.write_safetensors(path, tensors, {"from": "a test"})
    found, metadata = checkpoint.read_safetensors(path)
    assert found.keys() == tensors.keys() and metadata == {"format": "pt", "from": "a test"}
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


def test_refusals(tmp_path):
    network, optimizer = make_run()
    with pytest.raises(ValueError, match="names"):
        checkpoint.adamw_tensors(network.state_dict(), optimizer.state_dict(), ["0.0.weight"])
    with pytest.raises(ValueError, match="shape"):
        names = [name for name, _ in network.named_parameters()]
        checkpoint.adamw_tensors(network.state_dict(), optimizer.state_dict(), names[::-1])
    amsgrad = torch.optim.AdamW(network.parameters(), amsgrad=True)
    common.step_with(amsgrad, network, 1)
    with pytest.raises(ValueError, match="AMSGrad"):
        checkpoint.adamw_tensors(dict(network.named_parameters()), amsgrad.state_dict())
    path = tmp_path / "cut.safetensors"
    checkpoint.write_safetensors(path, {"a": torch.ones(100)})
    whole = path.read_bytes()
    for length in (0, 7, 8, 30, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut.safetensors.*offset"):
            checkpoint.read_safetensors(path)
    torch.save([1], tmp_path / "list.pt")
    assert checkpoint.main(["from-torch", str(tmp_path / "list.pt"), str(path)]) == 1
    assert path.read_bytes() == whole[: len(whole) - 1]


def one_sentence(capsys, *arguments):
    """The command ends with status 1 and a sentence on standard error."""
    status = checkpoint.main(list(map(str, arguments)))
    said = capsys.readouterr().err
    assert status == 1 and said.startswith("stquant.checkpoint: ") and said.count("\n") == 1, said
    return said


def test_torch_files_of_others(tmp_path, capsys):
    """What is no file of torch.save(), holds other objects, or the state of another optimizer."""
    target = tmp_path / "out.safetensors"
    text, foreign, sgd, odd = (tmp_path / name for name in ("text.pt", "foreign.pt", "sgd.pt", "odd.pt"))
    text.write_text("hello\n")
    torch.save({"model": {}, "optimizer": threading.Thread}, foreign)
    network = common.small_network()
    optimizer = torch.optim.SGD(network.parameters(), momentum=0.9)
    common.step_with(optimizer, network, 1)
    torch.save({"model": network.state_dict(), "optimizer": optimizer.state_dict()}, sgd)
    torch.save({"model": [1], "optimizer": 3}, odd)
    for source, words in ((text, "torch.save()"), (foreign, "torch.save()"), (sgd, "exp_avg"), (odd, "'model' and 'optimizer'")):
        assert words in one_sentence(capsys, "from-torch", source, target)
    assert not target.exists()


def write_raw(path, header, data=bytes(4)):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_damaged_safetensors(tmp_path, capsys):
    path, target = tmp_path / "damaged.safetensors", tmp_path / "run.pt"
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for header, words in (
        ({"a": {**entry, "data_offsets": [0.0, 4.0]}}, "tensor 'a'"),
        ({"a": 5}, "tensor 'a'"),
        ({"__metadata__": [1], "a": entry}, "__metadata__"),
        ({"__metadata__": {"torch.adamw.param_groups": "[1]"}, "a": entry}, "param_groups"),
        ({"__metadata__": {"torch.adamw.param_groups": "{"}, "a": entry}, "param_groups"),
        ({"a": entry, "state.a.exp_avg": entry}, "state.a.exp_avg_sq"),
    ):
        write_raw(path, header)
        assert words in one_sentence(capsys, "to-torch", path, target)
    assert not target.exists()


def test_an_old_file_stays_where_the_new_one_fails(tmp_path, monkeypatch):
    path, target = tmp_path / "adamw.safetensors", tmp_path / "run.pt"
    checkpoint.write_safetensors(path, {"a": torch.ones(3)})
    target.write_bytes(b"before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        checkpoint.to_torch(path, target)
    assert target.read_bytes() == b"before" and sorted(os.listdir(tmp_path)) == ["adamw.safetensors", "run.pt"]
