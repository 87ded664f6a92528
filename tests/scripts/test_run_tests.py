"""scripts/run-tests counts what tests print; a test that dies, hangs or stops early is a failure."""
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap

SOURCE = pathlib.Path(os.environ["STQUANT_SOURCE"])

# name, program of the test, expected last line, expected exit status
CASES = [
    ("cases are counted", "print('1..2\\nok 1 - a\\nok 2 - b')", "2 passed, 0 failed", 0),
    ("a failed case fails", "print('ok 1 - a\\nnot ok 2 - b'); raise SystemExit(1)", "1 passed, 1 failed", 1),
    ("a failed case fails in spite of exit status 0", "print('ok 1 - a\\nnot ok 2 - b')", "1 passed, 1 failed", 1),
    ("a skipped case is not a pass", "print('ok 1 - a\\nnot ok 2 # SKIP b')", "1 passed, 0 failed, 1 skipped", 0),
    ("nothing but skipped cases is no success", "raise SystemExit(77)", "0 passed, 0 failed, 1 skipped", 1),
    ("an early end is a failure", "print('1..3\\nok 1 - a', flush=True)", "1 passed, 1 failed", 1),
    ("a crash after the last case is a failure", "import os; print('1..1\\nok 1 - a', flush=True); os.abort()",
     "1 passed, 1 failed", 1),
    ("without lines the exit status counts, 0", "print('fine')", "1 passed, 0 failed", 0),
    ("without lines the exit status counts, 1", "raise SystemExit(1)", "0 passed, 1 failed", 1),
    ("a time-out is a failure", "import time; print('ok 1 - a', flush=True); time.sleep(60)", "1 passed, 1 failed", 1),
]


def run_case(program):
    with tempfile.TemporaryDirectory() as folder:
        script = os.path.join(folder, "program.py")
        with open(script, "w") as file:
            file.write(program)
        with open(os.path.join(folder, "CTestTestfile.cmake"), "w") as file:
            file.write(textwrap.dedent(f"""\
                add_test([=[one]=] "{sys.executable}" "{script}")
                set_tests_properties([=[one]=] PROPERTIES TIMEOUT "2")
                """))
        environment = {key: value for key, value in os.environ.items() if key != "STQUANT_LONG"}
        result = subprocess.run([SOURCE / "scripts/run-tests", folder], stdout=subprocess.PIPE, text=True,
                                env=environment, stdin=subprocess.DEVNULL)
    return result.stdout.splitlines()[-1], result.returncode


def main():
    failed = 0
    for name, program, last_line, status in CASES:
        found = run_case(program)
        good = found == (last_line, status)
        failed += not good
        print(f"{'ok' if good else 'not ok'} - {name}" + ("" if good else f": {found}"), flush=True)
    return 1 if failed else 0


sys.exit(main())
