"""The selected set: the only code that writes or reads it."""

from __future__ import annotations

import csv
import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.config import REAL_NOISE, Config
from utils.errors import UserError
from utils.files import plain_cell, write_atomically, write_text

Fingerprint = dict[str, Any]


def clean_set_path(cfg: Config, folder: Path | None = None) -> Path:
    """Path of the selected set: `clean_set`, or the paper's place for seed 0 and beside it, `_seed<k>`, for the others.

    Args:
        folder: run directory of a baseline, which keeps its set there: the paper's place is for DeFT.
    """
    if cfg.clean_set:
        return Path(cfg.clean_set)
    if folder is not None:
        return folder / "clean_set.pt"
    seed = f"_seed{cfg.seed}" if cfg.seed else ""
    if cfg.dataset in REAL_NOISE:
        return Path("phase1") / f"{cfg.dataset}{seed}.pt"
    return Path("phase1") / cfg.dataset / f"{cfg.noise_tag}{seed}.pt"


def writable_clean_set(path: Path) -> Path:
    """`path`, if a selected set can be written there; asked before the training, not after it.

    Raises:
        UserError: another suffix than .pt, or a folder that cannot be made.
    """
    if path.suffix != ".pt":
        raise UserError(f"clean_set={path}: the selected set is written as a tensor, so its name must end in .pt")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):  # a folder that is there may still be read-only
            pass
        if path.with_suffix(".json").is_dir():  # also raises for a name that is too long
            raise UserError(f"clean_set={path}: {path.with_suffix('.json')} is a directory; choose another name")
    except OSError as error:
        raise UserError(
            f"clean_set={path}: cannot be written in {path.parent} ({error.strerror}); choose another one"
        ) from None
    return path


def save_clean_set(
    path: Path, selected: Tensor, fingerprint: Fingerprint, *, rule: str, seed: int, rule_source: str | None = None
) -> None:
    """Write the selected set, bool [N], and beside it a .json with the data and rule that it belongs to."""
    selected = selected.cpu().contiguous()
    facts = {
        **fingerprint,
        "rule": rule,
        **({"rule_source": rule_source} if rule_source else {}),
        "seed": seed,
        "n_selected": int(selected.sum()),
        "mask_sha256": mask_sha256(selected),
    }
    # The .json comes first: between the two writes it carries the hash of a set that is not there yet, and is refused.
    write_text(path.with_suffix(".json"), json.dumps(facts, indent=1) + "\n")
    write_atomically(path, lambda file: torch.save(selected, file))


def load_clean_set(path: Path, ids: Sequence[str], fingerprint: Fingerprint) -> Tensor:
    """Read a selected set for the train samples `ids`, bool [N].

    Takes this project's file with its .json, and from any other method a bool tensor (.pt), a bool array (.npy), or a
    CSV of the selected ids (first column, or the column `sample_id`).

    Raises:
        UserError: missing or unreadable, of another length, data set, noise or labels, foreign ids, nothing selected.
    """
    if not path.is_file():
        raise UserError(
            f"no selected set at {path}: run phase 1 with the same data set and noise first, or name a file with clean_set=FILE"
        )
    try:
        selected = _read_ids(path, ids) if path.suffix == ".csv" else _read_mask(path)
    except UserError:
        raise
    except Exception as error:  # each format fails in its own way
        raise UserError(
            f"selected set {path} cannot be read ({type(error).__name__}); it must be a bool tensor, a bool array or a CSV of ids"
        ) from None
    if not isinstance(selected, Tensor) or selected.dtype != torch.bool or selected.shape != (len(ids),):
        found = (
            f"{list(selected.shape)} of {selected.dtype}" if isinstance(selected, Tensor) else type(selected).__name__
        )
        raise UserError(
            f"selected set {path}: expected {len(ids)} true/false values, one a train sample, found {found}"
        )
    _check_facts(path, selected, fingerprint)
    if not selected.any():
        raise UserError(f"selected set {path} is empty: there is nothing to train on")
    return selected


def _read_mask(path: Path) -> Tensor:
    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path, allow_pickle=False))
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_ids(path: Path, ids: Sequence[str]) -> Tensor:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row]
    column = 0
    if rows and "sample_id" in rows[0]:
        header, rows = rows[0], rows[1:]
        column = header.index("sample_id")
        if "is_clean" in header:  # a whole samples.csv, not a list of the selected
            verdict = header.index("is_clean")
            rows = [row for row in rows if row[verdict].strip().lower() in ("true", "1")]
    number = {name: i for i, name in enumerate(ids)}
    selected = torch.zeros(len(ids), dtype=torch.bool)
    for row in rows:
        row[column] = plain_cell(row[column])
        if row[column] not in number:
            raise UserError(
                f"selected set {path}: '{row[column]}' is not a train sample of this data set (ids look like '{ids[0]}')"
            )
        selected[number[row[column]]] = True
    return selected


def _check_facts(path: Path, selected: Tensor, fingerprint: Fingerprint) -> None:
    facts_path = path.with_suffix(".json")
    if not facts_path.is_file():
        return
    try:
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
        same_mask = facts["mask_sha256"] == mask_sha256(selected)
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{facts_path} is damaged: run phase 1 again, or delete it to use {path} without checks"
        ) from None
    if not same_mask:
        raise UserError(
            f"{path} and {facts_path} do not belong together: run phase 1 again, or delete the .json to use the set without checks"
        )
    for name, value in fingerprint.items():
        if facts.get(name) != value:
            label = {"ids_sha256": "other samples or another order", "labels_sha256": "other given labels"}.get(name)
            what = label or f"{name.replace('_', ' ')} {facts.get(name)}, and this run has {value}"
            raise UserError(
                f"selected set {path} was made for {what}: run phase 1 with this run's data set, noise and seed first"
            )


def mask_sha256(selected: Tensor) -> str:
    """Hash of a selected set, bool [N]."""
    return hashlib.sha256(np.packbits(selected.numpy()).tobytes()).hexdigest()
