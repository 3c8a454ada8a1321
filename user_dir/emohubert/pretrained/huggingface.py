"""Hugging Face model folders: HuBERT and models like it in fairseq's terms, read and written without the transformers library.

`config.json` becomes values of SpeakerHubertConfig, parameters get fairseq's names. What the encoder cannot honour exactly is
refused, so that whatever loads gives what `transformers` gives; and the other way round.
"""

import logging
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..core.errors import InputError
from ..core.files import atomic, make_folder, read_json, write_json
from ..corpus.audio import SAMPLE_RATE
from .safe_files import load_file
from .types import Pretrained, parse_conv_layers

logger = logging.getLogger(__name__)

FAMILIES = {
    "hubert": {},
    "wav2vec2": {},
    "wavlm": {"num_buckets": 320, "max_bucket_distance": 800},
    "data2vec-audio": {"num_conv_pos_embeddings": 5, "conv_pos_kernel_size": 19},
}
"""`model_type`: what it has more or other than DEFAULTS. With _ for -, the prefix of the encoder's parameters in a model with a head."""
DEFAULTS = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu",
    "layer_norm_eps": 1e-5, "feat_extract_norm": "group", "feat_extract_activation": "gelu", "feat_proj_layer_norm": True,
    "conv_dim": [512] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2], "conv_bias": False,
    "num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16, "conv_pos_batch_norm": False,
    "do_stable_layer_norm": False, "add_adapter": False, "adapter_attn_dim": None,
}  # fmt: skip
"""What a `config.json` means that lacks a key: the defaults of transformers' HubertConfig and Wav2Vec2Config, which agree."""
FIXED = ("layer_norm_eps", "feat_extract_activation", "feat_proj_layer_norm", "conv_pos_batch_norm", "add_adapter", "adapter_attn_dim")
"""Keys whose default is the only value that the encoder honours."""
_CHOICES = {  # keys with some supported values: fairseq's name, {theirs: fairseq's}
    "hidden_act": ("activation_fn", {"gelu": "gelu", "relu": "relu", "gelu_new": "gelu_accurate"}),
    "feat_extract_norm": ("extractor_mode", {"group": "default", "layer": "layer_norm"}),
    "conv_bias": ("conv_bias", {True: True, False: False}),
    "do_stable_layer_norm": ("layer_norm_first", {True: True, False: False}),
}
_SIZES = {
    "hidden_size": "encoder_embed_dim", "num_hidden_layers": "encoder_layers", "num_attention_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_embed_dim",
    "num_conv_pos_embeddings": "conv_pos", "num_conv_pos_embedding_groups": "conv_pos_groups",
}  # fmt: skip
_POSITIONS = {  # values of SpeakerHubertConfig for what a family has instead of HuBERT's positions
    "wavlm": lambda c: {"relative_position_buckets": c["num_buckets"], "relative_position_distance": c["max_bucket_distance"]},
    "data2vec-audio": lambda c: {
        "pos_conv_depth": c["num_conv_pos_embeddings"],
        "conv_pos": c["num_conv_pos_embeddings"] * c["conv_pos_kernel_size"],
    },
}
_PREPROCESSOR = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "padding_side": "right", "padding_value": 0.0}
_AGAIN = "copy or download the folder again"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_NAMES = [
    (r"masked_spec_embed", "mask_emb"),
    (r"feature_extractor\.conv_layers\.(\d+)\.conv\.(weight|bias)", r"feature_extractor.conv_layers.\1.0.\2"),
    (r"feature_projection\.layer_norm\.(weight|bias)", r"layer_norm.\1"),
    (r"feature_projection\.projection\.(weight|bias)", r"post_extract_proj.\1"),
    (r"encoder\.pos_conv_embed\.conv\.(weight_g|weight_v|bias)", r"encoder.pos_conv.0.\1"),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0", "encoder.pos_conv.0.weight_g"),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1", "encoder.pos_conv.0.weight_v"),
    (r"encoder\.pos_conv_embed\.layers\.(\d+)\.conv\.(weight|bias)", r"encoder.pos_conv.\1.0.\2"),
    (r"encoder\.layer_norm\.(weight|bias)", r"encoder.layer_norm.\1"),
    (r"encoder\.layers\.(\d+)\.attention\.([qkv]|out)_proj\.(weight|bias)", r"encoder.layers.\1.self_attn.\2_proj.\3"),
    (r"encoder\.layers\.(\d+)\.attention\.gru_rel_pos_linear\.(weight|bias)", r"encoder.layers.\1.self_attn.grep_linear.\2"),
    (r"encoder\.layers\.(\d+)\.attention\.gru_rel_pos_const", r"encoder.layers.\1.self_attn.grep_a"),
    (r"encoder\.layers\.(\d+)\.attention\.rel_attn_embed\.weight", r"encoder.layers.\1.self_attn.relative_attention_bias.weight"),
    (r"encoder\.layers\.(\d+)\.layer_norm\.(weight|bias)", r"encoder.layers.\1.self_attn_layer_norm.\2"),
    (r"encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\.(weight|bias)", r"encoder.layers.\1.fc1.\2"),
    (r"encoder\.layers\.(\d+)\.feed_forward\.output_dense\.(weight|bias)", r"encoder.layers.\1.fc2.\2"),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.(weight|bias)", r"encoder.layers.\1.final_layer_norm.\2"),
]
_CONV_NORM = r"feature_extractor\.conv_layers\.(\d+)\.layer_norm\.(weight|bias)"
_CONV_NORMS = {"default": r"feature_extractor.conv_layers.\1.2.\2", "layer_norm": r"feature_extractor.conv_layers.\1.2.1.\2"}


def read_folder(folder):
    """Read the encoder of a folder that `save_pretrained` wrote: `config.json` and one `model.safetensors` or `pytorch_model.bin`.

    A head on top (CTC, classification, …) is left out and named. Whether waveforms are normalised is read from
    `preprocessor_config.json` or `processor_config.json`; without either it is as the two families were trained: normalised
    for LayerNorm in the convolutions, not for GroupNorm (whose output does not depend on the level). InputError: a file is missing or
    damaged, or the model is one that the encoder cannot honour exactly.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no config.json in this folder; give a checkpoint file, or a folder that save_pretrained wrote")
    options = _dict(path)
    family = options.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"{path}: the model_type is “{family}”; supported are {', '.join(FAMILIES)}")
    config = _architecture(path, family, {**DEFAULTS, **FAMILIES[family], **options})
    file = _weight_file(folder)
    weights, left_out = _encoder_weights(file, family, config["extractor_mode"])
    layers = len({name.split(".")[2] for name in weights if name.startswith("encoder.layers.")})
    if layers != config["encoder_layers"]:
        raise InputError(f"{path}: num_hidden_layers={config['encoder_layers']}, but the weights have {layers}; copy both from one model")
    normalise, source = _normalisation(folder, config["extractor_mode"])
    return Pretrained(folder, family, config, normalise, weights, left_out=left_out, files=[path, file, *source])


def _weight_file(folder):
    """The file of a folder's weights; InputError where there is none."""
    if (file := next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)) is None:
        raise InputError(f"{folder}: no {_WEIGHTS[0]} in this folder; save the model in transformers, in one file, with save_pretrained")
    return file


def is_classifier(folder):
    """Whether a folder is of a …ForSequenceClassification, by its config.json."""
    path = Path(folder, "config.json")
    return path.is_file() and str(_dict(path).get("architectures")).endswith("ForSequenceClassification']")


def read_head(folder):
    """What a …ForSequenceClassification has on its encoder: (names of outputs, whether they are classes, weight and bias of the linear
    layer that its projector and classifier make around the mean, weights of the layers before the softmax, or None). InputError: the
    folder holds an encoder only, or another head."""
    folder = Path(folder)
    options, tensors = _dict(folder / "config.json"), _tensors(_weight_file(folder))
    names = ("projector.weight", "projector.bias", "classifier.weight", "classifier.bias")
    if not tensors.keys() >= {*names}:
        raise InputError(f"{folder}: has no projector and classifier, so it predicts nothing; give a …ForSequenceClassification")
    w, b, v, c = (tensors[name]().double() for name in names)
    outputs = [str((options.get("id2label") or {}).get(str(i), i)) for i in range(len(c))]
    layers = tensors["layer_weights"]().float() if options.get("use_weighted_layer_sum") and "layer_weights" in tensors else None
    if layers is not None and layers.softmax(0)[0] > 1e-6:
        raise InputError(f"{folder}: its weighted sum has the encoder's input in it, for which there is no place here; use another model")
    return outputs, options.get("problem_type") != "regression", v @ w, v @ b + c, None if layers is None else layers[1:]


def _dict(path):
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object; {_AGAIN}")
    return value


def _architecture(path, family, options):
    """Values of SpeakerHubertConfig for those of a config.json."""
    if family == "data2vec-audio":  # whatever its config.json says of them
        options |= {"feat_extract_norm": "layer", "do_stable_layer_norm": False}
    fixed = {name: [DEFAULTS[name]] for name in FIXED}
    for name, choices in {**fixed, **{name: list(choices) for name, (_, choices) in _CHOICES.items()}}.items():
        if options[name] not in choices:
            raise InputError(f"{path}: {name}={options[name]} is not supported, only {', '.join(map(str, choices))}; use another model")
    for name in dict.fromkeys((*_SIZES, *FAMILIES[family])):
        if not _is_size(options[name]):
            raise InputError(f"{path}: {name}={options[name]} is not an integer of at least 1; {_AGAIN}")
    columns = [options[name] for name in ("conv_dim", "conv_kernel", "conv_stride")]
    if not all(isinstance(c, list) and len(c) == len(columns[0]) and all(map(_is_size, c)) for c in columns):
        raise InputError(f"{path}: conv_dim, conv_kernel and conv_stride are not lists of as many integers; {_AGAIN}")
    conv_layers = str(list(zip(*columns, strict=True)))
    try:
        parse_conv_layers(conv_layers)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    width = options["hidden_size"]
    for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
        if width % options[name]:
            raise InputError(f"{path}: {name}={options[name]} does not divide hidden_size={width}; {_AGAIN}")
    if columns[0][-1] == width:
        raise InputError(f"{path}: conv_dim ends with hidden_size={width}, where fairseq has no projection; use another model")
    return {
        **{ours: options[theirs] for theirs, ours in _SIZES.items()},
        **{ours: choices[options[theirs]] for theirs, (ours, choices) in _CHOICES.items()},
        "conv_feature_layers": conv_layers,
        **_POSITIONS.get(family, lambda _: {})(options),
    }


def _is_size(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _encoder_weights(path, family, extractor_mode):
    """({fairseq's name: float32 tensor}, names left out)."""
    patterns = [(re.compile(pattern), name) for pattern, name in [*_NAMES, (_CONV_NORM, _CONV_NORMS[extractor_mode])]]
    tensors = _tensors(path)
    prefix = family.replace("-", "_") + "."
    prefix = prefix if any(name.startswith(prefix) for name in tensors) else ""  # with a head, or without
    weights, left_out = {}, []
    for name, read in tensors.items():
        if not name.startswith(prefix):
            left_out.append(name)
            continue
        if (renamed := _renamed(name.removeprefix(prefix), patterns)) is None:
            raise InputError(f"{path}: this encoder has no place for the parameter {name}; use a plain HuBERT or wav2vec 2.0")
        tensor = read()
        if not tensor.is_floating_point():
            raise InputError(f"{path}: {name} is stored as {tensor.dtype}; give the model in float32, float16 or bfloat16, not quantised")
        weights[renamed] = tensor.float()
    return weights, left_out


def _renamed(name, patterns):
    """A parameter's name by the first of some (pattern, replacement) that fits, or None."""
    return next((pattern.sub(new, name) for pattern, new in patterns if pattern.fullmatch(name)), None)


def _tensors(path):
    """{name: function that reads the tensor} of a weight file."""
    if path.suffix != ".safetensors":
        state = load_file(path)
        if not isinstance(state, dict) or not all(hasattr(tensor, "is_floating_point") for tensor in state.values()):
            raise InputError(f"{path}: holds something other than parameters; save the model again with save_pretrained")
        return {name: lambda name=name: state[name] for name in state}
    try:
        opened = safe_open(path, framework="pt")
        return {name: lambda name=name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file, or a damaged one ({error}); copy or download it again") from error


def _normalisation(folder, extractor_mode):
    """(whether waveforms are normalised, [the file that says so])."""
    for name, read in (("preprocessor_config.json", _dict), ("processor_config.json", lambda path: _dict(path).get("feature_extractor"))):
        path = folder / name
        options = read(path) if path.is_file() else None
        if isinstance(options, dict):
            if options.get("sampling_rate", SAMPLE_RATE) != SAMPLE_RATE:
                what = f"sampling_rate={options['sampling_rate']}, but all models here expect {SAMPLE_RATE} Hz"
                raise InputError(f"{path}: {what}; use another")
            normalise = options.get("do_normalize", True)  # the default of transformers' Wav2Vec2FeatureExtractor
            if not isinstance(normalise, bool):
                raise InputError(f"{path}: do_normalize={normalise} is neither true nor false; {_AGAIN}")
            return normalise, [path]
    normalise = extractor_mode == "layer_norm"
    how = "normalised, as with feat_extract_norm=layer" if normalise else "not normalised, as with feat_extract_norm=group"
    logger.info("%s: no preprocessor_config.json; waveforms are %s", folder, how)
    return normalise, []


def write_folder(pretrained, folder, half=False, classifier=None):
    """Write the encoder of a Pretrained as a folder that `transformers.AutoModel.from_pretrained` reads, in float32 or `half` precision. With
    a `classifier`, values of config.json and {name: tensor} of what is on the encoder, it is one of HubertForSequenceClassification.
    Returns the names of parameters that are left out: heads, speakers. InputError: the format cannot express the encoder or speakers."""
    from safetensors.torch import save

    config, weights, left_out = _expressed(pretrained)
    if classifier is not None:
        config |= {"architectures": ["HubertForSequenceClassification"], **classifier[0]}
        weights = {**{f"hubert.{name}": tensor for name, tensor in weights.items()}, **classifier[1]}
    weights = {name: (tensor.half() if half else tensor.float()).contiguous() for name, tensor in weights.items()}
    folder, masked = make_folder(folder), config["feat_extract_norm"] == "layer"
    write_json(folder / "config.json", config)
    preprocessor = {**_PREPROCESSOR, "sampling_rate": SAMPLE_RATE, "do_normalize": pretrained.normalise, "return_attention_mask": masked}
    write_json(folder / "preprocessor_config.json", preprocessor)
    with atomic(folder / "model.safetensors", "wb") as f:
        f.write(save(weights, metadata={"format": "pt"}))
    return left_out


def _expressed(pretrained):
    """(config.json of an encoder, {their name: tensor}, names of parameters that have no place)."""
    ours, position = pretrained.config, pretrained.config.get("speaker_position", "none")
    if ours.get("relative_position_buckets") or ours.get("pos_conv_depth", 1) > 1:
        what = "a WavLM or data2vec cannot be written in this format here, only what has HuBERT's positions"
        raise InputError(f"{pretrained.path}: {what}; use tools/export_onnx.py")
    if position not in ("none", "output"):
        raise InputError(f"{pretrained.path}: speaker_position={position}, for which the format has no place; only none and output can be")
    if "post_extract_proj.weight" not in pretrained.weights:
        what = "convolutions as wide as the Transformer, where the format has a projection and the model none"
        raise InputError(f"{pretrained.path}: {what}")
    config = {"architectures": ["HubertModel"], "model_type": "hubert", "torch_dtype": "float32"}
    for theirs, (field, choices) in _CHOICES.items():
        wanted = ours.get(field, choices[DEFAULTS[theirs]])
        config[theirs] = next((name for name, value in choices.items() if value == wanted), None)
        if config[theirs] is None:
            raise InputError(f"{pretrained.path}: {field}={wanted} cannot be expressed in this format")
    config |= {theirs: ours.get(field, DEFAULTS[theirs]) for theirs, field in _SIZES.items()}
    if "conv_feature_layers" in ours:
        columns = map(list, zip(*parse_conv_layers(ours["conv_feature_layers"]), strict=True))
        config |= dict(zip(("conv_dim", "conv_kernel", "conv_stride"), columns, strict=True))
    norms = _CONV_NORMS[ours.get("extractor_mode", "default")]
    patterns = [(re.compile(pattern), name) for pattern, name in (_inverse(*pair) for pair in [*_NAMES, (_CONV_NORM, norms)])]
    renamed = {name: _renamed(name, patterns) for name in pretrained.weights}
    left_out = [*pretrained.left_out, *(name for name, theirs in renamed.items() if theirs is None)]
    return config, {theirs: pretrained.weights[name] for name, theirs in renamed.items() if theirs is not None}, left_out


def _inverse(pattern, name):
    """The pattern and the replacement for the way back: `(a)\\.b` → `c.\\1` becomes `c\\.(a)` → `\\1.b`."""
    groups = re.findall(r"\([^)]*\)", pattern)
    back, new = re.escape(name), pattern.replace(r"\.", ".")
    for number, group in enumerate(groups, 1):
        back, new = back.replace(rf"\\{number}", group), new.replace(group, rf"\{number}", 1)
    return back, new
