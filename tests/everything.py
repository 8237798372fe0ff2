"""Which tests run: some of the costly ones stand for others, and JCL_ALL_TESTS=1 runs all."""

import os

import pytest

ALL = bool(os.environ.get("JCL_ALL_TESTS"))
costly = pytest.mark.skipif(not ALL, reason="costly: JCL_ALL_TESTS=1 runs it")
