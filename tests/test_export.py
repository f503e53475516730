"""export.py: output that other tools can read, refusals, and that nothing is overwritten."""

from __future__ import annotations

import csv
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_CLIP
from fixtures import write_tiny_imagenet
from PIL import Image
from sklearn.linear_model import LogisticRegression

import main_phase1
from datasets.readers.digits import read_digits
from scripts import export
from utils.report.samples_csv import read_samples

SETTINGS = "backbone: tiny.json\npretrained: none\nvpt_deep: true\nvpt_len: 2\nn_ctx: 4\nepochs: 1\nbatch_size: 128\n"
CLASSES = [f"class {i}" for i in range(200)]
CLASSES[:4] = ['a "quoted" one', "up/../../down", "Čeština <&>", "UP_.._.._DOWN"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two runs with four suspects in ten: on the digits and on image files (Tiny-ImageNet's layout)."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        Path("tiny.json").write_text(json.dumps(TINY_CLIP))
        Path("digits.yaml").write_text(f"dataset: digits\n{SETTINGS}")
        Path("files.yaml").write_text(f"dataset: tiny_imagenet\ndata_root: here\nclass_names: names.txt\n{SETTINGS}")
        Path("names.txt").write_text("\n".join(CLASSES), encoding="utf-8")
        write_tiny_imagenet(Path("here"), n_train=1)
        for name in ("digits", "files"):
            budget = ["review_budget=40%", f"output_dir={name}", f"clean_set={name}.pt"]
            main_phase1.main(["--cfg", f"{name}.yaml", *budget, "max_steps=3"])
    return folder


@pytest.fixture
def runs(made, tmp_path, monkeypatch) -> Path:
    """A copy of the two runs, as the working folder."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def run(name: str, tool: str, *more: str, out: str = "out") -> Path:
    export.main(["--run", name, "--to", tool, "--out", out, *more])
    return Path(out)


def edit(name: str, column: str, value: str, row: int = 0) -> None:
    """Change one field of a run's samples.csv."""
    path = Path(name, "samples.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows[row][column] = value
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@functools.cache
def digits() -> np.ndarray:
    """The train images, uint8 [1297, 16, 16, 3]."""
    return read_digits()[0][0]


# ---------------------------------------------------------------- cleanlab


def test_cleanlab_trains_on_what_is_no_issue(runs):
    pd = pytest.importorskip("pandas")
    classification = pytest.importorskip("cleanlab.classification")
    issues = pd.read_csv(run("digits", "cleanlab", out="issues.csv"))
    assert list(issues) == ["is_label_issue", "label_score", "given_label", "predicted_label"]
    samples = read_samples(Path("digits/samples.csv"))
    pixels = digits().reshape(1297, -1).astype(float) / 255
    labels = np.array([sample.given for sample in samples])

    class Spy(LogisticRegression):
        def fit(self, X, y, **more):  # noqa: N803 (scikit-learn's name)
            seen.append(X)
            return super().fit(X, y, **more)

    seen: list[np.ndarray] = []
    model = classification.CleanLearning(Spy(max_iter=20, tol=1e-1))
    model.fit(pixels, labels, label_issues=issues)
    suspects = np.array([sample.is_suspect for sample in samples])
    assert np.array_equal(seen[-1], pixels[~suspects])
    assert suspects.sum() == round(0.4 * 384)  # of the three batches that were scored
    with pytest.raises(ValueError, match="must match"):  # cleanlab compares the labels
        model.fit(pixels, np.roll(labels, 1), label_issues=issues)


def test_cleanlab_takes_the_ranked_indices(runs):
    filters = pytest.importorskip("cleanlab.filter")
    classification = pytest.importorskip("cleanlab.classification")
    with np.load(run("digits", "cleanlab", out="issues.npz")) as arrays:
        stored = dict(arrays)
    samples = read_samples(Path("digits/samples.csv"))
    pixels = digits().reshape(1297, -1) / 255.0
    expected = sorted(np.flatnonzero([s.is_suspect for s in samples]), key=lambda i: samples[i].score)
    assert stored["issue_indices"].tolist() == expected
    assert stored["sample_ids"].tolist() == [s.sample_id for s in samples]
    assert np.isnan(stored["label_quality_scores"]).sum() == 1297 - 384
    theirs = filters.find_label_issues(
        stored["labels"], np.full((1297, 10), 0.1), return_indices_ranked_by="self_confidence", n_jobs=1
    )
    assert stored["issue_indices"].dtype == theirs.dtype
    model = classification.CleanLearning(LogisticRegression(max_iter=5, tol=1e-1))
    model.fit(pixels, stored["labels"], label_issues=stored["issue_indices"])
    assert model.get_label_issues()["is_label_issue"].tolist() == stored["is_label_issue"].tolist()


def test_cleanlab_gets_the_data_set_s_order_from_a_sorted_run(runs):
    plain = run("digits", "cleanlab", out="plain.csv").read_text()
    settings = Path("digits/config.yaml")
    settings.write_text(settings.read_text().replace("sort_samples: false", "sort_samples: true"))
    path = Path("digits/samples.csv")
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(lines)]) + "\n")
    assert run("digits", "cleanlab", out="sorted.csv").read_text() == plain


# ---------------------------------------------------------------- FiftyOne


@pytest.mark.parametrize("name", ["digits", "files"])
def test_fiftyone_s_documented_layout(runs, name):
    out = run(name, "fiftyone")
    read = json.loads((out / "labels.json").read_text(encoding="utf-8"))
    samples = read_samples(Path(name, "samples.csv"))
    images = {path.stem: path for path in (out / "data").iterdir()}
    assert images.keys() == read["labels"].keys()
    assert read["classes"] == (CLASSES if name == "files" else read["classes"])
    by_id = {entry["attributes"]["sample_id"]: (key, entry) for key, entry in read["labels"].items()}
    for sample in samples:
        key, entry = by_id[sample.sample_id]
        assert read["classes"][entry["label"]] == sample.given_class
        assert entry["confidence"] == (None if np.isnan(sample.score) else sample.score)
        assert entry["attributes"]["is_clean"] == sample.is_clean
        assert entry["attributes"]["suggested_label"] == (sample.suggested_class or None)
        assert_same_image(images[key], name, sample.sample_id)


def test_fiftyone_reads_it(runs):
    """The real importer; a whole fo.Dataset would need a MongoDB server."""
    importers = pytest.importorskip("fiftyone.utils.data.importers")
    out = run("files", "fiftyone")
    samples = {sample.sample_id: sample for sample in read_samples(Path("files/samples.csv"))}
    importer = importers.FiftyOneImageClassificationDatasetImporter(dataset_dir=str(out))
    with importer:
        found = list(importer)
    assert len(found) == len(samples)
    for path, _, label in found:
        sample = samples[label.sample_id]
        assert label.label == sample.given_class
        assert label.is_clean == sample.is_clean
        assert_same_image(Path(path), "files", sample.sample_id)


def assert_same_image(path: Path, name: str, sample_id: str) -> None:
    if name == "files":
        assert path.read_bytes() == Path("here/tiny-imagenet-200", sample_id).read_bytes()
    else:
        assert np.array_equal(np.asarray(Image.open(path)), digits()[int(sample_id)])


# ---------------------------------------------------------------- Label Studio


def test_label_studio_tasks(runs):
    out = run("files", "labelstudio")
    tasks = json.loads((out / "tasks.json").read_text(encoding="utf-8"))
    samples = {sample.sample_id: sample for sample in read_samples(Path("files/samples.csv"))}
    assert len(tasks) == len(samples) == 200
    scores = [task["data"]["label_score"] for task in tasks]
    assert scores == sorted(scores)
    from xml.etree import ElementTree

    interface = ElementTree.parse(out / "label_config.xml").getroot()
    assert [choice.get("value") for choice in interface.iter("Choice")] == CLASSES
    for task in tasks:
        sample = samples[task["data"]["sample_id"]]
        [prediction] = task["predictions"]
        [result] = prediction["result"]
        assert result["value"]["choices"] == [sample.suggested_class]
        assert interface.find(f"Image[@name='{result['to_name']}']").get("value") == "$image"
        assert interface.find(f"Choices[@name='{result['from_name']}']").get("toName") == result["to_name"]
        assert prediction["score"] == sample.suggested_score
        assert task["data"]["image"] == f"/data/local-files/?d={sample.sample_id}"


def test_label_studio_gets_images_of_array_data_and_suspects_alone(runs):
    out = run("digits", "labelstudio", "--suspects", "--url", "http://host/")
    tasks = json.loads((out / "tasks.json").read_text())
    suspects = {s.sample_id for s in read_samples(Path("digits/samples.csv")) if s.is_suspect}
    assert {task["data"]["sample_id"] for task in tasks} == suspects
    for task in tasks:
        place = out / task["data"]["image"].removeprefix("http://host/")
        assert_same_image(place, "digits", task["data"]["sample_id"])
    assert len(list((out / "images").iterdir())) == len(suspects)


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("name, more", [("digits", []), ("files", []), ("files", ["--copy"])])
def test_folders_of_images(runs, name, more):
    out = run(name, "imagefolder", *more)
    with (out / "files.csv").open(newline="", encoding="utf-8") as file:
        listed = {row["file"]: row["sample_id"] for row in csv.DictReader(file)}
    found = {path.relative_to(out).as_posix(): path for path in out.rglob("*.*") if path.parent != out}
    assert found.keys() == listed.keys()
    samples = {sample.sample_id: sample for sample in read_samples(Path(name, "samples.csv"))}
    assert set(listed.values()) == {s.sample_id for s in samples.values() if s.is_clean or s.is_suspect}
    classes: dict[str, set[str]] = {}
    for file, sample_id in listed.items():
        part, folder, _ = file.split("/")
        assert part == ("clean" if samples[sample_id].is_clean else "suspect")
        classes.setdefault(folder, set()).add(samples[sample_id].given_class)
        assert found[file].is_symlink() == (name == "files" and not more)
        assert_same_image(found[file], name, sample_id)
    assert all(len(names) == 1 for names in classes.values())
    assert len({folder.casefold() for folder in classes}) == len(classes)


def test_names_are_safe():
    folders = export.class_folders([*CLASSES[:4], "..", "a", "A", "a", "a_7", "x" * 300])
    assert folders[:4] == ["a__quoted__one", "up_______down", "Čeština____", "UP_______DOWN_3"]
    assert len({name.casefold() for name in folders}) == len(folders)
    assert all(len(name.encode()) < 220 and not set(name) & set("/\\.\"'<>:|?* ") for name in folders)
    assert export.class_folders(["a_2", "a", "a"]) == ["a_2", "a", "a_2_2"]


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../up.jpg", "a/../../b.jpg", "C:\\x.jpg", "a\\..\\b.jpg", "\\\\host\\x"]
)
def test_ids_that_lead_elsewhere_are_refused(runs, fails, name):
    edit("files", "sample_id", name)
    for tool in ("imagefolder", "labelstudio", "fiftyone"):
        assert "leads out of the data set's folder" in fails(export.main, *arguments("files", tool))
    assert not Path("out").exists()


# ---------------------------------------------------------------- refusals


def arguments(name: str, tool: str, *more: str, out: str = "out") -> list[str]:
    return ["--run", name, "--to", tool, "--out", out, *more]


def test_nothing_is_overwritten(runs, fails):
    run("digits", "cleanlab", out="issues.csv")
    before = Path("issues.csv").read_bytes()
    assert "this file exists already" in fails(export.main, *arguments("digits", "cleanlab", out="issues.csv"))
    assert Path("issues.csv").read_bytes() == before
    Path("out").mkdir()
    run("files", "imagefolder")  # an empty folder may be used
    files = sorted(Path("out").rglob("*"))
    for tool in ("imagefolder", "fiftyone", "labelstudio"):
        assert "this folder is not empty" in fails(export.main, *arguments("files", tool))
    assert sorted(Path("out").rglob("*")) == files


def test_what_is_missing_is_named(runs, fails):
    assert "there is no config.yaml in it" in fails(export.main, *arguments("nowhere", "cleanlab"))
    assert "must end in .csv or .npz" in fails(export.main, *arguments("digits", "cleanlab"))
    assert "invalid choice: 'excel'" in fails(export.main, *arguments("digits", "excel"))
    assert "elsewhere" in fails(export.main, *arguments("files", "imagefolder", "--data_root", "elsewhere"))
    edit("files", "sample_id", "train/another.JPEG")
    assert "'train/another.JPEG' is not a train sample" in fails(export.main, *arguments("files", "imagefolder"))
    Path("files/samples.csv").unlink()
    assert "samples.csv: no such file" in fails(export.main, *arguments("files", "cleanlab", out="x.csv"))
    assert not Path("out").exists()
    assert not [path.name for path in Path().iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "it has no column sample_id"),
        ("id,label\n1,2\n", "it has no column sample_id"),
        ("HEADER\n", "has no rows"),
        ("HEADER\n1,x,a,1,b,0.5,True,\n", "line 2: not a row"),
        ("HEADER\n1,1,a,1,b,1.5,True,\n", "line 2: not a row"),
        ("HEADER\n1,1,a,1,b,0.5,yes,\n", "line 2: not a row"),
        ("HEADER\n1,1,a\n", "line 2: not a row"),
        ("HEADER\n1,1,a,1,b,0.5,True,\n1,1,a,1,b,0.5,True,\n", "duplicate id '1'"),
        ("HEADER\n0,11,a,1,b,0.5,True,\n", "has a label that digits does not have"),
        ("HEADER\n5000,1,a,1,b,0.5,True,\n", "'5000' is not a train sample of digits"),
        (b"\xff\xfe\x00", "cannot be read as a samples.csv"),
    ],
)
def test_foreign_tables_are_refused(runs, fails, content, words):
    header = "sample_id,given_label,given_class,suggested_label,suggested_class,label_score,is_clean,true_label"
    data = content if isinstance(content, bytes) else content.replace("HEADER", header).encode()
    Path("digits/samples.csv").write_bytes(data)
    assert words in fails(export.main, *arguments("digits", "imagefolder"))


def test_a_table_of_an_older_run_will_do(runs):
    header = "sample_id,given_label,given_class,suggested_label,suggested_class,label_score,is_clean,true_label"
    Path("digits/samples.csv").write_text(f"{header}\n0,1,one,2,two,0.25,False,\n")
    [task] = json.loads((run("digits", "labelstudio") / "tasks.json").read_text())
    assert "score" not in task["predictions"][0]
    assert task["data"]["label_score"] == 0.25
