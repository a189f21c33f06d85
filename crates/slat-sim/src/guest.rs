//! A recorded guest's vCPU: its registers, the stage 1 that they make, and what its instructions
//! drop from the TLB.

use slat::format::Format;
use slat::format::arm64::{self, Stage1, TranslationRegime};
use slat::format::riscv::{self, Sv};
use slat::format::x86::Controls;
use slat::format::x86::long::{Long, Processor};
use slat::{Gpa, Gva, Stage, Updates};
use slat_mmu::walker::Globals;
use slat_trace::{Control, Event, Root};

/// CR4.LA57 and CR4.PCIDE (Intel SDM 3A 2.5).
const LA57: u64 = 1 << 12;
const PCIDE: u64 = 1 << 17;

/// The registers that decide about stage 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    /// By [`Root`].
    pub roots: [u64; 3],
    /// By [`Control`].
    pub controls: [u64; 6],
}

impl Registers {
    /// Takes a register write over; says whether it was one.
    pub fn apply(&mut self, event: &Event) -> bool {
        match *event {
            Event::Root { root, value } => self.roots[root as usize] = value,
            Event::Control { register, value } => self.controls[register as usize] = value,
            _ => return false,
        }
        true
    }

    fn root(&self, root: Root) -> u64 {
        self.roots[root as usize]
    }

    fn control(&self, control: Control) -> u64 {
        self.controls[control as usize]
    }
}

/// An architecture's first stage.
pub trait Guest: 'static {
    /// The format of its tables.
    type Format: Format + Send + Sync;

    /// How leaf entries make global pages.
    const GLOBALS: Globals;

    /// The stage that the registers make; `None` where they are not complete or not modelled.
    fn stage(registers: &Registers) -> Option<Stage<Self::Format, Gva, Gpa>>;

    /// The root of shadow tables at `root`, in the form of this format; `None` where shadow paging
    /// is not modelled for the architecture.
    fn shadow_root(root: u64) -> Option<<Self::Format as Format>::Root>;

    /// The level of the root table.
    fn root_level(format: &Self::Format) -> u8;

    /// Whether address spaces have the numbers that x86 calls PCIDs, in bits 11:0 of CR3.
    fn has_pcids(registers: &Registers) -> bool;

    /// Whether a switch to another process keeps the translations of the one that has run: address
    /// spaces have numbers.
    fn keeps_spaces(registers: &Registers) -> bool {
        Self::has_pcids(registers)
    }

    /// The number of the address space that the registers select: 0 where the architecture (or the
    /// recording) has no tags, so that a root load drops translations.
    fn address_space(registers: &Registers) -> u16;
}

/// x86-64, 4- and 5-level. Guests recorded under TCG have no PCIDs; those transcribed from AArch64 do.
#[derive(Debug)]
pub enum X86 {}

impl Guest for X86 {
    type Format = Long;

    const GLOBALS: Globals = Globals::X86;

    fn stage(registers: &Registers) -> Option<Stage<Long, Gva, Gpa>> {
        let [cr0, cr4, efer] =
            [Control::Cr0, Control::Cr4, Control::Efer].map(|name| registers.control(name));
        if cr0 & 1 << 31 == 0 || efer & 1 << 10 == 0 {
            return None;
        }
        let controls = Controls {
            write_protect: cr0 & 1 << 16 != 0,
            smep: cr4 & 1 << 20 != 0,
            // The recording does not say when SMAP was suspended.
            smap: false,
            nxe: efer & 1 << 11 != 0,
            ..Controls::default()
        };
        let make = if cr4 & LA57 != 0 { Long::five } else { Long::four };
        let long = make(controls, Processor::default());
        // Bits 11:0 are the PCID, or flags that do not matter here.
        let root = registers.root(Root::Cr3) & !0xfff;
        Some(Stage::new(long, root).with_updates(Updates::OnSuccess))
    }

    fn shadow_root(root: u64) -> Option<u64> {
        Some(root)
    }

    fn root_level(format: &Long) -> u8 {
        if format.name() == "x86-5" { 4 } else { 3 }
    }

    fn has_pcids(registers: &Registers) -> bool {
        registers.control(Control::Cr4) & PCIDE != 0
    }

    fn address_space(registers: &Registers) -> u16 {
        if X86::has_pcids(registers) { (registers.root(Root::Cr3) & 0xfff) as u16 } else { 0 }
    }
}

/// AArch64 with ASIDs.
#[derive(Debug)]
pub enum Aarch64 {}

impl Guest for Aarch64 {
    type Format = Stage1;

    const GLOBALS: Globals = Globals::Arm;

    fn stage(registers: &Registers) -> Option<Stage<Stage1, Gva, Gpa>> {
        let tcr = registers.control(Control::Tcr);
        let sctlr = registers.control(Control::Sctlr);
        let processor = arm64::Processor::default();
        let stage1 = Stage1::new(TranslationRegime::El10, tcr, sctlr, 0, &processor).ok()?;
        let root =
            arm64::Root { ttbr0: registers.root(Root::Ttbr0), ttbr1: registers.root(Root::Ttbr1) };
        Some(Stage::new(stage1, root).with_updates(Updates::OnSuccess))
    }

    fn shadow_root(_: u64) -> Option<arm64::Root> {
        None
    }

    fn root_level(_: &Stage1) -> u8 {
        3
    }

    fn has_pcids(_: &Registers) -> bool {
        false
    }

    fn keeps_spaces(_: &Registers) -> bool {
        true
    }

    fn address_space(registers: &Registers) -> u16 {
        // TCR_EL1.A1 says which root has the ASID.
        let root =
            if registers.control(Control::Tcr) & 1 << 22 != 0 { Root::Ttbr1 } else { Root::Ttbr0 };
        (registers.root(root) >> 48) as u16
    }
}

/// RISC-V Sv48 or Sv57, into which others are transcribed: roots, PCIDs for ASIDs, LA57 for Sv57, and
/// invalidations keep x86's names.
#[derive(Debug)]
pub enum RiscV {}

impl Guest for RiscV {
    type Format = Sv;

    const GLOBALS: Globals = Globals::RiscV;

    fn stage(registers: &Registers) -> Option<Stage<Sv, Gva, Gpa>> {
        let five = registers.control(Control::Cr4) & LA57 != 0;
        let scheme = if five { riscv::Scheme::Sv57 } else { riscv::Scheme::Sv48 };
        let format = Sv::stage1(scheme, riscv::Features::default());
        Some(Stage::new(format, registers.root(Root::Cr3) & !0xfff))
    }

    fn shadow_root(_: u64) -> Option<u64> {
        None
    }

    fn root_level(_: &Sv) -> u8 {
        3
    }

    fn has_pcids(registers: &Registers) -> bool {
        X86::has_pcids(registers)
    }

    fn address_space(registers: &Registers) -> u16 {
        X86::address_space(registers)
    }
}
