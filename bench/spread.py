"""Means of paired runs, their spread and the bound that parity is decided by: what the tables of several grids share."""
import math
import statistics

# One-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753, 1.746, 1.740, 1.734, 1.729)


def mean_and_deviation(values):
    """(mean, standard deviation); the deviation of a single value is None."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def upper_bound(values):
    """Of the mean, at 95 % (one-sided, Student's t); None for a single value."""
    mean, deviation = mean_and_deviation(values)
    if deviation is None:
        return None
    return mean + T95[min(len(values) - 2, len(T95) - 1)] * deviation / math.sqrt(len(values))


def with_deviation(values, digits, sign=""):
    """"1.23 ± 0.04", or the mean alone of a single value; nothing without one. `sign` "+" shows that of the mean always."""
    if not values:
        return ""
    mean, deviation = mean_and_deviation(values)
    return f"{mean:{sign}.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")
