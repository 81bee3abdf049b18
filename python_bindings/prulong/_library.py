# SPDX-License-Identifier: MIT
"""Finds and loads the compiled files: libprulong_ops.so, which registers torch.ops.prulong.*, and the module _C beside it.

They are looked for as a pair in one folder: that of $PRULONG_OPS_LIBRARY if it is set; else the package's own, where an
installed package has them; else the build/*/lib of the checkout, the newest first. A copy in the package that is older
than a build of the checkout is refused, and so is whatever was built for another version or interface.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

VERSION = "0.1.0"

_PACKAGE = Path(__file__).resolve().parent
_LIBRARY = "libprulong_ops.so"
_MODULE = "_C" + importlib.machinery.EXTENSION_SUFFIXES[0]
_REMEDY = "build again (scripts/setup.sh), or set PRULONG_OPS_LIBRARY to the library of this version"


def interface() -> str:
    """What the package needs of the compiled files: they carry what they were built for (cmake/Interface.cmake)."""
    digests = (hashlib.sha256((_PACKAGE / name).read_bytes()).hexdigest()[:8] for name in ("_C.pyi", "ops.py"))
    return "-".join((VERSION, *digests))


def find() -> Path:
    """The library of operators; its module lies beside it."""
    named = os.environ.get("PRULONG_OPS_LIBRARY")
    if named:
        library = Path(named).absolute()
        if not library.is_file():
            raise ImportError(f"PRULONG_OPS_LIBRARY names {named}, which is not a file")
        return library
    own = _PACKAGE / _LIBRARY
    builds = _PACKAGE.parent.parent.glob(f"build/*/lib/{_LIBRARY}")
    builds = [library for library in builds if (library.parent / _MODULE).is_file()]
    newest = max(builds, key=lambda library: library.stat().st_mtime, default=None)
    if own.is_file() and (_PACKAGE / _MODULE).is_file():
        if newest and newest.stat().st_mtime > own.stat().st_mtime:
            raise ImportError(f"{own} is older than {newest}: copy that and its {_MODULE} over it, or remove it")
        return own
    if newest:
        return newest
    raise ImportError(
        f"{_LIBRARY} and {_MODULE} are not built (looked in {_PACKAGE} and {_PACKAGE.parent.parent}/build/*/lib): run "
        "scripts/setup.sh in the checkout, or set PRULONG_OPS_LIBRARY to the library"
    )


def load() -> ModuleType:
    """Loads the library into torch, once in a process, and returns the module over it."""
    library = find()
    import torch  # after find: without the library the answer comes at once

    for other in torch.ops.loaded_libraries:
        if Path(other).name == _LIBRARY and not os.path.samefile(other, library):
            raise ImportError(f"{other} is loaded already, and {library} would register the same operators again")
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise ImportError(
            f"{library} does not load into torch {torch.__version__} (it was built against another?): {error}"
        ) from error
    _check(library, _interface_of(library))
    file = library.parent / _MODULE
    if not file.is_file():
        raise ImportError(f"{library} has no {_MODULE} beside it: {_REMEDY}")
    spec = importlib.util.spec_from_file_location("prulong._C", file)
    try:
        module = importlib.util.module_from_spec(spec)  # it needs a libprulong_ops.so, and takes the one that is loaded
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ImportError(f"{file} does not fit {library}: {error}; {_REMEDY}") from error
    _check(file, module.interface)
    sys.modules["prulong._C"] = module
    return module


def _interface_of(library: Path) -> str:
    try:
        read = ctypes.CDLL(str(library)).prulong_interface
    except AttributeError:
        return "none"
    read.restype = ctypes.c_char_p
    return read().decode()


def _check(file: Path, found: str) -> None:
    if found != interface():
        raise ImportError(
            f"{file} was not built for {_PACKAGE}: its interface is {found}, the package needs {interface()}; {_REMEDY}"
        )
