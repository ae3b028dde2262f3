from __future__ import annotations

import json

import pytest
import torch

from app.learning.snapshot import decode, encode, snapshot_fits
from tests.learning.cases import CPU


def taken() -> bytes:
    strided = torch.arange(6.0).reshape(2, 3).T
    tensors = {"a/b.c": strided, "same": strided, "mask": torch.tensor([True, False]), "scalar": torch.tensor(3)}
    return encode(tensors, {"epoch": 1, "loss": 0.1, "none": None, "list": [1, "two"]}, CPU)


def test_tensors_and_facts_come_back() -> None:
    tensors, facts = decode(taken())
    assert torch.equal(tensors["a/b.c"], torch.arange(6.0).reshape(2, 3).T)
    assert tensors["mask"].dtype == torch.bool and tensors["scalar"].shape == ()
    assert facts == {"epoch": 1, "loss": 0.1, "none": None, "list": [1, "two"]}


def test_it_fits_where_it_was_taken() -> None:
    assert snapshot_fits(taken(), CPU) is None


def test_it_says_why_it_does_not_fit_elsewhere() -> None:
    assert snapshot_fits(taken(), torch.device("cuda")) == "device was cpu and is cuda"
    threads = torch.get_num_threads()
    data = taken()
    try:
        torch.set_num_threads(threads + 1)
        assert snapshot_fits(data, CPU) == f"threads was {threads} and is {threads + 1}"
    finally:
        torch.set_num_threads(threads)
    other = data.replace(torch.__version__.encode(), b"9" * len(torch.__version__))
    assert (snapshot_fits(other, CPU) or "").startswith("torch was 9")


@pytest.mark.parametrize("data", [b"", b"abc", bytes(9), json.dumps({}).encode(), taken()[:40]])
def test_what_is_no_snapshot_does_not_fit(data: bytes) -> None:
    assert (snapshot_fits(data, CPU) or "").startswith("it is not a snapshot")
