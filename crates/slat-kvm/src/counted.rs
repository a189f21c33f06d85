//! Running the guest program of [`script`](crate::script) on this machine's KVM, and reading what KVM
//! counted of it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

use crate::Unavailable;
use crate::region::Region;
use crate::script::{LARGE_FROM, LIST, LIST_BYTES, MEMORY, Op, Phase, ROOT, phases, tables};
use crate::stats::Stats;

/// How KVM translates its guests' addresses on this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Paging {
    /// By shadow tables; the module that does.
    Shadow(String),
    /// By the processor's second stage.
    SecondStage(String),
    /// No module that is known says.
    Unknown,
}

/// What KVM counted in each phase: name, and each counter that changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counted {
    /// How KVM translates.
    pub paging: Paging,
    /// By phase, in the program's order.
    pub phases: Vec<(String, BTreeMap<String, i64>)>,
}

/// How this machine's KVM translates, as its modules say: `kvm_intel`'s `ept`, `kvm_amd`'s `npt`, or
/// `kvm_pvm`, which has shadow tables alone.
pub fn paging() -> Paging {
    for (module, parameter) in [("kvm_intel", "ept"), ("kvm_amd", "npt")] {
        let path = format!("/sys/module/{module}/parameters/{parameter}");
        match std::fs::read_to_string(path).as_deref().map(str::trim) {
            Ok("Y" | "1") => return Paging::SecondStage(module.to_owned()),
            Ok(_) => return Paging::Shadow(format!("{module} with {parameter} off")),
            Err(_) => {}
        }
    }
    if Path::new("/sys/module/kvm_pvm").exists() {
        return Paging::Shadow("kvm_pvm".to_owned());
    }
    Paging::Unknown
}

/// Code that takes the list of operations at RSI, in user mode:
///
/// ```text
/// next:   mov (%rsi), %rax;  mov 8(%rsi), %rbx;  mov 16(%rsi), %rcx;  add $24, %rsi
///         cmp $1, %rax;  je store;  ja other;  mov (%rbx), %rdx;  jmp next
/// store:  mov %rcx, (%rbx);  jmp next
/// other:  cmp $4, %rax;  jb gate;  out %al, $0x10;  jmp next
/// gate:   mov %rbx, %rdi;  ud2;  jmp next
/// ```
const USER_CODE: [u8; 50] = [
    0x48, 0x8b, 0x06, 0x48, 0x8b, 0x5e, 0x08, 0x48, 0x8b, 0x4e, 0x10, 0x48, 0x83, 0xc6, 0x18, 0x48,
    0x83, 0xf8, 0x01, 0x74, 0x07, 0x77, 0x0a, 0x48, 0x8b, 0x13, 0xeb, 0xe4, 0x48, 0x89, 0x0b, 0xeb,
    0xdf, 0x48, 0x83, 0xf8, 0x04, 0x72, 0x04, 0xe6, 0x10, 0xeb, 0xd5, 0x48, 0x89, 0xdf, 0x0f, 0x0b,
    0xeb, 0xce,
];
/// The handler of `ud2`, in supervisor mode: `addq $2, (%rsp);  cmp $3, %rax;  je 1f;  mov %rdi, %cr3;
/// iretq;  1: invlpg (%rdi);  iretq`.
const GATE: [u8; 21] = [
    0x48, 0x83, 0x04, 0x24, 0x02, 0x48, 0x83, 0xf8, 0x03, 0x74, 0x05, 0x0f, 0x22, 0xdf, 0x48, 0xcf,
    0x0f, 0x01, 0x3f, 0x48, 0xcf,
];
const USER_AT: u64 = 0x1000;
const GATE_AT: u64 = 0x1100;
const GDT_AT: u64 = 0x2000;
const IDT_AT: u64 = 0x3000;
const TSS_AT: u64 = 0x4000;
const STACK_TOP: u64 = 0x6000;
/// Supervisor code; user code and data with their privilege.
const SUPERVISOR_CODE: u16 = 0x08;
const USER_CODE_SELECTOR: u16 = 0x1b;
const USER_DATA_SELECTOR: u16 = 0x23;
const TSS_SELECTOR: u16 = 0x28;

/// Runs the program, and reads the counters after each phase.
///
/// # Errors
/// Where there is no KVM that can run it.
pub fn count() -> Result<Counted, Unavailable> {
    let kvm = Kvm::new().map_err(|error| Unavailable::from(error.errno()))?;
    let run = || -> io::Result<Counted> {
        let region = Region::new(MEMORY as usize, LARGE_FROM as usize)?;
        let phases = phases();
        load(&region, &phases)?;
        let vm = kvm.create_vm()?;
        region.give_to(&vm)?;
        let mut vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
        start(&vcpu)?;
        let stats = [Stats::open(&vm)?, Stats::open(&vcpu)?];
        let read = || -> io::Result<BTreeMap<String, u64>> {
            let mut values = BTreeMap::new();
            stats.iter().try_for_each(|stats| stats.read(&mut values))?;
            Ok(values)
        };
        let mut before = read()?;
        let mut counted = Vec::new();
        for phase in &phases {
            until_done(&mut vcpu)?;
            let after = read()?;
            counted.push((phase.name.to_owned(), changes(&before, &after)));
            before = after;
        }
        Ok(Counted { paging: paging(), phases: counted })
    };
    run().map_err(Unavailable::Failed)
}

fn changes(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, i64> {
    after
        .iter()
        .map(|(name, &value)| {
            let before = before.get(name).copied().unwrap_or(0);
            (name.clone(), value.wrapping_sub(before) as i64)
        })
        .filter(|(_, change)| *change != 0)
        .collect()
}

fn load(region: &Region, phases: &[Phase]) -> io::Result<()> {
    // Pages of the host are there before the guest touches them, so that all faults are KVM's.
    for at in (0..region.bytes()).step_by(4096) {
        region.store(at, 0);
    }
    for (at, entry) in tables() {
        region.store(at, entry);
    }
    region.copy(USER_AT, &USER_CODE);
    region.copy(GATE_AT, &GATE);
    // Flat 64-bit segments; the task segment's descriptor takes two places.
    let task = 0x0000_8900_0000_0067 | (TSS_AT & 0xff_ffff) << 16 | (TSS_AT >> 24 & 0xff) << 56;
    let gdt = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        task,
        0,
    ];
    for (n, descriptor) in (0..).zip(gdt) {
        region.store(GDT_AT + 8 * n, descriptor);
    }
    // Vector 6, an interrupt gate that user mode may use.
    let gate = GATE_AT & 0xffff
        | u64::from(SUPERVISOR_CODE) << 16
        | 0xee00 << 32
        | (GATE_AT >> 16 & 0xffff) << 48;
    region.store(IDT_AT + 6 * 16, gate);
    // RSP0 lies at 4: the low half of it in the first word.
    region.store(TSS_AT, STACK_TOP << 32);
    let ops: Vec<Op> = phases.iter().flat_map(|phase| phase.ops.iter().copied()).collect();
    if ops.len() as u64 * 24 > LIST_BYTES {
        return Err(io::Error::other("the program is too long"));
    }
    for (n, op) in (0..).zip(ops) {
        for (word, value) in (0..).zip(op.words()) {
            region.store(LIST + 24 * n + 8 * word, value);
        }
    }
    Ok(())
}

fn start(vcpu: &VcpuFd) -> io::Result<()> {
    let mut sregs: kvm_sregs = vcpu.get_sregs()?;
    let segment = |selector: u16, kind: u8, dpl: u8, long: u8| kvm_segment {
        selector,
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
    sregs.cs = segment(USER_CODE_SELECTOR, 11, 3, 1);
    let data = segment(USER_DATA_SELECTOR, 3, 3, 0);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        selector: TSS_SELECTOR,
        base: TSS_AT,
        limit: 0x67,
        type_: 11,
        present: 1,
        ..kvm_segment::default()
    };
    (sregs.gdt.base, sregs.gdt.limit) = (GDT_AT, 7 * 8 - 1);
    (sregs.idt.base, sregs.idt.limit) = (IDT_AT, 7 * 16 - 1);
    // Protected, paged, write-protect; PAE and SSE; long mode with no-execute.
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8001_0033, ROOT, 0x620, 0xd01);
    vcpu.set_sregs(&sregs)?;
    // KVM may take values that it does not keep.
    let kept = vcpu.get_sregs()?;
    if (kept.cr0, kept.cr4, kept.efer) != (sregs.cr0, sregs.cr4, sregs.efer) {
        return Err(io::Error::other("this KVM has no 64-bit paging"));
    }
    // IOPL 3: user mode may end a phase by OUT.
    let regs = kvm_regs {
        rip: USER_AT,
        rsi: LIST,
        rsp: STACK_TOP - 0x800,
        rflags: 0x3002,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&regs)?;
    Ok(())
}

fn until_done(vcpu: &mut VcpuFd) -> io::Result<()> {
    match vcpu.run()? {
        VcpuExit::IoOut(0x10, _) => Ok(()),
        other => Err(io::Error::other(format!("the guest stopped: {other:?}"))),
    }
}
