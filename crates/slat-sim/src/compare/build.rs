//! The machine of each scheme.

use std::ops::Range;

use slat::format::Format;
use slat::format::arm64::{self, Granule, Stage2};
use slat::format::ept::{self, Ept};
use slat::format::flat::Flat;
use slat::format::npt::Npt;
use slat::format::riscv::{self, Sv};
use slat::format::x86::Vendor;
use slat::format::x86::long;
use slat::{Gpa, Spa, Stage};
use slat_trace::Arch;

use super::{CompareError, Scheme};
use crate::guest::{Aarch64, Guest, RiscV, X86};
use crate::machine::{Counts, Hypervisor, Machine, Part, Shared, Start};
use crate::memory::{MemoryError, Physical};
use crate::nested::{Address, Encoding, build};
use crate::preset::Processor;

/// A machine of any guest and scheme.
pub(super) trait Runs: Send {
    fn run(&mut self, part: &Part<'_>) -> Result<(), MemoryError>;
    fn counts(&self) -> Counts;
    fn forget(&mut self);
    fn walks(&self) -> u64;
    fn memory(&self) -> &Physical;
    fn most_shadow_tables(&self) -> usize;
    /// Another virtual machine's turn.
    fn switch_out(&mut self, ended: bool);
    /// Its TLBs and caches, for another virtual machine on the same cores.
    fn shared(&mut self) -> Shared<'_>;
}

impl<G: Guest, F2: Format + Send + Sync> Runs for Machine<G, F2>
where
    <G::Format as Format>::Root: Send,
    F2::Root: Send,
{
    fn run(&mut self, part: &Part<'_>) -> Result<(), MemoryError> {
        Machine::run(self, part)
    }

    fn counts(&self) -> Counts {
        Machine::counts(self)
    }

    fn forget(&mut self) {
        Machine::forget(self);
    }

    fn walks(&self) -> u64 {
        Machine::walks(self)
    }

    fn memory(&self) -> &Physical {
        Machine::memory(self)
    }

    fn most_shadow_tables(&self) -> usize {
        Machine::most_shadow_tables(self)
    }

    fn switch_out(&mut self, ended: bool) {
        Machine::switch_out(self, ended);
    }

    fn shared(&mut self) -> Shared<'_> {
        Machine::shared(self)
    }
}

/// What all machines of a comparison have in common.
#[derive(Clone, Debug)]
pub(super) struct Setting<'a> {
    pub processor: &'a Processor,
    pub arch: Arch,
    pub cores: u8,
    pub start: Start,
    pub memory: Range<u64>,
    /// log2 of the host's pages under shadow tables.
    pub shadow_page: u8,
}

impl Setting<'_> {
    /// The machine of one scheme.
    pub(super) fn machine(&self, scheme: Scheme) -> Result<Box<dyn Runs>, CompareError> {
        match scheme {
            Scheme::Arm(_) => self.make::<Aarch64>(scheme),
            Scheme::RiscV(_) => self.make::<RiscV>(scheme),
            Scheme::Shadow(_) | Scheme::Ept(_) | Scheme::Npt(_) => self.make::<X86>(scheme),
            Scheme::Native => match self.arch {
                Arch::X86_64 => self.make::<X86>(scheme),
                Arch::Aarch64 => self.make::<Aarch64>(scheme),
            },
        }
    }

    fn make<G: Guest>(&self, scheme: Scheme) -> Result<Box<dyn Runs>, CompareError>
    where
        <G::Format as Format>::Root: Send,
    {
        let backed = match scheme {
            Scheme::Native => 30,
            Scheme::Shadow(_) => self.shadow_page,
            Scheme::Ept(shift) | Scheme::Npt(shift) | Scheme::Arm(shift) | Scheme::RiscV(shift) => {
                shift
            }
        };
        let skips = self.processor.walk_caches.reads_skip_l1.as_ref();
        let skips = skips.is_some_and(|skips| skips.value);
        let (caches, vm) = (&self.processor.caches, self.start.vm);
        let mut memory = Physical::new(caches, skips, backed, vm, self.cores, self.memory.clone())?;
        match scheme {
            Scheme::Native => self.of::<G, Flat>(memory, Hypervisor::Native),
            Scheme::Shadow(discipline) => {
                self.of::<G, Flat>(memory, Hypervisor::Shadow(discipline))
            }
            Scheme::Ept(shift) => {
                let root = self.tables(&mut memory, Encoding::EPT, Address::InPlace, 3, 1, shift);
                let features = ept::Features {
                    accessed_dirty: self.processor.second_stage_dirty.value,
                    ..ept::Features::default()
                };
                self.nested::<G, Ept>(memory, Stage::new(Ept::four(features), root), true)
            }
            Scheme::Npt(shift) => {
                let root = self.tables(&mut memory, Encoding::NPT, Address::InPlace, 3, 1, shift);
                let host = long::Processor { vendor: Vendor::Amd, ..long::Processor::default() };
                self.nested::<G, Npt>(memory, Stage::new(Npt::four(true, host), root), false)
            }
            Scheme::Arm(shift) => {
                // 40 bits of input: two concatenated root tables of level 2.
                let root = self.tables(&mut memory, Encoding::ARM, Address::InPlace, 2, 2, shift);
                let format = Stage2::plain(Granule::Four, 40, &arm64::Processor::default())
                    .unwrap_or_else(|_| unreachable!("40 bits with the 4K granule exist"));
                self.nested::<G, Stage2>(memory, Stage::new(format, root), false)
            }
            Scheme::RiscV(shift) => {
                // Sv48x4: a root of 16 KiB.
                let root =
                    self.tables(&mut memory, Encoding::RISCV, Address::PageNumber, 3, 4, shift);
                let format = Sv::stage2(riscv::Scheme::Sv48, riscv::Features::default());
                self.nested::<G, Sv>(memory, Stage::new(format, root), false)
            }
        }
    }

    fn tables(
        &self,
        memory: &mut Physical,
        encoding: Encoding,
        address: Address,
        root_level: u8,
        root_tables: usize,
        shift: u8,
    ) -> u64 {
        let range = self.memory.clone();
        build(memory, encoding, address, root_level, root_tables, shift, range)
    }

    fn nested<G: Guest, F2: Format + Send + Sync + 'static>(
        &self,
        memory: Physical,
        stage2: Stage<F2, Gpa, Spa>,
        stays: bool,
    ) -> Result<Box<dyn Runs>, CompareError>
    where
        <G::Format as Format>::Root: Send,
        F2::Root: Send,
    {
        self.of::<G, F2>(memory, Hypervisor::Nested { stage2, stays })
    }

    fn of<G: Guest, F2: Format + Send + Sync + 'static>(
        &self,
        memory: Physical,
        hypervisor: Hypervisor<F2>,
    ) -> Result<Box<dyn Runs>, CompareError>
    where
        <G::Format as Format>::Root: Send,
        F2::Root: Send,
    {
        let machine =
            Machine::<G, F2>::new(self.processor, self.cores, memory, hypervisor, self.start)?;
        Ok(Box::new(machine))
    }
}
