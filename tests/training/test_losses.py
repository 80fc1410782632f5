from __future__ import annotations

import numpy as np
import torch
from torchvision.ops import box_iou

from angio_ray.models import NETS
from angio_ray.training.augment import AugmentConfig, augment_located
from angio_ray.training.losses import MOTION, box_loss, boxes_of_frames, detection_loss, soft_convolutional_f1

TRUE = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0, 0, 0]])
ALL = torch.ones(1, 10)


def called(*frames: int) -> torch.Tensor:
    p = torch.zeros(1, 10)
    p[0, list(frames)] = 1
    return p


def test_without_tolerance_it_is_the_f1_of_hard_calls() -> None:
    # 2 of 3 calls are right, 2 of 3 frames are found
    assert torch.isclose(soft_convolutional_f1(called(4, 5, 6), TRUE, ALL, tolerance=0), torch.tensor([2 / 3])).all()
    assert soft_convolutional_f1(called(3, 4, 5), TRUE, ALL, tolerance=0) == 1


def test_a_shift_within_the_tolerance_costs_nothing_and_a_wider_one_does() -> None:
    assert soft_convolutional_f1(called(4, 5, 6), TRUE, ALL, tolerance=1) == 1
    two = soft_convolutional_f1(called(5, 6, 7), TRUE, ALL, tolerance=1)
    assert 0 < two < 1
    assert soft_convolutional_f1(called(9), TRUE, ALL, tolerance=1) == 0


def test_frames_without_a_target_count_nowhere() -> None:
    judged = ALL.clone()
    judged[0, 6:] = 0
    assert soft_convolutional_f1(called(3, 4, 5, 8, 9), TRUE, judged) == 1


def test_a_clip_without_the_class_loses_by_what_is_called() -> None:
    none = torch.zeros(1, 10, dtype=torch.long)
    assert soft_convolutional_f1(called(), none, ALL) == 1
    assert torch.isclose(soft_convolutional_f1(called(1, 2), none, ALL), torch.tensor([0.8])).all()


def test_descending_its_gradient_finds_the_span() -> None:
    logits = torch.zeros(1, 10, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.3)
    for _ in range(100):
        optimizer.zero_grad()
        (1 - soft_convolutional_f1(torch.sigmoid(logits), TRUE, ALL, tolerance=0)).sum().backward()
        optimizer.step()
    assert ((logits > 0).long() == TRUE).all()


def maps(*cells: tuple[int, int, float], height: int = 8) -> torch.Tensor:
    found = torch.full((1, 1, height, 8), -9.0)
    for row, column, value in cells:
        found[0, 0, row, column] = value
    return found


BOX = torch.tensor([[1.0, 0.25, 0.25, 0.5, 0.5]])  # cells 2 and 3 of 8, both ways


def test_a_box_wants_one_of_its_cells_and_no_cell_outside() -> None:
    right, wrong, silent = maps((2, 3, 9.0)), maps((6, 6, 9.0)), maps()
    assert box_loss(right, [BOX]) < 0.02
    assert box_loss(silent, [BOX]) > 5
    assert box_loss(wrong, [BOX]) > box_loss(silent, [BOX])
    assert box_loss(maps((2, 3, 9.0), (3, 2, 9.0)), [BOX]) < 0.02, "how many of them is free"


def test_boxes_of_the_first_class_are_background_and_those_of_none_are_free() -> None:
    says = maps((2, 3, 9.0))
    mild, unknown = BOX.clone(), BOX.clone()
    mild[0, 0], unknown[0, 0] = 0, -1
    assert box_loss(says, [mild]) > 0.4
    assert box_loss(says, [unknown]) < 0.02
    assert box_loss(says, [None]) == 0


def test_with_three_classes_the_box_must_be_of_its_own() -> None:
    both = torch.full((1, 2, 8, 8), -9.0)
    both[0, 1, 2, 3] = 9.0
    closed = BOX.clone()
    closed[0, 0] = 2
    assert box_loss(both, [closed]) < 0.02
    assert box_loss(both, [BOX]) > 5


def test_a_detector_is_taught_boxes_of_the_papers_least_size() -> None:
    torch.manual_seed(0)
    net = NETS["stenosis_fpn"].build().train()
    anchors = net.anchors_of(64, 64)
    small = torch.tensor([[1.0, 28 / 64, 28 / 64, 36 / 64, 36 / 64]])  # 8 px: taught as 36
    fits = box_iou(torch.tensor([[14.0, 14, 50, 50]]), anchors)[0]
    logits, coded = torch.where(fits > 0.5, 6.0, -6.0)[None, :, None], torch.zeros(1, len(anchors), 4)
    assert fits.max() > 0.5

    def loss(boxes: torch.Tensor | None, said: torch.Tensor = logits) -> float:
        return float(detection_loss(net.head, said, coded, anchors, [boxes], size=64, smallest=36))

    silent = torch.full_like(logits, -6.0)
    assert loss(small) < 0.5 * loss(small, silent)
    assert loss(small[:0], silent) < 0.1 < loss(small[:0])
    unknown = small * torch.tensor([-1.0, 1, 1, 1, 1])
    assert loss(unknown) < 0.1, "neither right nor wrong"
    assert loss(None) == 0


def test_a_box_is_wider_on_frames_that_it_was_not_marked_on() -> None:
    marked = np.array([[1, 0, 1, 0.25, 0.25, 0.5, 0.5], [2, 1, 1, 0.25, 0.25, 0.5, 0.5]], np.float32)
    here, there, none = boxes_of_frames(marked, [1, 2, 3])
    assert len(none) == 0
    assert here[0].tolist() == [1, 0.25, 0.25, 0.5, 0.5]
    torch.testing.assert_close(there[0], torch.tensor([1, 0.25 - MOTION, 0.25 - MOTION, 0.5 + MOTION, 0.5 + MOTION]))


def test_a_box_goes_with_the_picture_that_is_changed() -> None:
    generator = torch.Generator().manual_seed(3)
    clips = torch.zeros(6, 1, 64, 64)
    clips[:, :, 16:28, 10:20] = 255.0
    config = AugmentConfig(flip=0.5, rotation_deg=10, zoom=0.1, shift=0.05, perspective=0.05, blur_share=0, gamma=0, contrast=0,
                           brightness=0, noise_share=0, halo_share=0)  # fmt: skip
    changed, homography_B33 = augment_located(clips, config, generator)
    marked = np.array([[0, 0, 1, 10 / 64, 16 / 64, 20 / 64, 28 / 64]], np.float32)
    for x, homography_33 in zip(changed[:, 0], homography_B33, strict=True):
        (box,) = boxes_of_frames(marked, [0], homography_33)[0].tolist()
        bright = (x > 128).nonzero()
        top, left = (bright.amin(dim=0) / 64).tolist()
        bottom, right = ((bright.amax(dim=0) + 1) / 64).tolist()
        np.testing.assert_allclose([left, top, right, bottom], box[1:], atol=0.035)
