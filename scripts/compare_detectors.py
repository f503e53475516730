"""Compares DeFT with other detectors of wrong labels, on the same data, noise and CLIP.

    python scripts/compare_detectors.py --cfg config/PEFT/digits.yaml --noises sym0.2,asym0.3 --seeds 0,1,2
    python scripts/compare_detectors.py --cfg config/PEFT/cifar100n.yaml pretrained=FILE data_root=DIR

DeFT, label-match and small-loss (given the true ratio) are runs of this project's mains; DeFT-margin (verdict=margin)
shares DeFT's training, and its seconds are those in addition. On the image features of the same CLIP, without adaptation:
cleanlab's find_label_issues and label quality over out-of-fold logistic regression, and the disagreement with the 20
nearest neighbours. Flags and keys are those of the mains. Each cell's directory in output_dir (output/compare) keeps its
result, so repeating the command resumes. Prints a markdown table, mean ± standard deviation over seeds: F1 of the clean
labels as in the paper; average precision of the ranking, and recall when as many samples are reviewed as there are wrong
labels, both of the wrong labels, in percent; seconds of one run.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import _root  # noqa: F401

from utils.config import NOISE_MODES, REAL_NOISE, Config, dump_config, load_config
from utils.errors import UserError
from utils.run.cli import Parser, answer_early, cli

NAMES = ("DeFT", "DeFT-margin", "cleanlab", "label-match", "small-loss", "nearest-neighbours")
NOISES = ("sym0.2", "sym0.4", "asym0.3", "idn0.4")
SEEDS = ("0", "1", "2", "3", "4")


def read_arguments(argv: list[str] | None) -> tuple[Config, list[str], list[int], list[str]]:
    """The checked command line: settings, noises, seeds, methods.

    Raises:
        UserError: an unknown method or noise, a seed that is not a number, wrong settings.
    """
    parser = Parser(__doc__)
    for flag, default in (("--noises", NOISES), ("--seeds", SEEDS), ("--methods", NAMES)):
        parser.add_argument(flag, default=",".join(default), metavar="LIST", help="default: %(default)s")
    args, rest = parser.parse_known_args(argv)
    noises, seeds, methods = (text.split(",") for text in (args.noises, args.seeds, args.methods))
    if unknown := [name for name in methods if name not in NAMES]:
        raise UserError(f"--methods: unknown method '{unknown[0]}'; choose from {', '.join(NAMES)}")
    if not all(seed.isdecimal() for seed in seeds):
        raise UserError(f"--seeds {args.seeds}: expected numbers separated by commas")
    cfg = load_config(rest, script="compare_detectors")
    noises = ["real"] if cfg.dataset in REAL_NOISE else noises
    for noise in noises:
        with_noise(cfg, noise, 0)
    return cfg, noises, [int(seed) for seed in seeds], methods


def with_noise(cfg: Config, noise: str, seed: int) -> Config:
    """The settings of one column: `sym0.4`, or `real`."""
    if noise == "real":
        return replace(cfg, noise_mode="real", seed=seed)
    found = re.fullmatch(rf"({'|'.join(NOISE_MODES[:-1])})(0\.\d+)", noise)
    if not found:
        raise UserError(f"--noises {noise}: a noise is written like sym0.4, asym0.3, idn0.4, or real")
    return replace(cfg, noise_mode=found[1], noise_ratio=float(found[2]), seed=seed)


answer_early(__name__, read_arguments)

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import main_phase1
import main_small_loss
from datasets import build_data, build_loaders
from models import build_zero_shot
from utils.files import write_text
from utils.metrics import selection_quality
from utils.report.samples_csv import read_samples
from utils.run.device import choose_device

NEIGHBOURS = 20
FOLDS = 5
FIGURES = ("f1", "average_precision", "recall_at_budget", "seconds")

Verdict = tuple[np.ndarray, np.ndarray]  # score of each label, low = suspicious, [N]; whether it is trusted, bool [N]


@cli
def main(argv: list[str] | None = None) -> None:
    """Compute the missing results and print the table."""
    cfg, noises, seeds, methods = read_arguments(argv)
    rows = ["| noise | method | F1 | average precision | recall at budget | seconds |", "|---|---|---|---|---|---|"]
    for noise in noises:
        settings = [with_noise(cfg, noise, seed) for seed in seeds]
        for method in methods:
            results = [cell(method, noise, one) for one in settings]
            shown = " | ".join(mean_and_deviation([result[name] for result in results]) for name in FIGURES)
            rows.append(f"| {noise} | {method} | {shown} |")
    print("\n".join(rows))


def cell(method: str, noise: str, cfg: Config) -> dict[str, Any]:
    """The figures of one method, noise and seed, stored in the cell's directory with the settings they belong to."""
    folder = Path(cfg.output_dir or "output/compare") / cfg.dataset / noise / method / f"seed{cfg.seed}"
    cfg = replace(cfg, output_dir=str(folder), clean_set=str(folder / "clean_set.pt"))
    path, settings = folder / "result.json", folder / "settings.yaml"
    if settings.is_file() and settings.read_text(encoding="utf-8") != dump_config(cfg):
        raise UserError(f"{folder} holds a result of other settings; use the same, or another output_dir")
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    write_text(settings, dump_config(cfg))
    started = time.perf_counter()
    score, trusted = METHODS[method](cfg)
    seconds = time.perf_counter() - started
    clean = build_data(cfg).train.is_clean
    if clean is None:
        raise UserError(f"{cfg.dataset}: its true labels are unknown, so detectors cannot be compared on it")
    result = {**figures(score, trusted, clean.numpy()), "seconds": seconds}
    write_text(path, json.dumps(result, indent=1) + "\n")
    return result


def figures(score: np.ndarray, trusted: np.ndarray, clean: np.ndarray) -> dict[str, Any]:
    """F1 of the trusted labels, average precision of the wrong ones, and their share among as many lowest scores."""
    n_wrong = int((~clean).sum())
    lowest = np.argsort(score, kind="stable")[:n_wrong]
    return {
        "f1": selection_quality(torch.from_numpy(trusted), torch.from_numpy(clean))["f1"],
        "average_precision": 100 * float(average_precision_score(~clean, -score)),
        "recall_at_budget": 100 * float((~clean)[lowest].sum()) / max(1, n_wrong),
    }


def mean_and_deviation(values: list[float]) -> str:
    """`93.10 ± 0.52`, or the one value."""
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


# ------------------------------------------------------------------ the detectors


def deft_margin(cfg: Config) -> Verdict:
    """The same training as DeFT's, in its directory; its files are then those of this verdict."""
    folder = Path(str(cfg.output_dir))
    shared = folder.parents[1] / "DeFT" / folder.name
    return run(main_phase1.main, cfg, verdict="margin", output_dir=str(shared), clean_set=str(shared / "clean_set.pt"))


def run(script: Callable[[list[str]], object], cfg: Config, **keys: Any) -> Verdict:
    """The verdicts of one of the mains, under further `keys` of the config; a run that was stopped is resumed."""
    cfg = replace(cfg, resume=True, **keys)
    folder = Path(str(cfg.output_dir))
    write_text(folder / "run.yaml", dump_config(cfg))
    script(["--cfg", str(folder / "run.yaml")])
    by_id = {sample.sample_id: sample for sample in read_samples(folder / "samples.csv")}
    samples = [by_id[name] for name in build_data(cfg).train.ids]
    score = np.array([sample.score for sample in samples])
    return np.nan_to_num(score, nan=1.0), np.array([sample.is_clean for sample in samples])


def cleanlab(cfg: Config) -> Verdict:
    """Confident learning over out-of-fold logistic regression (Northcutt et al., 2021)."""
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        raise UserError("cleanlab is not installed: pip install cleanlab, or leave it out with --methods") from None
    features, given = frozen_features(cfg)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=cfg.seed)
    p = cross_val_predict(probe, features, given, cv=folds, method="predict_proba")
    return get_label_quality_scores(given, p), ~find_label_issues(given, p, n_jobs=1)


def nearest_neighbours(cfg: Config) -> Verdict:
    """Share of a sample's neighbours with its label; trusted where no other label has more of them."""
    features, given = frozen_features(cfg)
    k = min(NEIGHBOURS, len(given) - 1)
    index = NearestNeighbors(n_neighbors=k).fit(features)
    neighbours = given[index.kneighbors(return_distance=False)]  # without the sample itself
    votes = np.stack([np.bincount(row, minlength=given.max() + 1) for row in neighbours])
    own = votes[np.arange(len(given)), given]
    return own / k, own == votes.max(axis=1)


def frozen_features(cfg: Config) -> tuple[np.ndarray, np.ndarray]:
    """Unit-length image features of CLIP without adaptation, under test transforms, [N, D]; given labels, [N]."""
    data, device = build_data(cfg), choose_device(cfg)
    model = build_zero_shot(cfg, data.class_names).to(device).eval()
    visual = model.get_submodule("visual")
    train, _ = build_loaders(cfg, data, model, device)
    with torch.no_grad():
        features = torch.cat([visual(batch.images).float() for batch in train.ordered()])
    return torch.nn.functional.normalize(features, dim=-1).cpu().numpy(), data.train.given.numpy()


METHODS: dict[str, Callable[[Config], Verdict]] = {
    "DeFT": partial(run, main_phase1.main),
    "DeFT-margin": deft_margin,
    "cleanlab": cleanlab,
    "label-match": partial(run, main_small_loss.main, strategy="label_match"),
    "small-loss": partial(run, main_small_loss.main, strategy="small_loss"),
    "nearest-neighbours": nearest_neighbours,
}


if __name__ == "__main__":
    main()
