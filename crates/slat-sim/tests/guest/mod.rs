//! A small guest's tables, built entry by entry.

use slat_trace::{Access, Batch, Control, Event, Root};

/// Present, writable, user, accessed, dirty (Intel SDM 3A 5.5.4).
const X86: u64 = 0x67;
/// Valid tables; pages of Normal memory, for users too, accessed, of their ASID alone (Arm ARM D8.3).
const ARM_TABLE: u64 = 0x3;
const ARM_PAGE: u64 = 0xf43;

/// Tables that map what was asked for.
#[derive(Clone)]
pub(crate) struct Guest {
    pub root: u64,
    levels: u8,
    arm: bool,
    entries: Vec<(u64, u64)>,
    pub tables: Vec<(u64, u8)>,
}

impl Guest {
    /// An x86 guest of so many levels.
    pub(crate) fn new(levels: u8) -> Guest {
        Guest::at(0x10_0000, levels, false)
    }

    /// Tables from `root` on.
    pub(crate) fn at(root: u64, levels: u8, arm: bool) -> Guest {
        Guest { root, levels, arm, entries: Vec::new(), tables: vec![(root, levels - 1)] }
    }

    /// Maps a page of `shift`, and says where its entry is.
    pub(crate) fn map(&mut self, va: u64, gpa: u64, shift: u8) -> (u64, u64) {
        let (to_table, page) = if self.arm { (ARM_TABLE, ARM_PAGE) } else { (X86, X86) };
        let mut table = self.root;
        let mut level = self.levels - 1;
        loop {
            let at = table + 8 * (va >> (12 + 9 * level) & 0x1ff);
            if 12 + 9 * level == shift {
                let large = if level > 0 { 0x80 } else { 0 };
                self.entries.push((at, gpa | page | large));
                return (at, gpa | page | large);
            }
            let held = self.entries.iter().find(|(place, _)| *place == at).map(|(_, e)| e & !0xfff);
            table = held.unwrap_or_else(|| {
                let next = self.root + 4096 * self.tables.len() as u64;
                self.tables.push((next, level - 1));
                self.entries.push((at, next | to_table));
                next
            });
            level -= 1;
        }
    }

    /// A vCPU's registers.
    pub(crate) fn begin(&self, batch: &mut Batch, vcpu: u8) {
        let five = if self.levels == 5 { 1 << 12 } else { 0 };
        let registers = if self.arm {
            [
                (Control::Mair, !0),
                (Control::Tcr, 16 | 16 << 16 | 2 << 30 | 5 << 32),
                (Control::Sctlr, 0x1005),
            ]
        } else {
            [(Control::Cr0, 0x8005_0033), (Control::Cr4, 0x6b0 | five), (Control::Efer, 0xd01)]
        };
        for (register, value) in registers {
            batch.event(vcpu, Event::Control { register, value });
        }
        self.load(batch, vcpu);
    }

    /// The vCPU loads the root.
    pub(crate) fn load(&self, batch: &mut Batch, vcpu: u8) {
        let root = if self.arm { Root::Ttbr0 } else { Root::Cr3 };
        batch.event(vcpu, Event::Root { root, value: self.root });
    }

    /// The tables, with all that they hold.
    pub(crate) fn know(&self, batch: &mut Batch) {
        for &(gpa, level) in &self.tables {
            batch.event(0, Event::TablePage { gpa, level, fresh: true });
        }
        for &(gpa, value) in &self.entries {
            batch.event(0, Event::TableEntry { gpa, value });
        }
    }

    /// All of that, and accesses on one vCPU.
    pub(crate) fn batch(&self, accesses: impl IntoIterator<Item = Access>) -> Batch {
        let mut batch = Batch::default();
        self.begin(&mut batch, 0);
        self.know(&mut batch);
        batch.accesses.extend(accesses);
        batch.instructions = batch.accesses.len() as u64;
        batch
    }
}
