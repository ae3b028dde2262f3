from __future__ import annotations

import pytest
import torch

from app.learning.transfer import Transfer
from tests.learning.cases import CPU

DEVICES = [
    CPU,
    pytest.param(torch.device("cuda"), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_rows_arrive_in_turn_as_they_are_stored(device: torch.device) -> None:
    sent = [torch.full((4, 3), number, dtype=torch.uint8) for number in range(7)]
    arrived = list(Transfer(device).carried(iter(sent)))
    assert all(rows.dtype is torch.uint8 and rows.device.type == device.type for rows in arrived)
    assert torch.equal(torch.stack(arrived).cpu(), torch.stack(sent))
    assert list(Transfer(device).carried(iter(()))) == []


def test_on_the_processor_nothing_is_copied() -> None:
    stored = torch.zeros(4, 3)
    (rows,) = Transfer(CPU).carried(iter([stored]))
    assert rows is stored
