"""Goes on with a model that was trained with torch's AdamW, its float32 states included, under a cap; saves and resumes.

    python examples/pytorch/finetune.py                     # minutes on a CPU

1. trains a small GPT on Python code with torch.optim.AdamW;
2. hands model and states to stquant.AdamW: embeddings keep 6 and 4 bits, the first block is frozen;
3. trains on another part of the library, stops in the middle, saves, and resumes bit for bit in a new process's stead.
"""

import argparse
import copy
import pathlib
import tempfile

import torch
from gpt import GPT, batches, loss_of, read_text

import stquant


def train(model, optimizer, data, steps):
    """Some steps; returns the mean loss."""
    total = 0.0
    for _, batch in zip(range(steps), data):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / steps


def finetuner(model, state_bits):
    """stquant.AdamW with three groups: embeddings with widths of their own, vectors without decay, the rest."""
    embeddings = [p for name, p in model.named_parameters() if "embedding" in name or "position" in name]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    rest = [p for p in model.parameters() if p.dim() > 1 and not any(p is e for e in embeddings)]
    groups = [
        {"params": embeddings, "bits": (6, 4)},
        {"params": vectors, "weight_decay": 0.0},
        {"params": rest},
    ]
    return stquant.AdamW(groups, lr=5e-4, state_bits=state_bits, max_grad_norm=1.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120, help="of each of the three parts")
    parser.add_argument("--state-bits", type=float, default=5.0, help="cap on the states, bits per value")
    options = parser.parse_args()

    torch.manual_seed(0)
    model = GPT()
    # The same groups as later, so that the states find their parameters.
    order = finetuner(model, options.state_bits).param_groups
    float32 = torch.optim.AdamW([{"params": group["params"]} for group in order], lr=3e-3)
    code = batches(read_text(), 16, model.context)
    print(f"torch.optim.AdamW, Python code: mean loss {train(model, float32, code, options.steps):.3f}")

    optimizer = finetuner(model, options.state_bits)
    optimizer.load_full_precision_state_dict(float32.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 5e-4
    del float32
    for parameter in model.blocks[0].parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    tests = read_text("asyncio/*.py")
    print(f"stquant.AdamW, asyncio: mean loss {train(model, optimizer, batches(tests, 16, 64, 1), options.steps):.3f}")

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "checkpoint.pt"
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
        print(f"saved {path.stat().st_size} bytes")
        resumed = copy.deepcopy(model)
        again = finetuner(resumed, options.state_bits)
        saved = torch.load(path, weights_only=True)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    losses = [
        train(one, with_optimizer, batches(tests, 16, 64, 2), options.steps)
        for one, with_optimizer in ((model, optimizer), (resumed, again))
    ]
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters()))
    print(f"went on: mean loss {losses[0]:.3f}; resumed from the file: {losses[1]:.3f}; the same bits: {same}")
    print(stquant.memory_summary(optimizer).splitlines()[-4])


if __name__ == "__main__":
    main()
