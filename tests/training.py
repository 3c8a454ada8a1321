"""Running `fairseq-hydra-train` as a user does, without paying for its imports every time."""

import multiprocessing
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MICRO = [  # as small as a HuBERT gets
    "model.conv_feature_layers='[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2'",
    "model.encoder_layers=2",
    "model.encoder_embed_dim=32",
    "model.encoder_ffn_embed_dim=64",
    "model.encoder_attention_heads=2",
    "model.final_dim=16",
    "dataset.max_tokens=64000",
    "common.log_interval=1",
]
TINY = {  # fields of HubertConfig and SpeakerHubertConfig
    "conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2",
    "encoder_layers": 2,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 96,
    "encoder_attention_heads": 4,
    "final_dim": 24,
}
SERVER = multiprocessing.get_context("forkserver")
"""Starts processes that have imported fairseq already."""
SERVER.set_forkserver_preload(["fairseq_cli.hydra_train"])  # not emohubert: the user-dir is imported as in a fresh process


@dataclass
class Run:
    """A finished run: its exit status and everything it printed."""

    returncode: int
    stdout: str


def arguments(config, *overrides, config_dir="config"):
    """The command line of a training run, without the program."""
    return ["--config-dir", str(config_dir), "--config-name", config, *map(str, overrides)]


def start(config, *overrides, cwd=ROOT, config_dir="config", output=os.devnull):
    """Start a training run in a process of its own; returns the process."""
    process = SERVER.Process(
        target=_fairseq_hydra_train, args=(arguments(config, *overrides, config_dir=config_dir), str(cwd), str(output))
    )
    process.start()
    return process


def train(config, *overrides, cwd=ROOT, config_dir="config"):
    """Run to the end."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        process = start(config, *overrides, cwd=cwd, config_dir=config_dir, output=log.name)
        process.join(600)
        assert process.exitcode is not None, "the run takes more than ten minutes"
        return Run(process.exitcode, Path(log.name).read_text(errors="replace"))


def _fairseq_hydra_train(argv, cwd, output):
    with open(output, "ab") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    sys.argv = ["fairseq-hydra-train", *argv]
    os.chdir(cwd)
    import torch

    torch.set_num_threads(1)
    from fairseq_cli.hydra_train import cli_main

    cli_main()
