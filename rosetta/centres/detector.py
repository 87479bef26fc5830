# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The learned detector: where sources are, from all bands together."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from astropy.table import QTable

from .. import checkpoint
from ..arithmetic import plain_arithmetic
from ..images.cache import once_per_pair
from ..images.image import band_images
from ..pair import SkyPair
from . import training
from .heat_map import peaks
from .network import CentreConfig, CentreNet, logits_of
from .windows import windows

__all__ = ["Centres", "LearnedDetector"]


@dataclass(frozen=True, eq=False)
class Centres:
    """What the network takes for the centres of sources.

    Attributes
    ----------
    east_north : (n, 2) array
        In the tangent plane of the images, arcsec.
    score : (n,) array
        Logit of the network.
    """

    east_north: np.ndarray
    score: np.ndarray


class LearnedDetector:
    """Finds sources on all bands of both surveys together.

    A U-Net reads the pixels of up to ten bands on one grid of 0.2" and gives a heat map of centres, whose maxima are
    listed. It was trained end to end on simulated sky; it does not read the encoder, which did not improve it (the page
    "Benchmarks: the scene" of the documentation). The deblender uses it to tell sources from parts of galaxies, and to
    find sources that VIS alone hides.

    Parameters
    ----------
    device : str, optional
        "cpu", "cuda" or "cuda:N"; None: CUDA where there is one.
    """

    @plain_arithmetic
    def __init__(self, *, device=None):
        self._device = checkpoint.device_of(device)
        self._set(CentreConfig(), None, {"trained": False})

    def _set(self, config, network, provenance):
        self._config, self._network, self._provenance = config, network, provenance
        self._fingerprint = None

    @classmethod
    @plain_arithmetic
    def from_pretrained(cls, path=None, *, device=None):
        """Load a trained detector.

        Parameters
        ----------
        path : path-like, optional
            A checkpoint written by `save`. None: the bundled one.
        device : str, optional
            "cpu", "cuda" or "cuda:N"; None: CUDA where there is one.

        Returns
        -------
        `LearnedDetector`

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the checkpoint is damaged or of another kind, or if the device is not there.
        """
        path = Path(path) if path is not None else checkpoint.bundled("detector")
        found = checkpoint.load(path, kind="detector")
        detector = cls(device=device)
        config = checkpoint.config_of(CentreConfig, found.config, path.name)
        network = checkpoint.restore(lambda: CentreNet(config), found.tensors, path.name, detector._device)
        detector._set(config, network.eval(), found.provenance)
        return detector

    @property
    def fingerprint(self):
        """Sixteen hex digits that name these weights; None if it is untrained."""
        if self._fingerprint is None and self._network is not None:
            self._fingerprint = checkpoint.fingerprint_of(
                "detector", self._network.state_dict(), asdict(self._config)
            )
        return self._fingerprint

    @property
    def provenance(self):
        """Where the weights came from (dict)."""
        return dict(self._provenance)

    def __repr__(self):
        state = f"trained, {self.fingerprint}" if self._network is not None else "untrained"
        return f"<LearnedDetector {state}>"

    @plain_arithmetic
    def fit(self, pairs, truth, *, steps, seed, checkpoint=None, progress=None):
        """Train the network, on the CPU.

        Parameters
        ----------
        pairs : sequence of `~rosetta.SkyPair`
            Noise-free, as from `rosetta.simulate.TrainingSet`: noise, PSFs, depths and masks are drawn for every
            presentation.
        truth : sequence of `~astropy.table.QTable`
            One per pair, with ``sky_centroid``, ``half_light_radius`` and ``flux_<band>`` of all ten bands.
        steps : int
            Of a window of 38.4", or of several smaller ones.
        seed : int
        checkpoint : path-like, optional
            File of the training state: written every 500 steps, and continued from where it exists.
        progress : callable, optional
            Called as ``progress(step, steps, loss)`` after every step.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a pair cannot be trained on, a table lacks a column, ``steps`` is no positive number, or the checkpoint
            is damaged or belongs to another training.
        """
        if steps < 1:
            raise ValueError(f"steps is {steps}: it must be at least 1")
        if len(pairs) != len(truth):
            raise ValueError(f"truth has {len(truth)} tables for {len(pairs)} pairs: give one for each")
        state = None if checkpoint is None else Path(checkpoint)
        network, report = training.fitted(pairs, truth, self._config, steps, seed, state, progress)
        self._set(self._config, network.to(self._device), {"trained": True, "seed": seed, **report})
        return self

    def save(self, path):
        """Write the detector to a file, and give its fingerprint.

        Parameters
        ----------
        path : path-like
            Ends in ``.safetensors``; replaced, whole or not at all, if it exists.

        Returns
        -------
        str

        Raises
        ------
        ValueError
            If the detector has not been trained or loaded, or the path cannot be used.
        """
        if self._network is None:
            raise ValueError("this LearnedDetector has not been trained: call fit() first")
        state = {name: value.contiguous() for name, value in self._network.state_dict().items()}
        self._fingerprint = checkpoint.save(
            path, state, kind="detector", config=asdict(self._config), provenance=self._provenance
        )
        return self._fingerprint

    @plain_arithmetic
    def __call__(self, pair):
        """List the centres of a pair.

        Parameters
        ----------
        pair : `~rosetta.SkyPair`

        Returns
        -------
        `~astropy.table.QTable`
            ``sky_centroid`` (in the space image's frame, where there is one) and ``score``, the logit of the network,
            by falling score. It is no calibrated probability: choose a limit by the purity that is wanted.

        Raises
        ------
        TypeError
            If ``pair`` is no pair.
        ValueError
            If the detector is untrained.
        """
        if not isinstance(pair, SkyPair):
            raise TypeError(f"pair must be a SkyPair, got {type(pair).__name__}")
        found = self.centres(pair)
        order = np.argsort(-found.score, kind="stable")
        plane = next(iter(band_images(pair).values())).tangent_plane
        table = QTable({"sky_centroid": plane.sky(found.east_north[order]), "score": found.score[order]})
        table.meta["rosetta"] = {"detector_fingerprint": self.fingerprint, "versions": checkpoint.versions()}
        return table

    def centres(self, pair):
        """The `Centres` of a pair, found once."""
        if self._network is None:
            raise ValueError("this LearnedDetector has not been trained: call fit() or from_pretrained()")
        return _found(pair, self)


@once_per_pair
def _found(pair, detector):
    places, scores = [np.zeros((0, 2))], [np.zeros(0)]
    for channels, place, own in windows(list(band_images(pair).values())):
        xy, score = peaks(logits_of(detector._network, channels), detector._config.floor)
        at = place(xy)
        mine = own(at)
        places.append(at[mine])
        scores.append(score[mine])
    return Centres(np.concatenate(places), np.concatenate(scores))
