; Runs of the x86 monitor under VMX with EPT; included by x86.asm.

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
