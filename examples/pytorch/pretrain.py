"""Trains a small GPT from scratch twice, with torch's AdamW and with stquant's, and shows loss and memory of both.

    python examples/pytorch/pretrain.py                     # minutes on a CPU
    python examples/pytorch/pretrain.py --state-bits 3.5 --steps 600

The difference between the two runs is the line that makes the optimizer.
"""

import argparse
import time

import torch
from gpt import GPT, batches, loss_of, read_text

import stquant


def adam_bytes(optimizer):
    """Bytes of the states of one of torch's optimizers."""
    tensors = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    return sum(t.numel() * t.element_size() for t in tensors)


def train(model, optimizer, text, options):
    """Trains, and returns (mean loss of the last tenth of the steps, seconds a step)."""
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=options.lr, total_steps=options.steps)
    losses, begin = [], time.perf_counter()
    for step, batch in zip(range(options.steps), batches(text, options.batch, model.context)):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0:
            print(f"  step {step:4}  loss {loss.item():.3f}", flush=True)
    last = losses[-max(options.steps // 10, 1) :]
    return sum(last) / len(last), (time.perf_counter() - begin) / options.steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--state-bits", type=float, default=5.0, help="cap on the states, bits per value")
    options = parser.parse_args()

    text = read_text()
    results = []
    for name in ("torch.optim.AdamW", "stquant.AdamW"):
        torch.manual_seed(0)
        model = GPT()
        if name == "stquant.AdamW":
            optimizer = stquant.AdamW(model.named_parameters(), lr=options.lr, state_bits=options.state_bits)
        else:
            optimizer = torch.optim.AdamW(model.named_parameters(), lr=options.lr)
        print(f"{name}, {sum(p.numel() for p in model.parameters())} parameters")
        loss, seconds = train(model, optimizer, text, options)
        if name == "stquant.AdamW":
            size = optimizer.telemetry()["peak_state_bytes"]
            print(stquant.memory_summary(optimizer))
        else:
            size = adam_bytes(optimizer)
        results.append((name, loss, size, seconds))

    print(f"\n{'':20}{'loss':>8}{'bytes of states':>18}{'ms a step':>12}")
    for name, loss, size, seconds in results:
        print(f"{name:20}{loss:8.3f}{size:18}{1000 * seconds:12.1f}")


if __name__ == "__main__":
    main()
