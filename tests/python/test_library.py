# SPDX-License-Identifier: MIT
"""Which compiled files the package takes, and that it takes none that do not belong to it."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import prulong
from prulong import _library


LIBRARY = Path(_library.find())
MODULE = LIBRARY.parent / _library._MODULE


@pytest.fixture
def checkout(tmp_path):
    """A copy of the package alone, where a checkout would have it."""
    root = tmp_path / "elsewhere"
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(Path(prulong.__file__).parent, root / "python_bindings" / "prulong", ignore=ignored)
    return root


def put(folder, age=0, library=LIBRARY, module=MODULE):
    """Puts library and module, last written `age` seconds ago, into a folder. Returns the library."""
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in ((library, LIBRARY.name), (module, MODULE.name)):
        if source is not None:
            (folder / name).write_bytes(source.read_bytes())
            os.utime(folder / name, (time.time() - age, time.time() - age))
    return folder / LIBRARY.name


def find_in(checkout, monkeypatch, named=""):
    """The library that the checkout's package would take, or the message of its error."""
    monkeypatch.setenv("PRULONG_OPS_LIBRARY", str(named))
    file = checkout / "python_bindings" / "prulong" / "_library.py"
    spec = importlib.util.spec_from_file_location("library_of_checkout", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.find()
    except ImportError as error:
        return str(error)


def import_in(checkout, named="", before=""):
    """`import prulong` in a fresh process. Returns the libraries loaded, or the last line of the error."""
    code = f"""if True:
        {before}
        import prulong, torch
        torch.ops.prulong.masked_attention, prulong.Pattern
        assert prulong.__file__.startswith({str(checkout)!r})
        maps = open("/proc/self/maps").read().split()
        print(*sorted({{path for path in maps if "libprulong_ops" in path or "/_C." in path and "torch" not in path}}))
    """
    environment = {**os.environ, "PYTHONPATH": str(checkout / "python_bindings"), "PRULONG_OPS_LIBRARY": str(named)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=checkout)
    return result.stdout.strip() if result.returncode == 0 else result.stderr.strip().splitlines()[-1]


def test_not_built(checkout, monkeypatch):
    message = find_in(checkout, monkeypatch)
    assert message.startswith(f"libprulong_ops.so and {MODULE.name} are not built (looked in {checkout}")
    assert "scripts/setup.sh" in message and "PRULONG_OPS_LIBRARY" in message
    assert import_in(checkout) == "ImportError: " + message


def test_the_named_library_goes_before_all_others(checkout, tmp_path, monkeypatch):
    put(checkout / "python_bindings" / "prulong")
    put(checkout / "build" / "cpu" / "lib")
    named = put(tmp_path / "named", 1000)
    assert find_in(checkout, monkeypatch, named) == named
    assert import_in(checkout, named) == f"{named.parent / MODULE.name} {named}"  # each once
    message = find_in(checkout, monkeypatch, tmp_path / "none.so")
    assert message == f"PRULONG_OPS_LIBRARY names {tmp_path / 'none.so'}, which is not a file"


def test_the_packages_own_library_goes_before_a_build_that_is_no_newer(checkout, monkeypatch):
    own = put(checkout / "python_bindings" / "prulong", 100)
    put(checkout / "build" / "cpu" / "lib", 200)
    assert find_in(checkout, monkeypatch) == own


def test_a_copy_older_than_a_build_is_refused(checkout, monkeypatch):
    own = put(checkout / "python_bindings" / "prulong", 200)
    built = put(checkout / "build" / "cpu" / "lib", 100)
    assert find_in(checkout, monkeypatch) == (
        f"{own} is older than {built}: copy that and its {MODULE.name} over it, or remove it"
    )


@pytest.mark.parametrize("newer", ["cpu", "cuda"])
def test_of_two_builds_the_newer_is_taken(checkout, newer, monkeypatch):
    built = {name: put(checkout / "build" / name / "lib", 100 if name == newer else 200) for name in ("cpu", "cuda")}
    put(checkout / "build" / "cpu-asan" / "lib", module=None)  # one that no Python loads
    assert find_in(checkout, monkeypatch) == built[newer]


def test_what_was_built_for_another_package_is_refused(checkout):
    with (checkout / "python_bindings" / "prulong" / "ops.py").open("a") as file:
        file.write("# another interface\n")
    built = put(checkout / "build" / "cpu" / "lib")
    message = import_in(checkout)
    assert message.startswith(f"ImportError: {built} was not built for {checkout / 'python_bindings' / 'prulong'}: its ")
    assert message.endswith("build again (scripts/setup.sh), or set PRULONG_OPS_LIBRARY to the library of this version")


def test_a_library_that_says_nothing_of_its_interface_is_refused(checkout, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no compiler")
    (tmp_path / "old.cpp").write_text("int old() { return 0; }\n")
    subprocess.run(["g++", "-shared", "-fPIC", "-o", tmp_path / "old.so", tmp_path / "old.cpp"], check=True)
    built = put(checkout / "build" / "cpu" / "lib", library=tmp_path / "old.so")
    message = import_in(checkout)
    assert message.startswith(f"ImportError: {built} was not built for ") and "its interface is none" in message


def test_a_library_without_its_module_is_refused(checkout, tmp_path):
    named = put(tmp_path / "named", module=None)
    assert f"ImportError: {named} has no {MODULE.name} beside it" in import_in(checkout, named)


def test_a_module_of_another_library_is_refused(checkout, tmp_path):
    (tmp_path / "text").write_text("text")
    built = put(checkout / "build" / "cpu" / "lib", module=tmp_path / "text")
    assert f"ImportError: {built.parent / MODULE.name} does not fit {built}: " in import_in(checkout)


def test_a_second_library_of_operators_is_not_loaded(checkout, tmp_path):
    other = put(tmp_path / "other")
    built = put(checkout / "build" / "cpu" / "lib")
    before = f"import torch; torch.ops.load_library({str(other)!r})"
    assert f"ImportError: {other} is loaded already, and {built} would register" in import_in(checkout, before=before)
    before = f"import torch; torch.ops.load_library({str(built)!r})"
    assert import_in(checkout, before=before) == f"{built.parent / MODULE.name} {built}"


def test_the_stub_names_what_the_module_has():
    stub = ast.parse((Path(prulong.__file__).parent / "_C.pyi").read_text())
    named = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    named |= {node.target.id for node in stub.body if isinstance(node, ast.AnnAssign)}
    assert named == {name for name in dir(prulong._C) if not name.startswith("__")}


def test_named_library_that_is_no_library(checkout, tmp_path):
    (tmp_path / "text.so").write_text("text")
    assert f"ImportError: {tmp_path / 'text.so'} does not load into torch" in import_in(checkout, tmp_path / "text.so")
