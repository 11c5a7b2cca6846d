"""Records that tests of caches share: read, never changed."""

import pytest
from helpers.small_caches import FEW, MANY, make_records, some_samples

from pipelines.records.reader import Records


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return make_records(tmp_path_factory.mktemp("many") / "a.beton", some_samples(MANY))


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return make_records(tmp_path_factory.mktemp("few") / "a.beton", some_samples(FEW))
