"""Runs the Python package's tests (python/tests) against the built library, a line `ok - name` for each case."""

import os
import pathlib
import sys

# One thread a process, before torch starts its own: small tensors, and several processes in the distributed tests.
os.environ["OMP_NUM_THREADS"] = "1"

try:
    import pytest
except ImportError:
    print("ok - the Python package's tests # SKIP pytest is not installed beside torch")
    sys.exit(0)

SOURCE = pathlib.Path(os.environ.get("STQUANT_SOURCE", pathlib.Path(__file__).parents[2]))


class Tap:
    """Prints what pytest found, one line a case."""

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.removeprefix("python/tests/")
        if report.failed:
            print(f"\nnot ok - {name} ({report.when})")
            print(report.longreprtext)
        elif report.skipped:
            print(f"\nok - {name} # SKIP {report.longrepr[2] if isinstance(report.longrepr, tuple) else ''}")
        elif report.when == "call":
            print(f"\nok - {name}")


def main():
    os.chdir(SOURCE)
    sys.path.insert(0, str(SOURCE / "python"))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SOURCE / "python"), os.environ.get("PYTHONPATH", "")])
    arguments = ["-p", "no:cacheprovider", "-p", "no:terminal", "python/tests", *sys.argv[1:]]
    return int(pytest.main(arguments, plugins=[Tap()]))


if __name__ == "__main__":
    sys.exit(main())
