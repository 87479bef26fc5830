# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""Errors of the command line name the option that they come from."""

from contextlib import contextmanager

__all__ = ["option", "options"]


@contextmanager
def option(*words):
    """Errors within name an option and its value."""
    option = " ".join(map(str, words))
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error
    except OSError as error:
        raise ValueError(f"{option}: {error.strerror or error}: {error.filename}") from error


@contextmanager
def options(*names):
    """Errors within that begin with the name of an argument which is also an option's call it by that."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"--{error}" if str(error).startswith(names) else str(error)) from error
