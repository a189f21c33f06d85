//! Golden vectors: what hardware models answered, kept so that the walker can be held to it on a
//! machine without emulators.
//!
//! A file is zstd over: the magic, the recipe's byte, the model's byte, the monitor's information
//! (length and bytes), the number of probes, then the probes. Numbers are LEB128. A probe's state is
//! XORed with that of the probe before; addresses count words from the start of the arena, modulo
//! 2^64. Of memory afterwards only the words that changed are kept.

use anyhow::{Context, bail, ensure};

use crate::contract::{Info, STATE};
use crate::deviations::{Model, Seen};
use crate::engine::{Verdict, judge};
use crate::probe::{Case, Coverage, Met, Outcome, Probe, complete};
use crate::recipe::Recipe;
use crate::world::World;

const MAGIC: &[u8] = b"slat golden 1\n";
/// The most bytes that a file may unpack to.
const MOST: usize = 256 << 20;

const MODELS: [Model; 8] = [
    Model::QemuX86,
    Model::Bochs,
    Model::QemuAarch64,
    Model::QemuArm,
    Model::QemuRiscv,
    Model::Kvm,
    Model::Qemu10Aarch64,
    Model::Qemu10Arm,
];

/// Writes golden vectors of one subject.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    head: Vec<u8>,
    count: u64,
    state: [u64; STATE],
    world: World,
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

impl Writer {
    /// Begins a file.
    #[must_use]
    pub fn new(recipe: Recipe, model: Model, info: &Info) -> Writer {
        let mut head = MAGIC.to_vec();
        let place = MODELS.iter().position(|m| *m == model).unwrap_or(0);
        head.extend([recipe.code(), place as u8]);
        put(&mut head, info.bytes().len() as u64);
        head.extend(info.bytes());
        let world = recipe.subject(info).template();
        Writer { bytes: Vec::new(), head, count: 0, state: [0; STATE], world }
    }

    fn address(&mut self, address: u64) {
        let start = self.world.machine().arena.start;
        put(&mut self.bytes, (address.wrapping_sub(start) as i64 >> 3) as u64);
    }

    /// Adds a probe with its answer.
    pub fn add(&mut self, case: &Case, seen: &Seen) {
        put(&mut self.bytes, u64::from(case.probe.operation));
        let mut changed = 0;
        for (i, (new, old)) in case.probe.state.iter().zip(&self.state).enumerate() {
            changed |= u64::from(new != old) << i;
        }
        put(&mut self.bytes, changed);
        for (new, old) in case.probe.state.iter().zip(&self.state) {
            if new != old {
                put(&mut self.bytes, new ^ old);
            }
        }
        self.state = case.probe.state;
        // A word that holds what the template holds says nothing.
        let words: Vec<(u64, u64)> = case
            .probe
            .words
            .iter()
            .copied()
            .filter(|&(address, value)| self.world.word(address) != Some(value))
            .collect();
        put(&mut self.bytes, words.len() as u64);
        for (address, value) in words {
            self.address(address);
            put(&mut self.bytes, value);
        }
        self.bytes.push(seen.outcome.kind());
        for word in seen.outcome.words() {
            put(&mut self.bytes, word);
        }
        let after: Vec<(u64, u64)> = case
            .compared
            .iter()
            .zip(&seen.words)
            .filter(|((_, before, _), after)| *before != **after)
            .map(|(&(address, before, _), &after)| (address, before ^ after))
            .collect();
        put(&mut self.bytes, after.len() as u64);
        for (address, change) in after {
            self.address(address);
            put(&mut self.bytes, change);
        }
        self.count += 1;
    }

    /// The file.
    ///
    /// # Errors
    /// Where compression fails.
    pub fn finish(mut self) -> anyhow::Result<Vec<u8>> {
        put(&mut self.head, self.count);
        self.head.extend(&self.bytes);
        zstd::bulk::compress(&self.head, 19).context("cannot compress golden vectors")
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> anyhow::Result<u8> {
        let (&first, rest) = self.0.split_first().context("golden vectors are cut off")?;
        self.0 = rest;
        Ok(first)
    }

    fn number(&mut self) -> anyhow::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        bail!("golden vectors hold a number of more than 64 bits")
    }

    /// Addresses, counted from `start`, each with a value.
    fn pairs(&mut self, start: u64) -> anyhow::Result<Vec<(u64, u64)>> {
        let count = self.number()?;
        ensure!(count <= self.0.len() as u64, "golden vectors are cut off");
        (0..count)
            .map(|_| {
                let address = self.number()?.wrapping_shl(3).wrapping_add(start);
                Ok((address, self.number()?))
            })
            .collect()
    }
}

/// What became of a file's probes.
#[derive(Debug, Default)]
pub struct Replay {
    /// How many there are.
    pub probes: u64,
    /// How many agree.
    pub agree: u64,
    /// How many a deviation explains.
    pub masked: u64,
    /// How many the walker now finds to say nothing.
    pub unusable: u64,
    /// The others, described.
    pub disagreements: Vec<String>,
    /// Which entries were met: format, level, and for each bit how often it had each value.
    pub met: Vec<(String, u8, Met)>,
}

/// Asks the walker the questions of a file and compares.
///
/// # Errors
/// Where the file is damaged.
pub fn replay(file: &[u8]) -> anyhow::Result<Replay> {
    let coverage = &mut Coverage::default();
    let bytes = zstd::bulk::decompress(file, MOST).context("cannot unpack golden vectors")?;
    let bytes = bytes.strip_prefix(MAGIC).context("these are no golden vectors")?;
    let mut reader = Reader(bytes);
    let recipe = Recipe::from_code(reader.byte()?).context("an unknown recipe")?;
    let model = *MODELS.get(usize::from(reader.byte()?)).context("an unknown model")?;
    let length = reader.number()? as usize;
    let (info, rest) = reader.0.split_at_checked(length).context("golden vectors are cut off")?;
    let info = Info::from_bytes(info).context("the monitor's information is cut off")?;
    reader.0 = rest;
    let subject = recipe.subject(&info);
    let mut world = subject.template();
    let start = world.machine().arena.start;
    let count = reader.number()?;
    let mut state = [0; STATE];
    let mut result = Replay::default();
    for _ in 0..count {
        let operation = reader.number()? as u32;
        let changed = reader.number()?;
        for (i, word) in state.iter_mut().enumerate() {
            if changed >> i & 1 != 0 {
                *word ^= reader.number()?;
            }
        }
        let words = reader.pairs(start)?;
        let kind = reader.byte()?;
        let outcome = Outcome::from_words(kind, || reader.number())?;
        let changes = reader.pairs(start)?;
        let probe = Probe { operation, state, words };
        result.probes += 1;
        coverage.set_class(subject.class(&probe));
        let Some(mut case) = complete(subject.as_ref(), &mut world, probe, coverage) else {
            result.unusable += 1;
            continue;
        };
        let seen = recall(&world, &mut case, outcome, &changes);
        match judge(model, subject.as_ref(), &mut world, &case, &seen) {
            Verdict::Agree => result.agree += 1,
            Verdict::Masked(_) => result.masked += 1,
            Verdict::Disagree => result.disagreements.push(format!(
                "{}: the walker says {:x?}, the machine said {:x?}",
                subject.explain(&case.probe),
                case.expected,
                seen.outcome
            )),
        }
    }
    ensure!(reader.0.is_empty(), "golden vectors have more bytes than probes");
    for (class, stage, level, met) in coverage.met() {
        let name = subject.class_name(class);
        let format = name.split(" under ").nth(usize::from(stage) - 1).unwrap_or(&name);
        result.met.push((format.to_owned(), level, *met));
    }
    Ok(result)
}

/// The machine's memory afterwards, for the words of `case` and those that the machine changed.
fn recall(world: &World, case: &mut Case, outcome: Outcome, changes: &[(u64, u64)]) -> Seen {
    for &(address, _) in changes {
        if !case.compared.iter().any(|(at, ..)| *at == address) {
            let before = world.word(address).unwrap_or(0);
            case.compared.push((address, before, before));
        }
    }
    let words = case
        .compared
        .iter()
        .map(|&(address, before, _)| {
            let change = changes.iter().find(|(at, _)| *at == address);
            before ^ change.map_or(0, |(_, change)| *change)
        })
        .collect();
    Seen { outcome, words }
}
