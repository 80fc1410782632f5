from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from angio_ray.models import NETS, TASKS
from angio_ray.models.backends import BackendChoice, unsupported
from angio_ray.models.bundles import Bundle, write_bundle
from angio_ray.models.calcium import COLUMNS, MASK, final_region, patient_pixel_mm, taken_apart
from angio_ray.models.heart_phase import NO_HEART_MOTION, NO_PRECONTRAST_FRAMES
from angio_ray.models.stenosis import CONTRAST_FAILED, NO_FULL_CONTRAST
from angio_ray.sampling import ClipWindow

SMALL = ClipWindow(name="small", size=64, start=0, length=2, stride=1)
WHOLE, OFFERED = "t200_112px", "t200s3_64px"
PERIOD = 12.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return made(tmp_path_factory.mktemp("bundle"))


def made(folder: Path, net: str = "resunet_s") -> Bundle:
    torch.manual_seed(1)
    return write_bundle(
        folder, task="calcium", net=net, state_dicts=[NETS[net].build().state_dict()], threshold=0.4, trained_on="synthetic",
        window=SMALL,
    )  # fmt: skip


def beating(num: int = 90, *, still: bool = False) -> np.ndarray:
    """A disc that grows and shrinks before a grating, all at 15 frames a second."""
    y, x = np.mgrid[:112, :112]
    phase = np.zeros(num) if still else np.arange(num) / PERIOD
    radius = 30 + 6 * np.sin(2 * np.pi * phase)[:, None, None]
    noise = np.random.default_rng(0).normal(0, 2, (num, 112, 112))
    background = 140 + 20 * np.sin(x / 5) * np.sin(y / 7)
    return np.clip(background - 50 * (np.hypot(x - 56, y - 56) < radius) + noise, 0, 255).astype(np.uint8)


def inputs_of(small: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, list[np.ndarray]]]:
    whole = np.concatenate([small, np.repeat(small[-1:], 200 - len(small), axis=0)])
    large = np.random.default_rng(1).integers(0, 256, (1, 67, 64, 64), dtype=np.uint8)
    shown = np.arange(len(small))
    return {WHOLE: whole[None], OFFERED: large}, {WHOLE: [shown], OFFERED: [shown[::3]]}


def known(**values: Any) -> dict[str, list[Any]]:
    facts = {
        "contrast_status": "scored", "first_contrast": 45, "candidate_frames": [60, 66, 72, 78], "rows": 128, "columns": 256,
        "imager_pixel_spacing_mm": [0.2, 0.3], "distance_source_to_detector_mm": 1000.0, "distance_source_to_patient_mm": 750.0,
    } | values  # fmt: skip
    return {name: [value] for name, value in facts.items()}


def test_a_pair_of_one_phase_is_judged_and_its_region_lies_in_the_files_own_pixels(bundle: Bundle) -> None:
    scorer = TASKS["calcium"].scorer(bundle, BackendChoice(), num_threads=1)
    assert [window.name for window in scorer.windows] == [WHOLE, OFFERED]
    inputs, frames = inputs_of(beating())
    columns = scorer(inputs, frames, known())
    assert set(columns) == {*COLUMNS, MASK.column, "calcium_reason"}
    row = {name: values[0] for name, values in columns.items()}
    assert row["calcium_reason"] is None
    assert row["calcium_heart_period_s"] == pytest.approx(PERIOD / 15, rel=0.05)
    ((pair,), (region,)) = row["calcium_frames"], row["calcium_regions"]
    assert pair["frame"] in (60, 66, 72, 78)
    assert pair["mask_frame"] < 45
    assert pair["mask_frame"] % 3 == 0, "only what is offered"
    apart = (pair["frame"] - pair["mask_frame"]) % PERIOD
    assert min(apart, PERIOD - apart) <= 1.5
    expected = scorer.probabilities_of(inputs[OFFERED][:, [pair["mask_frame"] // 3, pair["frame"] // 3]])[0]
    assert row["calcium_probability"] == pytest.approx(float(expected[1]), abs=1e-5)
    mask = cv2.imdecode(np.frombuffer(row[MASK.column], np.uint8), cv2.IMREAD_GRAYSCALE)
    assert mask.shape == (128, 256)
    assert region["area_px"] == (mask > 0).sum()
    assert region["area_mm2"] == pytest.approx(region["area_px"] * 0.2 * 0.3 * 0.75**2)
    assert region["frame"] == pair["mask_frame"]


@pytest.mark.parametrize(
    ("clip", "facts", "reason"),
    [
        (beating(), {"first_contrast": 8}, NO_PRECONTRAST_FRAMES), (beating(still=True), {}, NO_HEART_MOTION),
        (beating(), {"candidate_frames": None}, NO_FULL_CONTRAST), (beating(), {"contrast_status": "failed"}, CONTRAST_FAILED),
    ],
    ids=["under one beat", "a still heart", "no full contrast", "contrast failed"],
)  # fmt: skip
def test_a_clip_without_a_pair_is_skipped(bundle: Bundle, clip: np.ndarray, facts: dict[str, Any], reason: str) -> None:
    scorer = TASKS["calcium"].scorer(bundle, BackendChoice(), num_threads=1)
    columns = scorer(*inputs_of(clip), known(**facts))
    assert columns["calcium_reason"].tolist() == [reason]
    assert columns["calcium_probability"][0] is None
    assert columns[MASK.column][0] is None


def test_what_the_net_says_is_taken_apart_and_patches_below_the_threshold_have_no_say() -> None:
    said = np.concatenate([[0.2, 0.8], [0.8, 0.1, 0.1, 0.1, 0.1], np.ones(5 * 256 * 256)]).astype(np.float32)
    probability, verdict, region = taken_apart(said, 512)
    assert probability == pytest.approx(0.8)
    assert region.shape == (5, 256, 256)
    mask = final_region(verdict, region, 0.5, 512)
    assert mask[:250, :250].all()
    assert not mask[260:, 260:].any()
    assert not final_region(verdict, region, 0.9, 512).any()


def test_pixels_are_smaller_at_the_patient_and_unknown_without_distances() -> None:
    row = {name: values[0] for name, values in known().items()}
    assert patient_pixel_mm(row) == pytest.approx((0.15, 0.225))
    assert patient_pixel_mm(row | {"distance_source_to_patient_mm": None}) is None
    assert patient_pixel_mm(row | {"imager_pixel_spacing_mm": None}) is None


@pytest.mark.parametrize("net", ["resunet_s_one_head", "unet"])
def test_other_nets_of_regions_say_the_same_sort_of_things(net: str, tmp_path: Path) -> None:
    scorer = TASKS["calcium"].scorer(made(tmp_path, net), BackendChoice(), num_threads=1)
    said = scorer.probabilities_of(np.random.default_rng(0).integers(0, 256, (2, 2, 64, 64), dtype=np.uint8))
    assert said.shape == (2, 2 + 5 + 5 * 32 * 32)
    np.testing.assert_allclose(said[:, 1], said[:, 2:7].max(axis=1), atol=1e-6)
    np.testing.assert_allclose(said[:, :2].sum(axis=1), 1, atol=1e-6)


@pytest.mark.skipif(unsupported(BackendChoice(backend="openvino")) is not None, reason="OpenVINO is not installed")
def test_openvino_gives_the_same_verdicts_and_regions(bundle: Bundle) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 2, 64, 64), dtype=np.uint8)
    plain = TASKS["calcium"].scorer(bundle, BackendChoice(), num_threads=1)
    native = TASKS["calcium"].scorer(bundle, BackendChoice(backend="openvino"), num_threads=1)
    np.testing.assert_allclose(native.probabilities_of(pixels), plain.probabilities_of(pixels), atol=2e-3)
