"""A learning-rate schedule over a training that is given in epochs: how many updates these are is known once there are batches."""

import math
from dataclasses import dataclass

from fairseq.optim.lr_scheduler import register_lr_scheduler
from fairseq.optim.lr_scheduler.polynomial_decay_schedule import PolynomialDecayLRSchedule, PolynomialDecayLRScheduleConfig

from ..core.options import option


@dataclass
class DecayToTheEndConfig(PolynomialDecayLRScheduleConfig):
    """fairseq's polynomial decay, whose length is filled in."""

    total_num_update: float = option(math.inf, "(filled in) updates of the whole training")
    warmup_ratio: float = option(0.05, "share of all updates that are warm-up, where warmup_updates is 0")


@register_lr_scheduler("decay_to_the_end", dataclass=DecayToTheEndConfig)
class DecayToTheEnd(PolynomialDecayLRSchedule):
    """fairseq's polynomial decay to the end of the training: `optimization.max_epoch` or `max_update`, whichever comes first. All epochs are
    taken to have as many updates as the first. Checkpoints hold the length, so that a resumed training ends as planned."""

    def set_length(self, updates):
        """How many updates there will be; the first word counts."""
        if self.total_num_update == math.inf:
            self.total_num_update = updates
            self.cfg.warmup_updates = self.cfg.warmup_updates or round(self.cfg.warmup_ratio * updates)

    def state_dict(self):
        """With the length of the training."""
        return {**super().state_dict(), "total_num_update": self.total_num_update}

    def load_state_dict(self, state_dict):
        """With the length of the training."""
        super().load_state_dict(state_dict)
        self.set_length(state_dict["total_num_update"])
