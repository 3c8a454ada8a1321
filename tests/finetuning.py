"""Fine-tuning for tests: a small labelled corpus with a pretrained encoder of four speakers, and what is built on it."""

from corpus import make_corpus, make_labels
from training import MICRO, train

from emohubert.models.emotion import EmotionHubertConfig, EmotionHubertModel, resolve_backbone

AT_INPUT = ("task.speakers=spk", "model.speaker_position=input")


def make_pretrained_corpus(folder, *overrides, updates=2, **corpus):
    """`make_corpus` and its labels in `folder`, and an encoder of two layers × 32 pretrained on it; returns the folder."""
    make_labels(make_corpus(folder, **corpus), folder / "labels")
    options = [f"task.data={folder}/manifest", f"task.label_dir={folder}/labels", f"checkpoint.save_dir={folder}/hubert"]
    pretraining = train("hubert_tiny", *MICRO, *options, f"optimization.max_update={updates}", *overrides)
    assert pretraining.returncode == 0, pretraining.stdout[-3000:]
    return folder


def checkpoint(corpus):
    """The pretrained encoder."""
    return corpus / "hubert" / "checkpoint_last.pt"


def finetune(corpus, kind, *overrides):
    """Run ser_{kind}_tiny into {corpus}/{kind}, unless the overrides say otherwise."""
    options = [f"task.data={corpus}/manifest", f"model.init_from={checkpoint(corpus)}", f"checkpoint.save_dir={corpus}/{kind}"]
    return train(f"ser_{kind}_tiny", *options, "model.mask_channel_length=4", "optimization.lr=[0.003]", *overrides)


def build(corpus, outputs=4, **values):
    """An EmotionHubertModel on the pretrained encoder."""
    cfg = EmotionHubertConfig(init_from=str(checkpoint(corpus)), **values)
    cfg.backbone, pretrained = resolve_backbone(cfg)
    model = EmotionHubertModel(cfg, outputs, pretrained.speakers)
    model.start_from(pretrained)
    return model
