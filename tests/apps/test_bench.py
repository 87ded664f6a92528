"""`stquant bench`: its JSON, its choice of kernels, and bad input. How fast it is, is not tested."""
import json
import os
import subprocess
import sys

import tap
from tap import check

COMMAND = os.environ["STQUANT_COMMAND"]


def run(*arguments):
    return subprocess.run([COMMAND, "bench", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kernels():
    """The names that this machine can run."""
    return [name for name in ("avx512", "avx2", "neon", "reference")
            if run("codec", "--values", "128", "--repeats", "1", "--isa", name).returncode == 0]


def check_step(name, *arguments, **expected):
    result = run("step", "--repeats", "2", "--json", *arguments)
    try:
        found = json.loads(result.stdout)
    except ValueError:
        check(name, False, result.stderr or result.stdout)
        return
    wrong = {key: found.get(key) for key, value in expected.items() if found.get(key) != value}
    speeds = [found[key] for key in ("ns_per_param", "float32_ns_per_param", "speedup", "gb_per_s", "copy_gb_per_s")]
    near = abs(found["speedup"] / (found["float32_ns_per_param"] / found["ns_per_param"]) - 1) < 1e-3
    if "core_gigahertz" in found:
        cycles = 16 * found["ns_per_param"] * found["core_gigahertz"] * found["threads"]
        near = near and abs(found["cycles_per_16_values"] / cycles - 1) < 1e-3
    check(name, not wrong and all(speed > 0 for speed in speeds) and near, wrong or found)
    return found


def check_transition(name, m_bits, v_bits, *arguments):
    """Widths before the transition are those asked for; afterwards the states have those of --to."""
    found = check_step(name, *arguments, "--to", f"{m_bits},{v_bits}", to_m_bits=m_bits, to_v_bits=v_bits)
    if found:
        mean = (found["before_ns_per_param"] + found["after_ns_per_param"]) / 2
        ratio = found["transition_ns_per_param"] / mean
        check(f"{name}, ratio", mean > 0 and abs(found["transition_ratio"] / ratio - 1) < 1e-3, found)


def check_policy():
    result = run("policy", "--tensors", "300", "--repeats", "5", "--json")
    found = json.loads(result.stdout) if result.returncode == 0 else {}
    check("policy", found.get("tensors") == 300 and found["decision_ms"] > 0 and found["widths_changed"] > 0
          and found["policy"] == "rate-distortion", found or result.stderr)
    result = run("policy", "--policy", "zones", "--repeats", "3", "--json")
    found = json.loads(result.stdout) if result.returncode == 0 else {"sizes": []}
    check("policy, all sizes", [size["tensors"] for size in found["sizes"]] == [10, 100, 1000, 10000, 100000]
          and found["line"]["ns_per_tensor"] > 0, found or result.stderr)


def check_score():
    result = run("score", "--layers", "1", "--width", "64", "--batch", "2", "--sequence-length", "16", "--threads", "1",
                 "--repeats", "3", "--decide-every", "50", "--json")
    found = json.loads(result.stdout) if result.returncode == 0 else {}
    share = found["decision_ms"] / 50 if found else 0
    # The largest tensor's rows and columns: 256 x 64 of the embedding.
    check("score", found and found["training_step_ms"] > found["optimizer_ms"] > 0 and found["factors_ms"] > 0
          and found["scratch_bytes"] == 4 * (256 + 64)
          and abs(found["share_of_total"] - share / (found["training_step_ms"] + share)) < 1e-4, found or result.stderr)


def check_refusal(name, *arguments):
    result = run(*arguments)
    one_sentence = result.stderr.count("\n") == 1 and result.stderr.rstrip().endswith(".")
    check(name, result.returncode == 2 and one_sentence and not result.stdout, result.stderr or result.returncode)


def main():
    check_step("step", "--params", "100000", "--threads", "1", params=100000, threads=1, m_bits=5, v_bits=5,
               dtype="float32", norm="supplied")
    check_step("step with many tensors", "--params", "70001", "--tensors", "333", "--bits", "3,8", "--threads", "2",
               m_bits=3, v_bits=8, tensors=333)
    check_step("step in bfloat16, own norm", "--params", "50000", "--dtype", "bfloat16", "--own-norm", dtype="bfloat16",
               norm="own")
    check_transition("transition of large tensors", 4, 6, "--params", "9000000", "--tensors", "2", "--bits", "5,5")
    check_transition("transition of many tensors", 8, 2, "--params", "100003", "--tensors", "17", "--bits", "2,8")
    for name in kernels():
        check_step(f"step with the {name} kernels", "--params", "20000", "--isa", name, "--dtype", "float16", isa=name)
    codec = run("codec", "--values", "20000", "--repeats", "1", "--json")
    rows = json.loads(codec.stdout)["codecs"] if codec.returncode == 0 else []
    # About 6 dB a bit: rounding errors halve with every bit. Below 4 bits the second moment reaches less far down.
    ratios = {(row["moment"], row["bits"]): row["snr_db"] for row in rows}
    gains = [ratios[moment, bits + 1] - ratios[moment, bits] for moment, lowest in (("first", 2), ("second", 4))
             for bits in range(lowest, 8) if ratios]
    low = [ratios["second", bits] for bits in (2, 3, 4) if ratios]
    check("codec", len(rows) == 14 and all(5 < gain < 8 for gain in gains) and low == sorted(low) and low[-1] - low[0] > 10,
          codec.stderr or gains + low)
    qat = run("qat", "--rows", "16", "--columns", "100", "--repeats", "1", "--json")
    rows = json.loads(qat.stdout)["estimators"] if qat.returncode == 0 else []
    check("qat", [row["name"] for row in rows] == ["ste", "stable", "dsq"] and rows[0]["ratio_to_ste"] == 1
          and all(row["forward_ns"] > 0 and row["backward_ns"] > 0 for row in rows), qat.stderr or rows)
    check_refusal("weights of nine bits are refused", "qat", "--bits", "9")
    check_refusal("unknown kernels are refused", "step", "--isa", "sse9")
    check_refusal("unknown widths are refused", "step", "--bits", "1,4")
    check_refusal("unknown widths to go to are refused", "step", "--to", "4,9")
    check_refusal("more tensors than parameters are refused", "step", "--params", "10", "--tensors", "11")
    check_policy()
    check_score()
    check_refusal("an unknown benchmark is refused", "nothing")
    check_refusal("no tensors are refused", "policy", "--tensors", "0")
    check_refusal("a cap that cannot hold is refused", "policy", "--tensors", "10", "--state-bits", "1")
    return tap.status()


if __name__ == "__main__":
    sys.exit(main())
