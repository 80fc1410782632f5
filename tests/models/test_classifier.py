"""The classifier equals the libraries' nets on normalised input, written out by hand."""

from __future__ import annotations

import torch

from angio_ray.models import NETS
from angio_ray.models.classifier import ClipClassifier, Ensemble


def test_3d_nets_see_normalised_grey_frames_in_three_channels() -> None:
    torch.manual_seed(0)
    classifier = ClipClassifier(NETS["x3d_s"], mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).eval()
    clips = torch.randint(0, 256, (2, 16, 160, 160), dtype=torch.uint8)
    by_hand = torch.stack(
        [(clips / 255.0 - m) / s for m, s in zip((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), strict=True)], dim=1)
    with torch.inference_mode():
        expected = torch.softmax(classifier.net(by_hand), dim=1)
        torch.testing.assert_close(classifier(clips), expected, atol=1e-5, rtol=0)
        # Floats in 0..255, as augmentation makes them, are the same clip.
        torch.testing.assert_close(classifier(clips.float()), expected, atol=1e-5, rtol=0)


def test_2d_nets_average_the_probabilities_of_their_frames() -> None:
    torch.manual_seed(0)
    classifier = ClipClassifier(NETS["r18_2d"]).eval()
    grey = torch.tensor([20, 90, 160, 250]).reshape(1, 4, 1, 1)
    clips = (torch.randint(0, 6, (2, 4, 299, 299)) + grey).clamp(0, 255).to(torch.uint8)
    with torch.inference_mode():  # a head that tells the frames apart, so that a mean of logits would be another number
        pooled = torch.nn.Sequential(*list(classifier.net.children())[:-1], torch.nn.Flatten())
        features = pooled(((clips[0] / 255.0 - 0.45) / 0.225).unsqueeze(1).expand(-1, 3, -1, -1))
        direction = features[3] - features[0]
        classifier.net.fc.weight[0] = 6 * direction / direction.norm() ** 2
        classifier.net.fc.weight[1] = 0
        classifier.net.fc.bias[:] = 0
        classifier.net.fc.bias[1] = (features @ classifier.net.fc.weight[0]).mean()
    frames = ((clips / 255.0 - 0.45) / 0.225).unsqueeze(2).expand(-1, -1, 3, -1, -1)
    with torch.inference_mode():
        each = torch.stack([torch.softmax(classifier.net(frames[:, t]), dim=1) for t in range(4)], dim=1)
        torch.testing.assert_close(classifier(clips), each.mean(dim=1), atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.softmax(classifier.logits(clips), 1), each.mean(dim=1), atol=1e-5, rtol=0)
        mean_of_logits = torch.softmax(torch.log(each).mean(dim=1), dim=1)
    assert (mean_of_logits - each.mean(dim=1)).abs().max() > 1e-3


def test_an_ensemble_is_the_mean_of_its_members_probabilities() -> None:
    torch.manual_seed(0)
    members = [ClipClassifier(NETS["x3d_s"]).eval() for _ in range(2)]
    clips = torch.randint(0, 256, (1, 16, 160, 160), dtype=torch.uint8)
    with torch.inference_mode():
        first, second = (m(clips) for m in members)
        torch.testing.assert_close(Ensemble(members).eval()(clips), (first + second) / 2)
    assert not torch.equal(first, second)
