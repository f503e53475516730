"""Settings: one typed schema, filled from YAML and the command line into one frozen `Config`.

Precedence, weakest first:
1. the defaults below,
2. the YAML file given by --cfg; in it, a block named after the script (`main_real_baseline:`) over the plain keys,
3. the flags of the paper's scripts (--noise_mode, --noise_ratio, --gpuid, --backbone, --lnl_methods, --strategy),
4. key=value overrides at the end of the command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import os
import re
import reprlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from utils.errors import UserError

NOISE_MODES = ("sym", "asym", "str", "idn", "real")
# Data of the user's own, which no protocol binds.
OWN_DATA = ("image_folder", "image_table")
# Labels that are wrong by nature; `noise_mode` and `noise_ratio` do not apply to these.
REAL_NOISE = ("cifar10n", "cifar100n", "clothing1m", "webvision", *OWN_DATA)
DATASETS = ("digits", "cifar10", "cifar100", "tiny_imagenet", "stanford_cars", "cub-200-2011", *REAL_NOISE)


MAX_DEPTH = 20  # of brackets in YAML


def setting(
    default: Any,
    meaning: str,
    *,
    choices: tuple = (),
    low: float = -math.inf,
    high: float = math.inf,
    below: float = math.inf,
    pattern: str = "",
):
    """A setting with its meaning and the values it may take: `low` <= value <= `high`, value < `below`; text by `pattern`."""
    limits = {"meaning": meaning, "choices": choices, "low": low, "high": high, "below": below, "pattern": pattern}
    return field(default=default, metadata=limits)


@dataclass(frozen=True)
class Config:
    """Every setting of every script. Not one of them is read from anywhere else."""

    # Data and its noise
    dataset: str = setting("digits", "data set", choices=DATASETS)
    data_root: str = setting(
        "data", "folder that holds the data sets; for image_folder and image_table that of the images"
    )
    table: str | None = setting(
        None, "image_table: CSV, TSV or Parquet file with path and label (split, true_label) of each image"
    )
    allow_outside_root: bool = setting(
        False, "read images that tables, lists or links put outside of the data set's folder, too"
    )
    download: bool = setting(True, "fetch CIFAR when it is missing; false never touches the network")
    noise_mode: str = setting(
        "sym", "label noise (symmetric, pair flip, structured, instance dependent, human)", choices=NOISE_MODES
    )
    noise_ratio: float = setting(0.4, "share of the train labels that are redrawn", low=0, below=1)
    noise_file: str | None = setting(None, "where the noisy labels are kept (default: <data_root>/noise/...)")
    class_names: list[str] | str | None = setting(
        None,
        "names for the prompts: a list, a text file of one name a line, or a CSV index,name[,prompt] (default: the data set's own)",
    )
    corrections: str | None = setting(
        None, "CSV sample_id,action,label of checked train labels; action: keep, relabel or drop"
    )
    flip: bool | None = setting(
        None, "mirror half the train images; false for digits, text, ... (default: the data set's own)"
    )
    num_samples: int = setting(
        64000, "Clothing1M: size of the class-balanced train subset; 0 = every listed image", low=0
    )
    imagenet_val: bool = setting(True, "WebVision: test on ImageNet's validation images, too")
    num_workers: int = setting(-1, "processes that read image files; -1 = one a core, at most 16; 0 = none", low=-1)
    cache: str = setting(
        "none", "keep resized image files: ram, disk (in cache_dir), or none", choices=("none", "ram", "disk")
    )
    cache_dir: str = setting("cache", "folder of cache=disk")
    skip_unreadable: bool = setting(False, "leave out images that cannot be read, instead of stopping at the first")

    # Backbone and what of it is trained
    backbone: str = setting(
        "ViT-B/16", "ViT-B/16, ViT-B/32, ViT-L/14, digits, an open_clip name, or an open_clip model config as JSON file"
    )
    pretrained: str = setting("openai", "open_clip tag, a weights file, or none for random weights")
    resolution: int = setting(0, "image side in pixels; 0 = what the backbone was made for", low=0, high=10_000)
    weights_dir: str = setting("weights", "folder for weights that are fetched, made, or put there by hand")
    finetune: bool | str = setting(
        False,
        "train the transformer blocks themselves; all: every weight of the image tower",
        choices=(True, False, "all"),
    )
    partial: int = setting(0, "adapt or fine-tune only the last n blocks; 0 = all of them", low=0)
    bias_tuning: bool = setting(False, "train all biases of the image tower (BitFit)")
    vpt_deep: bool = setting(False, "prompt tokens of their own for every block (VPT-deep)")
    vpt_shallow: bool = setting(False, "prompt tokens at the first block only (VPT-shallow)")
    vpt_len: int = setting(20, "prompt tokens a block", low=1, high=10_000)
    lora: bool = setting(False, "LoRA on the queries and values")
    adapter: bool = setting(False, "bottleneck adapter after the MLP (Houlsby et al.)")
    adaptformer: bool = setting(False, "bottleneck adapter parallel to the MLP (AdaptFormer)")
    ssf: bool = setting(False, "scale and shift the output of every linear layer (SSF)")
    bottleneck: int = setting(8, "rank or inner width of LoRA, Adapter and AdaptFormer", low=1, high=10_000)
    n_ctx: int = setting(16, "learnable context vectors of each prompt", low=1, high=64)
    prompts: str = setting(
        "names",
        "what stands for a class in its prompts: its name, or visual: vectors learned from its images, where names mean nothing",
        choices=("names", "visual"),
    )
    class_token_position: str = setting(
        "end", "where the class name stands among the context vectors", choices=("end", "middle", "front")
    )
    text_chunk: int = setting(
        1000, "class prompts encoded at a time; with more classes they are encoded again going backward; 0 = all", low=0
    )

    # Optimisation
    epochs: int = setting(10, "passes over the train set", low=1)
    warmup: int = setting(1, "first epochs, in which every sample is trained on", low=0)
    batch_size: int = setting(64, "samples a step", low=1)
    lnl_methods: str = setting(
        "CE", "training method of the baselines", choices=("CE", "ELR", "SCE", "GMM", "GCE", "TURN")
    )
    strategy: str = setting("small_loss", "detection rule of main_small_loss", choices=("small_loss", "label_match"))
    optimizer: str = setting("sgd", "optimiser", choices=("sgd", "adamw"))
    lr: float = setting(3e-2, "learning rate", low=0)
    momentum: float = setting(0.9, "momentum of SGD", low=0, below=1)
    weight_decay: float = setting(5e-4, "weight decay", low=0)
    lr_schedule: str | None = setting(
        None, "learning rate over the epochs (default: the script's own)", choices=("cosine", "constant")
    )
    selection: str | None = setting(
        None,
        "verdicts of phase 1: online (of the last epoch's steps, the paper's), or final (one pass with test transforms "
        "after it); default: online for the paper's data sets, final for one's own unless verdict=margin",
        choices=("online", "final"),
    )
    verdict: str = setting(
        "p_clean",
        "phase 1 judges a label by p_clean (the paper's), or by its margin over the other classes under the positive "
        "prompts: the mean of all epochs' steps, or with selection=final of the pass after them; same training",
        choices=("p_clean", "margin"),
    )
    threshold: float = setting(0.5, "phase 1: a label with a score above it is clean in the end", low=0, high=1)
    review_budget: int | str | None = setting(
        None,
        "n or n%: exactly so many samples with the lowest scores are not selected, all others are (default: the rule)",
        low=0,
        pattern=r"\d{1,18}|(\d{1,2}(\.\d+)?|100(\.0+)?)%",
    )
    audit_injection: float = setting(
        0.0,
        "phase 1: share of the labels that are flipped before training, to see how many of them are caught (audit.json)",
        low=0,
        below=0.5,
    )
    sort_samples: bool = setting(False, "samples.csv: most suspicious samples first, instead of the data set's order")
    positive_weight: float = setting(1.0, "weight of the positive term of L_dp (0.25 for severe noise)", low=0)
    max_steps: int = setting(
        0, "at most this many batches in each pass over data, for trying things out; 0 = all", low=0
    )

    # Machine
    seed: int = setting(0, "seed of everything that chance decides", low=0, high=2**32 - 2)
    device: str = setting(
        "auto", "auto (CUDA, then MPS, then CPU), cuda, mps or cpu", choices=("auto", "cuda", "mps", "cpu")
    )
    gpuid: int = setting(0, "which CUDA device", low=0)
    prec: str = setting(
        "amp",
        "fp32, amp (mixed, fp32 master weights), bf16 (mixed, always bfloat16), fp16 (half weights, as released)",
        choices=("fp32", "amp", "bf16", "fp16"),
    )
    deterministic: bool = setting(False, "on CUDA, too, the same command gives the same bits (slower)")
    tf32: bool = setting(False, "fp32 matrix products in TensorFloat-32 (faster on CUDA, about 3 digits)")
    compile: bool = setting(False, "torch.compile the towers (minutes at the start, faster steps)")
    grad_checkpointing: bool = setting(
        False, "compute the image tower's blocks again going backward: less memory, slower"
    )
    micro_batches: int = setting(
        1, "the image tower takes each batch in so many parts, each computed again going backward; same update", low=1
    )

    # Files
    output_dir: str | None = setting(None, "run folder (default: output/<script>/<dataset>/<noise>/seed<k>)")
    clean_set: str | None = setting(
        None, "selected set to write in phase 1 and to read in phase 2 (default: phase1/<dataset>/<noise>.pt)"
    )
    report: bool = setting(False, "write report.html and plots of the selection, for looking at suspicious labels")
    report_to: str = setting(
        "none", "tensorboard: write the figures of metrics.jsonl for it, too", choices=("none", "tensorboard")
    )
    quiet: bool = setting(
        False, "print warnings, final figures and what was written alone; log.txt stays complete (--quiet)"
    )
    resume: bool = setting(False, "go on from the run folder's checkpoint (--resume)")

    @property
    def noise_tag(self) -> str:
        """Short name of the noise in paths and tables: `sym0.4`, or `real`, which has no ratio."""
        real = self.noise_mode == "real" or self.dataset in REAL_NOISE
        return "real" if real else f"{self.noise_mode}{self.noise_ratio:g}"

    @property
    def selects(self) -> str:
        """When phase 1 takes its verdicts: `online` or `final`."""
        own = self.dataset in OWN_DATA and self.verdict == "p_clean"
        return self.selection or ("final" if own else "online")


TYPES: dict[str, Any] = get_type_hints(Config)
DEFAULTS = {f.name: f.default for f in fields(Config)}
LIMITS = {f.name: f.metadata for f in fields(Config)}
SCRIPTS = (
    "main_phase1",
    "main_phase2",
    "main_real_phase1",
    "main_real_phase2",
    "main_small_loss",
    "main_baseline",
    "main_real_baseline",
)
# The paper's scripts take these as flags; each is the key of the same name.
FLAGS = ("noise_mode", "noise_ratio", "gpuid", "backbone", "lnl_methods", "strategy")


def load_config(argv: list[str] | None, *, script: str) -> Config:
    """Read the command line (and the YAML file it names) into a `Config`.

    Raises:
        UserError: unknown key, wrong type, value out of range, or a file that is missing or malformed.
    """
    args = _parser(script).parse_intermixed_args(argv)
    if args.cfg is None:
        raise UserError(f"--cfg FILE is missing: name a settings file, e.g. {script}.py --cfg config/PEFT/digits.yaml")
    content = _read_yaml(Path(args.cfg))
    blocks = {name: content.pop(name) for name in SCRIPTS if isinstance(content.get(name), dict)}
    values = {name: _checked(name, value, args.cfg) for name, value in {**content, **blocks.get(script, {})}.items()}
    for name in FLAGS:
        if (text := getattr(args, name)) is not None:
            values[name] = _checked(name, _from_text(name, text), f"--{name}")
    for item in args.overrides:
        name, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"command line: '{item}' is not of the form key=value")
        values[name] = _checked(name, _from_text(name, text), "command line")
    values |= {name: True for name in ("resume", "quiet") if getattr(args, name)}
    return Config(**values)


def dump_config(cfg: Config) -> str:
    """The settings as YAML that `load_config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(cfg), sort_keys=False, allow_unicode=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"command line: {message} (--help lists what there is)")


def _parser(script: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"{script}.py",
        usage="%(prog)s --cfg FILE [flags] [--resume] [--quiet] [key=value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_key_table(),
        allow_abbrev=False,
    )
    parser.add_argument("--cfg", metavar="FILE", help="YAML file with settings")
    for name in FLAGS:
        parser.add_argument(f"--{name}", metavar="VALUE", help=f"same as {name}=VALUE")
    parser.add_argument("--resume", action="store_true", help="go on from the run folder's checkpoint")
    parser.add_argument("--quiet", action="store_true", help="print warnings, final figures and what was written alone")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any of the keys below")
    return parser


def _key_table() -> str:
    rows = ["keys (for the YAML file, and as key=value):"]
    for f in fields(Config):
        default = "none" if f.default is None else str(f.default).lower() if isinstance(f.default, bool) else f.default
        choices = f" [{_listed(f.metadata['choices'])}]" if f.metadata["choices"] else ""
        rows.append(f"  {f.name:<21} {_type_name(TYPES[f.name]):<19} {default!s:<9} {f.metadata['meaning']}{choices}")
    return "\n".join(rows)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = _parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such settings file") from None
    except (OSError, ValueError) as error:  # also what is no UTF-8, or no date
        raise UserError(f"{path}: cannot be read as a settings file ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}: not valid YAML{where} ({getattr(error, 'problem', error)})") from None
    if content is None:
        raise UserError(f"{path}: the settings file is empty")
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected lines of the form 'key: value', found a {type(content).__name__}")
    return content


def _parse_yaml(text: str) -> Any:
    """Plain values from YAML.

    Raises:
        yaml.YAMLError, ValueError: it is none, or nested deeper than settings can be (which takes the parser minutes).
    """
    depth = deepest = 0
    for character in re.findall(r"[\[\]{}]", text):
        depth += 1 if character in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise ValueError(f"brackets {deepest} deep")
    try:
        return yaml.safe_load(text)
    except (KeyError, AttributeError, TypeError, RecursionError) as error:  # of `!!bool x` and the like
        raise ValueError(f"{type(error).__name__} in a value") from None


def _shown(value: Any) -> str:
    """A value for messages. YAML's references can make a short text a value that fills the memory when written out."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 2, 200, 200, 60
    try:
        return short.repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"a {type(value).__name__}"


def _from_text(name: str, text: str) -> Any:
    """A value from the command line: text stays text where the key wants text, else it is read as YAML."""
    if name in TYPES and str in _alternatives(TYPES[name]) and bool not in _alternatives(TYPES[name]):
        if text.lower() in ("none", "null") and type(None) in _alternatives(TYPES[name]):
            return None
        if not (list[str] in _alternatives(TYPES[name]) and text.startswith("[")):
            return text
    try:
        return _parse_yaml(text)
    except (yaml.YAMLError, ValueError):  # 2020-13-45 is no date
        return text


def _checked(name: str, value: Any, where: str) -> Any:
    """`value` as the key's type (null: the default), or a `UserError` that names file and key."""
    if name not in TYPES:
        near = difflib.get_close_matches(str(name), TYPES, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else "; --help lists the keys"
        raise UserError(f"{where}: unknown key '{name}'{hint}")
    if value is None:
        return DEFAULTS[name]
    limits = LIMITS[name]
    for kind in _alternatives(TYPES[name]):
        ok, cast = _cast(kind, value)
        if ok:
            break
    else:
        raise UserError(f"{where}: {name} must be {_type_name(TYPES[name])}, got {_shown(value)}")
    if limits["choices"] and cast not in limits["choices"]:
        near = difflib.get_close_matches(str(cast), map(str, limits["choices"]), n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise UserError(f"{where}: unknown {name} '{cast}'{hint}; choose one of {_listed(limits['choices'])}")
    if limits["pattern"] and isinstance(cast, str) and not re.fullmatch(limits["pattern"], cast, re.ASCII):
        raise UserError(f"{where}: {name} = {cast!r} is not understood; it must be {limits['meaning'].split(':')[0]}")
    if isinstance(cast, (int, float)) and not (limits["low"] <= cast <= limits["high"] and cast < limits["below"]):
        raise UserError(f"{where}: {name} = {cast} is out of range; {_range(limits)}")
    return cast


def _cast(kind: Any, value: Any) -> tuple[bool, Any]:
    if kind is float:
        # YAML 1.1 reads 5e-4 as text, because it has no dot.
        try:
            number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        return math.isfinite(number), number
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63, value
    if kind == list[str]:
        ok = isinstance(value, (list, tuple)) and all(isinstance(v, float) or _is_plain(v) for v in value)
        return ok, [str(v) for v in value] if ok else value
    return isinstance(value, kind) and (kind is not str or _is_plain(value)), value


def _is_plain(value: Any) -> bool:
    """Whether it is an integer of reasonable size, or text that a file name can be made of."""
    if isinstance(value, str):
        try:
            return b"\0" not in os.fsencode(value)
        except UnicodeEncodeError:  # half a character
            return False
    return isinstance(value, int) and abs(value) < 2**63


def _alternatives(kind: Any) -> tuple:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _type_name(kind: Any) -> str:
    names = {str: "text", int: "int", float: "number", bool: "true/false", list[str]: "list", type(None): "none"}
    return " or ".join(names[k] for k in _alternatives(kind))


def _listed(choices: tuple) -> str:
    return ", ".join(str(c).lower() if isinstance(c, bool) else c for c in choices)


def _range(limits: dict[str, Any]) -> str:
    upper = f"below {limits['below']:g}" if limits["below"] < math.inf else f"at most {limits['high']:g}"
    return f"it must be at least {limits['low']:g}" + (
        f" and {upper}" if not math.isinf(min(limits["below"], limits["high"])) else ""
    )
