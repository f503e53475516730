"""Noisy labels are drawn once, stored with a fingerprint of what they belong to, and read from then on."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.base import labels_sha256
from utils.errors import UserError
from utils.files import write_atomically
from utils.log import log

LARGEST = 1 << 20  # bytes of a stored file's headers and facts, beside its labels
REDRAW = "delete it to draw the noise again"


class Noise(NamedTuple):
    """The noise of a file: data set, noise mode, noise ratio and seed."""

    dataset: str
    mode: str
    ratio: float
    seed: int

    def __str__(self) -> str:
        return f"{self.mode} noise, ratio {self.ratio:g}, seed {self.seed}"


def noisy_labels(noise: Noise, true: np.ndarray, draw: Callable[[], np.ndarray], paths: Sequence[Path]) -> np.ndarray:
    """Read the noisy labels, int64 [N], from the first file that exists; otherwise draw and store them. Logs which.

    Args:
        true: true labels, int64 [N].
        paths: the first writable one stores them.

    Raises:
        UserError: the file is unreadable, or belongs to other labels, noise or seed.
    """
    facts = {**noise._asdict(), "true_sha256": labels_sha256(true)}
    path = next((path for path in paths if path.is_file()), None)
    if path:
        labels, how = _read(path, facts, len(true)), f"read from {path}"
    else:
        labels = draw()
        how = f"drawn and stored in {_store(paths, labels, facts)}"
    log.info(f"noisy labels {how}: {noise}, {(labels != true).sum()} of {len(true)} labels are wrong")
    return labels


def _read(path: Path, facts: dict[str, Any], n: int) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST + 8 * n:
                raise UserError(f"noise file {path} unpacks to more than {n} labels take; {REDRAW}")
        with np.load(path, allow_pickle=False) as stored:
            labels, stored_facts = stored["labels"], json.loads(str(stored["facts"]))
    except UserError:
        raise
    except Exception as error:  # zip, npy and JSON raise many types
        raise UserError(f"noise file {path} cannot be read ({type(error).__name__}); {REDRAW}") from None
    for name, value in facts.items():
        if stored_facts.get(name) != value:
            what = "other true labels" if name == "true_sha256" else f"{name} {stored_facts.get(name)}, not {value}"
            raise UserError(
                f"noise file {path} does not belong to this run: it is for {what}; delete it or set another noise_file"
            )
    if labels.shape != (n,) or labels_sha256(labels) != stored_facts.get("labels_sha256"):
        raise UserError(f"noise file {path} is damaged: its labels do not match its fingerprint; {REDRAW}")
    return labels.astype(np.int64)


def _store(paths: Sequence[Path], labels: np.ndarray, facts: dict[str, Any]) -> Path:
    """Write the labels to the first writable path and return it."""
    path, *others = paths
    text = json.dumps({**facts, "labels_sha256": labels_sha256(labels)})
    try:
        write_atomically(path, lambda file: np.savez_compressed(file, labels=labels.astype(np.int32), facts=text))
    except UserError:  # e.g. a read-only data directory
        if not others:
            raise
        return _store(others, labels, facts)
    return path
