"""Makes the pictures of the pages: runs commands of the pages and photographs their reports with headless Chromium.

    python docs/pictures.py            # all of them, 10 minutes on two cores; what runs/pictures has is not run again
    python docs/pictures.py dose scan  # some

Needs Chromium or Chrome on the PATH, and `pip install -e '.[image]'` for the photograph that is segmented.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image

IMAGES = Path(__file__).parent / "images"
RUNS = Path("runs/pictures")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH = 1280
COLOURS = 128
"""Of a stored picture: reports have few, and a page should load fast."""


class Shot(NamedTuple):
    """The upper part of a report."""

    command: str
    """After `mithridate`; --out is added."""
    height: int
    """How much of the page is shown, in pixels of a window that is WIDTH wide."""
    page: str = "report.html"


SHOTS = {
    "report": Shot("audit", 1700),
    "dose": Shot("dose --attacks badnets", 1210),
    "leak": Shot("invert", 2080),
    "evasion": Shot("evade", 700),
    "scan": Shot("scan digits", 1030, "scan.html"),
}
SEGMENTED = "segmented"
"""A photograph beside its labels."""


def main() -> None:
    """Makes the pictures that were named, or all."""
    names = [*SHOTS, SEGMENTED]
    parser = argparse.ArgumentParser(description="Makes docs/images: runs commands, photographs their reports.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(names)}; default: all")
    parser.add_argument("--runs", type=Path, default=RUNS, help=f"results folder; default: {RUNS}")
    options = parser.parse_args()
    if strange := set(options.names) - set(names):
        parser.error(f"no picture is called {', '.join(sorted(strange))}; there are {', '.join(names)}")
    IMAGES.mkdir(exist_ok=True)
    for name in options.names or names:
        folder = options.runs / name
        made = segmented(folder) if name == SEGMENTED else photograph(SHOTS[name], folder)
        store(made, IMAGES / f"{name}.png")
        print(IMAGES / f"{name}.png", *made.size)


def photograph(shot: Shot, folder: Path) -> Image.Image:
    """Returns the upper part of the report of a command, run now or before."""
    mithridate(*shot.command.split(), "--out", folder)
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"no browser found: none of {', '.join(BROWSERS)} is on the PATH")
    with tempfile.TemporaryDirectory() as place:
        picture = Path(place) / "page.png"
        window = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{shot.height}"]
        address = (folder / shot.page).resolve().as_uri()
        subprocess.run([browser, *window, f"--screenshot={picture}", address], check=True, capture_output=True)
        with Image.open(picture) as image:
            return image.convert("RGB")


def segmented(folder: Path) -> Image.Image:
    """Returns a photograph of scikit-image beside its eight labels, on pixels and on superpixels."""
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    photo = folder / "photo.png"
    Image.fromarray(data.astronaut()).resize((320, 320), Image.Resampling.LANCZOS).save(photo)
    mithridate("lift", "segment", photo, "--colours", "8", "--superpixels", "compare", "--out", folder)
    with Image.open(folder / "picture.png") as image:
        return image.convert("RGB")


def mithridate(*arguments: str | Path) -> None:
    """Runs a command; its own folder makes it go on where it was."""
    subprocess.run([sys.executable, "-m", "mithridate.cli", *map(str, arguments)], check=True)


def store(image: Image.Image, path: Path) -> None:
    """Writes a picture with few colours."""
    image.quantize(COLOURS, method=Image.Quantize.MEDIANCUT).save(path, optimize=True)


if __name__ == "__main__":
    main()
