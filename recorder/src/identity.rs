//! Which vCPU runs.
//!
//! Where all vCPUs share a thread, QEMU 10.0 puts the number of the vCPU that a block was translated
//! for into the block's callbacks, whichever vCPU runs it (`gen_cpu_index` in its
//! `accel/tcg/plugin-gen.c`). So the number is not to be trusted, and a vCPU is told by what its
//! operating system keeps apart for each: the base of its own data. A vCPU is switched only between
//! blocks, so that asking at each block is enough.

use std::ffi::c_void;

use slat_trace::Arch;

use crate::guest::Registers;

pub(crate) struct Identities {
    /// The registers of which one holds the base: x86-64 GS and, while a program runs, what SWAPGS
    /// exchanges it with; AArch64 TPIDR_EL1.
    registers: Vec<*mut c_void>,
    /// The bases seen, in the order of their numbers.
    bases: Vec<u64>,
}

impl Identities {
    pub(crate) fn new(registers: &Registers, arch: Arch) -> Self {
        let names: &[&str] = match arch {
            Arch::X86_64 => &["gs_base", "k_gs_base"],
            Arch::Aarch64 => &["TPIDR_EL1"],
        };
        let registers = names.iter().filter_map(|name| registers.handle(name)).collect();
        Self { registers, bases: Vec::new() }
    }

    /// The number of the vCPU that runs, in the order in which they were first met, below `vcpus`.
    pub(crate) fn current(&mut self, registers: &Registers, vcpus: u8) -> u8 {
        let mut kernel = None;
        for &handle in &self.registers {
            let base = registers.read(handle);
            if let Some(number) = self.bases.iter().position(|&known| known == base) {
                return number as u8;
            }
            // A program's own base is in the lower half.
            kernel = kernel.or((base >> 63 != 0).then_some(base));
        }
        if self.bases.len() < usize::from(vcpus) {
            self.bases.push(kernel.unwrap_or(0));
        }
        (self.bases.len() - 1) as u8
    }
}
