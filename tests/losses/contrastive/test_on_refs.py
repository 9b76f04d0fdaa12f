"""States are made from numbers: a ref is answered in words."""

from __future__ import annotations

import pytest

from fkd import student
from fkd.losses import crd_init, dino_init, queue_init


@pytest.mark.plain
@pytest.mark.parametrize("make", [lambda x: crd_init(x, 2), lambda x: queue_init(4, x), dino_init])
def test_a_state_of_a_ref_says_fkd_call(make):
    with pytest.raises(TypeError, match=r"student\.x, which has a value only.*fkd\.call"):
        make(student.x)
