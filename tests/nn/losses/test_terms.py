"""What losses ask of heads: the closed form of the gradients against autograd's, and what is kept for them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from autoseg.nn.losses import LOSSES
from autoseg.nn.losses.terms import SigmoidHeads, SoftmaxHeads, _SoftmaxTerms

REGIONS = ((1, 2), (2,), (0, 1))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def plain_softmax_terms(logits, target, annotated):
    """The terms by their definition, differentiated by autograd."""
    probabilities = logits.softmax(1)
    one_hot = F.one_hot(target, logits.shape[1]).movedim(-1, 1)
    entropy = F.cross_entropy(logits, target, reduction="none")[:, None]
    inside = torch.ones_like(entropy) if annotated is None else annotated[:, None].to(entropy)
    sums = [(m * inside).flatten(2).sum(2) for m in (probabilities * one_hot, probabilities, one_hot)]
    return entropy, *sums


def plain_sigmoid_terms(logits, target, annotated):
    probabilities = logits.sigmoid()
    masks = torch.stack([torch.isin(target, torch.tensor(union)) for union in REGIONS], 1).to(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    inside = torch.ones_like(entropy[:, :1]) if annotated is None else annotated[:, None].to(entropy)
    return entropy, *((m * inside).flatten(2).sum(2) for m in (probabilities * masks, probabilities, masks))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), shape=st.sampled_from([(5,), (3, 4), (2, 3, 2)]), partly=st.booleans())
def test_terms_and_the_gradient_of_any_mixture_of_them(kind, seed, shape, partly):
    torch.manual_seed(seed)
    terms_of, plain = {
        "softmax": (_SoftmaxTerms.apply, plain_softmax_terms),  # the background among its heads
        "sigmoid": (SigmoidHeads(REGIONS, None).terms, plain_sigmoid_terms),
    }[kind]
    target = torch.randint(0, 3, (2, *shape))
    annotated = torch.rand(2, *shape) < 0.7 if partly else None
    if partly:
        target = target.where(annotated, 0)
    logits = (2 * torch.randn(2, 3, *shape)).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    terms, expected = terms_of(logits, target, annotated), plain(exact, target, annotated)
    mixture = [torch.randn(term.shape) for term in terms]
    for term, other in zip(terms, expected, strict=True):
        torch.testing.assert_close(term.double(), other.double(), rtol=1e-5, atol=1e-5)
    sum((m * term).sum() for m, term in zip(mixture, terms, strict=True)).backward()
    sum((m * term).sum() for m, term in zip(mixture, expected, strict=True)).backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def plain_dice_ce(logits, target, ignore_index, class_weights, batch_dice):
    """Dice + cross-entropy as a chain of plain operations, each of which autograd differentiates."""
    log_probabilities = F.log_softmax(logits.float(), dim=1)
    annotated = target != ignore_index
    target = target.where(annotated, 0)
    weight = torch.tensor(class_weights)[target] * annotated
    nll = -log_probabilities.gather(1, target[:, None])[:, 0]
    masks = (target[:, None] == torch.arange(1, logits.shape[1]).view(1, -1, 1, 1, 1)) & annotated[:, None]
    probabilities = log_probabilities[:, 1:].exp() * annotated[:, None]
    axes = [0, 2, 3, 4] if batch_dice else [2, 3, 4]
    size = probabilities.sum(axes) + masks.sum(axes)
    dice = (2 * (probabilities * masks).sum(axes) + 1e-5) / (size + 1e-5)
    return (nll * weight).sum() / weight.sum() - dice.mean()


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("heads", [3, 40])
def test_dice_ce_is_what_plain_operations_make_of_it(heads, batch_dice):
    logits, target = 3 * torch.randn(2, heads, 12, 13, 14), torch.randint(0, heads + 1, (2, 12, 13, 14))
    weights = (torch.rand(heads) + 0.5).tolist()
    first, second = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = LOSSES["dice_ce"](ignore_index=heads, class_weights=weights, batch_dice=batch_dice)(first, target)
    plain = plain_dice_ce(second, target, heads, weights, batch_dice)
    assert loss.item() == pytest.approx(plain.item(), abs=1e-6)
    loss.backward()
    plain.backward()
    assert (first.grad - second.grad).abs().max() <= 1e-5 * second.grad.abs().max()


def test_nothing_of_the_size_of_the_logits_is_kept_but_the_logits():
    target = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    for heads in (SoftmaxHeads(None), SigmoidHeads(REGIONS, None)):
        logits = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16, requires_grad=True)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            heads.terms(logits * 1, target, None)
        large = [t for t in kept if t.numel() >= logits.numel() and t.dtype != torch.bool]
        assert [t.dtype for t in large] == [torch.bfloat16]


def test_the_cross_entropy_of_certain_mistakes_is_finite():
    logits = torch.tensor([[[500.0, -500.0], [-500.0, 500.0]]])
    target = torch.tensor([[1, 0]])
    assert SoftmaxHeads(None).terms(logits, target, None).cross_entropy.flatten().tolist() == [1000, 1000]
    sigmoid = SigmoidHeads(((1,),), None).terms(logits[:, 1:], target, None)
    assert sigmoid.cross_entropy.flatten().tolist() == [500, 500]


def test_weights_of_classes_and_of_regions():
    target = torch.tensor([[0, 2, 1]])
    assert SoftmaxHeads((1, 2, 3)).cross_entropy_weights(target).tolist() == [[[1, 3, 2]]]
    assert SigmoidHeads(REGIONS, (1, 2, 3)).cross_entropy_weights(target).tolist() == [[[1], [2], [3]]]
    assert SoftmaxHeads(None).cross_entropy_weights(target) is None


def test_masks():
    target = torch.tensor([[0, 2, 1, 5]])  # 5 belongs to no region
    logits = torch.zeros(1, 3, 4)
    assert SigmoidHeads(REGIONS, None).masks(logits, target).int().tolist() == [
        [[0, 1, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0]]
    ]
    assert SoftmaxHeads(None).masks(logits, target).int().tolist() == [[[0, 0, 1, 0], [0, 1, 0, 0]]]
