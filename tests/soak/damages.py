"""Every kind of input file, damaged in many ways."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

import main_baseline
import main_phase1
import main_phase2
from tests import fixtures
from tests.conftest import TINY_CLIP
from tests.soak.trials import BASE, Malicious, Table, try_main

SHORT = (*BASE, "epochs=1", "max_steps=1")


def write_inputs() -> None:
    """One intact file of every kind."""
    main_phase1.main([*BASE, "epochs=1", "output_dir=good", "clean_set=good.pt"])
    main_phase2.main([*SHORT, "output_dir=phase2", "clean_set=good.pt", "epochs=2"])
    np.save("given.npy", np.arange(1297) % 3 > 0)
    Path("given.csv").write_text("sample_id\n" + "\n".join(str(i) for i in range(0, 1297, 2)) + "\n")
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    Path("names.txt").write_text("\n".join(names) + "\n")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = open_clip.CLIP(**TINY_CLIP).state_dict()
    torch.save(state, "weights.pt")
    save_file(state, "weights.safetensors")
    files = [f"{'abc'[i % 3]}/{i}.{('png', 'jpg', 'webp', 'bmp')[i % 4]}" for i in range(12)]
    for file in files:
        fixtures.write_image(Path("folder") / file, (24, 20))
    Path("table.csv").write_text("path,label\n" + "".join(f"{file},{file[0]}\n" for file in sorted(files)))
    Path("corrections.csv").write_text("sample_id,action,label\n3,drop,\n4,relabel,2\n5,keep,\n")
    fixtures.write_cifar(Path("cifar"), "cifar100", n_train=40)


class Kind(NamedTuple):
    """A kind of input file, and a run that reads it.

    Attributes:
        guarded: it carries a checksum, so no damage may be taken for other valid content.
    """

    path: str
    main: Callable
    settings: list[str]
    guarded: bool = False


RESUMED = ["output_dir=phase2", "clean_set=good.pt", "epochs=2", "--resume"]
FOLDER = ["dataset=image_folder", "data_root=folder"]
TABLE = ["dataset=image_table", "data_root=folder", "table=table.csv"]
CIFAR = ["data_root=cifar", "download=false"]
KINDS = {
    "checkpoint": Kind("phase2/checkpoint.pt", main_phase2.main, RESUMED, True),
    "selected set": Kind("good.pt", main_phase2.main, ["clean_set=good.pt"], True),
    "selected set's .json": Kind("good.json", main_phase2.main, ["clean_set=good.pt"], True),
    "bool array of another method": Kind("given.npy", main_phase2.main, ["clean_set=given.npy"]),
    "list of ids of another method": Kind("given.csv", main_phase2.main, ["clean_set=given.csv"]),
    "stored noise": Kind("data/noise/digits_sym0.4_seed0.npz", main_phase1.main, [], True),
    "settings": Kind("tiny.yaml", main_phase1.main, []),
    "model config": Kind("tiny.json", main_phase1.main, []),
    "class names": Kind("names.txt", main_phase1.main, ["class_names=names.txt"]),
    "weights (.pt)": Kind("weights.pt", main_phase1.main, ["pretrained=weights.pt"]),
    "weights (.safetensors)": Kind("weights.safetensors", main_phase1.main, ["pretrained=weights.safetensors"]),
    "image, PNG": Kind("folder/a/0.png", main_phase1.main, FOLDER),
    "image, JPEG": Kind("folder/b/1.jpg", main_phase1.main, FOLDER),
    "image, WebP": Kind("folder/c/2.webp", main_phase1.main, FOLDER),
    "image, BMP": Kind("folder/a/3.bmp", main_phase1.main, FOLDER),
    "table of images": Kind("table.csv", main_phase1.main, TABLE),
    "corrections": Kind("corrections.csv", main_phase1.main, ["corrections=corrections.csv"]),
    "CIFAR-100 pickle": Kind("cifar/cifar-100-python/train", main_phase1.main, ["dataset=cifar100", *CIFAR]),
    "CIFAR-100N labels": Kind("cifar/CIFAR-100_human.pt", main_baseline.main, ["dataset=cifar100n", *CIFAR]),
}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content with one of eight kinds of damage."""
    n = max(1, len(content))
    cut = rng.randrange(n)
    flipped = bytearray(content or b"x")
    for _ in range(rng.choice((1, 8, 64))):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    damages: tuple[Callable[[], bytes], ...] = (
        lambda: content[:cut],
        lambda: bytes(flipped),
        lambda: bytes(flipped),
        lambda: content[:cut] + bytes(min(n - cut, 512)) + content[cut + 512 :],
        lambda: content[:cut] + rng.randbytes(rng.randrange(1, 200)) + content[cut:],
        lambda: rng.randbytes(rng.randrange(2000)),
        lambda: b"",
        lambda: pickle.dumps(Malicious()),
    )
    return rng.choice(damages)()


def result(folder: Path) -> object:
    """The results of a run, without times; None before it has ended."""
    if not (folder / "summary.json").exists():
        return None
    summary = json.loads((folder / "summary.json").read_text())
    times = ("seconds", "images_per_second", "peak_memory_bytes")
    samples = (folder / "samples.csv").read_bytes() if (folder / "samples.csv").exists() else b""
    return {k: v for k, v in summary.items() if k not in times}, samples


@contextlib.contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    """Replace a file's content for a while; afterwards its directory is as before."""
    before = {p: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
    path.write_bytes(content)
    try:
        yield
    finally:
        for p in path.parent.iterdir():
            if p.is_file() and p not in before:
                p.unlink()
        for p, good in before.items():
            p.write_bytes(good)


def damage_files(rng: random.Random, tries: int) -> tuple[Table, list[str]]:
    """Runs on every kind of input, damaged `tries` times: counts of their ends, and failures."""
    table: Table = {}
    failures: list[str] = []
    for name, kind in KINDS.items():
        argv = [*SHORT, "clean_set=out.pt", "output_dir=out", *kind.settings]
        folder = Path("phase2" if kind.settings is RESUMED else "out")
        path = Path(kind.path)
        with replaced(path, path.read_bytes()):
            state, errors = try_main(kind.main, argv)
            assert state == "ran", (name, state, errors)
            good = result(folder)
        table[name] = Counter()
        for _ in range(tries):
            content = damaged(path.read_bytes(), rng)
            state, problem = _try_damaged(kind, content, argv, folder, good)
            table[name][state] += 1
            if problem:
                failures.append(f"{name}: {problem}")
                Path(f"failed-{len(failures)}").write_bytes(content)
        print(f"{name:<32} {dict(table[name])}", flush=True)
    return table, failures


def _try_damaged(kind: Kind, content: bytes, argv: list[str], folder: Path, good: object) -> tuple[str, str]:
    """(column of the table, description of a failure or "") of one trial."""
    shutil.rmtree("out", ignore_errors=True)
    with replaced(Path(kind.path), content):
        state, errors = try_main(kind.main, argv)
        found = result(folder) if state == "ran" else None
        unfinished = [p.name for p in Path().rglob(".*.*") if p.is_file()]
    if state == "ran":
        state = "harmless" if found == good else "read as other content"
    executed = Path("executed").exists()
    Path("executed").unlink(missing_ok=True)
    accepted = ("refused", "harmless") if kind.guarded else ("refused", "harmless", "read as other content")
    if state in accepted and not unfinished and not executed:
        return state, ""
    return "failed", f"{state} {unfinished or ''} {'EXECUTED' if executed else ''} {errors}"
