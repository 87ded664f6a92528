"""The CSV files of bench/runs.py: what is the same run, what a row looks like, and rows of several programs at once."""
import multiprocessing
import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.environ["STQUANT_SOURCE"], "bench"))
from runs import Rows  # noqa: E402

FIELDS, KEY = ("name", "seed", "learning_rate", "loss"), ("name", "seed", "learning_rate")
PROGRAMS, ROWS = 4, 50


def row(name, seed, loss=1 / 3):
    return {"name": name, "seed": seed, "learning_rate": 1e-3, "loss": loss, "not a column": 1}


def append(path, program):
    table = Rows(path, FIELDS, KEY)
    for seed in range(ROWS):
        table.add(row(f"program {program}", seed))


def test_rows(path):
    table = Rows(path, FIELDS, KEY, digits=4, line_end="\n")
    table.add(row("a, b", 1))
    table.add(row("c", 2, None))
    with open(path) as file:
        yield file.read() == 'name,seed,learning_rate,loss\n"a, b",1,0.001,0.3333\nc,2,0.001,\n', "rows have the digits and the line end asked for"
    again = Rows(path, FIELDS, KEY)
    yield again.rows == table.rows, "rows are read as they are kept"
    same = {"name": "c", "seed": "2", "learning_rate": "1e-3"}
    yield again.has(same) and not again.has({**same, "seed": 3}), "a run is known by its key, however numbers are written"


def test_programs(path):
    programs = [multiprocessing.Process(target=append, args=(path, number)) for number in range(PROGRAMS)]
    for program in programs:
        program.start()
    for program in programs:
        program.join()
    table = Rows(path, FIELDS, KEY)
    yield len(table.made) == len(table.rows) == PROGRAMS * ROWS, "several programs append to one file, with one header"


def main():
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for test in (test_rows, test_programs):
            for passed, what in test(os.path.join(folder, "new", f"{test.__name__}.csv")):
                failures += not passed
                print(f"{'ok' if passed else 'not ok'} - {what}")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
