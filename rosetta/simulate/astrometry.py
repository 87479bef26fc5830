# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""A known error in the astrometry of the ground images."""

from dataclasses import dataclass

import astropy.units as u
import numpy as np

__all__ = ["AstrometricError"]

_N_WAVE = 256


@dataclass(frozen=True)
class AstrometricError:
    """How far the ground WCS is off: corrected position = ground position + offset.

    The offset is a shift, plus a small rotation and change of scale about the field centre, plus a
    smooth random field with a Gaussian correlation function (random Fourier features, Rahimi & Recht
    2007).

    Parameters
    ----------
    shift : `~astropy.units.Quantity`, shape (2,)
        East and north, angle.
    rotation : `~astropy.units.Quantity`
        Angle, north through east.
    scale : float
        Relative change of scale.
    rms, length : `~astropy.units.Quantity`
        Per-axis scatter and correlation length (standard deviation of the correlation function) of the
        random field, angles.
    """

    shift: u.Quantity = (0.0, 0.0) * u.mas
    rotation: u.Quantity = 0.0 * u.deg
    scale: float = 0.0
    rms: u.Quantity = 0.0 * u.mas
    length: u.Quantity = 30.0 * u.arcsec

    def realise(self, rng):
        """Draw the random field and return the parameters of the whole offset.

        Parameters
        ----------
        rng : `~numpy.random.Generator`

        Returns
        -------
        dict
            Numbers in mas and arcsec, ready for a table's ``meta`` and for `offset`.
        """
        turn = self.rotation.to_value(u.rad)
        length = self.length.to_value(u.arcsec)
        if not (length > 0 and self.rms >= 0 * u.mas):
            raise ValueError(f"astrometric_error has rms {self.rms} and length {self.length}: give none below zero")
        # mas per arcsec from the field centre
        stretch, twist = 1e3 * self.scale, 1e3 * turn
        return {
            "shift": np.broadcast_to(self.shift.to_value(u.mas), 2).tolist(),
            "matrix": [[stretch, twist], [-twist, stretch]],
            "amplitude": float(self.rms.to_value(u.mas) * np.sqrt(2 / _N_WAVE)),
            "waves": (rng.normal(size=(2, _N_WAVE, 2)) / length).tolist(),
            "phases": rng.uniform(0, 2 * np.pi, (2, _N_WAVE)).tolist(),
        }

    @staticmethod
    def offset(parameters, east, north):
        """The offset at positions of the space frame.

        Parameters
        ----------
        parameters : dict
            What `realise` returned; ``truth.meta["astrometric_error"]``.
        east, north : array_like, shape (n,)
            Tangent-plane arcsec from the field centre.

        Returns
        -------
        `~numpy.ndarray`, shape (n, 2)
            East and north, mas.
        """
        place = np.stack([np.atleast_1d(east), np.atleast_1d(north)], axis=1).astype(float)
        linear = np.asarray(parameters["shift"]) + place @ np.transpose(parameters["matrix"])
        phase = np.einsum("nd,awd->nwa", place, parameters["waves"]) + np.transpose(parameters["phases"])
        return linear + parameters["amplitude"] * np.cos(phase).sum(axis=1)
