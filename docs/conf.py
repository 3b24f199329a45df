"""Sphinx settings: furo pages from markdown; `make docs` treats a warning as an error."""

import shutil
from pathlib import Path

import mithridate

project = "mithridate"
author = "The mithridate contributors"
release = version = mithridate.__version__

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"mithridate {version}"
html_show_copyright = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3


def setup(app):
    """Copies the leaderboard, which is a page of its own, beside the others."""

    def copy(app, error):
        if error is None:
            shutil.copytree(Path(app.srcdir) / "leaderboard", Path(app.outdir) / "leaderboard", dirs_exist_ok=True)

    app.connect("build-finished", copy)
