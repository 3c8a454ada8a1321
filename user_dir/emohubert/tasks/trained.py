"""Loading a checkpoint that this package trained, with its task."""

import warnings
from pathlib import Path

import torch
from fairseq import tasks
from omegaconf import OmegaConf

from ..core.errors import InputError, taken_apart
from ..models.emotion import EmotionHubertConfig, EmotionHubertModel, resolve_backbone
from ..models.from_pretrained import check_sizes
from ..models.hubert import SpeakerHubertConfig
from ..pretrained.huggingface import read_head
from ..pretrained.safe_files import load_state
from .emotion_finetuning import EmotionFinetuningConfig


def load_trained(path, several=False):
    """(task, model) of one of our checkpoints, or of a Hugging Face folder of a …ForSequenceClassification, in eval mode on the CPU; nothing
    but the file is needed. `task.selection` is what `selection` says of the checkpoint. InputError: not loadable, another model, or one of
    several targets where the caller cannot handle `several`."""
    with taken_apart(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        state = state_of_folder(path) if Path(path).is_dir() else load_state(path)
        cfg = OmegaConf.create(state.get("cfg") or {}, flags={"allow_objects": True})
        name = OmegaConf.select(cfg, "task._name")
        if name not in ("speaker_hubert_pretraining", "emotion_finetuning"):
            raise InputError(f"{path}: trained by the task “{name}”; give a checkpoint that emohubert trained")
        _check_sizes(cfg.model, state["model"], path)
        task = tasks.setup_task(cfg.task)
        task.load_state_dict(state.get("task_state") or {})
        if not several and getattr(task, "is_multitask", False):
            what = f"predicts several targets ({', '.join(o.target for o in task.outputs)}), which this program cannot handle"
            raise InputError(f"{path}: {what}; use evaluate or predict, or a model of one target")
        model = task.build_model(cfg.model, from_checkpoint=True)
        model.load_state_dict(state["model"], strict=True)
        task.selection = selection(state)
        return task, model.eval()


def state_of_folder(folder):
    """What a checkpoint of ours would hold of a Hugging Face folder's model, as of `load_state`."""
    outputs, are_classes, *head, layers = read_head(folder)
    names = {"classes": outputs} if are_classes else {"dimensions": outputs}
    return untrained_state(folder, **names, head=head, layers=layers, layer_weighting=layers is not None)


def untrained_state(init_from, classes=(), dimensions=(), head=None, layers=None, speakers=(), training_speakers=(), **options):
    """What a checkpoint of the task emotion_finetuning holds, of a model that was not trained: a mean and a linear layer on an encoder.

    Args:
        init_from: the encoder, as for `model.init_from`.
        classes, dimensions: what it predicts, one of them.
        head: (weight, bias); by default random.
        layers: weights of the layers before the softmax, for `layer_weighting`.
        speakers, training_speakers: of the task's state.
        options: fields of EmotionHubertConfig.
    """
    cfg = EmotionHubertConfig(**{"init_from": str(init_from), "pooling": "mean", "head": "linear", "freeze": "none", **options})
    cfg.backbone, pretrained = resolve_backbone(cfg)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = EmotionHubertModel(cfg, len(classes or dimensions), list(speakers) or pretrained.speakers)
    model.start_from(pretrained)
    with torch.no_grad():
        if head is not None:
            model.head[-1].weight.copy_(head[0])
            model.head[-1].bias.copy_(head[1])
        if layers is not None:
            model.layer_weights.copy_(layers)
    task = EmotionFinetuningConfig(data="", target="emo" if classes else list(dimensions), seed=1)
    kinds = {"task": (task, "emotion_finetuning"), "model": (cfg, "emotion_hubert")}
    plain = {
        name: {**OmegaConf.to_container(OmegaConf.structured(c), enum_to_str=True), "_name": kind} for name, (c, kind) in kinds.items()
    }
    known = {"classes": list(classes), "speakers": list(speakers) or pretrained.speakers, "training_speakers": list(training_speakers)}
    checkpoint = {"best_checkpoint_metric": "loss"}
    return {"cfg": {**plain, "checkpoint": checkpoint}, "model": model.state_dict(), "task_state": {**known, "label_scales": {}}}


def _check_sizes(cfg, weights, path):
    """Raise InputError where a model's configuration is not of the size of its weights (see `check_sizes`)."""
    backbone = cfg.get("backbone") or cfg
    config = {name: value for name, value in backbone.items() if name in SpeakerHubertConfig.__dataclass_fields__}
    check_sizes(config, {name.removeprefix("backbone."): w for name, w in weights.items()}, path)
    if max(map(abs, _numbers(OmegaConf.to_container(cfg))), default=0) > sum(w.numel() for w in weights.values()):
        raise InputError(f"{path}: its configuration is of another model than its weights, or damaged; copy it again")


def _numbers(value):
    """All integers in nested dicts and lists: sizes of a model, none of which is larger than all of it."""
    if isinstance(value, dict | list):
        return [n for v in (value.values() if isinstance(value, dict) else value) for n in _numbers(v)]
    return [value] if isinstance(value, int) else []


def selection(state):
    """How far a checkpoint (from `load_state`) was trained and why it was kept: `epoch`, `update`, and `selected`, a phrase for reports."""
    cfg, extra = OmegaConf.create(state["cfg"], flags={"allow_objects": True}), state.get("extra_state") or {}
    position = extra.get("train_iterator") or {}
    epoch = position.get("epoch", 1) - (position.get("iterations_in_epoch", 0) == 0)
    updates = (state.get("optimizer_history") or [{}])[-1].get("num_updates")
    metric, value, best = cfg.checkpoint.best_checkpoint_metric, extra.get("val_loss"), extra.get("best")
    if value is None:
        selected = f"the last epoch ({epoch}); nothing was selected on validation data"
    elif value == best:
        selected = f"epoch {epoch}, the best on validation data so far ({metric} {value:.3f})"
    else:
        selected = f"epoch {epoch}, not the best on validation data ({metric} {value:.3f}, best {best:.3f})"
    return {"epoch": epoch, "update": updates, "selected": selected}
