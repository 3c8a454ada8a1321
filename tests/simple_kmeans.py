"""fairseq's own simple_kmeans scripts, as installed, made importable: what our files and labels are compared with."""

import sys
from pathlib import Path

import fairseq
import soundfile
import torch

SCRIPTS = Path(fairseq.__file__).parent / "examples" / "hubert" / "simple_kmeans"


def load(name):
    """A script as a module, its audio reading replaced (it needs a torchaudio that no longer exists)."""
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))
    module = __import__(name)
    module.get_features_or_waveform = lambda path, **_: soundfile.read(path, dtype="float32")[0]
    return module


def hubert_features(monkeypatch, checkpoint, layer, paths, max_chunk=1_600_000):
    """Features of recordings as `dump_hubert_feature.py` computes them, on the CPU."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *_, **__: self)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self, *_, **__: self)
    reader = load("dump_hubert_feature").HubertFeatureReader(str(checkpoint), layer, max_chunk)
    return [reader.get_feats(str(path)).numpy() for path in paths]
