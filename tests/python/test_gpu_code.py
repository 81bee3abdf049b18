# SPDX-License-Identifier: MIT
"""For which GPUs the operators' library holds code: portable kernels for all that PyTorch's attention serves.

Reads the containers that nvcc embeds, whose format is undocumented: a head of 16 bytes, then entries with a head of their own
that names kind (PTX or ELF) and architecture. cuobjdump --list-elf says the same where there is one.
"""

import mmap
import struct
from typing import NamedTuple

import pytest

from prulong import _library

PTX, ELF = 1, 2
PORTABLE = {(ELF, sm) for sm in (80, 86, 89, 90, 100, 120)} | {(PTX, 80)}
PORTABLE_KERNELS = [
    b"append_kv",
    b"swiglu",
    b"swiglu_gradient",
    b"rope",
    b"gate_mix",
    b"gate_split",
    b"gate_gradient_sum",
    b"softmax_merge",
]


class Container(NamedTuple):
    """What one source was compiled to."""

    code: set[tuple[int, int]]  # kind, architecture
    binaries: dict[int, bytes]  # ELF by architecture


def containers(content) -> list[Container]:
    found, place = [], content.find(b"\x50\xed\x55\xba")
    while place >= 0:
        _, version, head, size = struct.unpack_from("<IHHQ", content, place)
        assert (version, head) == (1, 16), "another format: see what this nvcc changed"
        container, entry, end = Container(set(), {}), place + head, place + head + size
        while entry < end:
            kind, _, head, size, _, _, _, sm = struct.unpack_from("<HHIQIIII", content, entry)
            container.code.add((kind, sm))
            if kind == ELF:
                container.binaries[sm] = content[entry + head : entry + head + size]
            entry += head + size
        found.append(container)
        place = content.find(b"\x50\xed\x55\xba", end)
    return found


@pytest.fixture(scope="module")
def code() -> list[Container]:
    with _library.find().open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return containers(content)


def test_portable_kernels_are_compiled_for_every_gpu(code):
    for kernel in PORTABLE_KERNELS:
        homes = [container for container in code if any(kernel in binary for binary in container.binaries.values())]
        assert homes, kernel
        for home in homes:
            assert home.code >= PORTABLE, f"{kernel.decode()}: {sorted(PORTABLE - home.code)} missing"
            assert all(kernel in home.binaries[sm] for kind, sm in PORTABLE if kind == ELF), kernel


def test_hopper_kernels_are_compiled_for_hopper_alone(code):
    others = [container for container in code if not container.code >= PORTABLE]
    assert others
    for container in others:
        assert {sm for kind, sm in container.code} == {90}
