"""The device that tests of whole passes run on: ``TRAITSCOPE_TEST_DEVICE=cuda python -m pytest tests/verify``."""

from __future__ import annotations

import os

DEVICE = os.environ.get("TRAITSCOPE_TEST_DEVICE", "cpu")
