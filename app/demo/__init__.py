"""Demo: the whole service, seen from outside, on real data, with the figures that it reports checked against the data.

It is an edge like any client: it starts the service as processes, talks HTTP through ``espalier.Client``, reads
checkpoints with ``espalier.load_checkpoint``, and imports nothing else of the server. So what it shows is what a client
gets. It stands beneath ``app.cli``, which starts it, and above everything else, because nothing may depend on it.

Knows: a data set, and what must be true of the service's answers. Must never know: torch, SQL, the rooms of ``app``.
"""

from app.demo.story import Options, run

__all__ = ["Options", "run"]
