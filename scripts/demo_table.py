"""Prints the demo's result as one small table, from the summaries of its four runs."""

from __future__ import annotations

import json
from pathlib import Path

RUN = "digits/sym0.4/seed0"


def main() -> None:
    """Print the table and the places of the files."""
    print("\nHandwritten digits, 40 % of the labels redrawn at random (seed 0)\n")
    print(f"{'which labels are clean?':<34} {'precision':>9} {'recall':>8} {'F1':>8} {'seconds':>8}")
    print(row("label-match (CLIP's predictions)", "main_small_loss", "precision", "recall", "f1"))
    print(row("DeFT, phase 1", "main_phase1", "precision", "recall", "f1"))
    print(f"\n{'linear head, test accuracy':<34} {'best':>9} {'last':>8} {'labels':>8} {'seconds':>8}")
    print(row("trained on all given labels", "main_baseline", "best_accuracy", "last_accuracy", "n_selected"))
    print(row("DeFT, phase 2: selected labels", "main_phase2", "best_accuracy", "last_accuracy", "n_selected"))
    print(f"\nA verdict on every label: output/main_phase1/{RUN}/samples.csv")
    print("The selected set:         phase1/digits/sym0.4.pt")
    print(f"Settings, logs, weights:  output/<script>/{RUN}")


def row(title: str, script: str, first: str, second: str, third: str) -> str:
    """One line: three figures of a run's summary.json, the third of them a count or percent, and its seconds."""
    summary = json.loads(Path("output", script, RUN, "summary.json").read_text(encoding="utf-8"))
    count = summary[third] if isinstance(summary[third], int) else f"{summary[third]:.2f}"
    return f"{title:<34} {summary[first]:>9.2f} {summary[second]:>8.2f} {count:>8} {summary['seconds']:>8.1f}"


if __name__ == "__main__":
    main()
