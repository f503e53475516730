"""Labels that the user has checked: a CSV of decisions, applied to the train split of any data set."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from datasets.base import Data, NoisyImages
from datasets.images.files import ImageFiles
from datasets.readers.names import label_number, label_numbers
from datasets.readers.tables import read_table
from utils.errors import UserError
from utils.files import plain_cell
from utils.log import log

COLUMNS = {"sample_id": (), "action": (), "label": ()}
ACTIONS = ("keep", "relabel", "drop")


def apply_corrections(path: Path, data: Data) -> Data:
    """Apply the decisions of a CSV sample_id,action,label to the train split.

    `keep` leaves a label unchanged, `relabel` replaces it by `label` (a class name or number), `drop` removes the sample.
    Ids and given labels change, and so does the fingerprint.

    Raises:
        UserError: an unreadable file; an unknown id, action or class; a duplicate sample; fewer than two classes left.
    """
    train = data.train
    row_of = {name: row for row, name in enumerate(train.ids)}
    numbers = label_numbers(data.class_names)
    given = train.given.clone()
    decided: dict[int, str] = {}
    for line, entry in read_table(path, "corrections", COLUMNS, optional=["label"]):
        where = f"corrections={path}, line {line}"
        name, action = plain_cell(entry["sample_id"]), entry["action"].strip().lower()
        if name not in row_of:
            raise UserError(f"{where}: '{name[:200]}' is not a train sample (ids look like '{train.ids[0]}')")
        if action not in ACTIONS:
            raise UserError(f"{where}: unknown action '{action[:40]}'; use {', '.join(ACTIONS)}")
        row = row_of[name]
        if row in decided:
            raise UserError(f"{where}: duplicate entry '{name[:200]}'; keep one")
        decided[row] = action
        if action == "relabel":
            given[row] = label_number(plain_cell(entry.get("label", "").strip()), numbers, where)
    kept = torch.tensor([decided.get(row) != "drop" for row in range(len(train))])
    if len(given[kept].unique()) < 2:
        raise UserError(f"corrections={path}: fewer than two classes are left in the train split; drop or relabel less")
    n = Counter(decided.values())
    log.info(f"corrections={path}: {n['keep']} labels kept, {n['relabel']} replaced, {n['drop']} samples dropped")
    return replace(data, train=_select(replace(train, given=given), kept))


def _select(split: NoisyImages, kept: Tensor) -> NoisyImages:
    """The samples of a mask, bool [N]."""
    ids = [name for name, keep in zip(split.ids, kept.tolist()) if keep]
    images = split.images[kept] if isinstance(split.images, Tensor) else ImageFiles(split.images.folder, ids)
    true = None if split.true is None else split.true[kept]
    return replace(split, ids=ids, images=images, given=split.given[kept], true=true)
