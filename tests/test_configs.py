"""Every named config composes, holds only keys that exist, and says what it says it does."""

import functools

import pytest
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.dataclass.configs import FairseqConfig
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from training import ROOT

import emohubert.tasks  # noqa: F401 (registers the configs)

NAMED = sorted(p.stem for p in (ROOT / "config").glob("*.yaml") if not p.stem.startswith("_"))
GIVEN = {"task.data", "task.label_dir", "model.init_from"}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Hydra on the schema of the same name, as fairseq registers it


@functools.cache
def composed(name):
    """The config as `fairseq-hydra-train` sees it, laid over fairseq's schema."""
    ConfigStore.instance().store(name=name, node=FairseqConfig)
    with initialize_config_dir(str(ROOT / "config"), version_base="1.1"):
        return compose(name)


@pytest.mark.parametrize("name", NAMED)
def test_keys_exist(name):
    cfg = composed(name)
    for section, registry in (
        ("task", TASK_DATACLASS_REGISTRY),
        ("model", MODEL_DATACLASS_REGISTRY),
        ("criterion", CRITERION_DATACLASS_REGISTRY),
    ):
        known = OmegaConf.structured(registry[cfg[section]._name])
        assert set(cfg[section]) - {"_name"} <= set(known), section
    missing = {f"{section}.{key}" for section in ("task", "model") for key in cfg[section] if OmegaConf.is_missing(cfg[section], key)}
    assert missing <= GIVEN


@pytest.mark.parametrize("name", NAMED)
def test_no_secret_default_of_fairseq_wins(name):
    """What a fragment sets must not be laid over by fairseq's schema."""
    cfg = composed(name)
    assert cfg.checkpoint.no_epoch_checkpoints and cfg.optimizer._name == "adam"
    assert cfg.dataset.max_tokens and cfg.optimization.lr[0] < 0.01


def test_the_papers_continued_pretraining():
    """Li et al. 2024: lr 5e-4, 4 000 of 20 000 updates warm-up, betas (0.9, 0.98), eps 1e-6, weight decay 0.01, clip 10, masks 0.80 × 10."""
    cfg = composed("flea_base")
    assert (cfg.optimization.lr, cfg.optimization.max_update, cfg.lr_scheduler.warmup_updates) == ([0.0005], 20_000, 4_000)
    assert (cfg.optimizer.adam_betas, cfg.optimizer.adam_eps, cfg.optimizer.weight_decay) == ("(0.9,0.98)", 1e-6, 0.01)
    assert (cfg.optimization.clip_norm, cfg.model.mask_prob, cfg.model.mask_length) == (10.0, 0.8, 10)
    assert (cfg.model.speaker_position, cfg.task.speakers) == ("none", None)


@pytest.mark.parametrize(("size", "lr"), [("small", 0.0002), ("base", 0.00001), ("large", 0.00001)])
def test_papt_and_tapt_differ_in_the_speaker_alone(size, lr):
    """Tran, Yin & Soleymani 2023: ten epochs, 5 % warm-up, peak 1e-5 (base, large), linear decay."""
    papt, tapt = composed(f"papt_{size}"), composed(f"tapt_{size}")
    assert (papt.optimization.lr, papt.optimization.max_epoch, papt.optimization.max_update) == ([lr], 10, 0)
    assert (papt.lr_scheduler._name, papt.lr_scheduler.warmup_updates, papt.lr_scheduler.warmup_ratio) == ("decay_to_the_end", 0, 0.05)
    assert (papt.model.speaker_position, papt.model.speaker_fc, papt.task.speakers) == ("output", True, "spk")
    papt, tapt = map(OmegaConf.to_container, (papt, tapt))
    sections = ("task", "model", "criterion", "dataset", "optimization", "optimizer", "lr_scheduler")
    changed = {f"{name}.{key}" for name in sections for key in papt[name] if papt[name][key] != tapt[name][key]}
    assert changed == {"task.speakers", "model.speaker_position", "model.speaker_fc"}


@pytest.mark.parametrize(("size", "layers", "width"), [("tiny", 4, 192), ("small", 6, 256), ("base", 12, 768), ("large", 24, 1024)])
def test_sizes(size, layers, width):
    cfg = composed(f"papt_{size}")
    assert (cfg.model.encoder_layers, cfg.model.encoder_embed_dim) == (layers, width)
    assert cfg.task.normalize == (cfg.model.extractor_mode == "layer_norm") == (size == "large")
