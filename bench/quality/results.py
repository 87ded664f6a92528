"""The CSV files: one row a finished run, appended under a lock, and what can be asked of the rows."""
import csv
import fcntl
import math
import os

FIELDS = ("date,device,model,data,optimizer,policy,cap_bits,seed,learning_rate,beta2,tokens,validation_loss,test_loss,all_in_bits,"
          "peak_all_in_bits,peak_memory_bytes,step_ms,tokens_per_s,top1,diverged,name,steps,optimizer_ms,parameters,train_loss,"
          "skipped_steps,compiled,seconds,settings").split(",")
HEADLINE_FIELDS = ("date,device,model,optimizer,policy,cap_bits,parameters,state_bytes,all_in_bits,peak_memory_bytes,step_ms,optimizer_ms,"
                   "tokens_per_s,steps,batch,name,settings").split(",")
FAILURE_FIELDS = ["date", "name", "model", "seed", "learning_rate", "beta2", "reason"]


def rounded(value):
    """A float with seven digits, anything else as it is."""
    return f"{value:.7g}" if isinstance(value, float) else value


class Rows:
    """A CSV file and its rows as dicts of strings. `key` names the columns that make two rows the same run."""

    def __init__(self, path, fields, key):
        self.path, self.fields, self.key_fields = path, fields, key
        self.rows = []
        if os.path.exists(path):
            with open(path, newline="") as file:
                self.rows = list(csv.DictReader(file))

    def key(self, row):
        return tuple(f"{float(value):g}" if name in ("learning_rate", "beta2", "seed") else str(value)
                     for name, value in ((name, row[name]) for name in self.key_fields))

    def has(self, row):
        return self.key(row) in set(map(self.key, self.rows))

    def add(self, row):
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        with open(self.path, "a", newline="") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            writer = csv.DictWriter(file, self.fields, extrasaction="ignore", lineterminator="\n")
            if os.fstat(file.fileno()).st_size == 0:
                writer.writeheader()
            writer.writerow({name: rounded(value) for name, value in row.items()})
        self.rows.append({name: str(rounded(row.get(name, ""))) for name in self.fields})


def quality(path):
    return Rows(path, FIELDS, ("name", "model", "seed", "learning_rate", "beta2", "tokens"))


def headline(path):
    return Rows(path, HEADLINE_FIELDS, ("name", "model", "device"))


def loss_of(row):
    """The validation loss; infinite where the run diverged."""
    value = float(row["validation_loss"] or "nan")
    return value if math.isfinite(value) else math.inf


def sweep_losses(rows, model, beta2, tokens):
    """{learning rate: validation loss} of float32's whole runs with seed 1."""
    return {float(row["learning_rate"]): loss_of(row) for row in rows
            if row["name"] == "float32" and row["model"] == model and int(row["seed"]) == 1 and float(row["beta2"]) == beta2
            and int(row["tokens"]) == tokens}


def best_rate(rows, model, beta2, tokens):
    """The rate with the lowest loss; None without rows, or if all diverged."""
    losses = sweep_losses(rows, model, beta2, tokens)
    best = min(losses, key=losses.get, default=None)
    return best if best is not None and math.isfinite(losses[best]) else None
