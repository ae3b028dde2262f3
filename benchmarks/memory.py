"""Memory of the API process: idle, after requests, after a large upload.

Target: below 250 MB resident throughout, and no torch in the process.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import httpx
import numpy as np

from benchmarks._service import Service, service
from espalier import Client

TARGET_MB = 250.0
REQUESTS = 2_000
UPLOAD_ROWS = 64 * 1024  # of 256 float32: 64 MiB


def main() -> int:
    with service("--no-worker") as running, Client(running.url) as client:
        figures = [("idle", _resident(running))]
        client.create_model("memory", input={"classes": 2})
        _request(running)
        figures.append((f"after {REQUESTS:,} requests", _resident(running)))
        rows = np.random.default_rng(0).standard_normal((UPLOAD_ROWS, 256)).astype(np.float32)
        client.upload("memory", rows, np.arange(UPLOAD_ROWS) % 2)
        figures.append((f"after an upload of {rows.nbytes >> 20} MiB", _resident(running)))
        figures.append(("peak", _peak(running)))
        torch = [pid for pid in _tree(running.pid) if "libtorch" in Path(f"/proc/{pid}/maps").read_text()]
    worst = max(value for _, value in figures)
    print(f"{'API process, resident':<32}{'MB':>8}{'target':>10}")
    for what, value in figures:
        print(f"{what:<32}{value:>8.0f}{f'< {TARGET_MB:.0f}':>10}")
    print(f"{'torch is loaded':<32}{'yes' if torch else 'no':>8}{'no':>10}")
    return 0 if worst < TARGET_MB and not torch else 1


def _request(running: Service) -> None:
    paths = ("/v1/models", "/v1/models/memory", "/v1/audit", "/openapi.json", "/v1/models/none")
    with httpx.Client(base_url=running.url) as http:
        for number in range(REQUESTS):
            http.get(paths[number % len(paths)])


def _tree(pid: int) -> list[int]:
    """A process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _tree(int(child)))]


def _status(pid: int, key: str) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(f"{key}:")[1].split()[0]) * 1024 / 1e6


def _resident(running: Service) -> float:
    """MB of the largest process, when it has come to rest."""
    time.sleep(1.0)
    return max(_status(pid, "VmRSS") for pid in _tree(running.pid))


def _peak(running: Service) -> float:
    return _status(running.pid, "VmHWM")


if __name__ == "__main__":
    if not Path("/proc/self/task").exists():
        print("memory: needs Linux's /proc; skipped")
        sys.exit(0)
    sys.exit(main())
