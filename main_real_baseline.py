"""Training baselines under real-world label noise: as main_baseline, with a constant learning rate."""

from __future__ import annotations

from main_baseline import train_baseline
from utils.config import load_config
from utils.errors import cli


@cli
def main(argv: list[str] | None = None) -> dict:
    return train_baseline(load_config(argv, script="main_real_baseline"), "main_real_baseline", schedule="constant")


if __name__ == "__main__":
    main()
