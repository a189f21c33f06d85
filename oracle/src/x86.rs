//! x86: guests in every paging mode under EPT or NPT.
//!
//! State of a command: 0 RIP, 1 RSI (the address), 2 RAX (what a store stores), 3 CR0, 4 CR3,
//! 5 CR4, 6 EFER, 7 EPTP or nCR3, 8 access rights of CS and of SS (upper half), 9 RFLAGS, 10 PKRU
//! and PKRS (upper half), 11 to 14 the PDPTE registers.
//!
//! A probe that executes has RSI equal to RIP; the others run a stub that loads or stores at RSI.

mod expect;
mod generate;
mod layout;
mod walks;

use crate::contract::{Answer, Info};
use crate::draft::{Coverage, Draft};
use crate::probe::{Expectation, Outcome, Probe, Subject, Watcher};
use crate::random::Random;
use crate::reproduce::Walk;
use crate::world::{Beyond, World};

pub(crate) use layout::{N32, NPAE, RPAE, bits};

/// EM_X86_64.
pub(crate) const ELF_MACHINE: u16 = 62;

/// The second stage that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Second {
    /// EPT, 4 levels.
    Ept,
    /// NPT under a 4-level host.
    Npt4,
    /// NPT under a 5-level host.
    Npt5,
    /// NPT under a PAE host.
    NptPae,
    /// NPT under a 32-bit host.
    Npt32,
}

impl Second {
    /// The host mode that the monitor must enter.
    #[must_use]
    pub fn mode(self) -> u64 {
        match self {
            Second::Ept | Second::Npt4 => 0,
            Second::Npt5 => 1,
            Second::NptPae => 2,
            Second::Npt32 => 3,
        }
    }
}

/// The guest's paging mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum First {
    Unpaged,
    Legacy,
    Pae,
    Four,
    Five,
}

/// The classes of coverage: guest mode times second stage.
pub(crate) fn class(first: First, second: Second) -> u16 {
    (first as u16) << 4 | second as u16
}

/// What a processor can do, as its monitor read it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Features {
    /// The second stage.
    pub second: Second,
    /// Whether the processor follows AMD's manual where the two differ.
    pub amd: bool,
    /// MAXPHYADDR.
    pub physical_bits: u8,
    /// 1 GiB pages in ordinary tables.
    pub gigabyte: bool,
    /// No-execute pages.
    pub nx: bool,
    /// CR4 bits that a guest may set.
    pub cr4: u64,
    /// EPT accessed and dirty flags.
    pub ept_ad: bool,
    /// EPT execute-only.
    pub execute_only: bool,
    /// EPT 2 MiB and 1 GiB pages.
    pub ept_large: (bool, bool),
    /// Advanced information on EPT violations.
    pub advanced: bool,
    /// Guests without paging.
    pub unrestricted: bool,
}

/// CR4 bits that matter to paging.
pub(crate) mod cr4 {
    pub(crate) const PSE: u64 = 1 << 4;
    pub(crate) const PAE: u64 = 1 << 5;
    pub(crate) const PGE: u64 = 1 << 7;
    pub(crate) const LA57: u64 = 1 << 12;
    pub(crate) const SMEP: u64 = 1 << 20;
    pub(crate) const SMAP: u64 = 1 << 21;
    pub(crate) const PKE: u64 = 1 << 22;
    pub(crate) const PKS: u64 = 1 << 24;
}

impl Features {
    /// What the monitor read back.
    #[must_use]
    pub fn read(info: &Info, second: Second, amd: bool) -> Features {
        let (leaf7b, leaf7c) = (info.half(24), info.half(28));
        let has = |word: u32, bit: u32, value: u64| if word >> bit & 1 != 0 { value } else { 0 };
        let mut cr4 = cr4::PSE
            | cr4::PAE
            | cr4::PGE
            | has(leaf7b, 7, cr4::SMEP)
            | has(leaf7b, 20, cr4::SMAP)
            | has(leaf7c, 3, cr4::PKE)
            | has(leaf7c, 16, cr4::LA57)
            | has(leaf7c, 31, cr4::PKS);
        if second == Second::Ept {
            cr4 &= u64::from(info.half(64));
        }
        if second != Second::Npt5 {
            // A 5-level guest needs more guest physical bits than 4 levels give only for its own
            // tables; the processor decides.
            cr4 &= !0;
        }
        let capabilities = info.word(56);
        let capable = |bit: u32| capabilities >> bit & 1 != 0;
        Features {
            second,
            amd,
            physical_bits: info.half(12) as u8,
            gigabyte: info.half(16) >> 26 & 1 != 0,
            nx: info.half(16) >> 20 & 1 != 0,
            cr4,
            ept_ad: capable(21),
            execute_only: capable(0),
            ept_large: (capable(16), capable(17)),
            advanced: capable(22),
            unrestricted: second != Second::Ept || info.word(48) >> 7 & 1 != 0,
        }
    }
}

/// An x86 processor as a subject.
#[derive(Clone, Debug)]
pub struct X86 {
    /// What it can do.
    pub features: Features,
    /// What it does where it has no RAM.
    pub beyond: Beyond,
    /// When it writes accessed bits.
    pub updates: slat::Updates,
    /// Deviations that the walker imitates.
    pub deviations: Vec<&'static str>,
}

impl X86 {
    /// The processor that the monitor read back, on a machine that does this beyond its RAM.
    #[must_use]
    pub fn new(info: &Info, second: Second, amd: bool, beyond: Beyond) -> X86 {
        // QEMU, which reads zero there, writes accessed bits as it walks; Bochs at the end.
        let walks = beyond == Beyond::Zero;
        X86 {
            features: Features::read(info, second, amd),
            beyond,
            updates: if walks { slat::Updates::AsWalked } else { slat::Updates::OnSuccess },
            deviations: vec![],
        }
    }

    fn deviates(&self, name: &str) -> bool {
        self.deviations.contains(&name)
    }
}

impl Subject for X86 {
    fn template(&self) -> World {
        layout::template(self.features.second, self.beyond)
    }

    fn generate(&self, world: &World, random: &mut Random, coverage: &mut Coverage) -> Draft {
        generate::generate(&self.features, world, random, coverage)
    }

    fn expect(&self, probe: &Probe, world: &mut World, watcher: &Watcher) -> Expectation {
        expect::expect(self, probe, world, watcher)
    }

    fn class(&self, probe: &Probe) -> u16 {
        let s = &probe.state;
        let first = if s[3] >> 31 & 1 == 0 {
            First::Unpaged
        } else if layout::is_long(s) {
            if s[5] & cr4::LA57 != 0 { First::Five } else { First::Four }
        } else if s[5] & cr4::PAE != 0 {
            First::Pae
        } else {
            First::Legacy
        };
        class(first, self.features.second)
    }

    fn class_name(&self, class: u16) -> String {
        let first =
            ["unpaged", "x86-32", "x86-pae", "x86-4", "x86-5"][usize::from(class >> 4).min(4)];
        let second = ["ept4", "npt4", "npt5", "npt-pae", "npt-32"][usize::from(class & 15).min(4)];
        format!("{first} under {second}")
    }

    fn read(&self, probe: &Probe, answer: &Answer) -> Outcome {
        let r = &answer.registers;
        let done = Outcome::Done { value: layout::value(&probe.state, r[5]) };
        let other = Outcome::Other([r[0], r[1], r[2], r[4]]);
        if self.features.second != Second::Ept {
            return match r[0] {
                0x400 => Outcome::Stage2 { syndrome: r[1], address: r[2], origin: 0 },
                0x4E => Outcome::Stage1 { syndrome: r[1], address: r[2] },
                0x43 => done,
                // QEMU looks INT3 up in the guest's IDT, which is empty, before it exits.
                0x4D if r[4] & 0x8000_07FF == 0x8000_0403 => done,
                0x4D if r[4] & 1 << 31 == 0 => Outcome::General,
                u64::MAX => Outcome::Refused,
                _ => other,
            };
        }
        match r[0] {
            48 => Outcome::Stage2 { syndrome: r[1], address: r[2], origin: r[3] },
            49 => Outcome::Misconfigured { address: r[2] },
            0 => match r[4] & 0xFF {
                14 => Outcome::Stage1 { syndrome: r[4] >> 32, address: r[1] },
                3 => done,
                13 => Outcome::General,
                _ => other,
            },
            0x8000_0021 | 0xF_0000 | 0xF_0001 => Outcome::Refused,
            _ => other,
        }
    }

    fn second_stage_bits(&self, level: u8) -> u64 {
        match (self.features.second, level) {
            (Second::Ept, _) => 3 << 8,
            // Bits 8:5 of a PDPTE must be zero (AMD APM 2, figure 5-10).
            (Second::NptPae, 2) => 0,
            _ => bits::A | bits::D,
        }
    }

    fn deviating(&self, deviations: &[&'static str]) -> Box<dyn Subject> {
        let mut other = self.clone();
        other.deviations = deviations.to_vec();
        other.features.amd &= !other.deviates("top-bit-8-ignored");
        Box::new(other)
    }

    fn optional(&self) -> &'static [(usize, u64)] {
        // Write protection, switches of CR4, EFER.NXE, RFLAGS.AC, the rights of both kinds of key.
        const CR4: u64 = cr4::PGE | cr4::SMEP | cr4::SMAP | cr4::PKE | cr4::PKS;
        &[(3, 1 << 16), (5, CR4), (6, 1 << 11), (9, 1 << 18), (10, u64::MAX)]
    }

    fn access(&self, probe: &Probe) -> &'static str {
        match (probe.state[0] == probe.state[1], layout::is_load(&probe.state)) {
            (true, _) => "execute",
            (_, true) => "read",
            _ => "write",
        }
    }

    fn explain(&self, probe: &Probe) -> String {
        expect::explain(self, probe)
    }

    fn walks(&self, probe: &Probe) -> Vec<Walk> {
        walks::walks(&self.features, probe)
    }

    fn second_root(&self, probe: &Probe) -> u64 {
        probe.state[7] & 0x000F_FFFF_FFFF_F000
    }

    fn elf_machine(&self) -> u16 {
        ELF_MACHINE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::STATE;
    use crate::golden::questions;
    use crate::probe::{PassedOver, complete};

    /// A guest's table that holds PDPTEs of its host: the accessed bit of the guest's entry is a reserved bit of
    /// the host's, so that what follows depends on whether the processor reads that again (met in a run of a
    /// million probes).
    #[test]
    fn accessed_bits_that_are_reserved_bits_of_pdptes_are_not_asked_about() {
        let file = include_bytes!("../golden/npt-qemu7-3-max-pae-host.zst");
        let (subject, _) = questions(file, 0).unwrap();
        let mut state = [0; STATE];
        (state[0], state[1]) = (0xffff_0000_0000_1000, 0xffff_44b7_0306_f358);
        (state[3], state[4], state[5], state[6]) = (0x8000_0031, 0x300_a000, 0x1030, 0xd00);
        (state[7], state[8], state[9]) = (NPAE, 0xc0f3 << 32 | 0xa0fb, 2);
        let world = &mut subject.template();
        let mut ask = |table: u64| {
            let words = vec![(0x300_aff8, table | 0x67)];
            let probe = Probe { operation: 1, state, words };
            complete(subject.as_ref(), world, probe, &mut Vec::new()).map(|case| case.expected)
        };
        assert_eq!(ask(NPAE), Err(PassedOver::Tangled));
        // An empty table beside it.
        let not_present = Outcome::Stage1 { syndrome: 0x14, address: state[0] };
        assert_eq!(ask(0x301_0000), Ok(not_present));
    }
}
