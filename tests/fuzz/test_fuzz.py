"""A few hundred damaged files for each reader; `make fuzz` tries thousands."""

import pytest
from file_readers import READERS, write_seeds
from fuzzing import fuzz


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


@pytest.mark.parametrize("reader", READERS)
def test_sound_files_are_read(seeds, reader):
    READERS[reader](seeds / reader)


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_read_or_refused_in_one_line(seeds, reader):
    result = fuzz(reader, seeds, 60)
    assert result.faults == []
    assert result.tried == 60
    assert result.refused > 15  # the damage is felt
