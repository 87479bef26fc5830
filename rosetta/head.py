# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What all heads share: a frozen encoder, a small network, how it is trained, and a checkpoint that ties the two."""

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path

from . import checkpoint
from .arithmetic import plain_arithmetic
from .display import html_table
from .embedding import SkyEmbedding
from .encoding.encoder import CrossSurveyEncoder
from .pair import SkyPair
from .training.loop import seeded, train
from .training.rows import split_by_pair, training_parts
from .workers import check_workers

__all__ = ["Head"]

log = logging.getLogger("rosetta")


class Head:
    """A small trained network on a frozen encoder.

    A subclass stands in `rosetta.registry.HEADS` and gives

    - ``_kind``, its name there and in checkpoints; ``_config_class``, a frozen dataclass of all settings that matter
      to a result, each with a default; ``trainer``, how it is trained, a `~rosetta.training.loop.TrainerConfig`;
    - ``_build(config)``, the untrained network, a `~rosetta.training.network.HeadNetwork` with its loss;
    - ``_rows(pair, truth, index, seed)``, what one pair teaches: a dict of arrays with a row per example, or None;
    - ``_truth_columns``, the columns that truth must have, and ``_needs_truth``;
    - where needed, ``_prepared``, ``_config_for`` and ``_finish``, which surround the training, and ``_restored``.

    Parameters
    ----------
    encoder : `~rosetta.CrossSurveyEncoder`, optional
        The encoder whose tokens the head reads. None: the bundled one, loaded when needed.
    """

    _kind = None
    _config_class = None
    trainer = None
    _truth_columns = ("sky_centroid",)
    _needs_truth = True
    _owner_kinds = ("encoder",)  # kinds of checkpoints whose fingerprints stand in this head's, see `_trained_on`

    @plain_arithmetic
    def __init__(self, encoder=None):
        if encoder is not None and not isinstance(encoder, CrossSurveyEncoder):
            raise TypeError(f"encoder must be a CrossSurveyEncoder or None, got {type(encoder).__name__}")
        self._encoder = encoder
        self._device = None
        self._config = self._config_class()
        with seeded(0):
            self._network = self._build(self._config).eval()
        self._provenance = {"trained": False}
        self._owners = None  # what it was trained on: {kind: fingerprint}
        self._fingerprint = None  # not known until it is asked for

    @staticmethod
    def _build(config):
        """The untrained network."""
        raise NotImplementedError

    def _rows(self, pair, truth, index, seed):
        """Training rows of one pair: dict of arrays with the same first axis; None where there is nothing to learn."""
        raise NotImplementedError

    def _prepared(self, data, held_out):
        """Training and held-out rows as the network reads them; raises `ValueError` where they are too few."""
        return data, held_out

    def _config_for(self, data):
        """The configuration of a network for these training rows."""
        return self._config

    def _finish(self, network, data, held_out):
        """Calibrate the trained network; what was measured on held-out rows, a dict for the provenance."""
        return {}

    def _restored(self, path):
        """What else a head loads with its checkpoint at a path."""

    def _trained_on(self):
        """Fingerprints of the checkpoints that the rows come from, {kind: fingerprint}."""
        return {"encoder": self.encoder.fingerprint}

    def _shown(self):
        """Names and texts of what is shown of it; nothing is loaded for it."""
        trained = self._provenance.get("trained")
        owners = dict(self._owners or {})
        if self._encoder is not None:
            owners["encoder"] = self._encoder.fingerprint
        shown = {"state": f"trained, {self.fingerprint}" if trained else "untrained"}
        shown |= owners or {"encoder": "the bundled one, when it is needed"}
        if trained and "n_pair" in self._provenance:
            shown["trained on"] = f"{self._provenance['n_pair']} pairs"
        return shown

    def __repr__(self):
        shown = self._shown()
        return f"<{type(self).__name__} {shown.pop('state')}; {', '.join(f'{k} {v}' for k, v in shown.items())}>"

    def _repr_html_(self):
        return html_table(type(self).__name__, (), self._shown().items())

    @property
    def encoder(self):
        """The frozen encoder (loaded on first use)."""
        if self._encoder is None:
            self._encoder = CrossSurveyEncoder.from_pretrained(device=self._device)
        return self._encoder

    @property
    def fingerprint(self):
        """Sixteen hex digits that name the trained head, those of its checkpoint; None if it is untrained."""
        if self._fingerprint is None and self._provenance.get("trained"):
            self._fingerprint = checkpoint.fingerprint_of(self._kind, self._network.state_dict(), self._document())
        return self._fingerprint

    def _document(self):
        """The configuration as a checkpoint holds it, with what the head belongs to."""
        return {**asdict(self._config), **self._owners}

    @classmethod
    @plain_arithmetic
    def from_pretrained(cls, path=None, *, encoder=None, device=None):
        """Load a trained head.

        Parameters
        ----------
        path : path-like, optional
            A checkpoint written by `save`. None: the bundled one.
        encoder : `~rosetta.CrossSurveyEncoder`, optional
            The encoder it belongs to. None: the bundled one.
        device : str, optional
            "cpu", "cuda" or "cuda:N"; None: CUDA where there is one.

        Returns
        -------
        head
            Of the class it was called on.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the checkpoint is damaged or of another kind, if the device is not there, or if head and encoder (or
            deblender and detector) do not belong together; the message names both fingerprints.
        """
        path = Path(path) if path is not None else checkpoint.bundled(cls._kind)
        found = checkpoint.load(path, kind=cls._kind)
        settings, owners = dict(found.config), {}
        for kind in cls._owner_kinds:
            if kind not in settings:
                raise checkpoint.CheckpointError(
                    f"{path.name} is of another architecture: it does not say which {kind} it belongs to, train again"
                )
            owners[kind] = settings.pop(kind)
        config = checkpoint.config_of(cls._config_class, settings, path.name)
        head = cls(encoder)
        head._device = checkpoint.device_of(device)
        if head.encoder.fingerprint != owners["encoder"]:
            raise ValueError(
                f"encoder has fingerprint {head.encoder.fingerprint}, but {path.name} was trained on "
                f"{owners['encoder']}: load the encoder it belongs to, or train the head with fit()"
            )
        network = checkpoint.restore(lambda: cls._build(config), found.tensors, path.name, head._device)
        head._config, head._network, head._owners = config, network.eval(), owners
        head._provenance, head._fingerprint = found.provenance, found.fingerprint
        head._restored(path)
        return head

    @plain_arithmetic
    def fit(self, pairs, truth=None, *, seed, checkpoint=None, workers=1):
        """Train the head's network; the encoder stays frozen.

        Of the pairs that give training rows, every fifth and the last are held out. They decide when training stops,
        and the results on them are stored in the checkpoint.

        Parameters
        ----------
        pairs : sequence of `~rosetta.SkyPair`
            At least 2; read one at a time. Deblender and photometry take their headers as right: align them before.
        truth : sequence of `~astropy.table.QTable`, optional
            One per pair, as `rosetta.simulate` gives them. Only the aligner can do without.
        seed : int
            The same rows and seed give the same head, on the same device.
        checkpoint : path-like, optional
            File of the training rows of finished pairs: an interrupted run resumes from it.
        workers : int
            Processes that measure the pairs. With more than one, ``pairs`` and ``truth`` must be picklable.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If truth is needed and missing, or does not match the pairs; if the pairs give too few rows; or if the
            checkpoint is damaged or belongs to other pairs or another head.
        OSError
            If the checkpoint cannot be written.
        """
        check_workers(workers)
        if truth is None and self._needs_truth:
            raise ValueError("truth is None: this head learns from known fluxes, give one truth table per pair")
        owners = self._trained_on()
        parts = training_parts(
            pairs, truth, partial(self._rows, seed=seed), columns=self._truth_columns,
            owner=f"{self._kind} {' '.join(map(str, owners.values()))} {seed}", checkpoint=checkpoint, workers=workers,
        )
        data, held_out = self._prepared(*split_by_pair(parts))
        config = self._config_for(data)
        with seeded(seed):
            network = self._build(config)
        network.to(self._device or self.encoder.device)
        report = train(network, data, held_out, self.trainer, seed=seed)
        report |= self._finish(network, data, held_out)
        log.info("%s trained: %s", self._kind, report)
        self._config, self._network, self._owners, self._fingerprint = config, network, owners, None
        self._provenance = {
            "trained": True, "seed": seed, "truth": truth is not None, "n_pair": sum(p is not None for p in parts),
            "trainer": asdict(self.trainer), **report,
        }
        return self

    def save(self, path):
        """Write the head to a file, tied to its encoder's fingerprint.

        Parameters
        ----------
        path : path-like
            Ends in ``.safetensors``; replaced, whole or not at all, if it exists.

        Returns
        -------
        str
            The head's fingerprint.

        Raises
        ------
        ValueError
            If the head has not been trained or loaded, or the path cannot be used.
        """
        if not self._provenance.get("trained"):
            raise ValueError(f"this {type(self).__name__} has not been trained: call fit() first")
        self._fingerprint = checkpoint.save(
            path, self._network.state_dict(), kind=self._kind, config=self._document(), provenance=self._provenance
        )
        return self._fingerprint

    def _embedding(self, x):
        """``x`` as a `~rosetta.SkyEmbedding` of this head's encoder."""
        if isinstance(x, SkyPair):
            return self.encoder(x)
        if not isinstance(x, SkyEmbedding):
            raise TypeError(f"x must be a SkyPair or a SkyEmbedding, got {type(x).__name__}")
        if x.fingerprint != self.encoder.fingerprint:
            raise ValueError(
                f"x was embedded by encoder {x.fingerprint}, this head belongs to {self.encoder.fingerprint}: "
                "embed the pair again with this head's encoder"
            )
        return x

    def _provenance_of(self, embedding, **options):
        """The ``meta`` entries that every result carries."""
        return {
            "rosetta": {
                "head": self._kind,
                "head_fingerprint": self.fingerprint,
                "encoder_fingerprint": embedding.fingerprint,
                "versions": checkpoint.versions(),
                "inputs": embedding.meta.get("inputs", {}),
                "options": options,
            }
        }
