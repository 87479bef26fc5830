# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Simulated pairs that heads are trained on, as surveys deliver them; every head has a sky of its own.

Seeing, depth, density, epoch and the delivery differ from pair to pair, and headers are off. So a head is not trained
where another one was, and none learns its errors where another was fitted.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.table import QTable

from rosetta.io import pair as pair_file
from rosetta.simulate import IDEAL, REAL, AstrometricError, simulate_pair

FIRST_SEED = {"aligner": 5100, "photometry": 5200, "deblender": 5300}
N_PAIR = {"aligner": 16, "photometry": 40, "deblender": 20}
SIZE = 76.8 * u.arcsec
EPOCHS = 15.0  # years between the surveys, at most
EVERY_IDEAL = 4  # one pair in so many has an exact PSF, white noise and no residuals of the sky
EVERY_REAL = 3  # one pair for photometry in so many has real galaxies among the others, if some are given
N_DEEP, DEEPER, SHARPER = 8, 1.0, 0.75  # of photometry's pairs, the last; magnitudes; of the seeing
EVERY_STARRY, STARS = 5, 16.0  # one pair for photometry in so many has so many stars: else too few bright ones teach


class Sky(Sequence):
    """The pairs that one head is trained on, simulated once and kept in a folder; read one at a time.

    Parameters
    ----------
    folder : path-like
    kind : str
        A key of `N_PAIR`.
    morphologies : path-like, optional
        Images of real galaxies, for `~rosetta.simulate.simulate_pair`.
    """

    def __init__(self, folder, kind, morphologies=None):
        self._folder, self.kind, self._morphologies = Path(folder), kind, morphologies

    def __len__(self):
        return N_PAIR[self.kind]

    def __getitem__(self, index):
        return pair_file.read(self._paths(index)[0])

    @property
    def truth(self):
        """The truth tables of the pairs, read one at a time."""
        return _Truth(self)

    def simulate(self, processes):
        """Simulate the pairs that the folder lacks."""
        self._folder.mkdir(parents=True, exist_ok=True)
        missing = [i for i in range(len(self)) if not self._paths(i)[0].exists()]
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            for index in pool.map(self._simulate, missing):
                print(f"{self.kind}: pair {index + 1} of {len(self)} simulated", flush=True)

    def _simulate(self, index):
        pair, truth = simulated(self.kind, index, self._morphologies)
        truth.meta.clear()
        path, truth_path = self._paths(index)
        truth.write(truth_path, overwrite=True)
        pair_file.write(pair, path)  # comes last: where it exists, both do
        return index

    def _paths(self, index):
        name = f"{self.kind}_{index:03d}"
        return self._folder / f"{name}.fits", self._folder / f"{name}.truth.fits"


class _Truth(Sequence):
    def __init__(self, sky):
        self._sky = sky

    def __len__(self):
        return len(self._sky)

    def __getitem__(self, index):
        return QTable.read(self._sky._paths(index)[1])


def simulated(kind, index, morphologies=None):
    """A pair and its truth."""
    seed = FIRST_SEED[kind] + index
    rng = np.random.default_rng([seed, 1])
    if kind == "aligner":  # as headers are
        shift, rms = rng.normal(0, 50, 2), rng.uniform(3, 20)
    else:  # as an alignment leaves them
        shift, rms = np.zeros(2), rng.uniform(2, 10)
    density, stars = rng.uniform(0.3, 1.4), np.exp(rng.uniform(np.log(0.5), np.log(4.0)))
    starry = kind == "photometry" and index % EVERY_STARRY == 1
    real = kind == "photometry" and index % EVERY_REAL == 0
    deep = kind == "photometry" and index >= N_PAIR[kind] - N_DEEP
    return simulate_pair(
        seed=seed, size=SIZE, density=density, star_density=STARS if starry else stars,
        astrometric_error=AstrometricError(shift=shift * u.mas, rms=rms * u.mas, length=rng.uniform(15, 60) * u.arcsec),
        proper_motion_years=rng.uniform(0, EPOCHS), depth_offset=rng.uniform(-0.7, 0.3) + deep * DEEPER,
        seeing=rng.uniform(0.85, 1.2) * (SHARPER if deep else 1.0),
        morphologies=morphologies if real else None,
        delivery=IDEAL if index % EVERY_IDEAL == EVERY_IDEAL - 1 else REAL,
    )  # fmt: skip
