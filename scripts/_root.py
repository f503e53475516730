"""Puts the repository's root on the module search path, so that `python scripts/X.py` finds the project's modules.

Every script imports this first.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
