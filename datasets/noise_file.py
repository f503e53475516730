"""Noisy labels are drawn once, stored with what they belong to, and read from then on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from datasets.base import labels_sha256
from utils.config import Config
from utils.errors import UserError
from utils.files import write_atomically


def noisy_labels(cfg: Config, true: np.ndarray, draw: Callable[[], np.ndarray]) -> np.ndarray:
    """The stored noisy labels of these settings; drawn and stored first where there are none, int64 [N].

    Raises:
        UserError: the file is unreadable, or belongs to other labels, noise or seed.
    """
    facts = {
        "dataset": cfg.dataset,
        "mode": cfg.noise_mode,
        "ratio": cfg.noise_ratio,
        "seed": cfg.seed,
        "true_sha256": labels_sha256(true),
    }
    paths = _places(cfg)
    for path in paths:
        if path.is_file():
            return _read(path, facts, len(true))
    labels = draw()
    _store(paths, labels, facts)
    return labels


def _places(cfg: Config) -> list[Path]:
    """Where the file may lie: the user's place, or the data folder and, when that is read-only, the output folder."""
    if cfg.noise_file:
        return [Path(cfg.noise_file)]
    name = f"{cfg.dataset}_{cfg.noise_tag}_seed{cfg.seed}.npz"
    return [Path(cfg.data_root) / "noise" / name, Path(cfg.output_dir or "output") / "noise" / name]


def _read(path: Path, facts: dict, n: int) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as stored:
            labels, stored_facts = stored["labels"], json.loads(str(stored["facts"]))
    except Exception as error:  # zip, npy and JSON each complain in their own way
        raise UserError(
            f"noise file {path} cannot be read ({type(error).__name__}): delete it to have the noise drawn anew"
        ) from None
    for name, value in facts.items():
        if stored_facts.get(name) != value:
            what = "other true labels" if name == "true_sha256" else f"{name} {stored_facts.get(name)}, not {value}"
            raise UserError(
                f"noise file {path} does not belong to this run: it is for {what}; delete it or name another noise_file"
            )
    if labels.shape != (n,) or labels_sha256(labels) != stored_facts.get("labels_sha256"):
        raise UserError(
            f"noise file {path} is damaged: its labels do not match its fingerprint; delete it to have the noise drawn anew"
        )
    return labels.astype(np.int64)


def _store(paths: list[Path], labels: np.ndarray, facts: dict) -> None:
    facts = {**facts, "labels_sha256": labels_sha256(labels)}
    text = np.array(json.dumps(facts))
    for path in paths:
        try:
            write_atomically(path, lambda file: np.savez_compressed(file, labels=labels.astype(np.int32), facts=text))
            return
        except UserError:
            if path is paths[-1]:
                raise
