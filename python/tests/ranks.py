"""Runs a function on several processes that are connected over gloo (CPU) or NCCL (one GPU each)."""

import os
import tempfile
import traceback

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def _main(rank, ranks, backend, store, function, arguments, errors):
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        if backend == "nccl":
            torch.cuda.set_device(rank)
        dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=ranks)
        function(rank, ranks, *arguments)
        dist.destroy_process_group()
    except BaseException:
        errors.put(f"rank {rank} of {ranks}:\n{traceback.format_exc()}")
        os._exit(1)  # the others may wait in a collective: their parent ends them


def run(ranks, function, *arguments, backend="gloo"):
    """Calls function(rank, ranks, *arguments) on every rank; an exception on one of them is raised here."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stquant", "torch.distributed.tensor", "torch.distributed.fsdp"])
    errors = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(
                target=_main, args=(rank, ranks, backend, os.path.join(folder, "store"), function, arguments, errors)
            )
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            for process in processes:
                process.join(timeout=0.1)
            if any(process.exitcode not in (None, 0) for process in processes):
                for process in processes:
                    process.terminate()
        for process in processes:
            process.join()
    assert errors.empty(), errors.get()
    assert all(process.exitcode == 0 for process in processes)
