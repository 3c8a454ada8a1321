"""Models from Python, parts of recordings, and probabilities that can be trusted."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch
from corpus import CLASSES, make_corpus
from random_hubert import write_checkpoint, write_random_hubert
from scripts import run
from training import TINY

import emohubert
from emohubert.core.errors import InputError
from emohubert.corpus import audio
from emohubert.evaluation import temperature
from emohubert.evaluation.predictions import from_probabilities, read_predictions, write_predictions
from emohubert.evaluation.segments import Segments, VoiceActivity, read_segments
from emohubert.models.from_pretrained import load_encoder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, seconds=(1.0, 2.0), train=2, valid=2, test=3)
    encoder = write_random_hubert(folder / "hubert.pt", **TINY)
    head = torch.randn(4, 48, generator=torch.Generator().manual_seed(0)), torch.zeros(4)
    (folder / "run").mkdir()
    write_checkpoint(folder / "run" / "checkpoint_best.pt", encoder, classes=CLASSES, head=head)
    write_checkpoint(folder / "dimensions.pt", encoder, dimensions=["arousal", "valence"])
    return folder


@pytest.fixture(scope="module")
def recogniser(corpus):
    return emohubert.load(corpus / "run")


def rows(capsys, *arguments):
    assert run("tools/predict.py", *arguments, "--format", "json") == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# --- from Python ------------------------------------------------------------------------------------------------------


def test_python_says_what_the_program_says(corpus, recogniser, capsys):
    printed = rows(capsys, corpus / "run" / "checkpoint_best.pt", corpus / "audio")
    found = list(recogniser.predict_files(corpus / "audio"))
    assert [(p.path, p.emotion) for p in found] == [(row["file"], row["emotion"]) for row in printed] and len(found) == 7
    np.testing.assert_allclose(
        *[[list(p.values()) for p in table] for table in ([f.probabilities for f in found], [row["probabilities"] for row in printed])],
        atol=1e-8,
    )
    for prediction in found[:3]:
        samples, rate = soundfile.read(prediction.path, dtype="float32")
        again = recogniser.predict(samples, rate)
        assert again.probabilities == prediction.probabilities and again.end == prediction.end == len(samples) / rate
        np.testing.assert_array_equal(recogniser.embed(torch.from_numpy(samples), rate), prediction.embedding)
        assert recogniser.predict(samples, rate, min_confidence=1.0).emotion is None
    assert recogniser.classes == list(CLASSES) and recogniser.dimensions == []


def test_waveforms_of_any_kind(recogniser, tmp_path):
    """Other rates, channels and integers give what the file gives."""
    rng = np.random.default_rng(0)
    samples = (rng.uniform(-0.5, 0.5, (24_000, 2)) * 32768).astype(np.int16)
    soundfile.write(tmp_path / "x.wav", samples, 22_050)
    (expected,) = recogniser.predict_files(tmp_path / "x.wav")
    for given in (samples, samples.T, samples / 32768.0, torch.from_numpy(samples)):
        found = recogniser.predict(given, 22_050)
        np.testing.assert_allclose(list(found.probabilities.values()), list(expected.probabilities.values()), atol=1e-6)


def test_encoders_and_dimensions(corpus):
    encoder = emohubert.load(corpus / "hubert.pt")
    samples = audio.read(corpus / "audio" / "test000.wav")
    frames = encoder.frames(samples, 16_000, layer=1)
    reference, _ = load_encoder(corpus / "hubert.pt").features(torch.from_numpy(samples)[None], [len(samples)], [1])
    np.testing.assert_allclose(frames, reference[1][0], atol=1e-6)
    np.testing.assert_array_equal(encoder.embed(samples, 16_000, layer=1), frames.mean(axis=0))
    assert encoder.embed(samples, 16_000).shape == (encoder.width,)
    found = emohubert.load(corpus / "dimensions.pt").predict(samples, 16_000)
    assert found.emotion is None and list(found.dimensions) == ["arousal", "valence"] and found.probabilities == {}


@pytest.mark.parametrize(
    ("waveform", "rate", "expected"),
    [
        (np.zeros(399, np.float32), 16_000, "under one frame"),
        (np.zeros((2, 2, 800)), 16_000, "an array"),
        (np.zeros(800, complex), 16_000, "complex"),
        (np.full(800, np.nan), 16_000, "not finite"),
        (np.zeros(800), 3_000_000_000, "sample_rate"),
        (np.zeros(800), 16_000.5, "sample_rate"),
    ],
)
def test_bad_waveforms(recogniser, waveform, rate, expected):
    with pytest.raises(InputError, match=expected):
        recogniser.predict(waveform, rate)


def test_what_is_no_model(tmp_path):
    for path, expected in ((tmp_path, "neither config.json"), (tmp_path / "none.pt", "no such")):
        with pytest.raises(InputError, match=expected):
            emohubert.load(path)


# --- parts ------------------------------------------------------------------------------------------------------------


def test_segments_of_tables_and_rttm(corpus, recogniser, tmp_path, capsys):
    checkpoint, wav = corpus / "run" / "checkpoint_best.pt", corpus / "audio" / "test000.wav"
    (tmp_path / "s.csv").write_text(f"path,start,end,speaker\n{wav},0.1,0.6,anna\n{wav},0.5,0.9,ben\n")
    (tmp_path / "s.rttm").write_text(
        ";; x\nSPEAKER test000 1 0.1 0.5 <NA> <NA> anna <NA> <NA>\nSPEAKER test000 1 0.5 0.4 <NA> <NA> ben <NA> <NA>\n"
    )
    table = rows(capsys, checkpoint, "--segments", tmp_path / "s.csv")
    assert [(row["start"], row["end"]) for row in table] == [(0.1, 0.6), (0.5, 0.9)]
    assert rows(capsys, checkpoint, corpus / "audio", "--segments", tmp_path / "s.rttm") == table
    samples = audio.read(wav)
    for row in table:
        part = samples[round(row["start"] * 16_000) : round(row["end"] * 16_000)]
        np.testing.assert_allclose(
            list(row["probabilities"].values()), list(recogniser.predict(part, 16_000).probabilities.values()), atol=1e-7
        )
    (tmp_path / "list.csv").write_text(f"path\n{wav}\n")
    (row,) = rows(capsys, checkpoint, "--segments", tmp_path / "list.csv")
    assert row["emotion"] == recogniser.predict(samples, 16_000).emotion and row["end"] == round(len(samples) / 16_000, 6)
    assert read_segments(tmp_path / "s.csv")[str(wav)].speakers == ["anna", "ben"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("s.csv", "path,start\nx.wav,1\n", "start and end together"),
        ("s.csv", "audio\nx.wav\n", "needed is path"),
        ("s.csv", "path,start,end\nx.wav,1,inf\n", ":2: “inf”"),
        ("s.csv", "path,start,end\nx.wav,2,1\n", ":2: from 2 to 1 s"),
        ("s.csv", "path,start,end\n{wav},0,99\n", "a segment ends at 99.000 s"),
        ("s.rttm", "SPEAKER other 1 0 1 <NA> <NA> a <NA> <NA>\n", "no audio file is named other"),
        ("s.rttm", "SPEAKER test000 1 0\n", ":1: 4 fields"),
        ("s.rttm", "\n", "holds no segment"),
    ],
)
def test_segments_that_make_no_sense(corpus, tmp_path, capsys, name, text, expected):
    wav = corpus / "audio" / "test000.wav"
    (tmp_path / name).write_text(text.format(wav=wav))
    paths = [] if name == "s.csv" else [wav]
    assert run("tools/predict.py", corpus / "run" / "checkpoint_best.pt", *paths, "--segments", tmp_path / name) == 2
    assert expected in capsys.readouterr().err


def test_what_is_left_of_a_segment_has_a_frame():
    """Otherwise it would vanish, and with it all files after it."""
    np.testing.assert_array_equal(Segments([[0, 800], [15_600, 16_300]]).of("x.wav", 16_000), [[0, 800], [15_600, 16_000]])
    with pytest.raises(InputError, match=r"x.wav: a segment begins at 0.994 s, the recording ends at 1.000 s"):
        Segments([[0, 800], [15_900, 16_300]]).of("x.wav", 16_000)


def test_two_recordings_of_one_name(tmp_path):
    (tmp_path / "s.rttm").write_text("SPEAKER x 1 0 1 <NA> <NA> a <NA> <NA>\n")
    with pytest.raises(InputError, match=r"s.rttm:1: a/x.wav and b/x.wav are both named x"):
        read_segments(tmp_path / "s.rttm", ["a/x.wav", "b/x.wav"])


def test_standard_input(corpus, recogniser, capsys, monkeypatch):
    wav = corpus / "audio" / "test000.wav"

    class Input:
        buffer = io.BytesIO(wav.read_bytes())

    monkeypatch.setattr(sys, "stdin", Input)
    (row,) = rows(capsys, corpus / "run" / "checkpoint_best.pt", "-")
    assert row["file"] == "-" and row["emotion"] == next(recogniser.predict_files(wav)).emotion


def test_speech_is_found_between_silences(emodb, tmp_path):
    pytest.importorskip("silero_vad")
    speech, silence = audio.read(sorted(emodb.rglob("*.flac"))[0]), np.zeros(32_000, np.float32)
    joined = np.concatenate([silence, speech, silence, speech, silence])
    soundfile.write(tmp_path / "x.wav", joined, 16_000)
    spans = VoiceActivity(60.0)(tmp_path / "x.wav", len(joined))
    expected = [(32_000, 32_000 + len(speech)), (64_000 + len(speech), 64_000 + 2 * len(speech))]
    assert spans[0, 0] >= 32_000 - 8_000 and abs(spans[-1, 1] - expected[1][1]) < 8_000
    assert not any(start < 32_000 + len(speech) + 16_000 < end for start, end in spans)  # the middle of the silence
    soundfile.write(tmp_path / "silence.wav", silence, 16_000)
    with pytest.raises(InputError, match="no speech"):
        VoiceActivity(60.0)(tmp_path / "silence.wav", len(silence))


# --- probabilities ----------------------------------------------------------------------------------------------------


def drawn(n, sharpness, seed):
    """(probabilities that are too certain by a factor, references drawn from the true ones)."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 1.5, (n, 4)))
    reference = np.array([rng.choice(4, p=p) for p in logits.softmax(1).numpy()])
    return (logits * sharpness).softmax(1).numpy(), reference


def test_the_temperature_is_found_that_the_logits_were_multiplied_by():
    p, reference = drawn(20_000, 3.0, 0)
    t = temperature.fit((p, reference))
    assert t == pytest.approx(3.0, rel=0.05)
    logits, labels = torch.from_numpy(p).log(), torch.from_numpy(reference)
    losses = {s: float(torch.nn.functional.cross_entropy(logits / s, labels)) for s in (t * 0.97, t, t * 1.03)}
    assert min(losses, key=losses.get) == t
    assert losses[t] == pytest.approx(temperature.negative_log_likelihood(temperature.scaled(p, t), reference), rel=1e-6)
    np.testing.assert_allclose(temperature.scaled(p, 2.0), (logits / 2).softmax(1), atol=1e-5)
    assert temperature.quality(temperature.scaled(p, t), reference)["ece"] < 0.02 < temperature.quality(p, reference)["ece"]


def test_calibrating_by_a_temperature(tmp_path, capsys):
    for name, seed in (("valid", 1), ("test", 2)):
        p, reference = drawn(400, 3.0, seed)
        emotions = [CLASSES[i] for i in reference]
        predictions = from_probabilities([f"{name}{i}" for i in range(400)], [f"{name}{i % 5}" for i in range(400)], emotions, CLASSES, p)
        write_predictions(tmp_path / f"{name}.tsv", predictions)
    arguments = ("tools/calibrate.py", "--temperature", tmp_path / "valid.tsv", "--predictions", tmp_path / "test.tsv", tmp_path / "out")
    assert run(*arguments, "--bootstrap", "10") == 0 and "temperature" in capsys.readouterr().out
    before, after = read_predictions(tmp_path / "test.tsv"), read_predictions(tmp_path / "out" / "predictions.tsv")
    assert before.predicted == after.predicted
    t = temperature.read(tmp_path / "out" / "temperature.json")
    np.testing.assert_allclose(after.probabilities, temperature.scaled(before.probabilities, t), atol=1e-9)
    scores = [json.loads((tmp_path / "out" / name).read_text()) for name in ("metrics_before.json", "metrics.json")]
    assert scores[0]["UA"] == scores[1]["UA"] and scores[1]["ece"] < scores[0]["ece"] / 2
    (tmp_path / "metrics.json").write_text('{"setting": "inductive (5 speakers)"}')
    assert run(*arguments, "--bootstrap", "10") == 0, "made again with what is said of the predictions now"
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["setting"] == "inductive (5 speakers)"
    assert run(*arguments, "--match", "prior") == 2 and "--temperature and --match: give one of them" in capsys.readouterr().err
    same = ("tools/calibrate.py", "--temperature", tmp_path / "test.tsv", "--predictions", tmp_path / "test.tsv", tmp_path / "same")
    assert run(*same) == 2 and "fit on validation speakers" in capsys.readouterr().err


def test_a_temperature_beside_the_checkpoint(corpus, tmp_path, capsys):
    """It changes probabilities, also where they were written before it was there, and no dimensions."""
    for path in (corpus / "run" / "checkpoint_best.pt", corpus / "dimensions.pt"):
        (tmp_path / "temperature.json").unlink(missing_ok=True)
        model = shutil.copy(path, tmp_path)
        found = []
        for _ in range(2):
            assert run("tools/predict.py", model, corpus / "audio", "--format", "json", "--output", tmp_path / f"{path.stem}.json") == 0
            found.append([json.loads(line) for line in (tmp_path / f"{path.stem}.json").read_text().splitlines()])
            (tmp_path / "temperature.json").write_text('{"temperature": 3.0}')
        key = "probabilities" if path.stem != "dimensions" else "dimensions"
        before, after = (np.array([list(row[key].values()) for row in of]) for of in found)
        np.testing.assert_allclose(after, temperature.scaled(before, 3.0) if key == "probabilities" else before, atol=1e-6)


def test_the_temperature_of_normalised_speakers(corpus, recogniser, monkeypatch):
    """Is for those whose audio normalises, not for the unknown speaker's."""
    monkeypatch.setattr(recogniser, "_temperatures", [2.0, 5.0])
    p = np.array([0.7, 0.1, 0.1, 0.1])
    for speaker, scale in ((None, 2.0), ("<unk>", 2.0), ("anna", 5.0)):
        found = recogniser._prediction(p, np.zeros(1), 0.0, speaker=speaker)
        np.testing.assert_allclose(list(found.probabilities.values()), temperature.scaled(p, scale))


def test_abstention(corpus, capsys):
    checkpoint = corpus / "run" / "checkpoint_best.pt"
    plain = rows(capsys, checkpoint, corpus / "audio")
    flat = rows(capsys, checkpoint, corpus / "audio", "--temperature", "40", "--min-confidence", "0.4")
    for before, after in zip(plain, flat, strict=True):
        p = np.array(list(before["probabilities"].values())) ** (1 / 40)
        np.testing.assert_allclose(list(after["probabilities"].values()), p / p.sum(), atol=1e-6)
        assert after["emotion"] == (before["emotion"] if p.max() / p.sum() >= 0.4 else "-")
    assert any(row["emotion"] == "-" for row in flat)
    assert run("tools/predict.py", corpus / "dimensions.pt", corpus / "audio", "--min-confidence", "0.5") == 2
    assert "no probabilities" in capsys.readouterr().err


def test_a_temperature_that_comes_to_stand_beside_the_checkpoint(corpus, tmp_path, capsys):
    """It is used from then on, also where --output was whole before; not for dimensions."""
    for name in ("run/checkpoint_best.pt", "dimensions.pt"):
        shutil.copy(corpus / name, tmp_path)
    wav, csv = corpus / "audio" / "test000.wav", tmp_path / "p.csv"
    before, found = rows(capsys, tmp_path / "dimensions.pt", wav), []
    for _ in range(2):
        assert run("tools/predict.py", tmp_path / "checkpoint_best.pt", wav, "--output", csv, "--format", "csv") == 0
        found.append(np.array(csv.read_text().splitlines()[1].split(",")[2:], dtype=float))
        (tmp_path / "temperature.json").write_text('{"temperature": 3.0}')
    np.testing.assert_allclose(found[1], temperature.scaled(found[0], 3.0), atol=1e-6)
    assert rows(capsys, tmp_path / "dimensions.pt", wav) == before


def test_nobody_in_particular_is_not_normalised(corpus, tmp_path, capsys):
    """Parts of the unknown speaker are predicted, and their probabilities scaled, as without --speaker."""
    wav = corpus / "audio" / "test000.wav"
    (tmp_path / "s.csv").write_text(f"path,speaker\n{wav},<unk>\n{wav},anna\n")
    plain, (unknown, anna) = rows(capsys, wav), rows(capsys, "--segments", tmp_path / "s.csv", "--speaker", "segments")
    assert unknown["probabilities"] == plain[0]["probabilities"] != anna["probabilities"]
    (found,) = emohubert.load().predict_files(wav, speaker=lambda path: "<unk>")
    np.testing.assert_allclose(list(found.probabilities.values()), list(unknown["probabilities"].values()), atol=1e-7)


# --- models of transformers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_a_classifier_of_transformers_says_what_it_says_there(tmp_path, weighted):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "conv_dim": [32] * 7}
    labels = dict(enumerate(CLASSES))
    torch.manual_seed(0)
    config = transformers.HubertConfig(**sizes, num_labels=4, id2label=labels, use_weighted_layer_sum=weighted, classifier_proj_size=24)
    model = transformers.HubertForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight, std=20)
    if weighted:
        model.layer_weights.data = torch.tensor([-1e4, 0.3, -0.5])
    model.save_pretrained(tmp_path)
    samples = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(samples)[None]).logits.softmax(1)[0]
    found = emohubert.load(tmp_path).predict(samples, 16_000)
    np.testing.assert_allclose(list(found.probabilities.values()), expected, atol=1e-5)
    assert list(found.probabilities) == list(CLASSES) and expected.max() > 0.3
    soundfile.write(tmp_path / "x.wav", samples, 16_000, subtype="FLOAT")
    assert run("tools/predict.py", tmp_path, tmp_path / "x.wav") == 0
    onnxruntime = pytest.importorskip("onnxruntime")
    assert run("tools/export_onnx.py", tmp_path, tmp_path / "x.onnx") == 0
    given = {"signal": samples[None], "lengths": np.array([len(samples)])}
    (logits,) = onnxruntime.InferenceSession(tmp_path / "x.onnx").run(["logits"], given)
    np.testing.assert_allclose(torch.from_numpy(logits[0]).softmax(0), expected, atol=1e-5)
    if weighted:
        model.layer_weights.data[0] = 0
        model.save_pretrained(tmp_path)
        with pytest.raises(InputError, match="the encoder's input in it"):
            emohubert.load(tmp_path)


def test_an_encoder_of_transformers_predicts_nothing(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    config = transformers.HubertConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=96, conv_dim=[32] * 7)
    transformers.HubertModel(config).save_pretrained(tmp_path)
    assert emohubert.load(tmp_path).embed(np.zeros(800, np.float32), 16_000).shape == (48,)
    assert run("tools/predict.py", tmp_path, "x.wav") == 2 and "no projector and classifier" in capsys.readouterr().err
