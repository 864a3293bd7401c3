"""Bugs caught here: the memory of the process taken for that of the device, a second device that is not looked at."""

from __future__ import annotations

import psutil
import pytest
import torch

from traitscope.captures import summaries
from traitscope.run.memory import held_where_computed, peak_device_memory_bytes


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: {0: 10, 1: 20}[torch.device(device).index])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=0: {0: 100, 1: 200}[device])


@pytest.mark.usefixtures("two_devices")
def test_memory_is_that_of_the_device_that_computes() -> None:
    assert held_where_computed(torch.device("cuda", 1)) == 20
    assert held_where_computed(torch.device("cpu")) == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
    assert peak_device_memory_bytes() == 300


@pytest.mark.parametrize(("on_device", "shown"), [(None, 5), (0, 5), (7, 7)])
def test_the_summary_shows_the_memory_that_the_plan_estimates(on_device: int | None, shown: int) -> None:
    session = {"peak_memory_bytes": 5, "peak_device_memory_bytes": on_device}
    assert summaries._peak_memory_bytes(session) == shown
