"""Transfer: stored rows from memory to the device, beside what the device computes.

Knows: pinned memory, streams. Must never know: what the rows are, or what is done with them.

Laws:
    * Rows travel as they are stored: uint8 takes a quarter of the way of float32.
    * On a GPU one minibatch is under way while the one before it is used; elsewhere nothing is done.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class Transfer:
    """The way to one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def carried(self, rows: Iterator[Tensor]) -> Iterator[Tensor]:
        """The same rows, in turn, on the device.

        Args:
            rows: on the CPU.
        """
        return rows if self._stream is None else self._side_by_side(rows, self._stream)

    def _side_by_side(self, rows: Iterator[Tensor], stream: torch.cuda.Stream) -> Iterator[Tensor]:
        under_way = None
        for stored in rows:
            sent = self._sent(stored, stream)
            if under_way is not None:
                yield self._arrived(*under_way)
            under_way = sent
        if under_way is not None:
            yield self._arrived(*under_way)

    def _sent(self, stored: Tensor, stream: torch.cuda.Stream) -> tuple[Tensor, torch.cuda.Event]:
        """Start a copy; pinned memory, which torch keeps until the copy is done, lets it run on its own."""
        with torch.cuda.stream(stream):
            return stored.pin_memory().to(self._device, non_blocking=True), stream.record_event()

    def _arrived(self, rows: Tensor, done: torch.cuda.Event) -> Tensor:
        """Let what follows on the device wait for the copy, and the copy's memory for what follows."""
        here = torch.cuda.current_stream(self._device)
        here.wait_event(done)
        rows.record_stream(here)
        return rows
