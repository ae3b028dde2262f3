from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from app.worker import device

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0


def test_auto_takes_what_is_there() -> None:
    assert device.choose("auto") == torch.device("cuda:0" if GPUS else "cpu")


def test_cpu_is_always_there() -> None:
    assert device.choose("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "cuda:one", "CPU", "cuda:0 ", "mps"])
def test_what_is_no_name_is_refused_with_the_choices(name: str) -> None:
    with pytest.raises(device.NoSuchDevice, match="use auto, cpu, cuda or cuda:<n>"):
        device.choose(name)


def test_a_device_that_is_not_there_is_refused_with_the_remedy() -> None:
    with pytest.raises(device.NoSuchDevice, match=r"ESPALIER_DEVICE=cuda:999: .*use auto"):
        device.choose("cuda:999")


@pytest.mark.skipif(GPUS > 0, reason="this machine has a GPU")
def test_cuda_without_a_gpu_says_why() -> None:
    with pytest.raises(device.NoSuchDevice, match=r"built without CUDA|finds no CUDA device"):
        device.choose("cuda")


@pytest.mark.skipif(GPUS == 0, reason="this machine has no GPU")
def test_cuda_with_a_gpu() -> None:
    assert device.choose("cuda") == torch.device("cuda", 0)


def test_a_device_that_computes_answers_and_another_does_not() -> None:
    assert device.answers(torch.device("cpu"))
    assert not device.answers(torch.device("cuda", 99))


@pytest.mark.slow
def test_settle_sets_every_switch() -> None:
    code = (
        "import os, torch\n"
        "from app.worker import device\n"
        "device.settle(1)\n"
        "print(torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),\n"
        "      torch.is_deterministic_algorithms_warn_only_enabled(), torch.backends.cudnn.benchmark,\n"
        "      torch.backends.cudnn.allow_tf32, os.environ['CUBLAS_WORKSPACE_CONFIG'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True", "True", "False", "False", ":4096:8"]


WARMED = """
import sys, torch
from app.worker import device
before = torch.get_rng_state()
device.warm_up(torch.device("cpu"))
assert torch.equal(torch.get_rng_state(), before)
loaded = set(sys.modules)
layer = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, fused=True)
layer(torch.ones(1, 2)).sum().backward()
optimizer.step()
print(len(set(sys.modules) - loaded))
"""


@pytest.mark.slow
def test_after_warming_up_an_optimizer_step_loads_nothing_more() -> None:
    found = subprocess.run([sys.executable, "-c", WARMED], capture_output=True, text=True, check=True)
    assert int(found.stdout) == 0, found.stderr
