"""What grids of runs share: a CSV file with one row a finished run, so that an interrupted grid goes on where it stopped, and a clock that
ends them in time."""
import csv
import fcntl
import os
import subprocess
import threading
import time

NUMBERS = ("learning_rate", "beta2", "seed", "amplitude")  # of a key: equal however they are written


class Rows:
    """A CSV file and its rows as dicts of strings. Rows are appended under a lock on the file, so that threads and programs can share it.

    `key` names the columns that make two rows the same run. Floats have `digits` digits, or as many as it takes.
    """

    def __init__(self, path, fields, key, digits=None, line_end="\r\n"):
        self.path, self.fields, self.key_fields = path, fields, key
        self.digits, self.line_end = digits, line_end
        self.rows = []
        if os.path.exists(path):
            with open(path, newline="") as file:
                self.rows = list(csv.DictReader(file))
        self.made = set(map(self.key, self.rows))

    def key(self, row):
        return tuple(f"{float(value):g}" if name in NUMBERS and value != "" else str(value)
                     for name, value in ((name, row[name]) for name in self.key_fields))

    def has(self, row):
        return self.key(row) in self.made

    def text(self, value):
        if value is None:
            return ""
        return f"{value:.{self.digits}g}" if self.digits and isinstance(value, float) else str(value)

    def add(self, row):
        """Columns that the row lacks stay empty; what is no column is left out."""
        row = {name: self.text(row.get(name, "")) for name in self.fields}
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        with open(self.path, "a", newline="") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            writer = csv.DictWriter(file, self.fields, lineterminator=self.line_end)
            if os.fstat(file.fileno()).st_size == 0:
                writer.writeheader()
            writer.writerow(row)
        self.rows.append(row)
        self.made.add(self.key(row))


class Stopped(Exception):
    """The deadline has come."""


class Clock:
    """When to stop: no run begins that cannot be expected to end in time, and one that does not is ended."""

    def __init__(self, seconds):
        self.end, self.longest, self.lock = time.monotonic() + seconds, 0.0, threading.Lock()

    def left(self):
        return self.end - time.monotonic()

    def may_begin(self):
        with self.lock:
            return self.left() > 1.1 * self.longest

    def took(self, seconds):
        with self.lock:
            self.longest = max(self.longest, seconds)


def run_until(clock, words, **more):
    """subprocess.run(), ended at the deadline: then Stopped."""
    try:
        return subprocess.run(words, timeout=min(max(clock.left(), 0.1), 1e6), **more)
    except subprocess.TimeoutExpired as problem:
        raise Stopped from problem
