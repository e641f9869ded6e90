"""Choosing features, what is printed with them, and units of the reference's spread."""

import numpy as np
import pytest
from heads import heads, rng

from rsdmri.errors import InputError
from rsdmri.metrics.feature_sets import select_features
from rsdmri.metrics.features import describe_features, reference_hash, standardised


@pytest.mark.parametrize(("text", "name"), [("mr-magnitude-v1", "mr-magnitude-v1"), ("radiomics", "radiomics-v1")])
def test_features_keep_what_they_promise(text, name):
    kind = select_features(text)
    images = np.abs(heads(3))
    f = kind(images)
    assert kind.name == name
    assert f.shape == (3, kind.dimensions)
    assert f.dtype == np.float64
    assert sum(int(word) for word in kind.preprocessing.split(";")[0].split() if word.isdigit()) == kind.dimensions
    np.testing.assert_array_equal(kind(images), f)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fid", "expected one of mr-magnitude-v1, radiomics, inception=PATH"),
        ("radiomics=x", "expected one of"),
        ("inception", "never downloaded"),
        ("inception=", "never downloaded"),
    ],
)
def test_other_names_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        select_features(text)


def test_description_names_features_counts_and_reference():
    kind = select_features("mr-magnitude-v1")
    reference = kind(np.abs(heads(5)))
    text = describe_features(kind, np.zeros((7, 128)), reference)
    assert text.startswith("features mr-magnitude-v1 (128: 64 layout, 48 energy, 16 spectrum; magnitudes")
    assert "7 samples; 5 reference images" in text
    assert reference_hash(reference) in text
    assert reference_hash(reference) == reference_hash(reference[::-1] + 1e-9 * np.sign(reference[::-1]))
    assert reference_hash(reference) != reference_hash(reference + 1e-3)
    assert "samples" not in describe_features(kind)
    assert "spread" not in describe_features(kind)
    assert "in units of the reference's spread" in describe_features(select_features("radiomics"))


def test_standardised_features_have_the_spread_of_the_reference_and_no_constants():
    g = rng("standardised")
    r = g.standard_normal((40, 4)) * [1e-4, 1, 1e4, 0] + [5, 0, -3, 7]
    f, s = standardised(r[:9] + np.array([1e-4, 0, 0, 1]), r)
    assert f.shape == (9, 3)
    np.testing.assert_allclose(s.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(s.std(0), 1)
    np.testing.assert_allclose((f - s[:9])[:, 0], 1e-4 / r[:, 0].std(), rtol=1e-6)


def test_a_reference_without_spread_is_refused():
    with pytest.raises(InputError, match="all alike"):
        standardised(np.ones((5, 3)), np.full((5, 3), 0.1))
