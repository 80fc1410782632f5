from __future__ import annotations

import torch

from angio_ray.training.losses import soft_convolutional_f1

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
