"""`stquant data`: tokens against an independent implementation, the file format, and bad input.

The merges are learned here, from a text of ours. With GPT-2's own list (vocab.bpe or merges.txt), which is not part of this
repository, the same tests run, known encodings are checked, and the speed: STQUANT_GPT2_MERGES names it, or it is
shared/data/gpt2-vocab.bpe beside the checkout.
"""
import collections
import gzip
import json
import math
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import unicodedata
import zlib

import tap
from tap import check, skip

COMMAND = os.environ["STQUANT_COMMAND"]
SEED = 20250

SPACE = set("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {chr(c) for c in range(0x2000, 0x200B)}

SENTENCES = """The cat's whiskers weren't the longest, but they'd do. We'll see 1234 birds; I've counted them twice!
It is a truth that in the beginning there was nothing, and then there was the thing that wasn't there before.
Don't say \u201cnever\u201d \u2014 na\u00efve caf\u00e9 owners pay 12,50 \u20ac for 3.5 kg of beans\u2026
   indented    text\twith\ttabs \r\n and trailing spaces   \n\n\n\u4e2d\u6587 and \u0441\u043b\u043e\u0432\u0430, \U0001f600\U0001f600 x\u00b2 + y\u00b3 = 7
"""


# ---- an independent implementation, plain and slow ----

def byte_characters():
    """What each byte is written as, in GPT-2's order."""
    own = list(range(0x21, 0x7F)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
    others = [byte for byte in range(256) if byte not in own]
    return {**{byte: chr(byte) for byte in own}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}


CHARACTERS = byte_characters()


def kind(character):
    if character in SPACE:
        return "space"
    category = unicodedata.category(character)[0]
    return "letter" if category == "L" else "number" if category == "N" else "other"


def pieces(text):
    """GPT-2's pattern, by hand: contractions; an optional space and a run of one kind; white space."""
    at = 0
    while at < len(text):
        match = re.match(r"'(?:[sdmt]|ll|ve|re)", text[at:at + 3])
        if match:
            end = at + match.end()
        else:
            start = at + (text[at] == " " and at + 1 < len(text) and kind(text[at + 1]) != "space")
            end = start + 1
            while end < len(text) and kind(text[end]) == kind(text[start]):
                end += 1
            if kind(text[start]) == "space" and end < len(text) and end - at > 1:
                end -= 1  # the last one is left to what follows
        yield text[at:end]
        at = end


def join(symbols, ranks):
    """The first pair of the list, everywhere, again and again."""
    while True:
        best = min(((ranks.get(pair, len(ranks)), pair) for pair in zip(symbols, symbols[1:])), default=(len(ranks),))
        if best[0] == len(ranks):
            return symbols
        joined, i = [], 0
        while i < len(symbols):
            pair = tuple(symbols[i:i + 2])
            joined.append("".join(pair) if pair == best[1] else symbols[i])
            i += 2 if pair == best[1] else 1
        symbols = joined


class Encoder:
    def __init__(self, merges):
        self.ranks = {pair: i for i, pair in enumerate(merges)}
        names = list(CHARACTERS.values())
        self.ids = {name: i for i, name in enumerate(names + ["".join(pair) for pair in merges])}
        self.end = len(self.ids)
        self.known = {}

    def encode(self, text):
        tokens = []
        for piece in pieces(text):
            if piece not in self.known:
                symbols = join([CHARACTERS[byte] for byte in piece.encode()], self.ranks)
                self.known[piece] = [self.ids[symbol] for symbol in symbols]
            tokens += self.known[piece]
        return tokens


def learn(text, count):
    """A list of merges: the most frequent pair of a text, again and again."""
    words = collections.Counter(pieces(text))
    words = {word: [CHARACTERS[byte] for byte in word.encode()] for word in words}, words
    merges = []
    for _ in range(count):
        pairs = collections.Counter()
        for word, symbols in words[0].items():
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] += words[1][word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        if any("".join(best) == "".join(pair) for pair in merges):
            break
        merges.append(best)
        for word, symbols in words[0].items():
            words[0][word] = join(symbols, {best: 0})
    return merges


# ---- the command and the file format (docs/token-file.md) ----

def stquant(*arguments, status=0, **options):
    result = subprocess.run([COMMAND, "data", *map(str, arguments)], capture_output=True, **options)
    output = result.stdout, result.stderr.decode()
    if result.returncode != status:
        print(f"# stquant data {arguments} ended with {result.returncode}: {output[1]}")
        return None, output[1]
    return output


def read_tokens(path):
    with open(path, "rb") as file:
        data = file.read()
    magic, version, width, count, documents, merges, start, tokens_crc, merges_crc, zero, header_crc = \
        struct.unpack("<8sIIqqqqIIII", data[:64])
    assert magic == b"stqtoken" and version == 1 and width in (2, 4) and zero == 0, data[:64]
    assert header_crc == zlib.crc32(data[:60]) and start % 64 == 0 and len(data) == start + count * width
    assert merges_crc == zlib.crc32(data[64:64 + 8 * merges]) and tokens_crc == zlib.crc32(data[start:])
    tokens = list(struct.unpack(f"<{count}{'H' if width == 2 else 'I'}", data[start:]))
    pairs = list(struct.iter_unpack("<II", data[64:64 + 8 * merges]))
    return tokens, pairs, documents


def write(path, text):
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    return path


def random_text(generator, count):
    """Runs of characters of every kind; only characters that Unicode has had for long."""
    pools = [" ", " \n", " \t\r\n\v\f", "\x85\xa0\u1680\u2003\u2028\u202f\u3000\u180e\u200b\x1c\x1f", "abcdefghst",
             "'stdmvell're'", "0123456789\u00b2\u00bd\u0663\u2167", ".,!?-\u2014\u2026\u201c()[]=+_@#\u0300",
             "\u00e4\u00f6\u00fc\u00df\u00e9\u03c0\u0436\u4e2d\u6587\u65e5\u672c\ud55c\uad6d\u05e2\u0639", "\U0001f600\u200d\u2764",
             "\x01\x7f\xad\ufeff\U0010ffff"]
    return "".join("".join(generator.choices(generator.choice(pools), k=generator.choice([1, 1, 2, 3, 8, 40])))
                   for _ in range(count))


def check_encodings(folder, name, merges, merges_path, texts):
    encoder = Encoder(merges)
    for number, text in enumerate(texts):
        path = write(os.path.join(folder, f"{number}.txt"), text)
        output = os.path.join(folder, "out.tokens")
        printed, error = stquant("prepare", "--merges", merges_path, "--output", output, path)
        if printed is None:
            check(f"{name}: text {number}", False, error)
            continue
        tokens, pairs, documents = read_tokens(output)
        # Files that do not end with a newline get one.
        expected = encoder.encode(text if text.endswith("\n") else text + "\n") + [encoder.end]
        check(f"{name}: text {number}, {len(expected)} tokens as the plain implementation makes them (seed {SEED})",
              tokens == expected and documents == 1 and len(pairs) == len(merges),
              next((f"token {i}" for i, (a, b) in enumerate(zip(tokens, expected)) if a != b), len(tokens)))


def check_known(folder, merges_path):
    """Encodings that GPT-2's users know."""
    known = {"Hello world": [15496, 995], "Hello, world!": [15496, 11, 995, 0],
             "The quick brown fox": [464, 2068, 7586, 21831]}
    for text, tokens in known.items():
        path, output = write(os.path.join(folder, "known.txt"), text + "\n"), os.path.join(folder, "known.tokens")
        stquant("prepare", "-m", merges_path, "-o", output, path)
        check(f"GPT-2 encodes '{text}' as {tokens}", read_tokens(output)[0] == tokens + [198, 50256],
              read_tokens(output)[0])


def check_speed(folder, merges_path, generator):
    """Processor time of one thread over 8 MB of words that are drawn as often as words of a language are."""
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(generator.choices(letters, weights=range(26, 0, -1), k=generator.choice([2, 3, 4, 5, 6, 7, 9, 12])))
             for _ in range(50000)]
    drawn = generator.choices(words, weights=[1 / (rank + 3) for rank in range(len(words))], k=1300000)
    text = "\n".join(" ".join(drawn[at:at + 15]) + "." for at in range(0, len(drawn), 15))
    path, output = write(os.path.join(folder, "words.txt"), text), os.path.join(folder, "words.tokens")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed, error = stquant("prepare", "-m", merges_path, "-o", output, "--threads", 1, path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    least = 5 if "STQUANT_SANITIZERS" not in os.environ else 0
    check(f"one core encodes {len(text) / seconds / 1e6:.0f} MB/s (seed {SEED})", printed is not None and len(text) > least * 1e6 * seconds,
          (len(text), seconds, error))


def find_gpt2_merges():
    beside = os.path.join(os.path.dirname(os.environ["STQUANT_SOURCE"]), "shared", "data", "gpt2-vocab.bpe")
    return os.environ.get("STQUANT_GPT2_MERGES") or (beside if os.path.exists(beside) else None)


def check_documents(folder, merges_path):
    os.makedirs(os.path.join(folder, "texts", "below"))
    parts = ["First one.\n", "Second\n<|endoftext|> is not alone on its line\n", "Third\n\n", "Fourth, gzipped\n", "Fifth\n"]
    write(os.path.join(folder, "texts", "a.txt"), "<|endoftext|>\n".join(parts[:3]) + "<|endoftext|>\n<|endoftext|>")
    with gzip.open(os.path.join(folder, "texts", "b.txt.gz"), "wb") as file:
        file.write(parts[3].encode())
    write(os.path.join(folder, "texts", "below", "c"), parts[4].rstrip("\n"))
    output = os.path.join(folder, "documents.tokens")
    printed, _ = stquant("prepare", "--merges", merges_path, "--output", output, os.path.join(folder, "texts"))
    tokens, _, documents = read_tokens(output)
    check("files, and parts between separators, are documents", documents == 5 and b"5 documents" in printed, documents)
    shown, _ = stquant("show", "--text", output)
    check("the text comes back, document by document", shown.decode() == "<|endoftext|>\n".join(parts), shown)
    printed, _ = stquant("show", output)
    check("show tells what a file holds", f"{len(tokens)} tokens of 2 bytes".encode() in printed, printed)
    again = os.path.join(folder, "again.tokens")
    stquant("prepare", "--merges", merges_path, "--output", again, write(os.path.join(folder, "again.txt"), shown.decode()))
    check("text that was printed gives the same file again", open(output, "rb").read() == open(again, "rb").read())


def refused(name, sentence, *arguments, status=1, leaves=None, **options):
    printed, error = stquant(*arguments, status=status, **options)
    lines = error.strip().splitlines()
    left = leaves is not None and (os.path.exists(leaves) or os.path.exists(leaves + ".new"))
    check(name, printed is not None and len(lines) == 1 and sentence in error and not left, error)


def check_bad_input(folder, merges_path):
    text = write(os.path.join(folder, "good.txt"), "Some text.\n")
    output = os.path.join(folder, "bad.tokens")

    def prepare(merges, *paths):
        return "prepare", "--merges", merges, "--output", output, *paths

    missing = os.path.join(folder, "missing")
    refused("a missing merges file", "Cannot read", *prepare(missing, text), leaves=output)
    refused("a folder as merges file", "Is a directory", *prepare(folder, text), leaves=output)
    for name, content, sentence in (
            ("an empty merges file", "", "holds no merges"),
            ("JSON instead of merges", '{"!":0}', "neither a byte nor made by an earlier line"),
            ("tiktoken's format instead of merges", "IQ== 0\nIg== 1\n", "neither a byte"),
            ("merges in the wrong order", "#version: 0.2\nab c\na b\n", "line 2: \"ab\" is neither"),
            ("text instead of merges", "I t was a dark and stormy night.\n", "more than two parts")):
        refused(name, sentence, *prepare(write(os.path.join(folder, "x.bpe"), content), text), leaves=output)
    latin = os.path.join(folder, "latin1.txt")
    with open(latin, "wb") as file:
        file.write("caf\u00e9\n".encode("latin-1"))
    refused("text that is not UTF-8", "byte 3 (0xe9)", *prepare(merges_path, latin), leaves=output)
    refused("missing text", "Cannot read", *prepare(merges_path, missing), leaves=output)
    refused("an empty file", "is empty", *prepare(merges_path, write(os.path.join(folder, "e"), "")), leaves=output)
    refused("a binary file", "is not text", *prepare(merges_path, write(os.path.join(folder, "z"), "a\0b")), leaves=output)
    refused("an output folder that does not exist", "Cannot write", "prepare", "-m", merges_path, "-o",
            os.path.join(missing, "x.tokens"), text)
    refused("no text", "no text to prepare", *prepare(merges_path), status=2, leaves=output)
    refused("no merges", "--merges is missing", "prepare", "-o", output, text, status=2)
    refused("no output", "--output is missing", "prepare", "-m", merges_path, text, status=2)
    refused("an unknown command", "no command 'make'", "make", status=2)

    def small_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, 1 << 14))

    large = write(os.path.join(folder, "large.txt"), "A b c d e f g\n" * 20000)
    refused("a full disk", "File too large; free some space", *prepare(merges_path, large), leaves=output,
            preexec_fn=small_disk)


def check_damaged(folder, merges_path):
    good = os.path.join(folder, "good.tokens")
    stquant("prepare", "-m", merges_path, "-o", good, write(os.path.join(folder, "good.txt"), SENTENCES))
    with open(good, "rb") as file:
        data = file.read()

    def damaged(name, sentence, content):
        path = os.path.join(folder, "damaged.tokens")
        with open(path, "wb") as file:
            file.write(content)
        refused(name, sentence, "show", path)

    damaged("a token file cut off", "it was not copied whole", data[:-3])
    damaged("a token file with more behind it", "it was not copied whole", data + b"xx")
    damaged("a token file cut inside its header", "is no token file", data[:40])
    damaged("another file", "is no token file", b"PK\3\4" + data[4:])
    damaged("another version", "of version 9", data[:8] + b"\x09" + data[9:])
    damaged("a damaged header", "its header contradicts itself", data[:20] + bytes([data[20] ^ 1]) + data[21:])
    damaged("damaged merges", "its list of merges has another checksum", data[:70] + bytes([data[70] ^ 1]) + data[71:])
    damaged("damaged tokens", "its tokens have another checksum", data[:-1] + bytes([data[-1] ^ 1]))
    refused("a folder as token file", "is no token file", "show", folder)
    refused("a missing token file", "Cannot read", "show", os.path.join(folder, "missing"))
    refused("two files to show", "takes one file", "show", good, good, status=2)


def check_training(folder, merges_path):
    """A model on tokens, small enough for a second."""
    output, log = os.path.join(folder, "train.tokens"), os.path.join(folder, "train.jsonl")
    text = write(os.path.join(folder, "train.txt"), SENTENCES * 30)
    stquant("prepare", "-m", merges_path, "-o", output, text)
    tokens, pairs, _ = read_tokens(output)
    command = [COMMAND, "train", "gpt2", "--layers", "1", "--width", "32", "--heads", "2", "--context", "32", "--steps", "60",
               "--batch", "4", "--sequence-length", "32", "--learning-rate", "0.01", "--sample-length", "60", "--threads", "1",
               "--optimizer", "adamw"]
    run = subprocess.run([*command, "--data", output, "--log", log], capture_output=True, text=True)
    if run.returncode != 0:
        check("a model trains on a token file", False, run.stderr)
        return
    with open(log) as file:
        lines = [json.loads(line) for line in file]
    vocabulary = 257 + len(pairs)
    check("a model trains on a token file", lines[0]["run"]["shape"]["vocabulary"] == vocabulary
          and f"{len(tokens)} tokens" in run.stdout, run.stderr)
    check("and learns from it", abs(lines[0]["train_loss"] - math.log(vocabulary)) < 0.5
          and lines[-1]["train_loss"] < 0.7 * lines[0]["train_loss"], [line["train_loss"] for line in lines])
    sample = lines[-1]["sample"]
    check("and writes text", len(sample.encode()) <= 60 and any(word in sample for word in re.findall(r"\w{4,}", SENTENCES)),
          sample)
    for name, sentence, arguments in (
            ("a token file beside text", "is a token file, which is used alone", ["--data", output, "--data", text]),
            ("a vocabulary smaller than the file's", "is too small for the data",
             ["--data", output, "--vocabulary", "300"])):
        run = subprocess.run([*command, *arguments], capture_output=True, text=True)
        check(name + " is refused", run.returncode == 2 and sentence in run.stderr, run.stderr)
    with open(output, "r+b") as file:
        file.truncate(1000)
    run = subprocess.run([*command, "--data", output], capture_output=True, text=True)
    check("training on a token file cut off is refused", run.returncode == 1 and "not copied whole" in run.stderr, run.stderr)


def main():
    generator = random.Random(SEED)
    texts = [SENTENCES, "x", "  leading and trailing  ", "a" * 3000, " " * 3000, "\n" * 500 + "x", "'" * 50 + "s't'll've",
             random_text(generator, 400), random_text(generator, 400), random_text(generator, 400)]
    with tempfile.TemporaryDirectory() as folder:
        merges = learn(SENTENCES * 3 + random_text(generator, 200), 300)
        merges_path = write(os.path.join(folder, "ours.bpe"),
                            "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        check_encodings(folder, "our merges", merges, merges_path, texts)
        check_documents(folder, merges_path)
        check_bad_input(folder, merges_path)
        check_damaged(folder, merges_path)
        check_training(folder, merges_path)
        gpt2 = find_gpt2_merges()
        if gpt2:
            with open(gpt2, encoding="utf-8") as file:
                merges = [tuple(line.split()) for line in file.read().splitlines() if not line.startswith("#version")]
            check_encodings(folder, "GPT-2's merges", merges, gpt2, texts)
            check_known(folder, gpt2)
            check_speed(folder, gpt2, generator)
        else:
            skip("GPT-2's own merges", "STQUANT_GPT2_MERGES does not name the file (vocab.bpe)")
    return tap.status()


if __name__ == "__main__":
    sys.exit(main())
