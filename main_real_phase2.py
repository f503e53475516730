"""DeFT, phase 2, under real-world label noise: as main_phase2, with a constant learning rate (5 epochs in the configs)."""

from __future__ import annotations

from main_phase2 import adapt
from utils.config import load_config
from utils.errors import cli


@cli
def main(argv: list[str] | None = None) -> dict:
    return adapt(load_config(argv, script="main_real_phase2"), "main_real_phase2", schedule="constant")


if __name__ == "__main__":
    main()
