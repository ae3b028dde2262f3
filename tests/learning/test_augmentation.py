from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from app.errors import InvalidRecipe
from app.learning.augmentation import augmented, cropped, mirrored, mixed
from app.learning.recipe import Augmentation
from app.learning.seeds import seeded
from tests.learning.cases import CPU

EVERYTHING = Augmentation(crop=2, flip=True, mixup=0.4)


def images(n: int = 40, channels: int = 2, height: int = 5, width: int = 4) -> Tensor:
    """No value twice, and no zero."""
    return torch.arange(1.0, n * channels * height * width + 1).reshape(n, channels, height, width)


def drawn(make: Callable[[], Any], seed: int = 1) -> Any:
    with seeded(seed, CPU):
        return make()


# -- crops and mirrors -------------------------------------------------------------------------------------------------


def test_a_crop_is_a_window_of_the_padded_image_and_every_window_comes_up() -> None:
    x = images(400)
    found, seen = drawn(lambda: cropped(x, 1)), set()
    for image, window in zip(functional.pad(x, (1, 1, 1, 1)), found, strict=True):
        at = [
            (top, left)
            for top, left in product(range(3), range(3))
            if torch.equal(image[:, top : top + 5, left : left + 4], window)
        ]
        assert len(at) == 1, "all channels of an image move alike"
        seen.update(at)
    assert found.shape == x.shape and len(seen) == 9


def test_windows_are_drawn_alike_often() -> None:
    x = torch.zeros(9000, 1, 3, 3)
    x[:, 0, 1, 1] = 1
    places = drawn(lambda: cropped(x, 1)).flatten(1).argmax(1)
    counts = np.bincount(places.numpy(), minlength=9)
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000 * 8 / 9)


def test_an_image_is_mirrored_or_not_one_in_two() -> None:
    x = images(400)
    found = drawn(lambda: mirrored(x))
    turned = [torch.equal(a, b.flip(2)) for a, b in zip(found, x, strict=True)]
    assert all(turn or torch.equal(a, b) for turn, a, b in zip(turned, found, x, strict=True))
    assert abs(sum(turned) - 200) < 5 * np.sqrt(100)


@pytest.mark.parametrize("chosen", [Augmentation(crop=1), Augmentation(flip=True)])
def test_only_images_are_cropped_or_mirrored(chosen: Augmentation) -> None:
    with pytest.raises(InvalidRecipe, match=r"crop and flip need images, not examples of shape \(8\): set both off"):
        augmented(chosen, torch.zeros(3, 8), torch.zeros(3, dtype=torch.int64))


# -- mixup -------------------------------------------------------------------------------------------------------------


def test_mixup_mixes_inputs_and_labels_alike() -> None:
    x, y = images(), torch.arange(40)
    found, targets = drawn(lambda: mixed(x, y, 0.5))
    assert torch.equal(targets.labels, y) and 0 < targets.share < 1
    assert sorted(targets.partners.tolist()) == list(range(40)), "each example is the partner of one"
    torch.testing.assert_close(found, targets.share * x + (1 - targets.share) * x[targets.partners])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 10.0])
def test_shares_have_the_moments_of_the_beta_distribution(alpha: float) -> None:
    x, y = torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)
    shares = np.array(drawn(lambda: [mixed(x, y, alpha)[1].share for _ in range(4000)]))
    variance = 1 / (4 * (2 * alpha + 1))
    assert shares.mean() == pytest.approx(0.5, abs=5 * np.sqrt(variance / 4000))
    assert shares.var() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("alpha", [1e-300, 1e-6, 1e-3])
def test_a_small_alpha_hardly_mixes(alpha: float) -> None:
    x, y = torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)
    shares = np.array(drawn(lambda: [mixed(x, y, alpha)[1].share for _ in range(200)]))
    assert ((shares < 1e-6) | (shares > 1 - 1e-6)).mean() > 0.9
    assert 60 < shares.sum() < 140


def test_mixup_takes_input_of_any_shape() -> None:
    found, _ = augmented(Augmentation(mixup=1.0), torch.ones(3, 8), torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(found, torch.ones(3, 8))


# -- all of it ---------------------------------------------------------------------------------------------------------


def test_without_options_nothing_happens() -> None:
    x, y = images(), torch.arange(40)
    before = torch.get_rng_state()
    found, targets = augmented(Augmentation(), x, y)
    assert found is x and targets.labels is y and targets.partners is None and targets.share == 1
    assert torch.equal(torch.get_rng_state(), before), "and nothing is drawn"


def test_what_is_given_is_not_changed() -> None:
    x, y = images(), torch.arange(40)
    found, _ = augmented(EVERYTHING, x, y)
    assert not torch.equal(found, x) and torch.equal(x, images()) and torch.equal(y, torch.arange(40))


def test_draws_follow_the_generator_alone() -> None:
    """Not the values: the same seed moves and mixes other images the same way."""
    y = torch.arange(40)
    (once, one), (again, two), (doubled, three), (other, four) = (
        drawn(lambda x=x: augmented(EVERYTHING, x, y), seed)  # type: ignore[misc]  # a lambda's default has no type
        for x, seed in ((images(), 1), (images(), 1), (2 * images(), 1), (images(), 2))
    )
    assert torch.equal(once, again) and torch.equal(2 * once, doubled) and not torch.equal(once, other)
    assert one.share == two.share == three.share != four.share
    assert torch.equal(one.partners, three.partners)
