from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from angio_ray.models import NETS, TASKS
from angio_ray.models.backends import BackendChoice, unsupported
from angio_ray.models.bundles import Bundle, BundleError, load_bundle, save_bundle, write_bundle
from angio_ray.models.classifier import ClipClassifier, pooled
from angio_ray.models.frame_maps import LocalContrast, inception_v3
from angio_ray.models.stenosis import (
    COLUMNS,
    CONTRAST_FAILED,
    NO_FULL_CONTRAST,
    NUM_BOXES,
    THREE_CLASSES,
    classes_at,
    grown,
    map_boxes,
    positive,
    taken_apart,
    without_overlaps,
)
from angio_ray.sampling import ClipWindow
from angio_ray.views import OWN_MODEL

SMALL = ClipWindow(name="small", size=64, start=0, length=4, stride=1)
DECODED = "t200s3_64px"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return made(tmp_path_factory.mktemp("bundle"), "stenosis_s")


def made(folder: Path, net: str, **facts: Any) -> Bundle:
    torch.manual_seed(4)
    built = NETS[net].build()
    built.cells.bias.data += 2.0
    built.cells.weight.data *= 3.0
    return write_bundle(
        folder, task="stenosis", net=net, state_dicts=[built.state_dict()], threshold=0.4, trained_on="synthetic",
        window=SMALL, **facts,
    )  # fmt: skip


def clips(*shown: list[int]) -> tuple[dict[str, np.ndarray], dict[str, list[np.ndarray]]]:
    pixels = np.random.default_rng(1).integers(0, 256, (len(shown), 66, 64, 64), dtype=np.uint8)
    return {DECODED: pixels}, {DECODED: [np.array(frames) for frames in shown]}


def known(**values: list[Any]) -> dict[str, list[Any]]:
    return {
        "contrast_status": ["scored", "scored"], "candidate_frames": [[6, 9, 15, 18], None], "rows": [128, 64],
        "columns": [256, 64],
    } | values  # fmt: skip


def test_the_worst_candidate_frame_is_the_clips_and_a_clip_without_any_is_skipped(bundle: Bundle) -> None:
    scorer = TASKS["stenosis"].scorer(bundle, BackendChoice(), num_threads=1)
    assert [window.name for window in scorer.windows] == [DECODED]
    inputs, shown = clips(list(range(0, 60, 3)), list(range(0, 60, 3)))
    columns = scorer(inputs, shown, known())
    assert tuple(columns) == (*COLUMNS, "stenosis_reason")
    assert columns["stenosis_reason"].tolist() == [None, NO_FULL_CONTRAST]
    assert all(columns[name][1] is None for name in COLUMNS)
    rows = columns["stenosis_frames"][0]
    assert [row["frame"] for row in rows] == [6, 9, 15, 18], "the candidates, and no other"
    expected = scorer.probabilities_of(inputs[DECODED][:1, [2, 3, 5, 6]])[0]
    np.testing.assert_allclose([row["probability"] for row in rows], expected[:, 1], atol=1e-6)
    assert columns["stenosis_probability"][0] == pytest.approx(expected[:, 1].max())
    assert columns["stenosis_class"][0] == bundle.classes[int(expected[:, 1].max() >= 0.4)]
    assert columns["stenosis_threshold"][0] == pytest.approx(0.4)
    for row in rows:  # in the file's own pixels
        for box in row["boxes"]:
            assert 0 <= box["x0"] < box["x1"] <= 256
            assert 0 <= box["y0"] < box["y1"] <= 128
    assert any(row["boxes"] for row in rows)


RAO_CAUDAL = {"primary_angle_deg": -26.0, "secondary_angle_deg": -26.0}


def four(net: Bundle) -> list[float]:
    """Probabilities of one clip as of the RCA, the LCA from RAO caudal, the same where the picture shows an LAO, and unknown."""
    scorer = TASKS["stenosis"].scorer(net, BackendChoice(), num_threads=1)
    inputs, shown = clips(*[list(range(0, 60, 3))] * 4)
    inputs[DECODED][:] = inputs[DECODED][:1]
    facts = known(
        contrast_status=["scored"] * 4, candidate_frames=[[6, 9]] * 4, rows=[64] * 4, columns=[64] * 4,
        artery=["RCA", "LCA", "LCA", None], oblique=["RAO", "RAO", "LAO", "RAO"], positioner_motion=["STATIC"] * 4,
        **{name: [value] * 4 for name, value in RAO_CAUDAL.items()},
    )  # fmt: skip
    found: list[float] = scorer(inputs, shown, facts)["stenosis_probability"].tolist()
    return found


def test_clips_of_a_view_go_to_its_own_model_and_suspect_ones_to_the_shared(bundle: Bundle, tmp_path: Path) -> None:
    others = {}
    for number, view in enumerate(("RCA", "RAO caudal")):
        state = bundle.ensemble().members[0].net.state_dict()
        state["cells.bias"] = state["cells.bias"] - 1.0 - number
        others[view] = write_bundle(
            tmp_path / view, task="stenosis", net="stenosis_s", state_dicts=[state], threshold=0.9, trained_on="synthetic",
            window=SMALL, training_patients=[view],
        )  # fmt: skip
    joined = bundle.with_views(others)
    alone = [four(one)[0] for one in (others["RCA"], others["RAO caudal"], bundle)]
    assert len(set(alone)) == 3
    np.testing.assert_allclose(four(joined), [*alone, alone[2]], atol=1e-6)
    assert joined.training_patients == ("RAO caudal", "RCA")
    save_bundle(tmp_path / "joined", joined)
    assert load_bundle(tmp_path / "joined") == joined
    assert joined.digest != bundle.digest != bundle.with_views({"RCA": others["RCA"]}).digest
    assert joined.metrics == {}, "no figure of one is that of all"
    assert "alone its threshold is 0.9" in (tmp_path / "joined" / "RCA" / "MODEL_CARD.md").read_text()
    moved = joined.with_threshold(0.5)
    assert moved.views == joined.views, "one threshold for all"
    with pytest.raises(BundleError, match="no model of LCA; there is RCA, LAO cranial"):
        bundle.with_views({"LCA": others["RCA"]})
    with pytest.raises(BundleError, match="models of views itself"):
        bundle.with_views({"RCA": joined})
    save_bundle(tmp_path / "joined" / "RCA", others["RAO caudal"])
    with pytest.raises(BundleError, match="the model of RCA does not have the digest"):
        load_bundle(tmp_path / "joined")


def test_a_net_that_is_told_the_view_begins_as_one_that_is_not(bundle: Bundle, tmp_path: Path) -> None:
    state = bundle.ensemble().members[0].net.state_dict()
    torch.manual_seed(4)
    net = NETS["stenosis_s_view"].build()
    assert net.load_state_dict(state, strict=False).missing_keys == ["features.view.weight"]
    facts: dict[str, Any] = {"task": "stenosis", "threshold": 0.4, "trained_on": "synthetic", "window": SMALL}
    told = write_bundle(tmp_path / "told", net="stenosis_s_view", state_dicts=[net.state_dict()], **facts)
    np.testing.assert_allclose(four(told), four(bundle), atol=0.02)  # but for two pixels
    net.features.view.weight.data[1 + OWN_MODEL.index("RCA")] = 2.0  # type: ignore[union-attr, operator]
    told = write_bundle(tmp_path / "told", net="stenosis_s_view", state_dicts=[net.state_dict()], **facts)
    rca, *others = four(told)
    assert abs(rca - others[0]) > 0.02
    np.testing.assert_allclose(others, [others[0]] * 3, atol=1e-3)


def test_a_clip_whose_contrast_could_not_be_looked_for_says_so(bundle: Bundle) -> None:
    scorer = TASKS["stenosis"].scorer(bundle, BackendChoice(), num_threads=1)
    inputs, shown = clips(list(range(0, 60, 3)))
    columns = scorer(inputs, shown, known(contrast_status=["failed"], candidate_frames=[None], rows=[64], columns=[64]))
    assert columns["stenosis_reason"].tolist() == [CONTRAST_FAILED]


def test_a_frame_that_is_shown_twice_is_classified_once(bundle: Bundle) -> None:
    scorer = TASKS["stenosis"].scorer(bundle, BackendChoice(), num_threads=1)
    inputs, shown = clips([0, 2, 2, 4])  # a file below five frames a second
    columns = scorer(inputs, shown, known(contrast_status=["scored"], candidate_frames=[[2, 4]], rows=[64], columns=[64]))
    assert [row["frame"] for row in columns["stenosis_frames"][0]] == [2, 4]


def test_three_classes_and_their_boxes(tmp_path: Path) -> None:
    three = made(tmp_path, "stenosis_s_3cat", classes=THREE_CLASSES)
    assert load_bundle(tmp_path).classes == THREE_CLASSES
    scorer = TASKS["stenosis"].scorer(three, BackendChoice(), num_threads=1)
    inputs, shown = clips(list(range(0, 60, 3)))
    columns = scorer(inputs, shown, known(contrast_status=["scored"], candidate_frames=[[0, 9, 21]], rows=[64], columns=[64]))
    found = [row["class"] for row in columns["stenosis_frames"][0]]
    assert columns["stenosis_class"][0] == max(found, key=THREE_CLASSES.index), "the worst of its frames"


def test_a_detectors_boxes_are_shown_in_place_of_the_maps(tmp_path: Path) -> None:
    one = made(tmp_path / "one", "stenosis_fpn")
    states = [one.ensemble().members[0].net.state_dict()] * 2
    pair = write_bundle(
        tmp_path / "two", task="stenosis", net="stenosis_fpn", state_dicts=states, threshold=0.4, trained_on="synthetic",
        window=SMALL,
    )  # fmt: skip
    inputs, shown = clips(list(range(0, 60, 3)))
    rows = []
    for bundle_ in (one, pair):
        scorer = TASKS["stenosis"].scorer(bundle_, BackendChoice(), num_threads=1)
        columns = scorer(inputs, shown, known(contrast_status=["scored"], candidate_frames=[[0, 9]], rows=[128], columns=[256]))
        rows.append(columns["stenosis_frames"][0])
    assert rows[0] == rows[1], "two of the same find nothing else"
    for frame in rows[0]:
        boxes = [[box["x0"], box["y0"], box["x1"], box["y1"]] for box in frame["boxes"]]
        assert 0 < len(boxes) <= NUM_BOXES
        assert all(0 <= x0 < x1 <= 256 and 0 <= y0 < y1 <= 128 for x0, y0, x1, y1 in boxes)
        assert sorted((box["probability"] for box in frame["boxes"]), reverse=True) == [b["probability"] for b in frame["boxes"]]


def test_of_boxes_that_overlap_the_best_stays_and_small_ones_are_grown() -> None:
    boxes = np.array([[0.1, 0.1, 0.3, 0.3, 0.6], [0.12, 0.1, 0.3, 0.3, 0.9], [0.6, 0.6, 0.8, 0.8, 0.5], [0, 0, 0.1, 0.1, 0.001]])
    assert without_overlaps(boxes).tolist() == boxes[[1, 2]].tolist()
    assert len(without_overlaps(boxes[:0])) == 0
    np.testing.assert_allclose(grown(np.array([[0.4, 0.1, 0.42, 0.5]]), 0.1), [[0.36, 0.1, 0.46, 0.5]])


def test_a_net_of_two_classes_is_no_bundle_of_three(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has 2 outputs for 3 classes"):
        made(tmp_path, "stenosis_s", classes=THREE_CLASSES)
    with pytest.raises(BundleError, match="is no net for stenosis, whose classes are those of frames"):
        write_bundle(
            tmp_path / "x", task="stenosis", net="x3d_s", state_dicts=[NETS["x3d_s"].build().state_dict()], threshold=0.5,
            trained_on="synthetic",
        )  # fmt: skip


def test_the_class_is_the_first_below_the_threshold_else_the_likeliest_other() -> None:
    p = np.array([[0.7, 0.1, 0.2], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]], np.float32)
    np.testing.assert_allclose(positive(p), [0.3, 0.4, 0.8], atol=1e-6)
    assert classes_at(p, 0.4).tolist() == [0, 1, 2]


def test_boxes_hold_the_cells_that_stand_out() -> None:
    cells = np.zeros((8, 8), np.float32)
    cells[1, 2:4], cells[5:7, 6] = 0.9, 0.6
    cells[0, 7] = 0.3  # below half of the most
    assert map_boxes(cells, 512).tolist() == [
        [128, 64, 256, 128, pytest.approx(0.9)], [384, 320, 448, 448, pytest.approx(0.6)],
    ]  # fmt: skip
    assert len(map_boxes(np.full((8, 8), 0.04, np.float32), 512)) == 0, "nothing stands out"


def test_frame_logits_are_pooled_from_the_maps() -> None:
    maps = torch.zeros(1, 1, 1, 4, 4)
    maps[..., 2, 3] = 10.0
    assert pooled(maps, "mean")[0, 0].tolist() == [0, 10 / 16]
    assert pooled(maps, "logsumexp")[0, 0, 1] == pytest.approx(10.0, abs=1e-3), "a maximum but for what the rest adds"


@pytest.mark.parametrize("net", ["stenosis_s", "stenosis_fpn"])
def test_a_frame_and_its_mirror_image_get_the_same_map_turned_over(net: str) -> None:
    torch.manual_seed(0)
    classifier = ClipClassifier(NETS[net]).eval()
    x = torch.randint(0, 256, (1, 2, 128, 128), dtype=torch.uint8)

    def maps(x_BTHW: torch.Tensor) -> torch.Tensor:
        return classifier.raw(x_BTHW)[0] if classifier.num_boxes else classifier.maps(x_BTHW)

    with torch.no_grad():
        seen, mirrored = maps(x), maps(x.flip(-1))
        assert torch.allclose(seen, mirrored.flip(-1), atol=1e-5)
        assert not torch.allclose(classifier.net.cells(classifier.net.features(classifier._normalised(x)[:, :, 0])), seen[0, :1])


def test_inception_with_its_mean_is_the_classifier_of_torchvision() -> None:
    torch.manual_seed(0)
    net = inception_v3(2).eval()
    classifier = ClipClassifier(NETS["inception_v3"], net=net).eval()
    clip = torch.randint(0, 256, (1, 1, 299, 299), dtype=torch.uint8)
    with torch.inference_mode():
        x = clip[:, 0, None].float() / 255 / 0.225 - 0.45 / 0.225
        features = net.features(x.expand(-1, 3, -1, -1)).mean(dim=(2, 3))
        expected = features @ net.cells.weight[:, :, 0, 0].T + net.cells.bias
        assert classifier.logits(clip)[0, 0, 1] == pytest.approx(float(expected), abs=1e-4)


def test_local_contrast_shows_the_same_vessel_before_a_bright_and_a_dark_background() -> None:
    grey = torch.full((2, 3, 64, 64), 60.0)
    grey[1] = 200.0
    grey[:, :, :, 30:33] *= 0.7
    x = (grey / 255 - 0.45) / 0.225
    of_dark, of_bright = LocalContrast()(x)[:, 1]
    assert of_dark[32, 31] < -0.5
    torch.testing.assert_close(of_dark[16:48, 24:40], of_bright[16:48, 24:40], atol=0.03, rtol=0.03)


@pytest.mark.skipif(unsupported(BackendChoice(backend="openvino")) is not None, reason="OpenVINO is not installed")
@pytest.mark.parametrize("net", ["stenosis_s", "stenosis_fpn"])
def test_openvino_gives_the_same_classes_maps_and_boxes(net: str, tmp_path: Path) -> None:
    bundle = made(tmp_path, net)
    pixels = np.random.default_rng(1).integers(0, 256, (3, 4, 64, 64), dtype=np.uint8)
    plain = TASKS["stenosis"].scorer(bundle, BackendChoice(), num_threads=1)
    native = TASKS["stenosis"].scorer(bundle, BackendChoice(backend="openvino"), num_threads=1)
    for batch in (pixels, pixels[:1]):
        found, expected = (taken_apart(s.probabilities_of(batch), 2, NETS[net].num_boxes) for s in (native, plain))
        for one, other in zip(found[:2], expected[:2], strict=True):
            np.testing.assert_allclose(one, other, atol=2e-3)
        if found[2] is not None and expected[2] is not None:  # of a fresh net many are as good: the order is free
            np.testing.assert_allclose(found[2][..., 4], expected[2][..., 4], atol=2e-3)
