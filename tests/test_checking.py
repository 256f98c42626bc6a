"""The type checker of the tests themselves."""

import numpy as np
import pytest
from beartype.roar import BeartypeCallHintParamViolation
from checking import checked
from jaxtyping import Float


def inner(kind):
    """Defines a function anew, as a call of an outer function does."""

    def function(x: kind):
        return x

    return function


def test_functions_share_their_checks_if_their_annotations_are_the_same():
    rows, matrices = Float[np.ndarray, "n"], Float[np.ndarray, "m n"]
    of_rows, again, of_matrices = map(checked, map(inner, (rows, rows, matrices)))
    assert of_rows is again
    of_rows(np.zeros(2))
    of_matrices(np.zeros((2, 2)))
    for function, wrong in ((of_rows, np.zeros((2, 2))), (of_matrices, np.zeros(2))):
        with pytest.raises(BeartypeCallHintParamViolation):
            function(wrong)
