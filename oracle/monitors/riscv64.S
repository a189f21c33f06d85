# The RISC-V monitor: stays in M-mode and asks the hypervisor extension to translate.
#
# The contract is in ../src/contract.rs. Operation 1 enters VS- or VU-mode by MRET with
# mstatus.MPV=1; 0x10 HLV.D, 0x11 HSV.D and 0x12 HLVX.WU need no guest code; 0x20 writes hgatp and
# vsatp and reads them back. medeleg is 0, so that every trap comes here.
#
# state: 1 pc 2 a0 3 a1 4 hgatp 5 vsatp 6 1 for VS, 0 for VU 7 vsstatus 8 hstatus 9 menvcfg
#        10 henvcfg 11 further bits of mstatus
# answer: 0 0x10 trap of the guest, 0x11 trap here, 0x100 done 1 mcause 2 mtval 3 mtval2 4 mtinst
#         5 a1 6 mepc 7 mstatus
.option norelax
.globl _start
.equ HDR, 0x80400000
_start:
  csrr t0, mhartid
1: bnez t0, 1b
  la t0, trap
  csrw mtvec, t0
  csrw mie, zero
  csrw medeleg, zero
  csrw mideleg, zero
  li t0, -1
  csrw 0x3B0, t0          # pmpaddr0: all of memory
  li t0, 0x1f
  csrw 0x3A0, t0          # pmpcfg0: NAPOT, RWX
  li s0, HDR
  ld t0, 0(s0)
  li t1, 0x31444d4354414c53
  li a0, 0xE0
  bne t0, t1, fail
  li t0, 1
  sd t0, 40(s0)
  csrr t0, misa
  sd t0, 48(s0)
  srli t0, t0, 7
  andi t0, t0, 1
  li a0, 0xE1
  beqz t0, fail           # no H
  li t0, -1
  csrw 0x30A, t0
  csrr t0, 0x30A
  sd t0, 56(s0)           # menvcfg bits that exist
  ld s3, 8(s0)
  ld s1, 16(s0)
  ld s2, 24(s0)
next:
  beqz s3, done
  addi s3, s3, -1
  li s0, HDR
  sd s3, 0xD8(s0)         # commands not yet begun
  mv s4, s1
  lw s6, 0(s4)
  lwu s5, 4(s4)
  beqz s6, done
  addi t0, s4, 128
  la t1, saved
  mv t2, s5
1: beqz t2, 2f
  ld t3, 0(t0)
  ld t4, 0(t3)
  sd t4, 0(t1)
  ld t4, 8(t0)
  sd t4, 0(t3)
  addi t0, t0, 16
  addi t1, t1, 8
  addi t2, t2, -1
  j 1b
2: sd zero, 0(s2)
  sd zero, 8(s2)
  ld t0, 32(s4)
  csrw 0x680, t0          # hgatp
  ld t0, 40(s4)
  csrw 0x280, t0          # vsatp
  li t0, 0x20
  beq s6, t0, op_csr
  ld t0, 56(s4)
  csrw 0x200, t0          # vsstatus
  ld t0, 64(s4)
  csrw 0x600, t0          # hstatus
  ld t0, 72(s4)
  csrw 0x30A, t0          # menvcfg
  ld t0, 80(s4)
  csrw 0x60A, t0          # henvcfg
  csrw 0x34B, zero        # mtval2
  csrw 0x34A, zero        # mtinst
  csrw mtval, zero
  .word 0x62000073        # hfence.gvma
  .word 0x22000073        # hfence.vvma
  sfence.vma
  la t0, vars
  sd s1, 0(t0)
  sd s2, 8(t0)
  sd s3, 16(t0)
  sd s4, 24(t0)
  sd s5, 32(t0)
  ld t1, 88(s4)
  csrs mstatus, t1
  li t0, 1
  beq s6, t0, op_run
  ld a0, 16(s4)
  ld a1, 24(s4)
  li t0, 0x10
  bne s6, t0, 2f
  .word 0x6c0545f3        # hlv.d a1,(a0)
  j hlv_ok
2: li t0, 0x11
  bne s6, t0, 3f
  .word 0x6eb54073        # hsv.d a1,(a0)
  j hlv_ok
3: .word 0x683545f3       # hlvx.wu a1,(a0)
hlv_ok:
  li t0, 0x100
  sd t0, 0(s2)
  sd a1, 40(s2)
  j after
op_csr:
  csrr t1, 0x680
  sd t1, 8(s2)
  csrr t1, 0x280
  sd t1, 16(s2)
  li t0, 0x100
  sd t0, 0(s2)
  j after
op_run:
  li t1, 0x8000001800     # MPV, MPP
  csrc mstatus, t1
  li t1, 0x8000000000
  csrs mstatus, t1
  ld t1, 48(s4)
  beqz t1, 1f
  li t1, 0x800
  csrs mstatus, t1
1: ld t0, 8(s4)
  csrw mepc, t0
  ld a0, 16(s4)
  ld a1, 24(s4)
  mret
.align 4
trap:
  la t0, vars
  ld s1, 0(t0)
  ld s2, 8(t0)
  ld s3, 16(t0)
  ld s4, 24(t0)
  ld s5, 32(t0)
  csrr t1, mstatus
  srli t2, t1, 11
  andi t2, t2, 3
  li t3, 3
  li t4, 0x10
  bne t2, t3, 1f
  li t4, 0x11
1: sd t4, 0(s2)
  csrr t2, mcause
  sd t2, 8(s2)
  csrr t2, mtval
  sd t2, 16(s2)
  csrr t2, 0x34B
  sd t2, 24(s2)
  csrr t2, 0x34A
  sd t2, 32(s2)
  sd a1, 40(s2)
  csrr t2, mepc
  sd t2, 48(s2)
  sd t1, 56(s2)
after:                    # say what the words hold now, put back what they held
  ld t1, 88(s4)
  csrc mstatus, t1
  csrw 0x680, zero
  csrw 0x280, zero
  addi t0, s4, 128
  addi t1, s2, 128
  mv t2, s5
1: beqz t2, 2f
  ld t3, 0(t0)
  ld t4, 0(t3)
  sd t4, 0(t1)
  addi t0, t0, 16
  addi t1, t1, 8
  addi t2, t2, -1
  j 1b
2: mv s1, t0
  mv s2, t1
  la t1, saved
  slli t3, s5, 3
  add t1, t1, t3
  mv t2, s5
3: beqz t2, next
  addi t0, t0, -16
  addi t1, t1, -8
  ld t3, 0(t0)
  ld t4, 0(t1)
  sd t4, 0(t3)
  addi t2, t2, -1
  j 3b
done:
  li a0, 2
fail:
  li s0, HDR
  sd a0, 40(s0)
  li t0, 0x100000         # the finisher of QEMU's virt machine
  li t1, 0x5555
  sw t1, 0(t0)
1: wfi
  j 1b
.align 4
vars: .skip 64
saved: .skip 2048
