"""What the package's tests share."""

import contextlib
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the tensors are small

import torch  # noqa: E402

import stquant  # noqa: E402


def seeded(seed):
    """A torch generator; the seed is in the message of a failing test through its parameter."""
    return torch.Generator().manual_seed(seed)


def small_network(dtype=torch.float32, seed=0):
    """Two matrices and two vectors: 256 -> 320 -> 256. Matrices are coded under the defaults, vectors exempt."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = torch.nn.Sequential(
            torch.nn.Linear(256, 320), torch.nn.GELU(), torch.nn.Linear(320, 256)
        )
    return network.to(dtype)


def give_gradients(parameters, seed, scale=1.0):
    """Gaussian gradients, the same for the same seed."""
    generator = seeded(seed)
    for parameter in parameters:
        gradient = torch.randn(parameter.shape, generator=generator) * scale
        parameter.grad = gradient.to(parameter.dtype)


def step_with(optimizer, network, seed, scale=1.0):
    """One step on Gaussian gradients."""
    give_gradients(network.parameters(), seed, scale)
    optimizer.step()


@contextlib.contextmanager
def raises(exception, *words):
    """The block raises the exception, and its message has all the words."""
    try:
        yield
    except exception as error:
        for word in words:
            assert word in str(error), f"{word!r} is not in: {error}"
        return
    raise AssertionError(f"{exception.__name__} was not raised")


def pair_of_networks(**arguments):
    """Twice the same network with a torch AdamW and a stquant one."""
    ours, theirs = small_network(), small_network()
    hyper = {key: arguments.pop(key) for key in ("lr", "betas", "eps", "weight_decay") if key in arguments}
    return (
        ours,
        stquant.AdamW(ours.parameters(), **hyper, **arguments),
        theirs,
        torch.optim.AdamW(theirs.parameters(), **hyper),
    )


def largest_difference(one, other):
    """Largest |difference| over two lists of parameters."""
    return max((a.detach().float() - b.detach().float()).abs().max().item() for a, b in zip(one, other))
