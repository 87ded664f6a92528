"""Widths of both towers over time: a table that asks what they follow, and a picture. Needs no PyTorch; table.py calls it."""

import math
import os
import statistics
import subprocess

from spread import with_deviation

COLOURS = {"image": "#1f77b4", "text": "#d95f02"}
DRAWN = ("zones 5.0", "rate-distortion 5.0", "zones 3.5", "rate-distortion 3.5")
AROUND = 3  # decisions before and after the restart of the learning rate that are compared


class Run:
    """Widths and gradients of one run over time, from its rows in the CSV file of widths."""

    def __init__(self, rows, steps):
        self.elements = [int(row["elements"]) for row in rows]
        self.towers = [row["tensor"].split(".")[0] for row in rows]
        self.words = [row[kind] for row in rows for kind in ("m_bits", "v_bits")]  # a digit a time
        self.bits = [[(int(m) + int(v)) / 2 for m, v in zip(row["m_bits"], row["v_bits"])] for row in rows]
        self.gradients = [list(map(float, row["log10_gradient"].split())) for row in rows]
        first, every = int(rows[0]["first_step"]), int(rows[0]["every"])
        self.times = [first + every * i for i in range(len(self.bits[0]))]
        self.half = steps / 2
        self.restart = next((i for i, time in enumerate(self.times) if time > self.half), len(self.times) - 1)

    def _of(self, tower):
        chosen = [i for i, name in enumerate(self.towers) if tower in (None, name)]
        return chosen, sum(self.elements[i] for i in chosen)

    def mean_bits(self, tower=None):
        """Mean code bits of m and v by elements at each time."""
        chosen, total = self._of(tower)
        return [sum(self.elements[i] * self.bits[i][t] for i in chosen) / total for t in range(len(self.times))]

    def gradient(self, tower):
        """RMS of the tower's gradient at each time."""
        chosen, total = self._of(tower)
        squares = [[self.elements[i] * 100 ** self.gradients[i][t] for i in chosen] for t in range(len(self.times))]
        return [math.sqrt(sum(one) / total) for one in squares]

    def bits_around(self):
        """Mean bits over the decisions before the restart, and over those after it."""
        bits = self.mean_bits()
        return [statistics.mean(bits[max(begin, 0) : begin + AROUND]) for begin in (self.restart - AROUND, self.restart)]

    def rises_around(self):
        """Widths that rose in a decision, the mean over the decisions before the restart and over those after it."""
        rises = []
        for begin in (self.restart - AROUND, self.restart):
            times = range(max(begin, 1), min(begin + AROUND, len(self.times)))
            rises.append(sum(word[t] > word[t - 1] for word in self.words for t in times) / max(len(times), 1))
        return rises

    def correlation(self):
        """Spearman's rank correlation of bits and gradient over tensors, the mean over times; None if all bits are equal."""
        times = range(len(self.times))
        values = [rank_correlation([one[t] for one in self.bits], [one[t] for one in self.gradients]) for t in times]
        values = [value for value in values if value is not None]
        return statistics.mean(values) if values else None


def ranks(values):
    """Ranks with the mean for ties."""
    order = sorted(range(len(values)), key=values.__getitem__)
    result, at = [0.0] * len(values), 0
    while at < len(order):
        end = at
        while end < len(order) and values[order[end]] == values[order[at]]:
            end += 1
        for place in order[at:end]:
            result[place] = (at + end - 1) / 2
        at = end
    return result


def rank_correlation(one, other):
    """Spearman's; None where one of both is constant."""
    one, other = ranks(one), ranks(other)
    mean = (len(one) - 1) / 2
    product = sum((a - mean) * (b - mean) for a, b in zip(one, other))
    norm = math.sqrt(sum((a - mean) ** 2 for a in one) * sum((b - mean) ** 2 for b in other))
    return product / norm if norm > 0 else None


def table(rows, runs):
    """Markdown lines: do the towers get different widths, do these follow the gradients, do they rise after the restart?

    Arguments:
        rows: {states: rows of its runs}.
        runs: {states: a Run for each seed}.
    """
    if not runs:
        return
    yield "\nCode bits of both towers in retrieval, means over time; gradients (RMS of an element, mean over time); rank"
    yield "correlation of bits and gradients over tensors; bits, and widths that rise a decision, in the"
    yield f"{AROUND} decisions before and after the restart of the learning rate.\n"
    yield ("| states | image m, v | text m, v | text - image | gradient, image | gradient, text | correlation | "
           "bits before, after | rises before, after |")
    yield "|---|---|---|---|---|---|---|---|---|"
    for states, of_states in runs.items():
        numbers = [{f"{tower} {kind}": float(row[f"{tower}_{kind}"]) for tower in ("image", "text")
                    for kind in ("m_bits", "v_bits", "gradient")} for row in rows[states]]
        mean = {key: statistics.mean(one[key] for one in numbers) for key in numbers[0]}
        apart = [(one["text m_bits"] + one["text v_bits"] - one["image m_bits"] - one["image v_bits"]) / 2 for one in numbers]
        correlations = [value for run in of_states if (value := run.correlation()) is not None]
        before, after = (statistics.mean(values) for values in zip(*(run.bits_around() for run in of_states)))
        rises = [statistics.mean(values) for values in zip(*(run.rises_around() for run in of_states))]
        yield (f"| {states} | {mean['image m_bits']:.2f}, {mean['image v_bits']:.2f} | {mean['text m_bits']:.2f}, "
               f"{mean['text v_bits']:.2f} | {with_deviation(apart, 2, '+')} | {mean['image gradient']:.2e} | {mean['text gradient']:.2e} | "
               f"{with_deviation(correlations, 2, '+')} | {before:.2f}, {after:.2f} | {rises[0]:.1f}, {rises[1]:.1f} |")


def plot(path, runs):
    """Above bits of both towers over the steps, below their gradients; a column for each way to choose widths."""
    chosen = [states for states in DRAWN if states in runs]
    if not chosen:
        raise SystemExit("There are no widths of adaptive runs to draw.")
    blocks = []
    for column, states in enumerate(chosen):
        for tower in COLOURS:
            bits, gradients = ([statistics.mean(values) for values in zip(*(getattr(run, kind)(tower) for run in runs[states]))]
                               for kind in ("mean_bits", "gradient"))
            lines = [f"{time} {bit:.4f} {gradient:.4e}" for time, bit, gradient in zip(runs[states][0].times, bits, gradients)]
            blocks.append(f"${tower}{column} << END\n" + "\n".join(lines) + "\nEND\n")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    subprocess.run(["gnuplot"], input=_script(path, blocks, chosen, runs[chosen[0]][0].half), text=True, check=True)


def _curves(column, place, titled):
    titles = {tower: f"title '{tower} tower'" if titled else "notitle" for tower in COLOURS}
    return "plot " + ", ".join(f"${tower}{column} using 1:{place} with lines lw 2 lc rgb '{colour}' {titles[tower]}"
                               for tower, colour in COLOURS.items())


def _script(path, blocks, chosen, restart):
    lines = [f"set terminal svg size {300 * len(chosen)},520 dynamic background '#ffffff' font 'DejaVu Sans,sans-serif,12'",
             f"set xtics {restart / 2:g}", "set encoding utf8", f"set output '{path}'", *blocks,
             "set grid lc '#e4e4e4' lt 1", "set key top left",
             f"set arrow 1 from first {restart:g}, graph 0 to first {restart:g}, graph 1 nohead dt 2 lc '#808080'",
             f"set multiplot layout 2,{len(chosen)}", "set ylabel 'code bits a value'", "set yrange [2:8]"]
    for column, states in enumerate(chosen):
        lines += [f"set title '{states}'", _curves(column, 2, True), "unset ylabel"]
    lines += ["unset title", "set yrange [*:*]", "set logscale y", "set format y '10^{%L}'", "set xlabel 'step'",
              "set ylabel 'gradient, RMS of an element'"]
    for column in range(len(chosen)):
        lines += [_curves(column, 3, False), "unset ylabel"]
    return "\n".join(lines + ["unset multiplot"]) + "\n"
