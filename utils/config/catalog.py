"""The tables of data sets and noise modes: one row each. The choices of the config and `datasets` derive from them.

A row names its function as "module:function", which is imported when the data are built: `--help` and errors in the
config need neither torch nor numpy. CONTRIBUTING.md shows how to add a row.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Recipe:
    """Image transforms of a data set: random crop, resize, flip, normalise.

    For a model with S input pixels, arrays are padded, cropped at their own size and resized to S; image files are
    resized to S * 256/224 and cropped to S. The paper's "256" is this side at S = 224.

    Attributes:
        mean, std: of RGB values in [0, 1].
        pad: zero padding of the random crop, in pixels (arrays).
        flip: mirror half of the train images.
        keep_aspect: resize the shorter side and keep the aspect ratio, instead of resizing to a square (image files).
        center_crop: the test transform also resizes to S * 256/224, then takes the center crop (image files).
    """

    mean: RGB
    std: RGB
    pad: int = 0
    flip: bool = True
    keep_aspect: bool = False
    center_crop: bool = False


@dataclass(frozen=True)
class DatasetRow:
    """One data set.

    Attributes:
        reader: "module:function". Its parameters are `root` (the data root) and keys of the config, which it gets by
            name; it returns `datasets.readers.splits.Splits`.
        n_classes: None for the largest train label + 1; for images of the user, the number of class names.
        noise: synthetic: the labels on disk are the true ones, and noise is drawn; real: they are noisy themselves;
            own: images of the user, whose labels count as noisy and whose reader names the classes.
        human_labels: "module:function" of noisy labels that come with clean ones: (root, dataset, n) -> int64 [n].
        names: file in datasets/readers/class_names without suffix, if the reader returns no class names; empty: the name
            of the data set.
        undefined_noise: noise modes that the paper does not define for it.
        shuffle_classes, structured_to_next: variants of the noise draws (`datasets.noise`).
    """

    reader: str
    n_classes: int | None
    recipe: Recipe
    noise: str = "synthetic"
    human_labels: str = ""
    names: str = ""
    undefined_noise: tuple[str, ...] = ()
    shuffle_classes: bool = True
    structured_to_next: bool = False


_IMAGENET: tuple[RGB, RGB] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP: tuple[RGB, RGB] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_CLOTHING: tuple[RGB, RGB] = ((0.6959, 0.6537, 0.6371), (0.3113, 0.3192, 0.3214))
_DIGITS = Recipe((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), pad=1, flip=False)  # a mirrored 2 is not a 2
_CIFAR10 = Recipe((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), pad=4)
_CIFAR100 = Recipe((0.507, 0.487, 0.441), (0.267, 0.256, 0.276), pad=4)
_OWN = Recipe(*_CLIP, keep_aspect=True, center_crop=True)
_CIFAR = "datasets.readers.cifar:read_cifar"
_HUMAN = "datasets.readers.cifar:read_human_labels"

# fmt: off
DATASETS: dict[str, DatasetRow] = {
    "digits": DatasetRow("datasets.readers.digits:read_digits", 10, _DIGITS),
    "cifar10": DatasetRow(_CIFAR, 10, _CIFAR10, human_labels=_HUMAN),
    "cifar100": DatasetRow(_CIFAR, 100, _CIFAR100, human_labels=_HUMAN),
    "tiny_imagenet": DatasetRow("datasets.readers.tiny_imagenet:read_tiny_imagenet", None, Recipe(*_CLIP), structured_to_next=True),
    "stanford_cars": DatasetRow("datasets.readers.stanford_cars:read_stanford_cars", 196, Recipe(*_CLIP), structured_to_next=True),
    "cub-200-2011": DatasetRow("datasets.readers.cub:read_cub", 200, Recipe(*_IMAGENET), undefined_noise=("str",), shuffle_classes=False),
    "cifar10n": DatasetRow(_CIFAR, 10, _CIFAR10, "real", _HUMAN, names="cifar10"),
    "cifar100n": DatasetRow(_CIFAR, 100, _CIFAR100, "real", _HUMAN, names="cifar100"),
    "clothing1m": DatasetRow("datasets.readers.clothing1m:read_clothing1m", 14, Recipe(*_CLOTHING, keep_aspect=True, center_crop=True), "real"),
    "webvision": DatasetRow("datasets.readers.webvision:read_webvision", 50, Recipe(*_IMAGENET, center_crop=True), "real"),
    "image_folder": DatasetRow("datasets.readers.image_folder:read_image_folder", None, _OWN, "own"),
    "image_table": DatasetRow("datasets.readers.image_table:read_image_table", None, _OWN, "own"),
}
# fmt: on

# Functions (labels, n_classes, ratio, seed, ...) -> noisy labels; by name they may also take `pixels` and the variants
# `shuffle_classes` and `structured_to_next` of the data set's row.
NOISE: dict[str, str] = {
    "sym": "datasets.noise:symmetric_noise",
    "asym": "datasets.noise:pair_flip_noise",
    "str": "datasets.noise:structured_noise",
    "idn": "datasets.noise:instance_dependent_noise",
}

# Training methods of the baselines: the loss of a sample, a function (logits [B, C], labels [B]) -> [B] or, where it
# remembers the samples, a module class (n_samples, n_classes). GMM and TURN use it for the samples that they select.
METHODS: dict[str, str] = {
    "CE": "utils.losses:cross_entropy",
    "ELR": "utils.losses:EarlyLearningRegularisation",
    "SCE": "utils.losses:symmetric_cross_entropy",
    "GMM": "utils.losses:cross_entropy",
    "GCE": "utils.losses:generalised_cross_entropy",
    "TURN": "utils.losses:cross_entropy",
}


def resolve(reference: str) -> Callable[..., Any]:
    """Import the function of a reference "module:function"."""
    return pkgutil.resolve_name(reference)


def accepted(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that are parameters of `function`, by name."""
    return {name: values[name] for name in inspect.signature(function).parameters if name in values}
