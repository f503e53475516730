"""Labels that someone has looked at: a CSV of decisions, applied to the train split of any data set."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from datasets.base import Data, NoisyImages
from datasets.images.files import ImageFiles
from datasets.readers.names import label_number, label_numbers
from datasets.readers.tables import read_table
from utils.config import Config
from utils.errors import UserError
from utils.log import log

ACTIONS = ("keep", "relabel", "drop")


def apply_corrections(cfg: Config, data: Data) -> Data:
    """The data with the decisions of `corrections`, a CSV sample_id,action,label.

    `keep` leaves a label as it is, `relabel` replaces it by `label` (a class's name or number), `drop` takes the sample
    out of the train split. Ids and given labels change with it, and so does the fingerprint.

    Raises:
        UserError: a file that cannot be read; an id, action or class that there is not; a sample decided on twice; fewer
            than two classes left.
    """
    train, path = data.train, Path(cfg.corrections)
    row_of = {name: row for row, name in enumerate(train.ids)}
    numbers = label_numbers(data.class_names)
    given, kept = train.given.clone(), torch.ones(len(train), dtype=torch.bool)
    decided: dict[int, str] = {}
    for line, entry in read_table(
        path, "corrections", {"sample_id": (), "action": (), "label": ()}, optional=["label"]
    ):
        where = f"corrections={path}, line {line}"
        name, action = entry["sample_id"], entry["action"].strip().lower()
        if name not in row_of:
            raise UserError(f"{where}: '{name[:200]}' is no train sample (ids look like '{train.ids[0]}')")
        if action not in ACTIONS:
            raise UserError(f"{where}: unknown action '{action[:40]}'; use {', '.join(ACTIONS)}")
        row = row_of[name]
        if row in decided:
            raise UserError(f"{where}: '{name[:200]}' stands there a second time; keep one of the two")
        decided[row] = action
        if action == "relabel":
            given[row] = label_number(entry.get("label", "").strip(), numbers, where)
        elif action == "drop":
            kept[row] = False
    if len(given[kept].unique()) < 2:
        raise UserError(f"corrections={path}: fewer than two classes are left in the train split; drop or relabel less")
    count = Counter(decided.values())
    log.info(
        f"corrections={path}: {count['keep']} labels kept, {count['relabel']} replaced, {count['drop']} samples dropped"
    )
    return replace(data, train=_rows(replace(train, given=given), kept))


def _rows(split: NoisyImages, kept: torch.Tensor) -> NoisyImages:
    """The samples that are kept, bool [N]."""
    ids = [name for name, keep in zip(split.ids, kept.tolist()) if keep]
    images = ImageFiles(split.images.folder, ids) if isinstance(split.images, ImageFiles) else split.images[kept]
    true = None if split.true is None else split.true[kept]
    return replace(split, ids=ids, images=images, given=split.given[kept], true=true)
