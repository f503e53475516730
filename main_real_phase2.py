"""DeFT, phase 2, under real-world label noise: as main_phase2, with a constant learning rate (5 epochs in the configs)."""

from __future__ import annotations

from utils.run.cli import answer_early

answer_early(__name__, "main_real_phase2")

import main_phase2


def main(argv: list[str] | None = None) -> dict:
    return main_phase2.main(argv, "main_real_phase2", "constant")


if __name__ == "__main__":
    main()
