# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Sphinx configuration; everything not set here is sphinx-astropy's."""

from importlib.metadata import version as installed_version

from sphinx_astropy.conf.v3 import *  # noqa: F403
from sphinx_astropy.conf.v3 import extensions

project = "rosetta"
author = "The rosetta developers"
copyright = author
version = release = installed_version("astro-rosetta")

extensions = [*extensions, "myst_nb"]
extensions.remove("sphinx.ext.intersphinx")  # the build must not need a network
nb_execution_timeout, nb_execution_raise_on_error = 300, True
nb_execution_mode = "force"  # outputs shown here would otherwise depend on the machine that built them
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

# The astropy theme without Astropy's own menu, logo and team links: this is not an Astropy project.
html_theme = "pydata_sphinx_theme"
html_logo = html_favicon = None
html_title = f"rosetta {release}"
html_theme_options = {"navbar_end": ["theme-switcher"], "show_toc_level": 2, "navigation_with_keys": False}
html_show_sourcelink = False
html_sidebars = {"index": [], "changes": [], "search": [], "**": ["sidebar-nav-bs"]}
html_static_path = ["_static"]
html_css_files = ["width.css"]
automodapi_toctreedirnm = "api"
automodapi_inheritance_diagram = False
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
