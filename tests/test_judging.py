"""The judge's training: its loss, its views, and that evaluation reads what training wrote."""

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator
from torch.nn import functional as F

from imprompt.evaluation.judge import load_judge
from imprompt.evaluation.pictures import load_held_out
from imprompt.training.data import EmojiBatches
from imprompt.training.emoji import load_data
from imprompt.training.held_out import write_held_out
from imprompt.training.objectives.judging import JudgeObjective, concept_contrast, retrieval
from imprompt.training.recipe import JudgeRecipe
from imprompt.training.sheets import as_picture
from toy_pictures import write_toy_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_data(tmp_path_factory.mktemp("judge") / "data", size=16)


@pytest.fixture(scope="module")
def objective(data: Path) -> JudgeObjective:
    sizes = {"widths": (8, 12), "depths": (1, 1), "patch_size": 4, "embedding_dim": 6}
    return JudgeObjective(JudgeRecipe(stage="judge", data=str(data), steps=1, batch_size=8, **sizes))


def test_contrast_against_a_plain_sum() -> None:
    embeddings = F.normalize(torch.randn(7, 5, generator=Generator().manual_seed(0)), dim=-1)
    concepts, temperature = [0, 1, 0, 2, 1, 0, 3], 0.2
    z, total = embeddings.double().numpy(), 0.0
    for i in range(7):
        others = [a for a in range(7) if a != i]
        whole = sum(math.exp(z[i] @ z[a] / temperature) for a in others)
        same = [p for p in others if concepts[p] == concepts[i]]
        terms = [math.log(math.exp(z[i] @ z[p] / temperature) / whole) for p in same]
        total -= sum(terms) / max(len(same), 1) / 7
    loss = concept_contrast(embeddings, torch.tensor(concepts), temperature)
    assert float(loss) == pytest.approx(total, abs=1e-6)


def test_the_loss_falls_when_pictures_of_one_concept_draw_together() -> None:
    near, far = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    concepts = torch.tensor([0, 1, 0, 1])
    together = concept_contrast(torch.cat([near, near]), concepts, 0.1)
    mixed = concept_contrast(torch.cat([near, near.flip(0)]), concepts, 0.1)
    assert together < concept_contrast(torch.cat([far, far]), concepts, 0.1) < mixed


def test_the_same_randomness_gives_the_same_loss(objective: JudgeObjective) -> None:
    batch = EmojiBatches(objective.seen, 8, seed=0)[0]
    first, second, third = (objective.loss(replace(batch, seed=seed))["loss"] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_views_are_pictures_of_training_concepts(objective: JudgeObjective) -> None:
    pixels = objective.views(objective.seen, [0, 1, 2], Generator().manual_seed(0))
    assert pixels.shape == (3, 3, 16, 16)
    assert pixels.abs().max() <= 1
    assert not {d.concept for d in objective.seen.drawings} & {d.concept for d in objective.unseen.drawings}


def test_a_partner_shows_the_same_concept(objective: JudgeObjective) -> None:
    for row, concept in enumerate(objective.seen.concepts.tolist()):
        partner = objective.partner(row, concept, random.Random(row))
        assert objective.seen.drawings[partner].concept == objective.seen.drawings[row].concept


def test_retrieval_looks_in_the_target_style_only() -> None:
    gallery = torch.eye(4)
    concepts, styles = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    ranks, chance = retrieval(gallery, gallery, concepts, styles, styles)
    assert ranks.tolist() == [0, 0, 0, 0]
    assert chance.tolist() == [0.5] * 4
    ranks, _ = retrieval(gallery, gallery, concepts, styles, 1 - styles)
    assert ranks.tolist() == [1, 1, 1, 1]  # everything ties, and ties count against


def test_retrieval_says_where_there_is_nothing_to_find() -> None:
    ranks, _ = retrieval(
        torch.eye(2), torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([1, 1])
    )
    assert ranks.tolist() == [-1, 0]


def test_held_out_figures_are_shares(objective: JudgeObjective) -> None:
    with torch.no_grad():
        figures = objective.held_out()
        assert objective.held_out() == figures
    assert {"copy@1", "other style@1", "copy chance@1"} <= set(figures)
    assert all(0 <= figure <= 1 for figure in figures.values())


def test_evaluation_reads_the_judge_that_training_wrote(objective: JudgeObjective, tmp_path: Path) -> None:
    objective.export(tmp_path)
    assert {path.name for path in (tmp_path / "judge").iterdir()} == {"config.json", "model.safetensors"}
    judge = load_judge(tmp_path / "judge")
    rows = [0, 3]
    pixels = objective.unseen.plain(rows)
    pictures = [as_picture(row) for row in pixels]
    with torch.no_grad():
        expected = objective.embed(torch.stack([judge.pixels(picture) for picture in pictures]))
    assert torch.allclose(judge.features(pictures), expected, atol=1e-6)


def test_evaluation_reads_the_held_out_drawings_that_training_wrote(data: Path, tmp_path: Path) -> None:
    count = write_held_out(data, tmp_path)
    held_out = load_held_out(tmp_path)
    pictures, drawings = load_data(data)
    rows = [row for row, drawing in enumerate(drawings) if drawing.held_out]
    assert count == len(rows) == len(held_out.drawings)
    assert np.array_equal(held_out.pictures, pictures[rows] * (pictures[rows][..., 3:] > 0))
    assert [d.concept for d in held_out.drawings] == [drawings[row].concept for row in rows]
