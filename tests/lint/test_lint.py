"""The linters, as tests: ruff (rules and format), mypy --strict, shellcheck, AppArmor's parser."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT_PLACES = (
    "dev",
    ".ci/*",
    "tools/*",
    "mountsafe/appliance/*",
    "images/*",
    "bench/*",
    "tests/*/*",
    "debian/*",
    "debian/tests/*",
)
SHELLS = (b"#!/bin/sh", b"#!/bin/bash", b"#!/usr/bin/env bash")


def hold(folder: Path, *command: str) -> None:
    """Run a linter; what it finds is the failure's whole text."""
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)


def test_ruff_rules(repository: Path) -> None:
    hold(repository, sys.executable, "-m", "ruff", "check", ".")


def test_ruff_format(repository: Path) -> None:
    hold(repository, sys.executable, "-m", "ruff", "format", "--check", ".")


def test_mypy_strict(repository: Path) -> None:
    hold(repository, sys.executable, "-m", "mypy", "--strict", "mountsafe")


def test_mypy_strict_on_the_images(repository: Path) -> None:
    hold(repository, sys.executable, "-m", "mypy", "--strict", "-p", "images")


def test_mypy_strict_on_the_tools(repository: Path) -> None:
    hold(repository, sys.executable, "-m", "mypy", "--strict", "tools")


def test_mypy_strict_on_the_benchmark(repository: Path) -> None:
    """Its files import their neighbours by bare name, so mypy has to stand beside them."""
    config = str(repository / "pyproject.toml")
    hold(repository / "bench", sys.executable, "-m", "mypy", "--strict", "--config-file", config, ".")


def test_shellcheck(repository: Path, program: Callable[[str], str]) -> None:
    places = [path for place in SCRIPT_PLACES for path in repository.glob(place) if path.is_file()]
    scripts = [str(path) for path in places if path.read_bytes().startswith(SHELLS)]
    assert scripts
    hold(repository, program("shellcheck"), *scripts)


def test_apparmor(repository: Path, program: Callable[[str], str]) -> None:
    parser = program("apparmor_parser")
    if not Path("/etc/apparmor.d/abi/4.0").exists():
        pytest.skip("this AppArmor is older than `userns` in profiles")
    hold(repository, parser, "--skip-kernel-load", "--skip-cache", "packaging/apparmor")
