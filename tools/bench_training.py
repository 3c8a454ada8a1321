#!/usr/bin/env python3
"""Measure an update of PAPT against one of fairseq's own hubert_pretraining: same size, same weights, same batch.

Ours is the config papt_SIZE (speaker_hubert with its speaker position, masked_prediction). Theirs is fairseq's
HubertPretrainingTask, HubertModel and HubertCriterion as they are installed, with our sizes, our weights and no speakers.
Both are trained by fairseq's Trainer (Adam, and for bf16 and fp16 on a GPU its half-precision models with float32 masters; on a
CPU fairseq has float32 only, which our bf16 is measured against), in turn in one process, so that whatever else the machine
does meets both. The batch is noise of different lengths, or comes from a manifest directory; either side reads it from files
through its own dataset. Times are medians over updates; the memory of a side is what it adds at its peak to what was there before.

Settings that let both learn from the same frames of the same labels:
- fairseq's pad_audio is on (by itself it crops a batch to its shortest utterance) and its random_crop off;
- fairseq's dictionary adds four symbols to the labels: ours has four classes more, too;
- no layer is dropped in either, since the two would drop different ones.
All else stays as either does it: fairseq computes the logits of unmasked frames, too, masks as many frames of every utterance
as of the shortest, lets padding in, and weighs the penalty on an utterance's features by the mean number of masked frames
instead of its own. So the losses of a batch differ a little; those of its longest utterance, which has no padding, must be
the same ("alone"). Both are in bits per masked frame, before training, for the same masks and without dropout.

FLOPs are those of a forward and backward pass of ours: matrix products and convolutions, two for a multiplication and an
addition.

  tools/bench_training.py --size base --precision bf16 fp16 --out bench_training.json
"""

# ruff: noqa: E402 (the command line is read before the slow imports)
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli


def make_parser():
    """The command line."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--size", choices=["tiny", "base", "large"], default="base", help="of the model: config/papt_SIZE.yaml")
    parser.add_argument("--precision", choices=["float32", "bf16", "fp16"], nargs="+", default=["float32"], help="one or several")
    parser.add_argument("--batch-seconds", type=float, metavar="S", help="audio of a batch, padding counted (default: the config's)")
    parser.add_argument(
        "--utterance-seconds", type=float, nargs=2, default=[4.0, 6.0], metavar=("MIN", "MAX"), help="lengths of the utterances of noise"
    )
    parser.add_argument("--clusters", type=int, default=500, metavar="K", help="labels of the noise")
    parser.add_argument("--manifest", type=Path, metavar="DIR", help="take the batch from this manifest directory instead")
    parser.add_argument("--split", default="train", help="of --manifest")
    parser.add_argument("--label-dir", type=Path, metavar="DIR", help="frame labels (default: in --manifest)")
    parser.add_argument("--labels", default="km", help="label set in --label-dir, as for task.labels")
    parser.add_argument("--updates", type=int, default=20, metavar="N", help="of either side that are measured; 0: only count FLOPs")
    parser.add_argument("--warmup", type=int, default=3, metavar="N", help="updates before those")
    parser.add_argument(
        "--peak-tflops", type=float, nargs="+", metavar="T", help="what the GPU can do, for each --precision: also print how much is used"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_device()
    parser.add_seed()
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and bad usage end here, before the slow imports

import emohubert.tasks  # noqa: F401 (before fairseq, whose logging it keeps to itself)

# isort: split
import contextlib
import gc
import math
import statistics
import tempfile
import time
import warnings

import numpy as np
import soundfile
import torch
from fairseq import tasks
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.initialize import add_defaults
from fairseq.models.hubert.hubert import HubertConfig
from fairseq.trainer import Trainer
from fairseq.utils import apply_to_sample
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf, open_dict
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from emohubert.core.device import choose_device, has_bf16
from emohubert.core.errors import InputError
from emohubert.core.files import make_folder, write_json, write_lines
from emohubert.corpus.audio import FRAME_RATE, HOP, RECEPTIVE_FIELD, SAMPLE_RATE, n_frames
from emohubert.corpus.frame_labels import NO_LABEL
from emohubert.corpus.manifest import Utterance, write_splits

CONFIGS = Path(__file__).resolve().parents[1] / "config"
SPLIT = "train"
ADDED = 4
"""Symbols that fairseq's Dictionary adds before those of its file."""
SIDES = ("ours", "fairseq")


def composed(size):
    """The config papt_SIZE as fairseq-hydra-train sees it, from random weights and without dropping layers."""
    name = f"papt_{size}"
    ConfigStore.instance().store(name=name, node=FairseqConfig)
    with warnings.catch_warnings(), initialize_config_dir(str(CONFIGS), version_base="1.1"):
        warnings.simplefilter("ignore", UserWarning)  # Hydra on the schema of the same name, as fairseq registers it
        return compose(name, ["model.init_from=null", "model.encoder_layerdrop=0.0"])


def resolved(cfg, folder, seed, device, precision):
    """The config of one side's training, without interpolations; `folder` is for whatever the trainer writes."""
    cfg.checkpoint.save_dir = str(folder)
    cfg.common.seed = seed
    cfg.common.cpu = device.type == "cpu"
    cfg.common.fp16, cfg.common.bf16 = precision == "fp16", precision == "bf16"
    cfg.distributed_training.distributed_world_size = 1
    add_defaults(cfg)
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))


def config_of_ours(size, folder, **options):
    """What our side is trained with; `options` as for `resolved`."""
    cfg = composed(size)
    with open_dict(cfg):
        cfg.task.update({"data": str(folder / "manifest"), "label_dir": str(folder / "ours"), "labels": ["km"], "max_sample_size": None})
    return resolved(cfg, folder, **options)


def config_of_fairseq(size, folder, **options):
    """What fairseq's side is trained with: everything of ours that it knows."""
    cfg = composed(size)
    with open_dict(cfg):
        cfg.task = {
            "_name": "hubert_pretraining",
            "data": str(folder / "manifest"),
            "label_dir": str(folder / "fairseq"),
            "labels": ["km"],
            "label_rate": FRAME_RATE,
            "sample_rate": SAMPLE_RATE,
            "normalize": cfg.task.normalize,
            "pad_audio": True,
            "random_crop": False,
        }
        weights = {key: cfg.criterion[key] for key in ("pred_masked_weight", "pred_nomask_weight")}
        cfg.criterion = {"_name": "hubert", **weights, "loss_weights": [cfg.criterion.features_pen_weight]}
        known = {key: value for key, value in cfg.model.items() if key in HubertConfig.__dataclass_fields__}
        cfg.model = {**known, "_name": "hubert", "label_rate": FRAME_RATE}
    return resolved(cfg, folder, **options)


class Side:
    """One of the two: its task, model and criterion, and through its own dataset the batch (`sample`) and its longest utterance."""

    def __init__(self, cfg):
        self.cfg = cfg
        task = tasks.setup_task(cfg.task)
        torch.manual_seed(cfg.common.seed)
        self.task, self.model, self.criterion = task, task.build_model(cfg.model), task.build_criterion(cfg.criterion)
        task.load_dataset(SPLIT)
        dataset = task.datasets[SPLIT]
        items = [dataset[i] for i in range(len(dataset))]
        self.sample = dataset.collater(items)
        self.longest = dataset.collater([items[int(np.argmax(dataset.sizes))]])
        self.trainer = self.peak = None
        self.seconds = []

    def to_model(self, sample):
        """A batch on the model's device, in its precision."""
        weight = next(self.model.parameters())
        return apply_to_sample(lambda t: t.to(weight.device, weight.dtype if t.is_floating_point() else t.dtype), sample)

    @torch.no_grad()
    def loss(self, sample):
        """Loss of a batch in bits per masked frame, without dropout."""
        self.model.eval()
        loss, size, _ = self.criterion(self.model, self.to_model(sample))
        return float(loss) / float(size) / math.log(2)

    def begin(self, warm_up):
        """Make the trainer and warm it up; measures memory, in bytes, on a GPU."""
        gpu = torch.cuda.is_available() and not self.cfg.common.cpu
        if gpu:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        self.trainer = Trainer(self.cfg, self.task, self.model, self.criterion)
        for _ in range(warm_up):
            self.update()
        self.seconds.clear()
        if gpu:
            self.peak = torch.cuda.max_memory_allocated() - before

    def update(self):
        """One update, timed."""
        wait = (lambda: None) if self.cfg.common.cpu else torch.cuda.synchronize
        wait()
        start = time.perf_counter()
        self.trainer.train_step([self.sample], raise_oom=True)
        wait()
        self.seconds.append(time.perf_counter() - start)


@contextlib.contextmanager
def masked_as(model, mask):
    """fairseq's model masks these frames, (batch, frames) bool, instead of some of its own."""
    model.apply_mask = lambda x, *_: (torch.where(mask.to(x.device).unsqueeze(-1), model.mask_emb, x), mask.to(x.device))
    try:
        yield
    finally:
        del model.apply_mask


def losses(ours, theirs):
    """{"batch" or "alone": {side: bits per masked frame}} for the same masks; both models are as they began."""
    found = {}
    for name, attribute in (("batch", "sample"), ("alone", "longest")):
        samples = [getattr(side, attribute) for side in (ours, theirs)]
        with masked_as(theirs.model, samples[0]["net_input"]["mask_indices"]):
            found[name] = dict(zip(SIDES, (ours.loss(samples[0]), theirs.loss(samples[1])), strict=True))
    return found


def backward_of_convolution(grad, _, weight, *rest, out_shape=None, **__):
    """FLOPs of a convolution's gradients from shapes (torch 2.11 forgets the groups of the weights' gradient): of the output's gradient
    (batch, channels, frames), of weights (channels, channels / groups, kernel); last, which of (input, weight, bias) have a gradient."""
    return 2 * sum(rest[-1][:2]) * grad[0] * grad[2] * math.prod(weight)


def flops_of(side):
    """FLOPs of a forward and backward pass over the batch; attention is written out, since torch does not count all its kernels."""
    side.model.train()
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: backward_of_convolution})
    with sdpa_kernel(SDPBackend.MATH), counter:
        side.criterion(side.model, side.to_model(side.sample))[0].backward()
    side.model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def noise(args, budget):
    """Utterances of noise with random labels, as many as fit in `budget` samples with padding: list of (samples, labels, speaker)."""
    rng = np.random.default_rng(args.seed)
    shortest, longest = (round(s * SAMPLE_RATE) for s in args.utterance_seconds)
    lengths = []
    while True:
        n = int(rng.integers(shortest, longest + 1))
        if (len(lengths) + 1) * max([n, *lengths]) > budget:
            break
        lengths.append(n)
    if not lengths:
        raise InputError(f"--batch-seconds {budget / SAMPLE_RATE:g} holds no utterance of --utterance-seconds; give more")
    return [
        (0.1 * rng.standard_normal(n, dtype=np.float32), rng.integers(0, args.clusters, n_frames(n)), f"speaker{i % 10}")
        for i, n in enumerate(lengths)
    ]


def from_manifest(args, budget):
    """The fullest batch of a manifest directory in the first epoch: list of (samples, labels, speaker), and the number of labels."""
    cfg = composed(args.size)
    with open_dict(cfg):
        cfg.task.update({"data": str(args.manifest), "label_dir": args.label_dir and str(args.label_dir), "labels": [args.labels]})
    cfg = resolved(cfg, ".", args.seed, torch.device("cpu"), "float32")
    task = tasks.setup_task(cfg.task)
    task.load_dataset(args.split)
    dataset = task.datasets[args.split]
    items = []
    batches = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=budget)
    for i in max(batches, key=lambda batch: dataset.sizes[batch].sum()):
        item = dataset[i]
        (labels,) = item["targets"]
        labels = labels[: int((labels != NO_LABEL).sum())]  # where labels end too soon, fairseq would learn its padding
        if len(labels):
            n = len(item["source"]) if len(labels) == n_frames(len(item["source"])) else (len(labels) - 1) * HOP + RECEPTIVE_FIELD
            items.append((item["source"][:n].numpy(), labels, dataset.split.speakers[i]))
    if not items:
        raise InputError(f"{args.manifest}/{args.split}.tsv: no labels in the fullest batch; make the labels again")
    return items, len(task.label_sets[0])


def write_batch(folder, utterances, classes):
    """Write audio, manifest and labels: ours with classes in place of the four symbols that fairseq adds to its own."""
    audio = make_folder(folder / "audio")
    split = []
    for i, (samples, _, speaker) in enumerate(utterances):
        soundfile.write(audio / f"{i:04}.wav", samples, SAMPLE_RATE, subtype="FLOAT")
        split.append(Utterance(f"{i:04}.wav", len(samples), speaker))
    write_splits(folder / "manifest", audio, {SPLIT: split})
    for side, first in zip(SIDES, (-ADDED, 0), strict=True):
        labels = make_folder(folder / side)
        write_lines(labels / "dict.km.txt", [f"{c} 1" for c in range(first, classes)])
        write_lines(labels / f"{SPLIT}.km", [" ".join(map(str, row)) for _, row, _ in utterances])


def build(args, folder, device, precision):
    """Both sides, with the same weights, where fairseq has them."""
    options = {"seed": args.seed, "device": device}
    theirs = config_of_fairseq(args.size, folder, **options, precision=precision if device.type == "cuda" else "float32")
    ours, theirs = Side(config_of_ours(args.size, folder, **options, precision=precision)), Side(theirs)
    weights = {k: v for k, v in ours.model.state_dict().items() if not k.startswith("speaker_conditioning.")}
    theirs.model.load_state_dict(weights, strict=True)
    return ours, theirs


def measure(args, folder, device, precision):
    """Figures of one precision: {side: {"seconds": …, "updates_per_second": …, …}, "losses": …, "ratio": …}."""
    np.random.seed(args.seed)  # fairseq's masks
    sides = build(args, folder, device, precision)
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16} if device.type == "cuda" else {}  # a CPU's weights stay in float32
    kind = kinds.get(precision, torch.float32)
    for side in sides:
        side.model.to(device, kind)
    found = {"losses": losses(*sides)}
    for side in sides:
        side.model.to("cpu")  # the trainer puts it back: what it takes is counted from nothing
    for name, side in zip(SIDES, sides, strict=True):
        with saying_what_is_too_large(name, args):
            side.begin(args.warmup)
    for _ in cli.progress(range(args.updates), precision, unit="updates"):
        for name, side in zip(SIDES, sides, strict=True):
            with saying_what_is_too_large(name, args):
                side.update()
    for name, side in zip(SIDES, sides, strict=True):
        median = statistics.median(side.seconds)
        found[name] = {
            "seconds": median,
            "fastest": min(side.seconds),
            "slowest": max(side.seconds),
            "updates_per_second": 1 / median,
            "peak_bytes": side.peak,
            "overflows": args.warmup + args.updates - side.trainer.get_num_updates(),
        }
    found["ratio"] = found["fairseq"]["seconds"] / found["ours"]["seconds"]
    return found


@contextlib.contextmanager
def saying_what_is_too_large(side, args):
    """A batch that a GPU cannot hold is the user's to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(f"the batch does not fit into the GPU's memory ({side}); lower --batch-seconds") from error


def table(figures):
    """Lines that are printed."""
    low, high = figures["shortest_seconds"], figures["longest_seconds"]
    yield (
        f"{figures['size']}: {figures['audio_seconds']:.1f} s of audio in {figures['utterances']} utterances of {low:.1f} to {high:.1f} s; "
        f"{figures['device']}; {figures['clusters']} clusters"
    )
    yield f"ours, forward and backward: {figures['flops_per_audio_second'] / 1e9:.1f} GFLOP per second of audio"
    if not figures["precisions"]:
        return
    yield f"{'':18}{'s/update':>10}{'updates/s':>11}{'memory':>14}{'loss':>9}{'alone':>9}"
    for precision, found in figures["precisions"].items():
        for side in SIDES:
            row, loss = found[side], found["losses"]
            memory = "not measured" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.2f} GiB"
            yield (
                f"{f'{precision} {side}':18}{row['seconds']:10.3f}{row['updates_per_second']:11.3g}{memory:>14}"
                f"{loss['batch'][side]:9.4f}{loss['alone'][side]:9.4f}"
            )
        line = f"{precision}: ratio {found['ratio']:.2f} (updates per second, ours over fairseq's)"
        if "of_peak" in found:
            line += f"; ours uses {found['of_peak']:.1%} of --peak-tflops"
        if any(found[side]["overflows"] for side in SIDES):
            line += "; updates without a step, as their gradients overflowed: " + ", ".join(
                f"{side} {found[side]['overflows']}" for side in SIDES
            )
        yield line


def check(args, device):
    """Refuse what cannot be measured."""
    if min(args.updates, args.warmup) < 0 or args.clusters < 2:
        raise InputError("--updates and --warmup must be 0 or more, --clusters 2 or more")
    low, high = args.utterance_seconds
    if not RECEPTIVE_FIELD / SAMPLE_RATE <= low <= high:
        raise InputError(
            f"--utterance-seconds {low:g} {high:g}: give the shortest and the longest, {RECEPTIVE_FIELD / SAMPLE_RATE} s or more"
        )
    if device.type == "cpu" and ("fp16" in args.precision or ("bf16" in args.precision and not has_bf16(device))):
        raise InputError("--precision fp16 needs a GPU, bf16 one or a processor that has it; use --precision float32")
    if device.type == "cuda" and args.warmup < 2:
        raise InputError("--warmup must be 2 or more on a GPU: only then is everything in memory that training needs")
    if args.peak_tflops is not None and (len(args.peak_tflops) != len(args.precision) or min(args.peak_tflops) <= 0):
        raise InputError("--peak-tflops needs one positive number for each --precision")


@cli.command
def main(argv=None):
    args = make_parser().parse_args(argv)
    device = choose_device(args.device)
    check(args, device)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # fairseq takes the current one
    seconds = composed(args.size).dataset.max_tokens / SAMPLE_RATE if args.batch_seconds is None else args.batch_seconds
    budget = round(seconds * SAMPLE_RATE)
    utterances, classes = (noise(args, budget), args.clusters) if args.manifest is None else from_manifest(args, budget)
    lengths = [len(samples) / SAMPLE_RATE for samples, _, _ in utterances]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_batch(folder, utterances, classes)
        ours = Side(config_of_ours(args.size, folder, seed=args.seed, device=device, precision="float32"))
        ours.model.to(device)
        flops = flops_of(ours)
        del ours
        precisions = {}
        for i, precision in enumerate(args.precision if args.updates else []):
            precisions[precision] = measure(args, folder, device, precision)
            if args.peak_tflops is not None:
                precisions[precision]["of_peak"] = flops / precisions[precision]["ours"]["seconds"] / args.peak_tflops[i] / 1e12
    figures = {
        "size": args.size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "utterances": len(utterances),
        "audio_seconds": sum(lengths),
        "shortest_seconds": min(lengths),
        "longest_seconds": max(lengths),
        "clusters": classes,
        "warmup": args.warmup,
        "updates": args.updates,
        "seed": args.seed,
        "flops": flops,
        "flops_per_audio_second": flops / sum(lengths),
        "precisions": precisions,
    }
    if args.out:
        make_folder(args.out.parent)
        write_json(args.out, figures)
    print("\n".join(table(figures)))


if __name__ == "__main__":
    main()
