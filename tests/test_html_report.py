"""report.html: its content, its robustness to any names and images, and its behaviour in a browser."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from browser import CHROMEDRIVER, CHROMIUM, browser, wait_for
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

import main_phase1
import main_real_phase1
import main_small_loss
from datasets import Data, NoisyImages
from datasets.images.files import read_image
from datasets.thumbnails import thumbnails
from utils.config.catalog import DATASETS
from utils.report import page as page_module
from utils.report import report
from utils.report.audit import Audit
from utils.report.charts import draw_lines
from utils.report.findings import Line, LineChart, summarise
from utils.report.page import TEMPLATES, RunFacts, write_report
from utils.selection.scores import SampleScores

NAMES = ["cat", "قطة", "猫", "</script><script>window.hacked=1</script>", "\"dog\" & 'wolf'"]
FACTS = RunFacts("pets, real", "p_clean > 0.5", {"seed": "0"}, {"output/a&b/samples.csv": "every sample"})
HISTORY = [
    {"epoch": 1, "loss": 2.5, "test_accuracy": 50.0, "train_seconds": 1.0},
    {"epoch": 2, "loss": float("nan"), "test_accuracy": 62.5, "train_seconds": 1.0},
]


def data_of(train: NoisyImages, names: list[str]) -> Data:
    return Data(train, None, names, DATASETS["image_folder"].recipe)


def pets(n: int = 40, *, truth: bool = True, ids: list[str] | None = None, names: list[str] | None = None) -> Data:
    """Data of n random 16x16 images: the k-th is labelled k mod 5, every third one wrongly."""
    names = NAMES if names is None else names
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=draw)
    given = torch.arange(n) % len(names)
    true = torch.where(torch.arange(n) % 3 == 0, (given + 1) % len(names), given)
    train = NoisyImages(
        "pets", ids or [f"pets/{i}.png" for i in range(n)], images, given, true if truth else None, "real"
    )
    return data_of(train, names)


def scored(data: Data, *, suspicious: slice = slice(0, None, 3), suggest: int = 1) -> SampleScores:
    """Scores that reject every third sample and suggest the next class; later samples have higher scores."""
    n = len(data.train)
    selected = torch.ones(n, dtype=torch.bool)
    selected[suspicious] = False
    score = torch.where(selected, 0.9, 0.1) + torch.arange(n) / (20 * n)
    suggested = torch.where(selected, data.train.given, (data.train.given + suggest) % len(data.class_names))
    scores = SampleScores(n, data.train.is_clean)
    scores.set_selection(torch.arange(n), selected=selected, score=score)
    scores.suggested[:] = suggested
    return scores


def written(folder: Path, data: Data | None = None, scores: SampleScores | None = None, **more) -> str:
    data = pets() if data is None else data
    more = {"history": HISTORY, "run_facts": FACTS, **more}
    write_report(folder / "report.html", data=data, scores=scores or scored(data), **more)
    return (folder / "report.html").read_text(encoding="utf-8")


def content(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def charts_of(page: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", page, re.S)


def visible_text(page: str) -> str:
    """The text of the page, without its style, scripts and tags."""
    page = re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


# -------------------------------------------------------------- the findings


def test_findings_counted_by_hand():
    data = pets(30)
    found = summarise(data, scored(data), HISTORY)
    assert found.suspicious.tolist() == list(range(0, 30, 3))
    assert found.suspicious_share == pytest.approx(100 / 3)
    assert {c.name: (c.n, c.rate) for c in found.classes} == {name: (6, pytest.approx(100 / 3)) for name in NAMES}
    assert set(found.pairs) == {(name, NAMES[(i + 1) % 5], 2) for i, name in enumerate(NAMES)}
    assert found.quality == {"precision": 100, "recall": 100, "f1": pytest.approx(100)}
    assert {name: sum(counts) for name, counts in found.histogram.items()} == {
        "label is right": 20,
        "label is wrong": 10,
    }
    assert sum(found.histogram["label is wrong"][:8]) == 10  # their scores are below 0.2
    loss = next(chart for chart in found.charts if chart.name == "losses").lines[0]
    assert (loss.x, loss.y) == ([1], [2.5])  # a loss that is not finite is left out


def test_the_lowest_score_comes_first_and_the_order_decides_ties():
    data, scores = pets(9), scored(pets(9), suspicious=slice(0, 6))
    scores.score[:6] = torch.tensor([0.3, 0.1, 0.2, 0.1, 0.3, 0.0])
    assert summarise(data, scores, []).suspicious.tolist() == [5, 1, 3, 2, 0, 4]


def test_curves_are_scikit_learn_s_and_comparisons_may_score_fewer_samples():
    data = pets(300)
    scores = scored(data)
    scores.score[:] = torch.rand(300, generator=torch.Generator().manual_seed(1))
    partial = scores.score.clone()
    partial[:100] = torch.nan
    charts = {c.name: c for c in summarise(data, scores, [], comparisons={"partial": partial}).charts}
    truth, score = data.train.is_clean.numpy(), scores.score.numpy()
    own, other = charts["precision_recall"].lines
    assert own.name == f"this run (AP {100 * average_precision_score(truth, score):.1f})"
    assert other.name == f"partial (AP {100 * average_precision_score(truth[100:], score[100:]):.1f})"
    assert charts["roc"].lines[0].name == f"this run (AUC {100 * roc_auc_score(truth, score):.1f})"
    assert len(own.x) <= 200
    assert own.x == sorted(own.x)
    assert (own.x[0], own.x[-1]) == (0, 100)


def test_no_curves_where_every_label_is_right():
    data = pets(20)
    train = NoisyImages("pets", data.train.ids, data.train.images, data.train.given, data.train.given)
    clean = data_of(train, NAMES)
    assert not [c for c in summarise(clean, scored(clean), []).charts if c.name in ("roc", "precision_recall")]


def test_an_audit_s_estimates_replace_counts(tmp_path):
    audit = Audit(
        noise_rate=31.25,
        interval=(28.5, 33.75),
        by_class=[("猫", 8, 62.5, 51.5, 70.5)],
        pairs=[],
        confusion=np.zeros((5, 5), dtype=np.int64),
        missed=[],
        caught=None,
        n_samples=40,
        n_injected=0,
    )
    page = visible_text(written(tmp_path, audit=audit))
    assert "label issues, estimated 31.2 % 28.5 to 33.8 %" in page
    assert "62 % (52 to 70) of 8" in page
    assert "cat → قطة 3" in page  # no pairs in the audit: counted
    # The audit's shares are not those of the suspicious samples, which alone the page can show.
    assert "Estimated share of wrong labels per given class. Select a class to show its suspicious samples." in page
    page = visible_text(written(tmp_path, audit=replace(audit, pairs=[("猫", "cat", 7)])))
    assert "猫 → cat 7" in page
    assert "cat → قطة 3" not in page


# ------------------------------------------------------------------ the page


def test_headlines_say_what_was_found(tmp_path):
    data = pets(40)
    scores = scored(data)
    scores.score[30:] = torch.nan
    text = visible_text(written(tmp_path, data, scores))
    assert "30 10 of 40 were not scored" in text
    assert "10 of 30 labels are suspicious" in text
    assert "best test accuracy 62.5 % 62.5 % after the last epoch" in text
    selected, clean = scores.selected, data.train.is_clean
    assert f"recall {100 * int((selected & clean).sum()) / int(clean.sum()):.1f} %" in text


def test_without_truth_nothing_is_claimed_about_it(tmp_path):
    with_truth = written(tmp_path / "a")
    without = written(tmp_path / "b", pets(truth=False))
    for word in ("F1 against the true labels", "ROC", "label is wrong"):
        assert word in visible_text(with_truth)
        assert word not in visible_text(without)
    assert content(with_truth)["true"][:2] == [1, 4]
    assert content(without)["true"] is None
    assert len(charts_of(with_truth)) == 5
    assert len(charts_of(without)) == 3  # without precision-recall and ROC


def test_names_and_ids_cannot_break_out_of_the_page(tmp_path):
    evil = [f'</script><img src=x onerror="window.hacked=1">{i}&amp;\u2028' for i in range(40)]
    facts = RunFacts("<script>t</script>", "<b>", {"<i>": "</dd>"}, {'"><script>': "<u>"})
    page = written(tmp_path, pets(ids=evil), run_facts=facts, comparisons={"<em>": torch.linspace(0, 1, 40)})
    assert len(re.findall("<script", page)) == len(re.findall("</script", page)) == 2
    assert not re.search(r"<(img src|b>|i>|u>|em>|script>t)", page)
    assert content(page)["ids"] == evil[0::3]
    assert content(page)["classes"] == NAMES
    assert "<script>t</script>" in html.unescape(re.search("<h1.*?</h1>", page)[0])


def test_no_name_changes_how_a_number_is_filtered(tmp_path):
    """Two classes of one name stay two classes."""
    data = content(written(tmp_path, pets(names=["cat", "cat", "dog"])))
    assert data["given"] == [0] * 14
    assert data["suggested"] == [1] * 14


def test_the_page_references_nothing_outside(tmp_path):
    page = written(tmp_path)
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|url\(|@import|<link|<iframe|\bfetch\(|XMLHttpRequest|\ssrc=", page)
    assert re.findall(r'href="([^"]*)"', page) == ["#review", "#review"]


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    first, second = (written(tmp_path / k, comparisons={"other": torch.linspace(0, 1, 40)}) for k in ("a", "b"))
    assert first == second


def test_as_many_images_as_the_budget_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "MAX_IMAGE_BYTES", 50_000)
    data = pets(300)
    page = written(tmp_path, data)
    shown = content(page)
    n = len(shown["images"])
    assert 20 < n < 100
    assert len(shown["ids"]) == len(shown["given"]) == len(shown["scores"]) == len(shown["true"]) == n
    assert shown["ids"] == [f"pets/{i}.png" for i in range(0, 3 * n, 3)]
    assert 45_000 < sum(map(len, shown["images"])) <= 50_000
    assert f"The {n} with the lowest scores of 100" in visible_text(page)
    assert "The others are in samples.csv" in page
    assert len(page.encode()) < 150_000

    monkeypatch.setattr(page_module, "MAX_SHOWN", 7)
    assert len(content(written(tmp_path, data))["images"]) == 7
    monkeypatch.setattr(page_module, "MAX_IMAGE_BYTES", 0)
    assert "do not fit into this page" in written(tmp_path, data)


def test_limits_leave_room_for_ten_megabytes():
    """Images, and for each of them an id of the longest path that most systems allow."""
    assert page_module.MAX_IMAGE_BYTES + 260 * page_module.MAX_SHOWN + 1_000_000 < 10_000_000


def test_nothing_suspicious_and_nothing_scored(tmp_path):
    data = pets(10)
    page = written(tmp_path, data, scored(data, suspicious=slice(0, 0)))
    assert "None of 10 labels is suspicious." in page
    assert "There are none." in page
    assert content(page)["ids"] == []
    page = written(tmp_path, data, SampleScores(10, data.train.is_clean), history=[])
    assert "No label was scored." in page
    assert "10 of 10 were not scored" in page


def test_names_of_every_script_are_drawn_without_a_warning(tmp_path, recwarn, monkeypatch):
    warned: list[str] = []
    monkeypatch.setattr(logging.Logger, "callHandlers", lambda self, record: warned.append(record.getMessage()))
    names = ["$5 off$", "संस्कृत", "한국어", "a very long name of a class " * 5, "😀"]
    page = written(tmp_path, pets(names=names), comparisons={"$5 off$": torch.linspace(0, 1, 40)})
    assert "संस्कृत" in page
    assert "<bdi>한국어</bdi>" in page
    assert not [str(w.message) for w in recwarn if "Glyph" in str(w.message)]
    assert not warned


@pytest.mark.parametrize("n_lines", [1, 2, 6])
def test_lines_differ_without_colour_and_their_colours_follow_the_theme(n_lines):
    lines = [Line(f"line {k}", [1, 2, 3], [k, k + 1, 0.5]) for k in range(n_lines)]
    title, svg = draw_lines(LineChart("x", "Losses", "epoch", "loss <&>", lines))
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label").startswith("Losses. loss <&> over epoch: line 0 ends at 0.5")
    assert title == "Losses"
    texts = ["".join(e.itertext()) for e in root.iter("text")]
    assert {"epoch", "loss <&>", "1", "2", "3", *(line.name for line in lines)} <= set(texts)
    styles = [dict(rule.split(": ") for rule in e.get("style").split("; ")) for e in root.iter("path")]
    drawn = [style for style in styles if style.get("stroke", "").startswith("var(--s")]
    assert [style["stroke"] for style in drawn] == 2 * [
        f"var(--s{k})" for k in range(n_lines)
    ]  # lines, then the legend
    assert len({style.get("stroke-dasharray") for style in drawn}) == n_lines
    assert "#" not in svg  # neither a colour of its own nor a reference
    assert not any(name in element.attrib for element in root.iter() for name in ("id", "clip-path"))


def test_a_line_of_one_point_is_seen():
    lines = [Line("a", [1], [2.5]), Line("b", [1], [0.5])]
    _, svg = draw_lines(LineChart("x", "Losses", "epoch", "loss", lines))
    first, second, *_ = (
        e.get("d").split() for e in ElementTree.fromstring(svg).iter("path") if "--s" in e.get("style")
    )
    for _, left, y, _, right, same in (first, second):
        assert float(right) - float(left) > 100
        assert y == same
    assert first[2] != second[2]
    assert [e.text for e in ElementTree.fromstring(svg).iter("text")][0] == "1"  # and no other epoch


def test_bars_tell_their_range_and_count(tmp_path):
    svg = charts_of(written(tmp_path))[0]
    bars = ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter("title")]
    assert sum(int(bar.rpartition(": ")[2]) for bar in bars) == 40
    assert bars[0].startswith("0.9 to 0.925, label is right: ")
    assert bars[-1].startswith("0.125 to 0.15, label is wrong: ")
    fills = {e.get("style") for e in ElementTree.fromstring(svg).iter("path") if "fill: var" in e.get("style")}
    assert sorted("fill-opacity" in style for style in fills) == [False, True]  # filled and outlined


def test_contrast_of_text_and_lines_in_both_themes():
    """WCAG AA: 4.5 for text, 3 for lines, bars, borders of controls and the focus ring."""
    themes = re.findall(r":root \{(.*?)\}", (TEMPLATES / "report.css").read_text(), re.S)
    assert len(themes) == 2
    for theme in themes:
        colour = dict(re.findall(r"--([\w-]+): (#\w{6});", theme))
        for back in ("background", "card"):
            for text in ("text", "muted", "link"):
                assert contrast(colour[text], colour[back]) >= 4.5, (text, back)
            for mark in ("control", "focus", "keep", "relabel", "drop", *(f"s{i}" for i in range(6))):
                assert contrast(colour[mark], colour[back]) >= 3, (mark, back)
        for filled in ("accent", "keep", "relabel", "drop"):
            assert contrast(colour["on-accent"], colour[filled]) >= 4.5, filled


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        levels = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        return float(
            np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
        )

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


# ---------------------------------------------------------------- thumbnails


def decoded(picture: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture)))


def test_small_images_are_kept_exactly():
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = thumbnails(images, [2, 0], side=160, max_bytes=10**6)
    for picture, i in zip(pictures, [2, 0]):
        assert np.array_equal(np.asarray(decoded(picture).convert("RGB")), images[i].permute(1, 2, 0).numpy())


def test_files_become_thumbnails_and_unreadable_ones_none(tmp_path):
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (600, 1200, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_text("no image")
    Image.new("L", (40, 90), 128).save(tmp_path / "c.png")
    files = [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.png", "missing.png")]
    first, second, third, fourth = thumbnails(files, range(4), side=160, max_bytes=10**6)
    assert decoded(first).size == (160, 80)
    assert decoded(third).size == (40, 90)
    assert second is None
    assert fourth is None
    assert read_image(files[0], at_least=160).size == (600, 300)
    assert read_image(files[0]).size == (1200, 600)


# ------------------------------------------------------------- in a whole run


def test_a_run_writes_the_report_and_a_later_one_without_it_removes_it(workdir):
    tiny = ("--cfg", "tiny.yaml", "epochs=1", "max_steps=4", "output_dir=out", "clean_set=out/set.pt")
    main_phase1.main([*tiny, "report=true"])
    page = Path("out/report.html").read_text(encoding="utf-8")
    table = list(csv.DictReader(Path("out/samples.csv").read_text().splitlines()))
    suspicious = [r for r in table if r["is_clean"] == "False" and r["label_score"]]
    suspicious.sort(key=lambda r: float(r["label_score"]))
    assert content(page)["ids"] == [r["sample_id"] for r in suspicious][: len(content(page)["ids"])]
    assert "785 of 1,297 were not scored" in visible_text(page)  # 4 batches of 128
    assert len(charts_of(page)) == 5
    assert "report.html" in Path("out/log.txt").read_text()

    main_phase1.main([*tiny])
    assert not Path("out/report.html").exists()


@pytest.mark.parametrize("main", [main_phase1, main_real_phase1])
def test_label_match_is_compared_by_the_scores_that_its_own_script_writes(workdir, monkeypatch, main):
    tiny = ("--cfg", "tiny.yaml", "epochs=1", "max_steps=4", "clean_set=set.pt")
    seen, original = {}, report.report_selection

    def spy(*args, comparisons, **more):
        seen.update(comparisons)
        return original(*args, comparisons=comparisons, **more)

    monkeypatch.setattr(report, "report_selection", spy)
    main.main([*tiny, "report=true", "audit_injection=0.1", "output_dir=out"])  # not the injected labels' scores
    main_small_loss.main([*tiny, "strategy=label_match", "output_dir=match"])
    table = list(csv.DictReader(Path("match/samples.csv").read_text().splitlines()))
    scores = np.array([float(row["label_score"] or "nan") for row in table], dtype=np.float32)
    assert np.array_equal(seen["label-match"].numpy(), scores, equal_nan=True)
    known = np.isfinite(scores)
    assert known.sum() == 4 * 128
    truth = np.array([row["given_label"] == row["true_label"] for row in table])[known]
    text = visible_text(Path("out/report.html").read_text(encoding="utf-8"))
    for name, value in (("AP", average_precision_score), ("AUC", roc_auc_score)):
        assert f"label-match ({name} {100 * value(truth, scores[known]):.1f})" in text


@pytest.mark.parametrize("settings", [["selection=final"], ["report=true", "noise_ratio=0"]])
def test_no_pass_for_curves_that_are_not_drawn(workdir, monkeypatch, settings):
    def built(*_):
        raise AssertionError("label-match was built")

    monkeypatch.setattr(report, "build_zero_shot", built)
    main_phase1.main(["--cfg", "tiny.yaml", "epochs=1", "max_steps=1", *settings])


# --------------------------------------------------------------- in a browser

needs_browser = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    with browser(folder) as window:
        window.folder = folder  # of downloads
        yield window


@pytest.fixture
def show(window, tmp_path):
    """Write a report and open it, with no decisions stored before."""

    def open_report(*args, **more):
        written(tmp_path, *args, **more)
        window.open(tmp_path / "report.html")
        window.js("localStorage.clear()")
        window.open(tmp_path / "report.html")
        return window

    yield open_report
    assert window.log() == []


SHOWN = "return [...document.querySelectorAll('.sample')].map((card) => data.ids[card.dataset.sample])"
FOCUS = "return data.ids[document.activeElement.dataset.sample] ?? document.activeElement.id"
CHOOSE = "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))"


def saved(window, folder: Path) -> list[dict[str, str]]:
    """The rows of a freshly saved corrections.csv."""
    path = folder / "corrections.csv"
    path.unlink(missing_ok=True)
    window.click("#save")
    wait_for(lambda: path.is_file() and path.stat().st_size)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@needs_browser
def test_the_page_opens_and_shows_its_images(show):
    window = show()
    assert window.js(SHOWN) == [f"pets/{i}.png" for i in range(0, 40, 3)]
    wait_for(lambda: window.js("return document.querySelector('.sample img').className") == "pixelated")
    assert window.js("return document.querySelector('.sample img').naturalWidth") == 16
    card = window.js("return document.querySelector('.sample').innerText.split(/\\s+/).join(' ')")
    assert card == "given cat suggested قطة true قطة score 0.100 id pets/0.png label is right use suggestion drop"
    assert window.js("return document.querySelector('.sample img').alt") == "sample pets/0.png, labelled cat"
    assert window.js("return window.hacked") is None
    assert NAMES[3] in window.js("return document.querySelectorAll('.sample')[1].innerText")


@pytest.mark.slow
@needs_browser
def test_filters_leave_what_was_asked_for(show):
    window = show()
    window.js(CHOOSE, "given", "3")
    assert window.js(SHOWN) == ["pets/3.png", "pets/18.png", "pets/33.png"]
    assert window.js("return document.getElementById('shown').textContent") == "3 samples shown"
    window.js(CHOOSE, "suggested", "0")
    assert window.js(SHOWN) == []
    assert "No sample" in window.js("return document.getElementById('shown').textContent")
    window.click("button[type=reset]")
    wait_for(lambda: len(window.js(SHOWN)) == 14)
    window.click("#search")
    window.press(*"PETS/3")
    assert window.js(SHOWN) == ["pets/3.png", "pets/30.png", "pets/33.png", "pets/36.png", "pets/39.png"]
    window.press("k")  # a letter in the search field is not a decision
    assert window.js("return actions.size") == 0
    window.click("button[type=reset]")
    window.click(".filter[data-given='2'][data-suggested='3']")
    wait_for(lambda: window.js(SHOWN) == ["pets/12.png", "pets/27.png"])


@pytest.mark.slow
@needs_browser
def test_decisions_are_stored_and_saved_as_csv(show, tmp_path):
    ids = [f"pets/{i}.png" for i in range(40)]
    ids[0], ids[3], ids[6], ids[9], ids[12] = 'a,"b".png', "line\nbreak.png", "猫/قطة.png", " space ", "plain"
    data = pets(ids=ids)
    window = show(data)
    folder = window.folder
    assert window.js("return document.getElementById('save').disabled")
    for k, action in enumerate(["relabel", "keep", "drop", "drop", "relabel"]):
        window.click(f"li:nth-child({k + 1}) .decision.{action}")
    window.click("li:nth-child(4) .decision.keep")  # another decision on the same sample
    window.click("li:nth-child(5) .decision.relabel")  # the same again takes it back
    expected = [
        {"sample_id": ids[0], "action": "relabel", "label": "1"},
        {"sample_id": ids[3], "action": "keep", "label": ""},
        {"sample_id": ids[6], "action": "drop", "label": ""},
        {"sample_id": ids[9], "action": "keep", "label": ""},
    ]
    assert saved(window, folder) == expected
    assert (
        (folder / "corrections.csv")
        .read_bytes()
        .startswith(b'sample_id,action,label\n"a,""b"".png",relabel,1\n"line\nbreak')
    )
    assert window.js("return document.getElementById('progress').textContent") == (
        "4 of 14 reviewed: 2 right, 1 relabelled, 1 dropped"
    )

    window.open(tmp_path / "report.html")
    assert saved(window, folder) == expected
    assert window.js("return document.querySelector('.sample .relabel').getAttribute('aria-pressed')") == "true"
    window.js(CHOOSE, "state", "drop")
    assert window.js(SHOWN) == [ids[6]]
    window.js(CHOOSE, "state", "open")
    assert len(window.js(SHOWN)) == 10

    written(tmp_path, data, scored(data, suggest=2))  # other suggestions: the decisions belong to the old ones
    window.open(tmp_path / "report.html")
    assert window.js("return actions.size") == 0

    written(tmp_path, data)
    window.open(tmp_path / "report.html")
    assert window.js("return actions.size") == 4
    window.click("#clear")  # and "yes" to the question that follows
    wait_for(lambda: window.js("return actions.size") == 0)
    window.open(tmp_path / "report.html")
    assert window.js("return actions.size") == 0


@pytest.mark.slow
@needs_browser
def test_the_keyboard_does_everything(show):
    window = show()
    window.js("document.getElementById('search').focus()")
    window.press("Tab", "Tab")  # over "Show all"
    assert window.js(FOCUS) == "pets/0.png"
    window.press("ArrowRight", "ArrowRight", "ArrowLeft")
    assert window.js(FOCUS) == "pets/3.png"
    columns = window.js("return columns()")
    assert 2 <= columns <= 7
    window.press("ArrowDown")
    assert window.js(FOCUS) == f"pets/{3 * (1 + columns)}.png"
    window.press("ArrowUp", "k", "s", "d")  # each moves to the next
    assert window.js(FOCUS) == "pets/12.png"
    assert window.js("return [...actions.values()]") == ["keep", "relabel", "drop"]
    window.press("ArrowLeft", "u")
    assert window.js("return [...actions.values()]") == ["keep", "relabel"]
    window.press("End")
    assert window.js(FOCUS) == "pets/39.png"
    window.press("Home", "ArrowLeft")
    assert window.js(FOCUS) == "pets/0.png"

    window.press("Enter")
    assert window.js("return document.getElementById('viewer').open")
    assert window.js("return document.getElementById('viewer-title').textContent") == "cat → قطة"
    window.press("ArrowRight", "ArrowRight", "d")
    assert window.js("return document.getElementById('position').textContent") == "4 of 14"
    assert window.js("return [...actions]") == [[1, "keep"], [2, "drop"]]
    window.press("Escape")
    wait_for(lambda: window.js(FOCUS) == "pets/9.png")
    assert not window.js("return document.getElementById('viewer').open")
    assert window.js("return document.querySelectorAll('.sample')[2].getAttribute('aria-label')").endswith(
        "your decision: drop"
    )


@pytest.mark.slow
@needs_browser
def test_a_suggestion_that_is_the_given_label_cannot_be_used(show):
    data = pets()
    scores = scored(data)
    scores.suggested[0], scores.suggested[3] = data.train.given[0], -1
    window = show(data, scores)
    assert window.js("return [...document.querySelectorAll('.relabel')].slice(0, 3).map((b) => b.disabled)") == [
        True,
        True,
        False,
    ]
    window.js("document.querySelector('.sample').focus()")
    window.press("s")
    assert window.js("return actions.size") == 0


@pytest.mark.slow
@needs_browser
def test_a_browser_that_refuses_storage_still_saves(window, tmp_path):
    written(tmp_path)
    refuse = (
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError') } })"
    )
    script = window.devtools("Page.addScriptToEvaluateOnNewDocument", source=refuse)["identifier"]
    try:
        window.open(tmp_path / "report.html")
        assert not window.js("return document.getElementById('storage').hidden")
        window.click(".decision.drop")
        assert saved(window, window.folder) == [{"sample_id": "pets/0.png", "action": "drop", "label": ""}]
        assert window.log() == []
    finally:
        window.devtools("Page.removeScriptToEvaluateOnNewDocument", identifier=script)


@pytest.mark.slow
@needs_browser
def test_many_samples_are_rendered_as_they_are_needed(show):
    window = show(pets(1500))
    assert window.js("return data.ids.length") == 500
    assert len(window.js(SHOWN)) < 250
    window.js("document.querySelector('.sample').focus()")
    window.press("End")
    assert window.js(FOCUS) == "pets/1497.png"
    assert len(window.js(SHOWN)) == 500
    window.js("document.getElementById('search').focus()")
    window.press(*"pets/14")
    assert len(window.js(SHOWN)) == window.js("return visible.length") < 60


@pytest.mark.slow
@needs_browser
def test_what_has_the_focus_is_not_under_the_bar_that_stays_at_the_top(show):
    window = show(pets(300))
    window.js("document.querySelector('.sample').focus({ preventScroll: true })")
    below = "document.querySelectorAll('.sample')[columns()].getBoundingClientRect().top"
    window.js(f"scrollTo(0, scrollY + {below} - 20)")
    assert window.js(f"return {below}") == pytest.approx(20, abs=1)
    window.press("ArrowDown")
    bar = window.js("return document.querySelector('.bar-top').getBoundingClientRect().bottom")
    wait_for(lambda: window.js("return document.activeElement.getBoundingClientRect().top") >= bar)


@pytest.mark.slow
@needs_browser
def test_scrolling_brings_more(show):
    window = show(pets(1500))
    before = len(window.js(SHOWN))
    window.js("document.getElementById('more').scrollIntoView({ behavior: 'instant' })")
    wait_for(lambda: len(window.js(SHOWN)) > before)


@pytest.mark.slow
@needs_browser
def test_a_phone_and_the_dark(show, window):
    window.devtools("Emulation.setDeviceMetricsOverride", width=320, height=700, deviceScaleFactor=2, mobile=True)
    window.devtools("Emulation.setTouchEmulationEnabled", enabled=True)
    window.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    try:
        names = ["Donaudampfschifffahrtsgesellschaftskapitän" * 2, "x", "y"]
        show(pets(names=names, ids=[f"{'a-long-folder-name' * 8}/{i}.jpg" for i in range(40)]))
        assert window.js("return document.documentElement.scrollWidth") == 320
        small = """return [...document.querySelectorAll('#review button, #review select, #review input')]
                   .filter((e) => e.offsetParent && e.getBoundingClientRect().height < 44).map((e) => e.outerHTML)"""
        assert window.js(small) == []
        assert window.js("return getComputedStyle(document.body).backgroundColor") == "rgb(16, 21, 27)"
        chart = "return getComputedStyle(document.querySelector('svg.chart {}')).{}"
        assert window.js(chart.format("text", "fill")) == "rgb(232, 237, 242)"
        assert window.js(chart.format("path[style*=s0]", "fill")) == "rgb(86, 180, 233)"
        assert 200 < float(window.js(chart.format("", "width")).removesuffix("px")) < 320
    finally:
        window.devtools("Emulation.clearDeviceMetricsOverride")
        window.devtools("Emulation.setTouchEmulationEnabled", enabled=False)
        window.devtools("Emulation.setEmulatedMedia", features=[])


@pytest.mark.slow
@needs_browser
def test_an_unreadable_image_has_a_place_of_its_own(show, tmp_path):
    Image.new("RGB", (300, 200), "red").save(tmp_path / "good.jpg")
    files = [str(tmp_path / name) for name in ("missing.jpg", "good.jpg")]
    train = NoisyImages("own", ["missing.jpg", "good.jpg"], files, torch.tensor([0, 1]), None)
    data = data_of(train, ["a", "b"])
    window = show(data, scored(data, suspicious=slice(0, 2)))
    assert window.js("return [...document.querySelectorAll('.picture')].map((p) => p.innerText)") == [
        "cannot be read",
        "",
    ]
    window.click(".picture")
    assert window.js("return document.getElementById('viewer-image').hidden")
    window.press("ArrowRight")
    assert not window.js("return document.getElementById('viewer-image').hidden")
    window.press("Escape")
