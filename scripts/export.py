"""Exports the verdicts of a phase-1 run to the tool in which labels are reviewed.

    python scripts/export.py --run output/main_phase1/digits/sym0.4/seed0 --to cleanlab --out issues.csv

cleanlab     a .csv like Datalab's get_issues("label"): is_label_issue, label_score, given_label, predicted_label, one row
             per sample in the data set's order (CleanLearning.fit takes it as label_issues); or an .npz with labels,
             label_quality_scores, is_label_issue, issue_indices (worst first), predicted_labels, sample_ids
fiftyone     a folder for fo.Dataset.from_dir(dataset_type=fo.types.FiftyOneImageClassificationDataset): the given label, its
             score as confidence, suggestion and verdict as attributes
labelstudio  a folder with tasks.json (the suggestions as predictions, most suspicious first) and label_config.xml
imagefolder  a folder with clean/<class>/ and suspect/<class>/ by given class, and files.csv (file, sample_id)

Images are linked; --copy copies them. Those of array data sets (digits, CIFAR) are written as PNG. Nothing is overwritten.
Label Studio gets the path of each image relative to the data set's folder, with --url in front: serve that folder as local
files (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT), or give the URL where it is served.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import _root  # noqa: F401

from utils.config import Config, load_config
from utils.errors import UserError
from utils.run.cli import Parser, answer_early, cli


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: an unknown flag or tool, or one that is missing.
    """
    parser = Parser(__doc__)
    parser.add_argument("--run", required=True, type=Path, metavar="FOLDER", help="run directory of phase 1")
    parser.add_argument("--to", required=True, choices=("cleanlab", "fiftyone", "labelstudio", "imagefolder"))
    place = "file or folder to write; must be missing or empty"
    parser.add_argument("--out", required=True, type=Path, metavar="PATH", help=place)
    parser.add_argument("--data_root", metavar="DIR", help="directory of the data sets (default: that of the run)")
    parser.add_argument("--copy", action="store_true", help="copy image files instead of linking them")
    parser.add_argument("--suspects", action="store_true", help="labelstudio: only the samples that are not trusted")
    front = "labelstudio: put in front of each image's path (%(default)s)"
    parser.add_argument("--url", default="/data/local-files/?d=", help=front)
    return parser.parse_args(argv)


answer_early(__name__, read_arguments)

import numpy as np
import torch
from torchvision.transforms.v2.functional import to_pil_image

from datasets import Data
from scripts.check_data import with_noise
from utils.files import as_csv, write_atomically, write_text
from utils.log import RESULT, log
from utils.report.samples_csv import Sample, read_samples

MODEL = "DeFT"
CLEANLAB = ("is_label_issue", "label_score", "given_label", "predicted_label")


@cli
def main(argv: list[str] | None = None) -> None:
    """Write the export and log its place."""
    args = read_arguments(argv)
    run, out = args.run, args.out
    if not (run / "config.yaml").is_file():
        raise UserError(f"--run {run}: there is no config.yaml in it, so it is not a run directory")
    samples = read_samples(run / "samples.csv")
    for sample in samples:
        check_id(sample.sample_id)
    cfg = load_config(["--cfg", str(run / "config.yaml"), "download=false"], script="export")
    cfg = replace(cfg, data_root=args.data_root or cfg.data_root)
    check_free(out)
    if args.to == "cleanlab":
        to_cleanlab(in_order(samples, cfg), out)
    else:
        write = {"fiftyone": to_fiftyone, "labelstudio": to_label_studio, "imagefolder": to_image_folder}[args.to]
        data = images_of(cfg, samples)
        write_folder(out, lambda folder: write(folder, samples, data, args))
    n_suspects = sum(sample.is_suspect for sample in samples)
    log.log(RESULT, f"wrote {out}: {len(samples)} samples, {n_suspects} of them suspects")


# ------------------------------------------------------------------ input


def check_id(name: str) -> None:
    """Refuse an id that leads out of the data set's folder."""
    path = PureWindowsPath(name)  # stricter than POSIX: splits at / and \\, and a drive or leading slash is its anchor
    if ".." in path.parts or path.anchor or "\0" in name:
        raise UserError(f"samples.csv: the id '{name}' leads out of the data set's folder; this is not a file of a run")


def images_of(cfg: Config, samples: Sequence[Sample]) -> Data:
    """The data set of a run, which holds each of the samples; without noise, as its labels are not needed."""
    data = with_noise(cfg, "sym", 0.0)
    known, n_classes = set(data.train.ids), len(data.class_names)
    for sample in samples:
        if sample.sample_id not in known:
            place = f"{cfg.dataset} in {cfg.data_root}"
            raise UserError(f"samples.csv: '{sample.sample_id}' is not a train sample of {place}")
        if max(sample.given, sample.suggested) >= n_classes:
            raise UserError(f"samples.csv: '{sample.sample_id}' has a label that {cfg.dataset} does not have")
    return data


def in_order(samples: list[Sample], cfg: Config) -> list[Sample]:
    """The samples in the data set's order, which a run with `sort_samples` does not keep."""
    if not cfg.sort_samples:
        return samples
    number = {name: i for i, name in enumerate(images_of(cfg, samples).train.ids)}
    return sorted(samples, key=lambda sample: number[sample.sample_id])


# ------------------------------------------------------------------ output


def check_free(out: Path) -> None:
    """Refuse to overwrite anything."""
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out}: this folder is not empty; name another one")
    if out.is_symlink() or (out.exists() and not out.is_dir() and out.stat().st_size):
        raise UserError(f"--out {out}: this file exists already; name another one")


def write_folder(out: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` make a folder beside `out`, then rename it, so that it is never seen half-written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as place:
            made = Path(place, "made")
            made.mkdir()
            fill(made)
            if out.exists():
                out.rmdir() if out.is_dir() else out.unlink()  # empty, as was checked
            made.rename(out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error}); choose another place") from None


def to_cleanlab(samples: Sequence[Sample], out: Path) -> None:
    """The columns or arrays of cleanlab; a sample that was not scored is not an issue and has score NaN."""
    rows = [(sample.is_suspect, sample.score, sample.given, sample.suggested) for sample in samples]
    issue, score, given, predicted = (np.array(column) for column in zip(*rows))
    if out.suffix == ".csv":
        shown = ((i, "" if math.isnan(s) else s, g, p) for i, s, g, p in rows)
        write_text(out, as_csv([CLEANLAB, *shown]))
        return
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: for cleanlab its name must end in .csv or .npz")
    order = np.argsort(score, kind="stable")
    arrays = {
        "labels": given,
        "label_quality_scores": score,
        "is_label_issue": issue,
        "issue_indices": order[issue[order]],
        "predicted_labels": predicted,
        "sample_ids": np.array([sample.sample_id for sample in samples]),
    }
    write_atomically(out, lambda file: np.savez_compressed(file, **arrays))


def to_fiftyone(folder: Path, samples: Sequence[Sample], data: Data, args: argparse.Namespace) -> None:
    """FiftyOneImageClassificationDataset: images in data/; labels.json, keyed by file name without suffix."""
    labels = {}
    for name, sample in zip(put_images(folder / "data", samples, data, copy=args.copy), samples):
        attributes = {
            "sample_id": sample.sample_id,
            "suggested_label": sample.suggested_class or None,
            "suggested_score": _known(sample.suggested_score),
            "is_clean": sample.is_clean,
        }
        entry = {"label": sample.given, "confidence": _known(sample.score), "attributes": attributes}
        labels[str(Path(name).with_suffix(""))] = entry
    _write_json(folder / "labels.json", {"classes": data.class_names, "labels": labels})


def to_label_studio(folder: Path, samples: Sequence[Sample], data: Data, args: argparse.Namespace) -> None:
    """tasks.json and the labelling interface that goes with it; images of array data sets in images/."""
    chosen = [sample for sample in samples if sample.is_suspect or not args.suspects]
    chosen.sort(key=lambda sample: math.inf if math.isnan(sample.score) else sample.score)  # those not scored come last
    if isinstance(data.train.images, torch.Tensor):
        places = [f"images/{name}" for name in put_images(folder / "images", chosen, data, copy=args.copy)]
    else:
        places = [sample.sample_id for sample in chosen]
    tasks = [_task(sample, args.url + quote(place)) for sample, place in zip(chosen, places)]
    _write_json(folder / "tasks.json", tasks)
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in data.class_names)
    interface = f'<View>\n  <Image name="image" value="$image"/>\n  <Choices name="label" toName="image">\n{choices}\n'
    write_text(folder / "label_config.xml", interface + "  </Choices>\n</View>\n")


def _task(sample: Sample, image: str) -> dict:
    shown: dict[str, Any] = {"image": image, "sample_id": sample.sample_id, "given_class": sample.given_class}
    shown |= {"label_score": _known(sample.score), "is_clean": sample.is_clean}
    if sample.suggested < 0:
        return {"data": shown}
    value = {"choices": [sample.suggested_class]}
    choice = {"from_name": "label", "to_name": "image", "type": "choices", "value": value}
    prediction: dict[str, Any] = {"model_version": MODEL, "result": [choice]}
    if not math.isnan(sample.suggested_score):
        prediction["score"] = sample.suggested_score
    return {"data": shown, "predictions": [prediction]}


def to_image_folder(folder: Path, samples: Sequence[Sample], data: Data, args: argparse.Namespace) -> None:
    """clean/<class>/ and suspect/<class>/; a sample that was not scored is in neither."""
    names = class_folders(data.class_names)
    table: list[tuple[str, str]] = [("file", "sample_id")]
    parts = {"clean": [s for s in samples if s.is_clean], "suspect": [s for s in samples if s.is_suspect]}
    for part, wanted in parts.items():
        (folder / part).mkdir()
        for label, name in enumerate(names):
            members = [sample for sample in wanted if sample.given == label]
            place = folder / part / name
            files = put_images(place, members, data, copy=args.copy) if members else []
            table += [(f"{part}/{name}/{file}", sample.sample_id) for file, sample in zip(files, members)]
    write_text(folder / "files.csv", as_csv(table))


def put_images(folder: Path, samples: Sequence[Sample], data: Data, *, copy: bool) -> list[str]:
    """Link, copy or write the images of the samples into a new folder; returns their file names, [N].

    A name is the sample's number in the data set, which makes it unique, and the part of its id that is safe in a name.
    """
    folder.mkdir(parents=True)
    images, number = data.train.images, {name: i for i, name in enumerate(data.train.ids)}
    width, names = len(str(len(number))), []
    for sample in samples:
        i = number[sample.sample_id]
        if isinstance(images, torch.Tensor):
            names.append(f"{i:0{width}d}.png")
            to_pil_image(images[i]).save(folder / names[-1])
            continue
        source = Path(images[i]).resolve()
        if not source.is_file():
            raise UserError(f"{source}: no such image; set --data_root to the directory of the data sets")
        names.append(f"{i:0{width}d}_{safe_name(source.stem)}{safe_name(source.suffix.lstrip('.'), '.')}")
        if copy:
            shutil.copyfile(source, folder / names[-1])
        else:
            (folder / names[-1]).symlink_to(source)
    return names


def class_folders(class_names: Sequence[str]) -> list[str]:
    """One folder name per class, all different even where upper and lower case are the same."""
    result: dict[str, str] = {}  # by the name in lower case
    for label, name in enumerate(class_names):
        safe = safe_name(name)
        while safe.casefold() in result:
            safe = f"{safe}_{label}"
        result[safe.casefold()] = safe
    return list(result.values())


def safe_name(text: str, before: str = "") -> str:
    """`text` as a file name: letters and digits of any script, `-` and `_`, at most 50 of them; `before` in front.

    Everything else becomes `_`; an empty text stays empty.
    """
    return before + re.sub(r"[^\w-]", "_", text)[:50] if text else ""


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
