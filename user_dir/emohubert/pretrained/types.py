"""What a pretrained encoder is, wherever it comes from: its architecture, weights, speakers and labels."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import InputError
from ..core.files import sha256
from ..corpus.audio import HOP, RECEPTIVE_FIELD

ENCODER = ("feature_extractor.", "layer_norm.", "post_extract_proj.", "encoder.")
"""What makes the encoder, by parameter name: all of it must load, or training does not start."""
LORA = ".parametrizations.weight."
"""What stands between the name of a layer with LoRA and `original`, its weight, `0.lora_A` and `0.lora_B` (`models.lora`)."""


@dataclass
class FrameLabelSet:
    """One set of frame labels; `len()` is the number of classes."""

    name: str  # in `task.labels`
    symbols: list  # in order
    counts: list | None = None  # how often each occurs in training, where that is known

    def __len__(self):
        return len(self.symbols)


@dataclass
class Pretrained:
    """A checkpoint's encoder in fairseq's terms, wherever it comes from."""

    path: Path  # of the file or folder
    family: str  # hubert, speaker_hubert, wav2vec2, wavlm, data2vec_audio, emotion_hubert, or a folder's `model_type`
    config: dict  # values for fields of SpeakerHubertConfig
    normalise: bool  # whether waveforms are normalised before they go in
    weights: dict  # {name in HubertModel: tensor}
    task_state: dict = field(default_factory=dict)  # of a checkpoint of ours
    left_out: list = field(default_factory=list)  # names of parameters that are no part of the encoder: heads, quantisers
    files: list = field(default_factory=list)  # all that was read

    @property
    def speakers(self):
        """Ids of the rows of its speaker table after the unknown one."""
        return list(self.task_state.get("speakers") or [])

    @property
    def n_layers(self):
        """Layers whose features can be had."""
        return self.config.get("encoder_layers", 12)

    @property
    def sha256(self):
        """SHA-256 of the file, or of the names and SHA-256s of several."""
        if len(self.files) == 1:
            return sha256(self.files[0])
        return hashlib.sha256("".join(f"{Path(f).name} {sha256(f)}\n" for f in self.files).encode()).hexdigest()


@dataclass
class LoadReport:
    """What became of each parameter: names by outcome."""

    loaded: list = field(default_factory=list)
    resized: list = field(default_factory=list)
    new: list = field(default_factory=list)
    skipped: list = field(default_factory=list)

    def __str__(self):
        parts = [f"{len(self.loaded)} parameters loaded"]
        for outcome in ("resized", "new", "skipped"):
            if names := getattr(self, outcome):
                parts.append(f"{len(names)} {outcome} ({', '.join(names[:6])}{', …' if len(names) > 6 else ''})")
        return "; ".join(parts)


def mismatch(wrong, own, source):
    """What does not fit, as text: names of parameters in `own` and `source`, {name: tensor}."""
    first = wrong[0]
    if first not in own:
        return f"{len(wrong)} parameters differ, first {first}: the model lacks it"
    found = f"it is {tuple(source[first].shape)} in the checkpoint" if first in source else "the checkpoint lacks it"
    return f"{len(wrong)} parameters differ, first {first}: {tuple(own[first].shape)} in the model, {found}"


def parse_conv_layers(text):
    """Each (channels, kernel, stride) of `[(512,10,5)] + [(512,3,2)] * 4`, not evaluated. InputError: other text, or layers that do not give
    HuBERT's frames."""
    triple = r"\(\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*\)"
    layers, window, hop = [], 1, 1
    for term in text.split("+"):
        found = re.fullmatch(rf"\s*\[\s*{triple}(\s*,\s*{triple})*\s*,?\s*\]\s*(\*\s*(?P<times>\d{{1,2}})\s*)?", term)
        if found is None:
            raise InputError(f"conv_feature_layers: “{text}” is not a list of (channels, kernel, stride); use HuBERT's notation")
        layers += [tuple(map(int, numbers)) for numbers in re.findall(triple, term)] * int(found["times"] or 1)
    for _, kernel, stride in layers:
        window, hop = window + (kernel - 1) * hop, hop * stride
    if (window, hop) != (RECEPTIVE_FIELD, HOP):
        found = f"gives frames of {window} samples every {hop}"
        raise InputError(f"conv_feature_layers: “{text}” {found}; only {RECEPTIVE_FIELD} every {HOP} is supported")
    return layers
