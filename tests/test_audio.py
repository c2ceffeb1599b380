"""Sound files: formats, rates and channels become mono samples at one rate; what cannot be is an error with a kind."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
import soundfile
from media_files import film, kind_of, sound, tone

from bacl_jax.config import DataConfig
from bacl_jax.config_media import AudioDataConfig
from bacl_jax.data import audio, inputs, transforms
from bacl_jax.data.source import Example
from bacl_jax.errors import DataError

WHOLE = {"seconds": 5.0, "max_seconds": 600.0}


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (8_000, 1), (44_100, 2), (96_000, 2)])
def test_any_format_rate_and_channels(tmp_path, ending, rate, channels):
    path = sound(tmp_path / f"a.{ending}", rate, channels=channels)
    for source in (path, path.read_bytes()):
        found = audio.decode(source, 16_000, **WHOLE)
        assert found.dtype == np.int16
        assert abs(len(found) - 16_000) <= 2
        inside = slice(2000, 14_000)  # away from the ends, where resampling rings
        np.testing.assert_allclose(found[inside] / 32768, tone()[inside, 0], atol=0.03 if ending == "ogg" else 2e-3)


def test_a_part_of_a_longer_sound(tmp_path):
    wave = np.linspace(-1, 1, 4000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 1000, subtype="FLOAT")
    for where, first in ((0.0, 0), (0.5, 1500), (1.0, 3000)):
        found = audio.decode(tmp_path / "a.wav", 1000, seconds=1.0, where=where, max_seconds=10)
        np.testing.assert_allclose(found / 32768, wave[first : first + 1000], atol=1e-3)
    whole = audio.Heard(audio.decode(tmp_path / "a.wav", 1000, seconds=9, max_seconds=10), 1000)
    np.testing.assert_array_equal(whole.samples(1000, 1.0, 0.5), audio.decode(tmp_path / "a.wav", 1000, seconds=1.0, max_seconds=10))


def test_the_sound_of_a_film(tmp_path):
    found = audio.decode(film(tmp_path / "a.mp4", voice=True), 8000, **WHOLE)
    assert abs(len(found) - 16_000) < 1500
    assert np.abs(found).max() > 8000
    with pytest.raises(DataError, match="no sound track") as error:
        audio.decode(film(tmp_path / "b.mp4"), 8000, **WHOLE)
    assert error.value.kind == "no_track"
    rise = rising_film(tmp_path)
    for where, first in ((0.0, 0), (0.5, 1.5), (1.0, 3.0)):
        found = audio.decode(rise, 8000, seconds=1.0, where=where, max_seconds=10) / 32768
        assert len(found) == 8000
        np.testing.assert_allclose(np.abs(found[500:7500]).reshape(7, 1000).max(1), (first + np.arange(0.125, 1, 0.125)) / 5, atol=0.05)


def rising_film(folder):
    """Four seconds in a Matroska file, uncompressed, that grow louder: a fifth a second."""
    path, rate = folder / "rise.mkv", 16_000
    wave = tone(rate, 4.0)[:, 0] * 2 * np.arange(4 * rate) / (5 * rate)
    with av.open(str(path), "w") as container:
        track = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for start in range(0, len(wave), 16_000):
            part = np.round(wave[None, start : start + 16_000] * 32767).astype(np.int16)
            heard = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
            heard.sample_rate, heard.pts = rate, start
            container.mux(track.encode(heard))
        container.mux(track.encode())
    return path


def test_a_name_says_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "12:30.mp4", voice=True)
    assert len(audio.SoundFile("12:30.mp4", 600).samples(8000, 1.0, 0.5)) == 8000
    (tmp_path / "a.raw").write_bytes(b"no sound")
    assert kind_of(lambda: audio.SoundFile("a.raw", 600).samples(8000, 1.0, 0.5)) == "unreadable"
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile 12:30.mp4\n")
    assert kind_of(lambda: audio.SoundFile("list.mp4", 600).samples(8000, 1.0, 0.5)) == "unreadable"


def bad(folder):
    """name -> (content, the kind of its error)."""
    good = sound(folder / "good.ogg", seconds=2).read_bytes()
    none = sound(folder / "none.wav", seconds=0).read_bytes()
    one = sound(folder / "one.wav", 96_000, seconds=1 / 96_000).read_bytes()
    numbers = folder / "nan.wav"
    soundfile.write(numbers, np.full(100, np.nan, np.float32), 16_000, subtype="FLOAT")
    wav = bytearray(sound(folder / "good.wav").read_bytes())
    wav[24:28] = (4_000_000_000).to_bytes(4, "little")  # samples a second
    return {
        "empty file": (b"", "unreadable"),
        "text": (b"no sound at all" * 99, "unreadable"),
        "ogg cut in its header": (good[:60], "unreadable"),
        "no sample": (none, "empty"),
        "one sample of 96 kHz": (one, "empty"),
        "no numbers": (numbers.read_bytes(), "unreadable"),
        "absurd rate": (bytes(wav), "unreadable"),
    }


def test_bad_sounds_are_errors_with_a_kind(tmp_path):
    for name, (content, kind) in bad(tmp_path).items():
        with pytest.raises(DataError) as error:
            audio.decode(content, 16_000, **WHOLE)
        assert error.value.kind == kind, name
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as error:
            audio.SoundFile(str(tmp_path / name), 600).samples(16_000, 5, 0.5)
        assert (error.value.kind, str(error.value).startswith(f"{tmp_path / name}: ")) == (kind, True)


def test_a_truncated_ogg_is_an_error_or_what_is_left_of_it(tmp_path):
    good = sound(tmp_path / "good.ogg", seconds=2).read_bytes()
    cuts = range(0, len(good), max(1, len(good) // 40))
    kinds = {kind_of(lambda end=end: audio.decode(good[:end], 16_000, **WHOLE)) for end in cuts}
    assert {"unreadable"} <= kinds <= {None, "unreadable", "empty"}


def test_absurd_durations_are_refused_from_the_header(tmp_path):
    with pytest.raises(DataError, match=r"2 s of sound, data.audio.max_seconds is 1;") as error:
        audio.decode(sound(tmp_path / "a.wav", seconds=2), 16_000, seconds=1, max_seconds=1)
    assert error.value.kind == "bomb"


def test_what_a_tower_gets_of_a_short_sound():
    config = DataConfig(anchors=("audio",), audio=AudioDataConfig(rate=800, seconds=0.5, hop=20, window=80))
    found = inputs.heard(audio.Heard(np.full(100, 7, np.int16), 800), config.audio, 0.3)
    assert found.values.shape == (400,)
    assert (found.values != 0).sum() == 100
    np.testing.assert_array_equal(found.mask, np.arange(21) < 6)


def test_speed_changes_length_and_pitch_while_training_alone():
    config = DataConfig(anchors=("audio",), audio=AudioDataConfig(rate=800, seconds=0.5, hop=20, window=80, speed=0.25))
    played = audio.Heard((9000 * np.sin(2 * np.pi * 100 * np.arange(300) / 800)).astype(np.int16), 800)
    pitch = {}
    for pace, speed in {0.0: 0.75, 0.5: 1.0, 1.0: 1.25}.items():
        found = inputs.heard(played, config.audio, 0.0, pace)
        length = int(np.flatnonzero(found.values)[-1]) + 1
        assert abs(length - min(300 / speed, 400)) <= 2
        assert found.mask.sum() == min(config.audio.frames_of(length), config.audio.frames)
        pitch[pace] = np.argmax(np.abs(np.fft.rfft(found.values[:length], 8000))) / 10
    assert pitch == pytest.approx({0.0: 75, 0.5: 100, 1.0: 125}, abs=1)
    assert inputs.draws(config) == inputs.draws(dataclasses.replace(config, audio=dataclasses.replace(config.audio, speed=0.0))) + 1
    still = inputs.of(Example(None, "a", "a", sound=played), config, transforms.square, [0.5] * inputs.draws(config))["audio"]
    np.testing.assert_array_equal(still.values[:300], played.values)


@pytest.mark.parametrize("length", [1, 10, 500, 8000])
def test_a_sound_played_faster_is_the_same_each_time_and_silence_stays_silent(length):
    values = np.random.default_rng(0).integers(-9000, 9000, length).astype(np.int16)
    with ThreadPoolExecutor(2) as threads:  # dithered, most of short ones would differ
        found = list(threads.map(lambda _: audio.played(values, 8000, 1.1), range(300)))
    assert all(np.array_equal(one, found[0]) for one in found)
    assert not audio.played(np.zeros(length, np.int16), 8000, 1.1).any()


def test_of_a_long_sound_as_much_is_heard_at_any_speed():
    config = AudioDataConfig(rate=800, seconds=0.5, hop=20, window=80, speed=0.25)
    ramp = audio.Heard(np.arange(4000).astype(np.int16), 800)
    for pace in (0.0, 0.3, 1.0):
        found = inputs.heard(ramp, config, 0.5, pace)
        assert found.mask.all()
        middle = found.values[40:-40]  # beyond the ends the filter sees nothing
        assert abs(float(np.diff(middle).mean()) - (1 + 0.25 * (2 * pace - 1))) < 0.02
