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
WAV2VEC1 = "wav2vec"  # fairseq's name for wav2vec 1.0, which only emotion models are built on (`models.wav2vec1`)

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
    family: str  # hubert, speaker_hubert, wav2vec2, wavlm, data2vec_audio, wav2vec, emotion_hubert, or a folder's `model_type`
    config: dict  # values for fields of SpeakerHubertConfig, or those of `wav2vec1.read_config`
    normalise: bool  # whether waveforms are normalised before they go in
    weights: dict  # {name in HubertModel or Wav2Vec1Encoder: tensor}
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
    def is_wav2vec1(self):
        """Whether it is a wav2vec 1.0, or an emotion model on one."""
        return self.config.get("_name") == WAV2VEC1

    def require_transformer(self):
        """Raise InputError for a wav2vec 1, which masked prediction cannot be continued from."""
        if self.is_wav2vec1:
            raise InputError(f"{self.path}: wav2vec 1 has no Transformer to pretrain; start from a HuBERT or wav2vec 2.0")

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


def parse_layers(text, name="conv_feature_layers"):
    """Each (channels, kernel, stride) of `[(512,10,5)] + [(512,3,2)] * 4`, not evaluated. InputError, for an option `name`: other text."""
    triple = r"\(\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*\)"
    layers = []
    for term in text.split("+"):
        found = re.fullmatch(rf"\s*\[\s*{triple}(\s*,\s*{triple})*\s*,?\s*\]\s*(\*\s*(?P<times>\d{{1,2}})\s*)?", term)
        if found is None:
            raise InputError(f"{name}: “{text}” is not a list of (channels, kernel, stride); use HuBERT's notation")
        layers += [tuple(map(int, numbers)) for numbers in re.findall(triple, term)] * int(found["times"] or 1)
    return layers


def parse_conv_layers(text, window=RECEPTIVE_FIELD, hop=HOP):
    """`parse_layers` of `conv_feature_layers`; InputError also where these do not give a frame of `window` samples every `hop`."""
    layers = parse_layers(text)
    found_window, found_hop = 1, 1
    for _, kernel, stride in layers:
        found_window, found_hop = found_window + (kernel - 1) * found_hop, found_hop * stride
    if (found_window, found_hop) != (window, hop):
        found = f"gives frames of {found_window} samples every {found_hop}"
        raise InputError(f"conv_feature_layers: “{text}” {found}; only {window} every {hop} is supported")
    return layers
