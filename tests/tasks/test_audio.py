"""Recordings: what is read and what is refused, spectrograms, classes, and what is said."""

import io
import struct
from contextlib import suppress

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.errors import InvalidInput, MillError, TooLarge
from modelmill.tasks import audio_classification
from modelmill.tasks import automatic_speech_recognition as speech
from modelmill.tasks.automatic_speech_recognition.decoding import (
    TimedText,
    beam,
    greedy,
    words,
)
from modelmill.tasks.automatic_speech_recognition.measures import (
    distance,
    error_rate,
)
from modelmill.tasks.base import Context, Item, Measured
from modelmill.tasks.decoding import audio_decoder
from tests.helpers.datasets import tones

LABELS = ["a", "b"]


def sound(samples, rate=8000, **options):
    out = io.BytesIO()
    soundfile.write(out, samples, rate, **{"format": "WAV", **options})
    return out.getvalue()


def wave(seconds=0.5, rate=8000, pitch=440.0):
    return 0.4 * np.sin(
        2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate
    )


# ---- files


@pytest.mark.parametrize(
    "options",
    [
        {"subtype": "PCM_16"},
        {"subtype": "PCM_U8"},
        {"subtype": "PCM_24"},
        {"subtype": "FLOAT"},
        {"format": "FLAC"},
        {"format": "OGG"},
        {"format": "MP3"},
        {"format": "AIFF"},
        {"format": "W64"},
    ],
)
def test_every_usual_file_is_read(options):
    samples = wave(rate=16_000)
    found = audio_decoder.read(sound(samples, 16_000, **options))
    assert (found.rate, found.samples.dtype) == (16_000, np.float32)
    assert abs(found.seconds - 0.5) < 0.1  # MP3 has some silence around it
    assert np.abs(found.samples).max() == pytest.approx(0.4, abs=0.1)


def test_channels_are_averaged():
    left, right = wave(), np.zeros(4000)
    assert np.allclose(
        audio_decoder.read(sound(np.stack([left, right], 1))).samples,
        left / 2,
        atol=1e-3,
    )


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"hello", "not a sound file"),
        (sound(wave())[:20], "not a sound file"),
        (sound(np.zeros(0)), "no samples"),
        (sound(np.full(100, np.nan), subtype="FLOAT"), "no numbers"),
        (sound(np.full(100, np.inf), subtype="FLOAT"), "no numbers"),
        (sound(wave(), 500), "500 samples a second"),
        (sound(np.zeros((10, 40))), "40 channels"),
        ("a text", "bytes of a sound file"),
    ],
)
def test_what_is_no_recording_is_refused_in_words(data, says):
    with pytest.raises(InvalidInput, match=says):
        audio_decoder.read(data)


def test_a_header_that_promises_hours_is_refused_before_any_work():
    data = bytearray(sound(wave()))
    data[40:44] = struct.pack("<I", 2**31 - 2)
    data[4:8] = struct.pack("<I", 2**31 - 2 + 36)
    with suppress(TooLarge):
        assert (
            audio_decoder.read(bytes(data)).seconds < 1
        )  # what is there counts


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_file_is_read_or_refused(data):
    file = bytearray(
        sound(
            wave(0.05),
            format=data.draw(st.sampled_from(["WAV", "FLAC", "OGG"])),
        )
    )
    for _ in range(data.draw(st.integers(1, 8))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(
            st.integers(0, 255)
        )
    cut = bytes(file[: data.draw(st.integers(1, len(file)))])
    with suppress(MillError):
        assert np.isfinite(audio_decoder.read(cut).samples).all()


def test_another_rate_sounds_the_same():
    slow = audio_decoder.at_rate(
        audio_decoder.read(sound(wave(1, 44_100), 44_100)), 8000
    )
    assert len(slow) == 8000
    assert np.allclose(slow[500:-500], wave(1)[500:-500], atol=5e-3)


def test_the_same_sound_has_one_fingerprint_in_every_lossless_file():
    levels = np.rint(wave() * 32767).astype(np.int16)
    prints = {
        audio_decoder.fingerprint(sound(levels, format=kind))
        for kind in ("WAV", "FLAC", "AIFF")
    }
    assert len(prints) == 1
    assert audio_decoder.fingerprint(sound(levels, 16_000)) not in prints


# ---- spectrograms


@pytest.mark.parametrize("rate", [8000, 16_000])
def test_a_tone_is_loudest_in_its_band_whatever_its_loudness(rate):
    torch = pytest.importorskip("torch")
    from modelmill.tasks.networks.mel_spectrogram import LogMel

    mel = LogMel(rate, 40)
    bands = []
    for pitch in (300, 1000, 3000):
        quiet, loud = (
            torch.from_numpy(wave(0.5, rate, pitch) * by).float()[None]
            for by in (0.01, 1.0)
        )
        found, other = mel(quiet)[0, :, 10:-10], mel(loud)[0, :, 10:-10]
        assert torch.allclose(found, other, atol=2e-2)
        assert found.max() <= 1
        assert found.min() >= -1
        bands.append(int(found.mean(1).argmax()))
    assert bands == sorted(set(bands))


def test_silence_is_a_flat_spectrogram():
    torch = pytest.importorskip("torch")
    from modelmill.tasks.networks.mel_spectrogram import LogMel

    assert torch.equal(
        LogMel(8000, 40)(torch.zeros(1, 4000)), torch.ones(1, 40, 51)
    )


# ---- classes


def context(task, tmp_path, **changed):
    how = task.prepare(
        [tones("a"), tones("b")], task.PREPROCESSING(**changed), tmp_path
    )
    return Context(preprocessing=how, labels=LABELS, folder=tmp_path)


def test_the_middle_is_listened_to(tmp_path):
    known = context(audio_classification.TASK, tmp_path, seconds=0.1)
    time = np.arange(8000) / 8000
    steps = audio_classification.TASK.decode(
        sound(time, subtype="FLOAT"), known
    )["audio"]
    assert len(steps) == 800
    assert steps.mean() == pytest.approx(0.5, abs=1e-3)
    short = audio_classification.TASK.decode(
        sound(np.full(301, 0.5), subtype="FLOAT"), known
    )["audio"]
    assert len(short) == 800
    assert np.flatnonzero(short).tolist() == list(
        range(short.nonzero()[0][0], short.nonzero()[0][0] + 301)
    )


def test_a_recording_moved_in_time_keeps_its_length_and_label():
    torch = pytest.importorskip("torch")
    from modelmill.tasks.audio_classification.recipes.cnn import Changes
    from modelmill.tasks.audio_classification.training import change

    torch.manual_seed(0)
    batch = {"audio": torch.ones(64, 100), "label": torch.arange(64)}
    found = change(batch, Changes(shift=0.5, noise=0.0), None)
    assert torch.equal(found["label"], batch["label"])
    kept = found["audio"].sum(1)
    assert kept.min() >= 50
    assert kept.unique().numel() > 20


# ---- what is said


def certain(text):
    """Scores that say a text, `_` for nothing, one place a letter."""
    rows = np.full((len(text), 3), -20.0, np.float32)
    for place, letter in enumerate(text):
        rows[place, "_ab".index(letter)] = 0
    return rows


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ("", ""),
        ("___", ""),
        ("aab", "ab"),
        ("a_ab_", "aab"),
        ("bbb", "b"),
        ("_b__b", "bb"),
    ],
)
def test_repetitions_and_nothing_are_left_out(places, says):
    for heard in (
        greedy(certain(places), LABELS),
        beam(certain(places), LABELS, 4),
    ):
        assert "".join(one.text for one in heard) == says


def test_a_beam_finds_the_text_that_all_ways_together_make_likeliest():
    scores = np.log(np.array([[0.4, 0.3, 0.3], [0.4, 0.6, 1e-9]], np.float32))
    assert "".join(one.text for one in greedy(scores, LABELS)) == "a"
    unsure = np.log(np.array([[0.6, 0.4, 1e-9], [0.6, 0.4, 1e-9]], np.float32))
    assert (
        greedy(unsure, LABELS) == []
    )  # nothing, nothing: 0.36; a in some way: 0.64
    assert "".join(one.text for one in beam(unsure, LABELS, 4)) == "a"


def test_the_padding_of_a_batch_changes_nothing_before_it():
    torch = pytest.importorskip("torch")
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    from modelmill.tasks.automatic_speech_recognition.network import (
        over_lengths,
    )

    gru = torch.nn.GRU(7, 5, 2, batch_first=True, bidirectional=True).double()
    x = torch.randn(4, 9, 7, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([9, 3, 1, 6])
    packed = pack_padded_sequence(
        x, lengths, batch_first=True, enforce_sorted=False
    )
    wanted, _ = pad_packed_sequence(
        gru(packed)[0], batch_first=True, total_length=9
    )
    (gradient,) = torch.autograd.grad(wanted.square().sum(), x)

    within = (torch.arange(9) < lengths[:, None]).unsqueeze(2)
    outputs = over_lengths(gru, x, lengths) * within

    torch.testing.assert_close(outputs, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(outputs.square().sum(), x)[0], gradient
    )


def test_words_stand_between_blanks():
    heard = [
        TimedText("a", 1, 2),
        TimedText("b", 3, 4),
        TimedText(" ", 5, 6),
        TimedText("a", 7, 9),
    ]
    assert words(heard) == [TimedText("ab", 1, 4), TimedText("a", 7, 9)]


@given(
    st.text("ab", max_size=12),
    st.text("ab", max_size=12),
    st.text("ab", max_size=12),
)
def test_the_distance_of_texts_is_one(one, other, third):
    assert distance(one, one) == 0
    assert (
        distance(one, other)
        == distance(other, one)
        >= abs(len(one) - len(other))
    )
    assert distance(one, third) <= distance(one, other) + distance(other, third)


def test_error_rates_by_hand():
    assert error_rate(["kitten"], ["sitting"]) == pytest.approx(3 / 6)
    assert error_rate(
        [["a", "b"], ["c"]], [["a"], ["c", "d"]]
    ) == pytest.approx(2 / 3)
    assert error_rate([""], ["ab"]) == 2


def test_long_recordings_are_transcribed_in_windows_without_a_seam(tmp_path):
    known = context(speech.TASK, tmp_path, window=2.0, overlap=0.5)
    step = known.preprocessing.step
    seen = []

    def run(arrays):
        audio = arrays["audio"]
        seen.append(audio.shape[1])
        places = audio.shape[1] // step + 1
        return {
            "scores": np.stack(
                [
                    audio[
                        :,
                        np.minimum(
                            np.arange(places) * step, audio.shape[1] - 1
                        ),
                    ]
                ]
                * 3,
                2,
            )
        }

    audio = np.arange(9 * 8000, dtype=np.float32)[None]
    found = speech.TASK.infer({"": run}, {"audio": audio}, known)["scores"][
        0, :, 0
    ]
    assert max(seen) <= 2 * 8000
    assert np.array_equal(found[:-1], audio[0, ::step][: len(found) - 1])
    assert len(found) in (450, 451)


def test_answers_say_when(tmp_path):
    known = context(speech.TASK, tmp_path)
    arrays = {"scores": certain("_aa_b_"), speech.SECONDS: np.float32(0.11)}
    assert speech.TASK.encode(arrays, known, speech.TASK.parameters({})) == {
        "text": "ab"
    }
    answer = speech.TASK.encode(
        arrays,
        known,
        speech.TASK.parameters({"return_timestamps": "char", "num_beams": 1}),
    )
    assert answer["chunks"] == [
        {"text": "a", "timestamp": [0.02, 0.06]},
        {"text": "b", "timestamp": [0.08, 0.1]},
    ]
    assert answer["duration"] == pytest.approx(0.11)
    for parameters in (
        {"num_beams": 0},
        {"num_beams": True},
        {"return_timestamps": "line"},
        {"beams": 2},
    ):
        with pytest.raises(InvalidInput):
            speech.TASK.encode(
                arrays, known, speech.TASK.parameters(parameters)
            )


def test_a_recording_that_is_too_long_teaches_nothing(tmp_path):
    known = context(speech.TASK, tmp_path, seconds=0.3)
    short, long = (
        speech.TASK.sample(Item("x", "", tones(word), target=word), known)[1]
        for word in ("a", "abab")
    )
    assert (int(short["count"]), int(long["count"])) == (1, 0)


def test_transcriptions_are_measured_and_shown(tmp_path):
    measured = Measured(
        outputs=[{"text": "a b"}, {"text": ""}],
        truths=["a b", "b"],
        labels=LABELS,
        show=lambda rows: [],
        context=context(speech.TASK, tmp_path),
    )
    found = speech.metrics(measured)
    assert found.metrics == {
        "wer": pytest.approx(1 / 3),
        "cer": pytest.approx(1 / 4),
        "exact": 0.5,
        "items": 2,
    }
    assert found.pictures["transcripts.png"].startswith(b"\x89PNG")


def test_recordings_that_are_all_too_long_to_learn_from_are_refused(tmp_path):
    how = speech.Preprocessing(max_seconds=0.2)
    with pytest.raises(
        InvalidInput,
        match=r"all recordings are longer than the 0.2 s .* set max_seconds",
    ):
        speech.TASK.prepare([sound(wave())], how, tmp_path)


def test_too_many_beams_over_a_long_recording_are_refused(tmp_path):
    known = context(speech.TASK, tmp_path)
    with pytest.raises(
        InvalidInput,
        match="num_beams=100 is too many for a recording of this length; at most 10 ",
    ):
        speech.TASK.encode(
            {"scores": np.zeros((20_000, 3), np.float32)},
            known,
            speech.TASK.parameters({"num_beams": 100}),
        )
