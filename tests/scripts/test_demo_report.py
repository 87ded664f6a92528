"""scripts/demo-report and scripts/plot-run: the figures of two synthetic runs arrive in the table, summary and pictures."""
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

SOURCE = pathlib.Path(os.environ["STQUANT_SOURCE"])
PARAMETERS = 1_000_000
NAMES = ["wte.weight", "h.0.attn.c_attn.weight", "h.0.ln_1.weight"]
STEPS = 40


def widths(step, name):
    """Widths that differ between tensors and change once, at step 20."""
    if "ln_1" in name:
        return 32, 32
    return (4 if step < 20 else 3, 5) if "wte" in name else (2, 6)


def write_run(folder, name, bits):
    state_bytes = int(2 * PARAMETERS * bits / 8)
    with open(folder / f"{name}.jsonl", "w") as file:
        for step in range(1, STEPS + 1):
            record = {"step": step, "train_loss": 1.5 + 4 * math.exp(-step / 8), "learning_rate": 1e-3, "gradient_norm": 1.0,
                      "tokens_per_s": 40000.0, "state_bytes": state_bytes, "peak_state_bytes": state_bytes, "mean_bits": bits}
            if step % 10 == 0:
                record["validation_loss"] = record["train_loss"] + 0.05
            if name == "stquant" and step in (1, 10, 20, 30):
                record["tensors"] = [{"name": tensor, "n": 1e-3, "r": 4.0, "zone": "critical", "m_bits": widths(step, tensor)[0],
                                      "v_bits": widths(step, tensor)[1]} for tensor in NAMES]
            file.write(json.dumps(record) + "\n")
    summary = {"preset": "tiny", "parameters": PARAMETERS, "steps": STEPS, "batch": 16, "sequence_length": 128,
               "learning_rate": 1e-3, "beta2": 0.99, "seed": 1, "threads": 2, "validation_loss": 1.6, "step_ms": 40.0,
               "optimizer_ms": 4.0, "state_bytes": state_bytes, "peak_state_bytes": state_bytes, "all_in_bits": bits,
               "final_all_in_bits": bits, "peak_all_in_bits": bits, "memory_reduction": 1 - bits / 32,
               "sample": "It was a fine day.\nNobody knew."}
    (folder / f"{name}-summary.json").write_text(json.dumps(summary))


def report(folder):
    return subprocess.run([SOURCE / "scripts/demo-report", folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def picture_texts(path):
    root = ElementTree.parse(path).getroot()
    return " ".join("".join(element.itertext()) for element in root.iter() if element.tag.endswith("}text"))


def table_and_summary(folder, result):
    summary = json.loads((folder / "summary.json").read_text())
    printed = " ".join(result.stdout.split())
    words = ("1.6000", "4.50", "-85.94 %", "2 to 3 bits", "5 to 6 bits", "changed 1 times", "Nobody knew.")
    return (result.returncode == 0 and all(word in printed for word in words) and summary["float32"]["peak_state_bytes"] == 8 * PARAMETERS
            and summary["stquant"]["peak_all_in_bits"] == 4.5 and summary["stquant"]["memory_reduction"] == 1 - 4.5 / 32
            and all(key in summary[run] for run in ("float32", "stquant")
                    for key in ("validation_loss", "step_ms", "state_bytes", "peak_state_bytes")))


def picture_of_losses(folder, _):
    text = picture_texts(folder / "losses.svg")
    return "float32 states, validation" in text and "stquant, validation" in text and "nats per token" in text


def picture_of_widths(folder, _):
    text = picture_texts(folder / "widths.svg")
    # Tensors that stay in float32 have no row; the legend has the widths that occur.
    return ("wte.weight" in text and "h.0.attn.c_attn.weight" in text and "ln_1" not in text
            and all(f" {bits} " in f" {text} " for bits in (2, 3, 4, 5, 6)))


def picture_of_memory(folder, _):
    text = picture_texts(folder / "memory.svg")
    return "float32: 8.00 MB" in text and "1.12 MB" in text and "85.9 % less" in text


def no_summary_without_pictures_data(_, __):
    """A run that left no log: one line on stderr, exit status 1, no summary that looks whole."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_run(folder, "float32", 32.0)
        result = report(folder)
        return result.returncode == 1 and len(result.stderr.splitlines()) == 1 and not (folder / "summary.json").exists()


def main():
    if not shutil.which("gnuplot"):
        print("skipped: gnuplot is missing; scripts/install-deps installs it")
        return 77
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_run(folder, "float32", 32.0)
        write_run(folder, "stquant", 4.5)
        result = report(folder)
        for case in (table_and_summary, picture_of_losses, picture_of_widths, picture_of_memory,
                     no_summary_without_pictures_data):
            try:
                good, problem = case(folder, result), ""
            except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
                good, problem = False, f": {type(error).__name__}: {error}"
            failed += not good
            print(f"{'ok' if good else 'not ok'} - {case.__name__.replace('_', ' ')}{problem}", flush=True)
    if failed:
        print(result.stdout, result.stderr)
    return 1 if failed else 0


sys.exit(main())
