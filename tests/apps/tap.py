"""Lines of the command's tests for scripts/run-tests: TAP without numbers."""

cases = failures = 0


def check(name, passed, detail=""):
    """Reports a case; `detail` (shortened) tells why it failed."""
    global cases, failures
    cases += 1
    failures += not passed
    why = "" if passed or not detail else f": {str(detail)[:1500]}"
    print(f"{'ok' if passed else 'not ok'} - {name}{why}", flush=True)


def skip(name, why):
    print(f"ok - {name} # SKIP {why}", flush=True)


def status():
    """The exit status of a test: 1 if a case failed or none was checked."""
    return 1 if failures or not cases else 0
