# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The command line and the main job behind it, with untrained models."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import NDData, StdDevUncertainty
from astropy.table import QTable
from regions import Regions

from rosetta import EmbeddingPhotometry, JEPADeblender, LearnedAligner, SkyPair, measure
from rosetta.cli import main
from rosetta.commands.summary import against_truth
from rosetta.io import pair as pair_io
from rosetta.pipeline.comparison import compare
from rosetta.pipeline.products import write_models
from rosetta.pipeline.run import STEPS
from rosetta.registry import KINDS

SHIFT = np.array([60.0, -40.0])  # mas


def draw(n, scale, sigma, wcs, sky, flux, fwhm):
    y, x = np.mgrid[:n, :n]
    width = fwhm / 2.3548 / scale
    image = np.random.default_rng(n).normal(0, sigma, (n, n))
    for xs, ys, f in zip(*wcs.world_to_pixel(sky), flux, strict=True):
        image += f * np.exp(-((x - xs) ** 2 + (y - ys) ** 2) / (2 * width**2)) / (2 * np.pi * width**2)
    k = 2 * int(6 * width) + 1
    yk, xk = np.mgrid[:k, :k] - k // 2
    psf = np.exp(-(xk**2 + yk**2) / (2 * width**2))
    return NDData(image, uncertainty=StdDevUncertainty(np.full((n, n), sigma)), wcs=wcs, unit=u.nJy, psf=psf)


@pytest.fixture(scope="module")
def sky():
    """Twelve stars, two of them blended, seen by r and VIS; the ground header is off by ``-SHIFT``."""
    from astropy.coordinates import SkyCoord
    from astropy.wcs import WCS

    rng = np.random.default_rng(4)
    place = np.stack(np.meshgrid([-6.0, -2.0, 2.0, 6.0], [-5.0, 0.0, 5.0]), -1).reshape(-1, 2)
    place += rng.uniform(-0.7, 0.7, place.shape)
    place[1] = place[0] + (0.9, 0.3)
    center = SkyCoord(53.1, -28.1, unit="deg")
    true = center.spherical_offsets_by(place[:, 0] * u.arcsec, place[:, 1] * u.arcsec)
    header = true.spherical_offsets_by(-SHIFT[0] * u.mas, -SHIFT[1] * u.mas)
    flux = rng.uniform(3000, 9000, len(place))

    def wcs(n, scale):
        tan = WCS(naxis=2)
        tan.wcs.ctype, tan.wcs.crval = ["RA---TAN", "DEC--TAN"], [53.1, -28.1]
        tan.wcs.cdelt, tan.wcs.crpix = [-scale / 3600, scale / 3600], [(n + 1) / 2, (n + 1) / 2]
        return tan

    pair = SkyPair(
        {"r": draw(96, 0.2, 3.0, wcs(96, 0.2), header, flux, 0.8)},
        {"VIS": draw(192, 0.1, 3.0, wcs(192, 0.1), true, flux, 0.2)},
    )
    truth = QTable({"label": np.arange(len(place)), "sky_centroid": true})
    truth["flux_r"] = truth["flux_VIS"] = flux * u.nJy
    truth["d_ra_cosdec"], truth["d_dec"] = (np.full(len(place), s) * u.mas for s in SHIFT)
    return pair, truth


@pytest.fixture(scope="module")
def models():
    from rosetta import CrossSurveyEncoder
    from rosetta.encoding.network import EncoderConfig

    config = EncoderConfig(
        dim=384, depth=1, heads=6, proj_dim=256, predictor_dim=32, predictor_depth=1, predictor_heads=2
    )
    encoder = CrossSurveyEncoder(config=config, seed=1, device="cpu")
    return {
        "encoder": encoder, "aligner": LearnedAligner(encoder), "deblender": JEPADeblender(encoder),
        "photometry": EmbeddingPhotometry(encoder),
    }


@pytest.fixture(scope="module")
def result(sky, models):
    seen = []
    found = measure(sky[0], **models, window=12.8 * u.arcsec, progress=lambda *at: seen.append(at))
    assert tuple(step for step, done, _ in seen if done == 0) == STEPS == tuple(found.seconds)
    for step in ("encode", "deblend"):  # these move on within
        done = [d / total for name, d, total in seen if name == step]
        assert done == sorted(done) and len(set(done)) > 2 and done[-1] == 1
    return found


# ---------------------------------------------------------------------------- the main job
def test_numbers_against_truth(result, sky):
    numbers = compare(result, sky[1])
    assert numbers["n_matched"] == 12
    assert sum(found for *_, found in numbers["completeness"]) == 12
    offset = numbers["offset"]
    np.testing.assert_allclose(offset["truth"], SHIFT)
    assert np.all(np.abs(np.subtract(offset["value"], SHIFT)) < 5 * np.array(offset["error"]))
    assert offset["rms"] < 5
    isolated = next(row for row in numbers["flux"] if (row["band"], row["kind"]) == ("r", "isolated"))
    assert isolated["n"] >= 8
    assert abs(isolated["bias"]) < 0.05


def test_numbers_follow_the_truth(result, sky):
    """A truth of twice the flux halves the ratio: the numbers are not written down anywhere."""
    truth = sky[1].copy()
    truth["flux_r"] = 2 * truth["flux_r"]
    before, after = (compare(result, t)["flux"][0] for t in (sky[1], truth))
    assert after["bias"] == pytest.approx((1 + before["bias"]) / 2 - 1)
    assert after["coverage"] < 0.1 < before["coverage"]


def test_an_empty_catalogue_can_be_read_back(result, models, tmp_path):
    pytest.importorskip("matplotlib")
    scene = models["deblender"](result.embedding, result.catalog["sky_centroid"][:0])
    empty = replace(result, scene=scene, catalog=models["photometry"](result.embedding, scene))
    empty.write(tmp_path / "out")
    assert len(QTable.read(tmp_path / "out" / "catalogue.ecsv")) == 0


def test_printed_table(result, sky):
    lines = list(against_truth(result, compare(result, sky[1])))
    text = "\n".join(lines)
    assert lines[0].startswith("Sources    ")
    assert "mas east" in lines[1]
    assert "truth +60.0, -40.0 mas" in text
    assert max(map(len, lines)) < 130
    assert [line.split()[0] for line in lines[-2:]] == ["r", "VIS"]


def test_products(result, sky, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    written = result.write(out, truth=sky[1])
    names = {"catalogue.ecsv", "models.fits", "offsets.ecsv", "overview.png", "sources.reg"}
    assert {path.name for path in written} == {path.name for path in out.iterdir()} == names
    catalog = QTable.read(out / "catalogue.ecsv")
    assert catalog["flux_r"].unit == u.nJy
    assert catalog["flux_cov"].shape == (len(catalog), 2, 2)
    np.testing.assert_array_equal(catalog["blendedness"], result.scene.to_table()["blendedness"])
    assert catalog["half_light_radius"].unit == u.arcsec
    assert QTable.read(out / "offsets.ecsv").meta["verdict"] == "ok"
    assert len(Regions.read(out / "sources.reg")) == len(catalog)
    assert (out / "overview.png").read_bytes().startswith(b"\x89PNG")
    with fits.open(out / "models.fits") as hdus:
        for band in ("r", "VIS"):
            total = sum(hdus[f"{part}_{band}"].data for part in ("MODEL", "SKY", "RESIDUAL"))
            side = "ground" if band == "r" else "space"
            np.testing.assert_allclose(total, getattr(sky[0], side)[band].data, atol=2e-3)
        sources = {hdu.header["LABEL"]: hdu for hdu in hdus if hdu.name == "SOURCE"}
        assert set(sources) == set(catalog["label"])
        # A source's image sums to its flux, and its WCS points at it.
        from astropy.wcs import WCS

        row = catalog[np.argmax(catalog["flux_VIS"])]
        hdu = sources[row["label"]]
        np.testing.assert_allclose(hdu.data.sum(), row["flux_VIS"].value, rtol=2e-2)
        y, x = np.unravel_index(np.argmax(hdu.data), hdu.data.shape)
        assert WCS(hdu.header).pixel_to_world(x, y).separation(row["sky_centroid"]) < 0.08 * u.arcsec


def test_models_file_holds_what_is_asked_for(result, tmp_path):
    pytest.importorskip("matplotlib")
    names = {}
    for models in ("none", "bands", "sources"):
        written = result.write(tmp_path / "out", overwrite=True, models=models)
        path = tmp_path / "out" / "models.fits"
        assert (path in written) == path.exists() == (models != "none")
        if path.exists():
            with fits.open(path) as hdus:
                hdus.verify("exception")
                names[models] = {hdu.name for hdu in hdus[1:]}
    assert names["bands"] == {f"{kind}_{band}" for kind in ("MODEL", "SKY", "RESIDUAL") for band in ("R", "VIS")}
    assert names["sources"] - names["bands"] == {"SOURCE"}
    with pytest.raises(ValueError, match="models must be one of none, bands, sources, got 'all'"):
        result.write(tmp_path / "out", overwrite=True, models="all")


def test_source_images_are_those_of_the_scene(result, tmp_path):
    """Drawn in one batch, they are what `DeblendedScene.model` gives for each."""
    from astropy.wcs import WCS

    write_models(result.scene, tmp_path / "models.fits")
    with fits.open(tmp_path / "models.fits") as hdus:
        sources = [hdu for hdu in hdus if hdu.name == "SOURCE"]
        assert len(sources) == len(result.scene)
        for hdu in sources:
            model = result.scene.model(hdu.header["LABEL"], "VIS")
            x, y = (hdu.header[f"ORIGIN{axis}"] - model.meta[f"ORIGIN{axis}"] for axis in "XY")
            ny, nx = hdu.data.shape
            np.testing.assert_array_equal(hdu.data, model.data[y : y + ny, x : x + nx].astype(np.float32))
            left = model.data.copy()
            left[y : y + ny, x : x + nx] = 0
            assert np.abs(left).max() <= 1e-4 * np.abs(model.data).max()
            one, two = (WCS(hdu.header).pixel_to_world(0, 0), model.wcs.pixel_to_world(x, y))
            assert one.separation(two) < 1 * u.uas
            assert hdu.ver == hdu.header["LABEL"]


def test_a_result_can_be_sent_to_another_process(result):
    twin = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(twin.catalog["flux_VIS"], result.catalog["flux_VIS"])
    assert twin.seconds == result.seconds
    with pytest.raises(AttributeError):
        twin.catalog = None
    with pytest.raises(TypeError):
        twin.seconds["encode"] = 0


def test_measure_takes_models_or_loads_them(sky, models):
    with pytest.raises(TypeError, match="pair must be a SkyPair, got dict: make one with SkyPair"):
        measure({})
    with pytest.raises(ValueError, match="load the encoder it belongs to"):
        measure(sky[0], encoder=models["encoder"])  # the bundled heads belong to the bundled encoder


def test_no_partial_output(result, tmp_path, monkeypatch):
    """A failure in the last product leaves nothing, and an earlier result stays as it was."""
    monkeypatch.setattr("rosetta.plotting.overview", lambda *a, **k: 1 / 0)
    out = tmp_path / "out"
    with pytest.raises(ZeroDivisionError):
        result.write(out)
    assert not list(tmp_path.iterdir())
    out.mkdir()
    (out / "catalogue.ecsv").write_text("mine")
    with pytest.raises(ValueError, match="is not empty: choose another directory"):
        result.write(out)
    with pytest.raises(ZeroDivisionError):
        result.write(out, overwrite=True)
    assert (out / "catalogue.ecsv").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_goes_on_unaligned(sky, models):
    """Images of two different skies cannot be aligned: every row says so, and the job ends."""
    from rosetta import Flag

    pair = sky[0]
    ground = pair.ground["r"]
    other = NDData(
        np.random.default_rng(9).normal(0, 3, ground.data.shape), wcs=ground.wcs, unit=u.nJy, psf=ground.psf,
        uncertainty=StdDevUncertainty(np.full(ground.data.shape, 3.0)),
    )
    found = measure(SkyPair({"r": other}, dict(pair.space)), **models, window=12.8 * u.arcsec)
    assert found.offsets.meta["verdict"] == "abstain"
    assert len(found.catalog) >= 10
    assert np.all(np.asarray(found.catalog["flags"]) & int(Flag.UNALIGNED))


def test_one_survey_only(sky, models, tmp_path):
    pytest.importorskip("matplotlib")
    found = measure(SkyPair(None, dict(sky[0].space)), **models, window=12.8 * u.arcsec)
    assert found.offsets is None
    found.write(tmp_path / "out")
    assert not (tmp_path / "out" / "offsets.ecsv").exists()
    from rosetta.plotting import overview, plot_residual

    axes = overview(found).axes
    assert all(ax.axison and ax.has_data() for ax in axes)  # no panel is empty
    titles = [ax.get_title() for ax in axes]
    assert "Euclid: VIS" in titles and "Euclid VIS: residual" in titles
    assert not any("Rubin" in title for title in titles)
    picture = plot_residual(found.scene, "VIS").images[0].get_array()
    assert 0.8 < np.nanstd(picture) < 1.2  # in units of the noise


def test_panels_have_bars_with_units(result):
    pytest.importorskip("matplotlib")
    axes = result.scene[result.scene.labels[0]].plot()
    for line in axes:
        titles = [[bar.get_title() for bar in ax.child_axes] for ax in line]
        assert titles in ([[], [], ["nJy"], ["σ"]], [[], [], ["µJy"], ["σ"]])
        assert all(ax.get_xlim() == (4, -4) and ax.get_ylim() == (-4, 4) for ax in line)
        (bar,) = line[2].child_axes
        low, high = bar.get_ylim()
        assert len(bar.get_yticks()) >= 2 and all(low <= tick <= high for tick in bar.get_yticks())


# ---------------------------------------------------------------------------- in a notebook
def test_objects_show_themselves(result, models):
    from rosetta import AstrometricSolution

    solution = AstrometricSolution.from_table(result.offsets)
    shown = {
        "SkyPair Rubin: r 96x96; Euclid: VIS 192x192": result.pair,
        "windows of 12.8 arcsec: Rubin 16 tokens, Euclid 64 tokens": result.embedding,
        f"DeblendedScene {len(result.scene)} sources in r VIS": result.scene,
        "AstrometricSolution ok: +": solution,
        "LearnedAligner untrained; encoder ": models["aligner"],
        "JEPADeblender untrained; encoder the bundled one, when it is needed": JEPADeblender(),
        f"Result {len(result.catalog)} sources in r VIS; alignment ok; ": result,
    }
    for text, thing in shown.items():
        assert text in repr(thing)
        assert "\n" not in repr(thing) and len(repr(thing)) < 200
        html = thing._repr_html_()
        assert html.startswith("<div>") and html.count("<table>") == html.count("</table>") >= 1
    assert "mas east" in repr(solution)
    assert "<td>joint</td>" in solution._repr_html_()


def test_names_of_surveys_are_escaped(sky):
    from rosetta import EUCLID, RUBIN

    strange = replace(RUBIN, name="<b>R&D</b>")
    pair = SkyPair(dict(sky[0].ground), dict(sky[0].space), surveys=(strange, EUCLID))
    assert "&lt;b&gt;R&amp;D&lt;/b&gt;" in pair._repr_html_()


def test_one_source(result):
    pytest.importorskip("matplotlib")
    scene, label = result.scene, int(result.scene.labels[3])
    source = scene[label]
    assert source.label == label
    assert source.row["snr"] == scene.to_table()["snr"][3]
    assert source.flux("VIS") == scene.flux("VIS")[3]
    assert f"<Source {label}: " in repr(source)
    assert f"Source {label}" in source._repr_html_()
    for band in scene.bands:
        model, residual, whole = source.model(band), source.residual(band), scene.residual(band)
        np.testing.assert_array_equal(model.data, scene.model(label, band).data)
        x0, y0 = model.meta["ORIGINX"], model.meta["ORIGINY"]
        cut = slice(y0, y0 + model.shape[0]), slice(x0, x0 + model.shape[1])
        np.testing.assert_allclose(residual.data, whole.data[cut], atol=1e-6)
        np.testing.assert_array_equal(residual.uncertainty.array, whole.uncertainty.array[cut])
        assert residual.wcs.pixel_to_world(2, 5).separation(model.wcs.pixel_to_world(2, 5)) < 1 * u.uas
    assert source.plot().shape == (2, 4)
    with pytest.raises(AttributeError):
        source.row = {}
    with pytest.raises(AttributeError):
        source.extra = 1
    with pytest.raises(ValueError, match="label -1 is not in this scene"):
        scene[-1]
    assert [one.label for one in scene] == scene.labels.tolist()
    assert pickle.loads(pickle.dumps(source)).row["snr"] == source.row["snr"]


# ---------------------------------------------------------------------------- the command
def test_help_is_quick_and_complete():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "rosetta", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("demo", "run", "report", "inject", "simulate", "pretrain", "train-head", "info"):
        assert f"    {command}" in done.stdout
    for heavy in ("torch", "astropy", "numpy", "galsim"):
        assert f"| {heavy}\n" not in done.stderr, heavy


def refused(capsys, *argv):
    """The one line on standard error of a command that ends with exit code 2."""
    assert main([str(a) for a in argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("rosetta: error: ")
    return error


def test_bad_input(capsys, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "text.fits").write_text("not FITS")
    assert "no input" in refused(capsys, "run", "-o", out)
    assert "text.fits" in refused(capsys, "run", "--rubin", tmp_path / "text.fits", "-o", out)
    assert "No such file" in refused(capsys, "run", "--euclid", tmp_path / "absent.fits", "-o", out)
    error = refused(capsys, "run", "--pair", tmp_path / "text.fits", "-o", out)
    assert "text.fits is not a complete FITS file" in error
    assert "cannot be combined" in refused(capsys, "run", "--pair", "a.fits", "--rubin", "b.fits", "-o", out)
    assert "create it first" in refused(capsys, "run", "--pair", "a.fits", "-o", tmp_path / "no" / "out")
    for command in (["run", "--pair", "a.fits"], ["demo"]):
        error = refused(capsys, *command, "-o", tmp_path / "text.fits" / "out")
        assert f"--output '{tmp_path}/text.fits/out': '{tmp_path}/text.fits' is a file, choose another" in error
    assert "--output is empty: name a directory" in refused(capsys, "run", "--pair", "a.fits", "-o", "")
    if os.path.isdir("/proc"):  # where no one can make a file, root neither
        error = refused(capsys, "run", "--pair", "a.fits", "-o", "/proc/out")
        assert "--output '/proc/out' cannot be made or written to" in error or "--output '/proc/out': '/proc' " in error
        assert "choose another directory" in error
    assert not out.exists()


def test_outputs_of_the_simulator_that_cannot_be(capsys, tmp_path):
    pytest.importorskip("galsim")
    file = tmp_path / "file"
    file.write_text("mine")
    assert f"--output '{file}/out': '{file}' is a file" in refused(capsys, "inject", "--pair", "a", "-o", file / "out")
    assert "--output: Not a directory" in refused(capsys, "simulate", "--tiles", "1", "-o", file / "tiles")
    assert "--output: File exists" in refused(capsys, "simulate", "--tiles", "1", "-o", file)
    assert "its folder does not exist" in refused(capsys, "simulate", "--pair", "-o", file / "pair.fits")


PROFILE = "step         seconds   CPU seconds  share of CPU"


def test_options_that_cannot_be(capsys, sky, tmp_path):
    """The line names the option."""
    out, pair, psf = tmp_path / "out", tmp_path / "pair.fits", tmp_path / "psf.fits"
    pair_io.write(sky[0], pair)
    fits.PrimaryHDU(np.ones((4, 4))).writeto(psf)
    job = ("run", "--pair", pair, "-o", out)
    assert "--bands q: bands: 'q' is not in this pair, which has r, VIS" in refused(capsys, *job, "--bands", "q")
    wrong = refused(capsys, "run", "--ground", f"r={pair}", "--bands", "q", "-o", out)
    assert "--bands q: give names of bands, of u g r i z y VIS" in wrong
    for empty in ([""], ["r", " "]):
        wrong = refused(capsys, *job, "--bands", *empty)
        assert "--bands has an empty name: give names of bands, such as r VIS, or leave the option out" in wrong
    assert "--bands has an empty name" in refused(capsys, "run", "--ground", f"r={pair}", "--bands", "", "-o", out)
    assert "--psf r: write BAND=FILE, such as r=image.fits" in refused(capsys, *job, "--psf", "r")
    assert "must be 2-D with odd sides, got shape (4, 4)" in refused(capsys, *job, "--psf", f"r={psf}")
    fits.PrimaryHDU(np.ones((5, 5))).writeto(psf, overwrite=True)
    wrong = refused(capsys, *job, "--psf", f"q={psf}")
    assert f"--psf q={psf}: psf has unknown bands ['q']" in wrong
    assert "has another one already" in refused(capsys, *job, "--psf", f"r={psf}", f"r={psf}")
    wrong = refused(capsys, *job, "--center", "20", "2", "--size", "10")
    assert "--center 20.0 2.0: center" in wrong and "no image of this pair covers it" in wrong
    assert "--center and --size: give both" in refused(capsys, *job, "--size", "10")
    assert "--workers must be a positive integer, got 0" in refused(capsys, *job, "--workers", "0")
    assert "--device 'tpu' is not known" in refused(capsys, *job, "--device", "tpu")
    assert "--pair: No such file or directory: absent" in refused(capsys, "run", "--pair", "absent", "-o", out)
    assert "--ground r=absent: No such file" in refused(capsys, "run", "--ground", "r=absent", "-o", out)
    assert "--output '" in refused(capsys, *job[:-1], tmp_path)
    assert "name a file in a folder that exists" in refused(capsys, *job, "--log", tmp_path / "no" / "log")
    assert "--log" in refused(capsys, *job, "--log", out / "log")
    assert not out.exists()


def test_a_run_with_bands_psf_and_a_log(capsys, sky, models, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    pair, psf, seen = tmp_path / "pair.fits", tmp_path / "psf.fits", {}
    pair_io.write(SkyPair({**sky[0].ground, "i": sky[0].ground["r"]}, dict(sky[0].space)), pair)
    y, x = np.mgrid[-10:11, -10:11]
    mine = np.exp(-(x**2 / 2.9**2 + y**2 / 3.1**2) / 1.04)
    fits.PrimaryHDU(mine).writeto(psf)

    def job(found, *, device, window, workers, progress):
        seen.update(pair=found, workers=workers)
        return measure(found, **models, window=12.8 * u.arcsec, progress=progress)

    monkeypatch.setattr("rosetta.measure", job)
    log = tmp_path / "log"
    command = ["run", "--pair", str(pair), "--bands", "r", "VIS", "--psf", f"r={psf}", "--format", "fits", "--log"]
    assert main([*command, str(log), "-o", str(tmp_path / "out"), "--models", "none"]) == 0
    assert seen["pair"].bands == ("r", "VIS")
    given = seen["pair"].psf("r").at(50, 50)
    np.testing.assert_allclose(given / given.sum(), mine / mine.sum(), atol=1e-12)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "catalogue.fits", "offsets.ecsv", "sources.reg", "overview.png"
    }
    shown = capsys.readouterr()
    assert [line.split()[-2] for line in shown.err.splitlines() if line.endswith("...")] == [
        "encode", "align", "deblend", "measure", "write"
    ]
    assert "Sources " in shown.out
    lines = log.read_text().splitlines()
    assert "INFO rosetta run --pair" in lines[0]
    for part in ("Rubin r: 96 x 96 pixels", "read took", "write took", "wrote ", "catalogue.fits", "Sources "):
        assert any(part in line for line in lines), part
    assert not any(" i: " in line for line in lines)

    again = [*command, str(log), "-o", str(tmp_path / "out"), "--overwrite"]
    assert main([*again, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert len(log.read_text().splitlines()) > 1.5 * len(lines)  # added to
    assert main([*again, "--verbose", "--profile", "--workers", "3"]) == 0
    shown = capsys.readouterr()
    rows = [line.split() for line in shown.out.splitlines()[shown.out.splitlines().index(PROFILE) + 1 :]]
    assert [row[0] for row in rows[:8]] == ["read", "load", "encode", "align", "deblend", "measure", "write", "all"]
    clock, cpu = np.array([row[1:3] for row in rows[:8]], float).T
    assert clock[:-1].sum() == pytest.approx(clock[-1], abs=0.05) and cpu[:-1].sum() == pytest.approx(cpu[-1], abs=0.05)
    assert cpu[-1] > 0 and seen["workers"] == 3
    assert "rosetta: encode took " in shown.err and "[" not in shown.err.split("assumed")[0]
    assert shown.err.count("Sources ") == 0 and shown.out.count("Sources ") == 1


def test_output_that_holds_something(capsys, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "is not empty" in refused(capsys, "demo", "-o", tmp_path / "out")
    assert "is a file" in refused(capsys, "demo", "-o", tmp_path / "out" / "mine.txt")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_training_refusals(capsys, tmp_path):
    assert "must end in .safetensors" in refused(capsys, "pretrain", "--data", tmp_path, "-o", "a.pt", "--steps", "1")
    file = tmp_path / "a.safetensors"
    assert "no end: give --steps" in refused(capsys, "pretrain", "--data", tmp_path, "-o", file)
    assert "manifest.json" in refused(capsys, "pretrain", "--data", tmp_path, "-o", file, "--steps", "1")
    assert "--batch is 6" in refused(capsys, "pretrain", "--data", tmp_path, "-o", file, "--steps", "1", "--batch", "6")
    wrong = refused(capsys, "train-head", "aligner", "--deblender", file, "--data", tmp_path, "-o", file)
    assert "--deblender is of no use to train-head aligner" in wrong
    assert not list(tmp_path.iterdir())


def test_info(capsys, tmp_path, tiny_encoder):
    path = tmp_path / "encoder.safetensors"
    fingerprint = tiny_encoder.save(path)
    assert main(["info", str(path)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"encoder.safetensors: encoder {fingerprint}")
    assert "trained: false" in text
    assert "depth: 1" in text
    import torch

    torch.save({}, tmp_path / "pickle.safetensors")
    assert "is a pickle" in refused(capsys, "info", tmp_path / "pickle.safetensors")
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == list(KINDS)
    assert lines[6].startswith("one set: the heads belong to this encoder, the deblender to this detector, and the")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--neighbours", "scene"), "argument --neighbours: invalid choice: 'scene'"),
        (("--sauces", "list.ecsv"), "unrecognized arguments: --sauces list.ecsv"),
        (("--size", "wide"), "argument --size: invalid float value: 'wide'"),
    ],
)
def test_a_bad_option_ends_in_one_line(capsys, option, message):
    with pytest.raises(SystemExit) as ended:
        main(["run", "-o", "out", *option])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rosetta: error: {message}") and line.endswith("--help")


def test_a_list_with_masked_positions_is_refused(tmp_path):
    from types import SimpleNamespace

    from astropy.table import MaskedColumn, Table

    from rosetta.commands.lists import positions_of

    for unit in (None, "deg"):  # two kinds of masked columns
        path = tmp_path / f"list_{unit}.ecsv"
        ra = MaskedColumn([150.1, 150.2], mask=[False, True], unit=unit)
        Table({"ra": ra, "dec": MaskedColumn([2.2, 2.2], unit=unit)}).write(path)
        arguments = SimpleNamespace(sources=str(path), neighbours="detect", shape="fit", recentre=False)
        with pytest.raises(ValueError, match=r"--sources .*: column ra is masked in row 1 \(from 0\): drop those rows"):
            positions_of(arguments)


def test_version(capsys):
    import rosetta

    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"rosetta {rosetta.__version__}\n"


def test_simulated_pair(capsys, tmp_path):
    pytest.importorskip("galsim")
    path = tmp_path / "pair.fits"
    assert main(["simulate", "--pair", "-o", str(path), "--size", "12.8", "--seed", "3", "--shift", "30", "-20"]) == 0
    pair, truth = pair_io.read(path), QTable.read(tmp_path / "pair_truth.fits")
    assert len(pair.bands) == 10
    np.testing.assert_allclose(truth["d_ra_cosdec"].to_value(u.mas), 30)
    np.testing.assert_allclose(truth["d_dec"].to_value(u.mas), -20)
    assert "must end in .fits" in refused(capsys_cleared(capsys), "simulate", "--pair", "-o", tmp_path / "pair")
    assert "pair.fits' exists: choose another name, or give --overwrite" in refused(
        capsys_cleared(capsys), "simulate", "--pair", "-o", path
    )


def capsys_cleared(capsys):
    capsys.readouterr()
    return capsys


def test_bundled_sample():
    """Ten bands, PSFs, an offset of tens of mas, and a truth to compare with; small."""
    from importlib.resources import files

    data = files("rosetta") / "data"
    pair = pair_io.read(data / "sample.fits")
    truth = QTable.read(data / "sample_truth.fits")
    assert len(pair.bands) == 10
    assert all(image.psf is not None for _, _, image in pair.images())
    offset = np.hypot(truth["d_ra_cosdec"], truth["d_dec"]).to_value(u.mas)
    assert 40 < offset.min() < offset.max() < 90
    assert np.ptp(offset) > 1  # it varies
    inside = pair.space["VIS"].wcs.world_to_pixel(truth["sky_centroid"])
    assert np.all((np.array(inside) > -1.5) & (np.array(inside) < 384.5))
    assert sum(os.path.getsize(data / name) for name in ("sample.fits", "sample_truth.fits")) < 4e6
