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
import torch

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


def library_of(checkout, monkeypatch, named=""):
    """_library of the checkout's package, as a process would have it that has loaded nothing."""
    monkeypatch.setenv("PRULONG_OPS_LIBRARY", str(named))
    monkeypatch.setattr(torch.ops, "loaded_libraries", set())
    file = checkout / "python_bindings" / "prulong" / "_library.py"
    spec = importlib.util.spec_from_file_location("library_of_checkout", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refusal(call):
    with pytest.raises(ImportError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


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


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """A function that compiles a library with one function and no operators."""
    if shutil.which("g++") is None:
        pytest.skip("no compiler")
    folder = tmp_path_factory.mktemp("stand_in")

    def compiled(name, interface):
        (folder / "source.cpp").write_text(f'extern "C" const char* {name}() {{ return "{interface}"; }}\n')
        library = folder / f"{name}-{interface}.so"
        subprocess.run(["g++", "-shared", "-fPIC", "-o", library, folder / "source.cpp"], check=True)
        return library

    return compiled


def test_not_built(checkout, monkeypatch):
    message = refusal(library_of(checkout, monkeypatch).find)
    assert message.startswith(f"libprulong_ops.so and {MODULE.name} are not built (looked in {checkout}")
    assert "scripts/setup.sh" in message and "PRULONG_OPS_LIBRARY" in message
    assert import_in(checkout) == "ImportError: " + message


def test_the_named_library_goes_before_all_others(checkout, tmp_path, monkeypatch):
    put(checkout / "python_bindings" / "prulong")
    put(checkout / "build" / "cpu" / "lib")
    named = put(tmp_path / "named", 1000)
    assert library_of(checkout, monkeypatch, named).find() == named
    assert import_in(checkout, named) == f"{named.parent / MODULE.name} {named}"  # each once
    message = refusal(library_of(checkout, monkeypatch, tmp_path / "none.so").find)
    assert message == f"PRULONG_OPS_LIBRARY names {tmp_path / 'none.so'}, which is not a file"


def test_the_packages_own_library_goes_before_a_build_that_is_no_newer(checkout, monkeypatch):
    own = put(checkout / "python_bindings" / "prulong", 100)
    put(checkout / "build" / "cpu" / "lib", 200)
    assert library_of(checkout, monkeypatch).find() == own


def test_a_copy_older_than_a_build_is_refused(checkout, monkeypatch):
    own = put(checkout / "python_bindings" / "prulong", 200)
    built = put(checkout / "build" / "cpu" / "lib", 100)
    assert refusal(library_of(checkout, monkeypatch).find) == (
        f"{own} is older than {built}: copy that and its {MODULE.name} over it, or remove it"
    )


@pytest.mark.parametrize("newer", ["cpu", "cuda"])
def test_of_two_builds_the_newer_is_taken(checkout, newer, monkeypatch):
    built = {name: put(checkout / "build" / name / "lib", 100 if name == newer else 200) for name in ("cpu", "cuda")}
    put(checkout / "build" / "cpu-asan" / "lib", 0, module=None)  # one that no Python loads
    assert library_of(checkout, monkeypatch).find() == built[newer]


def test_what_was_built_for_another_package_is_refused(checkout, monkeypatch):
    with (checkout / "python_bindings" / "prulong" / "ops.py").open("a") as file:
        file.write("# another interface\n")
    message = refusal(library_of(checkout, monkeypatch, LIBRARY).load)
    assert message.startswith(f"{LIBRARY} was not built for {checkout / 'python_bindings' / 'prulong'}: its interface is ")
    assert message.endswith("build again (scripts/setup.sh), or set PRULONG_OPS_LIBRARY to the library of this version")


def test_a_library_that_does_not_say_its_interface_is_refused(checkout, monkeypatch, stand_in):
    old = stand_in("older", "1")
    message = refusal(library_of(checkout, monkeypatch, old).load)
    assert message.startswith(f"{old} was not built for ") and "its interface is none, the package needs " in message


def test_a_library_without_its_module_is_refused(checkout, monkeypatch, tmp_path, stand_in):
    alike = stand_in("prulong_interface", _library.interface())
    named = put(tmp_path / "named", library=alike, module=None)
    assert refusal(library_of(checkout, monkeypatch, named).load).startswith(f"{named} has no {MODULE.name} beside it: ")
    (named.parent / MODULE.name).write_text("text")
    message = refusal(library_of(checkout, monkeypatch, named).load)
    assert message.startswith(f"{named.parent / MODULE.name} does not fit {named}: ") and "scripts/setup.sh" in message


def test_a_file_that_is_no_library_is_refused(checkout, monkeypatch, tmp_path):
    (tmp_path / "text.so").write_text("text")
    message = refusal(library_of(checkout, monkeypatch, tmp_path / "text.so").load)
    assert message.startswith(f"{tmp_path / 'text.so'} does not load into torch ")


def test_a_second_library_of_operators_is_not_loaded(checkout, monkeypatch, tmp_path):
    other = put(tmp_path / "other")
    library = library_of(checkout, monkeypatch, other)
    monkeypatch.setattr(torch.ops, "loaded_libraries", {str(LIBRARY)})
    message = refusal(library.load)
    assert message == f"{LIBRARY} is loaded already, and {other} would register the same operators again"
    built = put(checkout / "build" / "cpu" / "lib")
    before = f"import torch; torch.ops.load_library({str(built)!r})"  # the same one may be loaded before
    assert import_in(checkout, before=before) == f"{built.parent / MODULE.name} {built}"


def test_the_stub_names_what_the_module_has():
    stub = ast.parse((Path(prulong.__file__).parent / "_C.pyi").read_text())

    def names(body):
        return {node.target.id if isinstance(node, ast.AnnAssign) else node.name for node in body
                if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AnnAssign))}

    def public(names):
        return {name for name in names if not name.startswith(("__", "_pybind11"))}

    assert names(stub.body) == public(dir(prulong._C))
    for node in stub.body:
        if isinstance(node, ast.ClassDef):
            assert public(names(node.body)) == public(vars(getattr(prulong._C, node.name)))
