"""The model card of an exported folder: what the checkpoint and the records beside it say, and no more."""

from pathlib import Path

from ..core.files import atomic
from ..corpus.audio import SAMPLE_RATE
from ..provenance import records
from ..provenance.trail import MEANING

_CARD = """\
---
library_name: transformers
pipeline_tag: {pipeline}
license: unknown
tags: [speech, audio, hubert{tags}]
---

# {name}

{what}, from speech at 16 kHz mono: {size}. Written by emohubert.

```python
import soundfile
import torch
from transformers import {auto}, AutoFeatureExtractor

extractor, model = AutoFeatureExtractor.from_pretrained("{name}"), {auto}.from_pretrained("{name}").eval()
samples, rate = soundfile.read("recording.wav", dtype="float32")  # {rate} Hz, mono
with torch.no_grad():
    found = model(**extractor(samples, sampling_rate=rate, return_tensors="pt"))
{result}
```

{batches}

## Data

{data}

The licence is not known to the program that wrote this card; the licences of the recordings and of the encoder that training started from apply.

## Training

{training}

## Speakers

{speakers}

## Limits

{limits}
"""
_BATCHES = {
    "default": "Its convolutions normalise over time without a mask (GroupNorm): exact for recordings one by one, not for a padded batch.",
    "layer_norm": "With the extractor's `attention_mask`, a padded batch gives what its recordings give alone.",
}
_NORMALISED = " The extractor adds 1e-7 to a waveform's variance, training added 1e-5: very quiet recordings differ slightly."
_DECISIONS = "Nothing here measures how it treats groups of people. Do not decide about people with it."


def write_card(source, folder):
    """Write README.md into a folder, unless one is there."""
    path = Path(folder) / "README.md"
    if path.exists():
        return
    config = source.pretrained.config
    size = f"HuBERT, {config.get('encoder_layers', 12)} layers × {config.get('encoder_embed_dim', 768)}"
    fields = {"name": path.resolve().parent.name, "rate": SAMPLE_RATE, "size": size, "data": _data(source.path)}
    fields |= _encoder(source) if source.task is None else _classifier(source)
    fields["batches"] = _BATCHES[config.get("extractor_mode", "default")] + _NORMALISED * source.pretrained.normalise
    with atomic(path) as f:
        f.write(_CARD.format(**fields))


def _encoder(source):
    what = {"pipeline": "feature-extraction", "tags": "", "auto": "AutoModel", "what": "An encoder without a head"}
    what["result"] = "print(found.last_hidden_state.shape)  # (1, frames, width), 50 frames a second"
    what["training"] = f"The checkpoint is of the family {source.pretrained.family}."
    what["speakers"] = _met(source, source.pretrained.config.get("speaker_position", "none"))
    return {**what, "limits": f"It knows no emotion by name. {_DECISIONS}"}


def _classifier(source):
    task, cfg = source.task, source.model.cfg
    names = ", ".join(source.outputs)
    kind = "classification" if task.classes else "regression"
    result = "print(dict(zip(model.config.id2label.values(), found.logits{}[0].tolist())))".format(".softmax(-1)" if task.classes else "")
    settings = ("pooling", "head", "freeze", "layer_weighting", "head_dropout", "mask_prob", "mask_channel_prob")
    table = [("model.init_from", Path(str(cfg.init_from)).name), *((f"model.{name}", cfg[name]) for name in settings)]
    selected = task.selection["selected"]
    limits = "Probabilities are those of the softmax, not calibrated. " if task.classes else ""
    scales = f" Scales of the labels: {dict(task.state.label_scales)}." if task.dimensions and task.state.label_scales else ""
    return {
        "pipeline": "audio-classification",
        "tags": ", emotion-recognition",
        "auto": "AutoModelForAudioClassification",
        "what": f"{'Emotion classes' if task.classes else 'Emotion dimensions'} ({names})",
        "result": result,
        "training": f"Fine-tuned for {kind}; {selected}.{scales}\n\n| setting | value |\n| --- | --- |\n"
        + "\n".join(f"| {name} | {value} |" for name, value in table),
        "speakers": _met(source, task.speaker_embedding) + _normalisation(source.model),
        "limits": f"{limits}Actors show emotions more clearly than people have them, and other microphones and languages cost accuracy. {_DECISIONS}",
    }


def _met(source, conditioning):
    who = "the unknown speaker" if source.speaker_id is None else f"the speaker {source.speaker_id}"
    if conditioning in ("none", "no speaker embedding"):
        return "The model takes no notice of who speaks."
    return f"Trained with speakers ({conditioning}). In this folder everybody is {who}."


def _normalisation(model):
    return "" if model.normalisation is None else " Utterance vectors are normalised by the average training speaker's mean and variance."


def _data(path):
    """Lines on what the records beside a checkpoint list."""
    found = [records.read(p) for p in sorted(path.parent.glob(f"*{records.SUFFIX}"))] if path.is_file() else []
    lines = []
    for record in found:
        u = record.utterances
        if record.role in MEANING and len(u):
            hours, corpus = sum(u.n_samples) / SAMPLE_RATE / 3600, record.facts.get("corpus") or "a corpus without a name"
            lines.append(f"- {MEANING[record.role]}: {corpus}, {len(u)} recordings, {hours:.2f} hours, {len(set(u.speakers))} speakers")
    return "\n".join(lines) or "No record of the training data came with the checkpoint."
