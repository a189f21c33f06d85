//! An AArch64 guest's tables in x86's or RISC-V's words.
//!
//! AArch64 has two roots, one a half of the address space, each of which spans 48 bits. x86-64 with
//! four levels has 48 bits for both halves together, so the guest gets five levels (LA57, Sv57): for
//! each pair of roots a table of the highest level, in memory behind the guest's, names the two. ASIDs
//! become PCIDs, TLBI becomes INVLPG and INVPCID.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use slat::format::x86::bits;
use slat_trace::{At, Control, Event, Exception, Invalidation, Root};

use super::{ADDRESS, Rewrites, Target, UNKNOWN, entries};
use crate::machine::tlbi_range;

/// Tables that pairs of roots get, used in turn.
const ROOTS: u64 = 512;
/// CR0 with paging and write protection (Intel SDM 3A 2.5).
const CR0: u64 = 1 << 31 | 1 << 16 | 1;
/// CR4 with PAE, PGE, LA57 and PCIDE.
const CR4: u64 = 1 << 5 | 1 << 7 | 1 << 12 | 1 << 17;
/// EFER with LME, LMA and NXE.
const EFER: u64 = 0xd00;
/// A load of CR3 that keeps the PCID's translations (Intel SDM 3A 4.10.4.1).
const KEEPS: u64 = 1 << 63;
/// More pages than this are dropped by dropping all: Linux's choice on x86.
const MOST_PAGES: u64 = 33;
/// TCR_EL1: T0SZ, TG0, T1SZ, TG1 (Arm ARM D24.2.182), and their values for 48 bits and 4K.
const TCR_CUT: u64 = 0x3f | 3 << 14 | 0x3f << 16 | 3 << 30;
const TCR_48_4K: u64 = 16 | 16 << 16 | 2 << 30;
/// Where TTBRn_EL1 has its table; the ASID is above.
const TTBR: u64 = 0xffff_ffff_f000;
/// TCR_EL1.A1: TTBR1_EL1 has the ASID.
const TCR_A1: u64 = 1 << 22;

#[derive(Clone, Debug, Default)]
struct Cpu {
    lower: u64,
    upper: u64,
    /// What CR3 holds: root and PCID.
    loaded: u64,
    /// Whose translations this vCPU keeps under a PCID.
    owners: HashMap<u64, u64>,
}

/// An AArch64 recording's events in another architecture.
#[derive(Clone, Debug)]
pub(super) struct FromArm {
    target: Target,
    memory: Range<u64>,
    cpus: Vec<Cpu>,
    /// Level of each table page, by frame.
    levels: Vec<u8>,
    /// Tables of the highest level that have had an entry: the kernel's reserved one never has.
    used: HashSet<u64>,
    /// The table of each pair of roots.
    roots: HashMap<(u64, u64), u64>,
    next: u64,
    tcr: u64,
    begun: bool,
    fails: Option<&'static str>,
    events: Vec<At>,
}

impl FromArm {
    pub(super) fn new(target: Target, cores: u8, memory: Range<u64>) -> FromArm {
        FromArm {
            target,
            memory: memory.start..memory.start + ROOTS * 4096,
            cpus: vec![Cpu::default(); usize::from(cores)],
            levels: Vec::new(),
            used: HashSet::new(),
            roots: HashMap::new(),
            next: 0,
            tcr: 0,
            begun: false,
            fails: None,
            events: Vec::new(),
        }
    }

    fn push(&mut self, at: &At, event: Event) {
        self.events.push(At { event, ..*at });
    }

    fn one(&mut self, at: &At) {
        match at.event {
            Event::Control { register, value } => {
                if register == Control::Tcr {
                    self.tcr = value;
                    if value & TCR_CUT != TCR_48_4K {
                        self.fails =
                            Some("only tables of 48 bits with the 4K granule are transcribed");
                    }
                }
                if !self.begun {
                    self.begun = true;
                    for vcpu in 0..self.cpus.len() as u8 {
                        for (register, value) in
                            [(Control::Cr0, CR0), (Control::Cr4, CR4), (Control::Efer, EFER)]
                        {
                            self.push(&At { vcpu, ..*at }, Event::Control { register, value });
                        }
                    }
                }
            }
            Event::Root { root, value } => self.root(at, root, value),
            Event::TablePage { gpa, level, fresh } => {
                let frame = (gpa >> 12) as usize;
                if self.levels.len() <= frame {
                    // As much as the machines keep; they refuse what is beyond.
                    self.levels.resize((frame + 1).min(1 << 24), UNKNOWN);
                }
                if let Some(known) = self.levels.get_mut(frame) {
                    *known = level;
                }
                if fresh {
                    self.used.remove(&(gpa & ADDRESS));
                }
                self.push(at, at.event);
            }
            Event::TableEntry { gpa, value } => {
                let new = self.entry(gpa, value);
                self.push(at, Event::TableEntry { gpa, value: new });
                self.used(at, gpa, value);
            }
            Event::TableStore { gpa, value } => {
                let new = self.entry(gpa, value);
                self.push(at, Event::TableStore { gpa, value: new });
                self.used(at, gpa, value);
            }
            Event::Invalidate(Invalidation::Tlbi { operation, operand }) => {
                self.invalidate(at, operation, operand);
            }
            Event::Exception(exception) => self.exception(at, exception),
            _ => self.push(at, at.event),
        }
    }

    fn entry(&self, gpa: u64, entry: u64) -> u64 {
        let level = self.levels.get((gpa >> 12) as usize).copied().unwrap_or(UNKNOWN);
        if level > 3 {
            return 0;
        }
        let entry = entries::x86(entry, level);
        if entry == 0 || self.target == Target::X86 {
            return entry;
        }
        let leaf = level == 0 || entry & bits::PS != 0 && level < 3;
        entries::riscv(entry, entry & ADDRESS, leaf)
    }

    /// An entry was written: if the first of a root that is loaded, its load counts now.
    fn used(&mut self, at: &At, gpa: u64, value: u64) {
        let table = gpa & ADDRESS;
        let top = self.levels.get((gpa >> 12) as usize) == Some(&3);
        if value & 1 == 0 || !top || !self.used.insert(table) {
            return;
        }
        for vcpu in 0..self.cpus.len() {
            if self.cpus[vcpu].roots().1 == table {
                self.load(&At { vcpu: vcpu as u8, ..*at });
            }
        }
    }

    fn root(&mut self, at: &At, root: Root, value: u64) {
        let Some(cpu) = self.cpus.get_mut(usize::from(at.vcpu)) else { return };
        let (before, _) = cpu.roots();
        match root {
            Root::Ttbr0 => cpu.lower = value,
            Root::Ttbr1 => cpu.upper = value,
            Root::Cr3 => return,
        }
        // While the kernel runs it may select a lower root without entries, and an ASID of none: an x86
        // kernel would keep what is loaded.
        let (upper, lower) = cpu.roots();
        let moved = upper != before;
        if (root == Root::Ttbr0 || moved) && self.used.contains(&lower) {
            self.load(at);
        }
    }

    /// CR3 is loaded with the vCPU's roots, unless it holds them.
    fn load(&mut self, at: &At) {
        let Some(cpu) = self.cpus.get(usize::from(at.vcpu)) else { return };
        let (upper, lower) = cpu.roots();
        let asid = (if self.tcr & TCR_A1 != 0 { cpu.upper } else { cpu.lower }) >> 48;
        let table = self.table(at, lower, upper);
        let pcid = 1 + asid % 0xfff;
        let cpu = &mut self.cpus[usize::from(at.vcpu)];
        if cpu.loaded == table | pcid {
            return;
        }
        cpu.loaded = table | pcid;
        let keeps = cpu.owners.insert(pcid, asid) == Some(asid);
        let value = table | pcid | if keeps { KEEPS } else { 0 };
        self.push(at, Event::Root { root: Root::Cr3, value });
    }

    /// The table that names both roots.
    fn table(&mut self, at: &At, lower: u64, upper: u64) -> u64 {
        if let Some(&table) = self.roots.get(&(lower, upper)) {
            return table;
        }
        let table = loop {
            let table = self.memory.start + self.next % ROOTS * 4096;
            self.next += 1;
            if self.cpus.iter().all(|cpu| cpu.loaded & ADDRESS != table) {
                break table;
            }
        };
        if self.next > ROOTS {
            self.roots.retain(|_, held| *held != table);
            self.push(at, Event::TableRelease { gpa: table });
        }
        self.roots.insert((lower, upper), table);
        self.push(at, Event::TablePage { gpa: table, level: 4, fresh: true });
        for (index, root) in [(0, lower), (511, upper)] {
            let entry = entries::x86(root | 0b11, 3);
            let value = match self.target {
                Target::X86 => entry,
                _ => entries::riscv(entry, root, false),
            };
            if root != 0 {
                self.push(at, Event::TableEntry { gpa: table + 8 * index, value });
            }
        }
        table
    }

    /// TLBI (Arm ARM D8.17) by what an x86 kernel would do, on the cores that the instruction reaches.
    fn invalidate(&mut self, at: &At, operation: u16, operand: u64) {
        let (crm, op2) = (operation >> 3 & 0xf, operation & 7);
        // CRm 6 and 7 are the local forms.
        let local = matches!(crm, 6 | 7);
        let cores = if local { at.vcpu..at.vcpu + 1 } else { 0..self.cpus.len() as u8 };
        let (start, bytes) = match crm {
            2 | 5 | 6 => tlbi_range(operand),
            // Bits 55:12 of the address, sign-extended.
            _ => (((operand as i64) << 20 >> 8) as u64, 4096),
        };
        let pcid = 1 + (operand >> 48) % 0xfff;
        for vcpu in cores {
            let at = At { vcpu, ..*at };
            let Some(cpu) = self.cpus.get(usize::from(vcpu)) else { continue };
            let current = cpu.loaded & 0xfff;
            let all = |kind| Invalidation::Invpcid { kind, pcid, va: 0 };
            let pages = bytes / 4096;
            match op2 {
                2 => self.push(&at, Event::Invalidate(all(1))),
                1 | 3 | 5 | 7 if pages <= MOST_PAGES => {
                    for va in (0..pages).map(|page| start.wrapping_add(page * 4096)) {
                        let own = op2 & 2 != 0 || pcid == current || va >> 63 == 1;
                        self.push(
                            &at,
                            Event::Invalidate(match own {
                                true => Invalidation::Invlpg { va },
                                false => Invalidation::Invpcid { kind: 0, pcid, va },
                            }),
                        );
                    }
                }
                1 | 5 => self.push(&at, Event::Invalidate(all(1))),
                _ => self.push(&at, Event::Invalidate(all(2))),
            }
        }
    }

    /// Translation and permission faults are page faults; a clear access flag would be none.
    fn exception(&mut self, at: &At, exception: Exception) {
        let syndrome = exception.stack_or_syndrome;
        let (class, status) = (syndrome >> 26 & 0x3f, syndrome & 0x3f);
        let synchronous = exception.vector & 3 == 0;
        let abort = synchronous && matches!(class, 0x20 | 0x21 | 0x24 | 0x25);
        let vector = match status >> 2 {
            // DFSC 0001xx translation, 0010xx access flag, 0011xx permission (Arm ARM D24.2.40).
            0b0001 | 0b0011 if abort => 14,
            0b0010 if abort => return,
            _ => 32,
        };
        self.push(at, Event::Exception(Exception { vector, ..exception }));
    }
}

impl Cpu {
    /// Tables of the upper and the lower half.
    fn roots(&self) -> (u64, u64) {
        (self.upper & TTBR, self.lower & TTBR)
    }
}

impl Rewrites for FromArm {
    fn take(&mut self, events: &[At]) {
        self.events.clear();
        for at in events {
            self.one(at);
        }
    }

    fn events(&self) -> &[At] {
        &self.events
    }

    fn fails(&self) -> Option<&'static str> {
        self.fails
    }

    fn memory(&self) -> Range<u64> {
        self.memory.clone()
    }
}
