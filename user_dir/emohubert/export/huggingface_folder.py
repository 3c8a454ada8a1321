"""Hugging Face folders of trained models: what the format has no place for is folded into weights and biases, exactly, or refused.

HubertForSequenceClassification is E → Σ_l w_l h_l, or the last layer → projector → mean over frames → classifier, all of it affine but for E.
Ours is affine there with mean pooling and a linear head: a speaker's vector added to the encoder's output, speaker normalisation by the average
speaker, batch norm, and a speaker at the head are constants then. Before E, a vector added to T(x), or FiLM, is an affine map of the projection.
"""

from dataclasses import replace

import torch

from ..core.errors import InputError
from ..models.pooling import MeanPooling
from ..pretrained.huggingface import write_folder
from .card import write_card

_UNUSED = -1e4  # of layer weights, before the softmax: exp is zero, in half precision too


def write(source, folder, half=False):
    """Write a Source as a folder for `transformers.AutoModelForAudioClassification`, with a model card unless the folder has a README.md; an
    encoder for `AutoModel`. Returns names of parameters that are left out. InputError: the format cannot express the model."""
    classifier = None if source.task is None else _classifier(source)
    left_out = write_folder(_with_speaker_in_projection(source), folder, half, classifier)
    if classifier is None:
        return left_out
    write_card(source, folder)
    return [name for name in left_out if name.startswith("frame_head.")]  # the others are folded


def _classifier(source):
    """(values of config.json, {name: tensor}) of what an emotion model has on its encoder."""
    task, model = source.task, source.model.double()
    cfg, width = model.cfg, model.backbone.width
    if type(model.pooling) is not MeanPooling:
        raise _refused(source, f"model.pooling={cfg.pooling}")
    if cfg.silence_db is not None:
        raise _refused(source, f"model.silence_db={cfg.silence_db}")
    if model.layer_weights is not None and source.pretrained.config.get("layer_norm_first"):
        raise _refused(source, "model.layer_weighting=true of a pre-norm encoder, on whose last layer versions of transformers disagree,")
    e = model.backbone.vectors_of(source.speaker["speaker"], 1)
    added = _affine(lambda x: model.backbone.with_speaker(x.unsqueeze(0), e).squeeze(0), width)
    head = _affine(lambda x: _from_pooled(model, x, source.speaker), width)
    if added is None or head is None:
        raise _refused(source, _position(source) if added is None else f"model.head={cfg.head}")
    head = [tensor / source.temperature for tensor in head]
    weights = dict(zip(("projector.weight", "projector.bias", "classifier.weight", "classifier.bias"), (*added, *head), strict=True))
    if model.layer_weights is not None:
        weights["layer_weights"] = torch.cat([model.layer_weights.new_tensor([_UNUSED]), model.layer_weights])
    config = {
        "id2label": {str(i): name for i, name in enumerate(source.outputs)},
        "label2id": {name: i for i, name in enumerate(source.outputs)},
        "problem_type": "single_label_classification" if task.classes else "regression",
        "use_weighted_layer_sum": model.layer_weights is not None,
        "classifier_proj_size": width,
    }
    return config, weights


def _from_pooled(model, x, speaker):
    """Output of the part after the pooling, (n, width) → (n, outputs), as in `EmotionHubertModel.forward`."""
    x = x if model.normalisation is None else model.normalisation(x)
    if model.speaker_at_head is not None:
        rows = {name: row.expand(len(x), *row.shape[1:]) for name, row in speaker.items()}
        x = model.speaker_at_head(x, rows["speaker"], rows.get("speaker_features"))
    return model.head(x)["output"].double()


def _with_speaker_in_projection(source):
    """The Pretrained, with the speaker's vector where it meets the encoder's input folded into T; mask embeddings are conditioned, too."""
    pretrained, conditioning = source.pretrained, source.encoder.speaker_conditioning
    position = pretrained.config.get("speaker_position")
    if conditioning is None or (position == "output" and (source.task is not None or source.speaker_id is None)):
        return pretrained
    conditioning, weights = conditioning.double(), dict(pretrained.weights)
    e = conditioning.vectors(source.speaker["speaker"])
    frames = torch.ones(1, 1, source.encoder.width, dtype=torch.float64)
    if source.task is None and not torch.equal(conditioning.after_encoder(frames, e), frames):
        raise _refused(source, _position(source))
    folded = _affine(lambda x: conditioning.before_encoder(x.unsqueeze(0), None, e)[0].squeeze(0), source.encoder.width)
    if folded is None or "post_extract_proj.weight" not in weights:
        raise _refused(source, _position(source))
    matrix, shift = folded
    weights["post_extract_proj.weight"] = matrix @ weights["post_extract_proj.weight"].double()
    for name in {"post_extract_proj.bias", "mask_emb"} & set(weights):
        weights[name] = matrix @ weights[name].double() + shift
    return replace(pretrained, config={**pretrained.config, "speaker_position": "none"}, weights=weights)


def _affine(function, width):
    """(W, b), float64, of a function W x + b of vectors, (n, width) → (n, …); None if it is another one."""
    basis = torch.eye(width, dtype=torch.float64)
    x = 10 * torch.randn(8, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        b = function(0 * basis[:1])
        if len(b) != 1:
            return None
        matrix, expected = (function(basis) - b).T, function(x)
        fits = torch.allclose(x @ matrix.T + b, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    return (matrix, b[0]) if fits else None


def _position(source):
    return f"model.speaker_position={source.pretrained.config.get('speaker_position')}"


def _refused(source, what):
    remedy = "use tools/export_onnx.py" + (", or --encoder for the encoder alone" if source.task is not None else "")
    return InputError(f"{source.path}: {what} cannot be expressed as a Hugging Face folder; {remedy}")
