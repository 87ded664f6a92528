"""Help texts, and what scripts/make-manual makes of them: manual pages and completion, tried in bash and, where it is
installed, in zsh. The help texts are read here by other rules than the script's: from their ordinary layout."""
import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time

import tap
from tap import check, skip

COMMAND = os.environ["STQUANT_COMMAND"]
SOURCE, BUILD = os.environ["STQUANT_SOURCE"], os.environ["STQUANT_BUILD"]
EXPECTED = {"train": ["gpt2", "vit"], "plan": [], "data": ["prepare", "show"], "report": [], "factors": [], "bench": ["step", "codec", "policy", "score", "qat"],
            "inspect": [], "convert": [], "eval": [], "sample": []}


def help_of(words):
    result = subprocess.run([COMMAND, *words, "--help"], capture_output=True, text=True)
    return result.stdout if result.returncode == 0 and not result.stderr else ""


def commands_of(text):
    part = re.search(r"\n(?:Commands|Models):\n((?:  \S.*\n)+)", text)
    return [line.split()[0] for line in part.group(1).splitlines()] if part else []


def options_of(text):
    """[(short or '', long, value or '')]: at most six spaces, then dashes."""
    found = []
    for line in text.split("\nExamples:")[0].splitlines():
        match = re.match(r" {2,6}(?:-(.), )?--([a-z0-9-]+)(?:=(\S+))?", line) if re.match(r" {2,6}-", line) else None
        if match:
            found.append((match.group(1) or "", match.group(2), match.group(3) or ""))
    return found


def check_helps():
    """Every subcommand's help; {words: text}."""
    texts = {(): help_of([])}
    check("the help lists every command", commands_of(texts[()]) == list(EXPECTED), commands_of(texts[()]))
    for name, below in EXPECTED.items():
        texts[(name,)] = help_of([name])
        check(f"and that of {name} what is below it", commands_of(texts[(name,)]) == below, commands_of(texts[(name,)]))
        texts.update({(name, inner): help_of([name, inner]) for inner in below})
    for words, text in texts.items():
        problems = []
        lines = text.splitlines()
        path = " ".join(("stquant", *words))
        if not text.startswith(f"Usage: {path} ") or not text.endswith("\n"):
            problems.append("no usage line, or no newline at the end")
        problems += [f"a line of {len(line)} characters" for line in lines if len(line) > 79]
        problems += ["white space at the end of a line" for line in lines if line != line.rstrip() and line.strip()]
        problems += check_examples(text, texts)
        check(f"the help of `{path}` fits a terminal and has examples whose options exist", not problems, problems)
    return texts


def check_examples(text, texts):
    part = re.search(r"\nExamples:\n\n((?:  .*\n)+)", text)
    if not part:
        return ["no examples"]
    problems = []
    for line in re.sub(r"\\\n\s*", "", part.group(1)).splitlines():
        example = re.search(r"\bstquant ((?:[a-z0-9]+ ?)*)(.*)", line)
        words = tuple(example.group(1).split())
        while words and words not in texts:
            words = words[:-1]
        known = options_of(texts.get(words, ""))
        for option in re.findall(r"(?<=\s)--?[a-z][a-z0-9-]*", line.split("stquant", 1)[1]):
            names = [f"--{long}" for _, long, _ in known] if option.startswith("--") else [f"-{short}" for short, _, _ in known]
            if words and option not in names:
                problems.append(f"{option} in: {line.strip()}")
    return problems


def check_refusals():
    for words in ((), ("train",), ("data",), ("bench",)):
        result = subprocess.run([COMMAND, *words], capture_output=True, text=True)
        check(f"`stquant {' '.join(words)}` without a command prints the help as an error",
              result.returncode == 2 and result.stderr.startswith("Usage: stquant") and not result.stdout, result.stderr)
        result = subprocess.run([COMMAND, *words, "nothing"], capture_output=True, text=True)
        check(f"`stquant {' '.join(words)}` refuses an unknown one", result.returncode == 2 and "'nothing'" in result.stderr
              and "--help` lists them" in result.stderr and result.stderr.count("\n") == 1, result.stderr)


def shown(path):
    """A manual page as a reader sees it, on one line."""
    if shutil.which("groff"):
        result = subprocess.run(["groff", "-man", "-ww", "-Tascii", "-rLL=300n", "-P-cbou", path], capture_output=True, text=True)
        return re.sub(r"\s+", " ", result.stdout), result.stderr
    with open(path) as file:
        text = re.sub(r"\\f[BIR]|\\&", "", file.read()).replace("\\-", "-").replace("\\(aq", "'").replace("\\(ga", "`")
    return re.sub(r"\s+", " ", re.sub(r"(?m)^\.[A-Z]+ ?", "", text)), ""


def check_pages(folder, texts):
    pages = {"stquant" + "".join(f"-{word}" for word in words) + ".1" for words in texts}
    check("there is a page for every command", set(os.listdir(f"{folder}/man1")) == pages, os.listdir(f"{folder}/man1"))
    for words, text in texts.items():
        name = "-".join(("stquant", *words))
        page, warnings = shown(f"{folder}/man1/{name}.1")
        missing = [title for title in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "EXIT STATUS", "SEE ALSO") if title not in page]
        for short, long, value in options_of(text):
            if f"{f'-{short}, ' if short else ''}--{long}{f'={value}' if value else ''} " not in page:
                missing.append(long)
        # Every word of the help, but the line that argp adds about options with arguments.
        text = re.sub(r"Mandatory or optional arguments to long options.*\nfor any.*\n", "", text)
        words_there = set(re.findall(r"[A-Za-z0-9]{2,}", page))
        missing += [word for word in re.findall(r"[A-Za-z0-9]{2,}", text) if word not in words_there and word.capitalize() not in words_there
                    and word not in ("Usage", "Examples", "Commands", "Models", "Exit", "status")]
        check(f"{name}(1) says what the help says", not missing and not warnings, (missing, warnings))


# ---- completion ----

DRIVER = """
. "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_stquant
printf '%s\\n' "${COMPREPLY[@]}"
"""


def complete(folder, *words):
    """What bash offers for the last of these words."""
    result = subprocess.run(["bash", "--norc", "-c", DRIVER, "bash", f"{folder}/bash/stquant", "stquant", *words], cwd=f"{folder}/files",
                            capture_output=True, text=True)
    return (result.stdout + result.stderr).split()


def check_bash(folder, texts):
    os.makedirs(f"{folder}/files/folder")
    for name in ("text.txt", "train"):
        open(f"{folder}/files/{name}", "w").close()
    for words, text in texts.items():
        offered = complete(folder, *words, "-")
        wanted = [f"--{long}{'=' if value else ''}" for _, long, value in options_of(text)]
        wanted += [f"-{short}" for short, _, _ in options_of(text) if short not in ("", "?")]
        check(f"bash offers every option of `{' '.join(('stquant', *words))}`", sorted(offered) == sorted(wanted),
              set(offered) ^ set(wanted))
    presets = re.search(r"--preset=(\S+)", texts["train", "gpt2"]).group(1).split("|")
    files = ["folder", "text.txt", "train"]
    cases = ((("",), list(EXPECTED)), (("tr",), ["train"]), (("train", ""), ["gpt2", "vit"]), (("data", "s"), ["show"]),
             (("train", "gpt2", "--opt"), ["--optimizer="]), (("train", "gpt2", "--optimizer", "=", "ad"), ["adamw"]),
             (("train", "gpt2", "--optimizer", "="), ["adamw", "fixed", "stquant"]),
             (("train", "gpt2", "--optimizer", "f"), ["fixed"]), (("train", "gpt2", "--optimizer=st"), ["stquant"]),
             (("train", "gpt2", "-p", ""), presets), (("train", "vit", "--preset", "=", ""), ["tiny", "small", "base"]),
             (("train", "gpt2", "--data", "=", "te"), ["text.txt"]), (("train", "gpt2", "-d", ""), files),
             (("train", "gpt2", "--tensorboard", "=", ""), ["folder"]), (("train", "gpt2", "--steps", "=", ""), []),
             (("train", "gpt2", ""), []), (("report", ""), files), (("report", "train", "--out"), ["--output="]),
             (("report", "--output", "train", ""), files), (("report", "--title", ""), []), (("plan", "--js"), ["--json"]),
             (("bench", "step", "--dtype", "=", "b"), ["bfloat16"]), (("convert", "--to", "=", "p"), ["packed"]),
             (("bench", "policy", "--policy", "=", ""), ["zones", "rate-distortion"]),
             (("train", "vit", "--qat-estimator", "=", ""), ["stable", "ste", "dsq"]), (("nothing", "--he"), ["--help"]))
    for words, wanted in cases:
        offered = complete(folder, *words)
        check(f"bash completes `stquant {' '.join(words)}`", sorted(offered) == sorted(wanted), offered)


def typed(arguments, cwd, steps, seconds=60):
    """What a program on a terminal shows after each (keys, text to wait for); None if it does not come."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 300, 0, 0))
        os.chdir(cwd)
        os.execve(arguments[0], arguments, {"PATH": os.environ["PATH"], "TERM": "dumb", "PS1": "ready> ", "HOME": cwd, "LC_ALL": "C"})
    screen, result, begin = "", "", time.monotonic()
    try:
        for keys, wait in steps:
            os.write(terminal, keys.encode())
            screen = ""
            while not re.search(wait, screen):
                if not select.select([terminal], [], [], max(0, begin + seconds - time.monotonic()))[0]:
                    return None, result + screen
                screen += os.read(terminal, 4096).decode(errors="replace")
            result += screen
    except OSError:
        return None, result + screen
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    return screen, result


def check_typing(folder):
    """Real shells on a terminal: = splits words there. At the end `echo` is put in front and prints what was completed."""
    lines = [("stquant train gpt2 --optim\tad\t--cap\tm\t--da\tte\t\x01echo \r",
              r"[\r\n]stquant train gpt2 --optimizer=adamw --cap-mode=mean --data=text.txt\s"),
             ("stquant dat\tpre\t--mer\tte\t\x01echo \r", r"[\r\n]stquant data prepare --merges=text.txt\s")]
    last, seen = typed([shutil.which("bash"), "--norc", "-i"], f"{folder}/files",
                       [(f". {folder}/bash/stquant; echo loa''ded\n", "loaded"), *lines])
    check("typing in bash", last is not None, seen)
    zsh = shutil.which("zsh")
    if not zsh:
        skip("typing in zsh", "zsh is not installed")
        return
    start = f"fpath=({folder}/zsh $fpath); autoload -U compinit; compinit -D -u; echo loa''ded\n"
    last, seen = typed([zsh, "-f", "-i"], f"{folder}/files", [(start, "loaded"), *lines])
    check("typing in zsh", last is not None, seen)


def check_zsh(folder, texts):
    """The functions hand zsh every option; _arguments and its kin are replaced by ones that print."""
    zsh = shutil.which("zsh")
    if not zsh:
        skip("completion for zsh", "zsh is not installed")
        return
    for words, text in texts.items():
        function = "_" + "_".join(("stquant", *words))
        script = f"_arguments() {{ print -l -- $@ }}; _describe() {{ }}; functions[_start]=$(sed '$d' {folder}/zsh/_stquant); _start; {function}"
        offered = subprocess.run([zsh, "-f", "-c", script], capture_output=True, text=True)
        missing = [long for _, long, value in options_of(text) if f"*--{long}{'=' if value else ''}[" not in offered.stdout]
        check(f"zsh is told every option of `{' '.join(('stquant', *words))}`", not missing and not offered.stderr, (missing, offered.stderr))


def contents(folder):
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name)) as file:
                found[os.path.relpath(os.path.join(root, name), folder)] = file.read()
    return found


def check_built(fresh):
    if not os.path.exists(f"{BUILD}/manual/made"):
        skip("what the build made is up to date", "this build made none")
        return
    built = contents(f"{BUILD}/manual")
    built.pop("made")
    check("what the build made is up to date", built == fresh, set(built) ^ set(fresh))


def main():
    texts = check_helps()
    check_refusals()
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run([sys.executable, f"{SOURCE}/scripts/make-manual", COMMAND, folder], capture_output=True, text=True)
        check("the script reads every help text", made.returncode == 0, made.stderr)
        if made.returncode != 0:
            return 1
        fresh = contents(folder)
        check_pages(folder, texts)
        check_bash(folder, texts)
        check_zsh(folder, texts)
        check_typing(folder)
        check_built(fresh)
        silent = os.path.join(folder, "silent")
        with open(silent, "w") as file:
            file.write("#!/bin/sh\n")
        os.chmod(silent, 0o755)
        for program, name in ((silent, "a program without a help text"), (f"{folder}/missing", "a missing program")):
            bad = subprocess.run([sys.executable, f"{SOURCE}/scripts/make-manual", program, folder], capture_output=True, text=True)
            check(f"{name} is refused", bad.returncode == 1 and bad.stderr.count("\n") == 1, bad.stderr)
    return tap.status()


if __name__ == "__main__":
    sys.exit(main())
