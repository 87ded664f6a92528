"""GPT-2 weights under the names that Hugging Face gives them, both ways, against the same model in PyTorch.

The losses are compared in float64 on PyTorch's side; the trainer's own rounding leaves a relative 1e-5. Where transformers can be
imported, its GPT2LMHeadModel opens what the command writes and writes what the command opens, too.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import torch

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(os.environ["STQUANT_SOURCE"]) / "python")]
from stquant import checkpoint  # noqa: E402
from test_gpt2_gradients import forward  # noqa: E402

COMMAND = os.environ["STQUANT_COMMAND"]
LAYERS, WIDTH, HEADS, CONTEXT, VOCABULARY = 2, 64, 4, 128, 256
TOLERANCE = 1e-5
results = []


def check(name, condition, detail=""):
    results.append(bool(condition))
    print(f"{'ok' if condition else 'not ok'} - {name}" + ("" if condition or not detail else f": {detail}"), flush=True)


def run(*arguments):
    return subprocess.run([COMMAND, *map(str, arguments)], text=True, capture_output=True, timeout=300)


def random_model(seed):
    """Parameters of a GPT-2 under the names of GPT2Model."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator) * 0.05

    model = {"wte.weight": normal(VOCABULARY, WIDTH), "wpe.weight": normal(CONTEXT, WIDTH)}
    for layer in range(LAYERS):
        h = f"h.{layer}."
        for norm in ("ln_1", "ln_2"):
            model[f"{h}{norm}.weight"], model[f"{h}{norm}.bias"] = 1 + normal(WIDTH), normal(WIDTH)
        for name, rows, cols in (("attn.c_attn", WIDTH, 3 * WIDTH), ("attn.c_proj", WIDTH, WIDTH),
                                 ("mlp.c_fc", WIDTH, 4 * WIDTH), ("mlp.c_proj", 4 * WIDTH, WIDTH)):
            model[f"{h}{name}.weight"], model[f"{h}{name}.bias"] = normal(rows, cols), normal(cols)
    model["ln_f.weight"], model["ln_f.bias"] = 1 + normal(WIDTH), normal(WIDTH)
    return model


def expected_loss(model, tokens):
    doubles = {name: value.double() for name, value in model.items()}
    return forward(doubles, tokens, LAYERS, HEADS).item()


def write_folder(folder, tensors):
    folder.mkdir()
    checkpoint.write_safetensors(folder / "model.safetensors", tensors)
    config = {"model_type": "gpt2", "n_layer": LAYERS, "n_embd": WIDTH, "n_head": HEADS, "n_positions": CONTEXT,
              "vocab_size": VOCABULARY}
    (folder / "config.json").write_text(json.dumps(config))


def loss_of(path, text):
    result = run("eval", path, "--data", text, "--json", "--threads", 1, "--batch", 1, "--sequence-length", CONTEXT,
                 "--validation-share", 1)
    return json.loads(result.stdout)["loss"] if result.returncode == 0 else float("nan")


def near(a, b):
    return abs(a / b - 1) < TOLERANCE


def test_reading(folder, text, tokens):
    model = random_model(1)
    loss = expected_loss(model, tokens)
    buffers = {f"h.{layer}.attn.bias": torch.ones(1, 1, CONTEXT, CONTEXT, dtype=torch.bool).tril() for layer in range(LAYERS)}
    forms = {
        "as GPT2LMHeadModel names them": {f"transformer.{name}": value for name, value in model.items()},
        "with a copy of the tied head": {**{f"transformer.{name}": value for name, value in model.items()},
                                         "lm_head.weight": model["wte.weight"]},
        "as the first files had them, with masks": {**model, **buffers},
        "in bfloat16": {f"transformer.{name}": value.bfloat16() for name, value in model.items()},
    }
    for index, (form, tensors) in enumerate(forms.items()):
        write_folder(folder / f"in-{index}", tensors)
        wanted = expected_loss({name: value.bfloat16().float() for name, value in model.items()}, tokens) \
            if "bfloat16" in form else loss
        found = loss_of(folder / f"in-{index}", text)
        check(f"weights {form} have PyTorch's loss", near(found, wanted), f"{found}, {wanted}")
    result = run("convert", folder / "in-2", folder / "out", "--to", "gpt2")
    written, _ = checkpoint.read_safetensors(folder / "out" / "model.safetensors")
    check("written again: GPT2LMHeadModel's names, the same bits", result.returncode == 0 and
          written.keys() == {f"transformer.{name}" for name in model} and
          all(torch.equal(written[f"transformer.{name}"], value) for name, value in model.items()), result.stderr)


def test_writing(folder, text, tokens):
    trained = run("train", "gpt2", "--data", folder / "long.txt", "--layers", LAYERS, "--width", WIDTH, "--heads", HEADS, "--context", CONTEXT,
                  "--sequence-length", CONTEXT, "--batch", 2, "--steps", 20, "--threads", 1, "--sample-length", 0,
                  "--optimizer", "stquant", "--init", folder / "in-0", "--checkpoint", folder / "run")
    result = run("convert", folder / "run", folder / "trained", "--to", "gpt2")
    check("a model is trained and written", trained.returncode == 0 and result.returncode == 0, trained.stderr + result.stderr)
    written, _ = checkpoint.read_safetensors(folder / "trained" / "model.safetensors")
    model = {name.removeprefix("transformer."): value for name, value in written.items()}
    wanted = expected_loss(model, tokens)
    check("PyTorch opens it with the loss that eval has", near(loss_of(folder / "run", text), wanted),
          f"{loss_of(folder / 'run', text)}, {wanted}")
    check("training moved it", abs(wanted - expected_loss(random_model(1), tokens)) > 1e-3)


def test_transformers(folder, text, tokens):
    try:
        import transformers
    except ImportError:
        print("ok - GPT2LMHeadModel opens what the command writes # SKIP transformers cannot be imported (pip install transformers, STQUANT_PYTHON)")
        return
    model = transformers.GPT2LMHeadModel.from_pretrained(folder / "trained").double().eval()
    with torch.no_grad():
        loss = model(input_ids=tokens[:, :-1], labels=None).logits
    loss = torch.nn.functional.cross_entropy(loss.flatten(0, 1), tokens[:, 1:].flatten()).item()
    found = loss_of(folder / "run", text)
    check("GPT2LMHeadModel opens what the command writes", near(found, loss), f"{found}, {loss}")
    model.float().save_pretrained(folder / "saved")
    again = loss_of(folder / "saved", text)
    check("and the command what it writes", near(again, loss), f"{again}, {loss}")


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        generator = torch.Generator().manual_seed(3)
        data = torch.randint(97, 123, (40 * CONTEXT,), generator=generator)
        (folder / "long.txt").write_bytes(bytes(data.tolist()))
        tokens = data[None, :CONTEXT + 1]
        text = folder / "text.txt"  # one window
        text.write_bytes(bytes(tokens[0].tolist()))
        for test in (test_reading, test_writing, test_transformers):
            test(folder, text, tokens)
    return 0 if all(results) and results else 1


if __name__ == "__main__":
    sys.exit(main())
