"""Losses and named random streams: by hand, and by their properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import losses
from utils.config.catalog import METHODS
from utils.config.schema import LIMITS
from utils.errors import UserError
from utils.losses import (
    Criterion,
    clean_probability,
    complementary_labels,
    dual_prompt_loss,
    generalised_cross_entropy,
    masked_mean,
)
from utils.rng import generator, sample_hash, sample_integers, seeded

INDEX = torch.arange(20_000)
PINNED = [362, 111, 392, 939]


def test_p_clean_and_l_dp_by_hand():
    p_clean = clean_probability(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    expected = [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))]
    assert p_clean[0].tolist() == pytest.approx(expected)
    loss = dual_prompt_loss(p_clean, torch.tensor([0]), torch.tensor([1]))
    assert loss.item() == pytest.approx(-math.log(expected[0]) - math.log(1 - expected[1]))
    weighted = dual_prompt_loss(p_clean, torch.tensor([0]), torch.tensor([1]), positive_weight=0.25)
    assert weighted.item() == pytest.approx(-0.25 * math.log(expected[0]) - math.log(1 - expected[1]))


def test_l_dp_is_clamped():
    sure = torch.tensor([[0.0, 1.0]])
    assert dual_prompt_loss(sure, torch.tensor([0]), torch.tensor([1])).item() == pytest.approx(-2 * math.log(1e-5))


def test_gce_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0]])
    assert generalised_cross_entropy(logits, torch.tensor([0])).item() == pytest.approx((1 - 0.75**0.7) / 0.7)


@pytest.mark.parametrize(
    "method, loss",
    [
        ("CE", losses.cross_entropy),
        ("GMM", losses.cross_entropy),
        ("TURN", losses.cross_entropy),
        ("SCE", losses.symmetric_cross_entropy),
        ("GCE", losses.generalised_cross_entropy),
    ],
)
def test_each_method_has_its_loss(method, loss):
    logits, y = torch.randn(4, 3, generator=generator("test")), torch.tensor([0, 1, 2, 0])
    assert torch.equal(Criterion(method, 4, 3)(logits.half(), y, torch.arange(4)), loss(logits.half().float(), y))


def test_elr_remembers_its_samples():
    criterion, logits, y = Criterion("ELR", 5, 3), torch.zeros(2, 3), torch.tensor([0, 1])
    first, second = (criterion(logits, y, torch.tensor([4, 1])) for _ in range(2))
    assert (first != second).all()
    assert criterion.state_dict()["loss.memory"].sum(dim=1).bool().tolist() == [False, True, False, False, True]


def zero_loss(logits, targets):
    return 0 * logits.sum(dim=-1)


def test_a_training_method_is_one_row(monkeypatch):
    monkeypatch.setitem(METHODS, "zero", "test_losses:zero_loss")
    assert Criterion("zero", 2, 3)(torch.ones(2, 3), torch.tensor([0, 1]), torch.arange(2)).tolist() == [0, 0]


def test_unknown_methods_are_refused():
    with pytest.raises(UserError, match="unknown training method 'MAE'; choose one of CE, ELR"):
        Criterion("MAE", 2, 3)
    assert set(LIMITS["lnl_methods"]["choices"]) == set(METHODS)


def test_an_empty_selection_gives_zero_loss_and_gradient():
    losses = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = masked_mean(losses, torch.tensor([False, False]))
    loss.backward()
    assert loss.item() == 0
    assert losses.grad.tolist() == [0, 0]
    assert masked_mean(losses, torch.tensor([False, True])).item() == 2


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 1000), st.integers(0, 5), st.integers(1, 20))
def test_complementary_labels_are_other_classes(n_classes, seed, epoch):
    targets = INDEX % n_classes
    other = complementary_labels(targets, INDEX, n_classes, seed=seed, epoch=epoch)
    assert ((other >= 0) & (other < n_classes) & (other != targets)).all()


def test_complementary_labels_are_uniform_and_new_in_every_epoch():
    targets = torch.zeros_like(INDEX)
    first, second = (complementary_labels(targets, INDEX, 10, seed=0, epoch=e) for e in (1, 2))
    counts = torch.bincount(first, minlength=10)[1:]
    assert (counts - len(INDEX) / 9).abs().max() < 5 * math.sqrt(len(INDEX) / 9)
    assert (first == second).double().mean().item() == pytest.approx(1 / 9, abs=0.02)


def test_a_sample_s_random_numbers_depend_on_nothing_else():
    whole = sample_hash("crop", 3, 2, INDEX)
    order = torch.randperm(len(INDEX), generator=generator("test"))
    assert torch.equal(sample_hash("crop", 3, 2, INDEX[order]), whole[order])
    assert ((whole >= 0) & (whole < 2**31)).all()
    for other in (("flip", 3, 2), ("crop", 4, 2), ("crop", 3, 3)):
        assert (sample_hash(*other, INDEX) == whole).sum() < 5
    bits = ((whole[:, None] >> torch.arange(31)) & 1).double().mean(dim=0)
    assert (bits - 0.5).abs().max() < 0.02


def test_the_hash_is_pinned():
    """Runs of other versions and devices must draw the same crops."""
    assert sample_integers("crop-top", 0, 1, torch.tensor([0, 1, 2, 10**9]), 1000).tolist() == PINNED


def test_named_seeds_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    with seeded("a", 0):
        first = torch.rand(3)
    with seeded("a", 0):
        assert torch.equal(torch.rand(3), first)
    with seeded("b", 0):
        assert not torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)
