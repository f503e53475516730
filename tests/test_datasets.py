"""The data sets that are read from files: layouts, labels, noise, transforms, workers, and messages for bad input."""

from __future__ import annotations

import itertools
import os
import pickle
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import fixtures
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv

import datasets.noise
from datasets import Data, Loader, NoisyImages, build_data, build_loaders
from datasets.images.files import BatchReader, ReadRequest, small_pixels
from datasets.images.transforms import crop_file, resize_file
from datasets.loader import worker_count
from datasets.readers.clothing1m import balanced_subset
from datasets.readers.layout import check_files
from datasets.readers.splits import Listing
from utils.config import Config
from utils.config.catalog import DATASETS, Recipe, accepted, resolve
from utils.errors import UserError

CPU = torch.device("cpu")
FILE_SETS = ("tiny_imagenet", "stanford_cars", "cub-200-2011", "clothing1m", "webvision")
CLASSES = {
    "tiny_imagenet": 200,
    "stanford_cars": 196,
    "cub-200-2011": 200,
    "clothing1m": 14,
    "webvision": 50,
    "cifar10n": 10,
    "cifar100n": 100,
}
FOLDERS = {
    "tiny_imagenet": "tiny-imagenet-200",
    "stanford_cars": "stanford_cars",
    "cub-200-2011": "CUB_200_2011",
    "clothing1m": "clothing1m",
    "webvision": "webvision",
}
WRITERS = {
    "tiny_imagenet": partial(fixtures.write_tiny_imagenet, n_train=1),
    "stanford_cars": partial(fixtures.write_cars, n_train=1),
    "cub-200-2011": fixtures.write_cub,
    "clothing1m": fixtures.write_clothing1m,
    "webvision": fixtures.write_webvision,
}


def taking(size: int) -> SimpleNamespace:
    """A stand-in for a model that takes images of `size` pixels."""
    return SimpleNamespace(image_size=size, statistics=None)


def settings(dataset: str, root: Path, **keys) -> Config:
    return Config(**{"dataset": dataset, "data_root": str(root), "num_workers": 0, "download": False, **keys})


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> tuple[Path, dict[str, dict]]:
    """A read-only data root with every data set, and the contents of each."""
    root = tmp_path_factory.mktemp("data")
    return root, fixtures.write_all(root)


# ----------------------------------------------------------------- readers


def expected_label(dataset: str, value: str | int) -> int:
    """The label of a fixture's class, computed without the code under test."""
    if dataset == "tiny_imagenet":
        return sorted(fixtures.WNIDS).index(value)
    return fixtures.shipped(dataset).index(value) if isinstance(value, str) else value


@pytest.mark.parametrize("dataset", CLASSES)
def test_ids_labels_names_and_noise(disk, dataset, tmp_path):
    root, written = disk
    # No noise, so that the given labels of the synthetic sets are the true ones.
    data = build_data(settings(dataset, root, num_samples=0, noise_ratio=0.0, noise_file=str(tmp_path / "noise.npz")))
    expected = {name: expected_label(dataset, value) for name, value in written[dataset].items()}
    assert sorted(data.train.ids) == sorted(expected)
    assert len(data.class_names) == CLASSES[dataset]
    real = dataset in ("clothing1m", "webvision", "cifar10n", "cifar100n")
    assert data.train.noise == ("real" if real else "sym0 seed0")
    if dataset.startswith("cifar"):
        assert data.train.true.tolist() == [expected[i] for i in data.train.ids]
        assert data.train.given.tolist() == [(expected[i] + 1) % CLASSES[dataset] for i in data.train.ids]
        return
    assert data.train.given.tolist() == [expected[i] for i in data.train.ids]
    assert (data.train.true is None) == real
    assert list(data.train.ids) == sorted(data.train.ids)
    for split in (data.train, data.test, *data.extra_tests.values()):
        assert all(split.images[i] == str(root / FOLDERS[dataset] / name) for i, name in enumerate(split.ids))
        assert Path(split.images[0]).is_file()
    for test in (data.test, *data.extra_tests.values()):
        assert set(test.given.tolist()) == set(range(CLASSES[dataset]))
        assert test.given.equal(test.true)
        assert test.noise == "clean"
    assert set(data.extra_tests) == ({"imagenet"} if dataset == "webvision" else set())


@pytest.mark.parametrize("dataset", CLASSES)
def test_readers_need_no_config(disk, dataset):
    root, written = disk
    reader = resolve(DATASETS[dataset].reader)
    splits = reader(root, **accepted(reader, {"num_samples": 0, "dataset": dataset}))
    expected = [expected_label(dataset, value) for value in written[dataset].values()]
    assert sorted(splits.train.labels.tolist()) == sorted(expected)
    assert splits.test is not None


@pytest.mark.parametrize("dataset", FILE_SETS)
def test_root_may_be_the_folder_itself(disk, dataset, tmp_path):
    root, _ = disk
    noise = str(tmp_path / "noise.npz")
    around = build_data(settings(dataset, root, num_samples=28, noise_file=noise))
    inside = build_data(settings(dataset, root / FOLDERS[dataset], num_samples=28, noise_file=noise))
    assert around.train.fingerprint() == inside.train.fingerprint()
    assert around.train.images[0] == inside.train.images[0]


@pytest.mark.parametrize("layout", ["official", "val", "test"])
def test_tiny_imagenet_test_split_in_every_layout(tmp_path, layout):
    fixtures.write_tiny_imagenet(tmp_path, layout=layout, n_train=1)
    if layout == "val":
        (tmp_path / "tiny-imagenet-200/val/images").mkdir()  # the usual scripts leave it empty
    data = build_data(settings("tiny_imagenet", tmp_path))
    by_file = {name.split("/")[-1]: label for name, label in zip(data.test.ids, data.test.given.tolist())}
    assert by_file == {f"val_{i}.JPEG": 199 - i for i in range(200)}  # the fixture writes the classes in reverse order


def test_tiny_imagenet_names_follow_the_wordnet_ids():
    known = {
        "n01443537": "goldfish",
        "n01641577": "bullfrog",
        "n01882714": "koala",
        "n01983481": "American lobster",
        "n02085620": "Chihuahua",
        "n02123394": "Persian cat",
        "n02206856": "bee",
        "n02509815": "lesser panda",
        "n02666196": "abacus",
        "n03837869": "obelisk",
        "n04596742": "wok",
        "n06596364": "comic book",
        "n07753592": "banana",
        "n09193705": "alp",
        "n12267677": "acorn",
    }
    names = fixtures.shipped("tiny_imagenet")
    places = [names.index(known[wnid]) for wnid in sorted(known)]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0, 199)


def test_cars_devkit_maps_classes_by_name(tmp_path):
    written = fixtures.write_cars(tmp_path, layout="devkit")
    data = build_data(settings("stanford_cars", tmp_path, noise_ratio=0.0))
    names = fixtures.shipped("stanford_cars")
    assert {i: names[label] for i, label in zip(data.train.ids, data.train.given.tolist())} == written
    assert sorted(data.test.given.tolist()) == list(range(196))
    assert data.test.ids[1] == "cars_test/00002.jpg"
    assert names[data.test.given[1]] == names[2]  # the fixture's devkit numbers the even ones first


def test_cars_folders_may_have_underscores(tmp_path):
    fixtures.write_cars(tmp_path, n_train=1)
    for split in ("train", "test"):
        for folder in list((tmp_path / "stanford_cars" / split).iterdir()):
            folder.rename(folder.with_name(folder.name.replace(" ", "_")))
    train = build_data(settings("stanford_cars", tmp_path, noise_ratio=0.0)).train
    names = fixtures.shipped("stanford_cars")
    assert [name.split("/")[1].replace("_", " ") for name in train.ids] == [names[label] for label in train.given]


def test_webvision_with_imagenet_beside_it_or_without(tmp_path):
    fixtures.write_webvision(tmp_path)
    with pytest.raises(UserError, match="imagenet_val=false"):
        shutil.move(tmp_path / "webvision/imagenet", tmp_path / "elsewhere")
        build_data(settings("webvision", tmp_path))
    assert build_data(settings("webvision", tmp_path, imagenet_val=False)).extra_tests == {}
    shutil.move(tmp_path / "elsewhere", tmp_path / "imagenet")
    test = build_data(settings("webvision", tmp_path)).extra_tests["imagenet"]
    assert test.ids[2] == "imagenet/val/10/ILSVRC2012_val_00000010.JPEG"
    assert test.given[2] == 10
    assert Path(test.images[2]).is_file()


def test_extra_test_sets_get_loaders(disk):
    cfg = settings("webvision", disk[0], batch_size=32)
    _, tests = build_loaders(cfg, build_data(cfg), taking(16), CPU)
    assert list(tests) == ["test", "imagenet"]
    assert sum(len(batch.index) for batch in tests["imagenet"].ordered()) == 50


def test_human_labels_are_real_noise_whatever_the_mode(disk, tmp_path):
    root, _ = disk
    data = build_data(settings("cifar10n", root, noise_mode="sym", noise_ratio=0.2))
    other = build_data(settings("cifar10", root, noise_mode="real"))
    assert data.train.given.equal(other.train.given)
    for dataset in ("cifar10n", "cifar100n", "clothing1m", "webvision"):
        assert Config(dataset=dataset, noise_mode="sym", noise_ratio=0.2).noise_tag == "real"


# ------------------------------------------------------------------- noise


def noise_by_hand(labels: list[int], n_classes: int, mode: str, ratio: float, *, shuffle: bool) -> list[int]:
    """The draws of the paper's scripts, implemented a second time."""
    rng = random.Random(0)
    order = list(range(len(labels)))
    rng.shuffle(order)
    noisy = set(order[: int(ratio * len(labels))])
    classes = list(range(n_classes))
    if shuffle:
        rng.shuffle(classes)
    result = []
    for i, y in enumerate(labels):
        if i not in noisy or (mode == "str" and y not in classes[: int(n_classes / 2)]):
            result.append(y)
        else:
            result.append(rng.randint(0, n_classes - 1) if mode == "sym" else (y + 1) % n_classes)
    return result


@pytest.mark.parametrize(
    ("dataset", "mode"),
    [*itertools.product(("tiny_imagenet", "stanford_cars"), ("sym", "asym", "str")), ("cub-200-2011", "sym")],
)
def test_synthetic_noise_of_each_script(disk, dataset, mode, tmp_path):
    cfg = settings(dataset, disk[0], noise_mode=mode, noise_ratio=0.5, noise_file=str(tmp_path / "noise.npz"))
    train = build_data(cfg).train
    shuffle = dataset != "cub-200-2011"
    assert train.given.tolist() == noise_by_hand(train.true.tolist(), CLASSES[dataset], mode, 0.5, shuffle=shuffle)
    assert not train.is_clean.all()


@pytest.mark.parametrize("dataset", FILE_SETS[:3])
def test_instance_dependent_noise_sees_small_images(disk, dataset, tmp_path, monkeypatch):
    seen = {}

    def stand_in(labels, n_classes, ratio, seed, pixels):  # the real one takes ten seconds for 200 classes
        rows = np.array([3, 0, 7])
        seen.update(n_classes=n_classes, ratio=ratio, seed=seed, rows=rows, pixels=pixels(rows))
        return (labels + 1) % n_classes

    monkeypatch.setattr(datasets.noise, "instance_dependent_noise", stand_in)
    noise = {"noise_mode": "idn", "noise_ratio": 0.3, "seed": 5, "noise_file": str(tmp_path / "noise.npz")}
    train = build_data(settings(dataset, disk[0], **noise)).train
    assert train.given.equal((train.true + 1) % CLASSES[dataset])
    assert (seen["n_classes"], seen["ratio"], seen["seed"]) == (CLASSES[dataset], 0.3, 5)
    small = [np.asarray(Image.open(train.images[i]).resize((64, 64), Image.Resampling.BILINEAR)) for i in seen["rows"]]
    assert seen["pixels"].dtype == np.float32
    assert (seen["pixels"] == np.stack(small).reshape(3, -1)).all()  # height, width, channel


# -------------------------------------------------------------- transforms

SHAPES = [(300, 200), (90, 200), (17, 23), (64, 64)]


def reference_resize(dataset: str, size: int, *, train: bool) -> list:
    """The paper's transforms in torchvision, for a model with `size` input pixels."""
    large = round(size * 256 / 224)
    if dataset == "clothing1m":
        return [tv.Resize(large)]
    if train or dataset == "webvision":
        return [tv.Resize((large, large))]
    return [tv.Resize((size, size))]


def eval_crop(image: Image.Image, recipe: Recipe, size: int) -> Image.Image:
    return crop_file(resize_file(image, recipe, size, training=False), size, seed=0, epoch=None, index=0)


def train_crop(image: Image.Image, recipe: Recipe, size: int, **stream: int) -> Image.Image:
    return crop_file(resize_file(image, recipe, size, training=True), size, **stream)


@pytest.mark.parametrize("size", [224, 32])
@pytest.mark.parametrize("dataset", FILE_SETS)
def test_test_transform_is_torchvisions(dataset, size, tmp_path):
    crop = [tv.CenterCrop(size)] if dataset in ("clothing1m", "webvision") else []
    reference = tv.Compose([*reference_resize(dataset, size, train=False), *crop, tv.PILToTensor()])
    for shape in SHAPES:
        fixtures.write_image(tmp_path / "x.png", shape)
        image = Image.open(tmp_path / "x.png")
        assert tv.functional.pil_to_tensor(eval_crop(image, DATASETS[dataset].recipe, size)).equal(reference(image))


@pytest.mark.parametrize("dataset", FILE_SETS)
def test_train_crop_is_a_window_of_torchvisions_resize(dataset, tmp_path):
    size, places = 28, set()
    fixtures.write_image(tmp_path / "x.png", (90, 70))
    image = Image.open(tmp_path / "x.png")
    resized = np.asarray(tv.Compose(reference_resize(dataset, size, train=True))(image))
    windows = {}
    for top, left in itertools.product(range(resized.shape[0] - size + 1), range(resized.shape[1] - size + 1)):
        windows[resized[top : top + size, left : left + size].tobytes()] = (top, left)
    for index, epoch in itertools.product(range(60), (1, 2)):
        crop = np.asarray(train_crop(image, DATASETS[dataset].recipe, size, seed=0, epoch=epoch, index=index))
        places.add(windows[crop.tobytes()])
    assert {top for top, _ in places} == set(range(resized.shape[0] - size + 1))
    assert len({left for _, left in places}) > 3
    assert len(places) > 10


def test_recipes_normalise_with_the_papers_numbers(disk):
    """One image end to end: decoded, resized, normalised; in training also cropped, and mirrored half the time."""
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    clip = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    moments = {
        "tiny_imagenet": clip,
        "stanford_cars": clip,
        "cub-200-2011": imagenet,
        "clothing1m": ((0.6959, 0.6537, 0.6371), (0.3113, 0.3192, 0.3214)),
        "webvision": imagenet,
    }
    for dataset, (mean, std) in moments.items():
        cfg = settings(dataset, disk[0], batch_size=50, num_samples=28)
        data = build_data(cfg)
        train, tests = build_loaders(cfg, data, taking(24), CPU)
        batch = next(tests["test"].ordered())
        image = eval_crop(Image.open(data.test.images[3]), data.recipe, 24)
        reference = tv.Compose([tv.ToTensor(), tv.Normalize(mean, std)])(image)
        torch.testing.assert_close(batch.images[3], reference, rtol=1e-5, atol=1e-5)

        batch, mirrored = next(train.shuffled(1)), 0
        for k, i in enumerate(batch.index.tolist()):
            crop = train_crop(Image.open(data.train.images[i]), data.recipe, 24, seed=0, epoch=1, index=i)
            straight = tv.Compose([tv.ToTensor(), tv.Normalize(mean, std)])(crop)
            flipped = torch.allclose(batch.images[k], straight.flip(-1), atol=1e-5)
            assert flipped or torch.allclose(batch.images[k], straight, atol=1e-5)
            assert batch.targets[k] == data.train.given[i]
            mirrored += flipped
        assert 0.2 < mirrored / len(batch.index) < 0.8


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / f"x.{'jpg' if mode == 'CMYK' else 'png'}"
    fixtures.write_image(path, mode=mode)
    expected = tv.functional.pil_to_tensor(Image.open(path).convert("RGB").resize((16, 16), 2))
    images, index, unreadable = read([path], DATASETS["cub-200-2011"].recipe)
    assert images.shape == (1, 3, 16, 16)
    assert images[0].equal(expected)
    assert (index.tolist(), unreadable) == ([0], {})


def read(paths: list[Path], recipe: Recipe = DATASETS["clothing1m"].recipe) -> tuple:
    """A batch of these files as read by a worker, with the test transform for 16 pixels."""
    return BatchReader(recipe, 16, 0, {})[ReadRequest([*range(len(paths))], [str(path) for path in paths], None)]


# ----------------------------------------------------------------- workers


def passes(cfg: Config, data: Data) -> list:
    train, tests = build_loaders(cfg, data, taking(16), CPU)
    return [*train.shuffled(1), *train.shuffled(2), *train.ordered(), *tests["test"].ordered()]


def test_workers_change_nothing(disk):
    data = build_data(settings("webvision", disk[0]))
    state = torch.get_rng_state()
    alone = passes(settings("webvision", disk[0], batch_size=16), data)
    pair = passes(settings("webvision", disk[0], batch_size=16, num_workers=2), data)
    assert torch.get_rng_state().equal(state)  # reading leaves the global generator alone
    assert len(alone) == len(pair) == 3 * 7 + 4
    for one, two in zip(alone, pair):
        assert all(a.equal(b) for a, b in zip(one, two))
    first, second = torch.cat([b.index for b in alone[:7]]), torch.cat([b.index for b in alone[7:14]])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(100))
    assert not first.equal(second)


def test_crops_depend_on_sample_and_epoch_not_on_the_batch(disk):
    data = build_data(settings("webvision", disk[0]))

    def images(batch_size: int, epoch: int) -> torch.Tensor:
        cfg = settings("webvision", disk[0], batch_size=batch_size)
        batches = list(build_loaders(cfg, data, taking(16), CPU)[0].shuffled(epoch))
        index = torch.cat([batch.index for batch in batches])
        return torch.cat([batch.images for batch in batches])[index.argsort()]

    assert images(7, 1).equal(images(50, 1))
    assert not images(50, 1).equal(images(50, 2))


def test_worker_arguments_can_be_pickled(disk):
    cfg = settings("webvision", disk[0], num_workers=2)
    loader = build_loaders(cfg, build_data(cfg), taking(16), CPU)[0]
    sent = pickle.dumps((loader.source.reader.dataset, loader.source.reader.collate_fn))
    assert len(sent) < 1000  # independent of the size of the data set


def test_one_pass_at_a_time(disk):
    cfg = settings("webvision", disk[0], batch_size=16)
    loader = build_loaders(cfg, build_data(cfg), taking(16), CPU)[0]
    first = loader.shuffled(1)
    next(first)
    assert len(list(loader.ordered())) == 7
    with pytest.raises(RuntimeError, match="second pass"):
        next(first)


def test_max_steps_and_worker_count(disk):
    cfg = settings("webvision", disk[0], batch_size=16, max_steps=2)
    loader = build_loaders(cfg, build_data(cfg), taking(16), CPU)[0]
    assert len(loader) == len(list(loader.shuffled(1))) == 2
    assert (worker_count(0, 9), worker_count(12, 9), worker_count(3, 9)) == (0, 9, 3)
    assert 1 <= worker_count(-1, 1000) <= 16


# -------------------------------------------------------- unreadable images


@pytest.fixture
def damaged(tmp_path) -> tuple[Path, list[str]]:
    """WebVision with a truncated file, a text file, an empty file, and one to delete after the lists were checked."""
    fixtures.write_webvision(tmp_path)
    folder = tmp_path / "webvision"
    names = [f"google/q{c:04d}/{c}_0.jpg" for c in (3, 4, 5, 6)]
    fixtures.truncate(folder / names[0])
    (folder / names[1]).write_text("not found")
    (folder / names[2]).write_bytes(b"")
    return tmp_path, names


def complaint(run: Callable[[], object]) -> str:
    """The message of the UserError of `run`. (pytest.raises would keep the frames, and so the workers, alive.)"""
    try:
        run()
    except UserError as error:
        return str(error)
    return "there was no error"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_the_run_with_its_path(damaged, workers):
    cfg = settings("webvision", damaged[0], batch_size=8, num_workers=workers)
    loader = build_loaders(cfg, build_data(cfg), taking(16), CPU)[0]
    message = complaint(lambda: list(loader.ordered()))
    assert re.fullmatch(
        rf"{damaged[0]}/webvision/{damaged[1][0]}: cannot be read as an image \(image file is truncated[^\n]*\); replace it, or set skip_unreadable=true to leave out unreadable images",
        message,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_unreadable_drops_the_samples_and_names_them(damaged, workers):
    root, names = damaged
    cfg = settings("webvision", root, batch_size=1, num_workers=workers, skip_unreadable=True)
    data = build_data(cfg)
    (root / "webvision" / names[3]).unlink()
    loader = build_loaders(cfg, data, taking(16), CPU)[0]
    seen = [int(batch.index) for batch in loader.shuffled(1)]
    assert {data.train.ids[i] for i in loader.unreadable} == set(names)
    assert sorted([*seen, *loader.unreadable]) == list(range(100))
    reasons = [loader.unreadable[data.train.ids.index(name)] for name in names]
    assert ["truncated" in reasons[0], *reasons[1:]] == [True, *["not an image of a known format"] * 2, "no such file"]
    for batch in loader.ordered():
        assert batch.targets.equal(data.train.given[batch.index])


def test_dropping_is_the_same_in_larger_batches(damaged):
    root, names = damaged
    cfg = settings("webvision", root, batch_size=40, skip_unreadable=True)
    data = build_data(cfg)
    index = torch.cat([b.index for b in build_loaders(cfg, data, taking(16), CPU)[0].ordered()])
    assert sorted(data.train.ids[i] for i in set(range(100)) - set(index.tolist())) == names[:3]
    assert len(index) == 97


def test_nothing_readable_is_an_error_even_when_skipping(damaged):
    cfg = settings("webvision", damaged[0], skip_unreadable=True)
    data = build_data(cfg)
    for path in data.train.images:
        fixtures.truncate(Path(path))
    with pytest.raises(UserError, match="webvision: no image can be read"):
        list(build_loaders(cfg, data, taking(16), CPU)[0].shuffled(1))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_and_extreme_shapes_are_unreadable(tmp_path, monkeypatch):
    fixtures.write_image(tmp_path / "large.png", (40, 30))
    fixtures.write_image(tmp_path / "narrow.png", (1, 99))
    fixtures.write_image(tmp_path / "fine.png", (10, 10))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    _, index, unreadable = read([tmp_path / f"{name}.png" for name in ("large", "narrow", "fine")])
    assert index.tolist() == [2]
    assert "40x30 pixels, more than the limit of 1000" in unreadable[0]
    assert "1x99 pixels are too narrow" in unreadable[1]


def test_noise_from_unreadable_images(tmp_path):
    fixtures.write_image(tmp_path / "a.jpg")
    fixtures.write_image(tmp_path / "b.jpg")
    fixtures.truncate(tmp_path / "b.jpg")
    paths = [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    with pytest.raises(UserError, match=r"b\.jpg: cannot be read"):
        small_pixels(paths, skip_unreadable=False)
    pixels = small_pixels(paths, skip_unreadable=True)
    assert pixels[0].any()
    assert not pixels[1].any()


# ------------------------------------------------------------ Clothing1M


def test_clothing1m_subset_is_balanced_and_the_same_everywhere(tmp_path):
    labels = fixtures.write_clothing1m(tmp_path, per_class=20)
    first = build_data(settings("clothing1m", tmp_path, num_samples=70)).train
    assert Counter(first.given.tolist()) == dict.fromkeys(range(14), 5)
    assert first.given.tolist() == [labels[name] for name in first.ids]
    assert list(first.ids) != sorted(first.ids)

    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    path = tmp_path / "clothing1m/noisy_train_key_list.txt"
    path.write_text("\n".join(reversed(path.read_text().split())))  # another order of the list
    assert build_data(settings("clothing1m", tmp_path, num_samples=70)).train.fingerprint() == first.fingerprint()
    assert build_data(settings("clothing1m", tmp_path, num_samples=70, seed=1)).train.ids != first.ids
    assert len(build_data(settings("clothing1m", tmp_path, num_samples=0)).train) == 280


def test_balanced_subset_is_the_released_rule():
    labels = np.random.RandomState(0).randint(0, 14, 500)
    rng = random.Random(7)
    order = list(range(500))
    rng.shuffle(order)
    count, expected = Counter(), []
    for i in order:
        if count[labels[i]] < 140 / 14:
            count[labels[i]] += 1
            expected.append(i)
    rng.shuffle(expected)
    assert balanced_subset(labels, 14, 140, 7) == expected
    assert len(balanced_subset(labels, 14, 100, 7)) == 100  # not more, where 14 does not divide it
    scarce = np.repeat([0, 1], [3, 50])
    assert Counter(scarce[balanced_subset(scarce, 2, 20, 0)].tolist()) == {0: 3, 1: 10}


def test_only_the_subsets_files_are_looked_for(tmp_path, monkeypatch):
    fixtures.write_clothing1m(tmp_path, per_class=20)
    chosen = set(build_data(settings("clothing1m", tmp_path, num_samples=14)).train.ids)
    keys = (tmp_path / "clothing1m/noisy_train_key_list.txt").read_text().split()
    for name in set(keys) - chosen:
        (tmp_path / "clothing1m" / name).unlink()
    monkeypatch.setattr(os, "stat", lambda *a, **k: pytest.fail("called for a single file"))
    listing = Listing(tmp_path / "clothing1m", sorted(chosen), np.zeros(14, dtype=np.int64), "list")
    check_files(listing)
    monkeypatch.undo()
    build_data(settings("clothing1m", tmp_path, num_samples=14))
    with pytest.raises(UserError, match="and 265 more"):
        build_data(settings("clothing1m", tmp_path, num_samples=0))


# --------------------------------------------------- messages for bad input


def edit(path: str, pattern: str, replacement: str) -> Callable[[Path], None]:
    """Change the first match in a list; ^ and $ stand for the ends of a line."""

    def change(folder: Path) -> None:
        old = (folder / path).read_text()
        new = re.sub(pattern, replacement, old, count=1, flags=re.MULTILINE)
        assert new != old
        (folder / path).write_text(new)

    return change


def remove(path: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()

    return change


def rename(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: (folder / old).rename(folder / new) and None


def empty(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_text("") and None


TINY, CARS, CUB, CLOTHING, WEB = FILE_SETS
CASES = {
    # data set, damage to its folder, parts of the message
    "tiny: folder deeper": (TINY, "deeper", ["looked for train in", "one folder deeper; set data_root="]),
    "tiny: still packed": (
        TINY,
        "packed",
        ["found the archive", "tiny-imagenet-200.zip, which is not unpacked; unpack it in"],
    ),
    "tiny: no folder": (TINY, "gone", ["looked for train in", "data holds other", "data_root", "README"]),
    "tiny: no root": (TINY, "rootless", ["nowhere is not a directory", "set data_root"]),
    "tiny: empty train": (TINY, "no classes", ["found no images train/<class>/[*].jpg in"]),
    "tiny: empty class": (
        TINY,
        remove(f"train/{fixtures.WNIDS[5]}/images"),
        [f"found no images in .*{fixtures.WNIDS[5]}", "incomplete"],
    ),
    "tiny: class renamed": (
        TINY,
        rename(f"train/{fixtures.WNIDS[0]}", "train/goldfish"),
        ["'goldfish' is not a WordNet id"],
    ),
    "tiny: class gone": (
        TINY,
        remove(f"train/{fixtures.WNIDS[0]}"),
        ["val_annotations.txt, line 200: no train folder for the class in 'val_199.JPEG"],
    ),
    "tiny: no annotation": (
        TINY,
        edit("val/val_annotations.txt", r"^val_7\.JPEG.*\n", ""),
        ["no line for the image val_7"],
    ),
    "tiny: no val image": (TINY, remove("val/images/val_7.JPEG"), [r"the image val_7\.JPEG is missing"]),
    "tiny: val image twice": (
        TINY,
        edit("val/val_annotations.txt", r"^val_8\.", "val_7."),
        [r"line 9: duplicate entry 'val_7\.JPEG'; keep one"],
    ),
    "tiny: malformed line": (
        TINY,
        edit("val/val_annotations.txt", r"^val_3\.JPEG.*", "val_3.JPEG"),
        ["line 4: no train folder"],
    ),
    "tiny: no val": (TINY, remove("val"), ["looked for images in .*val/images, and for class folders", "unpack"]),
    "tiny: no list": (TINY, remove("val/val_annotations.txt"), ["looked for the list .*val_annotations.txt"]),
    "cars: still packed": (CARS, "packed", ["archive .*stanford_cars.zip"]),
    "cars: no test": (
        CARS,
        remove("test"),
        ["test: looked for 196 class folders, found 0; there is none for 'am general"],
    ),
    "cars: unknown class": (
        CARS,
        rename("train/Audi R8 Coupe 2012", "train/Audi R9"),
        ["folder 'Audi R9' is not one of the 196"],
    ),
    "cars: class gone": (
        CARS,
        remove("test/Audi R8 Coupe 2012"),
        ["found 195; there is none for 'audi r8 coupe 2012'"],
    ),
    "cub: folder deeper": (CUB, "deeper", ["looked for images.txt", "one folder deeper"]),
    "cub: still packed": (CUB, "packed", ["archive .*CUB_200_2011.zip"]),
    "cub: missing image": (
        CUB,
        remove("images/001.Black_footed_Albatross"),
        ["names images/001.* and 1 more", "no directory .*001"],
    ),
    "cub: label 0": (
        CUB,
        edit("image_class_labels.txt", r"^5 2$", "5 0"),
        [r"line 5: invalid label '0': expected an integer in \[1, 200\]"],
    ),
    "cub: label 201": (CUB, edit("image_class_labels.txt", r"^5 2$", "5 201"), ["line 5: invalid label '201'"]),
    "cub: label text": (CUB, edit("image_class_labels.txt", r"^5 2$", "5 two"), ["line 5: invalid label 'two'"]),
    "cub: malformed line": (CUB, edit("images.txt", r"^4 .*$", "4"), ["line 4: expected '<number> <file>', found '4'"]),
    "cub: no label": (
        CUB,
        edit("image_class_labels.txt", r"^9 3\n", ""),
        ["image_class_labels.txt: no line for image 9"],
    ),
    "cub: no split": (CUB, edit("train_test_split.txt", r"^9 0\n", ""), ["train_test_split.txt: no line for image 9"]),
    "cub: image twice": (
        CUB,
        edit("images.txt", r"^2 (.*)0001", r"2 \g<1>0000"),
        ["line 2: duplicate entry .*; keep one"],
    ),
    "cub: number twice": (
        CUB,
        edit("image_class_labels.txt", r"^2 ", "1 "),
        ["line 2: duplicate entry '1'; keep one"],
    ),
    "cub: no list": (CUB, remove("train_test_split.txt"), ["looked for the list .*train_test_split.txt"]),
    "cub: all test": (CUB, "all test", ["found no train images by train_test_split.txt"]),
    "clothing: folder deeper": (CLOTHING, "deeper", ["noisy_train_key_list.txt", "one folder deeper"]),
    "clothing: no list": (CLOTHING, remove("noisy_label_kv.txt"), ["looked for the list .*noisy_label_kv.txt"]),
    "clothing: no label": (
        CLOTHING,
        edit("noisy_label_kv.txt", r"^images/3/0/3\.jpg 3\n", ""),
        [r"no label for 'images/3/0/3\.jpg' of noisy_train_key_list"],
    ),
    "clothing: label 14": (
        CLOTHING,
        edit("noisy_label_kv.txt", r"^(images/3/0/3\.jpg) 3$", r"\1 14"),
        [r"invalid label '14': .* \[0, 13\]"],
    ),
    "clothing: malformed": (
        CLOTHING,
        edit("noisy_label_kv.txt", r"^(images/3/0/3\.jpg) 3$", r"\1"),
        ["expected two fields"],
    ),
    "clothing: key twice": (
        CLOTHING,
        edit("noisy_train_key_list.txt", r"/1\.jpg$", "/1.jpg\nimages/1/0/1.jpg"),
        ["duplicate entry 'images/1/0/1.jpg'"],
    ),
    "clothing: label twice": (
        CLOTHING,
        edit("noisy_label_kv.txt", r"^(images/3/0/3\.jpg) 3$", r"\1 3\n\1 4"),
        ["duplicate label"],
    ),
    "clothing: empty list": (
        CLOTHING,
        empty("noisy_train_key_list.txt"),
        ["found no keys in noisy_train_key_list.txt"],
    ),
    "clothing: images packed": (
        CLOTHING,
        "tar",
        [r"noisy_train_key_list.txt names images/4/.* more.*images/4\.tar is not unpacked"],
    ),
    "clothing: not text": (
        CLOTHING,
        lambda f: (f / "noisy_label_kv.txt").write_bytes(b"\xff\xfe\x00"),
        ["cannot be read as a list"],
    ),
    "webvision: no list": (WEB, remove("info/val_filelist.txt"), ["looked for the list .*val_filelist.txt"]),
    "webvision: missing": (
        WEB,
        remove("google/q0007/7_1.jpg"),
        [r"train_filelist_google\.txt names google/q0007/7_1\.jpg, not"],
    ),
    "webvision: no val images": (
        WEB,
        remove("val_images_256"),
        ["names val_images_256/val0+.jpg and 49 more", "no directory"],
    ),
    "webvision: label 1000": (WEB, edit("info/val_filelist.txt", r"3$", "1000"), ["line 4: invalid label '1000'"]),
    "webvision: negative": (WEB, edit("info/val_filelist.txt", r"3$", "-3"), ["line 4: invalid label '-3'"]),
    "webvision: twice": (WEB, edit("info/val_filelist.txt", r"val000002", "val000001"), ["line 3: duplicate entry"]),
    "webvision: imagenet class": (
        WEB,
        remove("imagenet/val/49"),
        ["found no images in .*imagenet/val/49", "incomplete"],
    ),
}


def special_damage(kind: str, root: Path, folder: Path) -> Path:
    """Damage the folder as a whole; returns the data root to use."""
    if kind == "deeper":
        shutil.move(folder, root / "moving")
        folder.mkdir()
        (root / "moving").rename(folder / folder.name)
    elif kind == "packed":
        shutil.rmtree(folder)
        (root / f"{folder.name}.zip").write_bytes(b"PK")
    elif kind in ("gone", "rootless"):
        shutil.rmtree(folder)
        (root / "other").mkdir()
    elif kind == "no classes":
        shutil.rmtree(folder / "train")
        (folder / "train").mkdir()
    elif kind == "tar":
        shutil.rmtree(folder / "images/4")
        (folder / "images/4.tar").write_bytes(b"")
    elif kind == "all test":
        path = folder / "train_test_split.txt"
        path.write_text(path.read_text().replace(" 1\n", " 0\n"))
    return root / "nowhere" if kind == "rootless" else root


@pytest.mark.parametrize("case", CASES)
def test_messages_for_bad_input(case, tmp_path):
    dataset, damage, fragments = CASES[case]
    root = tmp_path / "data"
    WRITERS[dataset](root)
    if callable(damage):
        damage(root / FOLDERS[dataset])
    else:
        root = special_damage(damage, root, root / FOLDERS[dataset])
    with pytest.raises(UserError) as error:
        build_data(settings(dataset, root))
    message = str(error.value)
    assert "\n" not in message
    for fragment in fragments:
        assert re.search(fragment, message), message


@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (remove("cars_test_annos_withlabels.mat"), "looked for cars_test_annos_withlabels.mat in .*devkit and"),
        (remove("devkit/cars_meta.mat"), "looked for cars_meta.mat"),
        (empty("devkit/cars_train_annos.mat"), "'annotations' cannot be read"),
        (remove("cars_train/00007.jpg"), r"cars_train_annos.mat names cars_train/00007\.jpg, not found in"),
        (
            lambda f: shutil.copy(f / "devkit/cars_meta.mat", f / "devkit/cars_train_annos.mat"),
            "'annotations' cannot be read",
        ),
    ],
)
def test_messages_for_a_bad_devkit(damage, fragment, tmp_path):
    fixtures.write_cars(tmp_path, layout="devkit", n_train=1)
    damage(tmp_path / "stanford_cars")
    with pytest.raises(UserError, match=fragment) as error:
        build_data(settings("stanford_cars", tmp_path))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_left_to_the_loader_when_skipping(tmp_path):
    fixtures.write_webvision(tmp_path)
    (tmp_path / "webvision/google/q0007/7_1.jpg").unlink()
    cfg = settings("webvision", tmp_path, skip_unreadable=True)
    loader = build_loaders(cfg, build_data(cfg), taking(16), CPU)[0]
    list(loader.shuffled(1))
    assert list(loader.unreadable.values()) == ["no such file"]
    shutil.rmtree(tmp_path / "webvision/google")  # but not a whole split
    with pytest.raises(UserError, match="and 99 more"):
        build_data(cfg)


@pytest.mark.parametrize(
    ("dataset", "mode", "fragment"),
    [
        ("tiny_imagenet", "real", "no human labels for tiny_imagenet"),
        ("stanford_cars", "real", "no human labels"),
        ("cub-200-2011", "str", "noise_mode=str is not defined for cub-200-2011"),
        ("digits", "real", "no human labels"),
    ],
)
def test_noise_that_a_data_set_does_not_have(disk, dataset, mode, fragment):
    with pytest.raises(UserError, match=fragment):
        build_data(settings(dataset, disk[0], noise_mode=mode))


def test_hidden_files_are_not_samples(tmp_path):
    fixtures.write_cars(tmp_path, n_train=1)
    folder = tmp_path / "stanford_cars/train"
    (folder / "Audi R8 Coupe 2012" / "._00000.jpg").write_bytes(b"macOS")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "__note.txt").write_text("no image")
    assert len(build_data(settings("stanford_cars", tmp_path)).train) == 196


def test_array_data_do_not_start_workers():
    split = NoisyImages("digits", list("abcd"), torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4), None)
    loader = Loader(split, DATASETS["digits"].recipe, size=8, batch_size=2, seed=0, device=CPU, num_workers=2)
    assert [batch.targets.tolist() for batch in loader.ordered()] == [[0, 1], [2, 3]]
    assert not hasattr(loader.source, "reader")
