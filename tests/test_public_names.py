"""What `import mtyolo` offers is fixed: a name less breaks people's code, a name more is a promise."""

from __future__ import annotations

from importlib.metadata import version

import pytest

import mtyolo

PUBLIC = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Detections",
    "Level",
    "Model",
    "MtyoloError",
    "Outputs",
    "StoreError",
    "Targets",
    "TrainConfig",
    "__version__",
    "build",
    "export",
    "load",
    "losses",
    "open_model",
    "predict",
    "save_weights",
    "train",
    "validate",
]


def test_public_names_are_these_and_no_more() -> None:
    assert mtyolo.__all__ == PUBLIC
    assert dir(mtyolo) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_leads_somewhere(name: str) -> None:
    assert getattr(mtyolo, name) is not None


def test_functions_are_functions_although_modules_carry_similar_names() -> None:
    import mtyolo.api
    import mtyolo.checkpoint
    import mtyolo.prediction.predict
    import mtyolo.training.train

    for name in ("build", "load", "losses", "open_model", "predict", "save_weights", "train", "validate"):
        assert callable(getattr(mtyolo, name)), name


def test_version_is_that_of_the_installed_package() -> None:
    assert mtyolo.__version__ == version("mtyolo")


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        mtyolo.trian  # noqa: B018 - the lookup is what is tested
