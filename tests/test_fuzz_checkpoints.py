"""Some 300 damaged or forged files through their loaders: a whole result or an InputError; no code is run, no time or memory is lost."""

import copy
import io
import json
import random
import resource
import signal
import zipfile

import numpy as np
import pytest
import torch
from hostile import Hostile
from test_checkpoints import our_model, save_ours, stock_checkpoint

from emohubert.core.errors import InputError
from emohubert.models.from_pretrained import build_encoder
from emohubert.pretrained.huggingface import write_folder
from emohubert.pretrained.load import read_pretrained
from emohubert.pseudo_labels.centroid_files import load_centroids, write_joblib
from emohubert.pseudo_labels.centroids import KMeans
from emohubert.tasks.trained import load_trained

pytestmark = pytest.mark.slow
VALUES = (None, -1, 0, 10**9, 2**63, 1e308, float("nan"), "x", "", [], {}, [1, [2]], True, torch.zeros(2), b"x", ("a",) * 3)
"""What takes the place of something in a checkpoint or a configuration."""
MEMORY = 1 << 20  # KiB that a loader may take at most


def encoder(path):
    """Read an encoder and build it: its parameters."""
    return build_encoder(read_pretrained(path)).state_dict()


def trained(path):
    return load_trained(path)[1].state_dict()


def centroids(path):
    return {"centroids": torch.from_numpy(load_centroids(path).centroids)}


def flipped(path, rng):
    """Some bytes are others."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 5, 50))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)


def cut(path, rng):
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))] + rng.choice((b"", bytes(100), data[:50])))


def _rezipped(path, change):
    """Change {name: content} of a zip, and write it with right checksums, so that what reads the content sees it."""
    with zipfile.ZipFile(path) as archive:
        members = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, bytes(content))


def members_swapped(path, rng):
    def change(members):
        one, two = rng.sample(sorted(members), 2)
        members[one], members[two] = members[two], members[one]
        if rng.random() < 0.5:
            del members[one]

    _rezipped(path, change)


def members_damaged(path, rng):
    """Other instructions, numbers and names in the pickle; other headers of arrays."""

    def change(members):
        name = next((n for n in members if n.endswith("data.pkl")), None) or rng.choice(sorted(members))
        for _ in range(rng.choice((1, 3))):
            members[name][rng.randrange(len(members[name]))] = rng.randrange(256)

    _rezipped(path, change)


def values_changed(path, rng):
    """A value somewhere is another, or gone."""
    state = torch.load(path, weights_only=True)
    _change(state, rng, depth=rng.randrange(1, 5))
    torch.save(state, path)


def _change(value, rng, depth):
    keys = [*value] if isinstance(value, dict) else [*range(len(value))] if isinstance(value, list) else []
    if not keys:
        return
    key = rng.choice(keys)
    if depth > 1 and isinstance(value[key], dict | list) and value[key]:
        _change(value[key], rng, depth - 1)
    elif rng.random() < 0.2:
        del value[key]
    else:
        value[key] = copy.deepcopy(rng.choice(VALUES))


def configuration_changed(path, rng):
    state = torch.load(path, weights_only=True)
    _change(state["cfg"]["model"], rng, 1)
    torch.save(state, path)


def code_put_in(path, rng):
    state = torch.load(path, weights_only=True)
    place = rng.choice((state, state["model"], state["cfg"]["model"]))
    place[rng.choice([*place])] = Hostile(path.parent / "it_ran")
    torch.save(state, path, _use_new_zipfile_serialization=rng.random() < 0.5)


def folder_changed(folder, rng):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    plain = [v for v in VALUES if not isinstance(v, (torch.Tensor, bytes))]
    config[rng.choice(sorted(config))] = rng.choice([*plain, [10**9] * 7, "gelu"])
    path.write_text(json.dumps(config))


def weights_damaged(folder, rng):
    rng.choice((flipped, cut))(folder / "model.safetensors", rng)


def header_changed(folder, rng):
    """The JSON before the tensors of a safetensors file: other shapes, types, offsets."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    _change(entry, rng, 2)
    new = json.dumps(header, default=str).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + size :])


def header_of_an_array_changed(path, rng):
    """An npz whose array claims to be of another size or type."""
    shape = rng.choice(((10**12, 8), (-1, 8), (3,), (0, 8), (2**62, 2**62), (4, 4)))
    header = {"descr": rng.choice(("<f4", "<f8", "|O", "<U9", "<f4,<f4")), "fortran_order": False, "shape": shape}

    def change(members):
        np.lib.format.write_array_header_1_0(new := io.BytesIO(), header)
        members[rng.choice(sorted(members))] = bytearray(new.getvalue() + bytes(128))

    _rezipped(path, change)


CASES = {  # file: (loader, mutations, how many of each)
    "ours.pt": (trained, (flipped, cut, members_swapped, members_damaged, values_changed, configuration_changed, code_put_in), 16),
    "stock.pt": (encoder, (flipped, cut, members_swapped, members_damaged, values_changed, configuration_changed, code_put_in), 12),
    "hugging_face": (encoder, (folder_changed, weights_damaged, header_changed), 20),
    "kmeans.npz": (centroids, (flipped, cut, members_swapped, members_damaged, header_of_an_array_changed), 8),
    "kmeans.km": (centroids, (flipped, cut), 20),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    stock_checkpoint(folder / "stock.pt")
    save_ours(folder / "ours.pt", our_model())
    state = torch.load(folder / "ours.pt", weights_only=True)
    state["cfg"] |= {"checkpoint": {"best_checkpoint_metric": "loss"}}
    state["cfg"]["task"] |= {"data": "manifest", "labels": ["km"]}
    state["task_state"]["label_sets"] = [{"name": "km", "symbols": [str(i) for i in range(10)], "counts": [1] * 10}]
    torch.save(state, folder / "ours.pt")
    write_folder(read_pretrained(folder / "stock.pt"), folder / "hugging_face")
    means = KMeans(np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32))
    means.save(folder / "kmeans.npz")
    write_joblib(means, folder / "kmeans.km")
    return folder


def _copy(source, target):
    if source.is_dir():
        target.mkdir(exist_ok=True)
        for file in source.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    else:
        target.write_bytes(source.read_bytes())


def _too_slow(*_):
    raise TimeoutError


@pytest.mark.parametrize("name", CASES)
def test_damaged_and_forged_files(whole, tmp_path, name):
    load, mutations, times = CASES[name]
    expected = {key: value.shape for key, value in load(whole / name).items()}
    rng, refused = random.Random(f"{name} 1"), 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = signal.signal(signal.SIGALRM, _too_slow)
    try:
        for mutate in mutations:
            for number in range(times):
                path = tmp_path / name
                _copy(whole / name, path)
                mutate(path, rng)
                signal.alarm(10)
                try:
                    found = load(path)
                except InputError as error:
                    refused += 1
                    assert name in str(error) and "\n" not in str(error), (mutate.__name__, number, error)
                except Exception as error:
                    raise AssertionError(f"{mutate.__name__} {number}: {type(error).__name__}: {error}") from error
                else:
                    assert {key: value.shape for key, value in found.items()} == expected, (mutate.__name__, number)
                finally:
                    signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert refused > len(mutations) * times / 3
    assert not (tmp_path / "it_ran").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < MEMORY
