"""Prints the demo's result as one small table, from the summaries of its four runs."""

from __future__ import annotations

import json
from pathlib import Path

RUN = "digits/sym0.4/seed0"


def main() -> None:
    """Print the table and the places of the files."""
    summaries = {
        script: json.loads((Path("output") / script / RUN / "summary.json").read_text(encoding="utf-8"))
        for script in ("main_small_loss", "main_phase1", "main_baseline", "main_phase2")
    }
    print("\nHandwritten digits, 40 % of the labels redrawn at random (seed 0)\n")
    print(f"{'which labels are clean?':<34} {'precision':>9} {'recall':>8} {'F1':>8} {'seconds':>8}")
    for script, title in (("main_small_loss", "label-match (CLIP's predictions)"), ("main_phase1", "DeFT, phase 1")):
        s = summaries[script]
        print(f"{title:<34} {s['precision']:>9.2f} {s['recall']:>8.2f} {s['f1']:>8.2f} {s['seconds']:>8.1f}")
    print(f"\n{'linear head, test accuracy':<34} {'best':>9} {'last':>8} {'labels':>8} {'seconds':>8}")
    for script, title in (
        ("main_baseline", "trained on all given labels"),
        ("main_phase2", "DeFT, phase 2: selected labels"),
    ):
        s = summaries[script]
        figures = f"{s['best_accuracy']:>9.2f} {s['last_accuracy']:>8.2f} {s['n_selected']:>8} {s['seconds']:>8.1f}"
        print(f"{title:<34} {figures}")
    print("\nA verdict on every label: " + str(Path("output") / "main_phase1" / RUN / "samples.csv"))
    print("The selected set:         " + str(Path("phase1") / "digits" / "sym0.4.pt"))
    print("Settings, logs, weights:  " + str(Path("output")) + "/<script>/" + RUN)


if __name__ == "__main__":
    main()
