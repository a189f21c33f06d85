//! One machine with its tables, and what is asked of it.

use slat::format::Format;
use slat::format::flat::Flat;
use slat::format::x86::Vendor;
use slat::format::x86::legacy::Legacy;
use slat::format::x86::long::{Long, Processor};
use slat::format::x86::pae::{self, Pae};
use slat::syndrome::x86::{fetch_flagged, page_fault};
use slat::{Access, Failed, Gva, Kind, Privilege, Regime, Spa, Stage, Updates, walk};
use slat_kvm::prober::{DATA, Deed, Prober, Reaction, TABLES};
use slat_kvm::{PagingState, Translator};

use super::mode::{Mode, Paging};
use super::tables::{self, Tables};
use super::{Asked, Way, smaller};
use crate::contract::{Machine, STATE};
use crate::deviations::{self, Deviation, Model, Seen};
use crate::engine::{Disagreement, Tally};
use crate::probe::{Case, Outcome, Probe};
use crate::random::Random;
use crate::reproduce::{Reproducer, Walk};
use crate::world::{Beyond, NoRam, World};

/// One machine with its tables.
pub(super) struct Round {
    way: Way,
    mode: Mode,
    machine: Asker,
    world: World,
    root: u64,
    processor: Processor,
}

/// What answers.
pub(super) enum Asker {
    /// KVM itself.
    Translator(Translator),
    /// A guest of KVM.
    Prober(Prober),
    /// The walker with these bits of CR0 clear, as a machine that is wrong in a way that is known.
    #[cfg(test)]
    Without(u64),
}

impl Asker {
    pub(super) fn new(way: Way) -> anyhow::Result<Asker> {
        Ok(match way {
            Way::Translate => Asker::Translator(Translator::new(DATA.end)?),
            Way::Supervisor => Asker::Prober(Prober::new(false)?),
            Way::User => Asker::Prober(Prober::new(true)?),
        })
    }

    fn store(&self, at: u64, entry: u64) {
        match self {
            Asker::Translator(kvm) => kvm.store(at, entry),
            Asker::Prober(kvm) => kvm.store(at, entry),
            #[cfg(test)]
            Asker::Without(_) => (),
        }
    }

    fn processor(&self) -> Processor {
        let theirs = match self {
            Asker::Translator(kvm) => kvm.processor(),
            Asker::Prober(kvm) => kvm.processor(),
            #[cfg(test)]
            Asker::Without(_) => return Processor::default(),
        };
        Processor {
            physical_bits: theirs.physical_bits,
            gigabyte_pages: theirs.gigabyte_pages,
            vendor: if theirs.amd { Vendor::Amd } else { Vendor::Intel },
            encryption_bit: None,
        }
    }
}

impl Round {
    pub(super) fn new(way: Way, mode: Mode, random: &mut Random) -> anyhow::Result<Round> {
        let Tables { root, words } = Tables::new(mode.paging, random);
        Ok(Round::with(way, mode, Asker::new(way)?, root, &words))
    }

    /// The round of a machine with these entries in its tables.
    pub(super) fn with(
        way: Way,
        mode: Mode,
        machine: Asker,
        root: u64,
        words: &[(u64, u64)],
    ) -> Round {
        let mut world = World::new(&Machine::KVM, Beyond::Abort);
        for &(at, entry) in words {
            world.set(at, entry);
            machine.store(at, entry);
        }
        let processor = machine.processor();
        Round { way, mode, machine, world, root, processor }
    }

    /// Gives the machine its registers.
    ///
    /// # Errors
    /// That it does not take them.
    fn begin(&self) -> Result<(), String> {
        let Mode { cr0, cr4, efer, .. } = self.mode;
        let state = PagingState { cr0, cr3: self.root, cr4, efer };
        let kept = match &self.machine {
            Asker::Translator(kvm) => kvm.set(state),
            Asker::Prober(kvm) => kvm.set(state),
            #[cfg(test)]
            Asker::Without(_) => Ok(true),
        };
        let why = match kept {
            Ok(true) => return Ok(()),
            Ok(false) => "does not keep".to_owned(),
            Err(error) => format!("refuses ({error})"),
        };
        Err(format!("KVM {why} cr0 {cr0:#x} cr4 {cr4:#x} efer {efer:#x}"))
    }

    /// Whether what the walker or a deviating one reaches is the guest's: KVM would take all else for a device.
    fn is_usable(&mut self, address: u64, deed: Deed) -> bool {
        [None, Some(OWN_SLOT), Some(UPPER_BITS), Some(PSE_36)].into_iter().all(|deviation| {
            let outcome = self.expect(address, deed, deviation);
            self.world.reset();
            outcome.is_some()
        })
    }

    /// Asks one question, and returns what both sides disagree over.
    ///
    /// # Errors
    /// Where the machine cannot be asked.
    pub(super) fn ask_one(
        &mut self,
        address: u64,
        deed: Deed,
    ) -> anyhow::Result<Option<Disagreement>> {
        if self.begin().is_err() || !self.is_usable(address, deed) {
            return Ok(None);
        }
        let Some(&seen) = self.answers(&[(address, deed)])?.first() else { return Ok(None) };
        let mut tally = Tally::default();
        self.judge(address, deed, seen, &mut tally);
        Ok(tally.disagreements.pop().map(|(_, disagreement)| disagreement))
    }

    /// Asks this many questions, or as many as the guest takes.
    pub(super) fn ask(
        mut self,
        count: u64,
        random: &mut Random,
        asked: &mut Asked,
    ) -> anyhow::Result<()> {
        if let Err(why) = self.begin() {
            asked.skipped.insert(why);
            return Ok(());
        }
        let mut list = Vec::new();
        while (list.len() as u64) < count {
            let deed = match self.way {
                Way::Translate => Deed::Load,
                _ => random.pick(&[Deed::Load, Deed::Store, Deed::Call]),
            };
            let mut address = self.mode.canonical(tables::address(random));
            if self.mode.paging.is_long() && random.chance(2) {
                address ^= 1 << (57 + random.below(7));
            }
            if self.is_usable(address, deed) {
                list.push((address, deed));
            }
        }
        let seen = self.answers(&list)?;
        for (&(address, deed), outcome) in list.iter().zip(&seen) {
            asked.tally.probes += 1;
            self.judge(address, deed, *outcome, &mut asked.tally);
        }
        self.compare_tables(&mut asked.tally);
        Ok(())
    }

    /// KVM's answers, up to the one at which a guest stopped.
    fn answers(&mut self, list: &[(u64, Deed)]) -> anyhow::Result<Vec<Outcome>> {
        match &mut self.machine {
            Asker::Translator(kvm) => list
                .iter()
                .map(|&(address, _)| {
                    let found = kvm.translate(address)?;
                    Ok(match found {
                        Some(value) => Outcome::Done { value },
                        None => Outcome::Stage1 { syndrome: 0, address },
                    })
                })
                .collect(),
            Asker::Prober(kvm) => {
                let reactions = kvm.ask(list, self.mode.alignment_check)?;
                let mut outcomes: Vec<Outcome> = reactions
                    .all
                    .iter()
                    .map(|reaction| match *reaction {
                        Reaction::Done => Outcome::Done { value: 0 },
                        Reaction::PageFault { code, address } => {
                            Outcome::Stage1 { syndrome: code, address }
                        }
                        Reaction::General => Outcome::General,
                    })
                    .collect();
                if reactions.stopped.is_some() {
                    outcomes.push(Outcome::NONE);
                }
                Ok(outcomes)
            }
            #[cfg(test)]
            &mut Asker::Without(bits) => {
                let cr0 = self.mode.cr0;
                self.mode.cr0 = cr0 & !bits;
                let mut outcomes = Vec::new();
                for &(address, deed) in list {
                    outcomes.extend(self.expect(address, deed, None));
                    self.world.reset();
                }
                self.mode.cr0 = cr0;
                Ok(outcomes)
            }
        }
    }

    /// The walker's answer, which the world then holds; `None` where it would say nothing.
    fn expect(
        &mut self,
        address: u64,
        deed: Deed,
        deviation: Option<&'static str>,
    ) -> Option<Outcome> {
        let controls = self.mode.controls();
        let format = match self.mode.paging {
            Paging::None => return self.under(&Flat::X86_UNPAGED, (), address, deed),
            Paging::Legacy => {
                let bits = self.processor.physical_bits;
                let bits = if deviation == Some(PSE_36) { bits.min(36) } else { bits };
                let format = Legacy::new(controls, self.mode.large_pages(), bits);
                return self.under(&format, self.root, address, deed);
            }
            Paging::Pae => {
                // KVM loads the PDPTEs when CR3 is set, as the processor does; nobody changes them.
                let pdptes = [0, 1, 2, 3].map(|n| self.world.word(self.root + 8 * n).unwrap_or(0));
                let format = Pae::new(controls, self.processor);
                return self.under(&format, pae::Root::Registers(pdptes), address, deed);
            }
            Paging::Four => Long::four(controls, self.processor),
            Paging::Five => Long::five(controls, self.processor),
        };
        let canonical = self.mode.canonical(address);
        let address = match deviation {
            Some(UPPER_BITS) if self.way == Way::Translate => canonical,
            _ => address,
        };
        let four = self.mode.paging == Paging::Four;
        let own = four && self.way == Way::User && canonical >> 39 & 511 == 256;
        if deviation == Some(OWN_SLOT) && own && canonical == address {
            let at = self.root + 8 * 256;
            let entry = self.world.word(at).unwrap_or(0);
            self.world.poke(at, 0);
            let outcome = self.under(&format, self.root, address, deed);
            self.world.poke(at, entry);
            return match outcome {
                // The processor finds it, with no-execute on as the host has it.
                Some(Outcome::Stage1 { syndrome, address }) if deed == Deed::Call => {
                    Some(Outcome::Stage1 { syndrome: syndrome | FETCH, address })
                }
                other => other,
            };
        }
        self.under(&format, self.root, address, deed)
    }

    fn under<F: Format + Copy>(
        &mut self,
        format: &F,
        root: F::Root,
        address: u64,
        deed: Deed,
    ) -> Option<Outcome> {
        let kind = match deed {
            Deed::Load => Kind::Read,
            Deed::Store => Kind::Write,
            Deed::Call => Kind::Execute,
        };
        let user = self.way == Way::User;
        let privilege = if user { Privilege::User } else { Privilege::Supervisor };
        let stage = Stage::<_, Gva, Spa>::new(*format, root).with_updates(Updates::OnSuccess);
        let access = Access::new(kind, privilege);
        let mut regime = Regime::default();
        regime.x86.alignment_check = self.mode.alignment_check;
        let found = walk(&stage, &mut self.world, Gva::new(address), &access, &regime, &());
        // An accessed bit among the data would change what is executed there.
        let tables = self.world.seen().iter().all(|at| TABLES.contains(at));
        if self.world.strayed() || !tables {
            return None;
        }
        let translate = self.way == Way::Translate;
        match found {
            Ok(mapped) if translate => Some(Outcome::Done { value: mapped.output.raw() }),
            Ok(mapped) => DATA.contains(&mapped.output.raw()).then_some(Outcome::Done { value: 0 }),
            Err(Failed::Below(NoRam { .. })) => None,
            Err(Failed::Here(_)) if translate => Some(Outcome::Stage1 { syndrome: 0, address }),
            Err(Failed::Here(fault)) => {
                let flagged = fetch_flagged(&self.mode.controls(), true);
                Some(match page_fault(&fault, flagged) {
                    Some(syndrome) => Outcome::Stage1 { syndrome, address: fault.input.raw() },
                    None => Outcome::General,
                })
            }
        }
    }

    fn judge(&mut self, address: u64, deed: Deed, seen: Outcome, tally: &mut Tally) {
        let expected = self.expect(address, deed, None).unwrap_or(Outcome::Other([0; 4]));
        if seen == expected {
            self.world.keep();
            tally.agree += 1;
            return;
        }
        let read = self.world.seen().to_vec();
        self.world.reset();
        for deviation in known() {
            let deviant = self.expect(address, deed, Some(deviation.name));
            if deviant.map(|outcome| self.as_read(outcome, address)) == Some(seen) {
                self.world.keep();
                *tally.masked.entry(deviation.name.to_owned()).or_default() += 1;
                let example = || self.disagreement(address, deed, expected, seen);
                tally.examples.entry(deviation.name.to_owned()).or_insert_with(example);
                return;
            }
            self.world.reset();
        }
        let mut lost = self.disagreement(address, deed, expected, seen);
        lost.case.probe.words = smaller::path(&self.world, self.mode, self.root, address, read);
        for (at, entry) in &lost.case.probe.words {
            lost.explanation += &format!(" [{at:#x}]={entry:#x}");
        }
        tally.disagree(lost);
    }

    /// A fault as KVM reports it: with the address that was asked.
    fn as_read(&self, outcome: Outcome, address: u64) -> Outcome {
        match outcome {
            Outcome::Stage1 { syndrome, .. } if self.way == Way::Translate => {
                Outcome::Stage1 { syndrome, address }
            }
            other => other,
        }
    }

    /// The tables after all that was asked.
    fn compare_tables(&self, tally: &mut Tally) {
        const ACCESSED: u64 = 1 << 5;
        for at in TABLES.step_by(8) {
            let expected = self.world.word(at).unwrap_or(0);
            let got = match &self.machine {
                Asker::Translator(kvm) => kvm.load(at),
                Asker::Prober(kvm) => kvm.load(at),
                #[cfg(test)]
                Asker::Without(_) => expected,
            };
            if got | ACCESSED != expected | ACCESSED || expected & ACCESSED & !got != 0 {
                let done = Outcome::Done { value: 0 };
                let mut lost = self.disagreement(0, Deed::Load, done, done);
                lost.explanation = format!("an entry after all of a round: {}", lost.explanation);
                lost.case.compared = vec![(at, 0, expected)];
                lost.seen.words = vec![got];
                tally.disagree(lost);
                return;
            }
        }
    }

    fn disagreement(
        &self,
        address: u64,
        deed: Deed,
        expected: Outcome,
        seen: Outcome,
    ) -> Disagreement {
        let Mode { cr0, cr4, efer, alignment_check, paging } = self.mode;
        let what = match deed {
            Deed::Load => "read",
            Deed::Store => "write",
            Deed::Call => "execute",
        };
        let mut state = [0; STATE];
        (state[1], state[3], state[4], state[5], state[6]) = (address, cr0, self.root, cr4, efer);
        state[9] = u64::from(alignment_check) << 18;
        let ac = if alignment_check { ",ac=on" } else { "" };
        let format = paging.name();
        let bits = self.processor.physical_bits;
        let mut stage1 = format!(
            "{format},cr3={:#x},cr0={cr0:#x},cr4={cr4:#x},efer={efer:#x}{ac},maxphyaddr={bits}",
            self.root
        );
        crate::reproduce::unless(&mut stage1, true, self.processor.gigabyte_pages, "gigabyte");
        if self.processor.vendor == Vendor::Amd {
            stage1 += ",vendor=amd";
        }
        let user = self.way == Way::User;
        let access = ["r", "w", "x"][deed as usize];
        let walk = Walk { stage1, stage2: None, access, user, address };
        let probe = Probe { operation: deed as u32, state, words: vec![] };
        Disagreement {
            variant: self.way.name().to_owned(),
            case: Case { probe, compared: vec![], expected, reached: None },
            seen: Seen { outcome: seen, words: vec![] },
            explanation: format!(
                "{what} {address:#x} cr0 {cr0:#x} cr3 {:#x} cr4 {cr4:#x} efer {efer:#x} ac {alignment_check}",
                self.root
            ),
            reproducer: Reproducer::of(vec![walk], self.world.segments()),
        }
    }
}

/// I/D of a page fault's error code.
const FETCH: u64 = 1 << 4;

/// The names of KVM's deviations.
const OWN_SLOT: &str = "slot-of-the-switcher";
const UPPER_BITS: &str = "translate-ignores-upper-bits";
const PSE_36: &str = "large-pages-of-36-bits";

fn known() -> impl Iterator<Item = &'static Deviation> {
    deviations::all().filter(|deviation| deviation.models.contains(&Model::Kvm))
}
