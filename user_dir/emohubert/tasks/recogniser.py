"""Trained models from Python: `emohubert.load("ser_small").predict(waveform, sample_rate)`."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..core.device import autocast, check_precision, choose_device, exact_arithmetic
from ..core.errors import InputError
from ..core.programs import shipped
from ..corpus import audio, containers
from ..corpus.manifest import NO_EMOTION, UNKNOWN_SPEAKER
from ..evaluation import inference, temperature
from ..evaluation.predict_files import Layout, find_files, in_order, one_by_one, predict_files, predict_parts
from ..models.from_pretrained import load_encoder
from ..models.heads import DIMENSIONS
from ..pretrained.huggingface import is_classifier
from ..pretrained.safe_files import load_state
from .trained import load_trained


@dataclass(frozen=True)
class Prediction:
    """What a model says of a recording, or of a part of it."""

    emotion: str | None  # the most probable class; None: too little confidence, or the model predicts dimensions
    probabilities: dict  # class → probability; empty for dimensions
    dimensions: dict  # such as {"arousal": 0.4}; empty for classes
    embedding: np.ndarray = field(repr=False)  # float32 (width), the pooled vector
    path: str | None = None
    start: float = 0.0  # seconds
    end: float = 0.0
    speaker: str | None = None  # by whose audio it is normalised
    others: dict = field(default_factory=dict)  # of other columns that were learned, such as {"sex": {"female": 0.9, "male": 0.1}}


def load(model="ser_small", device="auto", precision="float32"):
    """A trained model, ready to use: a Recogniser for a checkpoint of the task emotion_finetuning or a …ForSequenceClassification of
    transformers, an Encoder for everything else.

    Args:
        model: a checkpoint; the folder of a training, whose best checkpoint is taken; a Hugging Face folder; or the name of a model in the
            package, `ser_small` or `small`.
        device: auto, cpu, cuda or cuda:N.
        precision: of the encoder, float32 or bf16.

    InputError (a ValueError): there is no such model, or it cannot be read.
    """
    path, device = Path(shipped(model)), choose_device(device)
    check_precision(precision, device)
    if path.is_dir() and not (path / "config.json").is_file():
        names = [path / f"checkpoint_{which}.pt" for which in ("best", "last")]
        if not (path := next((name for name in names if name.is_file()), None)):
            raise InputError(f"{names[0].parent}: holds neither config.json nor checkpoint_best.pt; name the checkpoint")
    if not (predicts := is_classifier(path)) and path.is_file():
        predicts = ((load_state(path).get("cfg") or {}).get("task") or {}).get("_name") == "emotion_finetuning"
    return (Recogniser if predicts else Encoder)(path, device, precision)


class Encoder:
    """A pretrained encoder. `n_layers`, `width`."""

    def __init__(self, path, device, precision):
        self._encoder, self._precision = load_encoder(path, device), precision
        self.n_layers, self.width = self._encoder.n_layers, self._encoder.width

    def frames(self, waveform, sample_rate, layer=None):
        """Outputs of a layer, 1-based (default: the last): float32 (frames, width), 50 a second. `waveform` as in `as_samples`."""
        layer = self.n_layers if layer is None else layer
        self._encoder.check_layers([layer])
        samples = as_samples(waveform, sample_rate)
        source = torch.from_numpy(audio.normalise(samples) if self._encoder.normalise else samples)[None]
        with exact_arithmetic(self._encoder.device), autocast(self._encoder.device, self._precision):
            features, _ = self._encoder.features(source, [len(samples)], [layer])
        return features[layer][0].float().cpu().numpy()

    def embed(self, waveform, sample_rate, layer=None):
        """The mean of `frames` over time: float32 (width)."""
        return self.frames(waveform, sample_rate, layer).mean(axis=0)


class Recogniser:
    """A fine-tuned model. `classes`, `dimensions`, `others` (column → its values): what it predicts; some are empty. Where a temperature.json
    stands beside the checkpoint, probabilities of classes are scaled by it."""

    def __init__(self, path, device, precision):
        self._task, self._model = load_trained(path, several=True)
        self.classes, self.dimensions = list(self._task.classes), list(self._task.dimensions)
        self.others = {column: list(values) for column, values in self._task.state.categories.items()}
        self._options = {"device": device, "precision": precision}
        file = temperature.beside(path) if self.classes else None
        self._temperatures = [file and temperature.read(file, normalised) for normalised in (False, True)]

    def predict(self, waveform, sample_rate, min_confidence=0.0):
        """The Prediction of a waveform, see `as_samples`; below `min_confidence` its emotion is None. The speaker is unknown to the model,
        or passes for the average one: with more audio of a person, `predict_files(…, speaker="all")` is better."""
        samples = as_samples(waveform, sample_rate)
        given = (["the waveform"], np.array([len(samples)]), lambda index: samples)
        (outcome,) = predict_parts(self._task, self._model, *given, **self._options)
        if outcome.error is not None:
            raise outcome.error
        return self._prediction(outcome.values, outcome.embedding, min_confidence, end=len(samples) / audio.SAMPLE_RATE)

    def embed(self, waveform, sample_rate):
        """The pooled vector that the head classifies, before speaker normalisation: float32 (width)."""
        return self.predict(waveform, sample_rate).embedding

    def predict_files(self, paths, window=None, hop=None, speaker=None, min_confidence=0.0, **options):
        """Yield Predictions of audio files, and of all audio files below folders, in order.

        Args:
            window, hop: seconds of a time line; by default a file is predicted whole.
            speaker: path → name of its speaker, or "all": they are of one person. A model that was trained with speaker normalisation then
                normalises by all that it has received of the person so far.
            options: longest, parts_of, batch_seconds, workers of `evaluation.predict_files`.

        InputError: a file cannot be predicted; those before it have been yielded.
        """
        files = find_files([paths] if isinstance(paths, (str, Path)) else paths)
        found = in_order(predict_files(self._task, self._model, files, window, hop, embeddings=True, **self._options, **options))
        if speaker is not None:
            if self._model.normalisation is None:
                raise InputError("speaker: the model was trained without speaker normalisation; leave it out")
            name_of = speaker if callable(speaker) else lambda path: str(speaker)
            found = one_by_one(found, name_of, partial(inference.online, self._task, self._model))
        for file in found:
            if file.error is not None:
                raise file.error
            for part, span in enumerate(file.spans):
                start, end = (float(n) / audio.SAMPLE_RATE for n in span)
                where = {"path": file.path, "start": start, "end": end, "speaker": file.speakers[part] if file.speakers else None}
                yield self._prediction(file.values[part], file.embeddings[part], min_confidence, **where)

    def _prediction(self, values, embedding, min_confidence, **where):
        scale = self._temperatures[where.get("speaker") not in (None, UNKNOWN_SPEAKER)]
        values = values if scale is None else temperature.scaled_first(values, scale, len(self.classes))
        numbers = {o.target: dict(zip(o.names, map(float, values[o.columns]), strict=True)) for o in self._task.outputs}
        probabilities, dimensions = numbers.pop("emo", {}), numbers.pop(DIMENSIONS, {})
        decided = Layout(self.classes, [], min_confidence=min_confidence).decided(values) if self.classes else NO_EMOTION
        return Prediction(None if decided == NO_EMOTION else decided, probabilities, dimensions, embedding, **where, others=numbers)


def as_samples(waveform, sample_rate):
    """Mono at 16 kHz, float32, of a NumPy array or tensor at any rate: (samples), or (samples, channels) or (channels, samples), the shorter
    of which are the channels; floats of full scale ±1, or integers of their type's. InputError where it is something else, holds NaN, or
    is shorter than one frame (25 ms)."""
    x = np.asarray(waveform.detach().cpu() if torch.is_tensor(waveform) else waveform)
    if x.ndim not in (1, 2) or x.dtype.kind not in "fi":
        raise InputError(f"waveform: an array {x.shape} of {x.dtype}; give floats or integers, (samples) or (samples, channels)")
    low, high = containers.RATES
    if not isinstance(sample_rate, (int, float, np.number)) or not low <= sample_rate <= high or sample_rate % 1:
        raise InputError(f"sample_rate {sample_rate}: give the samples per second, a whole number from {low} to {high}")
    x = (x / -float(np.iinfo(x.dtype).min) if x.dtype.kind == "i" else x).astype(np.float32)
    x = x if x.ndim == 1 else x.mean(axis=int(np.argmin(x.shape)))
    if not np.isfinite(x).all():
        raise InputError("waveform: holds samples that are not finite numbers")
    x = x if sample_rate == audio.SAMPLE_RATE else audio.resampled(x, int(sample_rate))
    if len(x) < audio.RECEPTIVE_FIELD:
        raise InputError(f"waveform: {len(x)} samples at 16 kHz are under one frame ({audio.RECEPTIVE_FIELD}); give a longer one")
    return x
