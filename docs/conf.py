"""How Sphinx builds these pages: `make docs`."""

import condense.api
from tuning.journal import Journal
from tuning.publish import Outcome
from tuning.space import SearchConfig

project = "Condense"
author = "the Condense authors"
version = release = condense.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "pictures"]
html_theme = "furo"
html_title = f"Condense {version}"
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
suppress_warnings = ["config.cache"]

# A reference that leads nowhere is a warning, and warnings are errors. Other projects' types are not looked up: the
# pages are built without a network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(Image|PIL|collections|numpy|pathlib|pydantic|torch|typing)\..*|Path")]

# condense.api imports these for type checkers alone; autodoc needs them to resolve the types of its functions.
vars(condense.api).update(Journal=Journal, Outcome=Outcome, SearchConfig=SearchConfig)
