"""The product's settings as tests see them: a private data directory and a fast password hash, nothing else."""

from __future__ import annotations

import sys

from tests import environment

if "pytest" in sys.modules:  # processes that tests start may inherit the settings' name, and have their own directory
    environment.prepare()

from hoosh_site.settings import *  # noqa: F403 - after the environment, which the settings read once

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
