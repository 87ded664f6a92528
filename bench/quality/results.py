"""The CSV files and what can be asked of their rows."""
import math

from runs import Rows

FIELDS = ("date,device,model,data,optimizer,policy,cap_bits,seed,learning_rate,beta2,tokens,validation_loss,test_loss,all_in_bits,"
          "peak_all_in_bits,peak_memory_bytes,step_ms,tokens_per_s,top1,diverged,name,steps,optimizer_ms,parameters,train_loss,"
          "skipped_steps,compiled,seconds,settings").split(",")
HEADLINE_FIELDS = ("date,device,model,optimizer,policy,cap_bits,parameters,state_bytes,all_in_bits,peak_memory_bytes,step_ms,optimizer_ms,"
                   "tokens_per_s,steps,batch,name,settings").split(",")
FAILURE_FIELDS = ["date", "name", "model", "seed", "learning_rate", "beta2", "reason"]


def rows_of(path, fields, key):
    return Rows(path, fields, key, digits=7, line_end="\n")


def quality(path):
    return rows_of(path, FIELDS, ("name", "model", "seed", "learning_rate", "beta2", "tokens"))


def headline(path):
    return rows_of(path, HEADLINE_FIELDS, ("name", "model", "device"))


def failures(path):
    return rows_of(path, FAILURE_FIELDS, ("name", "model", "seed"))


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
