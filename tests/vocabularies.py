"""Small vocabulary files in the forms that bacl_jax.data.vocabulary reads, for the tests of tokenizers."""

import gzip

MERGES = ("r e", "re d</w>", "b l", "bl u", "blu e</w>", "' s</w>")  # of CLIP's form: red, blue, 's
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "squ", "##are", "'", "s", "cafe")
CLIP_SIZE = 2 * 256 + len(MERGES) + 2


def clip_text(merges=MERGES):
    return "\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *merges]) + "\n"


def clip_file(folder, text=None):
    """A file of CLIP's form with so few merges; its path."""
    path = folder / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress((clip_text() if text is None else text).encode(), mtime=0))
    return str(path)


def wordpiece_file(folder, pieces=PIECES):
    """A vocab.txt; its path."""
    path = folder / "vocab.txt"
    path.write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    return str(path)
