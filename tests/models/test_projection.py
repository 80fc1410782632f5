from __future__ import annotations

import torch

from angio_ray.models import NETS, TASKS
from angio_ray.models.classifier import ClipClassifier, kernel_format
from angio_ray.models.contrast import WHOLE_112
from angio_ray.models.projection import Projection


def test_what_was_dark_counts_wherever_in_the_run_it_was() -> None:
    torch.manual_seed(0)
    net = Projection(2).eval()
    x = torch.full((1, 3, 12, 64, 64), 0.5)
    early, late = x.clone(), x.clone()
    early[:, :, 1, 20:40, 30:34] = -1.0
    late[:, :, 10, 20:40, 30:34] = -1.0
    with torch.no_grad():
        assert torch.allclose(net(early), net(late), atol=1e-6)
        assert not torch.allclose(net(early), net(x), atol=1e-4)


def test_it_shares_the_input_of_the_frames_of_full_contrast() -> None:
    spec = NETS["projection_2d"]
    assert spec.window == WHOLE_112 == NETS["frames_lstm"].window
    assert spec.layout in TASKS["artery"].layouts
    with torch.no_grad():
        logits = ClipClassifier(spec).eval().logits(torch.zeros(2, 40, 112, 112, dtype=torch.uint8))
    assert logits.shape == (2, 2)


def test_its_weights_lie_as_kernels_of_two_dimensions_want_them() -> None:
    assert kernel_format(NETS["projection_2d"].build()) == torch.channels_last
    assert kernel_format(NETS["x3d_s"].build()) == torch.channels_last_3d
    assert kernel_format(NETS["r18_2d"].build()) == torch.channels_last
