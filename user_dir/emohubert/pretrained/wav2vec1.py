"""The architecture of a wav2vec 1.0 checkpoint (Schneider et al. 2019), in plain values."""

from fairseq.models.wav2vec.wav2vec import Wav2VecConfig
from torch import nn

from ..core.errors import InputError
from ..corpus.audio import HOP
from .types import WAV2VEC1, parse_conv_layers, parse_layers

WINDOW = 465  # samples that one frame of its convolutions sees
_PARTS = (  # fairseq's options that say how c is computed
    *("conv_feature_layers", "conv_aggregator_layers", "log_compression", "skip_connections_agg", "residual_scale"),
    *("no_conv_bias", "agg_zero_pad", "non_affine_group_norm", "activation"),
)
_ONLY = {"vq_type": "none", "aggregator": "cnn", "skip_connections_feat": False}
"""Options with one supported value: no quantiser (vq-wav2vec), no recurrence over the batch, no residuals that depend on padding."""
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}
ENCODER = ("feature_extractor.", "feature_aggregator.", "alignment.")  # what makes the encoder, by parameter name


def read_config(options, path):
    """The architecture of a wav2vec 1, a dict of plain values, from the options of fairseq's model or of an emotion model's backbone; its
    `encoder_embed_dim` is the width that is masked, as in HuBERT's. InputError: an option whose results the encoder would not reproduce."""
    defaults = Wav2VecConfig()  # older checkpoints lack what came later
    values = {name: getattr(defaults, name) if options.get(name) is None else options[name] for name in (*_PARTS, *_ONLY)}
    values = {name: getattr(value, "value", value) for name, value in values.items()}
    for name, supported in _ONLY.items():
        if values.pop(name) != supported:
            raise InputError(f"{path}: {name}={options[name]} is not supported in a wav2vec 1, only {supported}; use another checkpoint")
    if values["activation"] not in ACTIVATIONS:
        raise InputError(f"{path}: activation={values['activation']} is not supported, only {', '.join(ACTIVATIONS)}; use another")
    try:
        extractor, aggregator = conv_layers(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if any(stride != 1 for *_, stride in aggregator):
        raise InputError(f"{path}: conv_aggregator_layers={values['conv_aggregator_layers']}: only a stride of 1 is supported; use another")
    return {"_name": WAV2VEC1, **values, "encoder_layers": 1, "encoder_embed_dim": extractor[-1][0]}


def conv_layers(config):
    """The convolutions of extractor and aggregator: lists of (channels, kernel, stride)."""
    extractor = parse_conv_layers(config["conv_feature_layers"], WINDOW, HOP // 2)
    return extractor, parse_layers(config["conv_aggregator_layers"], "conv_aggregator_layers")
