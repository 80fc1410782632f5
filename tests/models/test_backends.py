"""Every backend gives float32 torch's probabilities, and the choice follows what was measured and asked for."""

from __future__ import annotations

import logging
import math
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from angio_ray.models import NETS
from angio_ray.models.backends import (
    MAX_DIFFERENCE,
    BackendChoice,
    Converted,
    Measurement,
    _fastest,
    bf16_units,
    choose_backend,
    make_runner,
    measure_backends,
    probe_clips,
    unsupported,
)
from angio_ray.models.bundles import Bundle, write_bundle
from angio_ray.models.quality import QualityScorer
from angio_ray.sampling import ClipWindow

CPU_CHOICES = [
    BackendChoice(channels_last=True),
    BackendChoice(precision="bfloat16", channels_last=True),
    BackendChoice(backend="openvino"),
    BackendChoice(backend="openvino", precision="bfloat16"),
]


def _bundle(path: Path, net: str, *, spread: float) -> Bundle:
    """A net whose probabilities differ from clip to clip: fresh ones hardly do, and parity would be nothing to pass.

    `spread` is the standard deviation of its logits; stretching an untrained head stretches rounding errors alike.
    """
    torch.manual_seed(5)
    built = NETS[net].build().train()
    window = NETS[net].window
    clips = torch.from_numpy(probe_clips(window, 4, seed=9)).float() / 127.5 - 1
    clips_BCTHW = clips.unsqueeze(1).expand(-1, 3, -1, -1, -1)
    x = clips_BCTHW if NETS[net].layout == "BCTHW" else clips_BCTHW.transpose(1, 2).flatten(0, 1)
    with torch.inference_mode():
        for _ in range(3):  # statistics of batch normalisation, so that activations have a trained net's range
            built(x)
        built.eval()
        logits = built(x)
        head = [m for m in built.modules() if isinstance(m, torch.nn.Linear)][-1]
        scale = spread / float((logits[:, 1] - logits[:, 0]).std())
        head.weight.mul_(scale)
        head.bias.mul_(scale)
        moved = built(x)
        head.bias[1] -= (moved[:, 1] - moved[:, 0]).mean()
    return write_bundle(path, task="quality", net=net, state_dicts=[built.state_dict()], threshold=0.5, trained_on="synthetic")


@pytest.fixture(scope="module")
def x3d(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.set_num_threads(1)
    return _bundle(tmp_path_factory.mktemp("x3d"), "x3d_s", spread=0.4)


@pytest.mark.parametrize("choice", CPU_CHOICES, ids=str)
def test_parity_with_float32_torch(x3d: Bundle, choice: BackendChoice) -> None:
    if why := unsupported(choice):
        pytest.skip(why)
    clips = probe_clips(x3d.window, 3, seed=9)
    expected = make_runner(x3d.ensemble(), x3d.window, BackendChoice())(clips)
    got = make_runner(x3d.ensemble(), x3d.window, choice)(clips)
    assert got.dtype == np.float32
    assert got.shape == (3, 2)
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-2)
    assert np.ptp(expected[:, 1]) > 0.1
    assert np.abs(got - expected).max() <= (1e-4 if choice.precision == "float32" else MAX_DIFFERENCE)
    # Any other batch size, and frames that may not be written to, as they come out of shared memory.
    clips.flags.writeable = False
    np.testing.assert_allclose(make_runner(x3d.ensemble(), x3d.window, choice)(clips[:1]), got[:1], atol=1e-2)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("choice", [c for c in CPU_CHOICES if c.backend == "openvino" or c.precision == "bfloat16"], ids=str)
def test_2d_nets_run_on_every_backend(tmp_path: Path, choice: BackendChoice) -> None:
    if why := unsupported(choice):
        pytest.skip(why)
    bundle = _bundle(tmp_path, "r18_2d", spread=1.0)
    (measured,) = measure_backends([bundle], [choice], batch_size=2)
    assert measured.fault is None
    assert measured.max_difference <= MAX_DIFFERENCE
    assert 0 < measured.ms_per_clip < math.inf


@pytest.mark.nightly
@pytest.mark.slow
def test_the_3d_resnet_runs_in_openvino_at_the_papers_150_px(tmp_path: Path) -> None:
    choice = BackendChoice(backend="openvino")
    if why := unsupported(choice):
        pytest.skip(why)
    torch.manual_seed(1)
    window = ClipWindow(name="t32s2_150px", size=150)
    bundle = write_bundle(tmp_path, task="quality", net="r18_3d", state_dicts=[NETS["r18_3d"].build().state_dict()],
                          threshold=0.5, trained_on="synthetic", window=window)
    scorer = QualityScorer(bundle, choice)
    plain = QualityScorer(bundle, BackendChoice())
    clips = {window.name: probe_clips(window, 1)}
    np.testing.assert_allclose(scorer(clips)["quality_probability"], plain(clips)["quality_probability"], atol=1e-3)


@pytest.mark.slow
def test_a_choice_that_breaks_parity_is_not_used_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A head so steep that bfloat16's rounding flips verdicts."""
    steep = _bundle(tmp_path, "x3d_s", spread=400.0)
    clips = np.repeat(probe_clips(steep.window, 1, seed=9), 2, axis=0)
    member = steep.ensemble().members[0]
    with torch.inference_mode():  # the threshold of the head laid upon the probe itself
        logits = member.logits(torch.from_numpy(clips[:1]))[0]
        state = {k: v.clone() for k, v in member.net.state_dict().items()}
        state["blocks.5.proj.bias"][1] -= logits[1] - logits[0]
    steep = write_bundle(tmp_path, task="quality", net="x3d_s", state_dicts=[state], threshold=0.5, trained_on="synthetic")
    with caplog.at_level(logging.WARNING, logger="angio_ray"):
        choice = choose_backend([steep], requested="torch", precision="bfloat16", clips=clips)
    assert (choice.backend, choice.precision) == ("torch", "float32")
    assert "differ from float32" in caplog.text
    assert "is used instead" in caplog.text


@pytest.mark.parametrize("requested", ["torch", "openvino"])
def test_what_is_asked_for_is_what_runs(x3d: Bundle, requested: str) -> None:
    if why := unsupported(BackendChoice(backend=requested)):  # type: ignore[arg-type]
        pytest.skip(why)
    choice = choose_backend(
        [x3d], requested=requested, precision="float32", channels_last=False, batch_size=1)  # type: ignore[arg-type]
    assert choice == BackendChoice(backend=requested)  # type: ignore[arg-type]


def test_a_device_that_is_not_there_is_one_clear_line(x3d: Bundle) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ValueError, match="no CUDA device"):
        choose_backend([x3d], "cuda")
    with pytest.raises(ValueError, match="no CUDA device"):
        make_runner(x3d.ensemble(), x3d.window, BackendChoice(device="cuda"))
    with pytest.raises(ValueError, match="processors only"):
        make_runner(x3d.ensemble(), x3d.window, BackendChoice(backend="openvino", device="cuda"))


def test_the_fastest_usable_one_wins_and_only_by_a_margin() -> None:
    plain, last, native = BackendChoice(), BackendChoice(channels_last=True), BackendChoice(backend="openvino")

    def pick(*times: float, faulty: BackendChoice | None = None) -> BackendChoice | None:
        best = _fastest([
            Measurement(choice=c, ms_per_clip=t, max_difference=0.0, fault="no" if c == faulty else None)
            for c, t in zip((plain, last, native), times, strict=True)])
        return best and best.choice

    assert pick(100, 50, 20) == native
    assert pick(100, 50, 20, faulty=native) == last
    assert pick(100, 95, 93) == plain
    assert pick(20, 50, 100) == plain
    assert _fastest([]) is None


def test_bf16_units_are_read_from_the_processor_and_are_words_we_know() -> None:
    assert set(bf16_units()) <= {"amx_bf16", "avx512_bf16", "bf16"}
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    assert ("avx512_bf16" in bf16_units()) == ("avx512_bf16" in flags)


def test_probe_clips_are_the_same_each_time_and_cover_the_grey_range() -> None:
    window = NETS["x3d_s"].window
    clips = probe_clips(window, 3)
    assert clips.shape == (3, 16, 160, 160)
    np.testing.assert_array_equal(clips, probe_clips(window, 3))
    assert np.ptp(clips[0]) == 255
    neighbours = np.abs(np.diff(clips[1].astype(int), axis=-1)).mean()
    assert neighbours < 10  # smooth, where noise has 85
    assert (clips[1, 0] != clips[1, -1]).mean() > 0.5


_IN_ANOTHER_PROCESS = """
import pickle, sys
from angio_ray.models.quality import QualityScorer
bundle, choice, converted, clips = pickle.load(sys.stdin.buffer)
bundle.check(weights=False)
columns = QualityScorer(bundle, choice, num_threads=1, converted={bundle.digest: converted})({bundle.window.name: clips})
pickle.dump((columns, "torch" in sys.modules), sys.stdout.buffer)
"""


def test_bundle_and_choice_travel_and_what_is_converted_needs_no_torch(x3d: Bundle) -> None:
    choice = BackendChoice(backend="openvino")
    if why := unsupported(choice):
        pytest.skip(why)
    clips = probe_clips(x3d.window, 2, seed=9)
    converted: dict[str, Converted] = {}
    (measured,) = measure_backends([x3d], [choice], batch_size=2, converted=converted)
    assert measured.fault is None
    parcel = pickle.dumps((x3d, choice, converted[x3d.digest], clips))
    done = subprocess.run([sys.executable, "-c", _IN_ANOTHER_PROCESS], input=parcel, capture_output=True, check=True)
    columns, with_torch = pickle.loads(done.stdout)
    assert not with_torch
    expected = QualityScorer(x3d, BackendChoice())({x3d.window.name: clips})["quality_probability"]
    np.testing.assert_allclose(columns["quality_probability"], expected, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_keeps_parity_and_is_chosen_by_measurement(x3d: Bundle) -> None:
    choice = choose_backend([x3d], "cuda")
    assert choice.device == "cuda"
    clips = probe_clips(x3d.window, 8, seed=9)
    expected = make_runner(x3d.ensemble(), x3d.window, BackendChoice())(clips)
    for option in (choice, replace(choice, precision="bfloat16"), replace(choice, channels_last=not choice.channels_last)):
        got = make_runner(x3d.ensemble(), x3d.window, option)(clips)
        assert np.abs(got - expected).max() <= MAX_DIFFERENCE
