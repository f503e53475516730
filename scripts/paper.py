"""The paper's tables as cells, and for each cell the commands that give its numbers.

A `Job` is one command without its seed. A job that reads a selected set names the job that writes it, so the last job
of a cell represents the whole chain, and cells that share a job share its run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from utils.config import ALIASES, FLAGS, REAL_NOISE, is_read

TABLES: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("paper_tables.yaml").read_text(encoding="utf-8")
)
# The paper's figures -> their names in summary.json. Tables 3 and 4 print one accuracy; we assume that it is the best.
FIGURES = {
    "precision": "precision",
    "recall": "recall",
    "f1": "f1",
    "best": "best_accuracy",
    "last": "last_accuracy",
    "accuracy": "best_accuracy",
}
FOREIGN = ("RoLT", "UNICON", "LongReMix", "ProMix")
PHASE1 = ("main_phase1", "main_real_phase1")
PHASE2 = ("main_phase2", "main_real_phase2")
# Settings that every command of a profile gets; a cell's own settings win over them.
PROFILES = {"paper": (), "smoke": ("epochs=10",)}
SUFFIXES = (".pt", ".npy", ".csv")


@dataclass(frozen=True)
class Job:
    """One command without its seed.

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


def deft1(dataset: str, noise: str, *settings: str) -> Job:
    """DeFT's phase 1."""
    return Job("main_real_phase1" if noise == "real" else "main_phase1", "PEFT", dataset, noise, settings)


def phase2(reads: Job | str, dataset: str, noise: str, *settings: str, config: str = "FFT") -> Job:
    """Phase 2 on a selected set."""
    return Job("main_real_phase2" if noise == "real" else "main_phase2", config, dataset, noise, settings, reads)


def baseline(method: str, dataset: str, noise: str, *settings: str, config: str = "FFT") -> Job:
    """CE, ELR, SCE, GMM, GCE or TURN."""
    script = "main_real_baseline" if noise == "real" else "main_baseline"
    return Job(script, config, dataset, noise, (f"lnl_methods={method}", *settings))


def detection(method: str, dataset: str, noise: str, *settings: str) -> Job:
    """The job whose summary has precision, recall and F1 of a detection method."""
    if method == "DeFT":
        return deft1(dataset, noise, *settings)
    strategy = {"Label-match": "label_match", "Small-loss": "small_loss"}[method]
    return Job("main_small_loss", "PEFT", dataset, noise, (f"strategy={strategy}", *settings))


# ------------------------------------------------------------------ the tables


def table1(rows: dict) -> Iterator[Cell]:
    """Detection with ViT-B/16."""
    for dataset, method, noise, paper in leaves(rows, 3):
        yield Cell(1, dataset, method, noise, "", paper, detection(method, dataset, noise))


def table2(rows: dict) -> Iterator[Cell]:
    """Accuracy after full fine-tuning."""
    for dataset, method, noise, paper in leaves(rows, 3):
        job = phase2(deft1(dataset, noise), dataset, noise) if method == "DeFT" else baseline(method, dataset, noise)
        yield Cell(2, dataset, method, noise, "", paper, job)


def table3(rows: dict) -> Iterator[Cell]:
    """Accuracy under real-world label noise; four methods are represented by sets that they selected elsewhere."""
    for dataset, method, accuracy in leaves(rows, 2):
        if method == "DeFT":
            job = phase2(deft1(dataset, "real"), dataset, "real")
        elif method in FOREIGN:
            job = phase2(f"selections/{method}/{dataset}", dataset, "real")
        else:
            job = baseline(method, dataset, "real")
        yield Cell(3, dataset, method, "real", "", {"accuracy": accuracy}, job)


def table4(rows: dict) -> Iterator[Cell]:
    """Clothing1M with timm's backbones; DeFT still selects with CLIP."""
    for backbone, method, accuracy in leaves(rows, 2):
        optimizer = TABLES["table11"]["rows"][backbone]
        settings = (f"backbone={backbone}", *(f"{key}={value}" for key, value in optimizer.items()))
        if method == "DeFT":
            job = phase2(deft1("clothing1m", "real"), "clothing1m", "real", *settings)
        else:
            job = baseline(method, "clothing1m", "real", *settings)
        yield Cell(4, "clothing1m", method, "real", backbone, {"accuracy": accuracy}, job)


def table5(rows: dict) -> Iterator[Cell]:
    """Detection with ViT-B/32."""
    for dataset, method, noise, paper in leaves(rows, 3):
        yield Cell(5, dataset, method, noise, "", paper, detection(method, dataset, noise, "backbone=ViT-B/32"))


def table6(rows: dict) -> Iterator[Cell]:
    """Detection under severe noise, with a lower learning rate; the weight is one of DeFT's loss alone."""
    severe = {"Label-match": (), "Small-loss": ("lr=1e-2",), "DeFT": ("lr=1e-2", "positive_weight=0.25")}
    for dataset, method, noise, paper in leaves(rows, 3):
        yield Cell(6, dataset, method, noise, "", paper, detection(method, dataset, noise, *severe[method]))


def table7(rows: dict) -> Iterator[Cell]:
    """F1 of the GMM baseline's last selection against DeFT's."""
    for dataset, method, noise, f1 in leaves(rows, 3):
        if method == "DeFT":
            job = deft1(dataset, noise)
        else:
            job = baseline("GMM", dataset, noise, config=method.removeprefix("GMM-"))
        yield Cell(7, dataset, method, noise, "", {"f1": f1}, job)


def table8(rows: dict) -> Iterator[Cell]:
    """Detection on CIFAR-100N."""
    for method, paper in rows.items():
        source: Job | str
        if method in FOREIGN:
            source = f"selections/{method}/cifar100n"
        elif method == "GMM":
            source = baseline("GMM", "cifar100n", "real")
        else:  # small-loss needs the noise rate, here CIFAR-100N's official one
            source = detection(method, "cifar100n", "real", *["noise_ratio=0.402"] * (method == "Small-loss"))
        yield Cell(8, "cifar100n", method, "real", "", paper, source)


def table9(rows: dict) -> Iterator[Cell]:
    """Sensitivity of DeFT's F1 to one setting at a time."""
    standard = ("vpt_len=20", "n_ctx=16", "epochs=10")
    for setting, value, f1 in leaves(rows, 2):
        noise = "sym0.4" if setting == "vpt_len" else "sym0.6"  # see paper_tables.yaml
        name = f"{setting}={value}"
        job = deft1("cifar100", noise, *[name] * (name not in standard))
        yield Cell(9, "cifar100", "DeFT", noise, name, {"f1": f1}, job)


def table10(rows: dict) -> Iterator[Cell]:
    """Accuracy when phase 2 and the baselines train adapters instead of all weights."""
    for dataset, method, noise, paper in leaves(rows, 3):
        if method == "DeFT w/PEFT":
            job = phase2(deft1(dataset, noise), dataset, noise, config="PEFT")
        else:
            job = baseline(method, dataset, noise, config="PEFT")
        yield Cell(10, dataset, method, noise, "", paper, job)


CELLS = (table1, table2, table3, table4, table5, table6, table7, table8, table9, table10)


def cells(table: int, profile: str) -> list[Cell]:
    """The cells of a table, with the commands of the profile. Table 11 has none: it holds settings of Table 4."""
    found = list(CELLS[table - 1](TABLES[f"table{table}"]["rows"])) if table <= len(CELLS) else []
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
        return detection("Label-match", "digits", "idn0.4")
    settings = tuple(s for s in source.settings if not s.startswith(("backbone=", "noise_ratio=")))
    if source.script == "main_real_phase1":  # as in the settings of every data set with real-world noise
        settings = ("warmup=5", *settings)
    return replace(
        source,
        dataset="digits",
        noise="idn0.4" if source.noise == "real" else source.noise,
        settings=settings,
        reads=on_digits(source.reads) if source.reads else None,
    )


# ------------------------------------------------------------------ from jobs to commands


def chain(source: Job | str) -> list[Job]:
    """The jobs that a cell needs, in order."""
    if isinstance(source, str):
        return []
    return [*(chain(source.reads) if source.reads else []), source]


def arguments(job: Job, seed: int, profile: str, output: Path, extra: tuple[str, ...] = ()) -> list[str]:
    """The command line of a job after the script's name.

    Args:
        output: folder of all runs of the profile.
        extra: the user's own `key=value`, over everything but seed and places; passed on where the script reads the key.
    """
    result = ["--cfg", f"config/{job.config}/{job.dataset}.yaml"]
    if job.dataset not in REAL_NOISE:
        mode = job.noise.rstrip("0123456789.")
        result += ["--noise_mode", mode, "--noise_ratio", job.noise.removeprefix(mode)]
    plain = []
    for setting in job.settings:
        key, _, value = setting.partition("=")
        if key in FLAGS:
            result += [f"--{key}", value]
        else:
            plain.append(setting)
    extra = tuple(setting for setting in extra if is_read(key_of(setting), job.script))
    result += [*PROFILES[profile], *plain, *extra, f"seed={seed}", f"output_dir={folder(job, seed, output)}"]
    path = selected_set(job, seed, output)
    return [*result, f"clean_set={path}"] if path else result


def key_of(setting: str) -> str:
    """The key of a `key=value`, under its present name."""
    key = setting.partition("=")[0]
    return ALIASES.get(key, key)


def folder(job: Job, seed: int, output: Path) -> Path:
    """The run folder; no two jobs share one."""
    return output / job.script / job.dataset / job.noise / variant(job) / f"seed{seed}"


def selected_set(job: Job, seed: int, output: Path) -> Path | None:
    """The selected set that a job reads or that phase 1 writes."""
    if isinstance(job.reads, str):
        return foreign_set(job.reads)
    if job.reads:
        return folder(job.reads, seed, output) / "clean_set.pt"
    return folder(job, seed, output) / "clean_set.pt" if job.script in PHASE1 else None


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
