"""ONNX files of trained models: raw audio of any length in, encoder frames and logits out, a batch as its utterances alone."""

import io
import json
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from fairseq.models.wav2vec import wav2vec2
from torch import nn
from torch.nn.utils import parametrize

from ..core.errors import InputError, need
from ..core.files import atomic, make_folder
from ..corpus.audio import HOP, RECEPTIVE_FIELD, SAMPLE_RATE, n_frames
from ..models.hubert import own_frames
from ..models.pooling import without_padding
from ..models.speaker_conditioning import SpeakerAtHead, SpeakerConditioning
from ..models.speaker_normalisation import SpeakerNormalisation

OPSET = 17
_TOLERANCE = 1e-3  # of the file on noise, relative to the largest value; usual is 1e-6
_LARGEST = 2**31 - 2**24  # bytes
_LARGE = 2**13  # elements of a tensor that half precision is for, not norms and statistics
_TRACEABLE = {  # what fairseq's encoder does with Python's numbers, on tensors; frames that only fill up to an even number are left out
    "pad_to_multiple": lambda x, *_, **__: (x, 0),
    "index_put": lambda x, padding, value: x.masked_fill(padding.unsqueeze(-1), value),
}


class Graph(nn.Module):
    """A Source as one function of tensors."""

    def __init__(self, source):
        super().__init__()
        self.model, self.is_encoder, self.normalise = source.model, source.task is None, source.pretrained.normalise
        self.temperature = source.temperature
        source.encoder.feature_grad_mult = 0.0
        self.speaker = list(source.speaker)
        for name, row in source.speaker.items():
            self.register_buffer(f"of_{name}", row)

    def reduce(self):
        """Leave nothing but the one speaker, and plain weights: changes no result."""
        for module in list(self.modules()):
            if hasattr(module, "weight_g"):
                nn.utils.remove_weight_norm(module)
            elif parametrize.is_parametrized(module, "weight"):  # LoRA
                parametrize.remove_parametrizations(module, "weight")
            elif isinstance(module, (SpeakerConditioning, SpeakerAtHead)) and module.embedding is not None:
                module.embedding.weight = nn.Parameter(module.embedding.weight[self.of_speaker], requires_grad=False)
            elif isinstance(module, SpeakerNormalisation):
                module.table = module.table[:, :1].clone()
        self.of_speaker = torch.zeros_like(self.of_speaker)

    def forward(self, signal, lengths):
        """signal (batch, samples) float32, lengths (batch,) int64 → frames (batch, frames, width), zero in the padding, and the model's
        output (batch, outputs), which an encoder does not have."""
        own = own_frames(lengths, signal.size(1), signal.device)
        signal = signal.masked_fill(~own, 0)
        if self.normalise:
            signal = _normalised(signal, lengths, own)
        rows = {name: (row := getattr(self, f"of_{name}")).expand(signal.size(0), *row.shape[1:]) for name in self.speaker}
        if self.is_encoder:
            found = self.model(signal, lengths=lengths, features_only=True, **rows)
            outputs = [found["x"]]
        else:
            found = self.model(signal, lengths, **rows)
            outputs = [found["frames"], found["output"] / self.temperature]
        frames = own_frames(n_frames(lengths), outputs[0].size(1), signal.device)
        return (without_padding(outputs[0], frames), *outputs[1:])


def _normalised(signal, lengths, own):
    """As `audio.normalise`, each over its own samples."""
    x, n = signal.double(), lengths.unsqueeze(1).double()
    centred = (x - x.sum(dim=1, keepdim=True) / n).masked_fill(~own, 0)
    variance = centred.square().sum(dim=1, keepdim=True) / n
    return (centred / (variance + 1e-5).sqrt()).float()


def write(source, path, half=False):
    """Write a Source, once, as an ONNX file; returns the largest difference from the model on noise, relative to the largest value.

    `half`: weights are kept in half precision and computed with in float32. InputError: onnx or onnxruntime is missing, or the graph of a
    pooling, head or speaker position of the user's own does not give what the model gives.
    """
    onnx, _ = (need(package, "onnx", "an ONNX file") for package in ("onnx", "onnxruntime"))
    graph = Graph(source).eval()
    if (size := sum(4 * p.numel() for p in graph.parameters())) > _LARGEST:
        raise InputError(f"{source.path}: {size / 1e9:.1f} GB of weights, an ONNX file holds 2; use a smaller encoder, or model.num_layers")
    with torch.no_grad():
        expected = [[x.numpy() for x in graph(*inputs)] for inputs in _noise()]
    graph.reduce()
    content = _traced(graph)
    worst = _difference(content, expected)
    if not worst <= _TOLERANCE:
        what = f"the ONNX graph differs from the model by {worst:.1g}: a pooling, head or position of your own depends on Python's numbers"
        raise InputError(f"{source.path}: {what}, such as len(x) where x.size(0) is meant; change that")
    model = onnx.load_from_string(content)
    if half:
        _halve(model)
    onnx.helper.set_model_props(model, _metadata(source, half))
    make_folder(Path(path).parent)
    with atomic(path, "wb") as f:
        f.write(model.SerializeToString())
    return worst


def _traced(graph):
    """The file's bytes; the graph holds for any batch and any length."""
    lengths = torch.tensor([RECEPTIVE_FIELD + 20 * HOP, RECEPTIVE_FIELD + 9 * HOP])
    inputs = (torch.randn(2, int(lengths.max())), lengths)
    axes = {"signal": {0: "batch", 1: "samples"}, "hidden_states": {0: "batch", 1: "frames"}}
    axes |= dict.fromkeys(("lengths", "logits"), {0: "batch"})
    names = {"input_names": ["signal", "lengths"], "output_names": ["hidden_states"] if graph.is_encoder else ["hidden_states", "logits"]}
    file = io.BytesIO()
    # The tracer: torch.export fixes lengths and batch where frames are counted, and takes ten times as long.
    with warnings.catch_warnings(), mock.patch.multiple(wav2vec2, **_TRACEABLE):
        warnings.simplefilter("ignore")
        torch.onnx.export(graph, inputs, file, dynamo=False, opset_version=OPSET, dynamic_axes=axes, **names)
    return file.getvalue()


def _noise():
    """(signal, lengths) of other sizes than the graph is traced with."""
    generator = torch.Generator().manual_seed(0)
    for lengths in ([RECEPTIVE_FIELD], [9_000, 16_000, 5_000]):
        yield nn.utils.rnn.pad_sequence([torch.randn(n, generator=generator) for n in lengths], batch_first=True), torch.tensor(lengths)


def _difference(content, expected):
    """Largest difference of an ONNX file's outputs on `_noise` from those of the model itself, relative to the largest value."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    session, worst = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]), []
    for (signal, lengths), wanted in zip(_noise(), expected, strict=True):
        found = session.run(None, {"signal": signal.numpy(), "lengths": lengths.numpy()})
        worst += [abs(a - b).max() / max(abs(b).max(), 1) for a, b in zip(found, wanted, strict=True)]
    return float(np.max(worst))  # Python's max would pass over NaN


def _metadata(source, half):
    """{key: text} of what the file is."""
    kind = "encoder" if source.task is None else "emotion classes" if source.task.classes else "emotion dimensions"
    found = {
        "description": f"emohubert: {kind}; signal (batch, samples) at {SAMPLE_RATE} Hz, zero-padded, and lengths in samples",
        "sample_rate": str(SAMPLE_RATE),
        "precision": "half" if half else "float32",
        "speaker": source.speaker_id or "unknown",
        "temperature": str(source.temperature),
    }
    if source.outputs:
        found["classes" if source.task.classes else "dimensions"] = json.dumps(list(source.outputs), ensure_ascii=False)
    return found


def _halve(model):
    """Keep float32 weights in half precision, with a cast before their use (in place)."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= _LARGE:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}_half"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
