"""The settings: one line per key, with its default, its meaning, what it affects and which scripts read it.

`affects` decides what a resumed run may change and what makes `scripts/reproduce.py` run a cell again:
result    the trained weights, or which data they see; a resumed run must have the same, a cell is run again
verdict   the selection alone; a resumed run may change it, a cell is run again
rounding  the last bits: the same computation in another order
nothing   where and how the run takes place, or what is written beside the result
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from utils.config import catalog

DATASETS = tuple(catalog.DATASETS)
NOISE_MODES = (*catalog.NOISE, "real")
# Images of the user, to which no protocol applies.
OWN_DATA = tuple(name for name, row in catalog.DATASETS.items() if row.noise == "own")
# Data sets whose labels are noisy themselves; `noise_mode` and `noise_ratio` do not apply to these.
REAL_NOISE = tuple(name for name, row in catalog.DATASETS.items() if row.noise != "synthetic")

# What each script does, as `read_by` of the keys names it.
SCRIPTS = {
    "main_phase1": "detect",
    "main_phase2": "adapt",
    "main_real_phase1": "detect",
    "main_real_phase2": "adapt",
    "main_small_loss": "select",
    "main_baseline": "train",
    "main_real_baseline": "train",
}
AFFECTS = ("result", "verdict", "rounding", "nothing")
# The paper's scripts take these as flags, too; each is the key of the same name.
FLAGS = ("noise_mode", "noise_ratio", "gpuid", "backbone", "lnl_methods", "strategy")


def setting(
    default: Any,
    meaning: str,
    *,
    affects: str = "result",
    read_by: str = "detect adapt select train",
    choices: tuple = (),
    low: float = -math.inf,
    high: float = math.inf,
    below: float = math.inf,
    pattern: str = "",
    alias: str = "",
    adapter: str = "",
) -> Any:
    """A key of the settings.

    Args:
        affects: one of `AFFECTS`.
        read_by: kinds of script (`SCRIPTS`) that read it, separated by blanks; the other scripts get its default.
        choices: the values it may take; numbers: `low` <= value <= `high` and value < `below`; text: `pattern`.
        alias: an older name, accepted in files and on the command line.
    """
    return field(default=default, metadata={k: v for k, v in locals().items() if k != "default"})


# The first key of each group, in the order of `Config`.
GROUPS = {
    "data and noise": "dataset",
    "backbone and what of it is trained": "backbone",
    "optimisation": "epochs",
    "selection": "selection",
    "machine": "seed",
    "files": "output_dir",
}
PHASE1: dict[str, Any] = {"read_by": "detect"}
VERDICTS: dict[str, Any] = {"read_by": "detect select train"}


# fmt: off
@dataclass(frozen=True)
class Config:
    """Every setting of every script. None is read from anywhere else."""

    dataset: str = setting("digits", "data set", choices=DATASETS)
    data_root: str = setting("data", "directory of the data sets; of the images for image_folder and image_table", affects="nothing")
    table: str | None = setting(None, "image_table: CSV, TSV or Parquet file with path and label (split, true_label) of each image", affects="nothing")
    allow_outside_root: bool = setting(False, "also read images outside of the data set's directory that tables, lists or links lead to", affects="nothing")
    download: bool = setting(True, "download CIFAR when it is missing; false never touches the network", affects="nothing")
    noise_mode: str = setting("sym", "label noise: symmetric, pair flip, structured, instance-dependent, human", choices=NOISE_MODES)
    noise_ratio: float = setting(0.4, "share of the train labels that are redrawn", low=0, below=1)
    noise_file: str | None = setting(None, "file that keeps the noisy labels (default: <data_root>/noise/...)", affects="nothing")
    class_names: list[str] | str | None = setting(None, "names for the prompts: a list, a text file with one name per line, or a CSV index,name[,prompt] (default: the data set's own)")
    corrections: str | None = setting(None, "CSV sample_id,action,label of checked train labels; action: keep, relabel or drop")
    flip: bool | None = setting(None, "mirror half of the train images; false for digits, text, ... (default: the data set's own)")
    num_samples: int = setting(64000, "Clothing1M: size of the class-balanced train subset; 0 = every listed image", low=0)
    imagenet_val: bool = setting(True, "WebVision: also test on ImageNet's validation images")
    num_workers: int = setting(-1, "processes that read image files; -1 = one per core, at most 16; 0 = none", affects="nothing", low=-1)
    cache: str = setting("none", "keep resized image files: ram, disk (in cache_dir), or none", affects="nothing", choices=("none", "ram", "disk"))
    cache_dir: str = setting("cache", "directory of cache=disk", affects="nothing")
    skip_unreadable: bool = setting(False, "leave out images that cannot be read, instead of stopping at the first")

    backbone: str = setting("ViT-B/16", "ViT-B/16, ViT-B/32, ViT-L/14, digits, an open_clip name, or an open_clip model config as JSON file")
    pretrained: str = setting("openai", "open_clip tag, a weights file, or none for random weights")
    resolution: int = setting(0, "image side in pixels; 0 = the backbone's own", low=0, high=10_000)
    weights_dir: str = setting("weights", "directory of weights: downloaded, generated, or copied there by hand", affects="nothing")
    finetune: bool | str = setting(False, "train the transformer blocks themselves; all: every weight of the image tower", choices=(True, False, "all"))
    partial: int = setting(0, "adapt or fine-tune only the last n blocks; 0 = all of them", low=0)
    bias_tuning: bool = setting(False, "train all biases of the image tower (BitFit)")
    vpt_deep: bool = setting(False, "prompt tokens at every block (VPT-deep)")
    vpt_shallow: bool = setting(False, "prompt tokens at the first block only (VPT-shallow)")
    vpt_len: int = setting(20, "prompt tokens per block", low=1, high=10_000)
    ssf: bool = setting(False, "scale and shift the output of every linear layer (SSF)", adapter="models.peft:SSF")
    lora: bool = setting(False, "LoRA on the queries and values", adapter="models.peft:LoRA")
    adapter: bool = setting(False, "bottleneck adapter after the MLP (Houlsby et al.)", adapter="models.peft:Adapter")
    adaptformer: bool = setting(False, "bottleneck adapter parallel to the MLP (AdaptFormer)", adapter="models.peft:AdaptFormer")
    bottleneck: int = setting(8, "rank or inner width of LoRA, Adapter and AdaptFormer", low=1, high=10_000)
    n_ctx: int = setting(16, "learnable context vectors of each prompt", **PHASE1, low=1, high=64)
    prompts: str = setting("names", "the class in its prompts: its name, or visual, vectors learned from its images for names that mean nothing", choices=("names", "visual"))
    class_token_position: str = setting("end", "position of the class name among the context vectors", **PHASE1, choices=("end", "middle", "front"))
    text_chunk: int = setting(1000, "class prompts encoded at a time; with more classes, in chunks with activation checkpointing; 0 = all at once", affects="rounding", **PHASE1, low=0)

    epochs: int = setting(10, "passes over the train set", low=1)
    warmup: int = setting(1, "number of first epochs that train on every sample", **VERDICTS, low=0)
    batch_size: int = setting(64, "samples per step", low=1)
    lnl_methods: str = setting("CE", "training method of the baselines", read_by="train", choices=tuple(catalog.METHODS))
    strategy: str = setting("small_loss", "detection rule of main_small_loss", read_by="select", choices=("small_loss", "label_match"))
    optimizer: str = setting("sgd", "optimizer", choices=("sgd", "adamw"))
    lr: float = setting(3e-2, "learning rate", low=0, high=1e38)
    momentum: float = setting(0.9, "momentum of SGD", low=0, below=1)
    weight_decay: float = setting(5e-4, "weight decay", low=0, high=1e38)
    lr_schedule: str | None = setting(None, "learning rate over the epochs (default: the script's own)", choices=("cosine", "constant"))
    positive_weight: float = setting(1.0, "weight of the positive term of L_dp (0.25 for severe noise)", **PHASE1, low=0)
    max_steps: int = setting(0, "at most this many batches per pass over data, for a trial; 0 = all", low=0)

    selection: str | None = setting(None, "when a label is judged: online (in the last epoch's steps, as in the paper) or final (one pass with test transforms after training); default: online for the paper's data sets, final for your own unless verdict=margin", **PHASE1, choices=("online", "final"))
    verdict: str = setting("p_clean", "what judges a label: p_clean (the paper's), or its margin over the other classes under the positive prompts, averaged over all epochs or, with selection=final, after the last; same training", affects="verdict", **PHASE1, choices=("p_clean", "margin"))
    threshold: float = setting(0.5, "a label with p_clean (or margin score) above it is clean: it is trained on and selected", **PHASE1, low=0, high=1)
    review_budget: int | str | None = setting(None, "n or n%: select all samples but exactly this many with the lowest scores (default: the rule)", affects="verdict", **VERDICTS, low=0, pattern=r"\d{1,18}|(\d{1,2}(\.\d+)?|100(\.0+)?)%")
    audit_injection: float = setting(0.0, "share of the labels that are flipped before training, to measure how many of them are caught (audit.json)", **PHASE1, low=0, below=0.5)
    sort_samples: bool = setting(False, "samples.csv: most suspicious samples first, instead of the data set's order", affects="nothing", **VERDICTS)

    seed: int = setting(0, "random seed", low=0, high=2**32 - 2)
    device: str = setting("auto", "auto (CUDA, then MPS, then CPU), cuda, mps or cpu", affects="rounding", choices=("auto", "cuda", "mps", "cpu"))
    gpuid: int = setting(0, "index of the CUDA device", affects="nothing", low=0)
    prec: str = setting("amp", "fp32, amp (mixed, fp32 master weights), bf16 (mixed, always bfloat16), fp16 (half weights, as released)", choices=("fp32", "amp", "bf16", "fp16"))
    deterministic: bool = setting(False, "the same command gives the same bits on CUDA, too (slower)", affects="rounding")
    tf32: bool = setting(False, "fp32 matrix products in TensorFloat-32 (faster on CUDA, about 3 digits)", affects="rounding")
    compile: bool = setting(False, "torch.compile the towers (minutes at the start, faster steps)", affects="rounding")
    grad_checkpointing: bool = setting(False, "activation checkpointing of the image tower's blocks: less memory, slower", affects="rounding")
    micro_batches: int = setting(1, "the image tower takes each batch in this many parts, each recomputed in the backward pass; same update", affects="rounding", low=1, alias="accum_steps")

    output_dir: str | None = setting(None, "run directory (default: output/<script>/<dataset>/<noise>/seed<k>)", affects="nothing")
    clean_set: str | None = setting(None, "selected set that phase 1 writes and phase 2 reads (default: phase1/<dataset>/<noise>.pt)", affects="nothing")
    report: bool = setting(False, "write report.html, a page for reviewing suspicious labels", affects="nothing", **VERDICTS)
    report_to: str = setting("none", "tensorboard: also write metrics.jsonl as event files", affects="nothing", choices=("none", "tensorboard"))
    quiet: bool = setting(False, "print only warnings, final figures and what was written; log.txt stays complete (--quiet)", affects="nothing")
    overwrite: bool = setting(False, "start over in a run directory that holds a finished run, or one of other settings", affects="nothing")
    resume: bool = setting(False, "resume from the run directory's checkpoint (--resume)", affects="nothing")
# fmt: on

    def that_affect(self, *what: str) -> dict[str, Any]:
        """The settings whose `affects` is one of `what`, in the order of the schema."""
        keys = keys_that_affect(*what)
        return {name: value for name, value in vars(self).items() if name in keys}

    @property
    def noise_tag(self) -> str:
        """Short name of the noise in paths and tables: `sym0.4`, or `real`, which has no ratio."""
        real = self.noise_mode == "real" or self.dataset in REAL_NOISE
        return "real" if real else f"{self.noise_mode}{self.noise_ratio:g}"

    @property
    def selects(self) -> str:
        """When phase 1 judges labels: `online` or `final`."""
        own = self.dataset in OWN_DATA and self.verdict == "p_clean"
        return self.selection or ("final" if own else "online")


TYPES: dict[str, Any] = get_type_hints(Config)
DEFAULTS = {f.name: f.default for f in fields(Config)}
LIMITS = {f.name: f.metadata for f in fields(Config)}
ALIASES = {f.metadata["alias"]: f.name for f in fields(Config) if f.metadata["alias"]}


def keys_that_affect(*what: str) -> set[str]:
    """The keys whose `affects` is one of `what`."""
    return {name for name, limits in LIMITS.items() if limits["affects"] in what}


def readers(key: str) -> tuple[str, ...]:
    """The scripts that read a key."""
    return tuple(script for script, kind in SCRIPTS.items() if kind in LIMITS[key]["read_by"].split())


def is_read(key: str, script: str) -> bool:
    """Whether a script reads a key. Scripts that are not in `SCRIPTS` (check_data, export) read all of them."""
    return script not in SCRIPTS or script in readers(key)
