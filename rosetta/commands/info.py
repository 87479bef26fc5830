# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""``rosetta info``: what is bundled, or what a checkpoint holds."""

from pathlib import Path

from ..registry import KINDS

__all__ = ["print_checkpoints"]


def print_checkpoints(arguments):
    from .. import __version__, checkpoint

    if arguments.file:
        _print_header(Path(arguments.file), checkpoint.read_header(arguments.file))
        return 0
    print(f"rosetta {__version__}")
    headers = {}
    for kind in KINDS:
        path = checkpoint.bundled(kind)
        if path.is_file():
            headers[kind] = checkpoint.read_header(path)
            size = path.stat().st_size / 1e6
            print(f"{kind:11} {headers[kind]['fingerprint']}  {size:6.1f} MB  {path.name}")
        else:
            print(f"{kind:11} not bundled")
    strangers = [
        f"{kind} (to {owner} {header['config'][owner] or 'untrained'})"
        for kind, header in headers.items() for owner in KINDS
        if owner in header["config"] and header["config"][owner] != headers.get(owner, {}).get("fingerprint")
    ]
    if strangers:
        print(f"NOT one set: {', '.join(strangers)} belong to others")
    else:
        print(
            "one set: the heads belong to this encoder, the deblender to this detector, and the errors of photometry "
            "to this deblender"
        )
    return 0


def _print_header(path, header):
    import json

    print(f"{path.name}: {header['kind']} {header['fingerprint']}, checkpoint format {header['format']}")
    for part in ("config", "provenance"):
        print(f"{part}:")
        for key, value in header[part].items():
            print(f"  {key}: {value if isinstance(value, str) else json.dumps(value)}")
