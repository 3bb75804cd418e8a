"""Sphinx: makes a site of the pages in this folder.

sphinx-build -W --keep-going -n docs docs/_build
"""

import importlib
import re

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.utils.math.latex2mathml import tex2mathml

import advadapters
from advadapters import flags

project = "advadapters"
author = "The advadapters authors"
copyright = "the advadapters authors, Apache-2.0"
version = release = advadapters.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "advadapters"
html_theme_options = {"navigation_with_keys": True}
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["style.css"]
smartquotes = False  # docstrings show values in quotes

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Docstrings quote code by single backquotes, as Markdown does.
default_role = "literal"
napoleon_use_param = False  # one entry for names that are explained together
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
# -n looks for every name that is linked to; those of other packages are on other sites.
nitpick_ignore_regex = [(r"py:.*", r"(?!advadapters\.).*")]


class Usage(Directive):
    """`{usage} VERB`: the text of `advadapters VERB --help`, or of all verbs."""

    optional_arguments = 1

    def run(self):
        if self.arguments:
            module = importlib.import_module(f"advadapters.commands.{self.arguments[0]}")
            text = flags.describe(module.__doc__, flags.taken_by(module.main))
        else:
            text = importlib.import_module("advadapters.__main__").usage()
        return [nodes.literal_block(text, text, language="text")]


def visit_math(self, node):
    """Formulas as MathML, which browsers show without a script from elsewhere."""
    inline = isinstance(node, nodes.math)
    text = tex2mathml(node.astext(), as_block=not inline)
    self.body.append(text if inline else f'<div class="math">{text}</div>')
    raise nodes.SkipNode


def as_restructured(app, what, name, obj, options, lines):
    """Docstrings are plain text: stars and bars are no markup, indented blocks are code."""
    found, flat = [], False
    for line in lines:
        block = line.startswith("    ") and found and not found[-1].strip() and flat
        if block:
            found += ["::", ""]
        if line.strip():
            flat = not line.startswith("    ")
        if flat:
            parts = re.split(r"(`[^`]*`)", line)
            parts[::2] = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
            line = "".join(parts)
        found.append(line)
    lines[:] = found


def without_fields(app, what, name, obj, skip, options):
    """Fields of named tuples are explained in the docstring, and have none of their own."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def with_design(app, name, source):
    """On this site the design, a file beside the folder, is the page that includes it."""
    source[0] = source[0].replace("](../BUILD.md", "](design.md")
    source[0] = source[0].replace("](../../BUILD.md", "](../design.md")


def setup(app):
    app.add_directive("usage", Usage)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.config.html_math_renderer = "mathml"
    app.connect("autodoc-process-docstring", as_restructured, priority=100)
    app.connect("autodoc-skip-member", without_fields)
    app.connect("source-read", with_design)
