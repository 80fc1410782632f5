"""How the phantom's pictures compare with real ones: grey levels, noise, vessel contrast and halos, as a table.

    python benchmarks/phantom_realism.py [--clips 24] [--seed 5] [--site unseen] [--sheet beside.png] [--plot curves.svg]

Real input: the human clip 0002.DCM and the eight cath-lab files of a silicone phantom, from the folder that the tests
use (ANGIO_RAY_TEST_DATA). Of the phantom: satisfactory clips, 512x512, one line per style of detector and one for all
(median, and the 10th to 90th percentile). Grey levels are brought to 0..255 whatever the bits stored. The plot shows
histograms of grey levels and noise power spectra; it holds no picture of a patient.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray

SHARED_DATA = Path(os.environ.get("ANGIO_RAY_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
MOST_FRAMES = 60
PATCH = 64
"""Edge of the patches whose noise spectrum is taken, px."""
FREQUENCY = np.hypot(np.fft.fftfreq(PATCH)[:, None], np.fft.fftfreq(PATCH)[None])
"""Of each bin of a patch's spectrum, cycles a pixel."""
RINGS = np.linspace(0.02, 0.5, 25)
"""Edges of the rings of frequency."""
RIDGE = 27
"""Widest dark line that counts as a vessel, px."""
Frames = NDArray[np.float32]


@dataclass(frozen=True)
class Look:
    """What is measured on one clip; grey levels of 255."""

    mean: float
    sd: float
    p5: float
    p50: float
    p95: float
    blank: float
    """Share of the pixels that are 0."""
    first: float
    """Mean of the first frame over that of the later ones."""
    noise: float
    """Standard deviation between neighbouring frames / sqrt(2), slow changes taken out, median over the field."""
    grain: float
    """Correlation of the noise with the next pixel of its row."""
    fine: float
    """Share of the noise's power above a quarter of the sampling frequency."""
    memory: float
    """Correlation of the noise from frame to frame."""
    ridge: float
    """Depth of dark lines, 98th percentile inside the field over the grey level beside them."""
    halo: float
    """How much brighter the rim beside the strongest lines is than what lies further off, share of their depth."""


def _field(frames: Frames) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where the shutter lets light through, and the same well inside its edge."""
    lit = (cv2.GaussianBlur(frames.mean(axis=0), (0, 0), 4) > 12).astype(np.uint8)
    lit[[0, -1]] = 0
    lit[:, [0, -1]] = 0
    return lit > 0, cv2.erode(lit, np.ones((41, 41), np.uint8)) > 0


def measure(frames: Frames) -> Look:
    """All measures of one clip (T, H, W), 0..255."""
    _, field = _field(frames)
    values = frames[len(frames) // 2][field]
    p5, p50, p95 = (float(x) for x in np.percentile(values, [5, 50, 95]))
    means = frames[:, field].mean(axis=1)
    noise, grain, fine, memory = _noise(frames[-24:], field)
    ridge, halo = _lines(frames, field)
    return Look(
        mean=float(values.mean()),
        sd=float(values.std()),
        p5=p5,
        p50=p50,
        p95=p95,
        blank=float((frames == 0).mean()),
        first=float(means[0] / np.median(means[min(8, len(means) - 1) :])),
        noise=noise,
        grain=grain,
        fine=fine,
        memory=memory,
        ridge=ridge,
        halo=halo,
    )


def _noise(frames: Frames, field: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Noise between frames, in all of the field by its median, and its texture in the stillest patches."""
    change = np.diff(frames, axis=0) / np.float32(np.sqrt(2))
    fast = np.stack([c - cv2.blur(c, (15, 15)) for c in change])
    level = float(np.median(np.median(np.abs(fast), axis=0)[field]) / 0.6745)

    grains, fines, memories = [], [], []
    for patch in _still_patches(change, field):
        power, variance = _power(patch), float(np.square(patch).mean())
        grains.append(float((patch[:, :, 1:] * patch[:, :, :-1]).mean()) / variance)
        fines.append(float(power[FREQUENCY > 0.25].sum() / power.sum()))
        # differences of independent noise correlate by -1/2; noise that stays by a share m, by (m - 1) / 2
        memories.append(1 + 2 * float((patch[1:] * patch[:-1]).mean()) / variance)
    return level, float(np.median(grains)), float(np.median(fines)), float(np.median(memories))


def _still_patches(change: Frames, field: NDArray[np.bool_], count: int = 6) -> list[Frames]:
    """The differences between frames where least else changes, (T, PATCH, PATCH) each, slow changes taken out."""
    corners = [
        (y, x)
        for y in range(0, field.shape[0] - PATCH, PATCH // 2)
        for x in range(0, field.shape[1] - PATCH, PATCH // 2)
        if field[y : y + PATCH, x : x + PATCH].all()
    ]
    patches = [change[:, y : y + PATCH, x : x + PATCH] for y, x in corners]
    patches.sort(key=lambda patch: float(np.abs(patch).mean()))
    return [p - cv2.blur(np.moveaxis(p, 0, -1), (31, 31)).transpose(2, 0, 1) for p in patches[:count]]


def _power(patch: Frames) -> NDArray[np.float64]:
    """Mean power spectrum of a patch's frames, (PATCH, PATCH), per frequency bin."""
    window = np.outer(np.hanning(PATCH), np.hanning(PATCH))
    power: NDArray[np.float64] = np.square(np.abs(np.fft.fft2(patch * window))).mean(axis=0)
    return power


def curves(frames: Frames) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of the field's pixels per 4 grey levels, and the noise's power per ring of frequency, grey levels squared."""
    lit, field = _field(frames)
    grey = np.histogram(frames[len(frames) // 2][lit], bins=64, range=(0, 256))[0] / max(1, int(lit.sum()))
    patches = _still_patches(np.diff(frames[-24:], axis=0) / np.float32(np.sqrt(2)), field)
    power = np.median([_power(patch) for patch in patches], axis=0) / np.square(np.hanning(PATCH)).sum() ** 2
    rings = np.digitize(FREQUENCY, RINGS) - 1
    return grey, np.array([power[rings == ring].mean() for ring in range(len(RINGS) - 1)])


def _lines(frames: Frames, field: NDArray[np.bool_]) -> tuple[float, float]:
    """Depth and halo of dark lines in the frame that shows most of them."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (RIDGE, RIDGE))
    best = (0.0, 0.0)
    for frame in frames[:: max(1, len(frames) // 8)]:
        smooth = cv2.GaussianBlur(frame, (0, 0), 1.2)
        beside = cv2.morphologyEx(smooth, cv2.MORPH_CLOSE, kernel)
        depth = beside - smooth
        relative = depth / np.maximum(beside, 20)
        strength = float(np.percentile(relative[field], 98))
        if strength > best[0]:
            best = (strength, _halo(smooth, depth, field))
    return best


def _halo(smooth: NDArray[np.float32], depth: NDArray[np.float32], field: NDArray[np.bool_]) -> float:
    lines = field & (depth > np.percentile(depth[field], 97))
    away = cv2.distanceTransform((~lines).astype(np.uint8), cv2.DIST_L2, 5)
    local = cv2.blur(np.where(lines, 0, smooth), (61, 61)) / np.maximum(
        cv2.blur((~lines).astype(np.float32), (61, 61)), 0.05
    )
    rim = field & (away > 3) & (away < 8)
    far = field & (away > 14) & (away < 28)
    excess = np.median((smooth - local)[rim]) - np.median((smooth - local)[far])
    return float(excess / np.median(depth[lines]))


def read_clip(path: Path) -> Frames:
    dataset = pydicom.dcmread(path)
    frames: Frames = dataset.pixel_array[:MOST_FRAMES].astype(np.float32) * (255 / ((1 << dataset.BitsStored) - 1))
    return 255 - frames if dataset.PhotometricInterpretation == "MONOCHROME1" else frames


def render_clips(clips: int, seed: int, site: Literal["seen", "unseen"]) -> Iterator[tuple[str, Frames]]:
    """Satisfactory clips of as many patients, with the style of the detector that took them."""
    from angio_ray.phantom.planning import PhantomConfig, plan_patient, plan_scene
    from angio_ray.phantom.render import render

    config = PhantomConfig(patients=clips, seed=seed, clips=(2, 2), frames=(40, 40), fps=15.0, site=site)
    for patient in range(clips):
        scene = plan_scene(plan_patient(config, patient), 0, "satisfactory")
        frames = render(scene).frames_THW.astype(np.float32) * (255 / ((1 << scene.detector.bits) - 1))
        yield scene.detector.style, frames


def show(name: str, looks: list[Look]) -> None:
    columns = []
    for field in dataclasses.fields(Look):
        low, middle, high = np.percentile([getattr(look, field.name) for look in looks], [10, 50, 90])
        digits = 1 if field.name in ("mean", "sd", "p5", "p50", "p95", "noise") else 2
        spread = f" ({low:.{digits}f}..{high:.{digits}f})" if len(looks) > 1 else ""
        columns.append(f"{middle:.{digits}f}{spread}")
    print(f"| {name} | {len(looks)} | " + " | ".join(columns) + " |", flush=True)


def write_sheet(path: str, pictures: list[Frames], columns: int = 4, edge: int = 320) -> None:
    """The middle frames side by side, the real ones first."""
    tiles = [cv2.resize(p, (edge, edge), interpolation=cv2.INTER_AREA).clip(0, 255).astype(np.uint8) for p in pictures]
    tiles += [np.zeros((edge, edge), np.uint8)] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    cv2.imwrite(path, np.vstack(rows))


def write_plot(path: str, kinds: dict[str, list[Frames]]) -> None:
    """Both curves of every kind of clip: medians over its clips, a band for the 10th to 90th percentile where there are 5."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, clips in kinds.items():
        found = [curves(clip) for clip in clips]
        for axis, x, ys in (
            (left, np.arange(64) * 4 + 2, np.array([grey for grey, _ in found])),
            (right, (RINGS[1:] + RINGS[:-1]) / 2, np.array([power for _, power in found])),
        ):
            (line,) = axis.plot(x, np.median(ys, axis=0), label=f"{name} ({len(clips)})", linewidth=1.6)
            if len(clips) >= 5:
                band = np.percentile(ys, [10, 90], axis=0)
                axis.fill_between(x, *band, color=line.get_color(), alpha=0.12, linewidth=0)
    left.set(xlabel="grey level", ylabel="share of the field's pixels", title="Grey levels inside the shutter")
    right.set(xlabel="cycles a pixel", ylabel="noise power, grey levels²", yscale="log", title="Noise between frames")
    left.legend(frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=24, help="clips of the phantom")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--site", choices=("seen", "unseen"), default="seen")
    parser.add_argument("--sheet", help="PNG to write, with a frame of each clip")
    parser.add_argument("--plot", help="SVG to write, with histograms and noise power")
    options = parser.parse_args()
    cv2.setNumThreads(1)

    names = [field.name for field in dataclasses.fields(Look)]
    print("| clips | n | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 2) + "|")
    pictures = []
    kinds: dict[str, list[Frames]] = defaultdict(list)
    real = {
        "0002.DCM": [SHARED_DATA / "xa_real" / "0002.DCM"],
        "cath lab, silicone": sorted((SHARED_DATA / "xa_phantom_cathlab").glob("*.dcm")),
    }
    for name, paths in real.items():
        clips = [read_clip(path) for path in paths if path.is_file()]
        pictures += [clip[len(clip) // 2] for clip in clips]
        if clips:
            show(name, [measure(clip) for clip in clips])
            kinds[name] = clips
    styles: dict[str, list[Look]] = defaultdict(list)
    for style, frames in render_clips(options.clips, options.seed, options.site):
        pictures.append(frames[len(frames) // 2])
        styles[style].append(measure(frames))
        kinds[f"phantom, {options.site} site"].append(frames)
    for style, looks in sorted(styles.items()):
        show(style, looks)
    show(f"phantom, {options.site} site", [look for looks in styles.values() for look in looks])
    if options.plot:
        write_plot(options.plot, kinds)
    if options.sheet:
        write_sheet(options.sheet, pictures)


if __name__ == "__main__":
    main()
