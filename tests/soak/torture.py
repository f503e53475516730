"""Hours of bad luck in minutes: killed runs, full disks, damaged files, random settings. Its table: docs/reliability.md.

    python tests/soak/torture.py --results torture --out docs/reliability.md                 # everything
    python tests/soak/torture.py --results torture --only kills,faults --out docs/reliability.md
    python tests/soak/torture.py --results torture --only damages --out docs/reliability.md  # beside it, on another core
    python tests/soak/torture.py --kills 5 --terms 2 --faults 2 --damages 10 --configs 200   # does it work?

Each part leaves its counts in the folder of --results; the table is made of all that are there. Everything happens in a
temporary folder, on the digits and a tiny CLIP. Runs are forked from this process, which has its imports behind it, so
that random moments fall into the run itself. A try fails if it ends in a traceback, hangs, runs foreign code, leaves a
half-written file, or ends well with another result than the undisturbed run has.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import open_clip  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import datasets.readers.digits  # noqa: E402
import main_baseline  # noqa: E402
import main_phase1  # noqa: E402
import main_phase2  # noqa: E402
import utils.run.run  # noqa: E402
from utils.config import LIMITS, SCRIPTS, TYPES, Config  # noqa: E402

TINY_CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
BASE = ("--cfg", "tiny.yaml")
SHORT = (*BASE, "epochs=1", "max_steps=1", "num_workers=0")
HANG = 300  # seconds after which a try counts as hanging
Table = dict[str, Counter]  # how tries ended, by what was tried


class Evil:
    """A pickle that touches a file where it is read without care."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


# ------------------------------------------------------------ runs of their own


class HangError(BaseException):
    """A try took too long; nothing in a script catches it."""


@dataclass
class Child:
    """A run in a process of its own."""

    process: int
    log: Path
    code: int | None = None  # minus a signal's number if that ended it

    def wait(self, seconds: float = HANG) -> bool:
        """Wait at most so long; whether it has ended."""
        end = time.monotonic() + seconds
        while self.code is None:
            done, status = os.waitpid(self.process, os.WNOHANG)
            if done:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                return False
            else:
                time.sleep(0.002)
        return True

    def end(self, number: int | None = None) -> str:
        """Send a signal, wait for the end, and say what came of it: the exit code, or what must not be."""
        if number is not None and self.code is None:
            os.kill(self.process, number)
        if not self.wait():
            os.kill(self.process, signal.SIGKILL)
            self.wait()
            return "hang"
        errors = self.log.read_text(errors="replace")
        if "Traceback" in errors:
            print(errors[-3000:], flush=True)
            return "traceback"
        refused = self.code == 2 and (errors.strip().splitlines() or [""])[-1].startswith("error: ")
        return "no error line" if self.code == 2 and not refused else str(self.code)


def start(main: Callable, argv: list[str], before: Callable[[], object] = lambda: None) -> Child:
    """Fork a run; `before` happens in it first."""
    log = Path("child.log").absolute()
    sys.stdout.flush()
    process = os.fork()
    if process:
        return Child(process, log)
    code: object = 1
    try:
        for stream, name in ((1, os.devnull), (2, log)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        before()
        main(argv)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


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
        "half-written": [p.name for p in Path(folder).glob(".*")],
    }


class Victim:
    """A script's run that bad luck befalls: `folder`, beside `folder`-whole, where it had none."""

    def __init__(self, name: str, tag: str) -> None:
        self.main, self.settings = VICTIMS[name]
        self.folder = name.replace(" ", "") + tag
        began = time.perf_counter()
        assert start(self.main, self.command(f"{self.folder}-whole")).end() == "0"
        self.seconds = time.perf_counter() - began
        self.expected = outcome(f"{self.folder}-whole")

    def command(self, where: str) -> list[str]:
        """Its command line, for any folder."""
        settings = [s.format(folder=where) for s in self.settings]
        return [*BASE, "epochs=6", "batch_size=32", "num_workers=0", *settings, f"output_dir={where}"]

    def start(self, before: Callable[[], object] = lambda: None) -> Child:
        """Begin it, or go on with it."""
        return start(self.main, [*self.command(self.folder), "--resume"], before)

    def compare(self, counts: Counter) -> None:
        """It has ended: count whether as it should, and clear it away."""
        counts["compared"] += 1
        counts["differs"] += outcome(self.folder) != self.expected
        shutil.rmtree(self.folder)
        for suffix in (".pt", ".json"):
            Path(self.folder + suffix).unlink(missing_ok=True)


VICTIMS = {
    "phase 1": (main_phase1.main, ["clean_set={folder}.pt"]),
    "phase 2": (main_phase2.main, ["clean_set=given.npy", "finetune=true", "vpt_deep=false"]),
    "GMM": (main_baseline.main, ["--lnl_methods", "GMM", "clean_set={folder}.pt"]),
}


def shares(tries: int) -> dict[str, int]:
    """Tries for each script, `tries` in all."""
    return {name: tries // len(VICTIMS) + (i < tries % len(VICTIMS)) for i, name in enumerate(VICTIMS)}


# ------------------------------------------------------------------ killed runs


def kill_runs(rng: random.Random, number: int, tries: int) -> Counter:
    """Send runs a signal at random moments from their first to their last, go on until they end, and compare."""
    counts: Counter = Counter()
    for name, share in shares(tries).items():
        victim, done = Victim(name, f"-signal{number}"), 0
        while done < share:
            run = victim.start()
            run.wait(rng.uniform(0, 1) * victim.seconds)
            ended = run.end(number)
            if ended == "0":  # it had ended before: compare, and begin again
                victim.compare(counts)
                continue
            done += 1
            expected = {str(-number)} if number == signal.SIGKILL else {str(128 + number), str(-number)}
            counts["stopped" if ended in expected else "failed"] += 1
            counts["had a checkpoint"] += Path(victim.folder, "checkpoint.pt").exists()
            counts["while saving"] += any(Path(victim.folder).glob(".*"))
        counts["failed"] += victim.start().end() != "0"
        victim.compare(counts)
        print(f"{signal.Signals(number).name}, up to {name:<14} {dict(counts)}", flush=True)
    return counts


# ------------------------------------------------------- disks, folders and clocks


def limited(size: int) -> None:
    """No file may grow larger than so many bytes, as if the disk were full then."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def jumping(seed: int) -> None:
    """A clock that shows anything from 1970 to 2100."""
    rng = random.Random(seed)
    time.time = lambda: rng.uniform(0, 4.1e9)
    time.time_ns = lambda: int(time.time() * 1e9)


def full_disk(victim: Victim, rng: random.Random) -> str:
    """Files may not grow beyond a random size: settings, log, checkpoint, whatever comes there first."""
    largest = max(p.stat().st_size for p in Path(f"{victim.folder}-whole").iterdir())
    limit = int(1024 * (largest / 1024) ** rng.uniform(0, 1))  # what it says on stderr must fit into its log
    return victim.start(lambda: limited(limit)).end()


def full_file_system(victim: Victim, rng: random.Random) -> str:
    """A file system of 2 MB that something else fills at a random moment."""
    Path(victim.folder).mkdir()
    if not mounted("-t", "tmpfs", "-o", "size=2m", "tmpfs", victim.folder):
        return "not possible here"
    run = victim.start()
    run.wait(rng.uniform(0, 1) * victim.seconds)
    with contextlib.suppress(OSError), Path(victim.folder, "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    ended = run.end()
    Path(victim.folder, "filler").unlink()
    shutil.copytree(victim.folder, f"{victim.folder}-kept")
    subprocess.run(["umount", "--lazy", victim.folder], check=True)
    shutil.rmtree(victim.folder)
    Path(f"{victim.folder}-kept").rename(victim.folder)
    return ended


def vanished_folder(victim: Victim, rng: random.Random) -> str:
    """The run folder is moved away at a random moment and comes back after the end of the run."""
    run = victim.start()
    run.wait(rng.uniform(0, 1) * victim.seconds)
    if not Path(victim.folder).exists():
        return run.end()
    Path(victim.folder).rename("away")
    ended = run.end()
    shutil.rmtree(victim.folder, ignore_errors=True)
    Path("away").rename(victim.folder)
    return ended


def read_only_folder(victim: Victim, rng: random.Random) -> str:
    """The run folder, with what an earlier run left in it, can only be read."""
    run = victim.start()
    run.wait(rng.uniform(0, 1) * victim.seconds)
    run.end(signal.SIGKILL)
    Path(victim.folder).mkdir(exist_ok=True)
    if not mounted("--bind", victim.folder, victim.folder) or not mounted("-o", "remount,bind,ro", victim.folder):
        return "not possible here"
    ended = victim.start().end()
    subprocess.run(["umount", "--lazy", victim.folder], check=True)
    return ended


def jumping_clock(victim: Victim, rng: random.Random) -> str:
    """The system's clock shows anything, before and after a SIGTERM."""
    seed = rng.randrange(10**6)
    run = victim.start(lambda: jumping(seed))
    run.wait(rng.uniform(0, 1) * victim.seconds)
    ended = run.end(signal.SIGTERM)
    return victim.start(lambda: jumping(seed + 1)).end() if ended in ("143", "-15") else ended


def mounted(*arguments: str) -> bool:
    """Whether mounting works here."""
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


FAULTS = {
    "files that cannot grow": full_disk,
    "full file system": full_file_system,
    "vanished run folder": vanished_folder,
    "read-only run folder": read_only_folder,
    "clock that jumps": jumping_clock,
}


def fault_runs(rng: random.Random, tries: int) -> Table:
    """Befall runs with each of the faults; then go on without it, and compare."""
    table: Table = {fault: Counter() for fault in FAULTS}
    victims = {name: Victim(name, "-fault") for name in VICTIMS}
    for fault, befall in FAULTS.items():
        counts = table[fault]
        for name, share in shares(tries).items():
            for _ in range(share):
                ended = befall(victims[name], rng)
                if ended == "not possible here":
                    shutil.rmtree(victims[name].folder)
                    continue
                counts[{"0": "ended well", "2": "one line"}.get(ended, "failed")] += 1
                counts["failed"] += victims[name].start().end() != "0"
                victims[name].compare(counts)
        print(f"{fault:<32} {dict(counts)}", flush=True)
    return table


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
    """('ran' or 'refused' or what went wrong, the lines on stderr)."""
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


def damage_files(rng: random.Random, tries: int) -> tuple[Table, list[str]]:
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

WORDS = ["", "x", "-1", "0", "1", "3", "1e9", "nan", "inf", "true", "null", "[]", "[a, b]", "{a: 1}", "é", "'", "../..", "/dev/null", "2020-13-45", "0x", "1_0", "~",
         "!!bool x", "!!timestamp x", "[" * 500, "9" * 5000, "&a [*a]", "x" * 5000, "\udcff", "99999999999"]  # fmt: skip
# What would fetch, take minutes or write elsewhere stays as it is.
HELD = {"download", "output_dir", "weights_dir", "clean_set", "cache_dir", "max_steps", "epochs", "compile"}
KEYS = [f.name for f in fields(Config) if f.name not in HELD]
ODD_WORDS = ([], [], [], [], ["--help"], ["--resume"], ["=", "--"], ["--seed", "1"], ["--noise_mode"], ["--cfg"])


def random_value(rng: random.Random, name: str) -> str:
    """A value for a key: often a good one, else anything."""
    choices = LIMITS[name]["choices"]
    if choices and rng.random() < 0.8:
        return str(rng.choice(choices)).lower()
    if rng.random() < 0.5 or name in ("pretrained", "backbone"):
        return rng.choice(WORDS)
    kind = str(TYPES[name])
    if "bool" in kind:
        return rng.choice(("true", "false"))
    return str(rng.randrange(0, 5)) if "int" in kind else f"{rng.uniform(0, 1):.3g}"


def random_content(rng: random.Random, depth: int = 0) -> object:
    """What YAML can hold, nested."""
    kinds: list[Callable[[], object]] = [
        lambda: None, lambda: rng.random() < 0.5, lambda: rng.randrange(-3, 10**rng.randrange(1, 30)), lambda: rng.uniform(-1, 1),
        lambda: float(rng.choice(("nan", "inf", "1e300"))), lambda: rng.choice(WORDS[:-2]), lambda: rng.randbytes(5),
        lambda: "".join(chr(rng.randrange(1, 0xD7FF)) for _ in range(rng.randrange(8))),
    ]  # fmt: skip
    if depth < 4:
        kinds += [
            lambda: [random_content(rng, depth + 1) for _ in range(rng.randrange(4))],
            lambda: {str(random_content(rng, 9)): random_content(rng, depth + 1) for _ in range(rng.randrange(4))},
        ]
    return rng.choice(kinds)()


def random_file(rng: random.Random) -> bytes:
    """A settings file: the good one, with random keys, random lines, other bytes, or damage."""
    good = Path("tiny.yaml").read_bytes()
    names = [*KEYS, *SCRIPTS, "x"]

    def more_keys() -> bytes:
        content = {rng.choice(names): random_content(rng) for _ in range(rng.randrange(1, 4))}
        return good + yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "backslashreplace")

    def more_lines() -> bytes:
        lines = [f"{name}: {random_value(rng, name)}\n" for name in rng.sample(KEYS, rng.randrange(1, 3))]
        return good + "".join(lines).encode("utf-8", "surrogateescape")

    return rng.choice((lambda: good, more_keys, more_lines, more_lines, lambda: damaged(good, rng)))()


def random_lines(rng: random.Random, tries: int) -> tuple[Table, list[str]]:
    """Random command lines and settings files for random scripts."""
    mains = {name: importlib.import_module(name).main for name in SCRIPTS}
    table: Table = {"command line": Counter(), "settings file": Counter()}
    failures: list[str] = []
    for n in range(tries):
        kind = list(table)[n % 2]
        typed = [f"{name}={random_value(rng, name)}" for name in rng.sample(KEYS, rng.randrange(1, 5))]
        typed += rng.choice((*ODD_WORDS, [rng.choice(WORDS)]))
        Path("random.yaml").write_bytes(random_file(rng))
        # Without a backbone, a file means ViT-B/16, which takes minutes here.
        file, typed = ("tiny.yaml", typed) if kind == "command line" else ("random.yaml", ["backbone=tiny.json"])
        script = rng.choice(SCRIPTS)
        clean_set = "given.npy" if script.endswith("phase2") else "random.pt"
        held = ["epochs=1", "max_steps=1", "num_workers=0", "download=false", "compile=false", "output_dir=random"]
        state, line = try_main(mains[script], ["--cfg", file, *typed, *held, f"clean_set={clean_set}"])
        if state not in ("ran", "refused") or Path("executed").exists():
            failures.append(f"{script} {typed} {state} {line[-2000:]}")
            shutil.copy("random.yaml", f"failed-{len(failures)}.yaml")
            state = "failed"
        table[kind][state] += 1
        shutil.rmtree("random", ignore_errors=True)
    return table, failures


# ------------------------------------------------------------------- the report

DISTURBED = ("stopped", "had a checkpoint", "while saving", "compared", "differs", "failed")
FAULTED = ("ended well", "one line", "compared", "differs", "failed")
DAMAGED = ("refused", "harmless", "read as other content", "failed")
TYPED = ("ran", "refused", "failed")
# What a part is called in the report, its columns, and whether all its rows make up a total.
HEADINGS = {
    "kills": ("signal at a random moment", DISTURBED, False),
    "faults": ("fault", FAULTED, False),
    "damages": ("damaged input", DAMAGED, True),
    "configs": ("random settings", TYPED, True),
}


def markdown(parts: dict[str, Table]) -> str:
    """The measured part of docs/reliability.md."""
    lines: list[str] = []
    for part, (title, columns, total) in HEADINGS.items():
        table = dict(parts.get(part, {}))
        if not table:
            continue
        tries = {row: sum(counts[c] for c in columns if c not in NO_TRIES) for row, counts in table.items()}
        lines += [f"| {title} | tries | {' | '.join(columns)} |", "|---|" + "--:|" * (len(columns) + 1)]
        rows = [(row, tries[row], *(counts[c] for c in columns)) for row, counts in table.items()]
        if total:
            rows.append(("all", *(sum(row[i] for row in rows) for i in range(1, len(columns) + 2))))
        lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


NO_TRIES = ("had a checkpoint", "while saving", "compared", "differs")  # said of tries that another column counts


def gathered(folder: Path) -> dict[str, Table]:
    """What earlier calls counted, by part; calls with different seeds add up."""
    parts: dict[str, Table] = {}
    for path in sorted(folder.glob("*.json")):
        table = parts.setdefault(path.stem.split("-")[0], {})
        for row, counts in json.loads(path.read_text()).items():
            table.setdefault(row, Counter()).update(counts)
    return parts


def run_part(part: str, args: argparse.Namespace) -> tuple[Table, list[str]]:
    """Do one part, with chances of its own."""
    rng = random.Random(f"{part} {args.seed}")
    if part == "damages":
        return damage_files(rng, args.damages)
    if part == "configs":
        return random_lines(rng, args.configs)
    if part == "faults":
        table = fault_runs(rng, args.faults)
    else:
        table = {s.name: kill_runs(rng, s, n) for s, n in ((signal.SIGKILL, args.kills), (signal.SIGTERM, args.terms))}
    return table, [f"{row}: {dict(c)}" for row, c in table.items() if c["failed"] or c["differs"]]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(HEADINGS), help=f"parts to do (default: {','.join(HEADINGS)})")
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs")
    parser.add_argument("--terms", type=int, default=20, help="SIGTERMs")
    parser.add_argument("--faults", type=int, default=20, help="tries of each fault")
    parser.add_argument("--damages", type=int, default=106, help="tries of each kind of file")
    parser.add_argument("--configs", type=int, default=10000, help="settings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="folder of the parts' counts (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="file whose part after the line '<!-- measured -->' is written anew")
    args = parser.parse_args()
    chosen = args.only.split(",")
    if unknown := set(chosen) - set(HEADINGS):
        parser.error(f"--only: there is no part {', '.join(unknown)}; choose from {', '.join(HEADINGS)}")
    out = args.out.resolve() if args.out else None
    memory = Path("/dev/shm")  # waiting for a disk to have written a file would take most of the time
    work = Path(tempfile.mkdtemp(prefix="torture-", dir=memory if memory.is_dir() else None))
    results = args.results.resolve() if args.results else work / "results"
    results.mkdir(parents=True, exist_ok=True)
    failures = in_folder(work, chosen, args, results)
    text = markdown(gathered(results))
    print(f"\n{text}")
    for failure in failures[:50]:
        print("FAILED", failure)
    if out is not None:
        head = out.read_text(encoding="utf-8").split("<!-- measured -->")[0]
        out.write_text(f"{head}<!-- measured -->\n\n{text}", encoding="utf-8")
    if failures:
        print(f"what failed is in {work}")
        raise SystemExit(1)
    shutil.rmtree(work)


def in_folder(work: Path, chosen: list[str], args: argparse.Namespace, results: Path) -> list[str]:
    """Do the chosen parts in a folder of their own, and say what failed."""
    os.chdir(work)
    # Read once: these are the same in every run, and take longer than all the rest of a short one.
    for module, name in (
        (open_clip, "SimpleTokenizer"),
        (datasets.readers.digits, "load_digits"),
        (utils.run.run, "version"),
        (utils.run.run, "_git_commit"),
    ):
        setattr(module, name, functools.cache(getattr(module, name)))
    signal.signal(signal.SIGALRM, _hangs)
    Path("tiny.json").write_text(json.dumps(TINY_CLIP))
    Path("tiny.yaml").write_text(
        "dataset: digits\nbackbone: tiny.json\npretrained: none\nvpt_deep: true\nvpt_len: 2\nn_ctx: 4\nlr: 5e-2\nbatch_size: 128\n"
    )
    with contextlib.redirect_stdout(io.StringIO()):
        write_inputs()
    failures: list[str] = []
    for part in chosen:
        began = time.perf_counter()
        table, failed = run_part(part, args)
        failures += failed
        print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)
        (results / f"{part}-{args.seed}.json").write_text(json.dumps(table, indent=1) + "\n")
    os.chdir(ROOT)
    return failures


def _hangs(number: int, frame: object) -> None:
    raise HangError


if __name__ == "__main__":
    main()
