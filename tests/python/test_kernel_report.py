# SPDX-License-Identifier: MIT
"""No kernel spills registers, and ptxas serialises no matrix product."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import kernel_report  # noqa: E402

PRINTED = """ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to \
insufficient register resources for the wgmma pipeline in the function '_Z6secondv'
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5firstv' for 'sm_90a'
ptxas info    : Function properties for _Z5firstv
    88 bytes stack frame, 124 bytes spill stores, 172 bytes spill loads
ptxas info    : Used 168 registers, used 16 barriers, 88 bytes cumulative stack size
ptxas info    : Compiling entry function '_Z6secondv' for 'sm_90a'
ptxas info    : Function properties for _Z6secondv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8192 bytes smem
ptxas info    : Compiling entry function '_Z5thirdv' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers
"""


def test_faults_are_seen():
    first, second, third = kernel_report.parse("a.cu", PRINTED)
    assert (first.registers, first.spilled, first.notes) == (168, 296, [])
    assert (second.registers, second.static_shared, second.spilled) == (40, 8192, 0)
    assert len(second.notes) == 1 and "C7510" in second.notes[0]
    assert first.faults and second.faults and not third.faults


def test_kernels_have_no_faults(bin_folder):
    kernels = kernel_report.report(bin_folder.parent)
    assert len(kernels) >= 10
    assert any("forward" in kernel.source for kernel in kernels)
    assert all(kernel.registers > 0 for kernel in kernels)
    assert {kernel.name: kernel.faults for kernel in kernels if kernel.faults} == {}
