# SPDX-License-Identifier: MIT
"""No kernel spills registers, and ptxas serialises no matrix product."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
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


LISTED = """
		Function : _Z6secondv
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                           /* 0x00000a00ff017b82 */
                                                                                    /* 0x000fe20000000800 */
        /*0010*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR40], RZ, !UPT ;  /* 0x0 */
        /*0020*/              @!P0 BRA 0x50 ;                                       /* 0x0 */
        /*0030*/                   FSEL R1, R1, -INF , P0 ;                         /* 0x0 */
        /*0040*/                   MUFU.EX2 R2, R3 ;                                /* 0x0 */
        /*0050*/                   HGMMA.64x64x16.F32.BF16 R88, R152, gdesc[UR12].tnspB, R88 ;  /* 0x0 */
        /*0060*/                   MUFU.EX2 R2, R3 ;                                /* 0x0 */
        /*0070*/                   STS.128 [R1], R4 ;                               /* 0x0 */
        /*0080*/               @P1 BRA 0x10 ;                                       /* 0x0 */
        /*0090*/                   NOP ;                                            /* 0x0 */
"""


def test_instructions_are_counted():
    instructions = kernel_report.parse_instructions(LISTED)["_Z6secondv"]
    counts = kernel_report.count_classes(instructions)
    assert (counts["all"], counts["wgmma"], counts["exp2"], counts["shared stores"]) == (9, 2, 2, 1)
    loop = kernel_report.main_loop(instructions)  # without the jumped-over exponential
    assert [i.address for i in loop] == [0x10, 0x20, 0x50, 0x60, 0x70, 0x80]
    clocks = kernel_report.loop_clocks(loop, consumers=2)
    assert clocks.issue == 12
    assert clocks.tensor == 2 * (64 + 32)
    assert clocks.exp2 == 2 * 8
    assert clocks.shared == 2 * (2048 + 4096 + 2048 + 4 * 32 * 16) // 128  # A and B, then B alone, then the store
    assert (clocks.limiter, clocks.tensor_share) == ("tensor cores", 1)


def test_table_has_every_kernel():
    kernels = kernel_report.parse("a.cu", PRINTED)
    kernels[1].instructions = kernel_report.parse_instructions(LISTED)["_Z6secondv"]
    lines = kernel_report.tables(kernels, {}).splitlines()
    assert sum(line.startswith("| a.cu |") for line in lines) == 3
    assert len({line.count("|") for line in lines[:5]}) == 1


def test_sizes_are_the_kernels_own(bin_folder):
    sizes = kernel_report.launch_sizes(bin_folder.parent)
    assert len(sizes) == 10
    assert all(0 < shared <= 232448 for _, shared in sizes.values())  # what a CTA of compute capability 9.0 can have


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
