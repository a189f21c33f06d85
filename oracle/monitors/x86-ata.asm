; The first ATA disk by PIO, for where memory is not shared with the harness; included by x86.asm.

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
