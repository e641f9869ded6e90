"""The Inception network with random weights: the published ones are a file of the user's."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from heads import heads

from rsdmri.errors import InputError
from rsdmri.metrics import inception
from rsdmri.metrics.feature_sets import select_features
from rsdmri.metrics.inception import WHITE, InceptionFeatures, eight_bits

needs_library = pytest.mark.skipif(inception.find_spec("torch_fidelity") is None, reason="torch-fidelity is missing")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of the network as safetensors."""
    from safetensors.torch import save_file

    library = inception._library()
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = library.FeatureExtractorInceptionV3("inception", ["2048"])
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    return path


def test_magnitudes_become_eight_bits_in_one_window():
    x = np.array([[[0, WHITE / 2, WHITE], [2 * WHITE, WHITE / 255, WHITE / 1000]]])
    np.testing.assert_array_equal(eight_bits(x), [[[0, 128, 255], [255, 1, 0]]])


@needs_library
def test_features_are_those_of_the_network_and_of_each_image_alone(weights):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
        kind = select_features(f"inception={weights}", "cpu")
    images = np.abs(heads(2, (40, 36)))
    f = kind(images)
    assert f.shape == (2, kind.dimensions) == (2, 2048)
    assert np.abs(f[0] - f[1]).max() > 0
    np.testing.assert_allclose(kind(images[1:])[0], f[1], rtol=1e-4, atol=1e-5)
    shown = torch.from_numpy(eight_bits(images))[:, None].repeat(1, 3, 1, 1)
    np.testing.assert_allclose(kind._network(shown)[0].numpy(), f, rtol=1e-4, atol=1e-5)
    assert kind(images[:0]).shape == (0, 2048)
    assert "weights sha256 " in kind.preprocessing


@needs_library
def test_neither_torchvision_nor_half_a_package_is_left_behind(weights):
    code = (
        "import sys; from rsdmri.metrics.feature_sets import select_features\n"
        f"select_features('inception={weights}', 'cpu')\n"
        "print(*(m for m in sys.modules if m.split('.')[0] in ('torch_fidelity', 'torchvision')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


@needs_library
def test_pickles_other_networks_and_missing_files_are_refused(weights, tmp_path):
    from safetensors.torch import save_file

    pickled, other = tmp_path / "weights.pth", tmp_path / "other.safetensors"
    torch.save({"a": torch.zeros(2)}, pickled)
    save_file({"a": torch.zeros(2)}, other)
    for path, message in ((pickled, "save_file"), (other, "another network"), (tmp_path / "none", "no such file")):
        with pytest.raises(InputError, match=message):
            InceptionFeatures(path, "cpu")


def test_a_missing_library_is_named_with_its_cure(monkeypatch, tmp_path):
    monkeypatch.setattr(inception, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps torch-fidelity"):
        InceptionFeatures(tmp_path / "weights.safetensors", "cpu")
