# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Photometry: fluxes of a deblended scene in every band, with errors that include the template's."""

import logging

import astropy.units as u
import numpy as np
from astropy.table import QTable

from .. import checkpoint
from ..arithmetic import plain_arithmetic
from ..columns import describe
from ..deblending.band_fit import POOR_CHI2
from ..deblending.deblender import JEPADeblender, as_aligned
from ..deblending.features import flux_features
from ..deblending.psf_width import flux_error
from ..deblending.scene import DeblendedScene
from ..deblending.source_list import NO_LABEL
from ..embedding import SkyEmbedding
from ..flags import Flag
from ..head import Head
from ..matching import match
from ..pair import SkyPair
from ..training.loop import TrainerConfig
from ..training.rows import joined_rows, views
from . import error_model
from .zeropoints import zeropoint_errors

__all__ = ["EmbeddingPhotometry", "training_rows", "with_columns_of"]

log = logging.getLogger("rosetta")

POSITION_ERRORS = ("ra_err", "dec_err", "ra_dec_corr")
LIMIT = 3.0  # S/N below which a listed source has an upper limit, and sigma that it lies above the flux
MIN_FLUXES = 30  # with fewer the quantile that scales the errors is known to worse than a tenth


class EmbeddingPhotometry(Head):
    """Fluxes in every band by weighted least squares on the templates of a scene.

    The solver is the deblender's, so a source's model sums to its flux. Its error adds in quadrature
    the noise with the overlap of neighbours (from the normal equations, times the measured factor of correlated
    noise) and the template's uncertainty carried to each band. A small network predicts from
    features of the fit, and from the residuals around a source, a factor on this error and a relative error that is
    added. All of it is scaled so that on held-out sky the true flux lies within one sigma for 68 % of the fluxes
    (split conformal prediction; Lei et al. 2018). Neither fluxes nor errors use the encoder's tokens, which
    did not improve the errors. Untrained, as the constructor makes it, it gives the first two terms alone, which are
    nearly right where no source is undetected, galaxies are smooth and PSFs exact.

    Errors are calibrated on the scenes of one deblender: trained, it refuses those of another. `fit` needs truth with
    ``sky_centroid`` and ``flux_<band>``.

    Parameters
    ----------
    encoder : `~rosetta.CrossSurveyEncoder`, optional
        None: the bundled one, loaded when needed.
    deblender : `~rosetta.JEPADeblender`, optional
        Makes the scenes where positions are given, and those that `fit` learns from. None: the bundled one, or an
        untrained one where the bundled one belongs to another encoder.
    """

    _kind = "photometry"
    _config_class = error_model.ErrorConfig
    trainer = TrainerConfig(steps=4000, batch=4096, look_every=100)
    _owner_kinds = ("encoder", "deblender")

    @staticmethod
    def _build(config):
        return error_model.ErrorNet(config)

    def __init__(self, encoder=None, deblender=None):
        if deblender is not None and not isinstance(deblender, JEPADeblender):
            raise TypeError(f"deblender must be a JEPADeblender or None, got {type(deblender).__name__}")
        super().__init__(deblender.encoder if encoder is None and deblender is not None else encoder)
        if deblender is not None and deblender.encoder.fingerprint != self.encoder.fingerprint:
            raise ValueError(
                f"deblender belongs to encoder {deblender.encoder.fingerprint}, but encoder is "
                f"{self.encoder.fingerprint}: give the one it belongs to"
            )
        self._deblender = deblender

    @plain_arithmetic
    def __call__(
        self, x, sources, *, offsets=None, neighbours="detect", shape="fit", recentre=False, background="plane",
        zeropoint_err=None,
    ):
        """Measure a catalogue.

        Parameters
        ----------
        x : `~rosetta.SkyPair`, `~rosetta.SkyEmbedding`, or `~rosetta.DeblendedScene`
            Where ``sources`` is a scene: its embedding, or the pair it was made from. A scene with positions and
            ``neighbours="scene"``.
        sources : `~rosetta.DeblendedScene`, `~astropy.coordinates.SkyCoord` or table
            A scene is measured as it is, with the offsets it remembers. For positions, or a table with
            ``sky_centroid`` or ``ra`` and ``dec``, a scene is made first by the deblender that was given, else by the
            bundled one, or by an untrained one where the bundled one belongs to another encoder.
            ``meta["rosetta"]["options"]["deblender"]`` is its fingerprint, or "untrained". The catalogue then has the
            rows of ``sources``, in their order, and its other columns, except those whose names it has itself.
        offsets : `~astropy.table.QTable` or `~rosetta.AstrometricSolution`, optional
            From `~rosetta.LearnedAligner`; only where ``sources`` is no scene.
        neighbours, shape, recentre
            Of positions, as for `~rosetta.JEPADeblender`: how sources that are not listed are modelled, what
            shape the listed ones have, and whether they may move; only where ``sources`` is no scene.
        background : {"plane", None}
            What the images still hold of the sky, see `~rosetta.JEPADeblender`; a scene keeps what it was made with.
        zeropoint_err : dict of str to float, optional
            Relative error of the zero point of each band (0.01 is 1 %); 0 where none is given. Its square times that of
            the flux is added to the variance of every flux of the band.

        Returns
        -------
        `~astropy.table.QTable`
            ``label``, ``sky_centroid``, ``ra_err``, ``dec_err``, ``ra_dec_corr`` (as in the table of the scene),
            ``flux_<band>``, ``flux_err_<band>`` (nJy), ``flux_cov``
            (n_band, n_band; nJy^2, bands in the order of ``meta["bands"]``), ``neighbor_label`` (the source whose
            flux is most correlated with this one's; -1: none) and ``neighbor_corr_<band>`` (its correlation
            from the overlap, NaN where unmeasured), ``chi2_<band>`` (reduced, over the source's footprint),
            ``flags`` and ``flags_<band>`` (what of them is true in that band). Bands that were not observed have no
            column; a source without a usable pixel in a band has NaN and the flag ``NO_DATA``. Where positions were
            given, or the scene was made from some, the rows are the listed ones (``neighbor_label`` may be that of
            another source of the scene), and ``upper_limit_<band>`` is max(flux, 0) + 3 flux_err, nJy, where flux <
            3 flux_err, else NaN.

        Raises
        ------
        TypeError, ValueError
            If an argument cannot be used, or the scene is of another deblender than the errors were calibrated on;
            the message says what to do.
        """
        if isinstance(sources, DeblendedScene):
            _check_of_scene(x, sources)
            self._check_deblender("sources is a scene of", sources.meta["rosetta"]["head_fingerprint"])
            sources.check_offsets(offsets)
            if recentre or neighbours != "detect" or not (isinstance(shape, str) and shape == "fit"):
                raise ValueError("neighbours, shape and recentre are for positions, but sources is a DeblendedScene")
            scene, embedding = sources, self._embedding(sources.embedding)
            zeropoints = zeropoint_errors(zeropoint_err, embedding.pair.surveys)
        else:
            deblender = self._own_deblender()
            self._check_deblender("positions are measured through", deblender.fingerprint)
            embedding = self._embedding(x.embedding if isinstance(x, DeblendedScene) else x)
            zeropoints = zeropoint_errors(zeropoint_err, embedding.pair.surveys)
            how = {"neighbours": neighbours, "shape": shape, "recentre": recentre, "background": background}
            x = x if isinstance(x, DeblendedScene) else embedding
            scene = deblender(x, sources, offsets=offsets, **how)
        made_by = scene.meta["rosetta"]["head_fingerprint"]
        catalog = _formal(scene)
        if self._provenance.get("trained") and len(catalog):
            _calibrate(catalog, scene, self._network)
        _add_covariance(catalog, scene.bands, _unmodelled_covariance(scene))
        zeropoints = {band: zeropoints.get(band, 0.0) for band in scene.bands}
        _add_relative_errors(catalog, zeropoints)
        table = scene.to_table()
        if "listed" in table.colnames:
            catalog = catalog[table["listed"]]
            _add_upper_limits(catalog, scene.bands)
        options = {"deblender": made_by or "untrained", "zeropoint_err": zeropoints}
        catalog.meta.update(self._provenance_of(embedding, **options))
        catalog.meta["bands"] = list(scene.bands)
        catalog.meta["deblender"] = scene.meta
        describe(catalog, scene.bands)
        return catalog if isinstance(sources, DeblendedScene) else with_columns_of(sources, catalog)

    def _trained_on(self):
        return {**super()._trained_on(), "deblender": self._own_deblender().fingerprint}

    def _rows(self, pair, truth, index, seed):
        """A row for each flux of the sources with a true counterpart, from both sides and from each alone."""
        deblender, seen = self._own_deblender(), views(self._embedding(pair), ("ground", "space"))
        return joined_rows([training_rows(deblender(view, offsets=as_aligned(view)), truth) for view in seen])

    def _prepared(self, data, held_out):
        data, held_out = error_model.usable(data), error_model.usable(held_out)
        for name, rows in (("training", data), ("held-out", held_out)):
            n = len(rows["flux"])
            if n < MIN_FLUXES:
                raise ValueError(
                    f"pairs give {n} {name} fluxes with truth, at least {MIN_FLUXES} are needed to calibrate errors: "
                    "give more pairs or larger ones"
                )
        return data, held_out

    def _finish(self, network, data, held_out):
        return error_model.calibrate(network, held_out)

    def _check_deblender(self, what, fingerprint):
        """That errors are calibrated on scenes of the deblender with this fingerprint, if they are calibrated."""
        if self._owners is not None and fingerprint != self._owners["deblender"]:
            made, needed = (f"deblender {f}" if f else "an untrained deblender" for f in
                            (fingerprint, self._owners["deblender"]))  # fmt: skip
            raise ValueError(
                f"{what} {made}, but the errors of this photometry are calibrated on {needed}: give a scene made by "
                "that one, or train with EmbeddingPhotometry(encoder, deblender).fit()"
            )

    def _own_deblender(self):
        """The deblender that was given; else the bundled one, or an untrained one where that is of another encoder."""
        if self._deblender is None:
            path, fingerprint = checkpoint.bundled("deblender"), self.encoder.fingerprint
            if path.is_file() and checkpoint.read_header(path)["config"].get("encoder") == fingerprint:
                self._deblender = JEPADeblender.from_pretrained(encoder=self.encoder, device=self._device)
            else:
                log.warning("no bundled deblender belongs to this encoder: an untrained one is used")
                self._deblender = JEPADeblender(self.encoder)
        return self._deblender


def _check_of_scene(x, scene):
    """That ``x`` is what a scene was made from."""
    if not isinstance(x, (SkyPair, SkyEmbedding)):
        raise TypeError(f"x must be a SkyPair or a SkyEmbedding, got {type(x).__name__}: give scene.embedding")
    if x is not scene.embedding and x is not scene.embedding.pair:
        raise ValueError(
            "x is not what sources, a DeblendedScene, was made from: give scene.embedding or its pair, or run the "
            "deblender on x"
        )


def _formal(scene):
    """The catalogue with errors from noise, neighbours, the fitted shapes' covariance and the PSFs."""
    fits, bands, images, n = scene.fits, scene.bands, scene.images, len(scene)
    table = scene.to_table()
    catalog = QTable()
    for name in ("label", "sky_centroid", *POSITION_ERRORS):
        if name in table.colnames:  # scenes of earlier files have no errors
            catalog[name] = table[name]
    flux = np.stack([fits[b].flux for b in bands], axis=1) if n else np.zeros((0, len(bands)))  # (n, n_band)
    cov = scene.template_covariance * flux[:, :, None] * flux[:, None, :]
    for k, band in enumerate(bands):
        cov[:, k, k] += np.where(fits[band].measured, fits[band].covariance.diagonal(), np.nan)
    neighbour, correlation = _neighbours(fits, bands, n)
    for k, band in enumerate(bands):
        catalog[f"flux_{band}"] = flux[:, k] * u.nJy
        catalog[f"flux_err_{band}"] = np.sqrt(cov[:, k, k]) * u.nJy
    catalog["flux_cov"] = cov * u.nJy**2
    catalog["neighbor_label"] = np.where(neighbour >= 0, np.append(table["label"], NO_LABEL)[neighbour], NO_LABEL)
    for k, band in enumerate(bands):
        catalog[f"neighbor_corr_{band}"] = correlation[:, k]
    for band in bands:
        catalog[f"chi2_{band}"] = fits[band].chi2
    for name in table.colnames:
        if name.startswith("flags"):
            catalog[name] = table[name]
    _add_relative_errors(catalog, {band: images[band].psf_flux_error for band in bands})
    _add_relative_errors(catalog, {band: flux_error(fits[band], images[band]) for band in bands})
    return catalog


def training_rows(scene, truth):
    """What the error network learns from in one scene: a row for each flux of the sources with a true counterpart.

    Parameters
    ----------
    scene : `~rosetta.DeblendedScene`
    truth : `~astropy.table.QTable`
        With ``sky_centroid`` and ``flux_<band>``.

    Returns
    -------
    dict of ndarray or None
        ``features`` (n, n_feature), and ``flux``, ``error`` and ``true`` (n,) in nJy, the bands of a source one after
        the other; None if no source has a true counterpart.
    """
    if len(scene) == 0 or len(truth) == 0:
        return None
    catalog = _formal(scene)
    rows, true = match(catalog, truth, scene.meta["reference_band"])
    if len(rows) == 0:
        return None
    features = flux_features(scene)[rows]
    return {
        "features": features.reshape(-1, features.shape[-1]),
        "flux": _values(catalog[rows], "flux_", scene.bands),
        "error": _values(catalog[rows], "flux_err_", scene.bands),
        "true": _values(truth[true], "flux_", scene.bands),
    }


def _values(table, prefix, bands):
    """Columns of all bands in nJy, the bands of a row one after the other, (n_row * n_band,)."""
    return np.stack([table[prefix + band].to_value(u.nJy) for band in bands], axis=1).ravel()


def _neighbours(fits, bands, n):
    """Row of the neighbour with the strongest correlation in any band (-1: none), and that in every band."""
    matrices = []
    best, neighbour = np.zeros(n), np.full(n, -1)
    for band in bands:
        cov = fits[band].covariance.tocoo()
        sigma = np.sqrt(fits[band].covariance.diagonal())
        off = cov.row != cov.col
        row, col = cov.row[off], cov.col[off]
        corr = cov.data[off] / (sigma[row] * sigma[col])
        matrices.append((row, col, corr))
        order = np.argsort(np.abs(corr))  # the last assignment to a row is its strongest
        strongest, who = np.zeros(n), np.full(n, -1)
        strongest[row[order]], who[row[order]] = np.abs(corr[order]), col[order]
        better = strongest > best
        best[better], neighbour[better] = strongest[better], who[better]
    neighbour[best < 1e-3] = -1
    correlation = np.zeros((n, len(bands)))
    for k, (row, col, corr) in enumerate(matrices):
        mine = col == neighbour[row]
        correlation[row[mine], k] = corr[mine]
        correlation[~fits[bands[k]].measured, k] = np.nan
    return neighbour, correlation


def _calibrate(catalog, scene, network):
    """Widen the errors by the network's factor, and by its relative error, common to all bands."""
    bands = scene.bands
    widen, extra = error_model.predict(network, flux_features(scene))  # (n, n_band)
    flux = np.stack([catalog[f"flux_{b}"].to_value(u.nJy) for b in bands], axis=1)
    shift = extra * flux
    catalog["flux_cov"] *= widen[:, :, None] * widen[:, None, :]
    _add_covariance(catalog, bands, shift[:, :, None] * shift[:, None, :])


def _unmodelled_covariance(scene):
    """Covariance of the fluxes (n, n_band, n_band), nJy^2, that no sky with right positions and PSFs has.

    Where the ground images are not aligned, what the error of their common frame does to the fluxes. Where chi2 is
    poor, an error of the band's own: the light that the models miss around the source. Where all sources of another
    band than the reference are poor, its positions or PSF are wrong: the significance of the whole excess of chi2.
    """
    fits, bands, table = scene.fits, scene.bands, scene.to_table()
    displaced = np.stack([fits[band].displaced for band in bands], axis=1)  # (n, n_band, n_point)
    cov = displaced @ np.swapaxes(displaced, 1, 2) / displaced.shape[2]
    for k, band in enumerate(bands):
        fit = fits[band]
        cov[:, k, k] += fit.unmodelled**2
        poor = (table[f"flags_{band}"] & int(Flag.POOR_FIT)) != 0
        if band != scene.meta["reference_band"] and poor[fit.measured].all():  # the templates are the reference's own
            excess = np.maximum(np.nan_to_num(fit.chi2) - POOR_CHI2, 0.0) * fit.pixels
            cov[:, k, k] += excess * fit.covariance.diagonal() / fit.noise**2
    return cov


def _add_covariance(catalog, bands, more):
    """Add a covariance (n, n_band, n_band) in nJy^2 to that of the fluxes."""
    cov = catalog["flux_cov"].to_value(u.nJy**2) + more
    catalog["flux_cov"] = cov * u.nJy**2
    for k, band in enumerate(bands):
        catalog[f"flux_err_{band}"] = np.sqrt(cov[:, k, k]) * u.nJy


def _add_upper_limits(catalog, bands):
    """What the fluxes are below where they are not significant; one-sided, 99.9 %."""
    for band in bands:
        flux, error = catalog[f"flux_{band}"], catalog[f"flux_err_{band}"]
        limit = np.maximum(flux, 0 * u.nJy) + LIMIT * error
        catalog[f"upper_limit_{band}"] = np.where(flux < LIMIT * error, limit, np.nan * u.nJy)


def with_columns_of(sources, catalog):
    """The catalogue of listed sources with the columns of a user's table that it does not have itself."""
    for name in getattr(sources, "colnames", ()):
        if name not in catalog.colnames:
            catalog[name] = sources[name]
    return catalog


def _add_relative_errors(catalog, errors):
    """Add errors that are the same share of all fluxes of a band, a dict by band."""
    cov = catalog["flux_cov"].to_value(u.nJy**2)
    for k, (band, error) in enumerate(errors.items()):
        cov[:, k, k] += (error * catalog[f"flux_{band}"].to_value(u.nJy)) ** 2
        catalog[f"flux_err_{band}"] = np.sqrt(cov[:, k, k]) * u.nJy
    catalog["flux_cov"] = cov * u.nJy**2
