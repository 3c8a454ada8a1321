"""LoRA: W + α/r · B A with few trained parameters A (r, in) and B (out, r), B zero at first (Hu et al. 2022)."""

import math

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..core.errors import InputError
from ..pretrained.types import ENCODER

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


class LoRA(nn.Module):
    """A parametrization of a weight (out, in). fairseq's attention multiplies by the weights of its layers without calling them, so that a
    layer's output is no place for it."""

    def __init__(self, weight, rank, alpha):
        super().__init__()
        self.scale = alpha / rank
        self.lora_A = nn.Parameter(weight.new_empty(rank, weight.size(1)))
        self.lora_B = nn.Parameter(weight.new_zeros(weight.size(0), rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, weight):
        """The weight that is multiplied by."""
        return torch.addmm(weight, self.lora_B, self.lora_A, alpha=self.scale)


def add_lora(model, cfg):
    """Freeze the encoder of a SpeakerHubertModel, and give the linear layers that a SpeakerHubertConfig names in `lora_targets` LoRA."""
    targets = list(cfg.lora_targets)
    if not targets or set(targets) - set(TARGETS):
        raise InputError(f"model.lora_targets={targets}: layers of the Transformer are {', '.join(TARGETS)}; name some of them")
    if cfg.lora_rank < 0:
        raise InputError(f"model.lora_rank={cfg.lora_rank}: not a number of dimensions; use 4 to 64, or 0 for none")
    for name, parameter in model.named_parameters():
        if name.startswith(ENCODER):
            parameter.requires_grad_(False)
    for name, module in list(model.encoder.layers.named_modules()):
        if name.split(".")[-1] in targets:
            parametrize.register_parametrization(module, "weight", LoRA(module.weight, cfg.lora_rank, cfg.lora_alpha))
