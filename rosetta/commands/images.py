# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The pair that the options of ``rosetta run`` describe."""

import re

from .errors import option

__all__ = ["given_pair"]


def given_pair(arguments):
    """The pair that the options of ``rosetta run`` describe."""
    from ..io import pair as pair_io

    files = {f"--{name}": getattr(arguments, name) for name in ("rubin", "euclid", "ground", "space")}
    center, size = _region(arguments)
    psf = _psfs(arguments.psf)
    if any(not name.strip() for name in arguments.bands or ()):
        raise ValueError("--bands has an empty name: give names of bands, such as r VIS, or leave the option out")
    if not arguments.pair:
        return _pair_of_files(arguments, files, (center, size), psf)
    given = [name for name, value in (files | {"--survey": arguments.survey}).items() if value]
    if given:
        raise ValueError(f"--pair cannot be combined with {' and '.join(given)}: give one or the other")
    with option("--pair"):
        pair = pair_io.read(arguments.pair)
    if arguments.bands:
        with option("--bands", *arguments.bands):
            pair = pair.select(arguments.bands)
    if psf:
        with option("--psf", *arguments.psf):
            pair = pair.with_psf(psf)
    if center is None:
        return pair
    with option("--center", *arguments.center):
        return pair.cutout(center, size)


def _pair_of_files(arguments, files, region, psf):
    from .. import EUCLID, RUBIN, SkyPair
    from ..io import read_pair

    if not any(files.values()):
        raise ValueError(
            "no input: give --rubin FILE ... and --euclid FILE ... (or one of them), or --ground BAND=FILE ... and "
            "--space BAND=FILE ..., or --pair FILE"
        )
    center, size = region
    surveys = _surveys(arguments)
    wanted = _bands(arguments.bands, surveys)
    ground, space = {}, {}
    if arguments.rubin or arguments.euclid:
        with option(" and ".join(name for name in ("--rubin", "--euclid") if files[name])):
            read = read_pair(arguments.rubin, arguments.euclid, center=center, size=size)
        ground, space = (
            {band: image for band, image in (side or {}).items() if wanted is None or band in wanted} for side in read
        )
    sides = {"ground": ground, "space": space}
    texts = [(side, text) for side in sides for text in getattr(arguments, side)]
    for done, (side, text) in enumerate(texts):
        arguments.progress(done, len(texts))
        band, path = _band_and_file(f"--{side}", text, surveys[side].survey.band_names[0])
        with option(f"--{side}", text):
            band = surveys[side].survey[band].name
        if wanted is not None and band not in wanted:
            continue
        images = sides[side]
        if band in images:
            raise ValueError(
                f"--{side} {text}: band {band!r} is also in {images[band].meta['file']}: leave one of them out"
            )
        images[band] = _image(f"--{side} {text}", path, band, surveys[side], center, size)
        if surveys[side].survey in (RUBIN, EUCLID):
            del images[band].meta["survey"]  # nobody said so
    if absent := sorted((wanted or set()) - {*ground, *space}):
        raise ValueError(f"--bands {' '.join(absent)}: no image of them is given")
    if absent := sorted({_band_of(band, surveys) or band for band in psf} - {*ground, *space}):
        raise ValueError(f"--psf {' '.join(absent)}: no image of them is measured, leave them out")
    return SkyPair(ground or None, space or None, surveys=tuple(surveys[side].survey for side in sides), psf=psf)


def _bands(names, surveys):
    """The bands of the option --bands by the surveys' names for them, or None."""
    if names is None:
        return None
    found = {name: _band_of(name, surveys) for name in names}
    if unknown := [name for name, band in found.items() if band is None]:
        known = " ".join(band for one in surveys.values() for band in one.survey.band_names)
        raise ValueError(f"--bands {' '.join(unknown)}: give names of bands, of {known}")
    return set(found.values())


def _band_of(name, surveys):
    """A survey's own name of a band, or None."""
    bands = [band for one in surveys.values() for band in one.survey.bands]
    of_name = [band.name for band in bands if band.name == name]
    return next(iter([*of_name, *(band.name for band in bands if name in band.aliases)]), None)


def _psfs(texts):
    """The arrays of the option --psf, by band."""
    import numpy as np

    from ..images.psf import PSF
    from ..io._fits import image_hdu, native, open_fits

    found = {}
    for text in texts:
        band, path = _band_and_file("--psf", text, "r")
        if band in found:
            raise ValueError(f"--psf {text}: band {band!r} has another one already: leave one of them out")
        with option("--psf", text), open_fits(path, "its file") as hdus:
            hdu = image_hdu(hdus, "its file")
            lead = (0,) * (len(hdu.shape) - 2)
            found[band] = PSF(native(hdu, np.float64, (*lead, slice(None), slice(None))))
    return found


def _band_and_file(option, text, band):
    """The parts of an argument BAND=FILE; ``band`` is an example."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ValueError(f"{option} {text}: write BAND=FILE, such as {band}=image.fits")
    return name, path


def _region(arguments):
    """Centre and size of the region to measure, or None and None."""
    import astropy.units as u
    from astropy.coordinates import SkyCoord

    if (arguments.center is None) != (arguments.size is None):
        raise ValueError("--center and --size: give both, or neither for the whole images")
    if arguments.center is None:
        return None, None
    ra, dec = arguments.center
    if not (-360 <= ra <= 360 and -90 <= dec <= 90):
        raise ValueError(f"--center {ra:g} {dec:g}: give right ascension and declination in degrees")
    if not 0 < arguments.size < 1e6:
        raise ValueError(f"--size {arguments.size:g}: give the side of the region in arcsec")
    return SkyCoord(ra, dec, unit="deg"), arguments.size * u.arcsec


def _surveys(arguments):
    """What each side's images belong to: Rubin and Euclid, or what the files of --survey say."""
    from ..io.survey_file import SurveyFile, read_survey_file
    from ..surveys import EUCLID, RUBIN

    described = {}
    for path in arguments.survey:
        with option("--survey"):
            survey = read_survey_file(path)
        if survey.side in described:
            raise ValueError(f"--survey {path}: it is on the {survey.side} side, and so is the other one: give one")
        own = {"ground": "rubin", "space": "euclid"}[survey.side]
        if getattr(arguments, own):
            raise ValueError(f"--survey {path}: --{own} is on the same side: leave one of them out")
        if not getattr(arguments, survey.side):
            raise ValueError(f"--survey {path}: it needs images of its side: give --{survey.side} BAND=FILE ...")
        described[survey.side] = survey
    shipped = {"ground": SurveyFile(RUBIN, "ground", {}, {}), "space": SurveyFile(EUCLID, "space", {}, {})}
    return shipped | described


def _image(argument, path, band, survey, center, size):
    """The image of a band, of an argument BAND=FILE."""
    try:
        return survey.read(path, band, center=center, size=size)
    except ValueError as error:
        # The remedies are those of Python.
        hint = "; here, in the file of --survey" if re.search(r"\b(zeropoint|unit|plane)=", str(error)) else ""
        raise ValueError(f"{argument}: {error}{hint}") from error
    except OSError as error:
        raise ValueError(f"{argument}: {error.strerror or error}") from error
