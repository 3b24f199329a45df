"""Sphinx settings: furo pages from markdown; `make docs` treats a warning as an error."""

import re
import shutil
from pathlib import Path

import mithridate

project = "mithridate"
author = "The mithridate contributors"
release = version = mithridate.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say what they are
autodoc_class_signature = "mixed"
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]  # settings of one name in several classes
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"mithridate {version}"
html_show_copyright = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3


def setup(app):
    """Copies the leaderboard, which is a page of its own, beside the others; reads docstrings as they are written."""

    kept = {}

    def before(app, what, name, obj, options, lines):
        text = re.sub(r"(?<![`:])`([^`]+)`(?!`)", r"``\1``", "\n".join(lines))  # one backtick is code
        lines[:] = re.sub(r"(?<!`)\|(\w+)\|", r"\|\1\|", text).split("\n")  # bars are bars
        kept[name] = list(lines)

    def after(app, what, name, obj, options, lines):
        if what == "attribute":  # napoleon takes what stands before a colon for a type
            lines[:] = kept[name]

    def copy(app, error):
        if error is None:
            shutil.copytree(Path(app.srcdir) / "leaderboard", Path(app.outdir) / "leaderboard", dirs_exist_ok=True)

    app.connect("autodoc-process-docstring", before, priority=400)
    app.connect("autodoc-process-docstring", after, priority=600)
    app.connect("build-finished", copy)
