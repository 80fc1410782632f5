"""The plain loop: no patient on both sides, the paper's figures from its counts, the same net but quicker, a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from angio_ray.models.bundles import load_bundle
from angio_ray.phantom import generate
from angio_ray.training import plain
from angio_ray.training.plain import Inputs, PlainConfig


def test_no_patient_is_in_two_parts_and_all_parts_are_there() -> None:
    patients = np.repeat([f"p{i}" for i in range(23)], 5)
    part = plain.split_by_patient(patients, (0.7, 0.15, 0.15), seed=1)
    members = [set(patients[part == i]) for i in range(3)]
    assert sum(map(len, members)) == 23
    assert [len(m) for m in members] == [16, 4, 3]
    assert not np.array_equal(part, plain.split_by_patient(patients, (0.7, 0.15, 0.15), seed=2))
    with pytest.raises(ValueError, match="three patients"):
        plain.split_by_patient(np.array(["a", "a", "b"]), (0.7, 0.15, 0.15), seed=1)


def test_metrics_give_the_papers_row_from_its_counts() -> None:
    """Spec section 1: X3D-S on the independent set, found 1920, missed 531, kept 15971, wrongly excluded 1966."""
    target = np.repeat([1, 1, 0, 0], [1920, 531, 15971, 1966])
    score = np.repeat([0.9, 0.1, 0.1, 0.9], [1920, 531, 15971, 1966]).astype(np.float32)
    found = plain.metrics(target, score, 0.5)
    shown = {k: round(found[k], 2) for k in ("accuracy", "precision", "sensitivity", "specificity", "f1")}
    assert shown == {"accuracy": 0.88, "precision": 0.49, "sensitivity": 0.78, "specificity": 0.89, "f1": 0.61}


def test_a_figure_without_a_denominator_is_not_a_number() -> None:
    found = plain.metrics(np.zeros(4, np.int64), np.zeros(4, np.float32), 0.5)
    assert np.isnan(found["auc"])
    assert np.isnan(found["sensitivity"])
    assert found["specificity"] == 1


def test_youden_threshold_lies_between_the_classes() -> None:
    target = np.array([0, 0, 0, 1, 1])
    score = np.array([0.1, 0.2, 0.4, 0.6, 0.9], np.float32)
    assert plain.youden_threshold(target, score) == pytest.approx(0.5)
    assert plain.metrics(target, score, plain.youden_threshold(target, score))["accuracy"] == 1


@pytest.mark.parametrize(
    ("kernel", "stride"),
    [((3, 3, 3), (1, 1, 1)), ((3, 3, 3), (1, 2, 2)), ((5, 1, 1), (1, 1, 1))],
    ids=["3x3x3", "3x3x3 strided", "temporal"],
)
def test_quick_convolution_is_the_same_function(kernel: tuple[int, ...], stride: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    padding = tuple(k // 2 for k in kernel)
    conv = torch.nn.Conv3d(6, 6, kernel, stride, padding, groups=6, bias=False)  # type: ignore[arg-type]
    x = torch.randn(2, 6, 7, 9, 9, requires_grad=True)
    outcomes = []
    for forward in (conv.forward, lambda x: plain._depthwise(conv, x)):
        y = forward(x)
        outcomes.append((y, *torch.autograd.grad((y**2).sum(), (x, conv.weight))))
    assert float(outcomes[0][0].abs().max()) > 0.1
    for plain_torch, quick in zip(*outcomes, strict=True):
        torch.testing.assert_close(quick, plain_torch, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_quick_net_scores_as_the_shipped_one_and_takes_other_sizes() -> None:
    torch.manual_seed(0)
    classifier = plain.ClipClassifier(plain.NETS["x3d_s"]).eval()
    x = torch.rand(1, 16, 160, 160) * 255
    before = classifier.logits(x)
    plain._any_input_size(classifier)
    assert float(before.abs().max()) > 1e-4
    torch.testing.assert_close(classifier.logits(x), before, rtol=1e-3, atol=1e-5)
    assert classifier.logits(x[:, ::4, ::2, ::2]).shape == (1, 2)


def test_augmentation_keeps_shape_and_range_and_moves_all_frames_alike() -> None:
    still = torch.rand(1, 48, 48).mul(255).repeat(4, 1, 1)
    rng = np.random.default_rng(0)
    for _ in range(12):
        changed = plain.augment(still, rng)
        assert changed.shape == still.shape
        assert float(changed.min()) >= 0
        assert float(changed.max()) <= 255
        assert not torch.equal(changed, still)
    quiet = plain.augment(still, np.random.default_rng(3))
    assert float((quiet[0] - quiet[-1]).abs().mean()) < 30


def test_training_needs_both_classes() -> None:
    inputs = Inputs(
        clips_NTHW=np.zeros((6, 16, 32, 32), np.uint8),
        unsatisfactory_N=np.zeros(6, np.int64),
        patients_N=np.array(list("aabbcc")),
        classes_N=np.array(["satisfactory"] * 6),
    )
    with pytest.raises(ValueError, match="one class"):
        plain.train(inputs, PlainConfig(stages=((32, 4, 1),)))


def test_folder_of_clips_becomes_a_bundle_with_a_card(tmp_path: Path) -> None:
    generate(tmp_path / "clips", patients=4, seed=3, size=64, clips=(3, 3), frames=(40, 44), syntax="rle", workers=1)
    config = ["--stages", "32x4x1", "--batch", "4", "--threads", "1", "--made-by", "angio-ray phantom CLIPS --patients 4"]
    assert plain.main([str(tmp_path / "clips"), str(tmp_path / "bundle"), *config]) == 0
    bundle = load_bundle(tmp_path / "bundle")
    assert (bundle.task, bundle.net, bundle.trained_on) == ("quality", "x3d_s", "synthetic")
    assert 0 <= bundle.threshold <= 1
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    for phrase in ("synthetic clips only", "not for clinical use", "angio-ray phantom CLIPS --patients 4", "held-out test"):
        assert phrase in card


def test_a_missing_clip_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(tmp_path, patients=3, seed=3, size=48, clips=(2, 2), frames=(40, 40), syntax="native", workers=1)
    (tmp_path / "patient_0001" / "clip_00.dcm").unlink()
    assert plain.main([str(tmp_path), str(tmp_path / "bundle")]) == 2
    message = capsys.readouterr().err
    assert "patient_0001/clip_00.dcm" in message
    assert message.count("\n") == 1
