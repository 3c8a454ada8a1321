"""Frame arithmetic against real convolutions; reading against soundfile and scipy; damaged files of every kind."""

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly
from torch.nn import functional as F

from emohubert.core.errors import InputError, WriteError
from emohubert.corpus import audio, build
from emohubert.corpus.manifest import Utterance

HUBERT_LAYERS = [(10, 5)] + [(3, 2)] * 4 + [(2, 2)] * 2
RATES = (8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000)


def noise(n, channels=1, seed=0):
    wave = np.random.default_rng(seed).uniform(-0.9, 0.9, (n, channels)).astype(np.float32)
    return wave[:, 0] if channels == 1 else wave


def read_error(path, **options):
    with pytest.raises(InputError) as caught:
        audio.read(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------------------------------------------- frames


def conv_frames(n):
    """Frames that a real stack of HuBERT's convolutions gives for n samples."""
    x = torch.zeros(1, 1, n)
    for kernel, stride in HUBERT_LAYERS:
        if x.shape[-1] < kernel:
            return 0
        x = F.conv1d(x, torch.ones(1, 1, kernel), stride=stride)
    return x.shape[-1]


def test_frames_are_those_of_the_convolutions():
    numbers = range(5001)
    expected = [conv_frames(n) for n in numbers]
    assert [audio.n_frames(n) for n in numbers] == expected
    np.testing.assert_array_equal(audio.n_frames(np.arange(5001)), expected)
    assert torch.equal(audio.n_frames(torch.arange(5001)), torch.tensor(expected))
    assert expected[399:401] == [0, 1]


@pytest.mark.parametrize("n", [16_000, 79_999, 250_000, 1_600_000])
def test_frames_of_long_audio(n):
    assert audio.n_frames(n) == audio.n_frames(np.int64(n)) == conv_frames(n)


@pytest.mark.parametrize("n", [400, 559, 560, 561, 719, 720, 4321])
def test_frames_at_the_hop_of_mfccs(n):
    features = torchaudio.compliance.kaldi.mfcc(torch.randn(1, n), sample_frequency=16_000, use_energy=False)
    assert audio.n_frames(n, hop=160) == len(features)


# ---------------------------------------------------------------------------------------------------------- reading


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """(rate, channels) → path of a second and a half of noise."""
    folder = tmp_path_factory.mktemp("recordings")
    paths = {}
    for rate in RATES:
        for channels in (1, 2):
            path = folder / f"{rate}-{channels}.wav"
            soundfile.write(path, noise(3 * rate // 2 + 7, channels, rate), rate, subtype="FLOAT")
            paths[rate, channels] = path
    return paths


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(RATES), st.sampled_from((1, 2)), st.floats(0, 1), st.floats(0, 1))
def test_a_part_equals_the_slice_of_the_whole_resampled_by_scipy(recordings, rate, channels, a, b):
    path = recordings[rate, channels]
    samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    whole = resample_poly(samples.mean(axis=1), 16_000, rate)
    assert audio.probe(path) == len(whole)
    start, stop = sorted(int(x * len(whole)) for x in (a, b))
    part = audio.read(path, start, stop, n_samples=len(whole))
    assert part.dtype == np.float32
    assert part.shape == (stop - start,)
    np.testing.assert_allclose(part, whole[start:stop], atol=2e-6)
    np.testing.assert_array_equal(part, audio.read(path)[start:stop])


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_stays_where_it_was(tmp_path, rate):
    """Neither pitch, nor time, nor level moves when a file is resampled."""
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate), rate, subtype="FLOAT")
    heard = audio.read(tmp_path / "tone.wav")
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(heard[500:-500], expected[500:-500], atol=2e-3)


def test_a_stop_beyond_the_end_reads_to_the_end(recordings):
    path = recordings[16_000, 1]
    np.testing.assert_array_equal(audio.read(path, 1000, 10**9), audio.read(path)[1000:])


@pytest.mark.parametrize(("start", "stop"), [(-1, 10), (10, 5), (10**6, None), (10**6, 10**6 + 5)])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_part_that_is_not_there(recordings, rate, start, stop):
    assert "no part" in read_error(recordings[rate, 1], start=start, stop=stop)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_channels_are_averaged(tmp_path, channels):
    wave = noise(2000, channels)
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    np.testing.assert_allclose(audio.read(tmp_path / "a.wav"), wave.reshape(2000, -1).mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_sample_formats(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", noise(1000), 16_000, subtype=subtype)
    samples, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    np.testing.assert_array_equal(audio.read(tmp_path / "a.wav"), samples)


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize(("ending", "options"), [
    ("flac", {}),
    ("ogg", {}),
    ("opus", {"format": "OGG", "subtype": "OPUS"}),
    ("mp3", {"bitrate_mode": "VARIABLE", "compression_level": 0.5}),
])  # fmt: skip
def test_parts_of_compressed_files(tmp_path, ending, options, rate):
    """Seeking is exact in every format: MP3 needs its history, which changes of level bring out."""
    if ending.upper() not in {**soundfile.available_formats(), "OPUS": ""}:
        pytest.skip(f"this libsndfile cannot write {ending}")
    rng = np.random.default_rng(0)
    wave = np.concatenate([level * rng.standard_normal(rate) for level in rng.uniform(0, 0.3, 20)])
    soundfile.write(tmp_path / f"a.{ending}", wave, rate, **options)
    path = tmp_path / f"a.{ending}"
    whole = audio.read(path)
    assert len(whole) == audio.probe(path) == 320_000
    for start in rng.integers(0, 310_000, 25):
        np.testing.assert_array_equal(audio.read(path, int(start), int(start) + 5000), whole[start : start + 5000])


def test_an_empty_recording_has_no_samples(tmp_path):
    for rate in (8_000, 16_000):
        soundfile.write(tmp_path / "a.wav", np.zeros(0), rate)
        assert audio.probe(tmp_path / "a.wav") == 0
        assert audio.read(tmp_path / "a.wav").shape == (0,)


def test_real_speech(emodb, ravdess):
    for path in [*sorted(emodb.glob("*.flac"))[:20], *sorted(ravdess.rglob("*.flac"))[:10]]:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        whole = samples.mean(axis=1) if rate == 16_000 else resample_poly(samples.mean(axis=1), 16_000, rate)
        assert audio.probe(path) == len(whole)
        np.testing.assert_allclose(audio.read(path), whole, atol=2e-6)


# ------------------------------------------------------------------------------------------------- damaged and odd files


def wav(data, size=None, before=b"", after=b"", rate=16_000):
    """A 16 bit mono WAV by hand: `size` is what the data chunk claims; other chunks before and after it."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    body = b"WAVE" + form + before + struct.pack("<4sI", b"data", len(data) if size is None else size) + data + after
    return struct.pack("<4sI", b"RIFF", min(len(body), 2**32 - 1)) + body


def chunk(name, content):
    return struct.pack("<4sI", name, len(content)) + content + b"\0" * (len(content) % 2)


PCM = (noise(3000) * 32_767).astype("<i2")


@pytest.mark.parametrize(("before", "after"), [
    (chunk(b"LIST", b"INFOISFT\x04\0\0\0abc\0"), b""),
    (chunk(b"junk", b"odd"), b""),
    (chunk(b"junk", b"") * 3 + chunk(b"bext", b"x" * 601), chunk(b"LIST", b"INFO")),
    (b"", chunk(b"id3 ", b"x" * 77)),
])  # fmt: skip
def test_chunks_around_the_data(tmp_path, before, after):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(PCM.tobytes(), before=before, after=after))
    np.testing.assert_array_equal(audio.read(path), PCM.astype(np.float32) / 32_768)
    path.write_bytes(wav(PCM.tobytes()[:-1000], size=6000, before=before))
    assert "truncated WAV, 5000 of 6000 bytes" in read_error(path)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0xFFFFFFFF - 36, 0x80000000, 0x7FFFF000, 0x7FFFEFFE])
def test_a_stream_of_unknown_length_is_not_truncated(tmp_path, size):
    """What ffmpeg (2³² − 1), arecord (2³¹) and sox (2³¹ − 4096, in whole blocks) write into a pipe."""
    (tmp_path / "a.wav").write_bytes(wav(PCM.tobytes(), size=size))
    assert audio.probe(tmp_path / "a.wav") == len(PCM)
    np.testing.assert_array_equal(audio.read(tmp_path / "a.wav"), PCM.astype(np.float32) / 32_768)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6043), st.sampled_from([16_000, 44_100]))
def test_a_wav_cut_anywhere_is_refused(tmp_path_factory, kept, rate):
    path = tmp_path_factory.getbasetemp() / "cut.wav"
    path.write_bytes(wav(PCM.tobytes(), rate=rate)[:kept])
    read_error(path)
    with pytest.raises(InputError):
        audio.probe(path)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.sampled_from([16_000, 44_100]))
def test_a_flac_cut_anywhere_is_refused(tmp_path_factory, share, rate):
    path = tmp_path_factory.getbasetemp() / "cut.flac"
    soundfile.write(path, noise(30_000), rate)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    read_error(path)
    with pytest.raises(InputError):
        audio.probe(path)


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("empty.wav", b"", "empty"),
    ("text.wav", b"hello, I am not audio\n" * 50, "cannot be read as audio"),
    ("page.flac", b"<html>404 not found</html>", "cannot be read as audio"),
    ("zeros.wav", bytes(5000), "cannot be read as audio"),
    ("riff.wav", b"RIFF\xff\xff\xff\xffWAVE", "cannot be read as audio"),
    ("header.wav", wav(b"")[:40], "cannot be read as audio"),
    ("header.wav", wav(b"")[:42], "truncated WAV, its audio is not there"),
    ("samples.raw", bytes(1000), "sample rate"),
])  # fmt: skip
def test_what_is_not_audio(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert expected in read_error(tmp_path / name)
    with pytest.raises(InputError, match=expected):
        audio.probe(tmp_path / name)


def test_missing_files_and_folders(tmp_path):
    assert "no such audio file" in read_error(tmp_path / "a.wav")
    assert "no such audio file" in read_error(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_file_name_that_is_not_utf8(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(500), 16_000)
    (tmp_path / "a.wav").rename(tmp_path / "M\udcfcller.wav")
    assert "not UTF-8" in read_error(tmp_path / "M\udcfcller.wav")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_samples_that_are_not_numbers(tmp_path, value, rate):
    wave = noise(1000)
    wave[700] = value
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype="FLOAT")
    assert "not finite" in read_error(tmp_path / "a.wav")


@pytest.mark.parametrize("rate", [16_000, 8_000])
def test_another_length_than_the_manifest_says(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", noise(rate), rate)
    message = read_error(tmp_path / "a.wav", n_samples=15_999)
    assert "16000 samples" in message
    assert "15999" in message
    assert len(audio.read(tmp_path / "a.wav", n_samples=16_000)) == 16_000


# ------------------------------------------------------------------------------------------------------- normalisation


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1e-4, 0), (0.01, 0.9), (1, -0.3)])
def test_normalisation_is_layer_norm(scale, offset):
    wave = (scale * noise(20_000) + offset).astype(np.float32)
    expected = F.layer_norm(torch.from_numpy(wave.astype(np.float64)), (20_000,)).numpy()
    normalised = audio.normalise(wave)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised, expected, atol=1e-5)


def test_normalisation_of_silence():
    np.testing.assert_array_equal(audio.normalise(np.full(1000, 0.25, dtype=np.float32)), 0)


FUNCTIONS = """
import sys
import soundfile

class Recording:
    def __init__(self, library):
        self.library, self.names = library, set()

    def __getattr__(self, name):
        self.names.add(name)
        return getattr(self.library, name)

soundfile._snd = library = Recording(soundfile._snd)
sys.path.insert(0, "user_dir")
from emohubert.corpus import audio
from emohubert.core.errors import InputError

before = set(library.names)
library.names.clear()
for path in sys.argv[1:]:
    try:
        audio.probe(path)
        audio.read(path, 100, 900)
    except InputError:
        pass
assert {"sf_open", "sf_open_virtual", "sf_seek", "sf_close"} < library.names, library.names
assert library.names <= before, library.names - before
"""


def test_threads_find_every_function_of_libsndfile_looked_up(tmp_path):
    files = [tmp_path / name for name in ("a.wav", "b.flac", "c.mp3", "broken.wav")]
    for path in files[:3]:
        soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 16_000), 16_000)
    files[3].write_bytes(b"no audio")
    (tmp_path / "d.tar").write_bytes(files[0].read_bytes())
    files.append(f"{tmp_path}/d.tar:0:{files[0].stat().st_size}")
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", FUNCTIONS, *map(str, files)], cwd=root, check=True)


# --- recordings that are not all there --------------------------------------------------------------------------------

CONTAINERS = {
    "wav": ("WAV", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "sph": ("NIST", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def chirp(seconds=3.0):
    t = np.arange(round(seconds * 16_000)) / 16_000
    return 0.3 * np.sin(2 * np.pi * (200 + 300 * t) * t) + 0.01 * np.random.default_rng(0).standard_normal(len(t))


def encoded(path, wave):
    kind, subtype = CONTAINERS[path.suffix[1:]]
    soundfile.write(path, wave, 16_000, format=kind, subtype=subtype)
    return path


@pytest.mark.parametrize("ending", CONTAINERS)
def test_whole_files_pass_cut_ones_do_not_and_parts_are_slices(tmp_path, ending):
    path = encoded(tmp_path / f"a.{ending}", chirp())
    whole = audio.read(path)
    assert audio.probe(path) == len(whole) and audio.content_of(path)[1] == len(whole)
    for start, stop in ((1, 400), (7_001, 20_017), (30_000, 47_000)):
        np.testing.assert_array_equal(audio.read(path, start, stop), whole[start:stop])
    content = path.read_bytes()
    for share in (0.4, 0.7, 0.95):
        path.write_bytes(content[: round(share * len(content))])
        for look in (audio.probe, audio.read, audio.content_of):
            with pytest.raises(InputError, match=str(path)):
                look(path)


@pytest.mark.parametrize("ending", ["ogg", "opus", "mp3"])
def test_two_streams_in_one_file_are_not_heard_in_part(tmp_path, ending):
    path = encoded(tmp_path / f"a.{ending}", chirp())
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(InputError, match="several streams|joined"):
        audio.probe(path)


def test_headers_that_cannot_be_believed(tmp_path):
    path = encoded(tmp_path / "a.wav", chirp(1.0))
    content = bytearray(path.read_bytes())
    for rate, message in ((2_000_000_000, "2000000000 Hz"), (5, "5 Hz")):
        content[24:28] = rate.to_bytes(4, "little")
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            audio.read(path)
    content[24:28], content[40:44] = (16_000).to_bytes(4, "little"), bytes(4)
    path.write_bytes(content)
    with pytest.raises(InputError, match="0 samples, and more follow"):
        audio.probe(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(InputError, match="git lfs pull"):
        audio.probe(path)


def test_a_wav_header_that_was_not_brought_up_to_date(tmp_path):
    path = tmp_path / "a.wav"
    for size in (0, 2, 3000, 3001):
        path.write_bytes(wav(PCM.tobytes(), size=size))
        with pytest.raises(InputError, match=f"{size // 2} samples, and more follow"):
            audio.probe(path)
    path.write_bytes(wav(bytes(6000), size=0))  # silence, after a header of none
    with pytest.raises(InputError, match="0 samples, and more follow"):
        audio.probe(path)
    for after in (bytes(700), b"TAG" + bytes(125), b"\1\2", chunk(b"LIST", b"INFO")):
        path.write_bytes(wav(PCM.tobytes(), after=after))
        assert audio.probe(path) == 3000
    path.write_bytes(wav(b"", after=chunk(b"LIST", b"INFO")))
    assert audio.probe(path) == 0


def test_checksums_are_heeded(tmp_path):
    path = encoded(tmp_path / "a.ogg", chirp())
    content = path.read_bytes()
    second = content.index(b"OggS", content.index(b"OggS", 4) + 4)  # the page before holds the set-up of the codec
    for damaged in (
        content[: second + 90] + b"\0\1" + content[second + 92 :],
        content[:second] + content[content.index(b"OggS", second + 4) :],
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged at byte"):
            audio.probe(path)
    for subtype in ("PCM_S8", "PCM_16", "PCM_24"):
        soundfile.write(path := tmp_path / "a.flac", np.stack([chirp(), -chirp()], axis=1), 16_000, subtype=subtype)
        content = path.read_bytes()
        assert audio.content_of(path)[1] == 48_000
        path.write_bytes(content[:21] + bytes([content[21] | 15]) + content[22:])  # 2³⁵ samples
        for look in (audio.probe, audio.read, audio.content_of):
            with pytest.raises(InputError, match="the last is not there"):
                look(path)


def test_silence_may_be_coded_as_densely_as_can_be(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.zeros(2_000_000, dtype=np.int16), 16_000)
    assert (tmp_path / "a.flac").stat().st_size < 20_000 and len(audio.read(tmp_path / "a.flac")) == 2_000_000


@pytest.mark.parametrize("content", [bytes(9000), b"<html>not found</html>" * 30, b".snx" + bytes(range(256)) * 20])
def test_an_au_file_without_a_header_is_not_guessed(tmp_path, content):
    (tmp_path / "a.au").write_bytes(content)
    assert "has no header that tells what it is" in read_error(tmp_path / "a.au")


def test_what_cannot_be_written_is_no_damage_of_what_is_read(tmp_path):
    """A full disk must not empty a corpus with --skip-damaged."""
    (corpus := tmp_path / "corpus").mkdir()
    encoded(corpus / "a.wav", chirp())
    target = tmp_path / "16k"
    (target / "a.flac").mkdir(parents=True)  # in the way of the copy
    entries = [Utterance("a.wav", 0, "x", "-", {}, {})]
    with pytest.raises(WriteError, match="cannot be written"):
        build.resample(corpus, target, entries, build.LeftOut(), skip_damaged=True)
    assert sorted(p.name for p in target.iterdir()) == ["a.flac"]
