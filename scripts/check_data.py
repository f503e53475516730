"""Compares the data with what this project expects: one line per check.

    python scripts/check_data.py --cfg config/PEFT/cifar100.yaml --noise_mode sym --noise_ratio 0.4 data_root=/data

Flags and keys are those of the seven mains. Checks: the data set's directory, the order of its samples, the noisy labels,
and the selected set that belongs to them (phase 1's place, or clean_set=FILE). Each is ok, differs, or not there. Nothing
is downloaded or trained; noisy labels that are not stored yet are drawn and stored, as a run would do.
Exit code 2 if a check differs or the data is missing; 0 if everything that can be compared is as expected.

--write-fingerprints (for maintainers) draws every noise of the paper for the data set and stores the labels' hashes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import _root  # noqa: F401

from utils.config import REAL_NOISE, Config, load_config
from utils.errors import UserError
from utils.run.cli import answer_early, cli

WRITE = "--write-fingerprints"


def read_settings(argv: list[str] | None) -> tuple[Config, bool]:
    """The settings, and whether fingerprints are to be written. --help is this module's docstring and the keys."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(__doc__)
    cfg = load_config([word for word in argv if word != WRITE], script="check_data")
    return replace(cfg, download=False), WRITE in argv


answer_early(__name__, read_settings)

import numpy as np

from datasets import Data, build_data
from datasets.base import labels_sha256
from utils.files import write_text
from utils.log import show
from utils.metrics import selection_quality
from utils.selection.selected_set import clean_set_path, load_clean_set

FINGERPRINTS = Path(__file__).with_name("noise_fingerprints.json")
# Train and test images of the published data sets. Clothing1M's train images are `num_samples` of them.
SIZES = {
    "digits": (1297, 500),
    **dict.fromkeys(("cifar10", "cifar100", "cifar10n", "cifar100n"), (50000, 10000)),
    "tiny_imagenet": (100000, 10000),
    "stanford_cars": (8144, 8041),
    "cub-200-2011": (5994, 5794),
    "clothing1m": (None, 10526),
    "webvision": (65944, 2500),
}
PAPER_NOISE = {"sym": (0.2, 0.4, 0.6, 0.8), "asym": (0.4,), "str": (0.4,), "idn": (0.2, 0.3, 0.4, 0.5)}
SEEDS = range(5)
BLOCK = 100  # labels per block


class Finding(NamedTuple):
    """Result of a check: state (`ok`, `differs` or `not there`), explanation, and whether it is a fault."""

    state: str
    text: str
    fault: bool = False


@cli
def main(argv: list[str] | None = None) -> None:
    """Print one line per check; exit code 2 if one found a fault."""
    cfg, writes = read_settings(argv)
    show(quiet=True)  # one line per check, without those of reading the data
    if writes:
        write_fingerprints(cfg)
        return
    n_faults = 0
    for name, finding in check(cfg):
        print(f"{name + ':':<14}{finding.state + ',':<11}{finding.text}", flush=True)
        n_faults += finding.fault
    if n_faults:
        raise SystemExit(2)


def check(cfg: Config) -> Iterator[tuple[str, Finding]]:
    """(name, finding) of each check; without data, only of the first."""
    try:
        data = with_noise(cfg, "sym", 0.0)
    except UserError as error:
        yield "data", Finding("not there", str(error), fault=True)
        return
    yield "data", check_sizes(cfg, data)
    yield "order", check_order(cfg, data)
    try:
        data = build_data(cfg)
    except UserError as error:
        yield "noise", Finding("not there" if cfg.noise_tag == "real" else "differs", str(error), fault=True)
        return
    yield "noise", check_noise(cfg, data)
    yield "selected set", check_selected(cfg, data)


def with_noise(cfg: Config, mode: str, ratio: float) -> Data:
    """The data with synthetic noise (ratio 0: without); no noise file of the user is read or written."""
    with tempfile.TemporaryDirectory() as folder:
        return build_data(replace(cfg, noise_mode=mode, noise_ratio=ratio, noise_file=f"{folder}/noise.npz"))


# ------------------------------------------------------------------ the checks


def check_sizes(cfg: Config, data: Data) -> Finding:
    """The numbers of images are the published ones."""
    n_test = len(data.test) if data.test else 0
    found = f"{len(data.train)} train and {n_test} test images of {len(data.class_names)} classes"
    for name, split in data.extra_tests.items():
        found += f", {len(split)} of {name}"
    train, test = SIZES.get(cfg.dataset, (None, n_test))  # of the user's own images, any number
    if train in (None, len(data.train)) and test == n_test:
        return Finding("ok", found)
    published = f"{train} and {test}" if train else f"{test} test images"
    return Finding("differs", f"{found}; published are {published}", fault=True)


def check_order(cfg: Config, data: Data) -> Finding:
    """The true labels are the published ones in their order, or at least the ids are sorted."""
    known = fingerprints(cfg)
    if known and data.train.true is not None:
        if labels_sha256(data.train.true.numpy()) == known["clean"]:
            return Finding("ok", "the true labels are the published ones, in the published order")
        return Finding("differs", "other true labels or another order than published; unpack the archive again", True)
    if cfg.dataset == "clothing1m":
        return Finding("ok", "a fixed shuffle of the sorted list")
    ids = list(data.train.ids)
    if ids == sorted(ids) or ids == [str(i) for i in range(len(ids))]:
        return Finding("ok", f"sorted by id, from '{ids[0]}' to '{ids[-1]}'; no hash of its labels is stored")
    return Finding("differs", f"not sorted by id: '{ids[0]}' comes first", fault=True)


def check_noise(cfg: Config, data: Data) -> Finding:
    """The noisy labels are those that this project draws, or those that were published."""
    rate = "" if data.train.is_clean is None else f"{100 * (1 - data.train.is_clean.double().mean()):.2f} % wrong; "
    name, given = data.train.noise, data.train.given.numpy()
    known = fingerprints(cfg).get(name)
    if known is None:
        return Finding("not there", f"{rate}no fingerprint of {cfg.dataset} {name} is stored to compare with")
    if labels_sha256(given) == known["sha256"]:
        return Finding("ok", f"{rate}exactly the labels of {name}")
    if cfg.noise_tag == "real":
        return Finding("differs", f"{rate}other human labels than published; download the file again", fault=True)
    ours, theirs = block_hashes(given), known.get("blocks", "").split()
    same = sum(a == b for a, b in zip(ours, theirs))
    if same >= 0.8 * len(ours):
        agrees = f"{same} of {len(ours)} blocks of {BLOCK} labels are those of {name}"
        return Finding("ok", f"{rate}{agrees}; a few idn labels depend on rounding")
    return Finding("differs", f"{rate}not the labels of {name}; delete the noise file to draw them again", fault=True)


def check_selected(cfg: Config, data: Data) -> Finding:
    """The selected set belongs to these labels; it may be missing, unless it was named."""
    path = clean_set_path(cfg)
    if not path.is_file():
        return Finding("not there", f"{path}: phase 1 writes it", fault=cfg.clean_set is not None)
    try:
        selected = load_clean_set(path, data.train.ids, data.train.fingerprint())
    except UserError as error:
        return Finding("differs", str(error), fault=True)
    quality = selection_quality(selected, data.train.is_clean)
    figures = "".join(f", {name} {value:.2f}" for name, value in quality.items() if value)
    alone = "" if path.with_suffix(".json").is_file() else "; without its .json only the length could be compared"
    return Finding("ok", f"{path}: {int(selected.sum())} of {len(selected)} samples{figures}{alone}")


# ------------------------------------------------------------------ fingerprints


def fingerprints(cfg: Config) -> dict[str, Any]:
    """The stored hashes of a data set; CIFAR-N's images and true labels are CIFAR's."""
    dataset = cfg.dataset.removesuffix("n") if cfg.dataset.startswith("cifar") else cfg.dataset
    return json.loads(FINGERPRINTS.read_text(encoding="utf-8")).get(dataset, {})


def block_hashes(labels: np.ndarray) -> list[str]:
    """A short hash of each block: enough to count how many blocks agree."""
    return [labels_sha256(labels[i : i + BLOCK])[:2] for i in range(0, len(labels), BLOCK)]


def write_fingerprints(cfg: Config) -> None:
    """Draw every noise of the paper and store its hashes, and that of CIFAR's human labels."""
    if cfg.dataset in REAL_NOISE:
        raise UserError(f"{WRITE}: the noise of {cfg.dataset} is not drawn, so there is nothing to store")
    wanted = [(mode, ratio, seed) for mode, ratios in PAPER_NOISE.items() for ratio in ratios for seed in SEEDS]
    wanted += [("real", 0.0, 0)] * cfg.dataset.startswith("cifar")
    true = with_noise(cfg, "sym", 0.0).train.true
    assert true is not None  # of every data set with synthetic noise
    result: dict[str, Any] = {"clean": labels_sha256(true.numpy())}
    for mode, ratio, seed in wanted:
        train = with_noise(replace(cfg, seed=seed), mode, ratio).train
        result[train.noise] = {"sha256": labels_sha256(train.given.numpy())}
        if mode == "idn":  # products of large matrices: another machine may round a draw to the other side
            result[train.noise]["blocks"] = " ".join(block_hashes(train.given.numpy()))
        print(train.noise, result[train.noise]["sha256"], flush=True)
    every = json.loads(FINGERPRINTS.read_text(encoding="utf-8")) if FINGERPRINTS.is_file() else {}
    every[cfg.dataset] = result
    write_text(FINGERPRINTS, as_json(every))


def as_json(every: dict[str, Any]) -> str:
    """JSON with one line per noise."""
    sets = []
    for dataset, result in every.items():
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in result.items()]
        sets.append(f" {json.dumps(dataset)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(sets) + "\n}\n"


if __name__ == "__main__":
    main()
