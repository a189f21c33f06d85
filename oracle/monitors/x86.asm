; The x86 monitor: one 64 KiB ROM that asks the CPU under it to translate.
;
; It runs from the reset vector without a BIOS, as QEMU's -bios and as Bochs' romimage, and uses
; VMX with EPT where CPUID offers VMX, else SVM with nested paging. The contract is in
; ../src/contract.rs: a header at HDR, a queue of commands, a row of answers, all in memory. Where
; memory cannot be shared with the harness (Bochs) the header comes from the first ATA disk, which
; also takes the answers back.
;
; A guest never handles an exception: every vector is intercepted, so that a page fault of stage 1
; ends the run like a fault of stage 2 does.

HDR     equ 0x100000
H_NCMD  equ HDR+8
H_CMDS  equ HDR+16
H_ANS   equ HDR+24
H_MODE  equ HDR+32              ; 0: 4-level host, 1: 5-level, 2: PAE, 3: 32-bit (SVM only)
H_STAT  equ HDR+40              ; out: 1 started, 2 done, 0xE0.. failed
H_INFO  equ HDR+48              ; out: CPUID, VMX capability registers
H_TOP   equ HDR+0xF0            ; end of RAM, to clear it where the harness does not own it
H_NSEG  equ HDR+0xF8            ; segments: PA, first sector, sectors
H_SEGS  equ HDR+0x100
H_BACK  equ HDR+0xE0            ; first sector that takes the answers, and how many
H_BACKN equ HDR+0xE8

PML5    equ 0x1000
PML4    equ 0x2000
PDPT    equ 0x3000
PD0     equ 0x4000              ; 4 pages
VMXONR  equ 0x8000
VMCS    equ 0x9000
VMCB    equ 0xA000
HSAVE   equ 0xB000
GDTR_   equ 0xC000
VARS    equ 0xD000
TSS     equ 0xE000
PAEPDPT equ 0xF000
PD32    equ 0x10000
SAVED   equ 0x11000             ; what the touched words held before the run
STK     equ 0x1F000

V_CMD   equ VARS+0
V_ANS   equ VARS+8
V_LEFT  equ HDR+0xD8            ; out: commands not yet begun
V_VMX   equ VARS+24
V_FIRST equ VARS+32
V_DISK  equ VARS+56
V_PKU   equ VARS+64
V_PKS   equ VARS+72
V_DESC  equ VARS+0x80           ; operands of VMXON, VMCLEAR, INVEPT
V_CR4   equ VARS+0xA0           ; the monitor's own CR4 while the host mode is a legacy one

; words of a command
C_OP    equ 0
C_NTCH  equ 4
C_RIP   equ 8
C_RSI   equ 16
C_RAX   equ 24
C_CR0   equ 32
C_CR3   equ 40
C_CR4   equ 48
C_EFER  equ 56
C_ROOT  equ 64
C_CSAR  equ 72
C_SSAR  equ 76
C_FLAGS equ 80
C_PKRU  equ 88
C_PKRS  equ 92
C_PDPTE equ 96
C_TOUCH equ 128
; words of an answer
A_EXIT  equ 0
A_INFO1 equ 8
A_GPA   equ 16
A_GLA   equ 24
A_INTR  equ 32
A_RAX   equ 40
A_RIP   equ 48
A_CR2   equ 56
A_IDTV  equ 64
A_TOUCH equ 128

ROMBASE equ 0xFFFF0000
%define R(x) (ROMBASE + (x) - $$)

section .text
org 0
bits 16
align 16
gdt:    dq 0
        dq 0x00CF9B000000FFFF   ; 08 32-bit code
        dq 0x00CF93000000FFFF   ; 10 data
        dq 0x00AF9B000000FFFF   ; 18 64-bit code
        dq 0x00CF93000000FFFF   ; 20 data
        dq 0x00008B0000000067 | (TSS << 16)   ; 28 busy TSS
        dq 0
gdt_end:
gdtr:   dw gdt_end-gdt-1
        dd R(gdt)
align 16
start16:
        cli
        o32 lgdt [cs:gdtr]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        jmp dword 0x08:R(start32)

bits 32
start32:
        mov ax, 0x10
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov fs, ax
        mov gs, ax
        mov esp, STK
        in al, 0x92             ; A20
        or al, 2
        out 0x92, al
        xor eax, eax
        mov edi, 0x1000
        mov ecx, (0x1F000-0x1000)/4
        cld
        rep stosd
        mov esi, R(gdt)
        mov edi, GDTR_+0x100
        mov ecx, gdt_end-gdt
        rep movsb
        mov word [GDTR_], gdt_end-gdt-1
        mov dword [GDTR_+2], GDTR_+0x100
        lgdt [GDTR_]
        ; identity map of 4 GiB, in every shape that a host mode may need
        mov dword [PML5], PML4+0x63
        mov dword [PML4], PDPT+0x63
        mov edi, PDPT
        mov ebx, PAEPDPT
        mov eax, PD0
        mov ecx, 4
.pdpt:  lea edx, [eax+0x63]
        mov [edi], edx
        lea edx, [eax+1]
        mov [ebx], edx
        add eax, 0x1000
        add edi, 8
        add ebx, 8
        loop .pdpt
        mov edi, PD0
        mov eax, 0xE3
        mov ecx, 2048
.pd:    mov [edi], eax
        add eax, 0x200000
        add edi, 8
        loop .pd
        mov edi, PD32
        mov eax, 0xE3
        mov ecx, 1024
.pd32:  mov [edi], eax
        add eax, 0x400000
        add edi, 4
        loop .pd32
        mov eax, cr4
        or eax, 0x620           ; PAE, OSFXSR, OSXMMEXCPT
        mov ebx, PML4
        cmp dword [HDR], 0x54414C53     ; 'SLAT': not there before a disk load
        jne .no57
        cmp dword [H_MODE], 1
        jne .no57
        or eax, 0x1000
        mov ebx, PML5
.no57:  mov cr4, eax
        mov cr3, ebx
        mov ecx, 0xC0000080
        rdmsr
        or eax, 0x900           ; LME, NXE
        wrmsr
        mov eax, cr0
        and eax, 0x9FFFFFFF
        or eax, 0x80010021      ; PG WP NE PE
        mov cr0, eax
        jmp dword 0x18:R(start64)

bits 64
default abs
start64:
        mov ax, 0x20
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov fs, ax
        mov gs, ax
        mov esp, STK
        mov rax, 'SLATCMD1'
        cmp [HDR], rax
        je have
        ; no header in memory: it is on the disk, and RAM is nobody's yet
        mov edi, HDR
        xor ebx, ebx
        mov ecx, 8
        call ata_read
        mov rax, 'SLATCMD1'
        cmp [HDR], rax
        jne bad_magic
        mov qword [V_DISK], 1
        mov edi, HDR+0x1000
        mov rcx, [H_TOP]
        sub rcx, rdi
        shr rcx, 3
        xor eax, eax
        rep stosq
        mov r12, [H_NSEG]
        mov r13d, H_SEGS
.seg:   test r12, r12
        jz have
        mov rdi, [r13]
        mov rbx, [r13+8]
        mov rcx, [r13+16]
        call ata_read
        add r13, 24
        dec r12
        jmp .seg
have:   mov qword [H_STAT], 1
        mov edi, H_INFO
        mov eax, 1
        cpuid
        mov [rdi], eax
        mov [rdi+4], ecx
        mov [rdi+8], edx
        mov eax, 0x80000008
        cpuid
        mov [rdi+12], eax
        mov eax, 0x80000001
        cpuid
        mov [rdi+16], edx
        mov [rdi+20], ecx
        xor eax, eax
        cpuid
        cmp eax, 7
        jb .no7
        mov eax, 7
        xor ecx, ecx
        cpuid
        mov [rdi+24], ebx
        mov [rdi+28], ecx
        bt ecx, 31
        jnc .nopks
        mov qword [V_PKS], 1
.nopks: bt ecx, 3
        jnc .no7
        mov qword [V_PKU], 1
        mov rax, cr4
        or eax, 1<<22           ; PKE: WRPKRU needs it; this host has no user page
        mov cr4, rax
.no7:   mov rax, [H_CMDS]
        mov [V_CMD], rax
        mov rax, [H_ANS]
        mov [V_ANS], rax
        mov rax, [H_NCMD]
        mov [V_LEFT], rax
        bt dword [H_INFO+4], 5
        jc vmx_init
        bt dword [H_INFO+20], 2
        jc svm_init
        mov eax, 0xE1           ; neither VMX nor SVM
        jmp fail
bad_magic:
        mov eax, 0xE0
fail:   mov [H_STAT], rax
        jmp finish
done:   mov qword [H_STAT], 2
finish: cmp qword [V_DISK], 0
        je .off
        ; the header with its status, then the answers
        mov esi, HDR
        xor ebx, ebx
        mov ecx, 8
        call ata_write
        mov rsi, [H_ANS]
        mov rbx, [H_BACK]
        mov rcx, [H_BACKN]
        call ata_write
.off:   mov al, 0
        mov dx, 0x501           ; QEMU: isa-debug-exit
        out dx, al
        mov dx, 0x8900          ; Bochs: shutdown port
        mov esi, R(sdmsg)
        mov ecx, 8
.s:     lodsb
        out dx, al
        loop .s
.h:     cli
        hlt
        jmp .h
sdmsg:  db 'Shutdown'

%include "x86-ata.asm"

; ---------------------------------------------------------------- commands
; rbp the command, r14 its answer
next:
        mov rbp, [V_CMD]
        mov r14, [V_ANS]
        cmp qword [V_LEFT], 0
        je done
        dec qword [V_LEFT]
        cmp dword [rbp+C_OP], 1
        jne done
        ; write the probe's words, keep what they held
        mov ecx, [rbp+C_NTCH]
        lea rsi, [rbp+C_TOUCH]
        mov edi, SAVED
.touch: test ecx, ecx
        jz .run
        mov rdx, [rsi]
        mov rax, [rdx]
        mov [rdi], rax
        mov rax, [rsi+8]
        mov [rdx], rax
        add rsi, 16
        add rdi, 8
        dec ecx
        jmp .touch
.run:   cmp qword [V_PKS], 0
        je .nopks
        mov ecx, 0x6E1          ; IA32_PKRS
        mov eax, [rbp+C_PKRS]
        xor edx, edx
        wrmsr
.nopks: cmp qword [V_PKU], 0
        je .nopku
        xor ecx, ecx
        xor edx, edx
        mov eax, [rbp+C_PKRU]
        wrpkru
.nopku: cmp qword [V_VMX], 0
        jne vmx_run
        jmp svm_run
; the run is over: say what the words hold now, put back what they held, in reverse so that a word
; listed twice ends as it began
after:  mov rbp, [V_CMD]
        mov r14, [V_ANS]
        mov ecx, [rbp+C_NTCH]
        mov r8d, ecx
        shl rcx, 3
        lea rdi, [r14+A_TOUCH]
        lea rsi, [rbp+C_TOUCH]
        xor ebx, ebx
.say:   cmp rbx, rcx
        je .undo
        mov rdx, [rsi+rbx*2]
        mov rax, [rdx]
        mov [rdi+rbx], rax
        add rbx, 8
        jmp .say
.undo:  test rbx, rbx
        jz .ok
        sub rbx, 8
        mov rdx, [rsi+rbx*2]
        mov rax, [SAVED+rbx]
        mov [rdx], rax
        jmp .undo
.ok:    lea rdi, [rdi+rcx]
        mov [V_ANS], rdi
        lea rsi, [rsi+rcx*2]
        mov [V_CMD], rsi
        jmp next

%include "x86-svm.asm"
%include "x86-vmx.asm"

        times 0xFFF0-($-$$) db 0xFF
bits 16
        jmp near start16
        times 0x10000-($-$$) db 0
