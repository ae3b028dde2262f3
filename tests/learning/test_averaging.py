from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from app.learning.averaging import Average, retake_statistics
from app.learning.recipe import Averaging, ExponentialAveraging, NoAveraging, TailAveraging


def scalar() -> nn.Linear:
    return nn.Linear(1, 1, bias=False)


def stepped(options: Averaging, values: list[float], epochs: int = 1, restart: int | None = None) -> Average:
    """An average over a network of one weight, which takes these values."""
    network = scalar()
    average = Average(options, network, epochs)
    for step, value in enumerate(values):
        if step == restart:
            average.restart()
        nn.init.constant_(network.weight, value)
        average.after_step()
    return average


# -- means -------------------------------------------------------------------------------------------------------------


def test_ema_weighs_each_step_by_its_age() -> None:
    values = [3.0, -1.0, 4.0, 1.0, 5.0]
    weights = 0.7 ** np.arange(4, -1, -1)
    average = stepped(ExponentialAveraging(decay=0.7), values)
    assert average.mean["weight"].item() == pytest.approx(np.average(values, weights=weights), rel=1e-6)
    assert average.taken == 5


def test_ema_is_the_plain_mean_when_it_hardly_decays() -> None:
    average = stepped(ExponentialAveraging(decay=1 - 1e-9), [1.0, 2.0, 6.0])
    assert average.mean["weight"].item() == pytest.approx(3.0)


def test_ema_starts_anew() -> None:
    whole = stepped(ExponentialAveraging(decay=0.9), [100.0, 200.0, 1.0, 2.0], restart=2)
    part = stepped(ExponentialAveraging(decay=0.9), [1.0, 2.0])
    assert torch.equal(whole.mean["weight"], part.mean["weight"]) and whole.taken == part.taken


@pytest.mark.parametrize(("share", "epochs", "last"), [(0.25, 8, 2), (0.25, 1, 1), (0.01, 50, 1), (1.0, 3, 3)])
def test_tail_is_the_mean_over_the_last_epochs(share: float, epochs: int, last: int) -> None:
    network = scalar()
    average = Average(TailAveraging(share=share), network, epochs)
    for epoch in range(epochs):
        nn.init.constant_(network.weight, epoch**2)
        average.after_step()
        average.after_epoch(epoch)
    expected = np.mean([epoch**2 for epoch in range(epochs)][-last:])
    assert average.mean["weight"].item() == pytest.approx(expected) and average.taken == last


def test_none_takes_nothing_and_changes_nothing() -> None:
    network = scalar()
    average = Average(NoAveraging(), network, 2)
    before = network.weight.detach().clone()
    for epoch in range(2):
        average.after_step()
        average.after_epoch(epoch)
    average.apply()
    assert average.mean == {} and average.taken == 0 and torch.equal(network.weight, before)


def test_the_mean_is_applied_to_what_is_trained_alone() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network[0].bias.requires_grad_(False)
    average = Average(ExponentialAveraging(decay=0.5), network, 1)
    average.after_step()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 7.0)
    average.apply()
    assert list(average.mean) == ["0.weight", "1.weight", "1.bias"]
    assert torch.equal(network[0].weight, average.mean["0.weight"])
    assert (network[0].bias == 7).all()


def test_zero_stays_exactly_zero() -> None:
    network = nn.Linear(50, 50)
    kept = torch.rand(50, 50) < 0.5
    average = Average(ExponentialAveraging(decay=0.93), network, 1)
    for _ in range(20):
        nn.init.normal_(network.weight)
        with torch.no_grad():
            network.weight.mul_(kept)
        average.after_step()
    assert not average.mean["weight"][~kept].any() and average.mean["weight"][kept].all()


def test_a_restored_average_goes_on_whatever_the_order_of_names() -> None:
    networks = [nn.Linear(3, 3) for _ in range(2)]
    first, second = (Average(ExponentialAveraging(decay=0.9), network, 1) for network in networks)
    first.after_step()
    first.after_step()
    second.restore({name: first.mean[name].clone() for name in reversed(first.mean)}, first.taken)
    for network, average in zip(networks, (first, second), strict=True):
        nn.init.ones_(network.weight)
        nn.init.ones_(network.bias)
        average.after_step()
    assert all(torch.equal(first.mean[name], second.mean[name]) for name in first.mean)


# -- statistics of normalisation layers --------------------------------------------------------------------------------


class Broken(Exception):
    """The worker is gone."""


def minibatches(*sizes: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(3)
    return [5 + 3 * torch.randn(size, 4, generator=random) for size in sizes]


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2), nn.BatchNorm1d(2))


def test_statistics_are_those_of_torchs_own_pass() -> None:
    ours, theirs = network(), network()
    ours[2].p = theirs[2].p = 0.0
    retake_statistics(ours, minibatches(8, 8, 8))
    update_bn(minibatches(8, 8, 8), theirs)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


def test_all_examples_count_alike() -> None:
    one = network()
    retake_statistics(one, minibatches(30, 10, 2))
    with torch.no_grad():
        shown = one[0](torch.cat(minibatches(30, 10, 2)))
    torch.testing.assert_close(one[1].running_mean, shown.mean(0))


def test_no_dropout_is_drawn() -> None:
    first, second = network(), network()
    before = torch.get_rng_state()
    retake_statistics(first, minibatches(8, 8))
    assert torch.equal(torch.get_rng_state(), before)
    retake_statistics(second, minibatches(8, 8))
    assert torch.equal(first[4].running_var, second[4].running_var)


def test_modes_momenta_and_parameters_stay() -> None:
    one = network()
    one[1].momentum, one[4].momentum = 0.3, None
    before = {name: value.clone() for name, value in one.named_parameters()}
    retake_statistics(one, minibatches(8, 8))
    assert all(module.training for module in one.modules())
    assert (one[1].momentum, one[4].momentum) == (0.3, None)
    assert all(torch.equal(before[name], value) for name, value in one.named_parameters())


def test_layers_that_do_not_train_keep_their_statistics() -> None:
    one = network()
    one[1].eval()
    retake_statistics(one, minibatches(8, 8))
    assert not one[1].training and (one[1].running_mean == 0).all() and (one[4].running_mean != 0).all()


def test_instance_normalisation_that_tracks_statistics_is_taken_anew() -> None:
    one = nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten())
    x = [3 + torch.randn(4, 2, 9), torch.randn(4, 2, 9)]
    retake_statistics(one, x)
    torch.testing.assert_close(one[0].running_mean, torch.cat(x).mean((0, 2)))


def test_a_network_without_such_layers_is_not_run() -> None:
    def never() -> Iterator[Tensor]:
        raise AssertionError
        yield

    retake_statistics(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2, track_running_stats=False)), never())


def test_broken_off_and_done_again_it_gives_the_same_bits() -> None:
    def breaks() -> Iterator[Tensor]:
        yield from minibatches(8, 8)
        raise Broken

    whole, again = network(), network()
    retake_statistics(whole, minibatches(8, 8, 8))
    with pytest.raises(Broken):
        retake_statistics(again, breaks())
    assert all(module.training for module in again.modules())
    retake_statistics(again, minibatches(8, 8, 8))
    assert all(torch.equal(again.state_dict()[name], value) for name, value in whole.state_dict().items())
