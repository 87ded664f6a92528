"""examples/multimodal: labels and scores against direct computations, and a toy grid from end to end.

The images are made here (ten classes of stripes and boxes), so that nothing has to be fetched.
"""

import csv
import gzip
import os
import pathlib
import subprocess
import sys
import tempfile

# Toy sizes: more threads would only wait for each other.
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
import torch  # noqa: E402

SOURCE = pathlib.Path(os.environ["STQUANT_SOURCE"])
EXAMPLE = SOURCE / "examples/multimodal"
sys.path[:0] = [str(EXAMPLE), str(SOURCE / "python")]
sys.dont_write_bytecode = True
import grid  # noqa: E402
import images  # noqa: E402
import sentences  # noqa: E402
import tasks  # noqa: E402
import training  # noqa: E402
import words  # noqa: E402

SEED = 7


def write_images(folder, part, count, generator):
    """Two idx.gz files: pictures whose stripes and size tell the class, with noise, and the classes."""
    classes = torch.randint(10, (count,), generator=generator, dtype=torch.uint8)
    rows = torch.arange(28)
    inside = (rows[None] - 14).abs() < (6 + classes % 5 * 2)[:, None]
    striped = (rows[None] // (1 + classes // 5 * 3)[:, None]) % 2 == 0
    shape = inside[:, :, None] & inside[:, None, :] & striped[:, :, None]
    pictures = shape * torch.randint(100, 256, (count, 28, 28), generator=generator)
    for name, values in (("images-idx3", pictures.byte()), ("labels-idx1", classes)):
        head = bytes([0, 0, 8, values.dim()]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
        with gzip.open(folder / f"{part}-{name}-ubyte.gz", "wb", compresslevel=1) as file:
            file.write(head + bytes(values.flatten().tolist()))


def possible(empty, not_empty, classes):
    """Is there a world in which these regions are empty, those are not, and no class is? The largest one decides."""
    world = torch.ones(120, dtype=torch.bool)
    for region in empty:
        world &= ~region
    return all((world & region).any() for region in [*not_empty, *classes])


def check_relations():
    """Labels of 4,000 pairs against a search for a world in which they would be wrong; training and held out are disjoint."""
    drawn = sentences.Sentences("cpu")
    _, regions = sentences._regions()
    count = len(regions)
    classes = [torch.eye(10, dtype=torch.bool)[one].repeat_interleave(12) for one in range(10)]
    generator = torch.Generator().manual_seed(SEED)
    for label, pairs in enumerate(drawn.pairs["train"]):
        for first, second in pairs[torch.randint(len(pairs), (1300,), generator=generator)].tolist():
            worlds = []
            for second_holds in (True, False):
                sides = ([], [])  # empty, not empty
                sides[first >= count].append(regions[first % count])
                sides[(second >= count) == second_holds].append(regions[second % count])
                worlds.append(possible(*sides, classes))
            expected = {(True, False): 0, (False, True): 1, (True, True): 2}[tuple(worlds)]
            assert label == expected, (first, second, label, expected)
    train, held_out = (set(map(tuple, torch.cat(drawn.pairs[part]).tolist())) for part in ("train", "t10k"))
    assert held_out and not train & held_out
    text, labels = drawn.draw("train", 2000, generator)
    assert text.shape == (2000, sentences.LENGTH) and (text[:, -1] == words.PADDING).float().mean() > 0.9
    assert (torch.bincount(labels, minlength=3) > 550).all(), labels


def check_scores():
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.7], [0.1, 0.6], [0.2, 0.9]])
    labels = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    # Class 0: right at ranks 1 and 4; class 1: at ranks 1 and 2.
    expected = 100 * ((1 + 2 / 4) / 2 + 1) / 2
    assert abs(tasks.average_precision(scores, labels) - expected) < 1e-4
    pictures, texts = torch.eye(4), torch.eye(4)[[0, 1, 3, 3]]
    to_text, to_picture = tasks.recall_at_1(pictures, texts)
    assert (to_text, to_picture) == (50.0, 75.0), (to_text, to_picture)


def check_pictures(folder):
    """A scene says of its garments what can be seen; a caption holds all of it."""
    garments = images.Garments(folder, "train", "cpu")
    task = tasks.Retrieval(folder, "cpu", 100, 1)
    generator = torch.Generator().manual_seed(SEED)
    index = garments.draw(64, generator).view(-1, 2)
    pictures, facts = images.scenes(garments, index, generator)
    assert torch.equal(facts[:, :, 0], garments.classes[index])
    left = pictures[:, :, :28].flatten(1)
    visible = left > 0
    mean = (left * visible).sum(1) / visible.sum(1)
    level = torch.bucketize(mean, garments.brightness_levels)
    near = (mean[:, None] - garments.brightness_levels).abs().amin(1) < 1e-4
    assert ((level == facts[:, 0, 1]) | near).all()
    for row, fact in zip(task.captions.write(facts, generator), facts):
        written = words.text(row)
        for garment in fact:
            for table, value in zip((words.CLASSES, words.BRIGHTNESSES, words.ORIENTATIONS, words.CROPS),
                                    garment[[0, 1, 3, 4]].tolist()):
                assert any(phrase in written for phrase in table[value]), (written, fact)


def check_schedule():
    rates = [training.rate_at(step, 200, 1.0, True) for step in range(200)]
    assert max(rates) == 1.0 and rates[99] < 0.02 and rates[105] == 1.0 and rates[199] < 0.02


def check_order():
    """Fine-tuning waits for its base, everything for its sweep, which goes on while the best rate is at an end."""
    bases = set()
    plan = grid.Grid(["retrieval", "sentences"], ["float32", "zones 5.0"], [1, 2], {"retrieval": (1, 2), "sentences": (3,)},
                     lambda seed, rate: (seed, rate) in bases)
    rows, made = [], []
    while ready := plan.ready(rows, set()):
        job = ready[0]
        made.append((job.task, job.states, job.seed, job.rate))
        assert job.task == "retrieval" or (job.seed, 4) in bases, job
        if (job.task, job.states) == ("retrieval", "float32"):
            bases.add((job.seed, job.rate))
        rows.append({"task": job.task, "states": job.states, "seed": str(job.seed), "learning_rate": str(job.rate),
                     "score": str(-abs(job.rate - 4))})  # 4 is best
    assert plan.complete(rows) and len(set(made)) == len(made), made
    assert made[:5] == [("retrieval", "float32", 1, rate) for rate in (1, 2, 4, 8)] + [("retrieval", "float32", 2, 4)], made
    assert len(made) == 4 + 3 + 4 and ("retrieval", "zones 5.0", 2, 4) in made, made


def run(name, *arguments):
    environment = dict(os.environ, PYTHONPATH=str(SOURCE / "python"), PYTHONDONTWRITEBYTECODE="1")
    return subprocess.run([sys.executable, str(EXAMPLE / name), *map(str, arguments)], capture_output=True, text=True,
                          env=environment, timeout=300)


def check_whole(folder):
    """Seven toy runs, none of them twice, and their tables."""
    path = folder / "rows.csv"
    command = ["run.py", "--preset", "tiny", "--data", folder, "--csv", path, "--work", folder / "work", "--threads", 1,
               "--devices", "cpu"]
    first = run(*command, "--states", "float32;fixed 4,4;zones 5.0")
    assert first.returncode == 0, first.stderr
    second = run(*command, "--tasks", "retrieval,collages,sentences", "--states", "float32;zones 5.0")
    assert second.returncode == 0 and second.stdout.count("\n") == 4, second.stdout + second.stderr
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 and len({grid.job_of(row) for row in rows}) == 7
    assert all(float(row["peak_bits"]) <= 5.0 for row in rows if row["states"] == "zones 5.0"), rows
    with open(folder / "rows-widths.csv", newline="") as file:
        widths = list(csv.DictReader(file))
    assert {row["states"] for row in widths} == {"zones 5.0"}
    assert {row["tensor"].split(".")[0] for row in widths} == {"image", "text"}
    assert all(len(row["m_bits"]) == len(row["v_bits"]) == len(row["log10_gradient"].split()) == 10 for row in widths)
    table = run("table.py", "--preset", "tiny", "--csv", path)
    assert table.returncode == 0 and "**sentences**, accuracy" in table.stdout and "text - image" in table.stdout, table.stderr
    refused = run(*command, "--states", "zone 5.0")
    assert refused.returncode == 2 and "zone 5.0" in refused.stderr, refused.stderr


def main():
    status = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        generator = torch.Generator().manual_seed(SEED)
        for part in ("train", "t10k"):
            write_images(folder, part, 400, generator)
        checks = [check_relations, check_scores, lambda: check_pictures(folder), check_schedule, check_order,
                  lambda: check_whole(folder)]
        names = ["relations of sentences", "scores", "pictures and captions", "schedule", "order of runs", "a toy grid"]
        for what, check in zip(names, checks):
            try:
                check()
                print(f"ok - {what}")
            except AssertionError as error:
                print(f"not ok - {what} (seed {SEED}): {error}")
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
