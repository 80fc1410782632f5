from __future__ import annotations

import pytest
import torch
from ptflops import get_model_complexity_info
from torch import nn

from angio_ray.models.double_head import ResUNet


def pair(batch: int = 2, size: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 2, size, size), dtype=torch.uint8, generator=generator)


def net(num_heads: int = 2) -> ResUNet:
    """Narrow, with every block awake: fresh ones are their shortcuts."""
    torch.manual_seed(0)
    made = ResUNet(8, num_heads=num_heads)  # type: ignore[arg-type]
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return made


@pytest.mark.parametrize(
    ("width", "num_heads", "all_of_it", "classifier"),
    [
        (64, 2, (19.54, 15.49), (10.04, 6.03)),
        (64, 1, (19.35, 13.28), (9.88, 4.42)),
        (16, 2, (1.23, 1.10), (0.63, 0.40)),
        (16, 1, (1.21, 0.95), (0.62, 0.29)),
    ],
)
def test_parameters_and_gmac_are_those_of_the_docstring(
    width: int, num_heads: int, all_of_it: tuple[float, float], classifier: tuple[float, float]
) -> None:
    with torch.device("meta"):
        made = ResUNet(width, num_heads=num_heads).eval()  # type: ignore[arg-type]
        alone = nn.Sequential(made.encoder, _Verdict(made)).eval()
    for module, (params_m, gmac) in ((made, all_of_it), (alone, classifier)):
        macs, params = get_model_complexity_info(
            module, (2, 256, 256), as_strings=False, print_per_layer_stat=False, verbose=False, backend="pytorch"
        )
        assert (round(params / 1e6, 2), round(macs / 1e9, 2)) == (params_m, gmac)


class _Verdict(nn.Module):
    def __init__(self, made: ResUNet) -> None:
        super().__init__()
        self.classifier = made.classifier

    def forward(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        found: torch.Tensor = self.classifier(features[-1].mean(dim=(2, 3)))
        return found


def test_one_pass_gives_verdict_and_region_and_features_have_their_sizes() -> None:
    made = net().eval()
    x = pair()
    with torch.inference_mode():
        logits, roi = made.regions(x)
        torch.testing.assert_close(made.classify(x), logits)
        torch.testing.assert_close(made(x.float())[1], roi)
        features = made.features(x)
    assert logits.shape == (2,)
    assert roi.shape == (2, 1, 64, 64)
    assert [tuple(f.shape[1:]) for f in features] == [(16, 32, 32), (16, 16, 16), (32, 8, 8), (64, 4, 4), (64, 2, 2)]


def test_each_head_sees_its_own_frame() -> None:
    made = net().eval()
    x = pair()
    for frame, changed, same in ((0, slice(0, 8), slice(8, 16)), (1, slice(8, 16), slice(0, 8))):
        other = x.clone()
        other[:, frame] = 255 - other[:, frame]
        before, after = made.features(x)[0], made.features(other)[0]
        assert torch.equal(before[:, same], after[:, same])
        assert not torch.isclose(before[:, changed], after[:, changed]).all()
        assert not torch.isclose(made.classify(x), made.classify(other)).any()


def test_with_one_head_only_the_frame_without_contrast_counts() -> None:
    made = net(1).eval()
    x = pair()
    contrast, plain = x.clone(), x.clone()
    contrast[:, 1], plain[:, 0] = 0, 0
    assert all(torch.equal(a, b) for a, b in zip(made(x), made(contrast), strict=True))
    assert not torch.isclose(made.classify(x), made.classify(plain)).any()


@pytest.mark.parametrize("then_train", [False, True])
def test_a_frozen_classifier_stays_bit_for_bit_while_the_decoder_learns(then_train: bool) -> None:
    made = net().train()
    made.freeze_classifier()
    if then_train:
        made.eval().train()  # as a loop does around its validation
    before = {name: value.clone() for name, value in made.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], 1e-2, weight_decay=0.1)
    verdict = made.classify(pair())
    made.regions(pair(4))[1].mean().backward()
    optimizer.step()
    changed = {name.split(".")[0] for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"decoder"}
    assert torch.equal(made.classify(pair()), verdict)


def test_unfrozen_all_parts_learn() -> None:
    made = net().train()
    logits, roi = made.regions(pair(4))
    (logits.mean() + roi.square().mean()).backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_patch_is_the_pool_of_what_the_cells_of_block_6_say() -> None:
    made = net().eval()
    torch.testing.assert_close(made.classify(pair()), made.cells(pair()).mean(dim=(1, 2)))
    single = torch.full((2, 8, 8), -6.0)
    single[1, 3, 4] = 4.0
    made.pool = "logsumexp"
    low, high = made.verdict_of(single).tolist()
    assert low < -3 < 3 < high, "one cell speaks for its patch, 64 that say no do not"
    assert ResUNet(8, pool="logsumexp").eval().classify(pair()).sigmoid().max() < 0.5, "fresh, it says no"


def test_heat_is_the_grad_cam_of_block_6() -> None:
    from monai.visualize.class_activation_maps import GradCAM

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net().eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net.classify(x)[:, None]

    module = Classifier()
    nn.init.uniform_(module.net.classifier.weight, -0.5, 1.0)  # so that something speaks for calcification everywhere
    x = pair(3, 128)
    ours = module.net.heat(x).detach()
    theirs = GradCAM(module, "net.encoder.block6").compute_map(x, class_idx=0)[:, 0].detach()
    assert ours.shape == (3, 4, 4)
    assert (ours.amax(dim=(1, 2)) > 0).all()
    torch.testing.assert_close(ours / ours.amax(dim=(1, 2), keepdim=True), theirs / theirs.amax(dim=(1, 2), keepdim=True))


def test_sides_that_do_not_halve_five_times_are_refused() -> None:
    with pytest.raises(ValueError, match="48 and 48 px are no multiples of 32"):
        ResUNet(8).classify(pair(1, 48))


def test_a_patch_judged_twice_is_called_as_its_mirror_image() -> None:
    torch.manual_seed(0)
    made = ResUNet(8, pool="logsumexp", twice=True).eval()
    x = pair()
    with torch.inference_mode():
        torch.testing.assert_close(made.classify(x), made.classify(x.flip(-1)))
        torch.testing.assert_close(made.regions(x)[0], made.classify(x))
        alone = ResUNet(8, pool="logsumexp").eval()
        alone.load_state_dict(made.state_dict())
        assert not torch.allclose(alone.classify(x), alone.classify(x.flip(-1)), atol=1e-4)
