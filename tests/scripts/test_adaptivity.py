"""`bench/adaptivity`: means, deviations and paired differences of known rows, and runs that a deadline ends."""
import os
import subprocess
import sys
import tempfile
import time

SOURCE = os.environ["STQUANT_SOURCE"]
HEAD = ("date,machine,preset,steps,name,optimizer,policy,cap_bits,seed,learning_rate,beta2,validation_loss,train_loss,all_in_bits,"
        "peak_all_in_bits,step_ms,optimizer_ms")


def row(name, seed, rate, loss, bits):
    return f'2026-01-01,m,tiny,9,"{name}",o,,,{seed},{rate},0.99,{loss},1,{bits},{bits},1,1'


def check_deadline(folder):
    """Runs that would take a minute are ended after a second, without a row, and no other is begun."""
    command, text, path = (os.path.join(folder, name) for name in ("stquant", "text", "none.csv"))
    with open(command, "w") as file:
        file.write("#!/bin/sh\nexec sleep 60\n")
    os.chmod(command, 0o755)
    begun = time.monotonic()
    result = subprocess.run([os.path.join(SOURCE, "bench/adaptivity"), "--stquant", command, "--data", text, "--csv", path, "--jobs", "2",
                             "--deadline", "1"], capture_output=True, text=True)
    ended = result.stdout.count("ended by the deadline: float32, seed 1")
    passed = result.returncode == 1 and ended == 2 and not os.path.exists(path) and time.monotonic() - begun < 30
    print(f"{'ok' if passed else 'not ok'} - the deadline ends runs{'' if passed else ': ' + result.stdout + result.stderr}")
    return passed


def main():
    rows = [row("float32", seed, rate, loss, 32) for rate, losses in ((0.001, (2, 2, 2)), (0.002, (1.0, 1.1, 1.2)))
            for seed, loss in enumerate(losses, 1)]
    rows += [row("fixed 4,4", seed, 0.002, loss, 4.5) for seed, loss in ((1, 1.01), (2, 1.111), (3, 1.212))]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rows.csv")
        with open(path, "w") as file:
            file.write("\n".join([HEAD, *rows]) + "\n")
        result = subprocess.run([os.path.join(SOURCE, "bench/adaptivity"), "--tables", "--csv", path], capture_output=True, text=True)
        expected = ("Learning rate 0.002.", "| float32 | m | 3 | 32.00 | 1.1000 ± 0.1000 |  |",
                    "| fixed 4,4 | m | 3 | 4.50 | 1.1110 ± 0.1010 | 1.00 ± 0.00 % |")
        passed = result.returncode == 0 and all(line in result.stdout for line in expected)
        print(f"{'ok' if passed else 'not ok'} - the table of known rows{'' if passed else ': ' + result.stdout + result.stderr}")
        with open(path, "w") as file:
            file.write("\n".join([HEAD, rows[0]]) + "\n")
        result = subprocess.run([os.path.join(SOURCE, "bench/adaptivity"), "--tables", "--csv", path], capture_output=True, text=True)
        refused = result.returncode == 1 and "no complete sweep" in result.stderr
        print(f"{'ok' if refused else 'not ok'} - an incomplete sweep is named{'' if refused else ': ' + result.stderr}")
        in_time = check_deadline(folder)
    return not (passed and refused and in_time)


if __name__ == "__main__":
    sys.exit(main())
