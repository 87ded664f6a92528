"""Which GPUs a benchmark with a process each may use."""
import os


def indices():
    """As strings for CUDA_VISIBLE_DEVICES: those that it names, or else all that there are."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen:
        return chosen.split(",")
    import torch
    return [str(index) for index in range(torch.cuda.device_count())]
