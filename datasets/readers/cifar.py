"""CIFAR-10 and CIFAR-100 from the official pickles, and CIFAR-N's human labels.

CIFAR-N (`cifar10n`, `cifar100n`) has the same images, so both names read the same files.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torchvision

from datasets.readers.splits import Arrays, Splits
from utils.errors import UserError, first_line
from utils.log import log, quiet_downloads

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
TRAIN_FILES = {"cifar10": [f"data_batch_{i}" for i in range(1, 6)], "cifar100": ["train"]}
TEST_FILES = {"cifar10": ["test_batch"], "cifar100": ["test"]}
LABEL_KEYS = {"cifar10": "labels", "cifar100": "fine_labels"}
ARCHIVES = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}
HUMAN_LABELS = {"cifar10": ("CIFAR-10_human.pt", "worse_label"), "cifar100": ("CIFAR-100_human.pt", "noisy_label")}
# All that the published files need; any other import of a pickle is refused before it runs.
HARMLESS = {("_codecs", "encode"), ("collections", "OrderedDict"), ("numpy", "dtype"), ("numpy", "ndarray")}
HARMLESS |= {(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")}


def read_cifar(root: Path, *, dataset: str, download: bool = False) -> Splits:
    """Read train and test split with clean labels.

    Args:
        dataset: cifar10, cifar100, cifar10n or cifar100n.
        download: download the archive if files are missing.

    Raises:
        UserError: missing or damaged files, or no network.
    """
    name = dataset.removesuffix("n")
    folder = root / FOLDERS[name]
    missing = [file for file in TRAIN_FILES[name] + TEST_FILES[name] if not (folder / file).is_file()]
    if missing and download:
        _download(root, dataset)
    elif missing:
        found = f"without {', '.join(missing)}" if folder.is_dir() else "no such directory"
        raise UserError(
            f"{dataset}: looked for the official python version in {folder}: {found}; put it there, set data_root, or set download=true"
        )

    def read_split(files: Sequence[str]) -> Arrays:
        images, labels = zip(*(_read_batch(folder / file, LABEL_KEYS[name]) for file in files))
        return Arrays(np.concatenate(images), np.concatenate(labels))

    return Splits(read_split(TRAIN_FILES[name]), read_split(TEST_FILES[name]))


def read_human_labels(root: Path, *, dataset: str, n: int) -> np.ndarray:
    """Read CIFAR-N's human labels (Wei et al., 2022) of the train split, int64 [n].

    Raises:
        UserError: the file is missing, damaged, or of another length.
    """
    name, label_key = HUMAN_LABELS[dataset.removesuffix("n")]
    path = root / name
    if not path.is_file():
        raise UserError(
            f"{dataset} with noise 'real' needs the human labels of CIFAR-N: looked for {path}; download it from noisylabels.com and put it there"
        )
    try:
        with zipfile.ZipFile(path) as archive:  # as torch.save writes
            pickled = next(file for file in archive.namelist() if file.endswith("/data.pkl"))
            content = _Unpickler(io.BytesIO(archive.read(pickled))).load()
    except Exception as error:  # damaged files raise many types
        raise UserError(f"{path}: not a readable label file ({first_line(error)}); download it again") from None
    if not isinstance(content, dict) or label_key not in content:
        raise UserError(f"{path}: no entry '{label_key}'; use the published file")
    labels = np.asarray(content[label_key]).astype(np.int64)
    if labels.shape != (n,):
        n_labels = labels.shape[0] if labels.ndim else 0
        raise UserError(f"{path}: {n_labels} labels for {n} images; use the published file")
    return labels


def _download(root: Path, dataset: str) -> None:
    log.info(f"downloading {dataset} into {root}")
    archive = ARCHIVES[dataset.removesuffix("n")]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with quiet_downloads():
            archive(str(root), download=True)
    except Exception as error:  # networks raise many types
        raise UserError(
            f"{dataset} is not in {root} and could not be downloaded ({type(error).__name__}); unpack {archive.url} there"
        ) from None


def _read_batch(path: Path, label_key: str) -> Arrays:
    try:
        content = _Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        content = {k.decode() if isinstance(k, bytes) else k: v for k, v in content.items()}
        images = np.asarray(content["data"], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.asarray(content[label_key], dtype=np.int64)
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
    except Exception as error:  # damaged pickles raise many types
        raise UserError(
            f"{path}: not a readable CIFAR file ({first_line(error)}); download the archive again"
        ) from None
    return Arrays(images, labels)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it imports {module}.{name}, which the published files do not need")
        # numpy 2 moved its core; older files name the old module.
        moved = module.replace("numpy.core", "numpy._core") if hasattr(np, "_core") else module
        return super().find_class(moved, name)
