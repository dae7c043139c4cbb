"""What surrounds the gateway and its tests: files for other machines, the browser, the proxies of this one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from tests import browser

PROJECT_DIR = Path(__file__).resolve().parents[2]


def test_a_volume_on_kubernetes_is_not_given_other_modes_at_each_mount() -> None:
    documents = yaml.safe_load_all((PROJECT_DIR / "deploy" / "k8s.yaml").read_text(encoding="utf-8"))
    (pod,) = (document["spec"]["template"]["spec"] for document in documents if document["kind"] == "StatefulSet")
    assert pod["securityContext"]["fsGroup"] == 10001
    assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


def test_the_tests_find_every_chromium_the_script_is_content_with() -> None:
    script = (PROJECT_DIR / "tools" / "ensure_system.sh").read_text(encoding="utf-8")
    found = re.search(r"need chromium (.*)", script)
    assert found is not None
    assert tuple(found[1].split()) == browser.NAMES


@pytest.mark.parametrize("name", browser.NAMES)
def test_a_chromium_of_any_of_the_names_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch(mode=0o700)
    assert browser.chromium(str(tmp_path)) == str(tmp_path / name)


def test_without_a_chromium_the_test_fails_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="ensure_system"):
        browser.chromium(str(tmp_path))


def test_servers_on_this_host_are_asked_without_a_proxy() -> None:
    for name in ("no_proxy", "NO_PROXY"):
        assert {"localhost", "127.0.0.1", "::1"} <= set(os.environ[name].split(","))
