"""What cpu_peers and gpu_peers share: the tensors of a GPT-2, and why an optimizer does not run."""


def gpt2(width, layers, vocabulary=50257, positions=1024):
    """Shapes of the tensors: the embeddings, twelve a layer, the last norm."""
    shapes = [(vocabulary, width), (positions, width)]
    for _ in range(layers):
        shapes += [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,),
                   (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return shapes + [(width,), (width,)]


def reason(problem):
    """The first line of an exception."""
    text = next((line for line in str(problem).splitlines() if line.strip()), "")
    return f"{type(problem).__name__}: {text[:150]}"
