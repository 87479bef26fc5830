# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""timm's VisionTransformer, with the dimensions of the encoder's trunk."""

import importlib.abc
import importlib.machinery
import sys
import types

__all__ = ["timm_transformer"]


class _Anything(type):
    """A class that has every attribute."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Placeholder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """timm imports torchvision for transforms and detectors, which a plain vision transformer does not use.

    Its builds do not load beside every build of torch; an empty module in its place is enough here.
    """

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        def missing(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return _Anything(name, (), {})

        module.__getattr__ = missing
        return module

    def exec_module(self, module):
        pass


def timm_transformer(img_size=384, in_chans=4):
    """timm's model with the trunk of ours; by default for space windows of 38.4 arcsec."""
    sys.meta_path.insert(0, _Placeholder())
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise SystemExit("timm is missing: pip install --no-deps timm huggingface_hub") from error
    return VisionTransformer(
        img_size=img_size, patch_size=16, in_chans=in_chans, num_classes=0, embed_dim=384, depth=6, num_heads=6
    ).eval()
