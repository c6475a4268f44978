"""Every rule of the format has a file that breaks it, made anew and as kept in tests/golden-errors/."""

from __future__ import annotations

import pytest
from bad_files import BAD, FOLDER

from tersor.decoder import load


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("origin", ["made", "kept"])
def test_rule(name, origin):
    data, error, message = BAD[name]
    with pytest.raises(error, match=message) as caught:
        load(data if origin == "made" else (FOLDER / f"{name}.tersor").read_bytes()).read_all()
    assert type(caught.value) is error


def test_nothing_is_kept_that_is_not_tested():
    assert {path.stem for path in FOLDER.iterdir()} == set(BAD)
