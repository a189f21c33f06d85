// The AArch64 monitor: runs at EL2 with the MMU off and asks stage 1 and stage 2 to translate.
//
// The contract is in ../src/contract.rs. Operation 1 runs a guest at EL1 or EL0; 0x10.. are the AT
// instructions, which need no guest code. A stage-1 fault goes to the guest's own vectors, which
// hold HVC, so that ESR_EL1 and FAR_EL1 tell it; a stage-2 fault comes here.
//
// state: 1 ELR 2 X0 3 X1 4 SCTLR 5 TCR 6 TTBR0 7 TTBR1 8 MAIR 9 VTTBR 10 VTCR 11 HCR 12 SPSR 13 VBAR
// answer: 0 vector, or 0x100 for AT  1 ESR_EL2 2 FAR_EL2 3 HPFAR_EL2 4 ELR_EL2 5 X1 6 ESR_EL1
//         7 FAR_EL1 8 ELR_EL1 9 PAR_EL1 10 SPSR_EL2
.equ HDR, 0x40400000
.arch armv8.5-a
.text
.globl _start
_start:
    ldr x0, =vectors
    msr vbar_el2, x0
    ldr x0, =stack_top
    mov sp, x0
    mov x0, #0x33ff
    msr cptr_el2, x0
    msr hstr_el2, xzr
    mov x0, #3
    msr cnthctl_el2, x0
    mrs x0, midr_el1
    msr vpidr_el2, x0
    mrs x0, mpidr_el1
    msr vmpidr_el2, x0
    isb
    ldr x20, =HDR
    ldr x0, [x20]
    ldr x1, =0x31444d4354414c53   // 'SLATCMD1'
    cmp x0, x1
    mov x0, #0xE0
    b.ne fail
    mov x0, #1
    str x0, [x20, #40]
    mrs x0, CurrentEL
    cmp x0, #8
    mov x0, #0xE1
    b.ne fail
    mrs x0, id_aa64mmfr0_el1
    str x0, [x20, #48]
    mrs x0, id_aa64mmfr1_el1
    str x0, [x20, #56]
    mrs x0, s3_0_c0_c7_2          // id_aa64mmfr2_el1
    str x0, [x20, #64]
    mrs x0, s3_0_c0_c7_3          // id_aa64mmfr3_el1
    str x0, [x20, #72]
    ldr x23, [x20, #8]            // commands left
    ldr x21, [x20, #16]           // next command
    ldr x22, [x20, #24]           // next answer
next:
    cbz x23, done
    sub x23, x23, #1
    ldr x20, =HDR
    str x23, [x20, #0xD8]         // commands not yet begun
    mov x19, x21
    ldr w24, [x19]                // operation
    ldr w25, [x19, #4]            // touched words
    cbz w24, done
    add x1, x19, #128
    ldr x2, =saved
    mov w3, w25
1:  cbz w3, 2f
    ldp x4, x5, [x1], #16
    ldr x6, [x4]
    str x6, [x2], #8
    str x5, [x4]
    sub w3, w3, #1
    b 1b
2:  ldr x0, [x19, #32]
    msr sctlr_el1, x0
    ldr x0, [x19, #40]
    msr tcr_el1, x0
    ldr x0, [x19, #48]
    msr ttbr0_el1, x0
    ldr x0, [x19, #56]
    msr ttbr1_el1, x0
    ldr x0, [x19, #64]
    msr mair_el1, x0
    ldr x0, [x19, #72]
    msr vttbr_el2, x0
    ldr x0, [x19, #80]
    msr vtcr_el2, x0
    ldr x0, [x19, #88]
    msr hcr_el2, x0
    ldr x0, [x19, #104]
    msr vbar_el1, x0
    mov x0, #0x300000
    msr cpacr_el1, x0
    msr esr_el1, xzr
    msr far_el1, xzr
    msr par_el1, xzr
    msr hpfar_el2, xzr
    msr far_el2, xzr
    dsb ish
    isb
    tlbi alle1
    dsb ish
    isb
    ldr x0, =vars                 // AT may end in an exception, like a run
    stp x19, x21, [x0]
    stp x22, x23, [x0, #16]
    str x25, [x0, #32]
    cmp w24, #1
    b.eq op_run
    sub w1, w24, #0x10
    cmp w1, #5
    b.hi done
    ldr x0, [x19, #16]
    adr x2, at_tab
    add x2, x2, x1, lsl #3
    br x2
at_tab:
    at s12e1r, x0
    b at_done
    at s12e1w, x0
    b at_done
    at s12e0r, x0
    b at_done
    at s12e0w, x0
    b at_done
    at s1e1r, x0
    b at_done
    at s1e1w, x0
    b at_done
at_done:
    isb
    mov x0, #0x100
    str x0, [x22]
    mrs x0, par_el1
    str x0, [x22, #72]
    b after
op_run:
    ldr x0, [x19, #8]
    msr elr_el2, x0
    ldr x0, [x19, #96]
    msr spsr_el2, x0
    ldr x1, [x19, #24]
    ldr x0, [x19, #16]
    isb
    eret
exit_common:                      // x30: which vector
    ldr x2, =vars
    ldp x19, x21, [x2]
    ldp x22, x23, [x2, #16]
    ldr x25, [x2, #32]
    str x30, [x22]
    str x1, [x22, #40]
    mrs x0, esr_el2
    str x0, [x22, #8]
    mrs x0, far_el2
    str x0, [x22, #16]
    mrs x0, hpfar_el2
    str x0, [x22, #24]
    mrs x0, elr_el2
    str x0, [x22, #32]
    mrs x0, esr_el1
    str x0, [x22, #48]
    mrs x0, far_el1
    str x0, [x22, #56]
    mrs x0, elr_el1
    str x0, [x22, #64]
    mrs x0, spsr_el2
    str x0, [x22, #80]
    ldr x0, =stack_top
    mov sp, x0
after:                            // say what the words hold now, put back what they held
    msr hcr_el2, xzr
    isb
    add x1, x19, #128
    add x2, x22, #128
    mov w3, w25
1:  cbz w3, 2f
    ldr x4, [x1], #16
    ldr x5, [x4]
    str x5, [x2], #8
    sub w3, w3, #1
    b 1b
2:  mov x21, x1
    mov x22, x2
    ldr x2, =saved
    add x2, x2, x25, lsl #3
    mov w3, w25
3:  cbz w3, next
    ldr x4, [x1, #-16]!
    ldr x5, [x2, #-8]!
    str x5, [x4]
    sub w3, w3, #1
    b 3b
done:
    mov x0, #2
fail:
    ldr x20, =HDR
    str x0, [x20, #40]
    dsb sy
    ldr x0, =0x84000008           // PSCI SYSTEM_OFF
    smc #0
1:  wfi
    b 1b
.macro vec kind
    .balign 0x80
    mov x30, #\kind
    b exit_common
.endm
    .balign 0x800
vectors:
    vec 0x80                      // 0x80..0x87: the monitor itself faulted
    vec 0x81
    vec 0x82
    vec 0x83
    vec 0x84
    vec 0x85
    vec 0x86
    vec 0x87
    vec 0x10                      // the guest, AArch64: synchronous, IRQ, FIQ, SError
    vec 0x11
    vec 0x12
    vec 0x13
    vec 0x20
    vec 0x21
    vec 0x22
    vec 0x23
    .ltorg
    .balign 16
vars: .skip 64
saved: .skip 2048
    .skip 4096
stack_top:
