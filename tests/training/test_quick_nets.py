"""The nets as training takes them: the same function, quicker, at any input size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from angio_ray.models import NETS
from angio_ray.models.classifier import ClipClassifier
from angio_ray.training.quick_nets import any_input_size, depthwise, quick_on_cpu, settle_statistics


@pytest.mark.parametrize(
    ("kernel", "stride", "frames"),
    [
        ((3, 3, 3), (1, 1, 1), 7),
        ((3, 3, 3), (1, 2, 2), 7),
        ((5, 1, 1), (1, 1, 1), 7),
        ((5, 3, 3), (1, 1, 1), 2),
        ((3, 3, 3), (1, 1, 1), 1),
    ],
    ids=["3x3x3", "3x3x3 strided", "temporal", "fewer frames than taps", "one frame"],
)
def test_quick_convolution_is_the_same_function(
    kernel: tuple[int, int, int], stride: tuple[int, int, int], frames: int
) -> None:
    torch.manual_seed(0)
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    conv = torch.nn.Conv3d(6, 6, kernel, stride, padding, groups=6, bias=False)
    x = torch.randn(2, 6, frames, 9, 9, requires_grad=True)
    outcomes = []
    for forward in (conv.forward, lambda x: depthwise(conv, x)):
        y = forward(x)
        outcomes.append((y, *torch.autograd.grad((y**2).sum(), (x, conv.weight))))
    assert float(outcomes[0][0].detach().abs().max()) > 0.1
    for plain_torch, quick in zip(*outcomes, strict=True):
        torch.testing.assert_close(quick, plain_torch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (3, 1, 1), "stride": (1, 2, 2), "padding": (1, 0, 0)},
        {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
        {"kernel_size": 3, "padding": (1, 2, 2), "dilation": (1, 2, 2)},
    ],
    ids=["stride in space of a kernel over time", "padding mode", "dilation"],
)
def test_other_convolutions_go_the_usual_way(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(6, 6, groups=6, bias=False, **options)
    x = torch.randn(2, 6, 5, 9, 9)
    torch.testing.assert_close(depthwise(conv, x), conv(x))


def test_quick_convolution_is_the_same_with_bfloat16_around_it() -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(6, 6, 3, 1, 1, groups=6, bias=False)
    x = torch.randn(2, 6, 4, 9, 9, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise(conv, x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), conv(x.float()), rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_quick_net_scores_as_the_shipped_one_and_takes_other_sizes() -> None:
    torch.manual_seed(0)
    classifier = ClipClassifier(NETS["x3d_s"]).eval()
    x = torch.rand(1, 16, 160, 160) * 255
    names = list(classifier.state_dict())
    before = classifier.logits(x)
    any_input_size(classifier)
    quick_on_cpu(classifier)
    assert float(before.abs().max()) > 1e-4
    torch.testing.assert_close(classifier.logits(x), before, rtol=1e-3, atol=1e-5)
    assert classifier.logits(x[:, ::4, ::2, ::2]).shape == (1, 2)
    assert list(classifier.state_dict()) == names


def test_settled_statistics_are_those_of_the_batches() -> None:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm3d(4)
    pool = torch.nn.AdaptiveAvgPool3d(1)
    net = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 3), norm, pool, torch.nn.Flatten(), torch.nn.Linear(4, 2))
    classifier = ClipClassifier(NETS["x3d_s"], net=net)
    seen: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    kernel = net[0].weight.clone()
    settle_statistics(classifier, [torch.rand(2, 4, 12, 12) * 255 for _ in range(3)])
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3, 4)) for x in seen]).mean(0))
    assert norm.momentum == pytest.approx(0.1)
    assert not classifier.training
    assert torch.equal(kernel, net[0].weight)
