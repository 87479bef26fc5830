# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The blend network on figures drawn on the spot."""

import numpy as np
import pytest
import torch

from rosetta.core import blend, templates


def drawn(n, seed):
    """Figures, of which the first two say which sources are blends."""
    rng = np.random.default_rng(seed)
    figures = rng.normal(0, 3, (n, blend.N_FIGURE)) + 5
    logit = 1.2 * (figures[:, 0] - 5) - 0.8 * (figures[:, 1] - 5) - 2
    return {"figures": figures, "several": rng.random(n) < 1 / (1 + np.exp(-logit))}


def test_what_is_learned_is_a_probability():
    data, held_out = drawn(6000, 0), drawn(4000, 1)
    network = templates.seeded(templates.TemplateConfig(token_dim=4).to_dict(), 0).blend
    state = torch.random.get_rng_state()
    result = blend.train(network, data, held_out, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    p, several = blend.predict(network, held_out["figures"]), held_out["several"]
    assert result["blend_rate"] == pytest.approx(several.mean()) and result["blend_gain"] > 0.2
    assert result["blend_mean"] == pytest.approx(p.mean()) == pytest.approx(several.mean(), abs=0.02)
    for low, high in ((0.0, 0.1), (0.1, 0.4), (0.4, 0.7), (0.7, 1.0)):
        k = (p >= low) & (p < high)
        assert k.sum() > 200 and several[k].mean() == pytest.approx(p[k].mean(), abs=0.06)
    assert np.isfinite(blend.predict(network, np.full((1, blend.N_FIGURE), 1e9))).all()
