"""The paper's tables as cells, and for each cell the commands that give its numbers.

A `Job` is one command. A job that reads a selected set names the job that writes it, so the last job of a cell represents
the whole chain, and cells that share a job share its run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from utils.config import ALIASES, FLAGS, REAL_NOISE, is_read
from utils.config.catalog import METHODS

TABLES: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("paper_tables.yaml").read_text(encoding="utf-8")
)
# The paper's figures that summary.json names otherwise. Where a table prints one accuracy, we assume that it is the best.
FIGURES = {"best": "best_accuracy", "last": "last_accuracy", "accuracy": "best_accuracy"}
FOREIGN = ("RoLT", "UNICON", "LongReMix", "ProMix")
# Settings that every command of a profile gets; a cell's own settings win over them.
PROFILES = {"paper": (), "smoke": ("epochs=10",)}
SUFFIXES = (".pt", ".npy", ".csv")


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        config: PEFT or FFT, the folder of its settings file.
        noise: mode and ratio (`sym0.4`), or `real`.
        settings: differences from the settings file, each `key=value`.
        reads: the job that writes its selected set, or for sets of other methods the file without its suffix.
    """

    script: str
    config: str
    dataset: str
    noise: str
    settings: tuple[str, ...] = ()
    reads: Job | str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Cell:
    """One entry of a table, with one or more figures.

    Attributes:
        variant: further distinction of the cell: a backbone, or a setting and its value.
        paper: the paper's figures by name.
        source: the job whose summary holds our figures, or a selected set of another method to judge (no suffix).
    """

    table: int
    dataset: str
    method: str
    noise: str
    variant: str
    paper: dict[str, float]
    source: Job | str


# ------------------------------------------------------------- from methods to jobs


def detection(method: str, dataset: str, noise: str, settings: tuple[str, ...] = ()) -> Job | str:
    """The job whose summary has precision, recall and F1 of a method; for foreign methods, the set they selected."""
    if method in FOREIGN:
        return f"selections/{method}/{dataset}"
    if method.startswith("GMM"):  # selects while it trains
        return accuracy("GMM", dataset, noise, config=method.partition("-")[2] or "FFT")
    if method.startswith("DeFT"):
        return Job(_main("phase1", noise), "PEFT", dataset, noise, settings)
    strategy = {"Label-match": "label_match", "Small-loss": "small_loss"}[method]
    return Job("main_small_loss", "PEFT", dataset, noise, (f"strategy={strategy}", *settings))


def accuracy(method: str, dataset: str, noise: str, settings: tuple[str, ...] = (), config: str = "FFT") -> Job:
    """The job whose summary has the accuracy: a baseline, or phase 2 on the set that the method selects."""
    if method in METHODS:
        return Job(_main("baseline", noise), config, dataset, noise, (f"lnl_methods={method}", *settings))
    return Job(_main("phase2", noise), config, dataset, noise, settings, detection(method, dataset, noise))


def _main(part: str, noise: str) -> str:
    return f"main_real_{part}" if noise == "real" else f"main_{part}"


# ------------------------------------------------------------------ the tables


def severe(method: str, dataset: str, noise: str) -> Job | str:
    """Table 6: detection under severe noise, with a lower learning rate; the weight is one of DeFT's loss alone."""
    settings = {"Label-match": (), "Small-loss": ("lr=1e-2",), "DeFT": ("lr=1e-2", "positive_weight=0.25")}
    return detection(method, dataset, noise, settings[method])


# The sources of the tables that are nested by data set, method and noise.
BY_NOISE: dict[int, Callable[[str, str, str], Job | str]] = {
    1: detection,
    2: accuracy,
    5: partial(detection, settings=("backbone=ViT-B/32",)),
    6: severe,
    7: detection,
    10: partial(accuracy, config="PEFT"),
}


def table3(rows: dict) -> Iterator[Cell]:
    """Accuracy under real-world label noise; four methods are represented by sets that they selected elsewhere."""
    for dataset, method, figure in leaves(rows, 2):
        yield Cell(3, dataset, method, "real", "", {"accuracy": figure}, accuracy(method, dataset, "real"))


def table4(rows: dict) -> Iterator[Cell]:
    """Clothing1M with timm's backbones; DeFT still selects with CLIP."""
    for backbone, method, figure in leaves(rows, 2):
        optimizer = TABLES["table11"]["rows"][backbone]
        settings = (f"backbone={backbone}", *(f"{key}={value}" for key, value in optimizer.items()))
        job = accuracy(method, "clothing1m", "real", settings)
        yield Cell(4, "clothing1m", method, "real", backbone, {"accuracy": figure}, job)


def table8(rows: dict) -> Iterator[Cell]:
    """Detection on CIFAR-100N. Small-loss needs the noise rate, here the official one."""
    for method, paper in rows.items():
        settings = ("noise_ratio=0.402",) if method == "Small-loss" else ()
        yield Cell(8, "cifar100n", method, "real", "", paper, detection(method, "cifar100n", "real", settings))


def table9(rows: dict) -> Iterator[Cell]:
    """Sensitivity of DeFT's F1 to one setting at a time."""
    for key, value, f1 in leaves(rows, 2):
        noise = "sym0.4" if key == "vpt_len" else "sym0.6"  # see paper_tables.yaml
        name = f"{key}={value}"
        settings = () if name in ("vpt_len=20", "n_ctx=16", "epochs=10") else (name,)  # the standard ones
        yield Cell(9, "cifar100", "DeFT", noise, name, {"f1": f1}, detection("DeFT", "cifar100", noise, settings))


OTHERS = {3: table3, 4: table4, 8: table8, 9: table9}


def cells(table: int, profile: str) -> list[Cell]:
    """The cells of a table, with the commands of the profile. Table 11 has none: it holds settings of Table 4."""
    rows = TABLES[f"table{table}"]["rows"]
    found: list[Cell] = []
    if table in BY_NOISE:
        for dataset, method, noise, paper in leaves(rows, 3):
            figures = paper if isinstance(paper, dict) else {"f1": paper}
            found.append(Cell(table, dataset, method, noise, "", figures, BY_NOISE[table](method, dataset, noise)))
    elif table in OTHERS:
        found = list(OTHERS[table](rows))
    return [replace(cell, source=on_digits(cell.source)) for cell in found] if profile == "smoke" else found


def leaves(tree: dict, depth: int) -> Iterator[tuple]:
    """(key, .., key, value) of a nested dict, `depth` keys deep."""
    for key, value in tree.items():
        if depth == 1:
            yield key, value
        else:
            yield from ((key, *rest) for rest in leaves(value, depth - 1))


def on_digits(source: Job | str) -> Job:
    """The same job on the handwritten digits and their backbone, with `idn0.4` for real-world noise.

    Label-match's selection replaces those of other methods, made elsewhere.
    """
    if isinstance(source, str):
        return Job("main_small_loss", "PEFT", "digits", "idn0.4", ("strategy=label_match",))
    settings = tuple(s for s in source.settings if not s.startswith(("backbone=", "noise_ratio=")))
    if source.script == "main_real_phase1":  # as in the settings of every data set with real-world noise
        settings = ("warmup=5", *settings)
    noise = "idn0.4" if source.noise == "real" else source.noise
    reads = on_digits(source.reads) if source.reads else None
    return replace(source, dataset="digits", noise=noise, settings=settings, reads=reads)


# ------------------------------------------------------------------ from jobs to commands


def chain(source: Job | str | None, seed: int) -> list[Job]:
    """The jobs that a cell needs, in order, with this seed."""
    if not isinstance(source, Job):
        return []
    before = chain(source.reads, seed)
    return [*before, replace(source, seed=seed, reads=before[-1] if before else source.reads)]


def arguments(job: Job, profile: str, output: Path, extra: tuple[str, ...] = ()) -> list[str]:
    """The command line of a job after the script's name.

    Args:
        output: folder of all runs of the profile.
        extra: the user's own `key=value`, over everything but seed and places; passed on where the script reads the key.
    """
    settings = list(job.settings)
    if job.dataset not in REAL_NOISE:
        mode = job.noise.rstrip("0123456789.")
        settings = [f"noise_mode={mode}", f"noise_ratio={job.noise.removeprefix(mode)}", *settings]
    flags = [setting for setting in settings if key_of(setting) in FLAGS]
    plain = [setting for setting in settings if setting not in flags]
    extra = tuple(setting for setting in extra if is_read(key_of(setting), job.script))
    result = ["--cfg", f"config/{job.config}/{job.dataset}.yaml"]
    result += [word for setting in flags for word in f"--{setting}".split("=")]
    result += [*PROFILES[profile], *plain, *extra, f"seed={job.seed}", f"output_dir={folder(job, output)}"]
    path = selected_set(job, output)
    return [*result, f"clean_set={path}"] if path else result


def key_of(setting: str) -> str:
    """The key of a `key=value`, under its present name."""
    key = setting.partition("=")[0]
    return ALIASES.get(key, key)


def folder(job: Job, output: Path) -> Path:
    """The run folder; no two jobs share one."""
    return output / job.script / job.dataset / job.noise / variant(job) / f"seed{job.seed}"


def selected_set(job: Job, output: Path) -> Path | None:
    """The selected set that a job reads or that phase 1 writes."""
    if isinstance(job.reads, str):
        return foreign_set(job.reads)
    writer = job if job.script.endswith("phase1") else job.reads
    return folder(writer, output) / "clean_set.pt" if writer else None


def foreign_set(stem: str) -> Path:
    """The file of another method's selected set: the first suffix that there is, else .pt."""
    places = [Path(stem + suffix) for suffix in SUFFIXES]
    return next((path for path in places if path.is_file()), places[0])


def variant(job: Job) -> str:
    """A folder name for the differences from the settings file: `FFT-CE`, `PEFT-ViT-B-32`, `FFT-RoLT`."""
    names = [job.config, *map(_short, job.settings)]
    if isinstance(job.reads, str):
        names.append(Path(job.reads).parent.name)
    elif job.reads:
        names += map(_short, job.reads.settings)
    return "-".join(names).replace("/", "-")


def _short(setting: str) -> str:
    key, _, value = setting.partition("=")
    return value if key in ("lnl_methods", "strategy", "backbone", "optimizer") else f"{key}{value}"
