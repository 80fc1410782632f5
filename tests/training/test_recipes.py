"""Recipes: what they state, and that every value can be changed."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from typing import Any

import pytest

from angio_ray.models import NETS
from angio_ray.models.quality import NETS as NETS_OF_QUALITY
from angio_ray.scoring.config import ConfigError
from angio_ray.training.config import TrainConfig
from angio_ray.training.recipes import (
    NO_AUGMENTATION,
    RECIPES,
    AugmentConfig,
    Recipe,
    RecipeChanges,
    Stage,
    find_recipe,
    parse_stages,
)


def test_the_papers_recipes_are_as_the_paper_states() -> None:
    """Spec section 1: Adam, StepLR(30), over 100 epochs; 2D 5e-5, 1e-3, 32; 3D 1e-4, 1e-3, 32; X3D-S 1e-4, 1e-4, 64."""
    quality = {net: recipe for net, recipe in RECIPES["paper"].items() if net in NETS_OF_QUALITY}
    stated = {net: (r.learning_rate, r.weight_decay, r.batch_size, r.step_epochs) for net, r in quality.items()}
    assert stated == {
        "r18_2d": (5e-5, 1e-3, 32, 30),
        "r152_2d": (5e-5, 1e-3, 32, 30),
        "r18_3d": (1e-4, 1e-3, 32, 30),
        "r152_3d": (1e-4, 1e-3, 32, 30),
        "x3d_s": (1e-4, 1e-4, 64, 30),
    }
    for net, recipe in quality.items():
        (stage,) = recipe.stages
        assert (stage.size, stage.frames) == (NETS[net].window.size, NETS[net].window.num_frames)
        assert stage.epochs > 100
        named = {"flip", "rotation_deg", "perspective", "blur_share", "blur_px"}
        shares = {"noise", "halo"}  # of no clip: their share is 0
        changed = {f.name for f in fields(AugmentConfig) if getattr(recipe.augment, f.name)}
        assert changed - shares == named


@pytest.mark.parametrize("name", RECIPES)
def test_every_net_has_every_recipe_and_ends_at_most_at_its_window(name: str) -> None:
    assert set(RECIPES[name]) == set(NETS)
    for net, recipe in RECIPES[name].items():
        for stage in recipe.stages:
            assert stage.size <= NETS[net].window.size
            assert stage.frames <= NETS[net].window.num_frames


@pytest.mark.parametrize(
    ("epochs", "stages"),
    [(20, "80x4x12,112x8x6,160x16x2"), (40, "80x4x24,112x8x12,160x16x4"), (10, "80x4x6,112x8x3,160x16x1"),
     (1, "160x16x1"), (2, "80x4x1,160x16x1"), (3, "80x4x1,112x8x1,160x16x1")],
)  # fmt: skip
def test_epochs_are_divided_as_the_recipe_divides_them(epochs: int, stages: str) -> None:
    recipe = replace(RECIPES["short"]["x3d_s"], stages=parse_stages("80x4x12,112x8x6,160x16x2"))
    assert ",".join(map(str, recipe.with_epochs(epochs).stages)) == stages


def test_every_value_of_a_recipe_can_be_changed() -> None:
    changeable = {f.name for f in fields(RecipeChanges)} - {"epochs", "strength"}
    assert changeable == {f.name for f in fields(Recipe)}
    changes = RecipeChanges(
        stages="64x4x2,80x8x3", batch_size=6, patience=0, strength=0.0, augment=(("noise", 0.5),), keep="last"
    )
    changed = changes.applied(replace(find_recipe("short", "x3d_s"), patience=3))
    assert changed.stages == (Stage(size=64, frames=4, epochs=2), Stage(size=80, frames=8, epochs=3))
    assert (changed.batch_size, changed.patience, changed.keep) == (6, None, "last")
    assert changed.augment == replace(NO_AUGMENTATION, flip=0.5, noise=0.5)
    assert RecipeChanges().applied(find_recipe("paper", "r18_2d")) == find_recipe("paper", "r18_2d")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "long"}, "no recipe 'long'; there are paper, short, smoke"),
        ({"net": "x3d_l"}, "is not for net 'x3d_l'"),
        ({"changes": RecipeChanges(stages="80x4")}, "size x frames x epochs"),
        ({"changes": RecipeChanges(augment=(("tilt", 1.0),))}, "no such bound"),
        ({"changes": RecipeChanges(batch_size=1)}, "at least 2"),
        ({"changes": RecipeChanges(learning_rate=0.0)}, "above 0"),
        ({"threshold": "sensitivity"}, "--at-least"),
        ({"experiment": "a/b"}, "--experiment 'a/b'"),
        ({"workers": 0}, "--workers 0: at least 1"),
        ({"net": "r18_2d", "changes": RecipeChanges(stages="512x4x1")}, "stage 512x4x1: r18_2d sees 4 frames of 299 px at most"),
        ({"changes": RecipeChanges(stages="160x32x1")}, "stage 160x32x1: x3d_s sees 16 frames of 160 px at most"),
        ({"net": "frames_lstm"}, "--net frames_lstm is not for quality; there is r18_2d"),
        ({"changes": RecipeChanges(loss="f1")}, "--loss f1: for nets with a class per frame"),
    ],
)
def test_a_config_that_cannot_be_is_one_clear_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig("quality", labels="l", clips="c", tables="t", **options)  # type: ignore[arg-type]


def test_the_frames_of_the_stenosis_system_have_a_name_and_a_net_of_their_own() -> None:
    places: dict[str, Any] = {"labels": "l", "clips": "c", "tables": "t"}
    config = TrainConfig("stenosis-frames", **places)
    assert (config.task, config.net, config.name) == ("contrast", "frames_lstm", "contrast-frames_lstm-k5")
    assert config.chosen_recipe.augment.flip == 0.5, "left and right carry no meaning here"
    paper = TrainConfig("contrast", net="inception_lstm", recipe="paper", **places).chosen_recipe
    assert (paper.learning_rate, paper.epochs, paper.loss) == (4e-5, 100, "f1")
    for options, message in (
        ({"net": "x3d_s"}, "--net x3d_s is not for contrast; there is frames_lstm, inception_lstm"),
        ({"threshold": "sensitivity", "at_least": 0.9}, "--threshold: that of contrast is the one with the least error"),
        ({"changes": RecipeChanges(balance="sampler")}, "--balance sampler"),
    ):
        with pytest.raises(ConfigError, match=message):
            TrainConfig("contrast", **places, **options)


def test_the_command_in_a_card_asks_for_the_same() -> None:
    from cyclopts import App, Parameter

    given = TrainConfig(
        "quality", labels="l.csv", clips="my clips", tables="t", net="r18_3d", folds=3, threshold="sensitivity", at_least=0.9,
        strict=True,
        changes=RecipeChanges(epochs=4, augment=(("noise", 0.0123456789), ("zoom", 0.0)), learning_rate=2.3456789e-5),
    )  # fmt: skip
    app = App(name="angio-ray", result_action="return_value")

    def train(config: TrainConfig) -> TrainConfig:
        return config

    train.__annotations__ = {"config": __import__("typing").Annotated[TrainConfig, Parameter(name="*")]}
    app.command(train)
    assert app(shlex.split(given.command)[1:]) == given
    frames = TrainConfig(
        "stenosis-class", labels="l.csv", clips="c", tables="t", only=("artery=LCA", "view=LAO cranial"),
        changes=RecipeChanges(stages="cut64x2x3,128x2x1", redundancy=False, box_weight=0.5),
    )  # fmt: skip
    assert frames.task == "stenosis"
    assert app(shlex.split(frames.command)[1:]) == frames
    both = replace(frames, changes=replace(frames.changes, redundancy=True))
    assert app(shlex.split(both.command)[1:]) == both


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("stenosis", {"only": ("frame=3",)}, "--only frame=3: artery=, view= or quality_class= and a value"),
        ("stenosis", {"net": "x3d_s"}, "is not for stenosis; there is stenosis_s, stenosis_s_view, stenosis_fpn, inc"),
        ("stenosis", {"changes": RecipeChanges(balance="sampler")}, "--balance sampler"),
        ("stenosis", {"changes": RecipeChanges(stages="cut64x2x1", box_weight=0.0)}, "need a box weight"),
        ("stenosis", {"changes": RecipeChanges(loss="f1")}, "--loss f1"),
        ("quality", {"changes": RecipeChanges(redundancy=True)}, "--redundancy: for stenosis-class"),
        ("quality", {"changes": RecipeChanges(box_weight=1.0)}, "--box-weight: for stenosis-class and calcium"),
    ],
)
def test_what_does_not_fit_single_frames_is_one_line(task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(task, labels="l.csv", clips="c", tables="t", **options)
