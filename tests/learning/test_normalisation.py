from __future__ import annotations

import numpy as np
import pytest
import torch

from app.domain import InputSpec, Normalisation
from app.errors import InvalidInputSpec
from app.learning.normalisation import (
    NormalisationState,
    Preparation,
    fixed_state,
    initial_state,
    is_running,
    moments_of,
    network_shape,
)
from app.learning.recipe import Cnn, Mlp
from espalier.formats.checkpoint import Checkpoint
from tests.learning.cases import CPU, clusters, images, spec_of


def state_for(spec: InputSpec, *chunks: np.ndarray) -> NormalisationState | None:
    return initial_state(spec, lambda: chunks)


def test_statistics_are_those_of_all_chunks_together() -> None:
    x = clusters(1).x
    state = state_for(spec_of(clusters(1)), x[:7], x[7:])
    assert state is not None and state.mean.dtype == state.std.dtype == np.float32
    np.testing.assert_allclose(state.mean, x.astype(np.float64).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(state.std, x.astype(np.float64).std(axis=0), rtol=1e-6)


def test_images_have_statistics_per_channel() -> None:
    x = images(1, channels=3).x
    state = state_for(spec_of(images(1, channels=3)), x)
    assert state is not None and state.mean.shape == (3,)
    np.testing.assert_allclose(state.mean, x.mean(axis=(0, 1, 2)), rtol=1e-6)


def test_images_without_a_channel_axis_have_one_statistic() -> None:
    examples = images(1)
    state = state_for(InputSpec((8, 8), "uint8", ("a",), Normalisation()), examples.x[..., 0])
    assert state is not None and state.mean.shape == (1,)
    np.testing.assert_allclose(state.mean, [examples.x.mean()], rtol=1e-6)


def test_a_constant_feature_is_not_divided_by_zero() -> None:
    x = np.full((5, 2), 3.0, np.float32)
    state = state_for(InputSpec((2,), "float32", ("a",), Normalisation()), x)
    assert state is not None
    np.testing.assert_array_equal(state.std, [1, 1])


def test_no_normalisation_has_no_statistics() -> None:
    assert state_for(spec_of(clusters(1), name="none"), clusters(1).x) is None


def test_fixed_statistics_are_taken_as_given() -> None:
    spec = InputSpec((2,), "float32", ("a",), Normalisation(name="fixed", mean=(1.0, 2.0), std=(2.0, 4.0), clip=None))
    state = fixed_state(spec)
    ready = Preparation(spec, state, Mlp(), CPU)(np.array([[3.0, 6.0]], np.float32))
    np.testing.assert_array_equal(ready, [[1, 1]])


@pytest.mark.parametrize(("mean", "std"), [((1.0,), (1.0, 1.0)), ((1.0, 1.0), (1.0, 0.0))])
def test_fixed_statistics_must_fit(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    spec = InputSpec((2,), "float32", ("a",), Normalisation(name="fixed", mean=mean, std=std))
    with pytest.raises(InvalidInputSpec, match="2 means and 2 positive standard deviations"):
        fixed_state(spec)


def test_signed_log_comes_before_and_clip_after_the_statistics() -> None:
    spec = InputSpec((1,), "float32", ("a",), Normalisation(signed_log=True, clip=2.0))
    state = NormalisationState(np.array([1.0], np.float32), np.array([0.5], np.float32))
    x = np.array([[np.e - 1], [-(np.e - 1)], [np.e**1.5 - 1]], np.float32)
    np.testing.assert_allclose(Preparation(spec, state, Mlp(), CPU)(x), [[0], [-2], [1]], atol=1e-6)


@pytest.mark.parametrize("signed_log", [False, True])
def test_clients_normalise_alike(signed_log: bool) -> None:
    """The checkpoint's numpy reader and the trainer agree, in values and in the order of an image's values."""
    examples = images(1, channels=3)
    spec = spec_of(examples, signed_log=signed_log)
    state = state_for(spec, examples.x)
    assert state is not None
    manifest = {
        "input": {"shape": list(examples.x.shape[1:]), "normalisation": {"signed_log": signed_log, "clip": "8.0"}}
    }
    theirs = Checkpoint(manifest, {}, {}, {"mean": state.mean, "std": state.std}).normalise(examples.x)
    flat = Preparation(spec, state, Mlp(), CPU)(examples.x.copy())
    np.testing.assert_allclose(flat, theirs.reshape(len(theirs), -1), rtol=2e-6, atol=1e-6)
    first = Preparation(spec, state, Cnn(), CPU)(examples.x.copy())
    np.testing.assert_allclose(first, theirs.transpose(0, 3, 1, 2), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "flat", "layered"),
    [((5,), (5,), (5,)), ((4, 6), (24,), (1, 4, 6)), ((4, 6, 3), (72,), (3, 4, 6))],
)
def test_the_layout_is_what_the_network_is_built_for(
    shape: tuple[int, ...], flat: tuple[int, ...], layered: tuple[int, ...]
) -> None:
    spec = InputSpec(shape, "float32", ("a",), Normalisation(name="none", clip=None))
    x = torch.arange(2 * np.prod(shape), dtype=torch.float32).reshape(2, *shape).numpy()
    assert network_shape(shape, Mlp()) == flat == Preparation(spec, None, Mlp(), CPU)(x).shape[1:]
    assert network_shape(shape, Cnn()) == layered == Preparation(spec, None, Cnn(), CPU)(x).shape[1:]


def test_running_starts_as_the_first_megabatch_does() -> None:
    x = clusters(1).x
    running, frozen = state_for(spec_of(clusters(1), name="running"), x), state_for(spec_of(clusters(1)), x)
    assert running is not None and frozen is not None and is_running(spec_of(clusters(1), name="running"))
    np.testing.assert_array_equal(running.mean, frozen.mean)
    np.testing.assert_array_equal(running.std, frozen.std)


def test_moments_are_of_what_follows_the_signed_log() -> None:
    spec, x = spec_of(clusters(1), name="running", signed_log=True), clusters(1).x
    moments = moments_of(spec, lambda: [x[:20], x[20:]])
    logs = (np.sign(x) * np.log1p(np.abs(x))).astype(np.float64)
    assert moments.count == len(x)
    np.testing.assert_allclose(moments.mean, logs.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(moments.std, logs.std(axis=0), rtol=1e-9)


def test_moments_of_images_are_per_channel() -> None:
    x = images(1, channels=3).x
    moments = moments_of(spec_of(images(1, channels=3), name="running"), lambda: [x])
    assert moments.count == x[..., 0].size
    np.testing.assert_allclose(moments.std, x.astype(np.float64).std(axis=(0, 1, 2)), rtol=1e-12)
