"""Styles of training images."""

from __future__ import annotations

import pytest
import torch

from portrait360.config import PRESETS
from portrait360.model.generator import Generator
from portrait360.model.mapping import StyleMixture, mixed
from portrait360.training.styles import KEPT, LOSS_DECAY, StyleTable, keep_styles
from portrait360.training.whitening import fit_whitening
from support.shrunken import shrunken


@pytest.fixture
def table() -> StyleTable:
    torch.manual_seed(2)
    return StyleTable(torch.randn(50, 6))


def test_whitening_is_inverted_and_makes_variances_one() -> None:
    torch.manual_seed(1)
    styles = torch.randn(4000, 6) @ torch.randn(6, 6) + torch.randn(6)
    whitening = fit_whitening(styles)
    white = whitening.whitened(styles)
    assert torch.allclose(whitening.styles(white), styles, atol=1e-4)
    variances = torch.linalg.eigvalsh(torch.cov(white.T))
    assert variances.max() < 1.01
    assert white.mean(dim=0).abs().max() < 1e-3


def test_flat_directions_do_not_explode() -> None:
    torch.manual_seed(3)
    flat = torch.randn(500, 4) * torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert fit_whitening(flat).whitened(flat + 0.01).abs().max() < 10


def test_only_visited_rows_move_against_their_gradients(table: StyleTable) -> None:
    before, rows = table.values.clone(), torch.tensor([3, 40])
    gradients = torch.randn(2, 6)
    table.step(rows, gradients, 0.1)
    moved = (table.values - before).abs().sum(dim=1).nonzero()[:, 0]
    assert moved.tolist() == [3, 40]
    assert ((table.values - before)[rows] * gradients <= 0).all()
    assert table.visits.sum() == 2


def test_a_rare_row_moves_as_far_per_visit_as_a_frequent_one(table: StyleTable) -> None:
    gradient, start = torch.randn(1, 6), table.values.clone()
    for step in range(60):
        table.step(torch.tensor([1]), gradient, 0.1)
        if step % 20 == 0:
            table.step(torch.tensor([2]), gradient, 0.1)
    moved = (table.values - start)[1:3]
    assert torch.allclose(moved[0] / 60, moved[1] / 3, atol=1e-6)


def test_reconstruction_finds_the_styles(table: StyleTable) -> None:
    target = torch.randn(50, 6)
    for _ in range(200):
        for rows in torch.randperm(50).split(5):
            style = table.take(rows)
            (style - target[rows]).square().sum().backward()
            assert style.grad is not None
            table.step(rows, style.grad, 0.03)
    assert (table.values - target).abs().max() < 0.1


def test_gradients_that_are_not_finite_do_nothing(table: StyleTable) -> None:
    before = table.values.clone()
    table.step(torch.tensor([4]), torch.full((1, 6), torch.nan), 0.1)
    assert torch.equal(table.values, before)


def test_a_row_that_comes_twice_moves_once(table: StyleTable) -> None:
    once = StyleTable.from_tensors(table.tensors())
    gradients = torch.randn(3, 6)
    table.step(torch.tensor([4, 4, 9]), gradients, 0.1)
    once.step(torch.tensor([4, 9]), gradients[[0, 2]], 0.1)
    assert torch.equal(table.values, once.values)


def test_new_people_have_the_tables_mean_and_variance_and_are_mixtures(table: StyleTable) -> None:
    torch.manual_seed(0)
    new = table.sample(40000)
    torch.testing.assert_close(new.mean(dim=0), table.values.mean(dim=0), atol=0.03, rtol=0)
    torch.testing.assert_close(new.var(dim=0), table.values.var(dim=0, correction=0), atol=0.03, rtol=0.1)
    first, second = table.values.repeat_interleave(50, dim=0), table.values.repeat(50, 1)
    found = mixed(first, second, table.values.mean(dim=0))
    assert torch.cdist(new[:200].double(), found.double()).min(dim=1).values.max() < 1e-4


def test_the_generators_latents_choose_from_the_table(table: StyleTable) -> None:
    generator = Generator(shrunken(PRESETS["portrait-identity"]).model)
    styles = StyleTable(torch.randn(5, generator.config.w_dim))
    keep_styles(generator, styles)
    assert isinstance(generator.backbone.mapping, StyleMixture)
    kept = generator.backbone.mapping.styles
    assert torch.equal(kept[:5], styles.values)
    assert torch.equal(kept[5:10], styles.values)  # again from the first one


def test_a_checkpoint_holds_everything(table: StyleTable) -> None:
    table.step(torch.tensor([3, 40]), torch.randn(2, 6), 0.1)
    again = StyleTable.from_tensors(table.tensors())
    gradients = torch.randn(2, 6)
    for one in (table, again):
        one.step(torch.tensor([3, 7]), gradients, 0.1)
    for name, value in table.tensors().items():
        assert torch.equal(value, again.tensors()[name]), name


def test_damaged_checkpoints_are_named(table: StyleTable) -> None:
    with pytest.raises(KeyError):
        StyleTable.from_tensors({})
    with pytest.raises(ValueError, match="rows"):
        StyleTable.from_tensors(table.tensors() | {"styles/first": torch.zeros(3, 6)})


def test_latents_choose_from_the_people_who_are_reconstructed_best(table: StyleTable) -> None:
    losses = torch.linspace(0.1, 0.2, 50)[torch.randperm(50)]
    table.note(torch.arange(50), losses)
    assert torch.equal(table.losses, losses)
    best = table.best()
    assert len(best) == round(KEPT * 50)
    assert torch.equal(best, table.values[losses <= losses.sort().values[len(best) - 1]])
    table.note(torch.tensor([3]), torch.tensor([1.0]))
    assert float(table.losses[3]) == pytest.approx(LOSS_DECAY * float(losses[3]) + 1.0 - LOSS_DECAY)
