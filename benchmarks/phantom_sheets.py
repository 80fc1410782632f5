"""Contact sheets of the phantom, to look at: every class, every view, a clip over time, a pair of counterfactuals.

    python benchmarks/phantom_sheets.py docs/phantom
    python benchmarks/phantom_sheets.py SHEETS --real ../shared/data     # the real clips beside, not to be committed

Each picture is the fullest frame of one clip as it is stored (8 bits shown), with its class and view written below.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray

from angio_ray.phantom.ct_scan import draw_heart
from angio_ray.phantom.planning import PhantomConfig, plan_patient, plan_scene
from angio_ray.phantom.reformations import Workstation, draw_branch
from angio_ray.phantom.render import render
from angio_ray.phantom.scene import UNSATISFACTORY, QualityClass, Scene

Picture = NDArray[np.uint8]
TILE = 256
CONFIG = PhantomConfig(patients=500, seed=77, size=512, fps=15.0, frames=(60, 60))


def shown(frames_THW: NDArray[np.generic], f: int, text: str, bits: int = 8) -> Picture:
    """One frame as a tile with a line of text below."""
    frame = (frames_THW[f].astype(np.float32) * (255 / (2**bits - 1))).astype(np.uint8)
    tile = cv2.resize(frame, (TILE, TILE), interpolation=cv2.INTER_AREA)
    line = np.zeros((18, TILE), np.uint8)
    cv2.putText(line, text[:44], (3, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.34, 255, 1, cv2.LINE_AA)
    return np.vstack([tile, line])


def fullest(scene: Scene) -> Picture:
    """The frame with the most iodine, or the middle one."""
    rendered = render(scene)
    f = int(rendered.filling_T.argmax()) if rendered.filling_T.max() > 0.05 else len(rendered.frames_THW) // 2
    text = f"{scene.quality_class}" + (f": {scene.detail}" if scene.detail else f", {scene.view.name}")
    return shown(rendered.frames_THW, f, text, scene.detector.bits)


def over_time(scene: Scene, count: int = 8) -> list[Picture]:
    """Evenly chosen frames of one clip."""
    rendered = render(scene)
    picked = np.linspace(0, len(scene.times_s) - 1, count).astype(int)
    return [
        shown(rendered.frames_THW, f, f"{scene.quality_class}, {scene.times_s[f]:.1f} s", scene.detector.bits)
        for f in picked
    ]


def diseased(count: int = 4) -> list[Picture]:
    """Calcium before contrast and under it, in the same phase of the beat; occlusions early and late in the run."""
    tiles: list[Picture] = []
    calcium = replace(CONFIG, protocol="calcium", frames=(120, 120), seed=79)
    for scene in scenes("satisfactory", 0, CONFIG.patients, calcium):
        if scene.tree is None or len(scene.tree.calcifications) < 3:
            continue
        rendered = render(scene)
        full = int(rendered.filling_T.argmax())
        before = np.flatnonzero(rendered.filling_T < 0.01)
        before = before[before < full]
        like = int(before[np.abs(scene.motion.phase_T[before] - scene.motion.phase_T[full]).argmin()])
        for f, what in ((like, "before contrast"), (full, "same phase, contrast")):
            tiles.append(shown(rendered.frames_THW, f, f"calcium, {what}", scene.detector.bits))
        if len(tiles) == 2 * count:
            break
    for scene in scenes("satisfactory", 0, CONFIG.patients):
        if scene.tree is None or not any(s.percent >= 100 for s in scene.tree.stenoses):
            continue
        rendered = render(scene)
        full = int(rendered.filling_T.argmax())
        segment = next(s.segment for s in scene.tree.stenoses if s.percent >= 100)
        late = min(full + 20, len(rendered.frames_THW) - 1)
        for f, what in ((full, "full contrast"), (late, "later")):
            tiles.append(shown(rendered.frames_THW, f, f"{segment} occluded, {what}", scene.detector.bits))
        if len(tiles) == 4 * count:
            break
    return tiles


def write(path: Path, tiles: Sequence[Picture], columns: int) -> None:
    """Tiles in rows as a JPEG."""
    tiles = list(tiles) + [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    sheet = np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])
    cv2.imwrite(str(path), sheet, [cv2.IMWRITE_JPEG_QUALITY, 80])
    print(f"{path}  {sheet.shape[1]}x{sheet.shape[0]}  {path.stat().st_size // 1024} kB")


def scenes(quality: QualityClass, first_patient: int, count: int, config: PhantomConfig = CONFIG) -> Iterable[Scene]:
    """Clips of one class, each of another patient; the class is asked for, the rest is as drawn."""
    for patient in range(first_patient, first_patient + count):
        yield plan_scene(plan_patient(config, patient), 0, quality)


def real(folder: Path) -> list[Picture]:
    """The real clips at hand: the patient's over time, one frame of each cath-lab recording."""
    patient = pydicom.dcmread(folder / "xa_real/0002.DCM").pixel_array
    tiles = [shown(patient, f, f"real patient, frame {f}") for f in (0, 20, 30, 40, 50, 60, 75, 95)]
    for path in sorted((folder / "xa_phantom_cathlab").glob("*.dcm")):
        frames = pydicom.dcmread(path).pixel_array
        tiles.append(shown(frames, len(frames) // 2, f"real cath lab, static model {path.stem}"))
    return tiles


def ct_tiles(seed: int, count: int = 8) -> list[Picture]:
    """Rotations of the most diseased branch of a synthetic CT."""
    heart = draw_heart(np.random.default_rng(seed))
    branch = max(heart.branches, key=lambda b: max((lesion.percent for lesion in b.lesions), default=0))
    station = Workstation.draw(np.random.default_rng(seed))
    pictures = draw_branch(heart, branch, station, patient_id="PHANTOM", size=TILE, rotations=count)
    return [shown(p.picture_HW[None], 0, f"{branch.name}, {p.angle_deg:.0f} degrees") for p in pictures]


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--real", type=Path, help="folder of the real clips: one more sheet, with phantom clips beside")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "satisfactory.jpg", [fullest(s) for s in scenes("satisfactory", 0, 16)], 4)
    bad = [fullest(s) for i, q in enumerate(UNSATISFACTORY) for s in scenes(q, 20 + 4 * i, 4)]
    write(args.out / "unsatisfactory.jpg", bad, 4)
    plan = plan_patient(CONFIG, 3)
    pair = [*over_time(plan_scene(plan, 0, "satisfactory")), *over_time(plan_scene(plan, 0, "poor_engagement"))]
    write(args.out / "over_time.jpg", pair, 8)
    write(args.out / "disease.jpg", diseased(), 8)
    unseen = replace(CONFIG, site="unseen", seed=78)
    write(args.out / "unseen_site.jpg", [fullest(s) for s in scenes("satisfactory", 0, 8, unseen)], 4)
    write(args.out / "ct.jpg", [tile for seed in (1, 2, 3) for tile in ct_tiles(seed)], 8)
    if args.real:
        write(args.out / "real.jpg", [*real(args.real), *(fullest(s) for s in scenes("satisfactory", 40, 8))], 8)
    return 0


if __name__ == "__main__":
    sys.exit(main())
