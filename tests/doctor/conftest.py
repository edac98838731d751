"""What the tests of the checks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.doctor.patient import Patient, patient
from tests.lab import IdealNat64Lab


@pytest.fixture
def host(ideal_lab: IdealNat64Lab) -> Iterator[Patient]:
    """A host that is well, with owned rules."""
    with patient(ideal_lab) as made:
        yield made
