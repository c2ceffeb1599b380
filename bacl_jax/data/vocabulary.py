"""Vocabularies of other models, read from a local file: CLIP's byte pairs, BERT's word pieces, any tokenizer.json."""

import gzip
import html
import json
import zlib

import ftfy
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from bacl_jax.data.files import located
from bacl_jax.errors import DataError

_GZIP = b"\x1f\x8b"
_CLIP_MERGES = 49_152 - 256 - 2  # as many lines of CLIP's file are used
_CLIP_ENDS = ("<|startoftext|>", "<|endoftext|>")
# CLIP's own pattern; what it does not match is dropped. So is U+0345: open_clip ignores case, where it is a letter and is none.
_CLIP_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"
_BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_FORMS = "a tokenizer.json of Hugging Face, CLIP's bpe_simple_vocab_16e6.txt.gz and a vocab.txt of WordPiece are read"


def read(path: str) -> tuple[tokenizers.Tokenizer, bool]:
    """The tokenizer of a local file, and whether its texts go through `clean_up` first. The content tells the form, not the name.

    tokenizer.json:              as it says of itself: the ids of Hugging Face's fast tokenizers. What pads is the pad_token of the
                                 tokenizer_config.json beside it, if that is there: the end of a text in SigLIP's.
    bpe_simple_vocab_16e6.txt.gz: the ids of open_clip and of OpenAI's CLIP, whose texts are cleaned up.
    vocab.txt:                   one token a line: the ids of Hugging Face's BertTokenizerFast, which lowers and strips accents.

    Raises DataError that names the file where it is missing, damaged or of another form.
    """
    try:
        content = located(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"data.tokenizer_path = {path!r}: the file cannot be read ({error.strerror}); {_FORMS}", kind="tokenizer"
        ) from error
    packed = content.startswith(_GZIP)
    try:
        text = (gzip.decompress(content) if packed else content).decode("utf-8")
    except (EOFError, OSError, zlib.error) as error:
        raise _bad(path, f"a damaged gzip file ({error}); fetch it again") from error
    except UnicodeDecodeError as error:
        raise _bad(path, f"no UTF-8 text ({error}); {_FORMS}") from error
    if packed:
        return _clip(path, text), True
    return (_from_json(path, text) if text.lstrip().startswith("{") else _wordpiece(path, text)), False


def clean_up(text: str) -> str:
    """What open_clip does to a text before CLIP's byte pairs: broken encodings repaired by ftfy, HTML entities resolved twice, single
    spaces, lower case. About 14,000 captions a second where ftfy has to look, and many more of plain ASCII."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # there ftfy has nothing to do
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _bad(path: str, what: str) -> DataError:
    return DataError(f"data.tokenizer_path = {path!r}: {what}", kind="tokenizer")


def _from_json(path: str, text: str) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise _bad(path, f"no tokenizer.json ({error}); {_FORMS}") from error
    beside = located(path).with_name("tokenizer_config.json")
    if not beside.is_file():
        return tokenizer
    try:
        pad = json.loads(beside.read_text(encoding="utf-8")).get("pad_token")
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise _bad(path, f"{beside.name} beside it holds no JSON object ({error}); fetch it again") from error
    pad = pad.get("content") if isinstance(pad, dict) else pad
    if isinstance(pad, str) and (pad_id := tokenizer.token_to_id(pad)) is not None:
        tokenizer.enable_padding(pad_id=pad_id, pad_token=pad)
    return tokenizer


def _clip(path: str, text: str) -> tokenizers.Tokenizer:
    """Ids as in OpenAI's simple_tokenizer.py: 256 bytes, 256 bytes that end a word, what each merge gives, start, end."""
    header, *lines = text.split("\n")
    if "#version" not in header:
        raise _bad(path, f"a gzip file whose first line is {header[:60]!r}; that of CLIP's file holds #version; {_FORMS}")
    if lines and not lines[-1]:
        lines.pop()
    vocabulary = letters()
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines[:_CLIP_MERGES], 2):
        pair = line.split()
        if len(pair) != 2 or any(part not in vocabulary for part in pair) or "".join(pair) in vocabulary:
            raise _bad(path, f"line {number} is {line[:60]!r}; it must hold two tokens of the lines before that make a new one")
        merges.append((pair[0], pair[1]))
        vocabulary["".join(pair)] = len(vocabulary)
    return byte_pairs(vocabulary, merges)


def byte_pairs(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's form: byte pairs of words, the last of which ends in </w>; the start and the end of a text have the two largest ids."""
    start, end = ((token, len(vocabulary) + i) for i, token in enumerate(_CLIP_ENDS))
    vocabulary = vocabulary | dict((start, end))
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=_CLIP_ENDS[1]))
    tokenizer.pre_tokenizer = words()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_CLIP_ENDS))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{_CLIP_ENDS[0]} $A {_CLIP_ENDS[1]}", special_tokens=[start, end])
    return tokenizer


def letters() -> dict[str, int]:
    """The vocabulary of CLIP's form without a merge: each byte, then each byte at the end of a word."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # the order of CLIP's ids
    return {token: i for i, token in enumerate([*alphabet, *(letter + "</w>" for letter in alphabet)])}


def words() -> pre_tokenizers.PreTokenizer:
    """CLIP's words, as bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _wordpiece(path: str, text: str) -> tokenizers.Tokenizer:
    """As Hugging Face's BertTokenizerFast with its defaults."""
    vocabulary: dict[str, int] = {}
    for number, token in enumerate(text.replace("\r\n", "\n").removesuffix("\n").split("\n"), 1):
        if token in vocabulary:
            raise _bad(
                path, f"line {number} repeats {token[:60]!r} of line {vocabulary[token] + 1}; each token of a vocab.txt has one line"
            )
        vocabulary[token] = number - 1
    absent = [token for token in _BERT_TOKENS if token not in vocabulary]
    if absent:
        raise _bad(path, f"no vocab.txt of WordPiece: {', '.join(absent)} is not among its {len(vocabulary):,} lines; {_FORMS}")
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in (*_BERT_TOKENS, "[MASK]") if token in vocabulary])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    return tokenizer
