"""Training baselines under real-world label noise: as main_baseline, with a constant learning rate."""

from __future__ import annotations

from utils.run.cli import answer_early

answer_early(__name__, "main_real_baseline")

import main_baseline


def main(argv: list[str] | None = None) -> dict:
    return main_baseline.main(argv, "main_real_baseline", "constant")


if __name__ == "__main__":
    main()
