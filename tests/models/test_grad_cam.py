from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from angio_ray.models import NETS
from angio_ray.models.bundles import SHIPPED, Bundle, load_bundle, write_bundle
from angio_ray.models.classifier import ClipClassifier
from angio_ray.models.grad_cam import LAST_FEATURES, GradCam, class_map
from angio_ray.sampling import ClipWindow


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle(SHIPPED / "quality")


def clip(frames: int = 16, size: int = 160) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (frames, size, size), dtype=np.uint8)


def test_probabilities_are_the_bundles_own_and_heat_is_a_share_per_pixel(shipped: Bundle) -> None:
    frames = clip()
    probability_K, heat_THW = GradCam(shipped)(frames, 1)
    with torch.inference_mode():
        expected = shipped.ensemble()(torch.from_numpy(frames)[None])[0].numpy()
    np.testing.assert_allclose(probability_K, expected, atol=1e-4)
    assert heat_THW.shape == frames.shape
    assert heat_THW.dtype == np.float32
    assert (heat_THW.min(), heat_THW.max()) == (pytest.approx(0, abs=0.2), pytest.approx(1))


class _Margin(nn.Module):
    """What the two-class log-odds are to MONAI: a net with one output a class."""

    def __init__(self, classifier: ClipClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.classifier.logits(x)
        return logits - logits.flip(1)


def test_maps_are_those_of_monai() -> None:
    from monai.visualize.class_activation_maps import GradCAM

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv3d(3, 8, 3), nn.ReLU(), nn.Conv3d(8, 4, 3, stride=2), nn.AdaptiveAvgPool3d(1), nn.Flatten()
    )
    classifier = ClipClassifier(NETS["x3d_s"], net=nn.Sequential(net, nn.Linear(4, 2))).eval()
    x = torch.from_numpy(clip(8, 32))[None]
    for k in (0, 1):
        probability, ours = class_map(classifier, "0.2", x, k)
        theirs = GradCAM(_Margin(classifier), "classifier.net.0.2").compute_map(x, class_idx=k)
        assert ours.shape == (1, 1, 2, 14, 14)
        assert ours.max() > 0
        torch.testing.assert_close(ours, theirs.detach())
        torch.testing.assert_close(probability, classifier(x).detach())


def test_of_an_ensemble_the_maps_are_averaged(shipped: Bundle) -> None:
    frames = clip()
    twice = replace(shipped, weights=shipped.weights * 2)
    np.testing.assert_allclose(GradCam(twice)(frames, 1)[1], GradCam(shipped)(frames, 1)[1], atol=1e-3)


class _BrightCorner(nn.Module):
    """A 2D net that calls a frame positive by the brightness of its upper left quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer4 = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.fc = nn.Linear(4, 2)
        with torch.no_grad():
            for weight in self.layer4.parameters():
                weight.zero_()
            self.layer4[0].weight[0] = 1.0
            self.fc.weight.zero_()
            self.fc.bias.zero_()
            self.fc.weight[1, 0] = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer4(x).mean((2, 3)))


def test_heat_lies_where_the_evidence_is_in_place_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETS, "r18_2d", replace(NETS["r18_2d"], build=_BrightCorner))
    bundle = write_bundle(
        tmp_path, task="quality", net="r18_2d", state_dicts=[_BrightCorner().state_dict()], threshold=0.5,
        trained_on="synthetic", window=ClipWindow(name="small", size=32, length=4, stride=1),
    )  # fmt: skip
    frames = np.zeros((4, 32, 32), np.uint8)
    frames[2, :16, :16] = 255
    heat = GradCam(bundle)(frames, 1)[1]
    assert heat[2, :14, :14].min() > 0.9
    assert heat[2, 18:, 18:].max() < 0.05
    assert heat[0].max() < 0.05
    # nothing here speaks for the other class
    assert GradCam(bundle)(frames, 0)[1].max() == 0


def test_every_net_with_a_class_per_clip_has_its_last_features() -> None:
    assert LAST_FEATURES.keys() == {name for name, spec in NETS.items() if spec.layout in ("BCTHW", "BTCHW-mean")}
    for name, layer in LAST_FEATURES.items():
        with torch.device("meta"):
            net = NETS[name].build()
        assert layer in dict(net.named_modules())


def test_an_unknown_net_is_named(shipped: Bundle) -> None:
    with pytest.raises(ValueError, match="no Grad-CAM for shuffle"):
        GradCam(replace(shipped, net="shuffle"))
