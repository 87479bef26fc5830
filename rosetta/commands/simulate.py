# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""``rosetta simulate``: training tiles, or one pair with its truth."""

from pathlib import Path

from .errors import option, options

__all__ = ["simulate_sky"]


def simulate_sky(arguments):
    if arguments.pair:
        with options("output"):
            return _simulate_pair(arguments)
    from ..simulate import write_training_set

    with option("--output"):
        Path(arguments.output).mkdir(parents=True, exist_ok=True)
    write_training_set(
        arguments.output, arguments.tiles, seed=arguments.seed, processes=arguments.processes,
        star_density=arguments.stars, morphologies=arguments.morphologies,
    )
    print(f"{arguments.tiles} tiles in {arguments.output}")
    return 0


def _simulate_pair(arguments):
    import astropy.units as u

    from ..checkpoint import versions
    from ..files import atomic_write
    from ..io import pair as pair_io
    from ..simulate import AstrometricError, simulate_pair

    path = Path(arguments.output)
    if path.suffix != ".fits":
        raise ValueError(f"output {str(path)!r} must end in .fits: it is one pair file")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"output {str(path)!r}: its folder does not exist, create it first")
    truth_path = path.with_name(f"{path.stem}_truth.fits")
    for file in (path, truth_path):
        if file.exists() and not arguments.overwrite:
            raise ValueError(f"output {str(file)!r} exists: choose another name, or give --overwrite")
    error = AstrometricError(shift=arguments.shift * u.mas, rms=arguments.rms * u.mas)
    pair, truth = simulate_pair(
        seed=arguments.seed, size=arguments.size * u.arcsec, density=arguments.density, astrometric_error=error,
        star_density=arguments.stars, morphologies=arguments.morphologies,
    )
    truth.meta = {"SEED": arguments.seed, "VERSION": versions()["astro-rosetta"]}
    with option("--output"):
        pair_io.write(_rounded(pair), path, overwrite=arguments.overwrite)
        with atomic_write(truth_path) as temporary:
            truth.write(temporary, overwrite=True)
    print(f"{pair}\n{len(truth)} sources\nWrote {path} and {truth_path}")
    return 0


def _rounded(pair):
    """The pair rounded to 1/32 to 1/64 of the noise: less than half the file size for 0.01% more noise."""
    import numpy as np
    from astropy.nddata import NDData, VarianceUncertainty

    from .. import SkyPair

    sides = {"ground": {}, "space": {}}
    for side, band, image in pair.images():
        variance = np.array(image.uncertainty.array)
        step = 2.0 ** np.floor(np.log2(np.sqrt(np.median(variance)) / 32))
        mantissa, exponent = np.frexp(variance)
        sides[side][band] = NDData(
            np.float32(np.round(image.data / step) * step),
            uncertainty=VarianceUncertainty(np.ldexp(np.round(mantissa * 256) / 256, exponent).astype(np.float32)),
            mask=image.mask, wcs=image.wcs, unit=image.unit, psf=np.float32(image.psf), meta=image.meta,
        )
    return SkyPair(sides["ground"] or None, sides["space"] or None, surveys=pair.surveys)
