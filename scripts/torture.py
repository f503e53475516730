"""Hours of bad luck in minutes: killed runs, damaged files, random settings. Writes what came of it to docs/reliability.md.

    python scripts/torture.py                          # everything, about 25 minutes on two cores
    python scripts/torture.py --kills 5 --terms 2 --damages 10 --configs 200

Everything happens in a temporary folder, on the digits and a tiny CLIP. A try fails if it ends in a traceback, hangs, runs
foreign code, leaves a half-written file, or ends well with another result than the undamaged input gives.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import main_baseline  # noqa: E402
import main_phase1  # noqa: E402
import main_phase2  # noqa: E402
from utils.config import LIMITS, SCRIPTS, TYPES, Config  # noqa: E402

TINY_CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
BASE = ("--cfg", "tiny.yaml")
SHORT = (*BASE, "epochs=1", "max_steps=1", "num_workers=0")
HANG = 120  # seconds after which a try counts as hanging


class Evil:
    """A pickle that touches a file where it is read without care."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


# ------------------------------------------------------------------ killed runs

KILLED = {
    "phase 1": ("main_phase1.py", ["clean_set={folder}.pt"]),
    "phase 2": ("main_phase2.py", ["clean_set=given.npy", "finetune=true", "vpt_deep=false"]),
    "GMM": ("main_baseline.py", ["--lnl_methods", "GMM", "clean_set={folder}.pt"]),
}


def outcome(folder: str) -> dict[str, object]:
    """The bytes that two runs must have in common; of the checkpoint its tensors, of the metrics all but times."""
    parts = torch.load(f"{folder}/checkpoint.pt", weights_only=True)["parts"]
    history = [json.loads(line) for line in Path(f"{folder}/metrics.jsonl").read_text().splitlines()]
    return {
        "weights": {
            f"{p}.{k}": v.numpy().tobytes() for p in ("detector", "model") for k, v in parts.get(p, {}).items()
        },
        "history": [{k: v for k, v in line.items() if k != "train_seconds"} for line in history],
        "files": [p.read_bytes() for p in (Path(f"{folder}/samples.csv"), Path(f"{folder}.pt")) if p.exists()],
    }


def kill_runs(rng: random.Random, number: int, tries: int) -> Counter:
    """Start runs, send them a signal at random moments until they end, and compare with the undisturbed run."""
    counts: Counter = Counter()
    for name, (script, settings) in KILLED.items():
        folder = name.replace(" ", "") + str(number)
        argv = [sys.executable, str(ROOT / script), *BASE, "epochs=12", "batch_size=32", "num_workers=0"]

        def command(where: str, argv: list[str] = argv, settings: list[str] = settings) -> list[str]:
            return [*argv, *(s.format(folder=where) for s in settings), f"output_dir={where}"]

        started = time.perf_counter()
        subprocess.run(command(f"{folder}-whole"), check=True, capture_output=True, timeout=HANG)
        length = time.perf_counter() - started
        share = tries // len(KILLED) + (list(KILLED).index(name) < tries % len(KILLED))
        done = 0
        while done < share:
            run = subprocess.Popen(
                [*command(folder), "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            time.sleep(rng.uniform(0.4, 1.0) * length)
            run.send_signal(number)
            _, errors = run.communicate(timeout=HANG)
            if run.returncode == 0:  # it had ended before: compare, and begin again
                counts["compared"] += 1
                counts["differs"] += outcome(folder) != outcome(f"{folder}-whole")
                for path in (*Path(folder).iterdir(), Path(f"{folder}.pt"), Path(f"{folder}.json")):
                    path.unlink(missing_ok=True)
                continue
            done += 1
            expected = -number if number == signal.SIGKILL else 128 + number
            counts["stopped"] += run.returncode in (expected, -number)
            counts["wrong exit code"] += run.returncode not in (expected, -number)
            counts["traceback"] += "Traceback" in errors
        subprocess.run([*command(folder), "--resume"], check=True, capture_output=True, timeout=HANG)
        counts["compared"] += 1
        counts["differs"] += outcome(folder) != outcome(f"{folder}-whole")
    return counts


# --------------------------------------------------------------- damaged inputs


def write_inputs() -> None:
    """One good file of every kind."""
    main_phase1.main([*BASE, "epochs=1", "output_dir=good", "clean_set=good.pt"])
    main_phase2.main([*SHORT, "output_dir=phase2", "clean_set=good.pt", "epochs=2"])
    np.save("given.npy", np.arange(1297) % 3 > 0)
    Path("given.csv").write_text("sample_id\n" + "\n".join(str(i) for i in range(0, 1297, 2)) + "\n")
    Path("names.txt").write_text(
        "\n".join(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]) + "\n"
    )
    import open_clip

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = open_clip.CLIP(**TINY_CLIP).state_dict()
    torch.save(state, "weights.pt")
    save_file(state, "weights.safetensors")
    rng = np.random.RandomState(0)
    for i in range(12):
        path = Path("folder") / "abc"[i % 3] / f"{i}.{('png', 'jpg', 'webp', 'bmp')[i % 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.randint(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    files = sorted(str(p.relative_to("folder")) for p in Path("folder").rglob("*.*"))
    Path("table.csv").write_text("path,label\n" + "".join(f"{f},{f[0]}\n" for f in files))
    Path("corrections.csv").write_text("sample_id,action,label\n3,drop,\n4,relabel,2\n5,keep,\n")
    cifar = Path("cifar/cifar-100-python")
    cifar.mkdir(parents=True)
    for split in ("train", "test"):
        data = {
            b"data": rng.randint(0, 256, (40, 3072)).astype(np.uint8),
            b"fine_labels": [i % 100 for i in range(40)],
            b"coarse_labels": [0] * 40,
        }
        (cifar / split).write_bytes(pickle.dumps(data, protocol=2))
    human = {"noisy_label": torch.arange(40) % 100, "clean_label": torch.arange(40) % 100}
    torch.save({k: v.numpy() for k, v in human.items()}, "cifar/CIFAR-100_human.pt")


FOLDER = ["dataset=image_folder", "data_root=folder"]
KINDS: dict[str, tuple[str, Callable, list[str], bool]] = {
    # kind: file, main, settings that read it, whether a changed content must never be taken for a good one
    "checkpoint": ("phase2/checkpoint.pt", main_phase2.main, ["output_dir=phase2", "clean_set=good.pt", "epochs=2", "--resume"], True),
    "selected set": ("good.pt", main_phase2.main, ["clean_set=good.pt"], True),
    "selected set's .json": ("good.json", main_phase2.main, ["clean_set=good.pt"], True),
    "bool array of another method": ("given.npy", main_phase2.main, ["clean_set=given.npy"], False),
    "list of ids of another method": ("given.csv", main_phase2.main, ["clean_set=given.csv"], False),
    "stored noise": ("data/noise/digits_sym0.4_seed0.npz", main_phase1.main, [], True),
    "settings": ("tiny.yaml", main_phase1.main, [], False),
    "model config": ("tiny.json", main_phase1.main, [], False),
    "class names": ("names.txt", main_phase1.main, ["class_names=names.txt"], False),
    "weights (.pt)": ("weights.pt", main_phase1.main, ["pretrained=weights.pt"], False),
    "weights (.safetensors)": ("weights.safetensors", main_phase1.main, ["pretrained=weights.safetensors"], False),
    "image, PNG": ("folder/a/0.png", main_phase1.main, FOLDER, False),
    "image, JPEG": ("folder/b/1.jpg", main_phase1.main, FOLDER, False),
    "image, WebP": ("folder/c/2.webp", main_phase1.main, FOLDER, False),
    "image, BMP": ("folder/a/3.bmp", main_phase1.main, FOLDER, False),
    "table of images": ("table.csv", main_phase1.main, ["dataset=image_table", "data_root=folder", "table=table.csv"], False),
    "corrections": ("corrections.csv", main_phase1.main, ["corrections=corrections.csv"], False),
    "CIFAR-100 pickle": ("cifar/cifar-100-python/train", main_phase1.main, ["dataset=cifar100", "data_root=cifar", "download=false"], False),
    "CIFAR-100N labels": ("cifar/CIFAR-100_human.pt", main_baseline.main, ["dataset=cifar100n", "data_root=cifar", "download=false"], False),
}  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content with one of eight kinds of damage."""
    n = max(1, len(content))
    cut = rng.randrange(n)
    flipped = bytearray(content or b"x")
    for _ in range(rng.choice((1, 8, 64))):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return rng.choice(
        (
            lambda: content[:cut],
            lambda: bytes(flipped),
            lambda: bytes(flipped),
            lambda: content[:cut] + bytes(min(n - cut, 512)) + content[cut + 512 :],
            lambda: content[:cut] + rng.randbytes(rng.randrange(1, 200)) + content[cut:],
            lambda: rng.randbytes(rng.randrange(2000)),
            lambda: b"",
            lambda: pickle.dumps(Evil()),
        )
    )()


def try_main(main: Callable, argv: list[str]) -> tuple[str, str]:
    """('ran' or 'refused' or what went wrong, the line on stderr)."""
    errors = io.StringIO()
    signal.alarm(HANG)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main(argv)
        return "ran", ""
    except SystemExit as stop:
        lines = errors.getvalue().strip().splitlines()
        if stop.code in (0, None):
            return "ran", ""
        good = stop.code == 2 and lines and lines[-1].startswith("error: ")
        return ("refused" if good else f"exit code {stop.code}"), "\n".join(lines)
    except BaseException as error:
        return f"traceback: {type(error).__name__}", str(error)[:300]
    finally:
        signal.alarm(0)


def result(folder: Path) -> object:
    """What a run found out, without times."""
    if not (folder / "summary.json").exists():
        return None
    summary = json.loads((folder / "summary.json").read_text())
    times = ("seconds", "images_per_second", "peak_memory_bytes")
    samples = (folder / "samples.csv").read_bytes() if (folder / "samples.csv").exists() else b""
    return {k: v for k, v in summary.items() if k not in times}, samples


@contextlib.contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    """The file with other content for a while; everything in its folder as before afterwards."""
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


def damage_files(rng: random.Random, tries: int) -> tuple[dict[str, Counter], list[str]]:
    """Every kind of input, damaged in many ways."""
    table, failures = {}, []
    for kind, (name, main, settings, checked) in KINDS.items():
        path, counts = Path(name), Counter()
        argv = [*SHORT, "clean_set=out.pt", "output_dir=out", *settings]
        folder = Path("phase2" if "output_dir=phase2" in settings else "out")
        with replaced(path, path.read_bytes()):
            state, line = try_main(main, argv)
            assert state == "ran", (kind, state, line)
            good = result(folder)
        for _ in range(tries):
            content = damaged(path.read_bytes(), rng)
            with replaced(path, content):
                state, line = try_main(main, argv)
                found = result(folder) if state == "ran" else None
                left = [p.name for p in Path().rglob(".*.*") if p.is_file()]
            if state == "ran":
                state = "harmless" if found == good else "read as other content"
            bad = state not in ("refused", "harmless", "read as other content") or (
                checked and state == "read as other content"
            )
            if bad or left or Path("executed").exists():
                failures.append(
                    f"{kind}: {state} {left or ''} {'EXECUTED' if Path('executed').exists() else ''} {line}"
                )
                Path(f"failed-{len(failures)}").write_bytes(content)
                Path("executed").unlink(missing_ok=True)
                state = "failed"
            counts[state] += 1
        table[kind] = counts
        print(f"{kind:<32} {dict(counts)}", flush=True)
    return table, failures


# -------------------------------------------------------------- random settings

WORDS = ["", "x", "-1", "0", "1", "3", "1e9", "nan", "inf", "true", "null", "[]", "[a, b]", "{a: 1}", "é", "'", "\x00", "../..", "/dev/null", "2020-13-45", "0x", "1_0", "~"]  # fmt: skip


def random_value(rng: random.Random, name: str) -> str:
    """A value for a key: often a good one, else anything."""
    choices = LIMITS[name]["choices"]
    if choices and rng.random() < 0.8:
        return str(rng.choice(choices)).lower()
    if rng.random() < 0.5:
        return rng.choice(WORDS)
    kind = str(TYPES[name])
    if "bool" in kind:
        return rng.choice(("true", "false"))
    return str(rng.randrange(0, 5)) if "int" in kind else f"{rng.uniform(0, 1):.3g}"


def random_lines(rng: random.Random, tries: int) -> tuple[Counter, list[str]]:
    """Random command lines and settings files for random scripts."""
    import importlib

    mains = {name: importlib.import_module(name).main for name in SCRIPTS}
    # What would fetch, take hours or write elsewhere stays as it is.
    held = {"pretrained", "backbone", "data_root", "download", "output_dir", "weights_dir", "noise_file", "clean_set", "device",
            "max_steps", "epochs", "n_ctx", "resolution", "cache_dir", "batch_size", "num_workers"}  # fmt: skip
    names = [f.name for f in fields(Config) if f.name not in held]
    counts, failures = Counter(), []
    for _ in range(tries):
        settings = [f"{name}={random_value(rng, name)}" for name in rng.sample(names, rng.randrange(0, 4))]
        settings += rng.choice(
            ([], [], [], ["--help"], ["--resume"], ["=", "--"], [rng.choice(WORDS)], ["--seed", "1"], ["--noise_mode"])
        )
        script = rng.choice(SCRIPTS)
        clean_set = "given.npy" if script.endswith("phase2") else "random.pt"
        argv = [*SHORT, "output_dir=random", f"clean_set={clean_set}", *settings]
        state, line = try_main(mains[script], argv)
        counts[state if state in ("ran", "refused") else "failed"] += 1
        if state not in ("ran", "refused"):
            failures.append(f"{script} {argv}: {state} {line}")
    return counts, failures


# ------------------------------------------------------------------- the report


def markdown(kills: Counter, terms: Counter, table: dict[str, Counter], lines: Counter, seed: int) -> str:
    """The measured part of docs/reliability.md."""
    kinds = ("refused", "harmless", "read as other content", "failed")
    rows = [
        f"| {kind} | {sum(c.values())} | " + " | ".join(str(c[k]) for k in kinds) + " |" for kind, c in table.items()
    ]
    total = [str(sum(c[k] for c in table.values())) for k in kinds]
    return "\n".join(
        [
            f"`python scripts/torture.py --seed {seed}`:",
            "",
            "| signal | sent to a run at a random moment | results compared | results that differ | tracebacks |",
            "|---|---|---|---|---|",
            f"| SIGKILL | {kills['stopped']} | {kills['compared']} | {kills['differs']} | {kills['traceback']} |",
            f"| SIGTERM | {terms['stopped']} | {terms['compared']} | {terms['differs']} | {terms['traceback']} |",
            "",
            "| damaged input | tries | " + " | ".join(kinds) + " |",
            "|---|---|---|---|---|---|",
            *rows,
            f"| all | {sum(sum(c.values()) for c in table.values())} | " + " | ".join(total) + " |",
            "",
            f"Random settings and command lines: {sum(lines.values())}; {lines['ran']} ran, {lines['refused']} were refused with one line, {lines['failed']} failed.",
            "",
        ]
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--terms", type=int, default=20)
    parser.add_argument("--damages", type=int, default=106, help="tries for each of the kinds of files")
    parser.add_argument("--configs", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file whose part after the line '<!-- measured -->' is written anew")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    out = args.out.resolve() if args.out else None
    work = Path(tempfile.mkdtemp(prefix="torture-"))
    os.chdir(work)
    Path("tiny.json").write_text(json.dumps(TINY_CLIP))
    Path("tiny.yaml").write_text(
        "dataset: digits\nbackbone: tiny.json\npretrained: none\nvpt_deep: true\nvpt_len: 2\nn_ctx: 4\nlr: 5e-2\nbatch_size: 128\n"
    )
    with contextlib.redirect_stdout(io.StringIO()):
        write_inputs()
    kills = kill_runs(rng, signal.SIGKILL, args.kills)
    print("SIGKILL", dict(kills), flush=True)
    terms = kill_runs(rng, signal.SIGTERM, args.terms)
    print("SIGTERM", dict(terms), flush=True)
    table, failures = damage_files(rng, args.damages)
    lines, more = random_lines(rng, args.configs)
    print("random settings", dict(lines), flush=True)
    text = markdown(kills, terms, table, lines, args.seed)
    print(text)
    for failure in [*failures, *more][:50]:
        print("FAILED", failure)
    if out is not None:
        head = out.read_text(encoding="utf-8").split("<!-- measured -->")[0]
        out.write_text(head + "<!-- measured -->\n\n" + text, encoding="utf-8")
    bad = failures or more or any(c[k] for c in (kills, terms) for k in ("differs", "traceback", "wrong exit code"))
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
