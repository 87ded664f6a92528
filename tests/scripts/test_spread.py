"""The figures of bench/spread.py: means, deviations and the bound, of numbers whose results are known."""
import os
import sys

sys.path.insert(0, os.path.join(os.environ["STQUANT_SOURCE"], "bench"))
import spread  # noqa: E402


def cases():
    yield spread.with_deviation([1.0, 2.0, 3.0], 2) == "2.00 ± 1.00", "mean and standard deviation of the sample"
    yield spread.with_deviation([0.5], 1, "+") == "+0.5", "a single value has no deviation; the sign is shown where asked for"
    yield spread.with_deviation([], 2) == "", "nothing of nothing"
    # Student's t for two degrees of freedom, 2.920, times 1 / sqrt(3).
    yield abs(spread.upper_bound([1.0, 2.0, 3.0]) - (2 + 2.920 / 3**0.5)) < 1e-12, "the upper bound of three"
    yield spread.upper_bound([1.0]) is None, "no bound of one"
    # Beyond the table its last quantile counts, which is too large rather than too small.
    values = [0.0, 1.0] * 20
    yield spread.upper_bound(values) > 0.5 + 1.685 * spread.mean_and_deviation(values)[1] / 40**0.5, "the bound of many"


def main():
    failures = 0
    for passed, what in cases():
        failures += not passed
        print(f"{'ok' if passed else 'not ok'} - {what}")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
