"""The site of the documentation: `make docs`. Its source is the whole checkout, of which pages are taken."""

project = "megatron_davinci"
copyright = "the megatron_davinci authors"
extensions = ["myst_parser"]
root_doc = "docs/site"
include_patterns = ["docs/**.md", "docs/site.rst", "*.md", "examples/**.md", "benchmarks/README.md"]
exclude_patterns = [".venv*", "out", "runs", "build", ".hypothesis"]
html_theme = "furo"
html_title = "davinci"
myst_heading_anchors = 3
# Files and folders of the checkout are linked too; a test looks whether they are there.
suppress_warnings = ["myst.xref_missing", "toc.not_included", "myst.header", "misc.highlighting_failure"]
