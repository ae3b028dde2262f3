from __future__ import annotations

import torch
from torch import nn

from app.learning.best_epoch import Best, BestEpoch, tensors_of


def test_better_is_more_accurate_then_lower_loss_then_earlier() -> None:
    best = Best(0, 0.5, 1.0)
    assert best.beats(None)
    assert Best(1, 0.6, 9.0).beats(best) and Best(1, 0.5, 0.9).beats(best)
    assert not Best(1, 0.5, 1.0).beats(best) and not Best(1, 0.4, 0.1).beats(best)


def after(accuracies: list[float], patience: int | None, settled: int | None = 0) -> int:
    """Epochs until it is given up; all of them when it never is."""
    chosen, network = BestEpoch(patience), nn.Linear(1, 1)
    for epoch, accuracy in enumerate(accuracies):
        if epoch == settled:
            chosen.settle(epoch)
        chosen.offer(Best(epoch, accuracy, 1.0), network)
        if chosen.given_up(epoch + 1):
            return epoch + 1
    return len(accuracies)


def test_patience_runs_out_after_so_many_epochs_without_a_better_one() -> None:
    falling = [0.5, 0.6, 0.5, 0.5, 0.5, 0.5]
    assert [after(falling, patience) for patience in (1, 2, 3)] == [3, 4, 5]
    assert after([0.1, 0.2, 0.3, 0.4], 1) == 4, "each one is better"
    assert after(falling, None) == 6


def test_patience_counts_once_the_mask_is_settled() -> None:
    falling = [0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert after(falling, 2, settled=3) == 5
    assert after(falling, 2, settled=None) == 7


def test_without_a_candidate_nothing_is_given_up() -> None:
    chosen = BestEpoch(1)
    chosen.settle(0)
    assert not chosen.given_up(100)


def test_the_best_weights_come_back_whole() -> None:
    network, chosen = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), BestEpoch(None)
    chosen.apply(network)
    chosen.offer(Best(0, 0.5, 1.0), network)
    kept = {name: value.clone() for name, value in tensors_of(network).items()}
    network(torch.randn(8, 2)).sum().backward()
    torch.optim.SGD(network.parameters(), 1.0).step()
    chosen.offer(Best(1, 0.4, 1.0), network)
    chosen.apply(network)
    assert all(torch.equal(kept[name], value) for name, value in tensors_of(network).items())


def test_what_was_forgotten_does_not_come_back() -> None:
    network, chosen = nn.Linear(2, 2), BestEpoch(None)
    chosen.offer(Best(0, 0.9, 1.0), network)
    chosen.restart()
    assert chosen.best is None and chosen.tensors == {}
    chosen.offer(Best(1, 0.1, 1.0), network)
    assert chosen.best is not None and chosen.best.epoch == 1
