# Licensed under a 3-clause BSD style license - see LICENSE.rst
"""What the commands of ``rosetta`` do; their options are in `rosetta.cli`. Heavy imports wait until they are needed."""
