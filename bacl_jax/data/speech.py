"""The emoji pairs with their captions read aloud by eSpeak NG: synthetic speech, not recordings of people.

A folder for data.kind = "clips" (configs/emoji_spoken_bacl.py): pairs.csv with the columns image, audio, caption, split and speech,
which says of each row that it is synthetic and in which voice; pictures; sounds as Ogg. Splits are those of the emoji pairs. Each row draws
its voice and its pace by its key, so that a caption is heard in several voices. eSpeak NG is under the GPL, version 3.
"""

import csv
import ctypes
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int16
from PIL import Image
from rich.progress import track

from bacl_jax.config import ConfigError
from bacl_jax.data.optional import library
from bacl_jax.data.source import DataSet

VOICES = {"en": "en-us", "zh": "cmn"}  # language of the emoji names -> voice, others: of the same name
VARIANTS = ("f1", "f2", "f3", "m1", "m2", "m3", "m4", "m7")
PACES = (140, 165, 190)  # words a minute
COLUMNS = ("image", "audio", "caption", "split", "speech")
_SYNCHRONOUS, _RATE, _UTF8, _RETURN = 2, 1, 1, 0x8000  # of espeak-ng/speak_lib.h: output mode, parameter, encoding, "do not exit"


class Speaker:
    """eSpeak NG's library. One a process: its state is global."""

    def __init__(self) -> None:
        loader = library("espeakng_loader", "synthetic speech", "espeakng-loader")
        self._library, self._parts = ctypes.CDLL(loader.get_library_path()), []
        self.rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, loader.get_data_path().encode(), _RETURN)
        if self.rate <= 0:
            raise ConfigError(f"eSpeak NG does not start (code {self.rate}); reinstall espeakng-loader")
        form = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._keep = form(self._take)  # the library holds a bare pointer to it
        self._library.espeak_SetSynthCallback(self._keep)

    def _take(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: int | None) -> int:
        del events
        if samples and count:
            self._parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, voice: str, pace: int) -> Int16[np.ndarray, " n"]:
        """Mono samples, `self.rate` a second. ConfigError for a voice that it does not have."""
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise ConfigError(f"--language: eSpeak NG has no voice {voice!r}")
        self._library.espeak_SetParameter(_RATE, pace, 0)
        self._parts.clear()
        content = text.encode()
        self._library.espeak_Synth(content, len(content) + 1, 0, 1, 0, _UTF8, None, None)
        return np.concatenate([np.zeros(0, np.int16), *self._parts])


def rows(dataset: DataSet) -> Iterator[tuple[str, str, np.ndarray, str]]:
    """(key, caption, picture, split) of every pair."""
    for split, source in (("train", dataset.train), *((name, part.source) for name, part in dataset.splits.items())):
        for number in range(len(source)):
            example = source[number]
            yield example.anchor_key, example.caption, example.image, split


def check(out: Path) -> None:
    """ConfigError where the folder is there already."""
    if out.exists():
        raise ConfigError(f"--out={out}: is there already; name a new folder")


def write(dataset: DataSet, language: str, out: Path) -> int:
    """Writes the folder, whole or not at all; returns the number of rows. Raises as `check` does."""
    check(out)
    soundfile, speaker = library("soundfile", "sound"), Speaker()
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    for name in ("image", "audio"):
        (unfinished / name).mkdir(parents=True)
    total = len(dataset.train) + sum(len(part.source) for part in dataset.splits.values())
    try:
        with (unfinished / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            for key, caption, picture, split in track(rows(dataset), "speaking", total=total):
                name, drawn = key.replace("/", "_"), hashlib.sha256(key.encode()).digest()
                voice = f"{VOICES.get(language, language)}+{VARIANTS[drawn[0] % len(VARIANTS)]}"
                Image.fromarray(picture).save(unfinished / "image" / f"{name}.png")
                sound = speaker.say(caption, voice, PACES[drawn[1] % len(PACES)])
                soundfile.write(unfinished / "audio" / f"{name}.ogg", sound, speaker.rate)
                table.writerow([f"image/{name}.png", f"audio/{name}.ogg", caption, split, f"synthetic: eSpeak NG, {voice}"])
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return total
