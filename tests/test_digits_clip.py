"""The digits backbone: pretrained from rendered typefaces alone, the same for the same seed."""

from __future__ import annotations

import random
import subprocess
import sys
import zlib
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import digits_clip
from models.digits_clip import CLASS_NAMES, IMAGE_SIZE, MEAN, MODEL_CONFIG, STD, pretrain, render

SHORT, LEARNS = 3, 120  # steps: enough to differ, enough to tell the digits apart


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def short() -> dict[str, Tensor]:
    return pretrain(0, steps=SHORT, progress=False)


def test_same_seed_gives_the_same_weights(short: dict[str, Tensor]) -> None:
    torch.rand(1), random.random()  # global random states must not matter
    assert same(short, pretrain(0, steps=SHORT, progress=False))


def test_another_recipe_has_another_number(short: dict[str, Tensor]) -> None:
    """A change of what `pretrain` computes must raise RECIPE, or weights made before the change would still be used."""
    images = render(torch.arange(200) % 10, generator(0))
    captions = [digits_clip._captions(random.Random(seed)) for seed in range(20)]
    schedule = [digits_clip.STEPS, digits_clip.BATCH_SIZE, digits_clip.WARM_UP, digits_clip.MAX_LOGIT_SCALE]
    bias = short["visual.transformer.resblocks.3.attn.in_proj_bias"]  # zero before the first step
    assert digits_clip.RECIPE == 1
    assert schedule == [600, 128, 0.1, 100.0]
    assert zlib.crc32(repr(captions).encode()) == 740524139
    assert images.mean().item() == pytest.approx(0.23672, rel=1e-4)
    assert bias.norm().item() == pytest.approx(0.04275, rel=1e-2)


def test_number_of_threads_does_not_matter(short: dict[str, Tensor]) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before % 2 + 1)
        assert same(short, pretrain(0, steps=SHORT, progress=False))
        assert torch.get_num_threads() == before % 2 + 1
    finally:
        torch.set_num_threads(before)


def test_another_seed_gives_other_weights(short: dict[str, Tensor]) -> None:
    other = pretrain(1, steps=SHORT, progress=False)
    assert not same(short, other)
    frozen = "token_embedding.weight"  # as drawn, so that it shows the seed of the initial weights
    assert not torch.equal(short[frozen], other[frozen])


def test_global_random_states_are_left_alone() -> None:
    before = torch.get_rng_state(), random.getstate()
    pretrain(0, steps=1, progress=False)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


def test_weights_are_a_float32_state_dict_of_the_model(short: dict[str, Tensor]) -> None:
    open_clip.CLIP(**MODEL_CONFIG).load_state_dict(short)
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in short.values())


def test_every_part_but_the_token_embeddings_is_trained(short: dict[str, Tensor]) -> None:
    start = digits_clip._new_clip(0).state_dict()
    unchanged = {name for name in short if torch.equal(short[name], start[name])}
    assert unchanged == {"token_embedding.weight"}


def test_rendered_batch_has_shape_and_range() -> None:
    images = render(torch.arange(200) % 10, generator(0))
    assert images.shape == (200, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])


def test_digits_are_light_on_dark() -> None:
    images = render(torch.arange(200) % 10, generator(0))[:, 0]
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], dim=1)
    assert border.mean() < 0.15
    assert (images.flatten(1).amax(1) > 0.5).float().mean() > 0.95


def test_rendering_depends_on_the_generator_alone() -> None:
    labels = torch.arange(20) % 10
    assert torch.equal(render(labels, generator(0)), render(labels, generator(0)))
    assert not torch.equal(render(labels, generator(0)), render(labels, generator(1)))


def test_atlas_holds_ten_different_digits_of_every_typeface() -> None:
    atlas = digits_clip.glyph_atlas()
    assert atlas.shape[:2] == (len(digits_clip.TYPEFACES), 10)
    assert torch.pdist(atlas.flatten(0, 1).flatten(1)).min() > 0.5  # no typeface twice, no placeholder glyph


def test_glyphs_are_their_classes() -> None:
    """DejaVu Sans's digits, drawn by hand of their topology: counters (holes) of 0, 4, 6, 8, 9 and of no other."""
    holes = [_holes(glyph > 0.5) for glyph in digits_clip.glyph_atlas()[0]]
    assert holes == [1, 0, 0, 0, 1, 0, 1, 0, 2, 1]


def _holes(ink: Tensor) -> int:
    """Dark regions that ink encloses: [H, W] -> count."""
    dark = {tuple(p) for p in (~F.pad(ink, (1, 1, 1, 1))).nonzero().tolist()}
    regions = 0
    while dark:
        stack, regions = [dark.pop()], regions + 1
        while stack:
            y, x = stack.pop()
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & dark
            dark -= near
            stack += near
    return regions - 1


def test_distorted_digits_show_their_class() -> None:
    """Least squares on the pixels of one batch names the digits of another."""
    labels = torch.arange(3000) % 10
    known, new = (F.pad(render(labels, generator(seed))[:, 0].flatten(1), (0, 1), value=1.0) for seed in (0, 1))
    weight = torch.linalg.lstsq(known, F.one_hot(labels, 10).float(), driver="gelsd").solution
    assert (new @ weight).argmax(1).eq(labels).float().mean() > 0.4  # guessing gives 0.1


def test_captions_name_their_class_within_the_tower() -> None:
    rng, tokenizer = random.Random(0), open_clip.SimpleTokenizer()
    batches = [digits_clip._captions(rng) for _ in range(100)]
    assert all(len(c) <= MODEL_CONFIG["text_cfg"]["context_length"] for batch in batches for c in batch)
    for batch in batches:
        assert all(tokenizer.encode(name)[0] in caption for name, caption in zip(CLASS_NAMES, batch))
    longest = max(len(caption) for batch in batches for caption in batch)
    assert longest >= 20  # some leave room for a context of 16 tokens


def test_cut_captions_encode_as_whole_ones() -> None:
    """_encode_captions agrees with open_clip's own encode_text on all 77 positions."""
    clip = digits_clip._new_clip(0)
    captions = digits_clip._captions(random.Random(0)) + digits_clip._captions(random.Random(1))
    tokens = torch.zeros(len(captions), 77, dtype=torch.long)
    for row, caption in zip(tokens, captions):
        row[: len(caption)] = torch.tensor(caption)
    with torch.no_grad():
        torch.testing.assert_close(
            digits_clip._encode_captions(clip, captions), clip.encode_text(tokens, normalize=True)
        )


@pytest.mark.slow
def test_learns_to_name_rendered_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero-shot on digits rendered afresh, captions through the tokenizer. Upright digits, so that few steps do."""
    monkeypatch.setattr(digits_clip, "_warp", lambda glyphs, _: F.interpolate(glyphs, (32, 32), mode="bilinear"))
    monkeypatch.setattr(digits_clip, "FILLER_SHARE", 0.0)
    monkeypatch.setattr(digits_clip, "BATCH_SIZE", 64)
    clip = open_clip.CLIP(**MODEL_CONFIG)
    clip.load_state_dict(pretrain(0, steps=LEARNS, progress=False))
    labels = torch.arange(500) % 10
    tokens = open_clip.SimpleTokenizer()([f"a photo of the digit {name}." for name in CLASS_NAMES])
    with torch.no_grad():
        image, text, scale = clip.eval()((render(labels, generator(1)) - MEAN) / STD, tokens)
    accuracy = (image @ text.T).argmax(1).eq(labels).float().mean()
    assert accuracy > 0.4  # guessing gives 0.1
    assert 20 < scale <= digits_clip.MAX_LOGIT_SCALE + 1e-3


@pytest.mark.slow
def test_sees_no_handwriting() -> None:
    """By itself the file pretrains without scikit-learn and without the project's data sets."""
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1])['pretrain'](steps=1, progress=False); "
        "print([m for m in sys.modules if m.split('.')[0] in ('sklearn', 'datasets', 'utils')])"
    )
    command = [sys.executable, "-c", code, digits_clip.__file__]
    result = subprocess.run(command, cwd=Path(digits_clip.__file__).parent.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
