"""The words that captions and sentences are made of, and phrases as rows of a table."""

import torch

PADDING, START, SEPARATOR = 0, 1, 2

# A tuple holds words of one meaning: which one is written is drawn.
CLASSES = (
    ("t-shirt", "tee"), ("trousers", "pants"), ("pullover", "sweater"), ("dress", "gown"), ("coat", "jacket"),
    ("sandal", "slipper"), ("shirt", "blouse"), ("sneaker", "trainer"), ("bag", "handbag"), ("boot", "ankle-boot"),
)  # fmt: skip
BRIGHTNESSES = (("dark", "dim"), ("grey", "dull"), ("bright", "light"))
COVERS = (("slim", "narrow"), ("", ""), ("wide", "broad"))
# An upright garment and a whole one go without saying.
ORIENTATIONS = (("", ""), ("turned left", "facing left"), ("upside down", "on its-head"), ("turned right", "facing right"))
CROPS = (("", ""), ("the top of", "the upper part-of"), ("the bottom of", "the lower part-of"))
SPEECH = (
    "a and on the left right to of beside which is not every each no some it false that true thing garment footwear "
    "clothing top turned upright at least one"
)


def _vocabulary():
    groups = (CLASSES, BRIGHTNESSES, COVERS, ORIENTATIONS, CROPS)
    phrases = [phrase for group in groups for meaning in group for phrase in meaning] + [SPEECH]
    words = dict.fromkeys(word for phrase in phrases for word in phrase.split())
    return ["<padding>", "<start>", "<separator>", *words]


WORDS = _vocabulary()
NUMBERS = {word: number for number, word in enumerate(WORDS)}


def phrases(table, device):
    """Numbers of the words of a tuple (of tuples) of phrases, shape (..., longest phrase), padded behind."""

    def numbers(entry):
        return [NUMBERS[word] for word in entry.split()] if isinstance(entry, str) else [numbers(one) for one in entry]

    def longest(entry):
        return max(map(longest, entry)) if entry and isinstance(entry[0], list) else len(entry)

    def padded(entry, length):
        if entry and isinstance(entry[0], list):
            return [padded(one, length) for one in entry]
        return entry + [PADDING] * (length - len(entry))

    listed = [numbers(entry) for entry in table]
    length = max(map(longest, listed))
    return torch.tensor([padded(one, length) for one in listed], device=device)


def closed_up(words, length):
    """Rows of words with gaps (padding) closed up, cut or padded to a length."""
    order = (words == PADDING).byte().argsort(dim=1, stable=True)
    words = words.gather(1, order)
    return torch.nn.functional.pad(words, (0, max(length - words.shape[1], 0)))[:, :length]


def text(row):
    """A row of words as a person reads it."""
    return " ".join(WORDS[number] for number in row.tolist() if number != PADDING)
