"""The comparisons, by name: what runs on each side, and which numbers must agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.measure import Case
from benchmarks.suites.data import image_input, noise
from benchmarks.suites.evaluation import evaluation
from benchmarks.suites.phase1 import phase1
from benchmarks.suites.phase2 import phase2
from benchmarks.suites.safety import safety
from benchmarks.suites.text import scaling, text
from benchmarks.workload import Bench

SUITES: dict[str, Callable[[Bench], Iterator[Case]]] = {
    "text": text,
    "scaling": scaling,
    "phase1": phase1,
    "phase2": phase2,
    "eval": evaluation,
    "noise": noise,
    "input": image_input,
    "safety": safety,
}
