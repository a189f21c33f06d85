; Runs of the x86 monitor under SVM with nested paging; included by x86.asm.

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
