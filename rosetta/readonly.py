# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""The one read-only mapping that results are built from."""

from collections.abc import Mapping

__all__ = ["ReadOnlyDict"]


class ReadOnlyDict(Mapping):
    """A mapping that cannot be changed, and neither can the arrays in it.

    Unlike `types.MappingProxyType` it can be pickled and copied, and what comes back is read-only again
    (`pickle` and `copy.deepcopy` make every array writeable).

    Parameters
    ----------
    items : mapping
        Copied; numpy arrays among the values become read-only.
    """

    __slots__ = ("_items",)

    def __init__(self, items):
        self._items = dict(items)
        for value in self._items.values():
            if hasattr(value, "setflags"):
                value.setflags(write=False)

    def __getitem__(self, key):
        return self._items[key]

    def __iter__(self):
        return iter(self._items)

    def __len__(self):
        return len(self._items)

    def __repr__(self):
        return f"{type(self).__name__}({self._items!r})"

    def __reduce__(self):
        return type(self), (self._items,)
