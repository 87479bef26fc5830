# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The blend network on features drawn on the spot."""

import numpy as np
import pytest

from rosetta import JEPADeblender
from rosetta.deblending import blend_probability
from rosetta.training.loop import seeded, train


def drawn(n, seed):
    """Features, of which the first two say which sources are blends."""
    rng = np.random.default_rng(seed)
    features = rng.normal(0, 3, (n, blend_probability.N_FEATURE)) + 5
    logit = 1.2 * (features[:, 0] - 5) - 0.8 * (features[:, 1] - 5) - 2
    return {"features": features, "is_blend": rng.random(n) < 1 / (1 + np.exp(-logit))}


def test_what_is_learned_is_a_probability():
    data, held_out, unseen = drawn(6000, 0), drawn(4000, 1), drawn(40_000, 2)
    with seeded(0):
        network = blend_probability.BlendNet(blend_probability.BlendConfig())
    train(network, data, held_out, JEPADeblender.trainer, seed=1)
    result = blend_probability.report(network, data, unseen)
    p, is_blend = blend_probability.predict(network, unseen["features"]), unseen["is_blend"]
    assert result["blend_rate"] == pytest.approx(is_blend.mean()) and result["blend_gain"] > 0.2
    assert result["blend_mean"] == pytest.approx(p.mean()) == pytest.approx(is_blend.mean(), abs=0.02)
    for low, high in ((0.0, 0.1), (0.1, 0.4), (0.4, 0.7), (0.7, 1.0)):
        k = (p >= low) & (p < high)
        assert k.sum() > 2000 and is_blend[k].mean() == pytest.approx(p[k].mean(), abs=0.05)
    assert np.isfinite(blend_probability.predict(network, np.full((1, blend_probability.N_FEATURE), 1e9))).all()
