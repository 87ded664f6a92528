"""`stquant report`: what the page says about known logs, that it stands alone, bad logs, size and speed, and, where
Chromium is installed, how it looks in light and dark and on a narrow screen."""
import gzip
import html.parser
import json
import math
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib

import tap
from tap import check, skip

COMMAND = os.environ["STQUANT_COMMAND"]
SEED = 7
VOID = {"meta", "link", "br", "hr", "img"}


# ---- logs ----

KINDS = ("ln_1.weight", "attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def make_log(path, steps=200, layers=2, every=20, optimizer="stquant", states=True, seed=SEED):
    """A log shaped as the trainer's; returns its lines as objects."""
    generator = random.Random(seed)
    parameters = 100000 * layers
    names = ["wte.weight"] + [f"h.{layer}.{kind}" for layer in range(layers) for kind in KINDS]
    coded = [name for name in names if "ln_" not in name]
    widths = {name: [5, 4] for name in coded}
    base = {name: (10 ** generator.uniform(-4, -2), 10 ** generator.uniform(-2, -0.3)) for name in coded}
    bits = 32 if optimizer == "adamw" else 4.9
    lines = []
    for step in range(1, steps + 1):
        line = {"step": step, "train_loss": 1.5 + 4 * math.exp(-8 * step / steps) + generator.gauss(0, 0.05),
                "learning_rate": 1e-3 * (1 - step / steps), "gradient_norm": generator.uniform(0.3, 0.9),
                "tokens_per_s": generator.gauss(20000, 300), "state_bytes": int(bits * parameters / 4),
                "peak_state_bytes": int((bits + 0.05) * parameters / 4), "mean_bits": bits}
        if step % max(1, steps // 10) == 0:
            line["validation_loss"] = 1.6 + 4 * math.exp(-8 * step / steps)
        if optimizer != "adamw" and (step in (1, 10, 30) or step % every == 0):
            line["tensors"] = []
            for name in names:
                if name not in base:
                    line["tensors"].append({"name": name, "n": 0.0, "r": 0.0, "zone": "exempt", "m_bits": 32, "v_bits": 32})
                    continue
                for state in (0, 1):
                    if generator.random() < 0.3:
                        widths[name][state] = min(8, max(2, widths[name][state] + generator.choice((-1, 1))))
                n, r = base[name][0] * math.exp(generator.gauss(-step / steps, 0.1)), base[name][1]
                zone = ("critical" if r > 0.1 else "magnitude") if n > 1e-3 else ("structural" if r > 0.1 else "redundant")
                entry = {"name": name, "n": n, "r": r, "zone": zone, "m_bits": widths[name][0], "v_bits": widths[name][1]}
                if states:
                    entry.update(m_rms=0.4 * n, v_rms=1.1 * n)
                line["tensors"].append(entry)
            if states:
                line.update(n_average=1e-3, r_average=0.1)
        if step == 1:
            line["run"] = {"model": "gpt2", "preset": "tiny", "shape": {"layers": layers}, "parameters": parameters,
                           "optimizer": optimizer, "state_bits": 5.0 if optimizer == "stquant" else None, "steps": steps}
        lines.append(line)
    lines[-1]["sample"] = "He said <nothing> & left the \"room\"."
    write_log(path, lines)
    return lines


def write_log(path, lines):
    with open(path, "w") as file:
        file.writelines(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)


def run(*arguments, status=0, **options):
    result = subprocess.run([COMMAND, "report", *map(str, arguments)], capture_output=True, text=True, **options)
    return result if result.returncode == status else None


def make_page(folder, *logs, **options):
    output = os.path.join(folder, "page.html")
    result = run(*logs, "-o", output, **options)
    if result is None:
        return "", ""
    with open(output, encoding="utf-8") as file:
        return file.read(), result.stdout


# ---- the page ----

class Structure(html.parser.HTMLParser):
    """Tags that open and close in order, texts, and links."""

    def __init__(self):
        super().__init__()
        self.open, self.problems, self.texts, self.ids, self.targets, self.counts = [], [], [], set(), [], {}

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        attributes = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attributes:
            if attributes["id"] in self.ids:
                self.problems.append(f"id {attributes['id']} twice")
            self.ids.add(attributes["id"])
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "data", "action") and not (value or "").startswith("#"):
                self.problems.append(f"{tag} {name}={value}")
            if name.startswith("on"):
                self.problems.append(f"{tag} {name}")
            if name == "href":
                self.targets.append(value[1:])
            if name == "d" and ("nan" in value or "inf" in value):
                self.problems.append("a path with nan")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def parse(page):
    structure = Structure()
    structure.feed(page)
    structure.problems += structure.open
    structure.problems += [f"no #{target}" for target in structure.targets if target not in structure.ids]
    return structure


def check_page(folder):
    stquant, float32 = os.path.join(folder, "stquant.jsonl"), os.path.join(folder, "float32.jsonl")
    lines = make_log(stquant)
    make_log(float32, optimizer="adamw")
    page, _ = make_page(folder, float32, stquant)
    structure = parse(page)
    text = " ".join(structure.texts)
    check("the page is well formed, and every link leads somewhere", page and not structure.problems, structure.problems)
    check("it stands alone: no script, no network, no other file",
          "<script" not in page and "http" not in page.replace("http-equiv", "") and "@import" not in page
          and not re.search(r"url\((?!#clip)", page))
    check("light and dark", "prefers-color-scheme:dark" in page and 'name="color-scheme" content="light dark"' in page)
    figures = ("loss (nats)", "gradient norm", "bytes of the states", "first moment m", "second moment v", "attention in",
               "complexity r", "critical", "redundant", "gradient, n", "second moment, root of the mean",
               "rank correlation with the gradient's magnitude n", "gradients, tensor by tensor")
    check("every figure is there", all(figure in text for figure in figures),
          [figure for figure in figures if figure not in text])
    peak = lines[-1]["peak_state_bytes"]
    cells = (f"{lines[-1]['validation_loss']:.4f}", f"{100 * (1 - peak / 1.6e6):.1f} %", "200,000 parameters")
    check("the table has the run's figures", all(cell in text for cell in cells), cells)
    check("what a model wrote is shown as it is", 'He said <nothing> & left the "room".' in text and "<nothing>" not in page)
    check("every picture is described", page.count('role="img" aria-label="') == page.count("<svg viewBox="),
          (page.count("aria-label"), page.count("<svg")))
    return page, lines


def path_rectangles(page, prefix):
    """Cells of heat maps: {class: [(x, y, width, height), ...]}."""
    cells = {}
    for number, data in re.findall(rf'<path class="{prefix}(\d+)" d="([^"]*)"/>', page):
        cells.setdefault(int(number), []).extend(
            tuple(map(float, cell)) for cell in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h-[\d.]+z", data))
    return cells


def check_widths(page, lines):
    """The colour at each decision is that of the width in the log."""
    cells = path_rectangles(page, "w")
    decisions = [line for line in lines if "tensors" in line]
    coded = [tensor["name"] for tensor in decisions[0]["tensors"] if tensor["m_bits"] != 32]
    tops = sorted({y for rectangles in cells.values() for _, y, _, _ in rectangles})
    lefts = {state: min(x for rectangles in cells.values() for x, *_ in rectangles if (x > 600) == bool(state))
             for state in (0, 1)}
    right = max(x + width for rectangles in cells.values() for x, _, width, _ in rectangles)
    span = right - lefts[1]
    wrong = []
    for index, line in enumerate(decisions):
        following = decisions[index + 1]["step"] if index + 1 < len(decisions) else lines[-1]["step"]
        if following == line["step"]:
            continue  # decided in the last step: no room in the picture
        middle = ((line["step"] + following) / 2 - decisions[0]["step"]) / (lines[-1]["step"] - decisions[0]["step"])
        for tensor in line["tensors"]:
            for state, key in enumerate(("m_bits", "v_bits")):
                if tensor["name"] in coded:
                    x, y = lefts[state] + span * middle, tops[coded.index(tensor["name"])] + 1
                    found = [width for width, rectangles in cells.items() for left, top, across, down in rectangles
                             if left <= x < left + across and top <= y < top + down]
                    if found != [tensor[key]]:
                        wrong.append((line["step"], tensor["name"], key, tensor[key], found))
    check(f"the heat map shows the width of each of {len(coded)} tensors at {len(decisions)} decisions",
          len(tops) == len(coded) and not wrong, wrong[:3])


def picture(page, label):
    return re.search(rf'<svg [^>]*aria-label="{label}[^"]*">(.*?)</svg>', page, re.S).group(1)


def check_bars(page, lines):
    """Bars as long as the bytes: every value at 32, 8 and 4 bits, then the runs, their peaks marked."""
    svg = picture(page, "Bytes of the optimizer states as bars")
    bars = [float(width) for width in re.findall(r'<rect x="190.0" [^>]*width="([\d.]+)" [^>]*class="bar', svg)]
    marks = [float(x) - 190 for x in re.findall(r'<path d="M([\d.]+) [^"]*" class="mark"', svg)]
    values = 2 * 200000
    expected = [4 * values, values, values / 2, 4 * values, lines[-1]["state_bytes"]]
    peaks = [int(32.05 * 200000 / 4), lines[-1]["peak_state_bytes"]]
    unit = bars[0] / expected[0] if bars else 0
    check("the memory bars are as long as the bytes", len(bars) == 5 and all(abs(bar - unit * count) < 0.2 for bar, count in zip(bars, expected)),
          (bars, expected))
    check("the marks stand at the peaks", len(marks) == 2 and all(abs(mark - unit * count) < 0.2 for mark, count in zip(marks, peaks)),
          (marks, peaks))


def check_zones(page, lines):
    """Every tensor of four decisions lies in the plane where its n and r are, and on its zone's side of both boundaries."""
    svg = picture(page, "Tensors in the plane")
    decisions = {str(line["step"]): line["tensors"] for line in lines if "tensors" in line}
    wrong, count, steps = [], 0, re.split(r'class="title">step (\d+)</text>', svg)[1:]
    for step, part in zip(steps[::2], steps[1::2]):
        right, down = map(float, re.search(r'd="M([\d.]+) 34.0V248.0M[\d.]+ ([\d.]+)H[^"]*" class="boundary"', part).groups())
        points = {}
        for x, y, name, zone in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"[^>]*><title>([^:]+): [^<]*, (\S+?)(?:-dominant)?; m', part):
            points[name] = float(x), float(y)
            inside = {"critical": (1, 1), "magnitude": (0, 1), "structural": (1, 0), "redundant": (0, 0)}[zone]
            if (float(x) >= right - 0.1, float(y) <= down + 0.1) != inside:
                wrong.append((step, name, zone, x, y, right, down))
        tensors = [tensor for tensor in decisions[step] if tensor["m_bits"] != 32]
        count += len(points)
        if set(points) != {tensor["name"] for tensor in tensors}:
            wrong.append((step, set(points)))
            continue
        for axis, key, sign in ((0, "r", 1), (1, "n", -1)):
            order = sorted(tensors, key=lambda tensor: tensor[key])
            places = [sign * points[tensor["name"]][axis] for tensor in order]
            wrong += [(step, key, places)] if any(a > b + 0.11 for a, b in zip(places, places[1:])) else []
    check(f"{count} tensors at four decisions lie in their zones", len(steps) == 8 and not wrong, wrong[:3])


def check_losses(folder):
    """The line of a short run goes through the logged losses."""
    path = os.path.join(folder, "short.jsonl")
    losses = [3.0, 2.0, 2.5, 1.0, 1.5]
    write_log(path, [{"step": step, "train_loss": loss} for step, loss in enumerate(losses, 1)])
    page, _ = make_page(folder, path)
    data = re.search(r'class="line r0" d="([^"]+)"', page).group(1)
    points = [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", data)]
    slopes = [(y2 - y1) / (b - a) for (_, y1), (_, y2), a, b in zip(points, points[1:], losses, losses[1:])]
    check("the line goes through the losses", len(points) == 5 and max(slopes) - min(slopes) < 0.3 and slopes[0] < 0,
          (points, slopes))
    check("a log without states, widths or validation gives a page, too",
          not parse(page).problems and "Memory of" not in page and "Widths over time" not in page)


def check_envelope(folder):
    """Of 30,000 points the lowest and the highest must still be seen."""
    path, generator = os.path.join(folder, "spikes.jsonl"), random.Random(SEED)
    lines = [{"step": step, "train_loss": 2 + generator.uniform(-0.1, 0.1)} for step in range(1, 30001)]
    lines[20000]["train_loss"], lines[10000]["train_loss"] = 9.0, 0.5
    write_log(path, lines)
    page, _ = make_page(folder, path)
    data = re.search(r'class="raw r0" d="([^"]+)"', page).group(1)
    heights = sorted(float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", data))
    check("single spikes among 30,000 points are drawn", heights[1] - heights[0] > 150 and heights[-1] - heights[-2] > 30
          and len(heights) < 4000, (heights[:2], heights[-2:], len(heights)))


def check_bad_lines(folder):
    lines = make_log(os.path.join(folder, "whole.jsonl"))
    whole, _ = make_page(folder, os.path.join(folder, "whole.jsonl"))
    with open(os.path.join(folder, "whole.jsonl"), "rb") as file:
        data = file.read()

    def page_of(name, content, sentence, compress=False):
        path = os.path.join(folder, name)
        with (gzip.open if compress else open)(path, "wb") as file:
            file.write(content)
        page, printed = make_page(folder, path)
        good = page and not parse(page).problems and (sentence in page and sentence in printed if sentence else
                                                     "could not be read" not in page + printed)
        check("a log " + name.split(".")[0].replace("_", " "), good, printed)
        return page

    text = data.splitlines(keepends=True)
    sentence = "1 of 200 lines could not be read"
    cut = page_of("cut_in_the_middle_of_a_line.jsonl", data[:-40], sentence)
    check("and what it tells before counts", "<td class=\"number\">199</td>" in cut)
    page_of("with_a_broken_line_inside.jsonl", b"".join(text[:50]) + text[50][:30] + b"\n" + b"".join(text[51:]), sentence)
    page_of("with_binary_garbage.jsonl", b"".join(text[:50]) + bytes(range(128, 250)) + b"\n" + b"".join(text[51:]), sentence)
    page_of("with_a_number_for_a_line.jsonl", b"".join(text[:199]) + b"17\n", sentence)
    page_of("with_empty_lines.jsonl", b"\n\n".join(data.split(b"\n")), None)
    page_of("compressed.jsonl.gz", data, None, compress=True)
    page_of("compressed_and_cut.jsonl.gz", gzip.compress(data)[:-3000], " lines could not be read")
    page_of("without_a_newline_at_its_end.jsonl", data[:-1], None)
    page_of("with_other_lines.jsonl", b'{"note":"hello"}\n' + data, None)
    page = page_of("told_again.jsonl", data + b"".join(text[150:]), None)
    check("steps told again are counted once", "50 steps were told again" in page
          and "<td class=\"number\">200</td>" in page)
    lines[3].update(train_loss=None, gradient_norm=None, skipped=True)
    lines[7].update(train_loss=1e300)
    lines[9]["tensors"][1].update(n=None, r="much", m_bits="many", zone="unknown")
    lines[29]["tensors"][2].update(v_bits=0, v_shared="row")
    del lines[9]["tensors"][2]["v_bits"]
    page = page_of("of_a_run_that_stumbled.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode(), None)
    check("skipped steps are told", "1 steps were skipped" in page)
    check("shared second moments have a colour of their own", ">shared</text>" in page and 'class="w0" d="' in page)
    hostile = [{"step": 1, "train_loss": 1.0, "mean_bits": 4, "state_bytes": 100, "tensors": [
        {"name": "<script>alert(1)</script>\"'&", "n": 1, "r": 1, "zone": "critical", "m_bits": 4, "v_bits": 4}],
        "sample": "</pre><script>\u0001"}]
    page = page_of("of_a_hostile_run.jsonl", json.dumps(hostile[0]).encode(), None)
    check("names are text, not markup", "<script" not in page)
    check("the same log gives the same page", whole == make_page(folder, os.path.join(folder, "whole.jsonl"))[0])


def check_refusals(folder):
    def refused(name, status, sentence, *arguments, **options):
        result = run(*arguments, status=status, **options)
        check(name, result is not None and sentence in result.stderr and len(result.stderr.strip().splitlines()) == 1,
              result and result.stderr)

    good, output = os.path.join(folder, "whole.jsonl"), os.path.join(folder, "refused.html")
    empty, text = os.path.join(folder, "empty.jsonl"), os.path.join(folder, "text.txt")
    write_log(empty, [])
    with open(text, "w") as file:
        file.write("Not a log.\nAt all.\n")
    refused("no log", 2, "There is no log to report on")
    refused("a missing log", 1, "Cannot read", os.path.join(folder, "missing"), "-o", output)
    refused("a folder for a log", 1, "Is a directory", folder, "-o", output)
    refused("an empty log", 1, "holds no step of a run (0 lines", empty, "-o", output)
    refused("text for a log", 1, "holds no step of a run (2 lines, 2 of them no JSON)", good, text, "-o", output)
    refused("an output folder that does not exist", 1, "No such file", good, "-o", os.path.join(folder, "no", "x.html"))
    refused("a full disk", 1, "File too large; free some space", good, "-o", output,
            preexec_fn=lambda: (__import__("signal").signal(25, 1), resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))))
    check("nothing is left of a page that failed", not os.path.exists(output) and not os.path.exists(output + ".new"))


def check_size(folder):
    """100,000 lines with 1,000 decisions about 61 tensors: below 3 s of processor time and 5 MB."""
    path, output = os.path.join(folder, "long.jsonl"), os.path.join(folder, "long.html")
    make_log(path, steps=100000, layers=12, every=100)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = run(path, "-o", output)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = os.path.getsize(output) if result else 0
    limit = 3 if "STQUANT_SANITIZERS" not in os.environ else 60
    check(f"100,000 lines of {os.path.getsize(path) >> 20} MiB: {seconds:.2f} s, {size / 1e6:.2f} MB",
          result is not None and seconds < limit and 0 < size < 5e6)


# ---- a real browser ----

def find_chromium():
    return next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)


def browse(chromium, folder, *arguments):
    # A profile of its own, and no sandbox: as root Chromium has none.
    result = subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                             "--disable-dev-shm-usage", f"--user-data-dir={folder}/chromium", *arguments],
                            capture_output=True, text=True, timeout=240)
    return result.stdout


def read_png(path):
    """Rows of (r, g, b) of an 8-bit picture."""
    with open(path, "rb") as file:
        data = file.read()
    at, stream = 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", data[at + 8:at + 18])
        stream += data[at + 8:at + 8 + length] if kind == b"IDAT" else b""
        at += length + 12
    channels = {2: 3, 6: 4}[colour]
    raw, stride = zlib.decompress(stream), width * channels
    rows, previous = [], bytearray(stride)
    for row in range(height):
        kind, line = raw[row * (stride + 1)], bytearray(raw[row * (stride + 1) + 1:(row + 1) * (stride + 1)])
        for i in range(stride):
            left = line[i - channels] if i >= channels else 0
            up, corner = previous[i], previous[i - channels] if i >= channels else 0
            if kind == 4:
                guess = left + up - corner
                near = min((abs(guess - left), 0, left), (abs(guess - up), 1, up), (abs(guess - corner), 2, corner))[2]
            else:
                near = (0, left, up, (left + up) // 2)[kind]
            line[i] = (line[i] + near) & 255
        rows.append([tuple(line[i:i + 3]) for i in range(0, stride, channels)])
        previous = line
    assert depth == 8
    return rows


def colours(page, dark):
    """The style sheet's variables."""
    part = page.split("prefers-color-scheme:dark", 1)[1 if dark else 0]
    return {name: tuple(int(value[i:i + 2], 16) for i in (0, 2, 4))
            for name, value in re.findall(r"--([a-z]+\d*):#([0-9a-f]{6})", part)}


def check_look(chromium, folder, page_path, page, dark):
    picture = os.path.join(folder, f"look{dark}.png")
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browse(chromium, folder, "--window-size=900,5600", "--force-device-scale-factor=0.5", *scheme, f"--screenshot={picture}", "file://" + page_path)
    rows = read_png(picture)
    wanted = colours(page, dark)
    counts = {}
    for row in rows:
        for pixel in row:
            counts[pixel] = counts.get(pixel, 0) + 1
    name = "dark" if dark else "light"
    check(f"{name}: the background is the style's paper", max(counts, key=counts.get) == wanted["paper"],
          max(counts, key=counts.get))
    seen = [key for key in ("r0", "r1", "w4", "w5", "bar", "tint", "d6") if counts.get(wanted[key], 0) > 20]
    check(f"{name}: bars, widths, zones and ratios are painted in its colours", len(seen) == 7, seen)

    def light(colour):
        return sum(weight * (part / 255) ** 2.2 for weight, part in zip((0.2126, 0.7152, 0.0722), colour))

    paper = light(wanted["paper"])
    contrasts = {key: (max(paper, light(wanted[key])) + 0.05) / (min(paper, light(wanted[key])) + 0.05)
                 for key in ("ink", "quiet", "r0", "r1", "r2", "r3", "r4", "r5")}
    # WCAG's 4.5 for text, 3 for lines; the colours of runs are text, too, in their labels.
    low = {key: value for key, value in contrasts.items() if value < (4.5 if key in ("ink", "quiet") else 3.5)}
    check(f"{name}: texts and lines have enough contrast", not low, low)


def check_narrow(chromium, folder, page_path):
    """On a narrow screen the page does not scroll sideways; only pictures and tables inside it do."""
    frame = os.path.join(folder, "frame.html")
    with open(frame, "w") as file:
        file.write('<body><iframe id=f style="width:390px;height:800px" src="page.html"></iframe><p id=out>none</p><script>'
                   'f.onload=()=>{let d=f.contentDocument;out.textContent="width "+d.documentElement.scrollWidth+" text "+'
                   'Math.min(...[...d.querySelectorAll("svg text")].map(t=>t.getBoundingClientRect().height))+" out "+'
                   '[...d.querySelectorAll("svg text")].filter(t=>{let s=t.closest("svg").getBoundingClientRect(),'
                   'b=t.getBoundingClientRect();return b.left<s.left-1||b.right>s.right+1||b.top<s.top-1||'
                   'b.bottom>s.bottom+1}).map(t=>t.textContent).join("|")+" end"}</script>')
    shown = browse(chromium, folder, "--allow-file-access-from-files", "--virtual-time-budget=20000", "--dump-dom",
                   "file://" + frame)
    match = re.search(r"width (\d+) text ([\d.]+) out (.*?) end", shown)
    check("narrow: the page is as wide as the screen", match and int(match.group(1)) <= 390, match and match.groups())
    check("narrow: no text of a picture is cut off", match and match.group(3) == "", match and match.group(3))
    check("narrow: texts stay readable", match and float(match.group(2)) >= 8, match and match.group(2))


def check_browser(folder, page):
    chromium = find_chromium()
    if not chromium:
        skip("the page in a browser", "chromium is not installed (apt-get install chromium)")
        return
    path = os.path.join(folder, "page.html")
    with open(path, "w") as file:
        file.write(page)
    for dark in (0, 1):
        check_look(chromium, folder, path, page, dark)
    check_narrow(chromium, folder, path)


def main():
    with tempfile.TemporaryDirectory() as folder:
        page, lines = check_page(folder)
        check_widths(page, lines)
        check_bars(page, lines)
        check_zones(page, lines)
        check_losses(folder)
        check_envelope(folder)
        check_bad_lines(folder)
        check_refusals(folder)
        check_size(folder)
        check_browser(folder, page)
    return tap.status()


if __name__ == "__main__":
    sys.exit(main())
