//! Golden vectors: what hardware models answered, kept so that the walker can be held to it on a
//! machine without emulators.
//!
//! The questions themselves are not kept: they follow from the seed and the answers, whoever asks. A file is zstd
//! over: the magic, the recipe's byte, the model's byte, the monitor's information (length and bytes),
//! the seed, the number of probes, a hash of the questions, then three columns, each with its length:
//!
//! * for each probe how many drafts were passed over before it, its kind of outcome, and how many words
//!   of memory it changed;
//! * names: of the outcome's words and of what changed, each as its place among what the question
//!   holds ([`named`]), or as one more than the last;
//! * the values of those that had no such place.
//!
//! Numbers are LEB128. Of memory afterwards only the words that changed are kept, XORed with what they
//! held.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};

use crate::contract::Info;
use crate::deviations::{Model, Seen, Shows};
use crate::draft::{Coverage, Met};
use crate::engine::{self, Drafts, Question, Verdict, judge};
use crate::probe::{Case, Outcome, PassedOver, Probe, Subject, complete};
use crate::random::{BASIS, mix};
use crate::recipe::Recipe;
use crate::world::World;

const MAGIC: &[u8] = b"slat golden 2\n";
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
    head: Vec<u8>,
    start: u64,
    count: u64,
    hash: u64,
    /// The draft after the last one that was kept.
    next: u64,
    columns: [Vec<u8>; 3],
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// The values that an answer is likely to name, from the question: zero, the state, the addresses and
/// values of its words.
fn named(probe: &Probe) -> Vec<u64> {
    let words = probe.words.iter().flat_map(|&(address, value)| [address, value]);
    std::iter::once(0).chain(probe.state).chain(words).collect()
}

/// Writes a value as its place among the names, or after the last of them as a literal.
fn name(names: &[u64], places: &mut Vec<u8>, literals: &mut Vec<u8>, value: u64, literal: u64) {
    match names.iter().position(|name| *name == value) {
        Some(place) => put(places, place as u64),
        None => {
            put(places, names.len() as u64);
            put(literals, literal);
        }
    }
}

/// FNV-1a over the words of a question.
fn digest(mut hash: u64, probe: &Probe) -> u64 {
    let words = named(probe);
    for word in std::iter::once(u64::from(probe.operation)).chain(words) {
        hash = mix(hash, word);
    }
    hash
}

impl Writer {
    /// Begins a file of the answers to the questions of this seed.
    #[must_use]
    pub fn new(recipe: Recipe, model: Model, info: &Info, seed: u64) -> Writer {
        let mut head = MAGIC.to_vec();
        let place = MODELS.iter().position(|m| *m == model).unwrap_or(0);
        head.extend([recipe.code(), place as u8]);
        put(&mut head, info.bytes().len() as u64);
        head.extend(info.bytes());
        put(&mut head, seed);
        let start = recipe.subject(info).template().machine().arena.start;
        let columns = [Vec::new(), Vec::new(), Vec::new()];
        Writer { head, start, count: 0, hash: BASIS, next: 0, columns }
    }

    /// Adds the probe that was this draft, with its answer.
    pub fn add(&mut self, draft: u64, case: &Case, seen: &Seen) {
        let names = named(&case.probe);
        let [shape, places, literals] = &mut self.columns;
        put(shape, draft - self.next);
        shape.push(seen.outcome.kind());
        for word in seen.outcome.words() {
            name(&names, places, literals, word, word);
        }
        let changed: Vec<(u64, u64)> = case
            .compared
            .iter()
            .zip(&seen.words)
            .filter(|((_, before, _), after)| *before != **after)
            .map(|(&(address, before, _), &after)| (address, before ^ after))
            .collect();
        put(shape, changed.len() as u64);
        for (address, change) in changed {
            let offset = (address.wrapping_sub(self.start) as i64 >> 3) as u64;
            name(&names, places, literals, address, offset);
            // Mostly a bit or two.
            put(literals, change.rotate_right(5));
        }
        self.hash = digest(self.hash, &case.probe);
        self.next = draft + 1;
        self.count += 1;
    }

    /// The file.
    ///
    /// # Errors
    /// Where compression fails.
    pub fn finish(mut self) -> anyhow::Result<Vec<u8>> {
        put(&mut self.head, self.count);
        put(&mut self.head, self.hash);
        for column in &self.columns {
            put(&mut self.head, column.len() as u64);
            self.head.extend(column);
        }
        zstd::bulk::compress(&self.head, 22).context("cannot compress golden vectors")
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

    /// As many bytes as the next number says.
    fn column(&mut self) -> anyhow::Result<Self> {
        let length = self.number()? as usize;
        let (column, rest) =
            self.0.split_at_checked(length).context("golden vectors are cut off")?;
        self.0 = rest;
        Ok(Reader(column))
    }
}

/// What became of a file's probes.
#[derive(Debug, Default)]
pub struct Replay {
    /// How many there are.
    pub probes: u64,
    /// How many agree.
    pub agree: u64,
    /// How many deviations explain, by the [names](engine::names) of these.
    pub masked: BTreeMap<String, u64>,
    /// How many the walker now finds to say nothing.
    pub unusable: u64,
    /// Of how many drafts, asked or passed over, it now refuses the registers.
    pub refused: u64,
    /// The others, described.
    pub disagreements: Vec<String>,
    /// How many accesses were made where walker and machine agree, by pair of formats and kind of access.
    pub done: BTreeMap<(String, &'static str), u64>,
    /// Which entries were met where walker and machine agree, apart from how the machine reports it: format,
    /// stage, level, and for each bit how often it had each value, by the outcome.
    pub met: Vec<(String, u8, u8, Met)>,
}

/// Of what processor a file has the answers: the subject's recipe, and what the monitor read back.
///
/// # Errors
/// Where the file is damaged.
pub fn asked_of(file: &[u8]) -> anyhow::Result<(Recipe, Info)> {
    let bytes = zstd::bulk::decompress(file, MOST).context("cannot unpack golden vectors")?;
    let (head, _) = Head::read(&bytes)?;
    Ok((head.recipe, head.info))
}

/// Questions such as a file begins with, whoever is asked, and the subject that they are about.
///
/// # Errors
/// Where the file is damaged.
pub fn questions(file: &[u8], count: usize) -> anyhow::Result<(Box<dyn Subject>, Vec<Case>)> {
    let bytes = zstd::bulk::decompress(file, MOST).context("cannot unpack golden vectors")?;
    let (head, _) = Head::read(&bytes)?;
    let subject = head.recipe.subject(&head.info);
    let mut world = subject.template();
    let mut drafts = Drafts::new(subject.as_ref(), head.seed);
    let mut cases = Vec::new();
    while cases.len() < count {
        let probe = drafts.next(&world).probe;
        cases.extend(complete(subject.as_ref(), &mut world, probe, &mut Vec::new()));
    }
    Ok((subject, cases))
}

/// What a file begins with.
struct Head {
    recipe: Recipe,
    model: Model,
    info: Info,
    seed: u64,
}

impl Head {
    /// The head, and what follows it.
    fn read(bytes: &[u8]) -> anyhow::Result<(Head, Reader<'_>)> {
        let bytes = bytes.strip_prefix(MAGIC).context("these are no golden vectors")?;
        let mut reader = Reader(bytes);
        let recipe = Recipe::from_code(reader.byte()?).context("an unknown recipe")?;
        let model = *MODELS.get(usize::from(reader.byte()?)).context("an unknown model")?;
        let info =
            Info::from_bytes(reader.column()?.0).context("the monitor's information is cut off")?;
        let seed = reader.number()?;
        Ok((Head { recipe, model, info, seed }, reader))
    }
}

/// So many disagreements tell enough; to look for what explains each takes as long as many questions.
const ENOUGH: usize = 20;

/// Asks the walker the questions of a file and compares, up to a few that disagree.
///
/// # Errors
/// Where the file is damaged.
pub fn replay(file: &[u8]) -> anyhow::Result<Replay> {
    let coverage = &mut Coverage::default();
    let bytes = zstd::bulk::decompress(file, MOST).context("cannot unpack golden vectors")?;
    let (Head { recipe, model, info, seed }, mut reader) = Head::read(&bytes)?;
    let subject = recipe.subject(&info);
    let mut world = subject.template();
    let start = world.machine().arena.start;
    let count = reader.number()?;
    let expected = reader.number()?;
    let [mut shape, mut places, mut literals] =
        [reader.column()?, reader.column()?, reader.column()?];
    ensure!(reader.0.is_empty(), "golden vectors have more bytes than columns");
    ensure!(count <= shape.0.len() as u64, "golden vectors are cut off");
    let mut drafts = Drafts::new(subject.as_ref(), seed);
    let mut hash = BASIS;
    let mut steps = Vec::new();
    let mut result = Replay::default();
    for _ in 0..count {
        let passed = shape.number()?;
        ensure!(passed < 1 << 20, "golden vectors pass over too many drafts");
        for _ in 0..passed {
            let probe = drafts.next(&world).probe;
            let why = complete(subject.as_ref(), &mut world, probe, &mut Vec::new()).err();
            result.refused += u64::from(why == Some(PassedOver::Registers));
        }
        let Question { probe, flips, .. } = drafts.next(&world);
        hash = digest(hash, &probe);
        let names = named(&probe);
        let mut word = || -> anyhow::Result<u64> {
            match names.get(places.number()? as usize) {
                Some(value) => Ok(*value),
                None => literals.number(),
            }
        };
        let kind = shape.byte()?;
        let outcome = Outcome::from_words(kind, &mut word)?;
        drafts.answered(flips, outcome);
        let mut changes = Vec::new();
        for _ in 0..shape.number()? {
            let place = places.number()? as usize;
            let address = match names.get(place) {
                Some(address) => *address,
                None => literals.number()?.wrapping_shl(3).wrapping_add(start),
            };
            changes.push((address, literals.number()?.rotate_left(5)));
        }
        result.probes += 1;
        coverage.set_class(subject.class(&probe));
        let mut case = match complete(subject.as_ref(), &mut world, probe, &mut steps) {
            Ok(case) => case,
            Err(why) => {
                result.unusable += 1;
                result.refused += u64::from(why == PassedOver::Registers);
                continue;
            }
        };
        let seen = recall(&world, &mut case, outcome, &changes);
        let mut same_end = false;
        match judge(model, subject.as_ref(), &mut world, &case, &seen) {
            Verdict::Agree => {
                result.agree += 1;
                same_end = true;
            }
            Verdict::Masked(deviations) => {
                *result.masked.entry(engine::names(&deviations)).or_default() += 1;
                // The machine came to the same end, and reports it in its own way.
                same_end = deviations.iter().all(|d| matches!(d.shows, Shows::InReport(_)));
            }
            Verdict::Disagree => {
                result.disagreements.push(format!(
                    "{}: the walker says {:x?}, the machine said {:x?}",
                    subject.explain(&case.probe),
                    case.expected,
                    seen.outcome
                ));
                if result.disagreements.len() == ENOUGH {
                    return Ok(result);
                }
            }
        }
        if same_end {
            coverage.note(&steps, &case.expected);
        }
        if same_end && case.expected.is_done() {
            let class = subject.class_name(subject.class(&case.probe));
            let kind = subject.access(&case.probe);
            *result.done.entry((class, kind)).or_default() += 1;
        }
    }
    ensure!(
        hash == expected,
        "the generator asks other questions than those that were answered: run `cargo xtask oracle \
         --bless` where the emulators are"
    );
    for (class, stage, level, met) in coverage.met() {
        let name = subject.class_name(class);
        let format = name.split(" under ").nth(usize::from(stage) - 1).unwrap_or(&name);
        result.met.push((format.to_owned(), stage, level, *met));
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
