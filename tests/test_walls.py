# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The walls of the house, read from the imports: every module stands in one order, and none imports upward."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rosetta

PACKAGE = Path(rosetta.__file__).parent

# From the ground up. A module may import those before it, and nothing after it.
ORDER = """
    registry surveys flags columns readonly arithmetic display files workers checkpoint
    images images.cache images.moments images.psf_core images.psf images.psf_wings images.positions images.sky
    images.wcs images.wcs_fit
    images.filtering images.lines images.sharp_pixels images.artefacts images.image images.noise images.resampling
    input_image frozen_image pair
    io._structure io._wcs io._fits io._store io._flat io.catalogue
    io._image io._photometric_unit io.image io.survey_file
    io._euclid_names io._euclid_psf io.euclid io._stitch io._rubin_planes io._rubin_tree io._rubin_file io.rubin
    io.pair io._pair io
    embedding matching
    detection detection.watershed detection.detection
    encoding encoding.network encoding.losses encoding.novelty encoding.observing encoding.training_windows
    encoding.windows encoding.training_tiles encoding.pretraining encoding.familiar encoding.inference encoding.encoder
    training training.rows training.network training.loop
    head
    centres centres.network centres.channels centres.heat_map centres.presentations centres.training centres.windows
    centres.detector
    astrometry astrometry.epochs astrometry.field astrometry.scatter astrometry.field_fit astrometry.band_fields
    astrometry.few_sources
    astrometry.solution astrometry.corrected_wcs
    astrometry.splines astrometry.template astrometry.registration astrometry.psf_correction
    astrometry.cross_correlation astrometry.excess_noise astrometry.measurement
    astrometry.star_positions astrometry.reference_stars astrometry.catalogue_tie
    astrometry.config astrometry.verdict astrometry.offsets_table astrometry.tied_offsets
    astrometry.aligner
    plotting._style plotting._grid plotting._tables plotting.astrometry plotting.attention plotting.images
    plotting.blends plotting.fluxes plotting.recovery plotting.residual_images plotting.page plotting
    deblending deblending.blend_probability deblending.shapes deblending.engine deblending.engine.config
    deblending.engine.placement deblending.engine.rendering deblending.engine.design deblending.engine.fluxes
    deblending.engine.shape_fit deblending.engine.engine deblending.single_band deblending.wrong_bands
    deblending.candidates deblending.config
    deblending.source_list deblending.job_list deblending.sources deblending.listed deblending.chance_neighbours
    deblending.merging
    deblending.point_sources deblending.psf_width deblending.sky_plane deblending.band_fit
    deblending.residual_search deblending.tile_fit deblending.tiles deblending.one_source
    deblending.label_map deblending.templates deblending.scene_file deblending.scene deblending.scene_fit
    deblending.source_columns deblending.flagging deblending.features deblending.deblender
    photometry photometry.error_model photometry.zeropoints photometry.magnitudes photometry.apertures
    photometry.reddening photometry.catalogue
    pipeline pipeline.catalogue_file pipeline.output pipeline.products pipeline.run pipeline.comparison
    pipeline.report_page pipeline.report
    simulate.astrometry simulate.seds simulate.morphology simulate.stars simulate.real_morphologies simulate.mixtures
    simulate.population simulate.rendering simulate.noise simulate.saturation simulate.artefacts
    simulate.optics simulate.psf simulate.delivery simulate.given_psf simulate.background simulate.delivered
    simulate.dataset simulate.reader simulate.observed simulate.pair simulate
    injection injection.drawing injection.gain injection.sources injection.insertion injection.summary
    injection.recovery injection.command
    production production.cells production.area production.inputs production.models production.sky_maps
    production.metrics production.survey production.plan production.store production.task production.engines
    production.run production.status production.borders production.merged production.collections
    production.publish production.stellar_locus production.star_colours production.quality_page
    production.vectors production.search production.command
    terminal commands commands.errors commands.images commands.lists commands.summary commands.run
    commands.simulate commands.train commands.info commands.reported
    cli __main__
""".split()

# The faces: they alone know units, sky coordinates, tables and NDData. All other modules work on arrays.
ASTROPY = {
    "surveys", "input_image", "frozen_image", "pair", "embedding", "matching", "terminal",
    "images.positions", "images.wcs", "images.wcs_fit", "images.image", "detection.detection",
    "encoding.encoder", "encoding.windows", "centres.detector",
    "astrometry.aligner", "astrometry.solution", "astrometry.corrected_wcs",
    "astrometry.reference_stars", "astrometry.offsets_table", "astrometry.tied_offsets",
    "deblending.source_list", "deblending.job_list", "deblending.templates", "deblending.scene_file",
    "deblending.scene", "deblending.source_columns", "deblending.flagging",
    "deblending.features", "deblending.deblender",
    "photometry.catalogue", "photometry.magnitudes", "photometry.apertures", "photometry.reddening",
}  # fmt: skip
ASTROPY_ROOMS = {"io", "plotting", "pipeline", "simulate", "injection", "production", "commands"}
# The one place where astropy and torch meet.
TORCH_AND_ASTROPY = {"encoding.windows"}
# Rooms whose extras are loaded only when somebody enters.
EXTRAS = {
    "galsim": {"simulate", "injection"}, "speclite": {"simulate", "injection"}, "matplotlib": {"plotting"},
    "tqdm": {"simulate"}, "pyarrow": {"io", "production"}, "distributed": {"production"},
    "astropy_healpix": {"production"},
    "hats": {"production"}, "hats_import": {"production"}, "healsparse": {"production"},
    "faiss": {"production"},
}  # fmt: skip
LIGHT = {"surveys", "flags", "input_image", "frozen_image", "pair", "io"}  # must not load torch


def name_of(path):
    """Dotted name of a file below the package; a folder's for its ``__init__.py``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"}


def imported(source, module, is_package=False):
    """Every module that a source file names in an import, at any depth of its code.

    ``module`` is the dotted name of the file, so that relative imports can be resolved; ``from a import b`` gives
    ``a.b``, be it a module or a name in one.
    """
    names = set()
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{home}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
            "import_module",
            "__import__",
        ):
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return names


def of(name):
    """Outside packages by their top name, and our own modules, that a module imports."""
    path = MODULES[name]
    names = imported(path.read_text(), f"rosetta.{name}", path.name == "__init__.py")
    inside = {n.removeprefix("rosetta.") for n in names if n.startswith("rosetta.")}
    own = {n if n in MODULES else n.rpartition(".")[0] for n in inside} & set(MODULES)
    outside = {n.split(".")[0] for n in names} - {"rosetta"} - set(sys.stdlib_module_names)
    return outside, own - {name}


def test_every_module_has_a_place():
    assert not {name for name in ORDER if ORDER.count(name) > 1}
    assert not set(MODULES) ^ set(ORDER)
    assert set(MODULES) >= ASTROPY


@pytest.mark.parametrize("name", MODULES)
def test_no_import_upward(name):
    _, own = of(name)
    above = {module for module in own if ORDER.index(module) > ORDER.index(name)}
    assert not above


@pytest.mark.parametrize("name", MODULES)
def test_outside_packages(name):
    outside, own = of(name)
    room = name.split(".")[0]
    if name not in ASTROPY and room not in ASTROPY_ROOMS:
        assert not outside & {"astropy", "photutils", "regions"}
        # Sky positions become (east, north) in arcsec at the faces, and sky positions again there.
        assert "images.positions" not in own
    if {"torch", "astropy"} <= outside:
        assert name in TORCH_AND_ASTROPY
    for extra in outside & set(EXTRAS):
        assert room in EXTRAS[extra]
    assert not outside & {"torchvision", "timm", "hyrax", "sep", "reproject"}


def reached(name, found=None):
    """All modules of ours that loading a module loads, itself included."""
    found = set() if found is None else found
    if name not in found:
        found.add(name)
        for other in of(name)[1]:
            reached(other, found)
    return found


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] in LIGHT])
def test_data_does_not_need_torch(name):
    assert not any("torch" in of(module)[0] for module in reached(name))


def test_reader_of_imports():
    """The check itself: relative, nested and dynamic imports are all seen."""
    source = """
import torch.nn as nn
from . import sky
from ..encoding.network import Encoder
def f():
    from astropy.io import fits
    importlib.import_module("scipy.linalg")
"""
    names = imported(source, "rosetta.io.rubin")
    assert {"torch.nn", "rosetta.io.sky", "rosetta.encoding.network.Encoder"} <= names
    assert {"astropy.io.fits", "scipy.linalg"} <= names
    assert "rosetta.io.sky" in imported("from . import sky", "rosetta.io", is_package=True)


def test_import_is_light():
    """``import rosetta`` loads neither torch nor astropy, and the data layers never load torch."""
    code = """
import sys
import rosetta
heavy = {"torch", "astropy", "photutils", "regions", "scipy", "numpy"} & set(sys.modules)
assert not heavy, heavy
rosetta.EUCLID, rosetta.SkyPair, rosetta.Flag
import rosetta.io
assert "torch" not in sys.modules, "torch"
assert set(rosetta.__all__) <= set(dir(rosetta))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_resolve():
    for name in rosetta.__all__:
        assert getattr(rosetta, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'SkyPear'"):
        _ = rosetta.SkyPear


BENCHMARKS = PACKAGE.parent / "benchmarks"


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="no checkout: benchmarks are not installed")
@pytest.mark.parametrize("path", sorted(BENCHMARKS.rglob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_use_public_names(path):
    """No benchmark reads a private attribute or imports a private name, and scripts share code through kit alone."""
    tree = ast.parse(path.read_text())
    private = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr[:1] == "_"}
    names = imported(path.read_text(), ".".join(path.relative_to(BENCHMARKS).with_suffix("").parts))
    assert not {name for name in private if not name.endswith("__")}
    assert not {name for name in names if any(part[:1] == "_" for part in name.split(".")) and "__future__" not in name}
    assert not {name.split(".")[0] for name in names} & {script.stem for script in BENCHMARKS.glob("*.py")}
