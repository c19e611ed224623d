"""Figures against values worked out by hand."""

import numpy as np
import pytest

from fmnist.evaluation import evaluate

PROBABILITIES = np.array([[0.9, 0.1, 0.0], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.35, 0.25, 0.4]], dtype=np.float32)
LABELS = np.array([0, 1, 1, 0], dtype=np.uint8)


def test_figures_are_those_worked_out_by_hand():
    result = evaluate(PROBABILITIES, LABELS)
    assert result.accuracy == 0.5
    assert result.loss == pytest.approx(-np.log([0.9, 0.3, 0.7, 0.35]).mean(), rel=1e-6)
    np.testing.assert_array_equal(result.confusion, [[1, 0, 1], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(result.precision, [1 / 2, 1, 0])
    np.testing.assert_allclose(result.recall, [1 / 2, 1 / 2, 0])
    np.testing.assert_allclose(result.f1, [1 / 2, 2 / 3, 0])
    np.testing.assert_array_equal(result.support, [2, 2, 0])
    assert result.macro_f1 == pytest.approx((1 / 2 + 2 / 3) / 3)
    # Each confidence has a bin of its own: right ones are short of 1 by .1 and .3, wrong ones over 0 by .6 and .4.
    assert result.calibration_error == pytest.approx((0.1 + 0.3 + 0.6 + 0.4) / 4, rel=1e-6)


def test_certain_and_right_is_perfectly_calibrated():
    result = evaluate(np.eye(3, dtype=np.float32), np.arange(3, dtype=np.uint8))
    assert (result.accuracy, result.calibration_error, result.loss) == (1.0, 0.0, 0.0)


def test_certain_and_wrong_has_a_finite_loss():
    result = evaluate(np.eye(3, dtype=np.float32), np.array([1, 2, 0], dtype=np.uint8))
    assert np.isfinite(result.loss)
    assert result.calibration_error == 1.0
