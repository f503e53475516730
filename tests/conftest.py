"""Tests run from anywhere, on a CPU, with the repository's root on the path and nothing fetched."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for a hub fails at once
