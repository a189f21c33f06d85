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

; ---------------------------------------------------------------- ATA by PIO
; rdi to / rsi from, rbx first sector, rcx sectors
ata_read:
.more:  test rcx, rcx
        jz .ret
        push rcx
        mov eax, 256
        cmp rcx, rax
        cmova rcx, rax
        mov r8, rcx
        mov al, 0x20
        call ata_cmd
.sec:   call ata_drq
        mov dx, 0x1F0
        mov ecx, 256
        rep insw
        inc ebx
        dec r8
        jnz .sec
        pop rcx
        sub rcx, 256
        ja .more
.ret:   ret
ata_write:
.more:  test rcx, rcx
        jz .ret
        push rcx
        mov eax, 256
        cmp rcx, rax
        cmova rcx, rax
        mov r8, rcx
        mov al, 0x30
        call ata_cmd
.sec:   call ata_drq
        mov dx, 0x1F0
        mov ecx, 256
        rep outsw
        inc ebx
        dec r8
        jnz .sec
        pop rcx
        sub rcx, 256
        ja .more
.w:     mov dx, 0x1F7
        in al, dx
        test al, 0x80
        jnz .w
.ret:   ret
; al command, ebx sector, ecx count (1..=256)
ata_cmd:
        push rax
        mov dx, 0x1F7
.b:     in al, dx
        test al, 0x80
        jnz .b
        mov dx, 0x1F2
        mov al, cl              ; 256 is written as 0
        out dx, al
        inc dx
        mov eax, ebx
        out dx, al
        inc dx
        shr eax, 8
        out dx, al
        inc dx
        shr eax, 8
        out dx, al
        inc dx
        shr eax, 8
        and al, 0x0F
        or al, 0xE0
        out dx, al
        inc dx
        pop rax
        out dx, al
        ret
ata_drq:
        mov dx, 0x1F7
.b:     in al, dx
        test al, 0x80
        jnz .b
        test al, 0x08
        jz .b
        ret

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

; ================================================================ SVM
svm_init:
        mov eax, 0x8000000A
        cpuid
        mov [H_INFO+32], eax
        mov [H_INFO+36], edx
        mov ecx, 0xC0000080
        rdmsr
        or eax, 0x1900          ; SVME
        wrmsr
        mov ecx, 0xC0010117     ; VM_HSAVE_PA
        mov eax, HSAVE
        xor edx, edx
        wrmsr
        mov ebx, VMCB
        mov dword [rbx+0x00], 0xFFFF0000        ; writes of control registers
        mov dword [rbx+0x08], 0xFFFFFFFF        ; all exceptions
        mov dword [rbx+0x0C], (1<<24)|(1<<31)|(1<<26)|(1<<18) ; HLT, shutdown, INVLPGA, CPUID
        mov dword [rbx+0x10], 0x7F
        mov dword [rbx+0x58], 1                 ; ASID
        mov qword [rbx+0x90], 1                 ; nested paging
        mov rax, 0x0007040600070406
        mov [rbx+0x668], rax                    ; PAT
        mov qword [rbx+0x560], 0x400            ; DR7
        mov eax, 0xFFFF0FF0
        mov [rbx+0x568], rax
        jmp next
svm_run:
        mov ebx, VMCB
        mov byte [rbx+0x5C], 1                  ; flush everything
        mov dword [rbx+0xC0], 0                 ; nothing is clean
        mov qword [rbx+0x68], 0
        mov qword [rbx+0xA8], 0
        mov rax, [rbp+C_ROOT]
        mov [rbx+0xB0], rax                     ; nCR3
        mov eax, [rbp+C_CSAR]
        call ar12
        mov word [rbx+0x410], 0x08
        mov [rbx+0x412], ax
        mov dword [rbx+0x414], 0xFFFFFFFF
        mov qword [rbx+0x418], 0
        mov eax, [rbp+C_SSAR]
        mov edx, eax
        shr edx, 5
        and edx, 3
        mov [rbx+0x4CB], dl                     ; CPL
        call ar12
        %assign o 0x400
        %rep 6
        %if o != 0x410
        mov word [rbx+o], 0x10
        mov [rbx+o+2], ax
        mov dword [rbx+o+4], 0xFFFFFFFF
        mov qword [rbx+o+8], 0
        %endif
        %assign o o+0x10
        %endrep
        mov word [rbx+0x492], 0x8B              ; TR
        mov dword [rbx+0x494], 0x67
        mov rax, [rbp+C_EFER]
        or eax, 0x1000                          ; SVME must be set in the guest too
        mov [rbx+0x4D0], rax
        mov rax, [rbp+C_CR4]
        mov [rbx+0x548], rax
        mov rax, [rbp+C_CR3]
        mov [rbx+0x550], rax
        mov rax, [rbp+C_CR0]
        mov [rbx+0x558], rax
        mov rax, [rbp+C_FLAGS]
        mov [rbx+0x570], rax
        mov rax, [rbp+C_RIP]
        mov [rbx+0x578], rax
        mov qword [rbx+0x5D8], 0x7000           ; RSP
        mov rax, [rbp+C_RAX]
        mov [rbx+0x5F8], rax
        mov qword [rbx+0x640], 0                ; CR2
        mov rsi, [rbp+C_RSI]
        mov eax, VMCB
        cmp dword [H_MODE], 2
        jae legacy_run
        vmload
        vmrun
svm_exit:
        mov esp, STK
        mov ebx, VMCB
        mov r14, [V_ANS]
        mov rax, [rbx+0x70]
        mov [r14+A_EXIT], rax
        mov rax, [rbx+0x78]
        mov [r14+A_INFO1], rax
        mov rax, [rbx+0x80]
        mov [r14+A_GPA], rax
        mov rax, [rbx+0x88]
        mov [r14+A_INTR], rax                   ; EXITINTINFO
        mov rax, [rbx+0x5F8]
        mov [r14+A_RAX], rax
        mov rax, [rbx+0x578]
        mov [r14+A_RIP], rax
        mov rax, [rbx+0x640]
        mov [r14+A_CR2], rax
        jmp after
ar12:   mov ecx, eax
        shr ecx, 4
        and ecx, 0xF00
        and eax, 0xFF
        or eax, ecx
        ret
; Nested paging takes the host's paging mode, so a PAE or 32-bit nested table needs a host that has
; left long mode: go there for VMRUN alone.
legacy_run:
        mov rax, cr4
        mov [V_CR4], rax
        sub esp, 16
        mov dword [rsp], R(.compat)
        mov dword [rsp+4], 0x08
        jmp far dword [rsp]
bits 32
.compat:
        mov ax, 0x10
        mov ss, ax
        mov ds, ax
        mov es, ax
        mov esp, STK
        mov eax, cr0
        and eax, 0x7FFFFFFF
        mov cr0, eax
        mov ecx, 0xC0000080
        rdmsr
        and eax, ~0x100
        wrmsr
        mov eax, PAEPDPT
        mov edx, 0x620
        cmp dword [H_MODE], 2
        je .pae
        mov eax, PD32
        mov edx, 0x610          ; PSE instead of PAE
.pae:   mov cr3, eax
        mov cr4, edx
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        jmp .on
.on:    mov eax, VMCB
        vmload
        vmrun
        mov esp, STK
        mov eax, cr0
        and eax, 0x7FFFFFFF
        mov cr0, eax
        mov eax, [V_CR4]
        mov cr4, eax
        mov eax, PML4
        mov cr3, eax
        mov ecx, 0xC0000080
        rdmsr
        or eax, 0x100
        wrmsr
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        jmp dword 0x18:R(.long)
bits 64
.long:  mov ax, 0x20
        mov ds, ax
        mov es, ax
        mov ss, ax
        jmp svm_exit

; ================================================================ VMX
%macro vmw 2                    ; field, value
        mov ecx, %1
        mov rax, %2
        vmwrite rcx, rax
        jbe vmw_fail
%endmacro
%macro vmr 2                    ; field, word of the answer
        mov ecx, %1
        vmread rax, rcx
        mov [r14+%2], rax
%endmacro
; ecx capability register, eax wanted controls -> eax allowed ones
adj:    push rbx
        mov ebx, eax
        rdmsr
        or ebx, eax
        and ebx, edx
        mov eax, ebx
        pop rbx
        ret
vmw_fail:
        mov [H_INFO+40], rcx
        mov eax, 0xE4
        jmp fail
vmx_init:
        mov qword [V_VMX], 1
        mov qword [V_FIRST], 1
        mov ecx, 0x48B
        rdmsr
        mov [H_INFO+48], rdx    ; secondary controls that may be 1
        bt edx, 1
        mov eax, 0xE6           ; no EPT
        jnc fail
        mov ecx, 0x48C
        rdmsr
        mov [H_INFO+56], eax    ; IA32_VMX_EPT_VPID_CAP
        mov ecx, 0x489
        rdmsr
        mov [H_INFO+64], eax    ; CR4 bits that may be 1
        mov ecx, 0x3A           ; FEATURE_CONTROL
        rdmsr
        test al, 1
        jnz .fc
        or eax, 5
        wrmsr
.fc:    mov rax, cr4
        or eax, 0x2000
        mov cr4, rax
        mov ecx, 0x480
        rdmsr
        and eax, 0x7FFFFFFF
        mov [VMXONR], eax
        mov [VMCS], eax
        mov qword [V_DESC], VMXONR
        vmxon [V_DESC]
        mov eax, 0xE2
        jbe fail
        mov qword [V_DESC], VMCS
        vmclear [V_DESC]
        mov eax, 0xE3
        jbe fail
        vmptrld [V_DESC]
        mov eax, 0xE3
        jbe fail
        mov ecx, 0x481
        xor eax, eax
        call adj
        vmw 0x4000, rax
        mov ecx, 0x482
        mov eax, (1<<7)|(1<<31)         ; HLT exits, secondary controls
        call adj
        vmw 0x4002, rax
        mov ecx, 0x48B
        mov eax, (1<<1)|(1<<7)          ; EPT, unrestricted guest
        call adj
        vmw 0x401E, rax
        mov ecx, 0x483
        mov eax, (1<<9)|(1<<21)|(1<<20) ; 64-bit host, save and load EFER
        call adj
        vmw 0x400C, rax
        vmw 0x4004, 0xFFFFFFFF          ; all exceptions
        vmw 0x4006, 0                   ; page faults whatever their code
        vmw 0x4008, 0
        vmw 0x400A, 0
        vmw 0x400E, 0
        vmw 0x4010, 0
        vmw 0x4014, 0
        vmw 0x4016, 0
        vmw 0x6000, 0
        vmw 0x6002, 0
        mov rax, cr0
        vmw 0x6C00, rax
        mov rax, cr3
        vmw 0x6C02, rax
        mov rax, cr4
        vmw 0x6C04, rax
        vmw 0x0C02, 0x18
        vmw 0x0C00, 0x20
        vmw 0x0C04, 0x20
        vmw 0x0C06, 0x20
        vmw 0x0C08, 0x20
        vmw 0x0C0A, 0x20
        vmw 0x0C0C, 0x28
        vmw 0x6C06, 0
        vmw 0x6C08, 0
        vmw 0x6C0A, TSS
        vmw 0x6C0C, GDTR_+0x100
        vmw 0x6C0E, 0
        vmw 0x4C00, 0
        vmw 0x6C10, 0
        vmw 0x6C12, 0
        mov ecx, 0xC0000080
        rdmsr
        shl rdx, 32
        or rax, rdx
        vmw 0x2C02, rax
        mov rax, STK
        vmw 0x6C14, rax
        mov eax, R(vmx_exit)
        vmw 0x6C16, rax
        vmw 0x2800, -1                  ; link pointer
        vmw 0x2802, 0
        vmw 0x4824, 0
        vmw 0x4826, 0
        vmw 0x482A, 0
        vmw 0x6822, 0
        vmw 0x6824, 0
        vmw 0x6826, 0
        vmw 0x681A, 0x400               ; DR7
        vmw 0x080E, 0x28                ; TR
        vmw 0x6814, 0
        vmw 0x480E, 0x67
        vmw 0x4822, 0x8B
        vmw 0x080C, 0
        vmw 0x6812, 0
        vmw 0x480C, 0xFFFF
        vmw 0x4820, 0x10000             ; no LDTR
        vmw 0x6816, 0
        vmw 0x4810, 0xFFFF
        vmw 0x6818, 0
        vmw 0x4812, 0xFFFF
        jmp next
vmx_run:
        mov qword [V_DESC], 0
        mov qword [V_DESC+8], 0
        mov eax, 2
        invept rax, [V_DESC]            ; all contexts
        vmw 0x201A, [rbp+C_ROOT]
        mov eax, (1<<15)                ; load EFER
        test dword [rbp+C_EFER], 0x400
        jz .nl
        or eax, 1<<9                    ; IA-32e guest
.nl:    mov ecx, 0x484
        call adj
        vmw 0x4012, rax
        vmw 0x2806, [rbp+C_EFER]
        mov rax, [rbp+C_CR0]
        or eax, 0x20                    ; NE
        vmw 0x6800, rax
        vmw 0x6802, [rbp+C_CR3]
        mov rax, [rbp+C_CR4]
        or eax, 0x2000                  ; VMXE
        vmw 0x6804, rax
        vmw 0x280A, [rbp+C_PDPTE]
        vmw 0x280C, [rbp+C_PDPTE+8]
        vmw 0x280E, [rbp+C_PDPTE+16]
        vmw 0x2810, [rbp+C_PDPTE+24]
        mov ebx, [rbp+C_SSAR]
        shr ebx, 5
        and ebx, 3
        lea rdx, [rbx+0x08]
        vmw 0x0802, rdx
        lea rdx, [rbx+0x10]
        %assign s 0
        %rep 6
        %if s != 1
        vmw 0x0800+2*s, rdx
        %endif
        vmw 0x6806+2*s, 0
        vmw 0x4800+2*s, 0xFFFFFFFF
        %assign s s+1
        %endrep
        mov edx, [rbp+C_SSAR]
        %assign s 0
        %rep 6
        %if s != 1
        vmw 0x4814+2*s, rdx
        %endif
        %assign s s+1
        %endrep
        mov edx, [rbp+C_CSAR]
        vmw 0x4816, rdx
        vmw 0x681E, [rbp+C_RIP]
        vmw 0x681C, 0x7000
        vmw 0x6820, [rbp+C_FLAGS]
        vmw 0x4824, 0
        vmw 0x4826, 0
        xor eax, eax
        mov cr2, rax
        mov rsi, [rbp+C_RSI]
        mov rax, [rbp+C_RAX]
        cmp qword [V_FIRST], 0
        jne .launch
        vmresume
        jmp .vf
.launch:vmlaunch
.vf:    mov r14, [V_ANS]                ; VMfail: the entry was refused before it began
        setz al
        movzx eax, al
        or eax, 0xF0000
        mov [r14+A_EXIT], rax
        mov ecx, 0x4400
        vmread rax, rcx
        mov [r14+A_INFO1], rax
        jmp after
vmx_exit:
        mov r14, [V_ANS]
        mov [r14+A_RAX], rax
        mov rax, cr2
        mov [r14+A_CR2], rax
        vmr 0x4402, A_EXIT
        bt eax, 31                      ; a failed entry leaves the launch state as it was
        jc .lok
        mov qword [V_FIRST], 0
.lok:   vmr 0x6400, A_INFO1
        vmr 0x2400, A_GPA
        vmr 0x640A, A_GLA
        mov ecx, 0x4404
        vmread rax, rcx
        mov [r14+A_INTR], eax
        mov ecx, 0x4406
        vmread rax, rcx
        mov [r14+A_INTR+4], eax
        vmr 0x681E, A_RIP
        vmr 0x4408, A_IDTV
        jmp after

        times 0xFFF0-($-$$) db 0xFF
bits 16
        jmp near start16
        times 0x10000-($-$$) db 0
