# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The main job on the bundled sample with the bundled models: one list of sources, and nothing worked out twice."""

from collections import Counter
from importlib.resources import files

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.nddata import NDData

import rosetta
from rosetta import SkyPair
from rosetta.deblending.deblender import JEPADeblender
from rosetta.detection import detection
from rosetta.images import image as carrier
from rosetta.io import pair as pair_file


@pytest.fixture(scope="module")
def job():
    """The result of a job, how often each image was made and each WCS differentiated, and detections run."""
    counts = Counter()
    make, around, detect = carrier._band_image, carrier.BandImage._around, detection.detect

    def counted(name, function):
        def wrapped(*args):
            counts[(name, *([args[0].band] if name == "around" else []))] += 1
            return function(*args)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(carrier, "_band_image", counted("image", make))
        patch.setattr(carrier.BandImage, "_around", counted("around", around))
        patch.setattr(detection, "detect", counted("detect", detect))
        pair = pair_file.read(files("rosetta") / "data" / "sample.fits")
        result = rosetta.measure(pair, device="cpu")
    return result, counts


def test_images_and_detections_are_made_once(job):
    result, counts = job
    assert counts[("image",)] == len(result.pair.bands)
    assert counts[("detect",)] == 1


def test_a_wcs_is_differentiated_once_per_list_of_sources(job):
    """Image centre, detections, aligner, and the deblender's list before and after its residuals are searched."""
    result, counts = job
    for band in result.pair.bands:
        assert counts[("around", band)] <= 5, band


def test_a_label_is_one_source_in_every_table(job):
    result, _ = job
    offsets = result.offsets[result.offsets["band"] == "joint"]
    catalog = result.catalog
    assert len(np.unique(catalog["label"])) == len(catalog)
    np.testing.assert_array_equal(catalog["label"], result.scene.labels)
    _, i, j = np.intersect1d(offsets["label"], catalog["label"], return_indices=True)
    assert len(i) > 20
    apart = offsets["sky_centroid"][i].separation(catalog["sky_centroid"][j]).arcsec
    # A galaxy that was detected in fragments is centred elsewhere than the fragment that gave it its label.
    assert np.mean(apart < 0.15) > 0.9 and apart.max() < 2.0
    # What the residuals showed has labels of its own.
    new = ~np.isin(catalog["label"], detection.detected(result.pair, detection.DetectionConfig()).table["label"])
    assert new.any() and catalog["label"][new].min() > offsets["label"].max()


def test_offsets_of_another_sky_are_refused(job):
    result, _ = job
    image = result.pair.ground["r"]
    wcs = image.wcs
    wcs.wcs.crval = wcs.wcs.crval + [0.0, 0.5]
    moved = SkyPair({"r": NDData(image.data, wcs=wcs, unit=u.nJy, uncertainty=image.uncertainty, mask=image.mask)})
    with pytest.raises(ValueError, match=r"offsets are of another sky: their field is centred 30 arcmin"):
        JEPADeblender.from_pretrained(device="cpu")(moved, SkyCoord([], [], unit="deg"), offsets=result.offsets)
