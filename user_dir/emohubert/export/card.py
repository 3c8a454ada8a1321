"""The model card of an exported emotion model: what the checkpoint and the records beside it say, and no more."""

from pathlib import Path

from ..core.files import atomic
from ..corpus.audio import SAMPLE_RATE
from ..provenance import records
from ..provenance.trail import MEANING

_CARD = """\
---
library_name: transformers
pipeline_tag: audio-classification
license: unknown
tags: [speech, audio, hubert, emotion-recognition]
---

# {name}

{what}, from speech at 16 kHz mono: HuBERT, {layers} layers × {width}. Written by emohubert.

```python
import soundfile
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

extractor = AutoFeatureExtractor.from_pretrained("{name}")
model = AutoModelForAudioClassification.from_pretrained("{name}").eval()
samples, rate = soundfile.read("recording.wav", dtype="float32")  # {rate} Hz, mono
with torch.no_grad():
    logits = model(**extractor(samples, sampling_rate=rate, return_tensors="pt")).logits
print(dict(zip(model.config.id2label.values(), logits{softmax}[0].tolist())))
```

{batches}

## Data

{data}

The licence is not known to the program that wrote this card; the licences of the recordings and of the encoder that training started from apply.

## Training

Fine-tuned; {selected}. {scales}

| setting | value |
| --- | --- |
{settings}

## Speakers

Trained with {speakers}.{who}{normalised}

## Limits

Actors show emotions more clearly than people have them; other microphones and languages cost accuracy. Nothing here measures how the model treats
groups of people. Do not decide about people with it.
"""
_BATCHES = {
    "default": "Its convolutions normalise over time without a mask (GroupNorm): exact for recordings one by one, not for a padded batch.",
    "layer_norm": "With the extractor's `attention_mask`, a padded batch gives what its recordings give alone.",
}
_VARIANCE = " The extractor adds 1e-7 to a waveform's variance, training added 1e-5: very quiet recordings differ slightly."
_SETTINGS = ("pooling", "head", "freeze", "layer_weighting", "head_dropout", "mask_prob", "mask_channel_prob")


def write_card(source, folder):
    """Write the README.md of an emotion model into a folder, unless one is there."""
    path, task, model, config = Path(folder) / "README.md", source.task, source.model, source.pretrained.config
    if path.exists():
        return
    settings = {"init_from": Path(str(model.cfg.init_from)).name, **{name: model.cfg[name] for name in _SETTINGS}}
    if task.classes:
        fitted = f"Logits are divided by a fitted temperature of {source.temperature:.3g}."
        scales = "Probabilities are not calibrated." if source.temperature == 1 else fitted
    else:
        scales = f"Scales of the labels: {dict(task.state.label_scales)}" if task.state.label_scales else ""
    fields = {
        "name": path.resolve().parent.name,
        "what": f"{'Emotion classes' if task.classes else 'Emotion dimensions'} ({', '.join(source.outputs)})",
        "layers": model.layers,
        "width": model.backbone.width,
        "rate": SAMPLE_RATE,
        "softmax": ".softmax(-1)" * bool(task.classes),
        "batches": _BATCHES[config.get("extractor_mode", "default")] + _VARIANCE * source.pretrained.normalise,
        "data": _data(source.path),
        "selected": task.selection["selected"],
        "scales": scales,
        "settings": "\n".join(f"| model.{name} | {value} |" for name, value in settings.items()),
        "speakers": task.speaker_embedding,
        "who": f" Here everybody is {source.speaker_id or 'the unknown speaker'}." * (task.speaker_embedding != "no speaker embedding"),
        "normalised": " Utterance vectors are normalised by the average training speaker." * (model.normalisation is not None),
    }
    with atomic(path) as f:
        f.write(_CARD.format(**fields))


def _data(path):
    """Lines on what the records beside a checkpoint list."""
    lines = []
    for record in map(records.read, sorted(path.parent.glob(f"*{records.SUFFIX}"))):
        u = record.utterances
        if record.role in MEANING and len(u):
            hours, corpus = sum(u.n_samples) / SAMPLE_RATE / 3600, record.facts.get("corpus") or "a corpus without a name"
            lines.append(f"- {MEANING[record.role]}: {corpus}, {len(u)} recordings, {hours:.2f} hours, {len(set(u.speakers))} speakers")
    return "\n".join(lines) or "No record of the training data came with the checkpoint."
