"""Augmentation of training audio: speed, then reverberation, then noise, each a function of an utterance's random generator alone."""

from ..core.errors import InputError
from ..corpus.audio import RECEPTIVE_FIELD
from . import degradations

DIRECT_TO_REVERBERANT = (-5.0, 10.0)
"""Range in dB of the direct path's energy against the rest, in generated rooms: from across a room to near the mouth."""


class Augmentation:
    """What `task.augment_…` does to an utterance, for a `SpeechDataset`. Its generator gives the speed first: lengths are known early.

    `speed`: factors that are equally likely (an utterance that would fall under one frame keeps its speed); `noise`, `reverb`: their
    probabilities; `noise_snr` (dB), `reverb_t60` (seconds): lowest and highest; `noise_files`, `reverb_files`: folders of recordings in
    place of what is generated, white, pink or babble noise, each as likely, and impulse responses. InputError if a value is out of range,
    or a folder is not there or holds no recording.
    """

    def __init__(self, speed=(), noise=0.0, noise_snr=(0.0, 30.0), noise_files=None, reverb=0.0, reverb_t60=(0.2, 0.8), reverb_files=None):
        degradations.check_speeds(speed, "task.augment_speed")
        self.speed = [] if set(speed) == {1} else list(speed)
        self.noise, self.reverb = noise, reverb
        for name, value in (("noise", noise), ("reverb", reverb)):
            if not 0 <= value <= 1:
                raise InputError(f"task.augment_{name}={value}: not a probability; give a number from 0 to 1")
        self.noise_snr = _range(noise_snr, "task.augment_noise_snr", -100, 100)
        self.reverb_t60 = _range(reverb_t60, "task.augment_reverb_t60", 0.01, 10)
        self.noise_files = _recordings(noise_files, self.noise, "task.augment_noise")
        self.reverb_files = _recordings(reverb_files, self.reverb, "task.augment_reverb")

    def __bool__(self):
        """Whether it does anything."""
        return bool(self.speed) or self.noise > 0 or self.reverb > 0

    @property
    def keeps_length(self):
        """Whether every utterance keeps its length."""
        return not self.speed

    def length(self, n, rng):
        """Samples that n samples become with this generator."""
        return degradations.speed_length(n, self._draw_speed(n, rng))

    def __call__(self, samples, rng):
        """The augmented waveform, (`length(len(samples), rng)`,) float32, for a generator in the same state."""
        factor = self._draw_speed(len(samples), rng)
        if factor != 1:
            samples = degradations.change_speed(samples, factor)
        if self.reverb > 0 and rng.random() < self.reverb:
            samples = degradations.reverberate(samples, self._draw_response(rng))
        if self.noise > 0 and rng.random() < self.noise:
            snr = rng.uniform(*self.noise_snr)
            samples = degradations.add_noise(samples, self._draw_noise(len(samples), rng), snr)
        return samples

    def _draw_speed(self, n, rng):
        if not self.speed:
            return 1
        factor = self.speed[int(rng.integers(len(self.speed)))]
        return factor if degradations.speed_length(n, factor) >= RECEPTIVE_FIELD else 1

    def _draw_response(self, rng):
        if self.reverb_files is not None:
            return self.reverb_files.whole(rng)
        return degradations.impulse_response(rng.uniform(*self.reverb_t60), rng.uniform(*DIRECT_TO_REVERBERANT), rng)

    def _draw_noise(self, n, rng):
        if self.noise_files is not None:
            return self.noise_files.part(n, rng)
        return degradations.make_noise(degradations.NOISES[int(rng.integers(len(degradations.NOISES)))], n, rng)


def _range(value, name, least, most):
    if len(value) != 2 or not least <= value[0] <= value[1] <= most:
        raise InputError(f"{name}={value}: not a range; give [lowest,highest], both from {least} to {most}")
    return tuple(value)


def _recordings(folder, probability, name):
    if folder is None:
        return None
    if probability == 0:
        raise InputError(f"{name}_files={folder} is never used, since {name} is 0; give {name} a probability, or leave the files out")
    try:
        return degradations.Recordings(folder)
    except InputError as error:
        raise InputError(f"{name}_files: {error}") from None
