@ The ARMv7-A monitor: runs in Hyp mode (Virtualization Extensions) with the MMU off.
@
@ The contract is in ../src/contract.rs. Operation 1 runs a guest at PL1 or PL0; 0x10.. are the
@ address translation operations, which need no guest code. A stage-1 abort goes to the guest's own
@ vectors, which hold HVC, so that DFSR or IFSR tell it; a stage-2 abort comes here.
@
@ state: 1 PC 2 R0 3 R1 4 SCTLR 5 TTBCR 6 TTBR0 7 TTBR1 8 MAIR0, MAIR1 9 VTTBR 10 VTCR 11 HCR
@        12 SPSR 13 VBAR 14 DACR 15 TTBCR2 (not written where it is zero: only Armv8 has it)
@ answer: 0 kind (0x10 the guest left, 0x80 the monitor took an abort, 0x100 AT) 1 HSR 2 HDFAR 3 HIFAR 4 HPFAR 5 R1 6 ELR_hyp 7 DFSR 8 DFAR 9 IFSR 10 IFAR 11 PAR
@         12 SPSR
.arch armv7-a
.arch_extension virt
.arch_extension sec
.arm
.equ HDR, 0x40400000
.globl _start
_start:
    ldr r0, =vectors
    mcr p15,4,r0,c12,c0,0        @ HVBAR
    mov r0,#0
    mcr p15,4,r0,c1,c1,2         @ HCPTR
    mcr p15,4,r0,c1,c1,3         @ HSTR
    mcr p15,4,r0,c1,c1,1         @ HDCR
    ldr sp,=stack_top
    isb
    ldr r4,=HDR
    ldr r0,[r4]
    ldr r1,=0x54414c53           @ 'SLAT'
    cmp r0,r1
    mov r0,#0xE0
    bne fail
    mov r0,#1
    str r0,[r4,#40]
    mrs r0,cpsr
    and r0,r0,#0x1f
    cmp r0,#0x1a
    mov r0,#0xE1
    bne fail
    mrc p15,0,r0,c0,c1,4         @ ID_MMFR0
    str r0,[r4,#48]
    mrc p15,0,r0,c0,c1,7         @ ID_MMFR3
    str r0,[r4,#56]
    mrc p15,0,r0,c0,c1,1         @ ID_PFR1
    str r0,[r4,#64]
    mrc p15,0,r0,c0,c2,6         @ ID_MMFR4, zero before Armv8
    str r0,[r4,#72]
    ldr r7,[r4,#8]               @ commands left
    ldr r5,[r4,#16]              @ next command
    ldr r6,[r4,#24]              @ next answer
next:
    cmp r7,#0
    beq done
    sub r7,r7,#1
    ldr r4,=HDR
    str r7,[r4,#0xD8]            @ commands not yet begun
    mov r8,r5
    ldr r9,[r8,#4]               @ touched words
    ldr r0,[r8]
    cmp r0,#0
    beq done
    add r10,r8,#128
    ldr r11,=saved
    mov r12,r9
1:  cmp r12,#0
    beq 2f
    ldr r4,[r10]
    ldrd r0,r1,[r4]
    strd r0,r1,[r11],#8
    ldrd r0,r1,[r10,#8]
    strd r0,r1,[r4]
    add r10,r10,#16
    sub r12,r12,#1
    b 1b
2:  ldr r0,[r8,#32]
    mcr p15,0,r0,c1,c0,0         @ SCTLR
    ldr r0,[r8,#40]
    mcr p15,0,r0,c2,c0,2         @ TTBCR
    ldrd r0,r1,[r8,#48]
    mcrr p15,0,r0,r1,c2          @ TTBR0
    ldrd r0,r1,[r8,#56]
    mcrr p15,1,r0,r1,c2          @ TTBR1
    ldrd r0,r1,[r8,#64]
    mcr p15,0,r0,c10,c2,0        @ MAIR0
    mcr p15,0,r1,c10,c2,1        @ MAIR1
    ldr r0,[r8,#112]
    mcr p15,0,r0,c3,c0,0         @ DACR
    ldr r0,[r8,#120]
    cmp r0,#0
    mcrne p15,0,r0,c2,c0,3       @ TTBCR2
    ldrd r0,r1,[r8,#72]
    mcrr p15,6,r0,r1,c2          @ VTTBR
    ldr r0,[r8,#80]
    mcr p15,4,r0,c2,c1,2         @ VTCR
    ldr r0,[r8,#104]
    mcr p15,0,r0,c12,c0,0        @ VBAR
    mov r0,#0
    mcr p15,0,r0,c5,c0,0         @ DFSR
    mcr p15,0,r0,c5,c0,1         @ IFSR
    mcr p15,0,r0,c6,c0,0         @ DFAR
    mcr p15,0,r0,c6,c0,2         @ IFAR
    mcr p15,4,r0,c6,c0,4         @ HPFAR
    mov r1,#0
    mcrr p15,0,r0,r1,c7          @ PAR
    ldr r0,[r8,#88]
    mcr p15,4,r0,c1,c1,0         @ HCR
    isb
    mov r0,#0
    mcr p15,4,r0,c8,c7,4         @ TLBIALLNSNH
    dsb
    isb
    ldr r0,=vars                 @ AT may end in an abort, like a run
    str r5,[r0]
    str r6,[r0,#4]
    str r7,[r0,#8]
    str r8,[r0,#12]
    str r9,[r0,#16]
    ldr r1,[r8]
    cmp r1,#1
    beq op_run
    ldr r0,[r8,#16]
    cmp r1,#0x10
    mcreq p15,0,r0,c7,c8,4       @ ATS12NSOPR
    cmp r1,#0x11
    mcreq p15,0,r0,c7,c8,5       @ ATS12NSOPW
    cmp r1,#0x12
    mcreq p15,0,r0,c7,c8,6       @ ATS12NSOUR
    cmp r1,#0x13
    mcreq p15,0,r0,c7,c8,7       @ ATS12NSOUW
    isb
    mrrc p15,0,r2,r3,c7          @ PAR
    strd r2,r3,[r6,#88]
    mov r0,#0x100
    str r0,[r6]
    b after
op_run:
    ldr r0,[r8,#8]
    msr ELR_hyp,r0
    ldr r0,[r8,#96]
    msr spsr_cxsf,r0
    ldr r1,[r8,#24]
    ldr r0,[r8,#16]
    eret
hown:                             @ the monitor's own AT aborted
    mov r3,#0x80
    b 1f
hexit:
    mov r3,#0x10
1:  ldr r2,=vars
    ldr r5,[r2]
    ldr r6,[r2,#4]
    ldr r7,[r2,#8]
    ldr r8,[r2,#12]
    ldr r9,[r2,#16]
    str r3,[r6]
    str r1,[r6,#40]
    mrc p15,4,r0,c5,c2,0          @ HSR
    str r0,[r6,#8]
    mrc p15,4,r0,c6,c0,0          @ HDFAR
    str r0,[r6,#16]
    mrc p15,4,r0,c6,c0,2          @ HIFAR
    str r0,[r6,#24]
    mrc p15,4,r0,c6,c0,4          @ HPFAR
    str r0,[r6,#32]
    mrs r0,ELR_hyp
    str r0,[r6,#48]
    mrc p15,0,r0,c5,c0,0
    str r0,[r6,#56]
    mrc p15,0,r0,c6,c0,0
    str r0,[r6,#64]
    mrc p15,0,r0,c5,c0,1
    str r0,[r6,#72]
    mrc p15,0,r0,c6,c0,2
    str r0,[r6,#80]
    mrs r0,spsr
    str r0,[r6,#96]
    ldr sp,=stack_top
after:                            @ say what the words hold now, put back what they held
    mov r0,#0
    mcr p15,4,r0,c1,c1,0          @ HCR
    isb
    add r10,r8,#128
    add r11,r6,#128
    mov r12,r9
1:  cmp r12,#0
    beq 2f
    ldr r4,[r10],#16
    ldrd r0,r1,[r4]
    strd r0,r1,[r11],#8
    sub r12,r12,#1
    b 1b
2:  mov r5,r10
    mov r6,r11
    ldr r11,=saved
    add r11,r11,r9,lsl #3
    mov r12,r9
3:  cmp r12,#0
    beq next
    ldr r4,[r10,#-16]!
    ldrd r0,r1,[r11,#-8]!
    strd r0,r1,[r4]
    sub r12,r12,#1
    b 3b
done:
    mov r0,#2
fail:
    ldr r4,=HDR
    str r0,[r4,#40]
    dsb
    ldr r0,=0x84000008            @ PSCI SYSTEM_OFF
    smc #0
1:  wfi
    b 1b
hmon:                             @ the monitor itself faulted
    mov r0,#0xE5
    b fail
.ltorg
.balign 32
vectors:
    b hmon                        @ reset
    b hmon                        @ undefined instruction
    b hmon                        @ HVC from Hyp mode
    b hmon                        @ prefetch abort
    b hown                        @ data abort
    b hexit                       @ Hyp trap: HVC or abort of the guest
    b hmon                        @ IRQ
    b hmon                        @ FIQ
.balign 16
vars: .skip 64
saved: .skip 2048
 .skip 4096
stack_top:
