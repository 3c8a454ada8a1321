"""Supervised contrastive learning: the paper's formula, the same on two processes, classes read off by centroids or a linear layer."""

import json

import numpy as np
import pytest
import torch
from finetuning import finetune
from scripts import run
from torch import distributed, multiprocessing
from torch.nn import functional as F

from emohubert.core.errors import InputError
from emohubert.criterions.emotion import EmotionContrastive, supervised_contrastive
from emohubert.models.heads import ContrastiveHead


def of_the_paper(points, target, temperature):
    """Khosla et al. 2020, equation 2, sum by sum."""
    losses = []
    for i in range(len(points)):
        positives = [p for p in range(len(points)) if p != i and target[p] == target[i]]
        if not positives:
            continue
        below = sum(np.exp(points[i] @ points[a] / temperature) for a in range(len(points)) if a != i)
        losses.append(-np.mean([np.log(np.exp(points[i] @ points[p] / temperature) / below) for p in positives]))
    return np.mean(losses) if losses else 0.0


@pytest.mark.parametrize("target", [[0, 1, 0, 2, 1, 0, 3], [0, 0], [0, 1, 2], [1], [2, 2, 2, 2]])
def test_the_loss_is_the_papers(target):
    points = F.normalize(torch.randn(len(target), 5, dtype=torch.double, generator=torch.Generator().manual_seed(0)), dim=-1)
    points.requires_grad_()
    loss = supervised_contrastive(points, torch.tensor(target), 0.3)
    assert loss.item() == pytest.approx(of_the_paper(points.detach().numpy(), target, 0.3), abs=1e-9)
    loss.backward()
    assert points.grad.isfinite().all()


def test_its_gradient_agrees_with_finite_differences():
    points = torch.randn(6, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.tensor([0, 1, 0, 1, 2, 0])
    assert torch.autograd.gradcheck(lambda p: supervised_contrastive(F.normalize(p, dim=-1), target, 0.5), points)


def test_centroids_are_the_means_of_their_classes():
    head = ContrastiveHead(4, 3, size=5)
    points = F.normalize(torch.randn(40, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    target = torch.arange(40) % 2
    head.follow(points, target)
    for c in (0, 1):
        torch.testing.assert_close(head.centroids[c], points[target == c].mean(dim=0))
    nearest = (points @ F.normalize(head.centroids[:2], dim=-1).T).argmax(dim=1)
    assert torch.equal(head.read_out(points).argmax(dim=1), nearest), "a class that was never met is never the nearest"
    before = head.centroids.clone()
    head.follow(points[:2], target[:2])
    torch.testing.assert_close(head.centroids[0], 0.99 * before[0] + 0.01 * points[0])


def test_the_read_out_does_not_move_the_points():
    head = ContrastiveHead(4, 3)
    points = head.project(torch.randn(2, 4, requires_grad=True))
    assert torch.allclose(points.norm(dim=-1), torch.ones(2)) and not head.read_out(points).requires_grad


class Points(torch.nn.Module):
    """A model whose projections are its parameters."""

    def __init__(self, points):
        super().__init__()
        self.points, self.head = torch.nn.Parameter(points), ContrastiveHead(4, 3, size=points.size(1))

    def forward(self, rows):
        points = F.normalize(self.points[rows], dim=-1)
        return {"projection": points, "output": self.head.read_out(points)}


def sample_of(rows, target):
    return {"net_input": {"rows": rows}, "target": target[rows], "ntokens": 1, "nsentences": len(rows)}


def _rank(rank, folder, points, target):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model, criterion = Points(points).train(), EmotionContrastive(None)
    rows = torch.arange(3) if rank == 0 else torch.arange(3, 10)
    loss, size, _ = criterion(model, sample_of(rows, target))
    loss.backward()
    distributed.all_reduce(model.points.grad)
    torch.save({"gradient": model.points.grad / 10, "size": size, "centroids": model.head.centroids}, f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_gradient_and_centroids_of_one(tmp_path):
    torch.manual_seed(0)
    points, target = torch.randn(10, 6), torch.arange(10) % 3
    multiprocessing.spawn(_rank, args=(str(tmp_path), points, target), nprocs=2)
    whole = Points(points.clone()).train()
    loss, size, _ = EmotionContrastive(None)(whole, sample_of(torch.arange(10), target))
    (loss / size).backward()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["gradient"], whole.points.grad)
        torch.testing.assert_close(found["centroids"], whole.head.centroids)


def test_another_head_is_refused():
    model = lambda **_: {"output": torch.zeros(1, 2)}  # noqa: E731
    with pytest.raises(InputError, match=r"model\.head=contrastive"):
        EmotionContrastive(None)(model, sample_of(torch.tensor([0]), torch.tensor([0])))


@pytest.mark.slow
def test_from_checkpoint_to_metrics(corpus, tmp_path):
    finished = finetune(
        corpus,
        "contrastive",
        *("optimization.max_epoch=8", "model.freeze=none", f"checkpoint.save_dir={tmp_path}/run"),
        *("model.head_dropout=0", "dataset.batch_size=12"),
    )
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert (
        run("tools/evaluate.py", tmp_path / "run" / "checkpoint_best.pt", corpus / "manifest", "test", tmp_path / "out", "--repeats", "20")
        == 0
    )
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["UA"] > 0.6, "four tones are easy"
