//! Accesses by a guest, one by one, each answered by what came of it: the permission checks of KVM's walker
//! and, where the guest runs by itself, of the processor.
//!
//! The guest's program takes a list of addresses with what to do there, and notes for each the page fault's
//! error code and CR2, or that there was none. Its own pages lie in the lowest slot of the root, which the
//! caller's root has to keep for it ([`Prober::own_table`]); the rest of the root is the caller's.
//!
//! Tables must not change once the guest has run: under shadow paging KVM does not see changes that are not
//! made by the guest itself. So a prober takes one list after another for the same tables, and for others
//! there is another prober.

use std::io;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::Unavailable;
use crate::processor::{PagingState, Processor};
use crate::region::Region;

/// Reads a list at R12 to R13 and writes answers at R15:
///
/// ```text
/// next:   mov (%r12), %rdi;  mov 8(%r12), %ecx;  add $16, %r12;  xor %ebx, %ebx;  xor %r14d, %r14d
///         mov %rsp, %rbp;  cmp $1, %ecx;  je store;  ja fetch;  mov (%rdi), %al;  jmp done
/// store:  movb $0xc3, (%rdi);  jmp done
/// fetch:  call *%rdi
/// done:   mov %rbp, %rsp;  mov %rbx, (%r15);  mov %r14, 8(%r15);  add $16, %r15
///         cmp %r13, %r12;  jb next;  out %al, $0x10
/// ```
const PROGRAM: [u8; 60] = [
    0x49, 0x8b, 0x3c, 0x24, 0x41, 0x8b, 0x4c, 0x24, 0x08, 0x49, 0x83, 0xc4, 0x10, 0x31, 0xdb, 0x45,
    0x31, 0xf6, 0x48, 0x89, 0xe5, 0x83, 0xf9, 0x01, 0x74, 0x06, 0x77, 0x09, 0x8a, 0x07, 0xeb, 0x07,
    0xc6, 0x07, 0xc3, 0xeb, 0x02, 0xff, 0xd7, 0x48, 0x89, 0xec, 0x49, 0x89, 0x1f, 0x4d, 0x89, 0x77,
    0x08, 0x49, 0x83, 0xc7, 0x10, 0x4d, 0x39, 0xec, 0x72, 0xc6, 0xe6, 0x10,
];
/// `pop %rbx;  or $0x100, %rbx;  mov %cr2, %r14;  movq $done, (%rsp);  iretq`
const PAGE_FAULT: [u8; 22] = [
    0x5b, 0x48, 0x81, 0xcb, 0x00, 0x01, 0x00, 0x00, 0x41, 0x0f, 0x20, 0xd6, 0x48, 0xc7, 0x04, 0x24,
    0x27, 0x10, 0x00, 0x00, 0x48, 0xcf,
];
/// `pop %rbx;  or $0x200, %rbx;  movq $done, (%rsp);  iretq`
const GENERAL: [u8; 18] = [
    0x5b, 0x48, 0x81, 0xcb, 0x00, 0x02, 0x00, 0x00, 0x48, 0xc7, 0x04, 0x24, 0x27, 0x10, 0x00, 0x00,
    0x48, 0xcf,
];

const PAGE: u64 = 0x1000;
const PROGRAM_AT: u64 = 0x1000;
const PAGE_FAULT_AT: u64 = 0x2000;
const GENERAL_AT: u64 = 0x2040;
const GDT_AT: u64 = 0x3000;
const IDT_AT: u64 = 0x4000;
const TSS_AT: u64 = 0x5000;
const HANDLER_STACK: u64 = 0x7000;
const STACK: u64 = 0x9000;
/// The program's own tables, from level 2 down, and one of level 3 above them.
const OWN: [u64; 4] = [0xC000, 0xB000, 0xA000, 0xD000];
const LIST: u64 = 0x2_0000;
const ANSWERS: u64 = 0x4_0000;
const ANSWERS_END: u64 = 0x6_0000;
/// Where the caller's tables may lie.
pub const TABLES: std::ops::Range<u64> = 0x8_0000..0x20_0000;
/// Where accesses may arrive: each byte is a RET.
pub const DATA: std::ops::Range<u64> = 0x20_0000..0x40_0000;
/// The longest list.
pub const LONGEST: usize = ((ANSWERS_END - ANSWERS) / 16) as usize;

/// What a guest does at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deed {
    /// Loads a byte.
    Load = 0,
    /// Stores a byte.
    Store = 1,
    /// Calls it.
    Call = 2,
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reaction {
    /// The access was made.
    Done,
    /// A page fault.
    PageFault {
        /// Its error code.
        code: u64,
        /// CR2.
        address: u64,
    },
    /// A general-protection exception.
    General,
}

/// What came of a list.
#[derive(Clone, Debug)]
pub struct Reactions {
    /// One for each entry, up to the one at which the guest stopped.
    pub all: Vec<Reaction>,
    /// Why it stopped before the list's end.
    pub stopped: Option<String>,
}

/// A guest that makes accesses.
#[derive(Debug)]
pub struct Prober {
    // The machine goes before the memory that it was given.
    vcpu: VcpuFd,
    _vm: VmFd,
    region: Region,
    processor: Processor,
    user: bool,
}

impl Prober {
    /// A machine whose guest is at CPL 3 (`user`) or CPL 0.
    ///
    /// # Errors
    /// Where there is no KVM, or it makes no machine.
    pub fn new(user: bool) -> Result<Prober, Unavailable> {
        let kvm = Kvm::new().map_err(|error| Unavailable::from(error.errno()))?;
        let make = || -> io::Result<Prober> {
            let region = Region::new(DATA.end as usize, DATA.end as usize)?;
            load(&region, user);
            let vm = kvm.create_vm()?;
            region.give_to(&vm)?;
            let vcpu = vm.create_vcpu(0)?;
            let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
            vcpu.set_cpuid2(&cpuid)?;
            let processor = Processor::of(&cpuid);
            Ok(Prober { vcpu, _vm: vm, region, processor, user })
        };
        make().map_err(Unavailable::Failed)
    }

    /// The processor that the guest has.
    pub fn processor(&self) -> Processor {
        self.processor
    }

    /// The table to which entry 0 of a root with so many levels has to point.
    pub fn own_table(levels: u8) -> u64 {
        OWN[usize::from(levels.clamp(4, 5)) - 2]
    }

    /// Stores a word of a table, at a multiple of 8.
    ///
    /// # Panics
    /// Where that is not in [`TABLES`].
    pub fn store(&self, at: u64, value: u64) {
        assert!(TABLES.contains(&at), "{at:#x} is not where tables lie");
        self.region.store(at, value);
    }

    /// The word of memory at a multiple of 8.
    ///
    /// # Panics
    /// Where the machine has no such memory.
    pub fn load(&self, at: u64) -> u64 {
        self.region.load(at)
    }

    /// Sets the registers, and reads them back: whether they are what was asked.
    ///
    /// # Errors
    /// Where KVM refuses them outright.
    pub fn set(&self, state: PagingState) -> io::Result<bool> {
        let mut sregs: kvm_sregs = self.vcpu.get_sregs()?;
        let dpl = if self.user { 3 } else { 0 };
        let segment = |selector: u16, kind: u8, long: u8| kvm_segment {
            selector: selector | u16::from(dpl),
            limit: u32::MAX,
            type_: kind,
            dpl,
            present: 1,
            s: 1,
            g: 1,
            l: long,
            db: 1 - long,
            ..kvm_segment::default()
        };
        let (code, data) = if self.user { (0x18, 0x20) } else { (0x08, 0x10) };
        sregs.cs = segment(code, 11, 1);
        let data = segment(data, 3, 0);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = kvm_segment {
            selector: 0x28,
            base: TSS_AT,
            limit: 0x67,
            type_: 11,
            present: 1,
            ..kvm_segment::default()
        };
        (sregs.gdt.base, sregs.gdt.limit) = (GDT_AT, 7 * 8 - 1);
        (sregs.idt.base, sregs.idt.limit) = (IDT_AT, 15 * 16 - 1);
        state.put(&mut sregs);
        self.vcpu.set_sregs(&sregs)?;
        Ok(PagingState::of(&self.vcpu.get_sregs()?) == state)
    }

    /// Has the guest make these accesses, at most [`LONGEST`], in their order; `alignment_check` is its
    /// RFLAGS.AC.
    ///
    /// # Errors
    /// Where KVM does not run the guest at all.
    pub fn ask(&mut self, list: &[(u64, Deed)], alignment_check: bool) -> io::Result<Reactions> {
        if list.len() > LONGEST || list.is_empty() {
            return Err(io::Error::other(format!("a list has 1 to {LONGEST} accesses")));
        }
        // What no answer has: where the guest stopped.
        const OPEN: u64 = u64::MAX;
        for (n, &(address, deed)) in (0..).zip(list) {
            self.region.store(LIST + 16 * n, address);
            self.region.store(LIST + 16 * n + 8, deed as u64);
            self.region.store(ANSWERS + 16 * n, OPEN);
        }
        // IOPL 3: user mode may end the list by OUT.
        let regs = kvm_regs {
            rip: PROGRAM_AT,
            rsp: STACK,
            rflags: 0x3002 | u64::from(alignment_check) << 18,
            r12: LIST,
            r13: LIST + 16 * list.len() as u64,
            r15: ANSWERS,
            ..kvm_regs::default()
        };
        self.vcpu.set_regs(&regs)?;
        let stopped = match self.vcpu.run()? {
            VcpuExit::IoOut(0x10, _) => None,
            other => Some(format!("{other:?}")),
        };
        let mut all = Vec::with_capacity(list.len());
        for n in 0..list.len() as u64 {
            let answer = self.region.load(ANSWERS + 16 * n);
            all.push(match answer {
                0 => Reaction::Done,
                OPEN => break,
                _ if answer & 0x100 != 0 => Reaction::PageFault {
                    code: answer & !0x100,
                    address: self.region.load(ANSWERS + 16 * n + 8),
                },
                _ => Reaction::General,
            });
        }
        Ok(Reactions { all, stopped })
    }
}

/// Fills memory: program, handlers, descriptors, the program's own tables, and where accesses arrive.
fn load(region: &Region, user: bool) {
    const RETURNS: u64 = 0xC3C3_C3C3_C3C3_C3C3;
    for at in DATA.step_by(8) {
        region.store(at, RETURNS);
    }
    region.copy(PROGRAM_AT, &PROGRAM);
    region.copy(PAGE_FAULT_AT, &PAGE_FAULT);
    region.copy(GENERAL_AT, &GENERAL);
    // Flat segments of both privileges; the task segment's descriptor takes two places.
    let task = 0x0000_8900_0000_0067 | (TSS_AT & 0xFF_FFFF) << 16 | (TSS_AT >> 24 & 0xFF) << 56;
    let gdt = [
        0,
        0x00AF_9B00_0000_FFFF,
        0x00CF_9300_0000_FFFF,
        0x00AF_FB00_0000_FFFF,
        0x00CF_F300_0000_FFFF,
        task,
        0,
    ];
    for (n, descriptor) in (0..).zip(gdt) {
        region.store(GDT_AT + 8 * n, descriptor);
    }
    for (vector, handler) in [(13, GENERAL_AT), (14, PAGE_FAULT_AT)] {
        // An interrupt gate to the supervisor's code.
        let gate = handler & 0xFFFF | 0x08 << 16 | 0x8E00 << 32 | (handler >> 16) << 48;
        region.store(IDT_AT + 16 * vector, gate);
    }
    // RSP0 lies at 4: the low half of it in the first word.
    region.store(TSS_AT, HANDLER_STACK << 32);
    // Present, writable, user, accessed, dirty.
    for (level, table) in (0..).zip(OWN).skip(1) {
        let below = match level {
            3 => OWN[2],
            _ => OWN[level - 1],
        };
        region.store(table, below | 0x67);
    }
    for page in (0..TABLES.start).step_by(PAGE as usize) {
        // The handlers and what they need are the supervisor's; SMEP and SMAP want that at CPL 0.
        let programs = matches!(page, PROGRAM_AT | 0x8000 | LIST..ANSWERS_END);
        let flags = if user && programs { 0x67 } else { 0x63 };
        region.store(OWN[0] + page / PAGE * 8, page | flags);
    }
}
