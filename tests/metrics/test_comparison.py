"""All measures at once, with what they were measured with."""

import json

import numpy as np
import pytest
from heads import blurred, heads, noisy, rng

from rsdmri.metrics.comparison import Estimate, compare_features
from rsdmri.metrics.distribution import distance_floor, frechet_distance, kernel_distance
from rsdmri.metrics.feature_sets import select_features
from rsdmri.metrics.features import describe_features, standardised
from rsdmri.metrics.manifolds import manifolds


@pytest.mark.parametrize("name", ["mr-magnitude-v1", "radiomics"])
def test_a_comparison_holds_every_measure_of_the_same_sets(name):
    kind = select_features(name)
    samples, reference = (kind(np.abs(noisy(x, 0.02))) for x in (blurred(heads(24, seed=1), 0.5), heads(30)))
    found = compare_features(kind, samples, reference, generator=rng(), repeats=10)
    s, r = standardised(samples, reference) if kind.standardise else (samples, reference)
    assert found.frechet.value == frechet_distance(s, r)
    assert found.kernel.value == kernel_distance(s, r)
    assert found.floor == distance_floor(frechet_distance, r)
    values = manifolds(s, r)
    assert tuple(getattr(found, n).value for n in values._fields) == values
    assert found.features == describe_features(kind, samples, reference)
    row = json.loads(json.dumps(found.row(), allow_nan=False))
    for measure in ("frechet", "kernel", *values._fields):
        assert row[f"{measure} low"] <= row[measure] <= row[f"{measure} high"]
        assert str(getattr(found, measure)) in str(found)
    assert found.features in str(found)


def test_estimates_are_printed_with_their_intervals():
    assert str(Estimate(12.345, 10, 14.6)) == "12.3 [10, 14.6]"
    assert str(Estimate(12345.6, -0.00123, 1e6)) == "12346 [-0.00123, 1000000]"
