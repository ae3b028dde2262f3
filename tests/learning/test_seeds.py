from __future__ import annotations

import torch

from app.learning.seeds import permutation, random_state, seed_for, seeded, set_random_state

CPU = torch.device("cpu")


def test_a_seed_is_a_known_function_of_its_four_values() -> None:
    assert seed_for(0, 1, 0, "epoch-0") == 7908460501483711973


def test_every_value_counts() -> None:
    seeds = {seed_for(s, d, a, p) for s in (0, 1, 10) for d in (0, 1) for a in (0, 1) for p in ("epoch-1", "epoch-10")}
    assert len(seeds) == 24
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_values_do_not_run_together() -> None:
    assert seed_for(1, 11, 1, "x") != seed_for(11, 1, 1, "x")


def test_seeding_ends_with_the_block() -> None:
    before = torch.get_rng_state()
    with seeded(5, CPU):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(5, CPU):
        assert torch.equal(torch.rand(3), first)


def test_a_random_state_can_be_taken_up_again() -> None:
    with seeded(5, CPU):
        torch.rand(3)
        state = random_state(CPU)
        ahead = torch.rand(3)
    with seeded(6, CPU):
        set_random_state(state, CPU)
        assert torch.equal(torch.rand(3), ahead)


def test_a_permutation_depends_on_its_seed_alone() -> None:
    assert torch.equal(permutation(50, 3), permutation(50, 3))
    assert not torch.equal(permutation(50, 3), permutation(50, 4))
    assert torch.equal(permutation(50, 3).sort().values, torch.arange(50))
