"""The loop of one fold: it learns, it goes on as if it had never stopped, workers and accumulation change nothing."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from sklearn.metrics import roc_auc_score
from torch import nn

from angio_ray.models import NETS, interface, region_nets
from angio_ray.models.classifier import ClipClassifier, cell_probability
from angio_ray.models.interface import NOT_LAST, UNJUDGED
from angio_ray.models.stenosis import NUM_BOXES, taken_apart
from angio_ray.sampling import ClipWindow
from angio_ray.training import loop
from angio_ray.training.loop import (
    Epoch,
    FitError,
    InMemory,
    Part,
    Place,
    State,
    close_branches,
    fit,
    predict,
    predict_places,
    quickest_precision,
    thinned,
    thinned_targets,
)
from angio_ray.training.paired_frames import mask_of
from angio_ray.training.recipes import (
    NO_AUGMENTATION,
    AugmentConfig,
    Loss,
    Recipe,
    Stage,
    find_recipe,
    parse_stages,
)
from angio_ray.training.region_results import clip_regions

ONE = Place(threads=1)
"""Threads that wait for one another cost a loaded machine minutes."""
TINY = replace(
    find_recipe("smoke", "x3d_s"), stages=(Stage(size=32, frames=4, epochs=2), Stage(size=48, frames=4, epochs=2))
)


def part(count: int, seed: int = 0, positive: int = 2) -> Part:
    """Dark negatives, bright positives (every `positive`-th)."""
    rng = np.random.default_rng(seed)
    target_N = (np.arange(count) % positive == 0).astype(np.int64)
    clips_NTHW = rng.integers(0, 80, (count, 16, 48, 48)).astype(np.uint8)
    clips_NTHW[target_N == 1] += 120
    return Part(InMemory(clips_NTHW), target_N)


def copied(state: State) -> State:
    """As it comes back from a file."""
    file = io.BytesIO()
    torch.save(state.as_dict(), file)
    file.seek(0)
    return State.from_dict(torch.load(file, weights_only=True))


def test_a_loop_that_goes_on_ends_as_one_that_never_stopped() -> None:
    states: list[State] = []
    epochs: list[Epoch] = []

    def keep(epoch: Epoch, state: State) -> None:
        states.append(copied(state))
        epochs.append(epoch)

    recipe = replace(TINY, learning_rate=3e-3)
    whole = fit("x3d_s", part(16), part(6, 1), recipe, seed=3, place=ONE, after_epoch=keep)
    assert [(e.number, e.size, e.of) for e in epochs] == [(1, 32, 4), (2, 32, 4), (3, 48, 4), (4, 48, 4)]
    assert [s.done for s in states] == [False, False, False, True]
    assert epochs[-1].seconds_left == 0
    for at in (1, 2):
        again = fit("x3d_s", part(16), part(6, 1), recipe, seed=3, place=ONE, state=copied(states[at]))
        assert all(torch.equal(again.state_dict[k], v) for k, v in whole.state_dict.items()), at
        assert again.best_epoch == whole.best_epoch
        assert len(again.epochs) == 4
    other = fit("x3d_s", part(16), part(6, 1), replace(recipe, stages=recipe.stages[:1]), seed=4, place=ONE)
    assert not torch.equal(
        other.state_dict["blocks.0.conv.conv_t.weight"], whole.state_dict["blocks.0.conv.conv_t.weight"]
    )
    kernels = [v for v in whole.state_dict.values() if v.ndim > 1]
    assert all(torch.equal(v, v.half().float()) for v in kernels), "not as a bundle stores them"


OF_CLIPS = [name for name, spec in NETS.items() if name != "x3d_s" and spec.layout in ("BCTHW", "BTCHW-mean")]


@pytest.mark.parametrize("net", OF_CLIPS)
def test_each_net_takes_a_step(net: str) -> None:
    fitted = fit(net, part(4), part(2, 1), replace(find_recipe("smoke", net), settle_clips=0), place=ONE)
    untrained = ClipClassifier(NETS[net]).net.state_dict()
    assert fitted.epochs[0].steps == 1
    assert {k: v.shape for k, v in fitted.state_dict.items()} == {k: v.shape for k, v in untrained.items()}


# -- nets with a class per frame --------------------------------------------------------------------------------------


def sequences(count: int, seed: int = 0) -> Part:
    """24 frames: a vessel that is dark in a span of each clip's own (full contrast), half as dark around; the last unjudged."""
    rng = np.random.default_rng(seed)
    target_NT = np.zeros((count, 24), np.int64)
    for row, begin in zip(target_NT, rng.integers(3, 8, count), strict=True):
        row[begin - 2 : begin + 10] = 1
        row[begin : begin + 8] = 2
    clips = rng.integers(190, 200, (count, 24, 32, 32)).astype(np.uint8)
    clips[:, :, 8:24, 15:17] -= np.array([0, 50, 120], np.uint8)[target_NT][:, :, None, None]  # a vessel
    target_NT[:, 20:] = UNJUDGED
    return Part(InMemory(clips), target_NT)


@pytest.mark.parametrize("loss", ["cross_entropy", "f1"])
def test_a_net_learns_the_class_of_each_frame(loss: Loss) -> None:
    recipe = replace(
        find_recipe("smoke", "frames_lstm"), stages=(Stage(size=32, frames=24, epochs=12),), loss=loss, settle_clips=16,
        learning_rate=2e-2, augment=NO_AUGMENTATION,
    )  # fmt: skip
    train, held_out = sequences(16), sequences(5, seed=1)
    fitted = fit("frames_lstm", train, held_out, recipe, seed=1, place=ONE)
    p_NTK = predict(fitted.classifier, held_out, ONE)
    assert p_NTK.shape == (5, 24, 3)
    np.testing.assert_allclose(p_NTK.sum(axis=-1), 1, atol=1e-5)
    judged = held_out.target_N != UNJUDGED
    full = held_out.target_N[judged] == 2
    assert roc_auc_score(full, p_NTK[judged][:, 2]) > 0.95
    assert fitted.epochs[-1].validation_auc == pytest.approx(roc_auc_score(full, p_NTK[judged][:, 2]), abs=0.1)


def test_the_papers_net_of_frames_takes_a_step() -> None:
    clips = np.random.default_rng(0).integers(0, 256, (4, 8, 96, 96), dtype=np.uint8)
    part = Part(InMemory(clips), np.tile(np.array([0, 0, 1, 2, 2, 2, 1, 0]), (4, 1)))
    fitted = fit("inception_lstm", part, part, find_recipe("smoke", "inception_lstm"), place=ONE)
    assert fitted.epochs[0].steps == 2
    assert predict(fitted.classifier, part, ONE).shape == (4, 8, 3)


def test_unjudged_frames_have_no_part_in_the_gradient() -> None:
    recipe = replace(find_recipe("smoke", "frames_lstm"), stages=(Stage(size=32, frames=24, epochs=1),), settle_clips=0)
    once, changed = sequences(4), sequences(4)
    assert isinstance(changed.clips, InMemory)
    state = fit("frames_lstm", once, sequences(2, 1), recipe, seed=1, place=ONE).state_dict
    # other targets where nothing is judged would be another loss
    moved = Part(once.clips, np.where(once.target_N == UNJUDGED, 2, once.target_N))
    other = fit("frames_lstm", moved, sequences(2, 1), recipe, seed=1, place=ONE).state_dict
    again = fit("frames_lstm", changed, sequences(2, 1), recipe, seed=1, place=ONE).state_dict
    assert all(torch.equal(again[name], value) for name, value in state.items())
    assert not all(torch.equal(other[name], value) for name, value in state.items())


def test_a_frame_that_is_not_full_may_be_of_any_other_class() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5], [2.0, 1.0, 0.5], [2.0, 1.0, 0.5]])
    each = loop._cross_entropy(logits, torch.tensor([NOT_LAST, UNJUDGED, 2]), 0.0)
    p = torch.softmax(logits[0], dim=0)
    torch.testing.assert_close(each, torch.stack([-torch.log(p[0] + p[1]), torch.tensor(0.0), -torch.log(p[2])]))
    found, auc = loop._judged(np.array([[-2, -1, 2]]), torch.softmax(logits, dim=1)[None].numpy())
    assert found == pytest.approx(float((each[0] + each[2]) / 2), abs=1e-5)
    assert auc == 0.5


def test_a_net_learns_from_marks_of_full_contrast_alone() -> None:
    marked = sequences(16)
    known = Part(marked.clips, np.where(marked.target_N == 2, 2, NOT_LAST))
    recipe = replace(
        find_recipe("smoke", "frames_lstm"), stages=(Stage(size=32, frames=24, epochs=12),), settle_clips=16,
        learning_rate=2e-2, augment=NO_AUGMENTATION,
    )  # fmt: skip
    fitted = fit("frames_lstm", known, known, recipe, seed=1, place=ONE)
    assert fitted.epochs[-1].validation_auc > 0.95


def test_fewer_frames_take_their_own_targets_along() -> None:
    target = np.arange(24).reshape(1, 24)
    frames = thinned(torch.arange(24).view(1, 24, 1, 1), 1, 6)[0, :, 0, 0]
    assert thinned_targets(target, 6)[0].tolist() == frames.tolist()
    assert thinned_targets(np.array([1, 0]), 6).tolist() == [1, 0]


def spots(count: int, seed: int = 0) -> Part:
    """Three frames of noise; in every second clip a dark spot on each of them, marked on the first."""
    rng = np.random.default_rng(seed)
    target_NT = np.zeros((count, 3), np.int64)
    target_NT[::2] = 1
    clips = rng.integers(120, 180, (count, 3, 96, 96)).astype(np.uint8)
    boxes = []
    for clip_THW, target in zip(clips, target_NT[:, 0], strict=True):
        x, y = rng.integers(8, 72, 2)
        if target:
            clip_THW[:, y : y + 12, x : x + 12] = 20
        shares = np.array([x, y, x + 12, y + 12]) / 96
        boxes.append(np.array([[place, place > 0, 1, *shares] for place in range(3 * target)], np.float32).reshape(-1, 7))
    return Part(InMemory(clips), target_NT, tuple(boxes))


@pytest.mark.parametrize("stages", ["cut64x2x10,96x2x2", "96x2x8"])
def test_boxes_teach_a_net_with_maps_where_to_look(stages: str) -> None:
    recipe = replace(
        find_recipe("smoke", "stenosis_s"), stages=parse_stages(stages), settle_clips=16, learning_rate=1e-2,
        augment=AugmentConfig().scaled(0.3),
    )  # fmt: skip
    train, held_out = spots(32), spots(12, seed=1)
    fitted = fit("stenosis_s", train, held_out, recipe, seed=1, place=ONE)
    p_NTK = predict(fitted.classifier, held_out, ONE)
    assert p_NTK.shape == (12, 3, 2)
    assert roc_auc_score(held_out.target_N.ravel(), p_NTK[..., 1].ravel()) > 0.95
    _, maps, boxes = taken_apart(predict_places(fitted.classifier, held_out, ONE), 2)
    assert maps.shape == (12, 3, 12, 12)
    assert boxes is None
    for map_Thw, marked in zip(maps[::2], held_out.boxes[::2], strict=True):
        row, column = np.unravel_index(map_Thw[0].argmax(), (12, 12))
        assert marked is not None
        x0, y0, x1, y1 = marked[0, 3:] * 12
        assert x0 - 1 <= column < x1 + 1
        assert y0 - 1 <= row < y1 + 1


@pytest.mark.parametrize(("stages", "settled"), [("cut64x2x8", 0), ("96x3x8", 16)])
def test_a_net_may_learn_from_the_view_what_the_picture_does_not_say(stages: str, settled: int) -> None:
    recipe = replace(
        find_recipe("smoke", "stenosis_s_view"), stages=parse_stages(stages), settle_clips=settled, learning_rate=2e-2, passes=2,
        augment=AugmentConfig().scaled(0.0),
    )  # fmt: skip

    def of_views(part: Part) -> Part:
        """Every clip has its spot; whether that counts is the view's to say."""
        clips = part.clips.read(np.arange(len(part)))
        clips[1::2] = clips[::2]
        boxes = [b for box in part.boxes[::2] if box is not None for b in (box, box[:0])]
        return Part(InMemory(clips), part.target_N, tuple(boxes), views=("RCA", "RAO caudal") * (len(part) // 2))

    train, held_out = of_views(spots(32)), of_views(spots(12, seed=1))
    fitted = fit("stenosis_s_view", train, held_out, recipe, seed=1, place=ONE)
    p_NTK = predict(fitted.classifier, held_out, ONE)
    assert roc_auc_score(held_out.target_N.ravel(), p_NTK[..., 1].ravel()) > 0.9
    if settled:  # the statistics are those of pictures that were told, or all would be called the same
        assert p_NTK[::2, :, 1].mean() - p_NTK[1::2, :, 1].mean() > 0.6
    alike = predict(fitted.classifier, replace(held_out, views=(None,) * 12), ONE)
    np.testing.assert_allclose(alike[1::2], alike[::2], atol=1e-4)


def test_three_classes_begin_from_two_with_the_same_cells_called_narrow() -> None:
    torch.manual_seed(2)
    two, three = (ClipClassifier(NETS[net]).eval() for net in ("stenosis_s", "stenosis_s_3cat"))
    two.net.cells.weight.data *= 9  # type: ignore[union-attr, operator]
    three.net.load_state_dict(loop._for_classes(two.net.state_dict(), three))
    x = torch.from_numpy(spots(1).clips.read(np.arange(1)))
    with torch.inference_mode():
        torch.testing.assert_close(cell_probability(three.maps(x)), cell_probability(two.maps(x)))
        assert float(cell_probability(two.maps(x)).std()) > 0.001


def test_a_detector_learns_boxes_on_a_classifiers_features_and_leaves_its_classes() -> None:
    train, held_out = spots(32), spots(12, seed=1)
    classes = replace(
        find_recipe("smoke", "stenosis_s"), stages=parse_stages("96x3x8"), settle_clips=16, learning_rate=1e-2,
        augment=AugmentConfig().scaled(0.3),
    )  # fmt: skip
    fitted = fit("stenosis_s", train, held_out, classes, seed=1, place=ONE)
    boxes = replace(
        find_recipe("smoke", "stenosis_fpn"), stages=parse_stages("96x3x10"), learning_rate=1e-2,
        augment=AugmentConfig().scaled(0.0),
    )  # fmt: skip
    exact = replace(train, boxes=tuple(b * np.array([1, 0, 1, 1, 1, 1, 1], np.float32) for b in train.boxes if b is not None))
    detector = fit("stenosis_fpn", exact, held_out, boxes, seed=1, place=ONE, start=fitted.state_dict)
    for name, tensor in fitted.state_dict.items():
        torch.testing.assert_close(detector.state_dict[name], tensor, msg=name)
    said = predict_places(detector.classifier, held_out, ONE)
    p_NTK, _, found = taken_apart(said, 2, NUM_BOXES)
    np.testing.assert_allclose(p_NTK, predict(fitted.classifier, held_out, ONE), atol=1e-3)
    assert found is not None
    assert found.shape == (12, 3, NUM_BOXES, 5)
    losses = [epoch.loss for epoch in detector.epochs]
    assert losses[-1] < 0.5 * losses[0], "boxes of a third of the smallest anchor, so no more is asked"


def test_a_detector_is_not_taught_on_frames_that_were_not_marked() -> None:
    part_ = spots(4)
    recipe = find_recipe("smoke", "stenosis_fpn")
    made = loop._Loop("stenosis_fpn", part_, part_, recipe, 1, ONE, None)
    known = made._boxes(part_.boxes[:2], torch.eye(3).expand(2, 3, 3), None, None)
    assert [boxes is None for boxes in known] == [False, True, True, False, False, False], "nothing is marked on a clear clip"


def outlined(count: int, seed: int = 0) -> Part:
    """Pairs of frames of noise; the first of every second pair has a dark spot, which is outlined."""
    rng = np.random.default_rng(seed)
    pairs = rng.integers(120, 180, (count, 2, 128, 128)).astype(np.uint8)
    pngs = []
    for i, pair in enumerate(pairs):
        mask = np.zeros((128, 128), np.uint8)
        if i % 2 == 0:
            x, y = rng.integers(8, 108, 2)
            pair[0, y : y + 12, x : x + 12] = 20
            mask[y : y + 12, x : x + 12] = 255
        pngs.append(cv2.imencode(".png", mask)[1].tobytes())
    return Part(InMemory(pairs), np.arange(1, count + 1) % 2, outlines=tuple(pngs))


@pytest.mark.slow
@pytest.mark.parametrize("net", ["mask_rcnn", "fcos"])
def test_detectors_learn_by_their_own_losses(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    window = ClipWindow(name="pair_128px", size=128, start=0, length=2, stride=1)
    build = partial(region_nets.RegionOnly, region_nets.NETS[net](64))  # type: ignore[call-arg]
    monkeypatch.setitem(NETS, net, replace(NETS[net], window=window, build=build))
    recipe = replace(find_recipe("smoke", net), stages=parse_stages("roi128x2x2"), batch_size=2, region_rate=1e-4)
    states: list[State] = []
    fitted = fit(
        net, outlined(4), outlined(2, seed=1), recipe, place=ONE, after_epoch=lambda _, s: states.append(copy.deepcopy(s))
    )
    assert np.isfinite([epoch.loss for epoch in fitted.epochs]).all()
    first, last = states[0].model, states[1].model
    assert not any(torch.equal(first[name], last[name]) for name in first if name.endswith("conv1.weight")), "all of it learns"
    assert predict_places(fitted.classifier, outlined(2, seed=1), ONE).shape == (2, 2 + 5 + 5 * 64 * 64)
    with pytest.raises(FitError, match=f"{net} has no classifier"):
        fit(net, outlined(4), outlined(2, seed=1), replace(recipe, stages=parse_stages("128x2x1,roi128x2x1")), place=ONE)


@pytest.mark.parametrize(("net", "small"), [("unet", {"width": 4}), ("transunet", {"layers": 1}), ("fcos", {"size": 64})])
def test_nets_without_a_classifier_learn_regions_from_the_same_squares(
    net: str, small: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    window = ClipWindow(name="pair_128px", size=128, start=0, length=2, stride=1)
    build = partial(region_nets.RegionOnly, region_nets.NETS[net](**small))
    monkeypatch.setitem(NETS, net, replace(NETS[net], window=window, build=build))
    recipe = replace(
        find_recipe("short", net), stages=parse_stages("cutroi64x2x4"), batch_size=8, micro_batch=8, region_rate=3e-3
    )
    fitted = fit(net, outlined(8), outlined(4, seed=1), recipe, seed=1, place=ONE)
    losses = [epoch.loss for epoch in fitted.epochs]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert all(epoch.steps == round(8 * recipe.passes * 2 / 8) for epoch in fitted.epochs)


@pytest.mark.parametrize("cut", [False, True])
def test_a_classifier_of_patches_is_learnt_and_then_left_alone_while_its_regions_are(
    cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(NETS["resunet_s"], window=ClipWindow(name="pair_128px", size=128, start=0, length=2, stride=1))
    monkeypatch.setitem(NETS, "resunet_s", small)
    train, held_out = outlined(32), outlined(12, seed=1)
    recipe = replace(
        find_recipe("smoke", "resunet_s"), learning_rate=3e-3, region_rate=1e-2, step_epochs=20,
        augment=AugmentConfig().scaled(0.2), stages=parse_stages("cut64x2x14,cutroi64x2x8" if cut else "128x2x14,roi128x2x8"),
    )  # fmt: skip
    states: list[State] = []
    fitted = fit(
        "resunet_s", train, held_out, recipe, seed=1, place=ONE, after_epoch=lambda _, s: states.append(copy.deepcopy(s))
    )
    first, last = states[13].model, states[-1].model
    for name in first:
        assert torch.equal(first[name], last[name]) or name.startswith("decoder."), name
    assert any(not torch.equal(first[name], last[name]) for name in first)
    assert fitted.epochs[-1].patch_f1 is not None
    assert fitted.epochs[-1].patch_f1 > 0.5
    assert fitted.epochs[-1].heat_inside is not None
    p_N = predict(fitted.classifier, held_out, ONE)
    assert roc_auc_score(held_out.target_N, p_N) > 0.9
    said = predict_places(fitted.classifier, held_out, ONE)
    found = [
        clip_regions(one, mask_of(png, 128), 0.5, recipe.dilations, None)
        for one, png in zip(said, held_out.outlines, strict=True)
    ]
    covered = [clip.by_sigma[3].covered for clip in found[::2]]
    assert np.median([share for share in covered if share is not None]) > 0.9
    sizes = [clip.by_sigma[3].relative_area for clip in found[::2]]
    assert np.median([size for size in sizes if size is not None]) < 3


def test_squares_are_cut_where_the_maps_of_the_epoch_before_were_wrong() -> None:
    part_ = spots(16)
    recipe = replace(find_recipe("smoke", "stenosis_s"), stages=parse_stages("cut64x2x2"), settle_clips=0)
    states: list[State] = []
    fit("stenosis_s", part_, part_, recipe, place=ONE, after_epoch=lambda _, state: states.append(copy.deepcopy(state)))
    assert states[0].mistakes == {}, "nothing is known yet"
    assert len(states[1].mistakes) == 4, "a quarter of the clips are looked at"
    for place, x, y in (mistake for found in states[1].mistakes.values() for mistake in found):
        assert place in (0, 1, 2)
        assert 0 <= min(x, y) <= max(x, y) <= 1
    nowhere = replace(part_, boxes=(None,) * 16)
    with pytest.raises(FitError, match="squares cannot be cut: no training clip says where narrowings are"):
        fit("stenosis_s", nowhere, part_, recipe, place=ONE)


def test_maps_that_learnt_from_squares_say_how_many_frames_are_narrowed() -> None:
    part_ = spots(32)
    watched = replace(part_, target_N=part_.target_N.copy())
    watched.target_N[:, 2] = UNJUDGED  # what fills a clip up says nothing
    recipe = replace(find_recipe("smoke", "stenosis_s"), stages=parse_stages("cut64x2x2"), settle_clips=0)
    fitted = fit("stenosis_s", part_, watched, recipe, place=ONE)
    p_F = predict(fitted.classifier, watched, ONE)[watched.target_N != UNJUDGED][:, 1]
    share = float((watched.target_N[watched.target_N != UNJUDGED] > 0).mean())
    assert 0.2 < share < 0.8
    assert float(p_F.mean()) == pytest.approx(share, abs=0.03)


def test_what_only_fills_a_clip_up_is_not_looked_at_and_has_the_answer_of_the_last_frame() -> None:
    seen: list[tuple[int, ...]] = []

    class Filled(InMemory):
        def num_shown(self, rows_B: Any) -> int:
            return max(1 + row % 2 for row in rows_B.tolist())

        def read(self, rows_B: Any, places_BT: Any = None) -> Any:
            found = super().read(rows_B, places_BT)
            seen.append(found.shape[:2])
            return found

    frames_NTHW = spots(6).clips.read(np.arange(6))
    for row, frames in enumerate(frames_NTHW):
        frames[1 + row % 2 :] = frames[row % 2]  # one or two of three
    torch.manual_seed(0)
    classifier, unknown = ClipClassifier(NETS["stenosis_s"]), np.zeros(6, np.int64)
    whole = predict(classifier, Part(InMemory(frames_NTHW), unknown), ONE)
    found = predict(classifier, Part(Filled(frames_NTHW), unknown), ONE)
    assert seen == [(2, 2)] * 3
    np.testing.assert_allclose(found, whole, atol=1e-5)
    np.testing.assert_allclose(predict_places(classifier, Part(Filled(frames_NTHW), unknown), ONE)[..., :2], whole, atol=1e-5)


def test_a_stage_of_few_frames_is_read_evenly() -> None:
    clips = InMemory(np.arange(8, dtype=np.uint8).reshape(1, 8, 1, 1))
    few = loop._Thinned(clips, Stage(size=1, frames=4, epochs=1))
    assert few.num_frames == few.num_shown(np.array([0])) == 4
    assert few.read(np.array([0])).ravel().tolist() == [0, 2, 4, 6]
    assert few.read(np.array([0, 0]), np.array([[1], [3]])).ravel().tolist() == [2, 6]


def test_the_rate_falls_as_a_cosine_from_step_to_step() -> None:
    recipe = replace(find_recipe("smoke", "stenosis_s"), stages=parse_stages("64x2x4,96x2x1"), cosine=True, learning_rate=1.0)
    made = loop._Loop("stenosis_s", spots(8), spots(4), recipe, 1, ONE, None)
    rates = [made._rate(recipe.stages[0], done) for done in (0.0, 0.05, 0.1, 2.0, 3.99)]
    assert rates[0] < 0.05
    assert rates[1] == pytest.approx(0.5, abs=0.02)
    assert rates[2] == pytest.approx(1.0, abs=0.02)
    assert rates[3] == pytest.approx(0.51, abs=0.01)
    assert rates[4] == pytest.approx(0.02, abs=0.01)
    made.state.epoch = 4
    assert made._rate(recipe.stages[1], 4.1) == pytest.approx(0.98, abs=0.01), "each stage begins anew"
    steps = loop._Loop("stenosis_s", spots(8), spots(4), replace(recipe, cosine=False, step_epochs=2, gamma=0.5), 1, ONE, None)
    assert [steps._rate(recipe.stages[0], done) for done in (0, 1.9, 2.0, 3.5)] == [1.0, 1.0, 0.5, 0.5]


def test_a_net_learns_to_draw_the_vessels_of_its_squares() -> None:
    part_ = spots(32)
    dark_NTHW = (part_.clips.read(np.arange(32)) == 20).astype(np.uint8)
    pngs = [[cv2.imencode(".png", frame)[1].tobytes() for frame in clip] for clip in dark_NTHW]
    drawn = replace(part_, vessels=((), *((png, None, png) for png, _, _ in pngs[1:])))
    recipe = replace(
        find_recipe("smoke", "stenosis_s"), stages=parse_stages("cut64x2x8"), learning_rate=1e-2, vessel_weight=1.0,
        augment=AugmentConfig().scaled(0.3), passes=4,
        batch_size=16, micro_batch=16,
    )  # fmt: skip
    classifier = fit("stenosis_s", drawn, drawn, recipe, seed=1, place=ONE).classifier
    with torch.no_grad():
        _, drawn_N1HW, log_radius_N1hw = classifier.with_vessels(torch.from_numpy(part_.clips.read(np.arange(0, 32, 2))))
    mask = torch.from_numpy(dark_NTHW[::2]).flatten(0, 1) > 0
    assert roc_auc_score(mask.flatten(), drawn_N1HW.flatten()) > 0.97
    inside = torch.nn.functional.avg_pool2d(mask[:, None].float(), 8) == 1
    assert log_radius_N1hw[inside].exp().median() == pytest.approx(5, abs=1.5), "squares of 12 px"


def test_now_these_frames_are_shown_now_others() -> None:
    seen = []
    part_ = spots(8)
    part_.target_N[7, 1:] = UNJUDGED  # a clip of one frame, filled up
    recipe = replace(find_recipe("smoke", "stenosis_s"), stages=(Stage(size=96, frames=2, epochs=2),), settle_clips=0)
    made = loop._Loop("stenosis_s", part_, part_, recipe, 1, ONE, None)
    for epoch in range(4):
        for step in range(2):
            shown = made._shown(recipe.stages[0], epoch, step, np.array([4, 7]))
            assert shown is not None
            seen.append(tuple(shown[0].tolist()))
            assert shown[1].tolist() == [0, 0], "nothing is taught by what fills a clip up"
    assert set(seen) <= {(0, 1), (0, 2), (1, 2)}
    assert len(set(seen)) > 1
    assert made._shown(Stage(size=96, frames=3, epochs=1), 0, 0, np.array([4])) is None


# -- with a small net: what the numbers are --------------------------------------------------------------------------


class Mean(nn.Module):
    """Two logits from the clip's mean, without batch statistics: its gradient is the sum over the clips'."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(x_BCTHW.mean(dim=(1, 2, 3, 4))[:, None])
        return out


@pytest.mark.parametrize(
    ("net", "blocks"), [("r18_2d", 8), ("r18_3d", 8), ("r152_2d", 50), ("r152_3d", 50), ("x3d_s", 0)]
)
def test_a_fresh_resnet_begins_as_its_shortcuts(net: str, blocks: int) -> None:
    with torch.device("meta"):
        fresh = NETS[net].build()
    assert close_branches(fresh) == blocks


@pytest.mark.parametrize("net", ["r18_2d", "r18_3d"])
def test_a_fold_begins_with_closed_branches_unless_it_begins_from_weights(net: str) -> None:
    def last_scales(start: dict[str, torch.Tensor] | None) -> list[float]:
        begun = loop._Loop(net, part(4), part(4, 1), find_recipe("smoke", net), 0, ONE, start)
        named = begun.classifier.net.named_parameters()
        return [float(p.detach().abs().sum()) for name, p in named if re.search(r"layer\d\.\d\.bn2\.weight", name)]

    assert last_scales(None) == [0.0] * 8
    assert 0.0 not in last_scales(NETS[net].build().state_dict())


def test_a_net_that_bfloat16_spoils_is_trained_in_float32_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "bf16_units", lambda: ("amx_bf16",))
    cpu = torch.device("cpu")
    assert [quickest_precision(cpu, net) for net in ("r152_3d", "x3d_s")] == ["float32", "bfloat16"]
    asked = replace(TINY, precision="bfloat16")
    assert [loop._chosen_precision("r152_3d", recipe, cpu, ONE) for recipe in (TINY, asked)] == ["float32", "bfloat16"]


def test_the_first_gradient_of_a_deep_resnet_is_no_explosion() -> None:
    def gradient(closed: bool) -> float:
        torch.manual_seed(0)
        classifier = ClipClassifier(NETS["r152_2d"]).train()
        if closed:
            close_branches(classifier.net)
        clips = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8)
        torch.nn.functional.cross_entropy(classifier.logits(clips), torch.tensor([0, 1, 0, 1])).backward()
        return float(torch.nn.utils.clip_grad_norm_(classifier.parameters(), 2.0))

    assert gradient(closed=True) < 20
    assert gradient(closed=False) > 200


@pytest.fixture
def mean_net(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETS, "mean", _mean_spec())


def _mean_spec() -> interface.NetSpec:
    return replace(NETS["x3d_s"], name="mean", build=Mean)


SIMPLE = Recipe(
    stages=(Stage(size=48, frames=16, epochs=3),),
    batch_size=6,
    learning_rate=0.05,
    augment=NO_AUGMENTATION,
    settle_clips=0,
    keep="last",
)


def _weights(recipe: Recipe, train: Part, place: Place = ONE) -> list[float]:
    fitted = fit("mean", train, part(6, 1), recipe, seed=1, place=place)
    return [*fitted.state_dict["linear.weight"].flatten().tolist(), *fitted.state_dict["linear.bias"].tolist()]


@pytest.mark.usefixtures("mean_net")
def test_it_learns() -> None:
    fitted = fit(
        "mean", part(16), part(9, 1), replace(SIMPLE, stages=(Stage(size=8, frames=2, epochs=25),)), seed=1, place=ONE
    )
    assert fitted.epochs[-1].validation_auc == 1.0
    assert fitted.epochs[-1].loss < 0.5 * fitted.epochs[0].loss
    test = part(8, 5)
    probability_N = predict(fitted.classifier, test)
    assert probability_N.dtype == np.float32
    assert (probability_N[test.target_N == 1] > probability_N[test.target_N == 0].max()).all()


@pytest.mark.usefixtures("mean_net")
def test_a_loss_that_is_no_number_ends_the_fold_and_says_when() -> None:
    states: list[State] = []
    fit("mean", part(16), part(9, 1), SIMPLE, place=ONE, after_epoch=lambda _, state: states.append(copied(state)))
    states[0].model["linear.weight"][:] = float("inf")
    with pytest.raises(FitError, match=r"^epoch 2: the loss is no finite number .* than 0\.05$"):
        fit("mean", part(16), part(9, 1), SIMPLE, place=ONE, state=states[0])


@pytest.mark.usefixtures("mean_net")
def test_a_state_goes_on_in_the_precision_that_it_began_in() -> None:
    states: list[State] = []
    fit("mean", part(8), part(6, 1), SIMPLE, place=ONE, after_epoch=lambda _, state: states.append(copied(state)))
    for before in ("bfloat16", "float32"):
        state = copied(states[0])
        state.history[0]["precision"] = before
        fitted = fit("mean", part(8), part(6, 1), SIMPLE, place=ONE, state=state)
        assert [epoch.precision for epoch in fitted.epochs] == [before] * 3
    old = copied(states[0])
    del old.history[0]["precision"]  # of a version that did not record it
    fitted = fit("mean", part(8), part(6, 1), SIMPLE, place=ONE, state=old)
    assert [epoch.precision == "not recorded" for epoch in fitted.epochs] == [True, False, False]
    asked = fit("mean", part(8), part(6, 1), replace(SIMPLE, precision="bfloat16"), place=ONE)
    assert {epoch.precision for epoch in asked.epochs} == {"bfloat16"}


def test_frames_are_thinned_evenly() -> None:
    x = torch.arange(16, dtype=torch.uint8).reshape(1, 16, 1, 1)
    assert thinned(x, 8, 4).flatten().tolist() == [0, 4, 8, 12]
    assert thinned(x, 8, 6).flatten().tolist() == [0, 2, 5, 8, 10, 13]
    assert thinned(x, 8, 32).flatten().tolist() == list(range(16))


@pytest.mark.usefixtures("mean_net")
@pytest.mark.parametrize("balance", ["weights", "none"])
def test_accumulation_changes_no_step(balance: Any) -> None:
    recipe, train = replace(SIMPLE, balance=balance), part(14, positive=4)
    whole = _weights(replace(recipe, micro_batch=32), train)
    np.testing.assert_allclose(_weights(replace(recipe, micro_batch=2), train), whole, atol=2e-3)


class Normed(Mean):
    """With statistics that each process gathers from its own clips."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(3)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(x_BCTHW))


def _as_worker(rank: int, world: int, port: int, queue: Any) -> None:
    NETS["mean"], NETS["normed"] = _mean_spec(), replace(_mean_spec(), name="normed", build=Normed)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    place = Place(rank=rank, world=world, threads=1)
    normed = fit("normed", part(15, positive=4), part(6, 1), SIMPLE, seed=1, place=place)
    squares = replace(find_recipe("smoke", "stenosis_s"), stages=parse_stages("cut64x2x2"), settle_clips=0)
    maps = fit("stenosis_s", spots(16), spots(7, seed=1), squares, place=place)
    answers = (normed.state_dict["norm.running_mean"].tolist(), maps.state_dict["cells.bias"].tolist())
    queue.put((rank, _weights(SIMPLE, part(15, positive=4), place), answers))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.usefixtures("mean_net")
def test_two_workers_take_the_steps_of_one() -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_as_worker, args=(rank, 2, port, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    answers = [queue.get(timeout=200) for _ in workers]
    found = {rank: weights for rank, weights, _ in answers}
    for worker in workers:
        worker.join()
    assert found[0] == found[1]
    assert answers[0][2] == answers[1][2], "what the workers predict with, calibrated or not, is not one net"
    assert answers[0][2][1] != [-3.0], "maps were calibrated"
    np.testing.assert_allclose(found[0], _weights(SIMPLE, part(15, positive=4)), atol=2e-3)


@pytest.mark.usefixtures("mean_net")
def test_rates_fall_in_steps_as_torch_has_them() -> None:
    recipe = replace(SIMPLE, stages=(Stage(size=8, frames=2, epochs=5),), step_epochs=2, gamma=0.1)
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, recipe.step_epochs, recipe.gamma)
    expected = []
    for _ in range(5):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    found = fit("mean", part(8), part(6, 1), recipe, place=ONE).epochs
    assert [epoch.learning_rate for epoch in found] == pytest.approx(expected)


@pytest.mark.usefixtures("mean_net")
def test_a_stage_ends_when_validation_gets_no_better_and_the_best_epoch_is_kept() -> None:
    stages = (Stage(size=8, frames=2, epochs=9), Stage(size=12, frames=2, epochs=9))
    recipe = replace(SIMPLE, stages=stages, patience=2, keep="best")
    fitted = fit("mean", part(16), part(8, 1), recipe, seed=1, place=ONE)
    last = [epoch for epoch in fitted.epochs if epoch.size == 12]
    assert 3 <= len(last) < 9
    best = min(
        (e for e in last if e.validation_auc == max(x.validation_auc or 0 for x in last)),
        key=lambda e: e.validation_loss,
    )
    assert fitted.best_epoch == best.number


@pytest.mark.usefixtures("mean_net")
def test_no_epoch_is_begun_that_would_end_too_late() -> None:
    recipe = replace(SIMPLE, stages=(Stage(size=8, frames=2, epochs=9),), max_minutes=1e-9)
    assert len(fit("mean", part(8), part(6, 1), recipe, place=ONE).epochs) == 1


@pytest.mark.usefixtures("mean_net")
def test_the_sampler_draws_both_classes_as_often() -> None:
    drawn: list[int] = []

    class Watched(InMemory):
        def read(self, rows_B: Any, places_BT: Any = None) -> Any:
            drawn.extend(rows_B.tolist())
            return super().read(rows_B)

    train = part(40, positive=8)
    watched = Part(Watched(train.clips.clips_NTHW), train.target_N)  # type: ignore[attr-defined]
    recipe = replace(SIMPLE, balance="sampler", stages=(Stage(size=8, frames=2, epochs=10),))
    fit("mean", watched, part(6, 1), recipe, place=ONE)
    assert 0.4 < float(train.target_N[drawn].mean()) < 0.6
    assert len(drawn) == 400


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (part(4, positive=100), part(4), None),
        (Part(part(4).clips, np.zeros(4, np.int64)), part(4), "one class only"),
        (part(4), Part(part(1).clips, np.zeros(0, np.int64)), "no validation clip"),
        (Part(part(1).clips, np.ones(1, np.int64)), part(4), "too few"),
    ],
    ids=["one positive", "one class", "no validation", "one clip"],
)
@pytest.mark.usefixtures("mean_net")
def test_parts_that_teach_nothing_are_refused(train: Part, validation: Part, message: str | None) -> None:
    if message is None:
        assert fit("mean", train, validation, SIMPLE, place=ONE).epochs
        return
    with pytest.raises(ValueError, match=message):
        fit("mean", train, validation, SIMPLE, place=ONE)


def test_thinning_averages_areas_and_keeps_whole_clips_as_they_are() -> None:
    x = torch.arange(2 * 16 * 8 * 8, dtype=torch.float32).reshape(2, 16, 8, 8)
    small = thinned(x, 4, 4)
    assert small.shape == (2, 4, 4, 4)
    torch.testing.assert_close(small[1, 2, 0, 1], x[1, 8, 0:2, 2:4].mean())
    bytes_ = x.to(torch.uint8)
    assert thinned(bytes_, 8, 16) is not None
    assert torch.equal(thinned(bytes_, 8, 16), bytes_)
    assert thinned(bytes_, 160, 32).shape == bytes_.shape


def test_batches_are_read_ahead_in_order() -> None:
    clips = InMemory(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1))
    batches: Sequence[Any] = [np.array([3, 1]), np.array([5]), np.array([9, 0])]
    assert [x.flatten().tolist() for x in loop._read_ahead(clips, batches)] == [[3, 1], [5], [9, 0]]
    assert list(loop._read_ahead(clips, [])) == []


def test_a_net_begins_from_given_weights() -> None:
    torch.manual_seed(5)
    start = ClipClassifier(NETS["x3d_s"]).net.state_dict()
    recipe = replace(TINY, stages=TINY.stages[:1], learning_rate=1e-12, settle_clips=0)
    fitted = fit("x3d_s", part(8), part(4, 1), recipe, place=ONE, start=start)
    name = "blocks.5.proj.weight"
    torch.testing.assert_close(fitted.state_dict[name], start[name].half().float(), atol=1e-6, rtol=0)
