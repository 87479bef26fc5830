# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What the three heads share: a frozen encoder, a small network, and a checkpoint that ties the two."""

from pathlib import Path

from . import checkpoint
from .embedding import SkyEmbedding
from .encoding.encoder import CrossSurveyEncoder
from .pair import SkyPair


class Head:
    """A small trained network on a frozen encoder.

    Subclasses set ``_kind`` (the checkpoint's kind), ``_default_config`` (dict) and ``_build(config)``, which
    returns the untrained network (a core module).

    Parameters
    ----------
    encoder : `~rosetta.CrossSurveyEncoder`, optional
        The encoder whose tokens the head reads. None: the bundled one, loaded when needed.
    """

    _kind = None
    _default_config = {}

    def __init__(self, encoder=None):
        if encoder is not None and not isinstance(encoder, CrossSurveyEncoder):
            raise TypeError(f"encoder must be a CrossSurveyEncoder or None, got {type(encoder).__name__}")
        self._encoder = encoder
        self._device = None
        self._config = dict(self._default_config)
        self._network = self._build(self._config)
        self._provenance = {"trained": False}
        self._fingerprint = None

    @staticmethod
    def _build(config):
        raise NotImplementedError

    @property
    def encoder(self):
        """The frozen encoder (loaded on first use)."""
        if self._encoder is None:
            self._encoder = CrossSurveyEncoder.from_pretrained(device=self._device)
        return self._encoder

    @property
    def fingerprint(self):
        """Fingerprint of the head's checkpoint, or None if it was never saved or loaded."""
        return self._fingerprint

    @classmethod
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
            If the checkpoint is damaged or of another kind, if the device is not there, or if head and encoder do
            not belong together (the message names both fingerprints).
        """
        path = Path(path) if path is not None else checkpoint.bundled(cls._kind)
        found = checkpoint.load(path, kind=cls._kind)
        head = cls(encoder)
        head._device = checkpoint.device_of(device)
        needed = found.config.get("encoder")
        if head.encoder.fingerprint != needed:
            raise ValueError(
                f"encoder has fingerprint {head.encoder.fingerprint}, but {path.name} was trained on {needed}: "
                "load the encoder it belongs to, or train the head with fit()"
            )
        head._config = {k: v for k, v in found.config.items() if k != "encoder"}
        try:
            network = cls._build(head._config)
        except TypeError as error:
            raise checkpoint.CheckpointError(f"{path.name} is of another architecture: {error}") from error
        head._network = checkpoint.restore(network, found.tensors, path.name)
        head._network.to(head._device).eval()
        head._provenance, head._fingerprint = found.provenance, found.fingerprint
        return head

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
            If the head or its encoder has not been trained or loaded, or the path cannot be used.
        """
        if not self._provenance.get("trained"):
            raise ValueError(f"this {type(self).__name__} has not been trained: call fit() first")
        config = {**self._config, "encoder": self.encoder.fingerprint}
        self._fingerprint = checkpoint.save(
            path, self._network.state_dict(), kind=self._kind, config=config, provenance=self._provenance
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
                "head_fingerprint": self._fingerprint,
                "encoder_fingerprint": embedding.fingerprint,
                "versions": checkpoint.versions(),
                "inputs": embedding.meta.get("inputs", {}),
                "options": options,
            }
        }
