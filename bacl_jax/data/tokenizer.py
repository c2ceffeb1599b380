"""Text to token ids, through the `tokenizers` library; trained on captions or read from a file, and saved beside the checkpoint as JSON.

Dimension legend: n texts, T tokens a text (data.context_length).
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data import vocabulary
from bacl_jax.errors import DataError

SPECIAL_TOKENS = ("[PAD]", "[BOS]", "[EOS]", "[UNK]")  # of a trained vocabulary: their order is their ids
_BYTES = 256
_SMALLEST = {
    "word": len(SPECIAL_TOKENS) + 1,
    "bpe": len(SPECIAL_TOKENS) + _BYTES,
    "wordpiece": len(SPECIAL_TOKENS) + 2,
    "clip": 2 * _BYTES + 2,
}
_CLEAN_UP = "clean_up"  # the one field of ours in the JSON: whether texts go through vocabulary.clean_up


class Tokenizer:
    """Texts as rows of BOS, tokens, EOS, padding. A trained vocabulary has the ids PAD = 0, BOS = 1, EOS = 2, UNK = 3, one from a file
    its own: `pad_id`, `bos_id`, `eos_id`. One from a file may have no BOS, as SigLIP's: `bos_id` is None then, and CLA, which takes the
    first token for one, compares no first word. The padding id may be that of a token too, as in open_clip: the mask tells padding.

    A special token in a text, such as "[EOS]", is text like any other.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, clean_up: bool = False):
        """tokenizer: cut and padded to one length (`_to_length`). ValueError where its rows are not laid out as above."""
        self._tokenizer, self._clean_up = tokenizer, clean_up
        self._tokenizer.encode_special_tokens = True  # this switch is not in the JSON
        if tokenizer.truncation is None or tokenizer.padding is None:
            raise ValueError("its texts are not cut and padded to a length")
        if getattr(tokenizer.model, "dropout", None):
            raise ValueError(f"its byte pairs are left out at random; set its model's dropout to null, it is {tokenizer.model.dropout}")
        self.context_length: int = tokenizer.truncation["max_length"]
        self.pad_id: int = tokenizer.padding["pad_id"]
        self.bos_id, self.eos_id = _ends(tokenizer)
        unknown = getattr(tokenizer.model, "unk_token", None)
        self.unk_id: int | None = None if unknown is None else tokenizer.token_to_id(unknown)  # None: no text is unknown
        self._json = tokenizer.to_str()
        tokenizer.no_padding()  # `encode` pads, which costs half as much

    @classmethod
    def train(cls, captions: Sequence[str], config: DataConfig) -> "Tokenizer":
        """Learn a vocabulary of at most `config.vocab_size` entries; the result depends on the captions as a multiset, not on their order.

        Raises ConfigError if the vocabulary cannot hold its fixed part: 4 special tokens, for "bpe" 256 bytes, for "wordpiece" a letter
        at the start and within a word; for "clip" 256 bytes, within a word and at its end, and 2 special tokens.
        """
        smallest = _SMALLEST[config.tokenizer]
        if config.vocab_size < smallest:
            raise ConfigError(f"data.vocab_size = {config.vocab_size}; a {config.tokenizer!r} tokenizer needs at least {smallest}")
        if config.tokenizer == "clip":
            return cls(_to_length(_train_clip(sorted(captions), config.vocab_size), config.context_length))
        train = {"word": _train_words, "bpe": _train_byte_pairs, "wordpiece": _train_word_pieces}[config.tokenizer]
        tokenizer = train(sorted(captions), config.vocab_size)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[BOS] $A [EOS]", special_tokens=[(name, SPECIAL_TOKENS.index(name)) for name in ("[BOS]", "[EOS]")]
        )
        return cls(_to_length(tokenizer, config.context_length))

    @classmethod
    def read(cls, config: DataConfig) -> "Tokenizer":
        """The vocabulary of the file `config.tokenizer_path`, see bacl_jax.data.vocabulary.

        Raises DataError that names the file where it cannot be used, and ConfigError unless data.vocab_size is its number of tokens.
        """
        path = config.tokenizer_path
        assert path is not None
        tokenizer, clean_up = vocabulary.read(path)
        try:
            found = cls(_to_length(tokenizer, config.context_length), clean_up=clean_up)
        except ValueError as error:
            raise DataError(f"data.tokenizer_path = {path!r}: {error}", kind="tokenizer") from error
        if found.vocab_size != config.vocab_size:
            raise ConfigError(
                f"data.vocab_size = {config.vocab_size}: {path} holds {found.vocab_size:,} tokens; "
                f"set --config.data.vocab_size={found.vocab_size}, or fetch the file again if it should hold more"
            )
        return found

    @classmethod
    def count(cls, path: str) -> int:
        """The number of tokens of a vocabulary file: what data.vocab_size must be. DataError as `read`."""
        return max(vocabulary.read(path)[0].get_vocab().values()) + 1

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_json(), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read what `save` wrote. Raises DataError naming the file if it is missing or no such tokenizer."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: the tokenizer cannot be read ({error})", kind="tokenizer") from error
        return cls.from_json(text, str(path))

    def to_json(self) -> dict[str, Any]:
        """The library's JSON as a dict; with `clean_up` beside its fields where texts are cleaned up first."""
        return json.loads(self._json) | ({_CLEAN_UP: True} if self._clean_up else {})

    @classmethod
    def from_json(cls, stored: str | dict[str, Any], name: str = "tokenizer") -> "Tokenizer":
        """Inverse of `to_json`. Raises DataError, which calls it `name`, as `load` does."""
        try:
            fields = dict(json.loads(stored) if isinstance(stored, str) else stored)
            clean_up = fields.pop(_CLEAN_UP, False)
            return cls(tokenizers.Tokenizer.from_str(json.dumps(fields)), clean_up=clean_up)
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{name}: not a tokenizer file of ours ({error})", kind="tokenizer") from error

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._tokenizer.get_vocab().values()) + 1

    def encode(self, texts: Sequence[str]) -> tuple[Int32[np.ndarray, "n T"], Bool[np.ndarray, "n T"]]:
        """(ids, mask): BOS, tokens, EOS, padding; mask is True on all but the padding. Longer texts are cut, and keep their EOS."""
        encodings = self._encode(texts)
        ids = np.full((len(encodings), self.context_length), self.pad_id, np.int32)
        lengths = np.empty((len(encodings), 1), np.int64)
        for i, each in enumerate(encodings):
            row = each.ids
            ids[i, : len(row)], lengths[i] = row, len(row)
        return ids, np.arange(self.context_length) < lengths

    def too_long(self, texts: Sequence[str]) -> int:
        """How many of the texts `encode` cuts."""
        return sum(len(each.overflowing) > 0 for each in self._encode(texts))

    def _encode(self, texts: Iterable[str]) -> list[tokenizers.Encoding]:
        return self._tokenizer.encode_batch_fast([vocabulary.clean_up(text) for text in texts] if self._clean_up else list(texts))

    def tokens(self, ids: Sequence[int] | Int32[np.ndarray, " T"]) -> list[str]:
        """The token strings of ids, for plots and reports; "" for an id out of range."""
        return [self._tokenizer.id_to_token(int(i)) or "" for i in ids]


def _ends(tokenizer: tokenizers.Tokenizer) -> tuple[int | None, int]:
    """The ids before and after each text; None where there is none before it. ValueError where these are not one token each."""
    unknown = getattr(tokenizer.model, "unk_token", None)
    if unknown is not None and tokenizer.token_to_id(unknown) is None:
        raise ValueError(f"its token for what is unknown, {unknown!r}, is not in its vocabulary")
    try:
        empty, short = (tokenizer.encode(text) for text in ("", "a"))
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":  # the library's panics are no Exceptions
            raise ValueError(f"no text can be encoded with it ({error})") from error
        raise
    inside = [i for i, taken in zip(empty.ids, empty.attention_mask, strict=True) if taken]
    first, last = short.ids[0], short.ids[sum(short.attention_mask) - 1]
    if inside == [last] and first != last:
        return None, last
    if inside != [first, last]:
        raise ValueError("it puts no single token after a text, or several before it; give it a post_processor that puts one after it")
    return first, last


def _to_length(tokenizer: tokenizers.Tokenizer, context_length: int) -> tokenizers.Tokenizer:
    """Cut and padded to `context_length`, with its own padding id; where it has none with 0, as open_clip does."""
    if context_length < 3:
        raise ConfigError(f"data.context_length = {context_length}; BOS, one token and EOS need at least 3")
    named = [i for i in map(tokenizer.token_to_id, ("[PAD]", "<pad>")) if i is not None]
    pad_id = tokenizer.padding["pad_id"] if tokenizer.padding is not None else [*named, 0][0]
    tokenizer.enable_truncation(context_length)
    tokenizer.enable_padding(length=context_length, pad_id=pad_id, pad_token=tokenizer.id_to_token(pad_id) or "[PAD]")
    return tokenizer


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])


def _train_words(captions: list[str], size: int) -> tokenizers.Tokenizer:
    """One token a word between spaces."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _normalizer(), pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


def _train_byte_pairs(captions: list[str], size: int) -> tokenizers.Tokenizer:
    """Byte-level byte pairs: no text has an unknown token."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer = _normalizer(), pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


def _train_clip(captions: list[str], size: int) -> tokenizers.Tokenizer:
    """Byte pairs in CLIP's form, in which a model can be exported: no unknown token, and the end of a text has the largest id.

    The letters come to the library as fixed tokens: it numbers those at the end of a word in an order that changes with each call.
    """
    trained = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer, trained.pre_tokenizer = _normalizer(), vocabulary.words()
    known = vocabulary.letters()
    trainer = trainers.BpeTrainer(vocab_size=size - 2, special_tokens=list(known), end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator(captions, trainer)
    merges = [(first, second) for first, second in json.loads(trained.to_str())["model"]["merges"]]
    tokenizer = vocabulary.byte_pairs(known | {"".join(pair): len(known) + i for i, pair in enumerate(merges)}, merges)
    tokenizer.normalizer = _normalizer()
    return tokenizer


def _train_word_pieces(captions: list[str], size: int) -> tokenizers.Tokenizer:
    """WordPiece over words and punctuation; a word with a letter that is not in the vocabulary is [UNK].

    The library numbers letters within words in an order that changes with each start, and so do the pieces that it learns. Here they
    come to it as fixed tokens, in order; and letters that would take more than the vocabulary are left out, the rarest first.
    """
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.BertNormalizer(strip_accents=False, lowercase=True)])
    splitter = pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in captions for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    letters: Counter[str] = Counter()
    for word, count in words.items():
        letters.update({letter: count * word.count(letter) for letter in set(word)})
    most = sorted(letters, key=lambda letter: (-letters[letter], letter))[: (size - len(SPECIAL_TOKENS)) // 2]
    usable = {word: count for word, count in words.items() if set(word) <= set(most)}
    within = [f"##{letter}" for letter in sorted({letter for word in usable for letter in word[1:]})]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=[*SPECIAL_TOKENS, *within], show_progress=False)
    trained = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.train_from_iterator(Counter(usable).elements(), trainer)
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab=trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer
