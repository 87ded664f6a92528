"""The process of one GPU: reads a run as a line of JSON, makes it, answers with a line of JSON, until its input ends.

Answers: {"row": ..., "curve": ...} or {"error": reason}. What libraries print goes to standard error.
"""
import argparse
import json
import os
import sys
import time
import traceback

import torch

import headline
import training


def make_run(session, run):
    begun = time.perf_counter()
    os.environ.update(run.get("env", {}))
    if run.get("headline"):
        return {"row": headline.measure(session, run, run.get("steps", headline.STEPS))}
    row, curve = training.train(session, run)
    row["seconds"] = round(time.perf_counter() - begun, 1)
    return {"row": row, "curve": curve}


def answer(session, line):
    """Makes a run. Whatever goes wrong in it, a peer's failure to load or memory that ran out, is its answer and not the worker's end."""
    try:
        return make_run(session, json.loads(line))
    except Exception as problem:
        traceback.print_exc()
        session.drop_model()
        text = next((part for part in str(problem).splitlines() if part.strip()), "")
        return {"error": f"{type(problem).__name__}: {text[:300]}"}
    finally:
        for name in json.loads(line).get("env", {}):
            os.environ.pop(name, None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--float32", action="store_true")
    arguments = parser.parse_args()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64
    session = training.Session(arguments.device, arguments.tokens, arguments.images, arguments.work, arguments.compile,
                               not arguments.float32)
    for line in sys.stdin:
        replies.write(json.dumps(answer(session, line)) + "\n")


if __name__ == "__main__":
    main()
