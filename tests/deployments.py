"""A workspace with a grown model and an empty deployment of it. Not a test itself."""

from pathlib import Path

import pytest
from served import grow_small

from onsil.serving.deployment import App


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return grow_small(tmp_path_factory.mktemp("deployment"))


@pytest.fixture
def here(home, tmp_path, monkeypatch) -> Path:
    """Deployments find the workspace, and a folder of their own to read and write in."""
    monkeypatch.setenv("ONSIL_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def app(here) -> App:
    return App()
