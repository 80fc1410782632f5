"""A bundle travels unchanged, and whatever is wrong with one is told in one line before the first clip."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from angio_ray.models import NETS
from angio_ray.models.bundles import Bundle, BundleError, load_bundle, write_bundle
from angio_ray.sampling import ClipWindow


def _state(seed: int = 1, net: str = "x3d_s") -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return NETS[net].build().state_dict()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "quality"
    write_bundle(
        path, task="quality", net="x3d_s", state_dicts=[_state()], threshold=0.4, trained_on="synthetic",
        metrics={"auc": 0.9}, training_patients=["b", "a", "b"],
    )
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "quality"))


def test_what_is_written_is_what_is_read(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert (bundle.task, bundle.net, bundle.threshold, bundle.trained_on) == ("quality", "x3d_s", 0.4, "synthetic")
    assert bundle.window == NETS["x3d_s"].window
    assert bundle.training_patients == ("a", "b")
    assert bundle.metrics == {"auc": 0.9}
    member = bundle.ensemble().members[0].net.state_dict()
    for key, value in _state().items():
        torch.testing.assert_close(member[key], value, rtol=0, atol=0)
    assert sorted(p.name for p in folder.iterdir()) == ["MODEL_CARD.md", "bundle.json", "weights.safetensors"]
    assert bundle.digest in (folder / "MODEL_CARD.md").read_text()


def test_a_bundle_travels_by_pickle_and_checks_itself_on_arrival(folder: Path) -> None:
    bundle = load_bundle(folder)
    arrived: Bundle = pickle.loads(pickle.dumps(bundle))
    arrived.check()
    assert arrived == bundle
    with pytest.raises(BundleError, match="digest"):
        replace(arrived, threshold=0.41).check()
    with pytest.raises(BundleError, match="digest"):
        replace(arrived, weights=(arrived.weights[0][:-1] + b"\x01",)).check()


def test_the_digest_depends_on_the_content_alone(folder: Path, tmp_path: Path) -> None:
    def write(name: str, **changed: Any) -> str:
        facts: dict[str, Any] = {
            "task": "quality", "net": "x3d_s", "state_dicts": [_state()], "threshold": 0.4, "trained_on": "synthetic",
            "metrics": {"auc": 0.9}, "training_patients": ["a", "b"], "card": name,
        }
        return write_bundle(tmp_path / name, **{**facts, **changed}).digest

    same = load_bundle(folder).digest
    assert write("again") == same
    others = [
        write("threshold", threshold=0.5), write("origin", trained_on="patients"), write("weights", state_dicts=[_state(2)]),
        write("patients", training_patients=["a"]), write("window", window=replace(NETS["x3d_s"].window, start=10)),
        write("std", std=(0.2, 0.2, 0.2)),
    ]
    assert len({same, *others}) == 7


def test_a_local_threshold_makes_another_digest_with_the_same_weights(folder: Path) -> None:
    bundle = load_bundle(folder)
    moved = bundle.with_threshold(0.7)
    moved.check()
    assert (moved.threshold, moved.weights) == (0.7, bundle.weights)
    assert moved.digest != bundle.digest
    with pytest.raises(BundleError, match="threshold"):
        bundle.with_threshold(1.5)


def test_several_weight_files_are_an_ensemble_and_a_rewrite_leaves_no_old_ones(tmp_path: Path) -> None:
    def write(*seeds: int) -> Bundle:
        return write_bundle(tmp_path, task="quality", net="x3d_s", state_dicts=[_state(s) for s in seeds], threshold=0.5,
                            trained_on="synthetic")

    write(1, 2)
    assert len(load_bundle(tmp_path).ensemble().members) == 2
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == ["weights-0.safetensors", "weights-1.safetensors"]
    write(1)
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["weights.safetensors"]
    assert len(load_bundle(tmp_path).weights) == 1


def test_half_precision_halves_the_files_and_keeps_vectors_exact(folder: Path, tmp_path: Path) -> None:
    half = write_bundle(tmp_path, task="quality", net="x3d_s", state_dicts=[_state()], threshold=0.4,
                        trained_on="synthetic", half=True)
    assert len(half.weights[0]) < 0.55 * len(load_bundle(folder).weights[0])
    loaded, exact = half.ensemble().members[0].net.state_dict(), _state()
    for key, value in exact.items():
        assert loaded[key].dtype == value.dtype
        tolerance = {"rtol": 1e-3, "atol": 1e-6} if value.ndim > 1 else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(loaded[key], value, **tolerance)


def _edit(**changes: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        manifest = json.loads((path / "bundle.json").read_text())
        manifest.update(changes)
        (path / "bundle.json").write_text(json.dumps(manifest))

    return edit


def _drop(key: str) -> Callable[[Path], None]:
    def drop(path: Path) -> None:
        manifest = json.loads((path / "bundle.json").read_text())
        del manifest[key]
        (path / "bundle.json").write_text(json.dumps(manifest))

    return drop


def _flip_last_byte(path: Path) -> None:
    weights = path / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no bundle in"),
    "no manifest": (lambda p: (p / "bundle.json").unlink(), "no bundle in"),
    "manifest is not JSON": (lambda p: (p / "bundle.json").write_text("{"), "is not JSON"),
    "manifest is a list": (lambda p: (p / "bundle.json").write_text("[]"), "not of the format"),
    "another format": (_edit(format="angio_ray bundle 9"), "not of the format"),
    "no weights file": (lambda p: (p / "weights.safetensors").unlink(), "weights.safetensors cannot be read"),
    "weights altered": (_flip_last_byte, "weights.safetensors does not have the digest"),
    "weights cut": (lambda p: (p / "weights.safetensors").write_bytes(b"short"), "does not have the digest"),
    "threshold altered": (_edit(threshold=0.9), "do not have the digest"),
    "origin altered": (_edit(trained_on="patients"), "do not have the digest"),
    "unknown net": (_edit(net="resnet9000"), "digest"),
    "key absent": (_drop("window"), "lacks 'window'"),
    "number is text": (_edit(threshold="high"), "not what it must be"),
    "two means": (_edit(mean=[0.4, 0.4]), "not what it must be"),
    "window of nothing": (_edit(window={"name": "w"}), "not what it must be"),
    "weights elsewhere": (_edit(weights=[{"file": "../x", "sha256": ""}]), "outside its folder"),
}


@pytest.mark.parametrize(("break_it", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_one_clear_line(copy: Path, break_it: Callable[[Path], Any], message: str) -> None:
    break_it(copy)
    with pytest.raises(BundleError) as caught:
        load_bundle(copy)
    assert message in str(caught.value)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown net": ({"net": "resnet9000"}, "unknown net"),
    "unknown task": ({"task": "weather"}, "unknown task"),
    "weights of another net": ({"state_dicts": [_state(net="r18_2d")]}, "tensors of x3d_s are missing"),
    "one tensor too many": ({"state_dicts": [{**_state(), "extra": torch.zeros(1)}]}, "extra"),
    "wrong shape": ({"state_dicts": [{**_state(), "blocks.5.proj.bias": torch.zeros(400)}]}, "has shape (400,)"),
    "integers for floats": ({"state_dicts": [{**_state(), "blocks.5.proj.bias": torch.zeros(2, dtype=torch.int64)}]},
                            "is torch.int64"),
    "not numbers": ({"state_dicts": [{**_state(), "blocks.5.proj.bias": torch.tensor([0.0, float("nan")])}]}, "not numbers"),
    "no weights": ({"state_dicts": []}, "no weights"),
    "classes swapped": ({"classes": ["unsatisfactory", "satisfactory"]}, "classes"),
    "threshold above one": ({"threshold": 1.5}, "threshold"),
    "threshold is NaN": ({"threshold": float("nan")}, "threshold"),
    "std of nought": ({"std": (0.0, 1.0, 1.0)}, "normalisation"),
    "origin unknown": ({"trained_on": "somewhere"}, "trained_on"),
    "window too small for the net": ({"window": ClipWindow(name="small", size=64)}, "64 x 64"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_its_net_is_not_written(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    facts: dict[str, Any] = {"task": "quality", "net": "x3d_s", "state_dicts": [_state()], "threshold": 0.5,
                             "trained_on": "synthetic"}
    with pytest.raises(BundleError) as caught:
        write_bundle(tmp_path / "new", **{**facts, **changes})
    assert message in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_pickle_in_the_place_of_weights_is_never_loaded(copy: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "run",))

    bundle = load_bundle(copy)
    forged = replace(bundle, weights=(pickle.dumps(Trap()),))
    from angio_ray.models.bundles import _digest

    with pytest.raises(BundleError, match="not safetensors"):
        replace(forged, digest=_digest(forged)).check()
    assert not (tmp_path / "run").exists()


def test_weights_made_by_others_with_safetensors_are_read(copy: Path) -> None:
    """The format is the library's own: its loader reads ours."""
    tensors = load_file(copy / "weights.safetensors")
    assert tensors.keys() == _state().keys()
    save_file(tensors, copy / "weights.safetensors")
    load_bundle(copy)
