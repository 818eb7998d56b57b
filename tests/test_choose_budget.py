"""What --budget may say, and what it means."""

from __future__ import annotations

import pytest

from spafit_hf.choose.budget import Budget


def test_limits_with_their_units() -> None:
    assert Budget.parse("") == Budget(None, 600.0, None)
    assert Budget.parse("parameters=5M,time=30min") == Budget(5_000_000, 1800.0)
    assert Budget.parse(" time = 1.5 h, memory=2gb ,parameters=250000") == Budget(250_000, 5400.0, 2_000_000_000)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("parameter=5M", "a limit 'parameter'; allowed are parameters, time, memory; did you mean 'parameters'"),
        ("time=30", "time is '30'; it must be a number above 0 in s, min, h, as in time=30min"),
        ("time=0min", "time is '0min'"),
        ("memory=-2GB", "memory is '-2GB'; it must be a number above 0 in kB, MB, GB"),
        ("parameters=5GB", "parameters is '5GB'; it must be a number above 0 in no unit, K, M, B"),
        ("parameters", "parameters is ''"),
        ("time=1h,time=2h", "time twice"),
    ],
)
def test_what_is_no_budget(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Budget.parse(text)
