"""Another minor version of DeepSpeed than the one that the workarounds were written for is named."""

from __future__ import annotations

import warnings

import pytest

from dist_metaxlm.deepspeed_adapter.version import check_version


def test_another_minor_version_is_warned_of() -> None:
    for other in ("0.20.0", "1.19.8", "0.18.9"):
        with pytest.warns(UserWarning, match=rf"DeepSpeed {other} is installed, .* written for 0\.19\.8"):
            check_version(other)


def test_the_installed_one_and_its_patches_are_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_version()
        check_version("0.19.11")
