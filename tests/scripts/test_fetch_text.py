"""scripts/fetch-text reads R's serialization strictly, keeps nothing wrong, and says one sentence when it cannot help."""
import importlib.machinery
import importlib.util
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
SOURCE = pathlib.Path(os.environ["STQUANT_SOURCE"])
sys.path.insert(0, str(SOURCE / "scripts"))
loader = importlib.machinery.SourceFileLoader("fetch_text", str(SOURCE / "scripts/fetch-text"))
fetch_text = importlib.util.module_from_spec(importlib.util.spec_from_loader("fetch_text", loader))
loader.exec_module(fetch_text)


def serialized(lines, flags=0x00040009):
    head = b"X\n" + struct.pack(">IIII", 3, 0x00040201, 0x00030500, 5) + b"UTF-8"
    vector = struct.pack(">II", 0x10, len(lines))
    return head + vector + b"".join(struct.pack(">II", flags, len(line)) + line for line in lines)


def reads_lines():
    return fetch_text.novel(serialized([b"", b"EMMA", b"", b"By Jane Austen", b""])) == "EMMA\n\nBy Jane Austen\n"


def reads_utf8():
    return fetch_text.novel(serialized(["\u00a3100".encode()], flags=0x00008009)) == "\u00a3100\n"


def refuses_damage():
    whole = serialized([b"one", b"two"])
    damaged = [whole[:cut] for cut in range(len(whole))] + [serialized([b"x"], flags=0x0004000A), b"Z" + whole[1:]]
    for data in damaged:
        try:
            fetch_text.novel(data)
        except (ValueError, struct.error):
            continue
        return False
    return True


def run(cache, *arguments):
    """Runs the script where no package can be had: no apt-get on the path."""
    with tempfile.TemporaryDirectory() as tools:
        os.symlink(sys.executable, os.path.join(tools, "python3"))
        environment = {"PATH": tools, "HOME": cache, "XDG_CACHE_HOME": cache}
        return subprocess.run([sys.executable, str(SOURCE / "scripts/fetch-text"), *arguments], env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def says_one_sentence_offline():
    with tempfile.TemporaryDirectory() as cache:
        result = run(cache)
        return (result.returncode == 1 and result.stdout == "" and len(result.stderr.splitlines()) == 1
                and "--data" in result.stderr)


def distrusts_a_changed_file():
    with tempfile.TemporaryDirectory() as cache:
        os.makedirs(os.path.join(cache, "stquant"))
        with open(os.path.join(cache, "stquant", "austen.txt"), "w") as file:
            file.write("half a no")
        result = run(cache, "austen")
        return result.returncode == 1 and result.stdout == ""


def refuses_unknown_names():
    with tempfile.TemporaryDirectory() as cache:
        return run(cache, "dickens").returncode == 2


def main():
    failed = 0
    for case in (reads_lines, reads_utf8, refuses_damage, says_one_sentence_offline, distrusts_a_changed_file,
                 refuses_unknown_names):
        good = case()
        failed += not good
        print(f"{'ok' if good else 'not ok'} - {case.__name__.replace('_', ' ')}", flush=True)
    return 1 if failed else 0


sys.exit(main())
