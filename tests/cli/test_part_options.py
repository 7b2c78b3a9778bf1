"""Options that every command has."""

import pytest

from uqbias.cli.part_options import command
from uqbias.errors import UqbiasError
from uqbias.registry import POTENTIALS, names_of_file


def test_trust_ends_with_its_command():
    def load(name: str) -> object:
        with names_of_file():
            return POTENTIALS.get(name)

    run = command(load, trusting=True)
    for _ in range(2):
        with pytest.raises(UqbiasError, match="nothing is imported"):
            run(name="pathlib:Path", trust=False)
        with pytest.raises(UqbiasError, match="is not a potential"):
            run(name="pathlib:Path", trust=True)
