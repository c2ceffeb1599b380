"""Text to token ids, through the `tokenizers` library; trained on the captions and saved beside the checkpoint as its JSON.

Dimension legend: n texts, T tokens a text (data.context_length).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from bacl_jax.config import ConfigError, DataConfig
from bacl_jax.data.source import DataError

PAD, BOS, EOS, UNK = range(4)
SPECIAL_TOKENS = ("[PAD]", "[BOS]", "[EOS]", "[UNK]")  # their order is their ids; text is lower case, so no word of a caption is one


class Tokenizer:
    """Word-level (whitespace words) or byte-level BPE; ids PAD = 0, BOS = 1, EOS = 2, UNK = 3."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, context_length: int):
        self._tokenizer, self.context_length = tokenizer, context_length
        self._tokenizer.encode_special_tokens = True  # "[EOS]" in a caption is text like any other; this switch is not in the JSON

    @classmethod
    def train(cls, captions: Sequence[str], config: DataConfig) -> "Tokenizer":
        """Learn a vocabulary of at most `config.vocab_size` entries; the result depends on the captions as a multiset, not on their order.

        Raises ConfigError if the vocabulary cannot hold its fixed part: 4 special tokens and, for "bpe", 256 bytes.
        """
        smallest = 5 if config.tokenizer == "word" else 256 + len(SPECIAL_TOKENS)
        if config.vocab_size < smallest:
            raise ConfigError(f"data.vocab_size = {config.vocab_size}; a {config.tokenizer!r} tokenizer needs at least {smallest}")
        if config.context_length < 3:
            raise ConfigError(f"data.context_length = {config.context_length}; BOS, one token and EOS need at least 3")
        special = list(SPECIAL_TOKENS)
        if config.tokenizer == "word":
            tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token=SPECIAL_TOKENS[UNK]))
            tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
            trainer = trainers.WordLevelTrainer(vocab_size=config.vocab_size, special_tokens=special, show_progress=False)
        else:
            tokenizer = tokenizers.Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
            tokenizer.decoder = decoders.ByteLevel()
            alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
            trainer = trainers.BpeTrainer(
                vocab_size=config.vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
            )
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.train_from_iterator(sorted(captions), trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{SPECIAL_TOKENS[BOS]} $A {SPECIAL_TOKENS[EOS]}",
            special_tokens=[(SPECIAL_TOKENS[i], i) for i in (BOS, EOS)],
        )
        tokenizer.enable_truncation(config.context_length)
        tokenizer.enable_padding(length=config.context_length, pad_id=PAD, pad_token=SPECIAL_TOKENS[PAD])
        return cls(tokenizer, config.context_length)

    def save(self, path: str | Path) -> None:
        self._tokenizer.save(str(path))

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read what `save` wrote. Raises DataError naming the file if it is missing, no tokenizer, or one with other special ids."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: the tokenizer cannot be read ({error})", kind="tokenizer") from error
        return cls.from_json(text, str(path))

    def to_json(self) -> dict[str, Any]:
        """What `save` writes, as a dict."""
        return json.loads(self._tokenizer.to_str())

    @classmethod
    def from_json(cls, stored: str | dict[str, Any], name: str = "tokenizer") -> "Tokenizer":
        """Inverse of `to_json`. Raises DataError, which calls it `name`, as `load` does."""
        text = stored if isinstance(stored, str) else json.dumps(stored)
        try:
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{name}: not a tokenizer file ({error})", kind="tokenizer") from error
        found = tuple(tokenizer.id_to_token(i) for i in range(len(SPECIAL_TOKENS)))
        if found != SPECIAL_TOKENS or tokenizer.truncation is None or tokenizer.padding is None:
            raise DataError(f"{name}: not a tokenizer of ours: tokens 0 to 3 are {found}, expected {SPECIAL_TOKENS}", kind="tokenizer")
        return cls(tokenizer, tokenizer.truncation["max_length"])

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> tuple[Int32[np.ndarray, "n T"], Bool[np.ndarray, "n T"]]:
        """(ids, mask): BOS, tokens, EOS, padding; mask is True on all but the padding. Longer texts are cut, and keep their EOS."""
        encodings = self._tokenizer.encode_batch(list(texts))
        shape = (len(encodings), self.context_length)
        ids = np.array([each.ids for each in encodings], np.int32).reshape(shape)
        mask = np.array([each.attention_mask for each in encodings], bool).reshape(shape)
        return ids, mask

    def too_long(self, texts: Sequence[str]) -> int:
        """How many of the texts `encode` cuts."""
        return sum(len(each.overflowing) > 0 for each in self._tokenizer.encode_batch(list(texts)))

    def tokens(self, ids: Sequence[int] | Int32[np.ndarray, " T"]) -> list[str]:
        """The token strings of ids, for plots and reports; "" for an id out of range."""
        return [self._tokenizer.id_to_token(int(i)) or "" for i in ids]
