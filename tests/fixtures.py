"""Tiny copies of the data sets in their official layouts: the same files, folders and lists, with a few small images.

Each `write_*` takes the data root, makes the data set's folder in it, and returns {id: class} of the train split, with
labels as classes if the data set numbers them itself. Nothing here uses the code under test.
"""

from __future__ import annotations

import pickle
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

NAMES = Path(__file__).parent.parent / "datasets" / "readers" / "class_names"
# Like the real ones: WordNet ids whose sorted order is the label order.
WNIDS = [f"n{1443537 + 54321 * i:08d}" for i in range(200)]


def shipped(dataset: str) -> list[str]:
    return (NAMES / f"{dataset}.txt").read_text(encoding="utf-8").splitlines()


def write_image(path: Path, size: tuple[int, int] = (20, 16), mode: str = "RGB", **options) -> None:
    """Write random pixels that depend on the file's name only. `size`: width, height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(zlib.crc32(path.name.encode()))
    pixels = rng.randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)


def truncate(path: Path) -> None:
    """Cut off the end of an image file, like an incomplete download; the header remains."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])


def write_tiny_imagenet(root: Path, *, layout: str = "official", n_train: int = 2) -> dict[str, str]:
    """`layout`: official, val (sorted into class folders, annotations still in place), or test (sorted like val)."""
    folder = root / "tiny-imagenet-200"
    train = {f"train/{w}/images/{w}_{i}.JPEG": w for w in WNIDS for i in range(n_train)}
    for name in train:
        write_image(folder / name, (12, 12))
    lines = []
    for i, wnid in enumerate(reversed(WNIDS)):
        name = f"val_{i}.JPEG"
        lines.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
        places = {"official": "val/images", "val": f"val/{wnid}", "test": f"test/{wnid}/images"}
        write_image(folder / places[layout] / name, (12, 12))
    (folder / "val").mkdir(exist_ok=True)
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    write_image(folder / "test" / "images" / "test_0.JPEG")  # the official test set has no labels
    (folder / "wnids.txt").write_text("\n".join(WNIDS[::-1]) + "\n")
    return train


def write_cars(root: Path, *, layout: str = "folders", n_train: int = 2) -> dict[str, str]:
    """`layout`: folders (train|test/<class>/*.jpg) or devkit (.mat lists, classes in another order)."""
    folder = root / "stanford_cars"
    names = shipped("stanford_cars")
    if layout == "folders":
        train = {f"train/{name}/{i:05d}.jpg": name for name in names for i in range(n_train)}
        for file in [*train, *(f"test/{name}/00001.jpg" for name in names)]:
            write_image(folder / file)
        return train
    meta = [name.replace("C-V", "C/V") for name in [*names[::2], *names[1::2]]]
    result = {}
    for split, n, file in (("train", n_train, "cars_train_annos"), ("test", 1, "cars_test_annos_withlabels")):
        rows = []
        for i in range(n * len(meta)):
            name = f"{i + 1:05d}.jpg"
            write_image(folder / f"cars_{split}" / name)
            rows.append((1, 1, 9, 9, i % len(meta) + 1, name))
            if split == "train":
                result[f"cars_train/{name}"] = meta[i % len(meta)].replace("/", "-")
        fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
        path = (folder / "devkit" if split == "train" else folder) / f"{file}.mat"
        path.parent.mkdir(exist_ok=True)
        annotations = np.array([rows], dtype=[(field, object) for field in fields]).reshape(1, -1)
        savemat(path, {"annotations": annotations})
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array([meta], dtype=object)})
    return result


def write_cub(root: Path) -> dict[str, int]:
    """Write two train images and one test image per class; returns {id: label from 0}."""
    folder = root / "CUB_200_2011"
    images, labels, split, train = [], [], [], {}
    for c, bird in enumerate(shipped("cub-200-2011"), 1):
        for i in range(3):
            number, name = len(images) + 1, f"{c:03d}.{bird}/{bird}_{i:04d}.jpg"
            write_image(folder / "images" / name)
            images.append(f"{number} {name}\n")
            labels.append(f"{number} {c}\n")
            split.append(f"{number} {int(i < 2)}\n")
            if i < 2:
                train[f"images/{name}"] = c - 1
    for file, lines in (("images", images), ("image_class_labels", labels), ("train_test_split", split)):
        (folder / f"{file}.txt").write_text("".join(lines))
    return train


def write_clothing1m(root: Path, *, per_class: int = 6, images: bool = True) -> dict[str, int]:
    """Write key lists and label lists as published: the label lists contain all images; returns {id: label}."""
    folder = root / "clothing1m"
    train = {f"images/{i % 10}/{i // 10 % 10}/{i}.jpg": i % 14 for i in range(14 * per_class)}
    test = {f"images/{i % 10}/{i // 10 % 10}/9{i:06d}.jpg": i % 14 for i in range(28)}
    folder.mkdir(parents=True)
    for name in {**train, **test} if images else {}:
        write_image(folder / name, (14, 22))
    (folder / "noisy_train_key_list.txt").write_text("".join(f"{name}\n" for name in train))
    (folder / "clean_test_key_list.txt").write_text("".join(f"{name}\n" for name in test))
    everything = {**test, **train}
    (folder / "noisy_label_kv.txt").write_text("".join(f"{name} {label}\n" for name, label in everything.items()))
    (folder / "clean_label_kv.txt").write_text("".join(f"{name} {label}\n" for name, label in test.items()))
    return train


def write_webvision(root: Path, *, imagenet: bool = True) -> dict[str, int]:
    """Write lists with classes 0 to 59, and images of the first 50; returns {id: label}."""
    folder = root / "webvision"
    train = {f"google/q{c:04d}/{c}_{i}.jpg": c for c in range(60) for i in range(2)}
    val = {f"val{c:06d}.jpg": c for c in range(60)}
    for name, label in {**train, **{f"val_images_256/{name}": label for name, label in val.items()}}.items():
        if label < 50:
            write_image(folder / name, (18, 14))
    (folder / "info").mkdir()
    for file, pairs in (("train_filelist_google", train), ("val_filelist", val)):
        (folder / "info" / f"{file}.txt").write_text("".join(f"{name} {c}\n" for name, c in pairs.items()))
    for c in range(51) if imagenet else ():
        write_image(folder / "imagenet" / "val" / str(c) / f"ILSVRC2012_val_{c:08d}.JPEG")
    return {name: label for name, label in train.items() if label < 50}


def write_cifar(root: Path, name: str, *, n_train: int = 50) -> dict[str, int]:
    """Write the official pickles and CIFAR-N's human labels (true label + 1); `name`: cifar10 or cifar100."""
    n_classes = int(name.removeprefix("cifar"))
    folder, files, test, key = {
        "cifar10": ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "test_batch", "labels"),
        "cifar100": ("cifar-100-python", ["train"], "test", "fine_labels"),
    }[name]
    (root / folder).mkdir(parents=True)
    rng = np.random.RandomState(0)
    labels = [i % n_classes for i in range(n_train)]
    for part, file in zip(np.array_split(np.array(labels), len(files)), files):
        _write_cifar_batch(root / folder / file, key, part.tolist(), rng)
    _write_cifar_batch(root / folder / test, key, [i % n_classes for i in range(10)], rng)
    human = np.array([(label + 1) % n_classes for label in labels])
    kind = {"cifar10": "worse_label", "cifar100": "noisy_label"}[name]
    torch.save({"clean_label": np.array(labels), kind: human}, root / f"CIFAR-{n_classes}_human.pt")
    return {str(i): label for i, label in enumerate(labels)}


def _write_cifar_batch(path: Path, key: str, labels: list[int], rng: np.random.RandomState) -> None:
    data = rng.randint(0, 256, (len(labels), 3072), dtype=np.uint8)
    path.write_bytes(pickle.dumps({b"data": data, key.encode(): labels}, protocol=2))


def write_all(root: Path) -> dict[str, dict]:
    """Write every data set that is read from disk; returns the results of `write_*` by data set."""
    cifar10, cifar100 = write_cifar(root, "cifar10"), write_cifar(root, "cifar100", n_train=200)
    return {
        "cifar10n": cifar10,
        "cifar100n": cifar100,
        "tiny_imagenet": write_tiny_imagenet(root),
        "stanford_cars": write_cars(root),
        "cub-200-2011": write_cub(root),
        "clothing1m": write_clothing1m(root),
        "webvision": write_webvision(root),
    }
