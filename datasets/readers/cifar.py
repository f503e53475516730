"""CIFAR-10 and CIFAR-100 from the official pickles, and CIFAR-N's human labels.

CIFAR-N (`cifar10n`, `cifar100n`) is the same images, so both names lead to the same files.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torchvision

from utils.config import Config
from utils.errors import UserError
from utils.log import log, quiet_downloads

Split = tuple[np.ndarray, np.ndarray]

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
TRAIN_FILES = {"cifar10": [f"data_batch_{i}" for i in range(1, 6)], "cifar100": ["train"]}
TEST_FILES = {"cifar10": ["test_batch"], "cifar100": ["test"]}
LABEL_KEYS = {"cifar10": "labels", "cifar100": "fine_labels"}
ARCHIVES = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}
HUMAN_LABELS = {"cifar10": ("CIFAR-10_human.pt", "worse_label"), "cifar100": ("CIFAR-100_human.pt", "noisy_label")}
# All that the published files need; whatever else a pickle asks for is refused before it runs.
HARMLESS = {
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}


def read_cifar(cfg: Config) -> tuple[Split, Split]:
    """(images, labels) of the train and test split: uint8 [N, 32, 32, 3] and int64 [N].

    Fetches the archive when the folder is missing and `download` allows it.

    Raises:
        UserError: missing, damaged or incomplete files, or no network.
    """
    name = plain_name(cfg)
    folder = Path(cfg.data_root) / FOLDERS[name]
    files = TRAIN_FILES[name] + TEST_FILES[name]
    missing = [name for name in files if not (folder / name).is_file()]
    if missing and cfg.download:
        _download(cfg)
    elif missing:
        found = f"it lacks {', '.join(missing)}" if folder.is_dir() else "there is no such folder"
        raise UserError(
            f"{cfg.dataset}: looked for the official python version in {folder}: {found}; put it there, set data_root, or set download=true"
        )
    train, test = (
        [_read_batch(folder / file, LABEL_KEYS[name]) for file in names]
        for names in (TRAIN_FILES[name], TEST_FILES[name])
    )
    return tuple(
        (np.concatenate([b[0] for b in split]), np.concatenate([b[1] for b in split])) for split in (train, test)
    )


def read_human_labels(cfg: Config, n: int) -> np.ndarray:
    """CIFAR-N's human labels (Wei et al., 2022) of the train split, int64 [n].

    Raises:
        UserError: the file is missing, damaged, or of another length.
    """
    name, label_key = HUMAN_LABELS[plain_name(cfg)]
    path = Path(cfg.data_root) / name
    if not path.is_file():
        raise UserError(
            f"{cfg.dataset} with noise 'real' needs the human labels of CIFAR-N: looked for {path}; get it from the CIFAR-N project (noisylabels.com) and put it there"
        )
    content = _unpickle_torch(path)
    if not isinstance(content, dict) or label_key not in content:
        raise UserError(f"{path}: no entry '{label_key}'; this is not the published file")
    labels = np.asarray(content[label_key]).astype(np.int64)
    if labels.shape != (n,):
        raise UserError(f"{path}: {labels.shape[0] if labels.ndim else 0} labels for {n} images")
    return labels


def plain_name(cfg: Config) -> str:
    """`cifar10` or `cifar100`: whose images these are."""
    return cfg.dataset.removesuffix("n")


def _download(cfg: Config) -> None:
    log.info(f"fetching {cfg.dataset} into {cfg.data_root}")
    archive = ARCHIVES[plain_name(cfg)]
    try:
        Path(cfg.data_root).mkdir(parents=True, exist_ok=True)
        with quiet_downloads():
            archive(cfg.data_root, download=True)
    except Exception as error:  # a network fails in many ways
        raise UserError(
            f"{cfg.dataset} is not in {cfg.data_root} and could not be fetched ({type(error).__name__}): unpack {archive.url} there by hand"
        ) from None


def _read_batch(path: Path, label_key: str) -> Split:
    try:
        content = _Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        content = {k.decode() if isinstance(k, bytes) else k: v for k, v in content.items()}
        images = np.asarray(content["data"], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.asarray(content[label_key], dtype=np.int64)
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
    except Exception as error:  # a damaged pickle may fail anywhere
        raise UserError(f"{path}: not a readable CIFAR file ({_first_line(error)}); fetch the archive again") from None
    return images, labels


def _unpickle_torch(path: Path) -> Any:
    """A file of torch.save that holds numpy arrays: its pickle through the restricted reader."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            return _Unpickler(io.BytesIO(archive.read(name))).load()
    except Exception as error:  # a damaged file may fail anywhere
        raise UserError(f"{path}: not a readable label file ({_first_line(error)})") from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which these files do not need")
        # numpy 2 moved its core; files written before still name the old place.
        moved = module.replace("numpy.core", "numpy._core") if hasattr(np, "_core") else module
        return super().find_class(moved, name)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
