from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from angio_ray.models import NETS, TASKS
from angio_ray.models.backends import BackendChoice, for_net, unsupported
from angio_ray.models.bundles import Bundle, BundleError, write_bundle
from angio_ray.models.contrast import (
    CANDIDATE_STEP,
    CLASSES,
    COLUMNS,
    candidate_frames,
    candidates_between,
    frame_classes,
    longest_run,
)
from angio_ray.models.frame_sequence import FrameSequence, VesselCurves
from angio_ray.models.interface import NOT_LAST
from angio_ray.sampling import ClipWindow

SMALL = ClipWindow(name="small", size=32, start=0, length=24, stride=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(3)
    return write_bundle(
        tmp_path_factory.mktemp("bundle"), task="contrast", net="frames_lstm",
        state_dicts=[NETS["frames_lstm"].build().state_dict()], threshold=0.3, trained_on="synthetic", window=SMALL,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("probability", "run"),
    [
        ([0, 0, 1, 1, 1, 0], (2, 4)),
        ([0, 1, 1, 0.3, 1, 1, 0], (1, 5)),  # a dip within a run
        ([1, 0, 0, 0, 0.9, 0.9], (4, 5)),  # a single frame far from it
        ([1, 1, 0, 0, 0], (0, 1)),
        ([0.5, 0.5], None),  # at the threshold, not above
        ([0.1, 0.2], None),
        ([], None),
    ],
)
def test_the_run_has_the_largest_sum_above_the_threshold(probability: list[float], run: tuple[int, int] | None) -> None:
    assert longest_run(np.array(probability), 0.5) == run


def test_the_run_is_the_best_of_all_runs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(rng.integers(1, 15))
        sums = {(i, j): (p[i : j + 1] - 0.6).sum() for i in range(len(p)) for j in range(i, len(p))}
        best = max(sums.values())
        run = longest_run(p, 0.6)
        if best > 0:
            assert run is not None
            assert sums[run] == pytest.approx(best)
        else:
            assert run is None


def test_classes_of_frames_by_what_the_label_says() -> None:
    shown = np.array([0, 2, 4, 6, 8, 10])  # a file at 30 frames/s
    assert frame_classes(shown, (2, 4, 7, 9)).tolist() == [0, 1, 2, 2, 1, 0]
    # readers who marked full contrast alone have said of the others that they are not full
    assert frame_classes(shown, (None, 4, 7, None)).tolist() == [NOT_LAST, NOT_LAST, 2, 2, NOT_LAST, NOT_LAST]
    assert frame_classes(shown, (2, None, None, 9)).tolist() == [0, 1, 1, 1, 1, 0], "contrast that is never full"


def test_candidates_are_spread_over_the_full_frames() -> None:
    assert candidate_frames(np.arange(10, 31)) == [10, 13, 16, 19, 21, 24, 27, 30]
    assert candidate_frames(np.array([5, 5, 6, 6, 7])) == [5, 6, 7], "a file below 15 frames/s shows frames twice"


def test_full_contrast_shorter_than_the_step_has_the_nearest_frame() -> None:
    shown = np.arange(0, 60, 3)
    assert candidates_between(shown, 20, 34) == [21, 24, 27, 30, 33]
    assert candidates_between(shown, 22, 23) == [21]


def test_the_scorer_fills_its_columns_in_the_files_own_frames(bundle: Bundle) -> None:
    scorer = TASKS["contrast"].scorer(bundle, BackendChoice(), num_threads=1)
    clips = np.random.default_rng(1).integers(0, 256, (3, 24, 32, 32), dtype=np.uint8)
    shown = [np.arange(0, 48, 2), np.arange(10), np.arange(24)]
    columns = scorer({"small": clips}, {"small": shown})
    assert tuple(columns) == COLUMNS
    p_BTK = scorer.probabilities({"small": clips})
    assert p_BTK.shape == (3, 24, len(CLASSES))
    np.testing.assert_allclose(p_BTK.sum(axis=-1), 1, atol=1e-5)
    for i, frames in enumerate(shown):
        full = longest_run(p_BTK[i, : len(frames), -1], 0.3)
        row = {name: values[i] for name, values in columns.items()}
        assert [one["frame"] for one in row["contrast_frames"]] == frames.tolist()
        np.testing.assert_allclose(
            [one["probability"] for one in row["contrast_frames"]], p_BTK[i, : len(frames), -1], atol=1e-6
        )
        assert row["contrast_threshold"] == np.float32(0.3)
        if full is None:
            assert row["contrast_begin"] is row["contrast_end"] is row["candidate_frames"] is None
            continue
        assert (row["contrast_begin"], row["contrast_end"]) == (frames[full[0]], frames[full[1]])
        assert row["first_contrast"] <= row["contrast_begin"] <= row["contrast_end"] <= row["last_contrast"]
        assert set(row["candidate_frames"]) <= set(frames.tolist())
        of_full = [f for f in frames[::CANDIDATE_STEP].tolist() if row["contrast_begin"] <= f <= row["contrast_end"]]
        assert row["candidate_frames"] == candidates_between(frames[::CANDIDATE_STEP], frames[full[0]], frames[full[1]])
        assert not of_full or set(row["candidate_frames"]) <= set(of_full)
    assert any(columns["contrast_begin"] != None)  # noqa: E711  # elementwise: one clip at least has a run


@pytest.mark.skipif(unsupported(BackendChoice(backend="openvino")) is not None, reason="OpenVINO is not installed")
def test_openvino_reads_frames_in_both_directions_for_any_number_of_clips(bundle: Bundle) -> None:
    clips = np.random.default_rng(1).integers(0, 256, (3, 24, 32, 32), dtype=np.uint8)
    plain = TASKS["contrast"].scorer(bundle, BackendChoice(), num_threads=1)
    native = TASKS["contrast"].scorer(bundle, BackendChoice(backend="openvino"), num_threads=1)
    for batch in (clips, clips[:1]):
        np.testing.assert_allclose(
            native.probabilities({"small": batch}), plain.probabilities({"small": batch}), atol=1e-3
        )


def test_a_run_in_bfloat16_finds_frames_in_float32() -> None:
    assert for_net(BackendChoice(precision="bfloat16"), "frames_lstm") == BackendChoice()
    assert for_net(BackendChoice(precision="bfloat16"), "x3d_s").precision == "bfloat16"


def test_what_tells_a_pixel_from_its_surroundings_runs_in_bfloat16_by_autocast_beside_nets_in_openvino() -> None:
    native = BackendChoice(backend="openvino", precision="bfloat16")
    assert for_net(native, "stenosis_s") == BackendChoice(precision="bfloat16", channels_last=True)
    assert for_net(native, "x3d_s") == native
    assert for_net(BackendChoice(backend="openvino"), "stenosis_s") == BackendChoice(backend="openvino")


def test_vessel_curves_follow_the_contrast_however_bright_the_clip_is() -> None:
    """Thin dark lines that come, stay and go; half as much light, and half as much contrast, leave the curves as they are."""
    filling_T = np.interp(np.arange(30), [0, 8, 12, 20, 26, 29], [0, 0, 1, 1, 0.1, 0.1])
    x = np.arange(48)
    line_HW = np.exp(-(((x[:, None] - 24 - 8 * np.sin(x / 9)) / 1.2) ** 2))
    curves = []
    for light, iodine in ((200, 0.5), (100, 0.5), (200, 0.25)):
        clip_THW = light * (1 - iodine * filling_T[:, None, None] * line_HW)
        x_BCTHW = (torch.from_numpy(clip_THW).float() / 255 - 0.45)[None, None].expand(1, 3, -1, -1, -1) / 0.225
        curves.append(VesselCurves()(x_BCTHW)[0])
    assert curves[0].shape == (30, VesselCurves.num_features)
    top_hat = curves[0][:, 0].numpy()
    assert np.corrcoef(top_hat, filling_T)[0, 1] > 0.98
    assert (top_hat.min(), top_hat.max()) == pytest.approx((-2, 2), abs=1e-3)
    for other in curves[1:]:
        assert np.abs(other[:, :4].numpy() - curves[0][:, :4].numpy()).max() < 0.5


def test_later_frames_speak_for_earlier_ones() -> None:
    """The sequence is read backwards too, and a curve is scaled by the whole clip."""
    torch.manual_seed(0)
    net = NETS["frames_lstm"].build().eval()
    assert isinstance(net, FrameSequence)
    clip = torch.rand(1, 3, 8, 32, 32)
    changed = clip.clone()
    changed[:, :, -1] = 0
    assert not torch.allclose(net(clip)[0, 0], net(changed)[0, 0])


def test_a_net_for_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no net for contrast, whose classes are those of frames"):
        write_bundle(
            tmp_path, task="contrast", net="x3d_s", state_dicts=[NETS["x3d_s"].build().state_dict()], threshold=0.5,
            trained_on="synthetic", classes=CLASSES,
        )  # fmt: skip
