"""`stquant train --tensorboard`: event files, decoded here by hand and, where it can be imported, by the tensorboard
package (in the Python that STQUANT_PYTHON names, else this one)."""
import json
import os
import struct
import subprocess
import sys
import tempfile

import tap
from tap import check, skip

COMMAND = os.environ["STQUANT_COMMAND"]

# Prints what TensorBoard itself reads.
READER = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "histograms": 0})
events.Reload()
tags = events.Tags()
print(json.dumps({"scalars": {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags["scalars"]},
                  "histograms": {tag: [[e.step, e.histogram_value.num, e.histogram_value.min, e.histogram_value.max,
                                        e.histogram_value.sum, e.histogram_value.sum_squares,
                                        list(e.histogram_value.bucket_limit), list(e.histogram_value.bucket)]
                                       for e in events.Histograms(tag)] for tag in tags["histograms"]}}))
"""


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(data):
    at = 0
    while at < len(data):
        length, length_crc = struct.unpack_from("<QI", data, at)
        content = data[at + 12:at + 12 + length]
        data_crc, = struct.unpack_from("<I", data, at + 12 + length)
        assert length_crc == masked(data[at:at + 8]) and data_crc == masked(content), f"checksum at {at}"
        yield content
        at += 16 + length


def fields(message):
    """(number, value) of a protocol buffer message; bytes stay bytes."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            value = varint()
        else:
            length = varint() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
            value, at = message[at:at + length], at + length
        yield key >> 3, value


def decode(data):
    """Scalars {tag: [(step, value)]} and histograms {tag: [(step, fields)]} of an event file, and its first record."""
    scalars, histograms, versions = {}, {}, []
    for record in records(data):
        event = dict(fields(record))
        if 3 in event:
            versions.append(event[3])
        for _, value in fields(event.get(5, b"")):
            value = dict(fields(value))
            tag, step = value[1].decode(), event.get(2, 0)
            if 2 in value:
                scalars.setdefault(tag, []).append((step, struct.unpack("<f", value[2])[0]))
            else:
                inner = dict(fields(value[5]))
                numbers = [struct.unpack("<d", inner[i])[0] for i in range(1, 6)]
                arrays = [list(struct.unpack(f"<{len(inner[i]) // 8}d", inner[i])) for i in (6, 7)]
                histograms.setdefault(tag, []).append((step, *numbers, *arrays))
    return scalars, histograms, versions


def near(a, b):
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b)) or a == b


def check_scalars(lines, scalars):
    pairs = {"loss/training": "train_loss", "loss/validation": "validation_loss", "optimizer/learning_rate": "learning_rate",
             "optimizer/gradient_norm": "gradient_norm", "states/bytes": "state_bytes", "states/peak_bytes": "peak_state_bytes",
             "states/bits_per_value": "mean_bits"}
    for tag, key in pairs.items():
        expected = [(line["step"], line[key]) for line in lines if key in line]
        found = scalars.get(tag, [])
        check(f"{tag} is the log's {key} at {len(expected)} steps",
              [step for step, _ in found] == [step for step, _ in expected]
              and all(near(a, b) for (_, a), (_, b) in zip(found, expected)), (found[:3], expected[:3]))
    decisions = [(line["step"], tensor) for line in lines for tensor in line.get("tensors", [])]
    wrong = [tensor["name"] for step, tensor in decisions if tensor["m_bits"] != 32
             for state in "mv" if (step, tensor[f"{state}_bits"]) not in scalars.get(f"bits_{state}/{tensor['name']}", [])]
    check(f"widths at {len(decisions)} tensors and decisions", decisions and not wrong, wrong)


def check_histograms(histograms, parameters):
    problems = []
    for tag, entries in histograms.items():
        for _, low, high, count, total, squares, limits, counts in entries:
            filled = [i for i, number in enumerate(counts) if number]
            if not (len(limits) == len(counts) and limits == sorted(limits) and near(sum(counts), count)
                    and low <= high <= limits[filled[-1]] * (1 + 1e-9) + 1e-12
                    and (filled[0] == 0 or low >= limits[filled[0] - 1] * (1 - 1e-9) - 1e-12)
                    and low - 1e-9 <= total / count <= high + 1e-9
                    and squares / count >= (total / count) ** 2 * (1 - 1e-9)):
                problems.append((tag, low, high, count, limits[:2], limits[-2:]))
    check(f"{len(histograms)} histograms: sums, limits and extremes fit", histograms and not problems, problems[:3])
    values = sum(entries[-1][3] for tag, entries in histograms.items() if tag.startswith("parameters/"))
    gradients = sum(entries[-1][3] for tag, entries in histograms.items() if tag.startswith("gradients/"))
    check("they count every parameter and gradient", values == gradients == parameters, (values, gradients, parameters))
    ones = histograms["parameters/h.0.ln_1.weight"][0]
    check("a gain that begins near 1 has a histogram near 1", 0.9 < ones[1] <= ones[4] / ones[3] <= ones[2] < 1.1, ones)
    bits = histograms["bits/m"][-1]
    check("the widths of the values have one, too", bits[3] == parameters and bits[1] >= 2 and bits[2] == 32, bits[:5])


def check_package(folder, scalars, histograms):
    python = os.environ.get("STQUANT_PYTHON", sys.executable)
    found = subprocess.run([python, "-c", "import tensorboard"], capture_output=True)
    if found.returncode != 0:
        skip("TensorBoard reads the file", "tensorboard cannot be imported (pip install tensorboard, STQUANT_PYTHON)")
        return
    result = subprocess.run([python, "-c", READER, folder], capture_output=True, text=True)
    if result.returncode != 0:
        check("TensorBoard reads the file", False, result.stderr)
        return
    read = json.loads(result.stdout)
    check("TensorBoard reads every scalar", {tag: [tuple(pair) for pair in pairs] for tag, pairs in read["scalars"].items()}
          == scalars, set(read["scalars"]) ^ set(scalars))
    expected = {tag: [[step, count, low, high, total, squares, limits, counts]
                      for step, low, high, count, total, squares, limits, counts in entries]
                for tag, entries in histograms.items()}
    check("TensorBoard reads every histogram", read["histograms"] == expected, set(read["histograms"]) ^ set(expected))


def main():
    check("CRC-32C of the standard's test string", crc32c(b"123456789") == 0xE3069283)
    with tempfile.TemporaryDirectory() as folder:
        text, log, events = (os.path.join(folder, name) for name in ("text.txt", "run.jsonl", "board/run"))
        with open(text, "w") as file:
            file.write("The quick brown fox jumps over the lazy dog.\n" * 200)
        command = [COMMAND, "train", "gpt2", "--layers", "1", "--width", "64", "--heads", "2", "--context", "32", "--steps", "24",
                   "--batch", "4", "--sequence-length", "32", "--threads", "1", "--data", text, "--sample-length", "0",
                   "--state-bits", "6", "--log", log]
        run = subprocess.run([*command, "--tensorboard", events], capture_output=True, text=True)
        names = os.listdir(events) if os.path.isdir(events) else []
        check("a run writes one event file, in a folder that it makes", run.returncode == 0 and len(names) == 1
              and names[0].startswith("events.out.tfevents."), (run.stderr, names))
        if not names:
            return 1
        with open(log) as file:
            lines = [json.loads(line) for line in file]
        with open(os.path.join(events, names[0]), "rb") as file:
            scalars, histograms, versions = decode(file.read())
        check("the first record names the format's version", versions == [b"brain.Event:2"], versions)
        check_scalars(lines, scalars)
        check_histograms(histograms, lines[0]["run"]["parameters"])
        check_package(events, scalars, histograms)
        for name, path, sentence in (("a folder that cannot be made", "/proc/nothing", "Cannot make the folder"),
                                     ("a file in the folder's place", text, "Cannot write")):
            run = subprocess.run([*command, "--tensorboard", path], capture_output=True, text=True)
            check(name + " is refused", run.returncode == 1 and sentence in run.stderr, run.stderr)
        full = subprocess.run(["bash", "-c", 'ulimit -f 16; trap "" XFSZ; exec "$@"', "bash", *command[:-2], "--tensorboard",
                               os.path.join(folder, "full")], capture_output=True, text=True)
        check("a full disk ends the run with a sentence", full.returncode == 1 and "free some space" in full.stderr, full.stderr)
    return tap.status()


if __name__ == "__main__":
    sys.exit(main())
