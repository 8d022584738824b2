"""Takes the pictures of report.html in docs/images: `PYTHONPATH=tests python docs/screenshots.py RUN`.

RUN is a simulated run with its report. Needs Chromium (Debian: chromium) and Pillow, which matplotlib brings.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from chromium import chromium, open_chromium
from PIL import Image

IMAGES = Path(__file__).parent / "images"
SIZES = {"phone": (390, 844, 2.0), "desktop": (1280, 900, 1.0)}
"""Width and height in CSS pixels, device pixels per CSS pixel."""
SCREENS = {"": "", "-figures": "#curves", "-result": "#result"}
"""Suffix of the file, and the section that is opened for it and stands at the top."""
COLOURS = 128
_TO_TOP = """(() => {
  const banner = document.querySelector(".simulated").offsetHeight;
  const section = document.querySelector("%s")?.closest("section");
  document.querySelectorAll(".fold").forEach((fold) => { fold.open = section?.contains(fold) ?? false; });
  scrollTo(0, section ? section.getBoundingClientRect().top + scrollY - banner - 8 : 0);
})()"""


def take(report: Path) -> None:
    """Writes report[-part]-SIZE-THEME.png; the first screen in both themes, the others in one each."""
    program = chromium()
    if program is None:
        raise SystemExit("Chromium is not installed (Debian: apt-get install chromium)")
    IMAGES.mkdir(exist_ok=True)
    with open_chromium(program) as page:
        for size, (width, height, scale) in SIZES.items():
            page.resize(width, height, scale=scale)
            for theme in ("light", "dark"):
                page.prefer(theme)
                page.open(report)
                for suffix, top in SCREENS.items():
                    if suffix and (theme == "light") != (suffix == "-result"):
                        continue
                    page.evaluate(_TO_TOP % (top or "none"))
                    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(COLOURS)
                    picture.save(IMAGES / f"report{suffix}-{size}-{theme}.png", optimize=True)


if __name__ == "__main__":
    take(Path(sys.argv[1]) / "report.html")
