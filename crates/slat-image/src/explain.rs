//! One translation, explained: every entry that was read, what it means, and how it ended.

use std::fmt::{self, Write as _};

use serde::Serialize;
use slat::format::any::AnyFormat;
use slat::format::x86::pae::LoadFailed;
use slat::format::{Decoded, Format};
use slat::{
    Access, Address, Failed, Fault, Gpa, Gva, Kind, Memory, MemoryType, Permissions, Privilege,
    Purpose, References, Regime, Spa, Stage, Step, Steps, Updates, memory_type, translate, walk,
};

use crate::spec::{Named, Setup};

mod bus;
mod syndrome;
mod text;

use bus::{Bus, Missing};

pub use syndrome::Syndrome;
pub use text::Drawing;

/// More steps than three stages of five levels take (215).
const MAX_STEPS: usize = 256;

/// One translation. Serializes to the JSON that `docs/json.md` specifies for `slat walk`.
#[derive(Clone, Debug, Serialize)]
pub struct Explained {
    /// The address that was asked for.
    #[serde(serialize_with = "hex")]
    pub input: u64,
    /// What stage 1 made of it; the input itself where only stage 2 was named.
    #[serde(serialize_with = "optional_hex")]
    pub gpa: Option<u64>,
    /// What stage 2 made of it; `None` where only stage 1 was named.
    #[serde(serialize_with = "optional_hex")]
    pub spa: Option<u64>,
    /// The smaller of the two stages' pages, in bytes; `None` where the stages are off.
    pub page_size: Option<u64>,
    /// Whether the asked privilege may read through all stages.
    pub read: Option<bool>,
    /// Whether it may write.
    pub write: Option<bool>,
    /// Whether it may execute.
    pub execute: Option<bool>,
    /// The effective memory type.
    pub memory_type: Option<String>,
    /// Table entries read from memory.
    pub references: u64,
    /// Those entries, in the order they were read.
    pub steps: Vec<ExplainedStep>,
    /// Why there is no translation.
    pub fault: Option<ExplainedFault>,
}

/// One entry that was read.
#[derive(Clone, Debug, Serialize)]
pub struct ExplainedStep {
    /// 1 or 2.
    pub stage: u8,
    /// 0 at the smallest leaf.
    pub level: u8,
    /// The level's number in the architecture's manual.
    pub arch_level: i8,
    /// `"table"` where stage 2 translates a stage-1 table's address, else `"data"`.
    #[serde(rename = "for")]
    pub purpose: &'static str,
    /// Where the entry lies: a GPA for stage 1 under a stage 2, else an SPA.
    #[serde(serialize_with = "hex")]
    pub entry_address: u64,
    /// The raw entry.
    #[serde(serialize_with = "hex")]
    pub entry: u64,
    /// `"table"`, `"leaf"`, `"empty"` or `"reserved"`.
    pub kind: &'static str,
    /// What its bits mean.
    pub meaning: String,
}

/// Why there is no translation.
#[derive(Clone, Debug, Serialize)]
pub struct ExplainedFault {
    /// The stage that faulted; for `not-in-image`, the stage whose entry could not be read.
    pub stage: u8,
    /// The level at which it did.
    pub level: u8,
    /// A stable word: see `docs/json.md`.
    pub cause: &'static str,
    /// `"data"` for the final access, `"table"` for a stage-1 table read, `"update"` for setting
    /// its accessed and dirty bits, `"pdpte-load"` for loading PAE's PDPTE registers.
    pub during: &'static str,
    /// The address that the stage was translating.
    #[serde(serialize_with = "hex")]
    pub address: u64,
    /// The cause in a sentence.
    pub text: String,
    /// How the architecture reports it; `None` where it does not (an image without the table).
    pub syndrome: Option<Syndrome>,
}

fn hex<S: serde::Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:#x}"))
}

fn optional_hex<S: serde::Serializer>(
    value: &Option<u64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => hex(value, serializer),
        None => serializer.serialize_none(),
    }
}

/// Translates and explains addresses of one set-up.
#[derive(Debug)]
pub struct Explainer {
    setup: Setup,
    updates: Updates,
    steps: Steps<MAX_STEPS>,
}

impl Explainer {
    /// An explainer of this set-up.
    pub fn new(setup: Setup) -> Explainer {
        Explainer { setup, updates: Updates::Never, steps: Steps::default() }
    }

    /// The same, that also sets the accessed and dirty bits which each stage sets by itself, as the
    /// processor does once a stage has let the access through. They go to a copy: the memory is not
    /// written. A stage-1 entry is written through stage 2, which may refuse that.
    #[must_use]
    pub fn with_updates(self) -> Explainer {
        Explainer { updates: Updates::OnSuccess, ..self }
    }

    /// The set-up.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Translates `input` for `access`, its tables in `memory`.
    ///
    /// `input` is a GVA where stage 1 was named, else a GPA. A fault is a result, not an error.
    pub fn explain<M: Memory<Address = Spa>>(
        &self,
        memory: M,
        input: u64,
        access: &Access,
    ) -> Explained {
        self.steps.clear();
        let mut memory = Bus::new(memory);
        let regime = &self.setup.regime;
        let mut explained = Explained {
            input,
            gpa: None,
            spa: None,
            page_size: None,
            read: None,
            write: None,
            execute: None,
            memory_type: None,
            references: 0,
            steps: Vec::new(),
            fault: None,
        };
        match (&self.setup.stage1, &self.setup.stage2) {
            (Some(stage1), Some(stage2)) => {
                let stage2 =
                    Stage::<AnyFormat, Gpa, Spa>::new(stage2.format, ()).with_updates(self.updates);
                match self.with_registers(stage1, &stage2, &mut memory, access) {
                    Ok(format) => {
                        let stage1 = Stage::<AnyFormat, Gva, Gpa>::new(format, ())
                            .with_updates(self.updates);
                        self.two_stages(&stage1, &stage2, &mut memory, access, &mut explained);
                    }
                    Err(fault) => explained.fault = Some(*fault),
                }
            }
            (Some(stage1), None) => {
                let stage =
                    Stage::<AnyFormat, Gva, Spa>::new(stage1.format, ()).with_updates(self.updates);
                match walk(&stage, &mut memory, Gva::new(input), access, regime, &self.steps) {
                    Ok(mapped) => {
                        explained.gpa = Some(mapped.output.raw());
                        let own = stage.format.memory_type(&mapped.found, regime);
                        let unspecified = memory_type::StageType::Unspecified;
                        let effective =
                            memory_type::effective(own, unspecified, mapped.output.raw(), regime);
                        let permissions = Permissions::of(&stage.format, &mapped, access, regime);
                        explained.succeed(mapped.found.shift, permissions, effective, &self.setup);
                    }
                    Err(Failed::Here(fault)) => {
                        explained.fault = Some(self.fault(&fault, &stage.format, None, access));
                    }
                    Err(Failed::Below(missing)) => explained.fault = Some(self.missing(&missing)),
                }
            }
            (None, Some(stage2)) => {
                explained.gpa = Some(input);
                let stage =
                    Stage::<AnyFormat, Gpa, Spa>::new(stage2.format, ()).with_updates(self.updates);
                match walk(&stage, &mut memory, Gpa::new(input), access, regime, &self.steps) {
                    Ok(mapped) => {
                        explained.spa = Some(mapped.output.raw());
                        let own = stage.format.memory_type(&mapped.found, regime);
                        let unspecified = memory_type::StageType::Unspecified;
                        let effective =
                            memory_type::effective(unspecified, own, mapped.output.raw(), regime);
                        let permissions = Permissions::of(&stage.format, &mapped, access, regime);
                        explained.succeed(mapped.found.shift, permissions, effective, &self.setup);
                    }
                    Err(Failed::Here(fault)) => {
                        explained.fault = Some(self.fault(&fault, &stage.format, None, access));
                    }
                    Err(Failed::Below(missing)) => explained.fault = Some(self.missing(&missing)),
                }
            }
            (None, None) => {}
        }
        let of_updates = |step: &Step| matches!(step.access.purpose, Purpose::Update { .. });
        let others = self.steps.iter().filter(of_updates).count();
        explained.references = (self.steps.count() - others) as u64;
        explained.steps = self.steps.iter().map(|step| self.step(&step, input)).collect();
        explained
    }

    fn two_stages<M: Memory<Address = Spa>>(
        &self,
        stage1: &Stage<AnyFormat, Gva, Gpa>,
        stage2: &Stage<AnyFormat, Gpa, Spa>,
        memory: &mut Bus<M>,
        access: &Access,
        explained: &mut Explained,
    ) {
        let regime = &self.setup.regime;
        let input = Gva::new(explained.input);
        match translate(stage1, stage2, memory, input, access, regime, &self.steps) {
            Ok(found) => {
                explained.gpa = Some(found.stage1.output.raw());
                explained.spa = Some(found.stage2.output.raw());
                let through = Access {
                    page: Some(stage1.format.page(&found.stage1.found, regime)),
                    origin: Some(input.raw()),
                    ..*access
                };
                let permissions = Permissions::of(&stage1.format, &found.stage1, access, regime)
                    .and(Permissions::of(&stage2.format, &found.stage2, &through, regime));
                let memory_type = found.memory_type(&stage1.format, &stage2.format, regime);
                explained.succeed(found.shift(), permissions, memory_type, &self.setup);
            }
            Err(Failed::Here(fault)) => {
                explained.fault = Some(self.fault(&fault, &stage1.format, None, access));
            }
            Err(Failed::Below(Failed::Here(fault))) => {
                if fault.access.purpose == Purpose::Final {
                    explained.gpa = Some(fault.input.raw());
                }
                explained.fault =
                    Some(self.fault(&fault, &stage2.format, Some(&stage1.format), access));
            }
            Err(Failed::Below(Failed::Below(missing))) => {
                explained.fault = Some(self.missing(&missing));
            }
        }
    }

    /// Stage 1 with its PDPTE registers, where [`load_registers`] could not load them: the fault that
    /// MOV to CR3 meets then.
    fn with_registers<M: Memory<Address = Spa>>(
        &self,
        stage1: &Named,
        stage2: &Stage<AnyFormat, Gpa, Spa>,
        memory: &mut Bus<M>,
        access: &Access,
    ) -> Result<AnyFormat, Box<ExplainedFault>> {
        let (Some(cr3), AnyFormat::Pae(pae, _)) = (stage1.load_pdptes, stage1.format) else {
            return Ok(stage1.format);
        };
        let mut guest = slat::Nested::new(stage2, memory, &self.setup.regime, &self.steps);
        match pae.load_root(&mut guest, Gpa::new(cr3)) {
            Ok(root) => {
                self.steps.clear();
                Ok(AnyFormat::Pae(pae, root))
            }
            Err(LoadFailed::Memory { fault: Failed::Here(fault), .. }) => {
                Err(self.fault(&fault, &stage2.format, Some(&stage1.format), access).into())
            }
            Err(LoadFailed::Memory { fault: Failed::Below(missing), .. }) => {
                Err(self.missing(&missing).into())
            }
            // Refused where registers are loaded; a walk reports reserved bits by itself.
            Err(LoadFailed::Reserved { .. }) => {
                self.steps.clear();
                Ok(stage1.format)
            }
        }
    }

    fn step(&self, step: &Step, input: u64) -> ExplainedStep {
        // Only stage-1 formats have halves.
        let format = self.format_of(step.stage).half(input);
        let mut meaning = String::new();
        // Writing into a String cannot fail.
        let _ = format.describe(step.entry, step.level, &mut meaning);
        let kind = match step.decoded {
            Decoded::Empty => "empty",
            Decoded::Table { next } => {
                let _ = write!(meaning, " -> table {next:#x}");
                "table"
            }
            Decoded::Leaf { base, shift } => {
                let _ = write!(meaning, " -> {} page {base:#x}", Size(1 << shift));
                "leaf"
            }
            Decoded::Reserved(_) | Decoded::Restart => "reserved",
        };
        ExplainedStep {
            stage: step.stage,
            level: step.level,
            arch_level: format.arch_level(step.level),
            purpose: if step.access.purpose.is_table() { "table" } else { "data" },
            entry_address: step.entry_address,
            entry: step.entry,
            kind,
            meaning,
        }
    }

    fn format_of(&self, stage: u8) -> &AnyFormat {
        match (stage, &self.setup.stage1, &self.setup.stage2) {
            (1, Some(named), _) | (_, _, Some(named)) | (_, Some(named), None) => &named.format,
            (_, None, None) => unreachable!("a step was taken by some stage"),
        }
    }

    fn fault<I: Address>(
        &self,
        fault: &Fault<I>,
        format: &AnyFormat,
        guest: Option<&AnyFormat>,
        access: &Access,
    ) -> ExplainedFault {
        ExplainedFault {
            stage: fault.stage,
            level: fault.level,
            cause: cause_word(&fault.cause, format),
            during: during(fault.access.purpose),
            address: fault.input.raw(),
            text: sentence(fault, format),
            syndrome: syndrome::of(fault, format, guest, access, &self.setup.regime),
        }
    }

    /// An entry that the image does not have. It was stage 1's where stage 2 had just found it a
    /// place, or where there is no stage 2.
    fn missing(&self, missing: &Missing) -> ExplainedFault {
        let last = self.steps.iter().last();
        let found = last
            .is_some_and(|step| step.stage == 2 && matches!(step.decoded, Decoded::Leaf { .. }));
        let stage = if self.setup.stage2.is_some() && !found { 2 } else { 1 };
        let level = match missing.access.purpose {
            Purpose::Table { level } | Purpose::Update { level } => level,
            Purpose::PdpteLoad => 2,
            Purpose::Final => 0,
        };
        ExplainedFault {
            stage,
            level,
            cause: "not-in-image",
            during: match missing.access.purpose {
                Purpose::PdpteLoad => "pdpte-load",
                _ => "table",
            },
            address: missing.address,
            text: format!(
                "the image has no memory at SPA {:#x}, where the entry lies",
                missing.address
            ),
            syndrome: None,
        }
    }
}

impl Explained {
    fn succeed(
        &mut self,
        shift: u8,
        permissions: Permissions,
        memory_type: MemoryType,
        setup: &Setup,
    ) {
        self.page_size = 1u64.checked_shl(shift.into());
        self.read = Some(permissions.read);
        self.write = Some(permissions.write);
        self.execute = Some(permissions.execute);
        self.memory_type = Some(match memory_type {
            MemoryType::X86(_) if !setup.mtrrs_count() => memory_type.to_string(),
            MemoryType::X86(_) if setup.regime.x86.mtrrs.is_none() => {
                format!("{memory_type} before MTRRs")
            }
            _ => memory_type.to_string(),
        });
    }
}

/// The stable word for a cause.
fn cause_word(cause: &slat::Cause, format: &AnyFormat) -> &'static str {
    use slat::{Cause, Why};
    match cause {
        Cause::NonCanonical => "non-canonical",
        Cause::AddressSpaceSeparation => "address-space-separation",
        Cause::InputSize => "input-size",
        Cause::Disabled => "disabled",
        Cause::Geometry => "geometry",
        Cause::Empty => "not-present",
        Cause::Reserved(_) if matches!(format, AnyFormat::Ept(..)) => "misconfiguration",
        Cause::Reserved(reserved) => match reserved.why {
            Why::Bits => "reserved-bit",
            Why::AddressSize => "address-size",
            Why::Misaligned => "misaligned",
            _ => "reserved-encoding",
        },
        Cause::AccessFlag => "access-flag",
        Cause::Permission(_) => "permission",
        Cause::Restart => "restart",
        Cause::Contended => "contended",
    }
}

fn during(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Final => "data",
        Purpose::Table { .. } => "table",
        Purpose::Update { .. } => "update",
        Purpose::PdpteLoad => "pdpte-load",
    }
}

/// The cause in a sentence.
fn sentence<I: Address>(fault: &Fault<I>, format: &AnyFormat) -> String {
    let what = match (fault.access.kind, fault.access.purpose) {
        (_, Purpose::Table { .. }) => "reading a stage-1 table",
        (_, Purpose::Update { .. }) => "setting accessed or dirty bits in a stage-1 table",
        (_, Purpose::PdpteLoad) => "loading the PDPTE registers",
        (Kind::Read, Purpose::Final) => "the read",
        (Kind::Write, Purpose::Final) => "the write",
        (Kind::Execute, Purpose::Final) => "the instruction fetch",
    };
    let who = match fault.access.privilege {
        Privilege::User => "user",
        Privilege::Supervisor => "supervisor",
    };
    format!(
        "{what} ({who}) of {} {:#x} ends at level {} of stage {} ({}): {}",
        I::SPACE,
        fault.input,
        fault.level,
        fault.stage,
        format.name(),
        fault.cause
    )
}

/// A page size as people say it.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0 {
            size if size >= 1 << 40 => (size >> 40, 'T'),
            size if size >= 1 << 30 => (size >> 30, 'G'),
            size if size >= 1 << 20 => (size >> 20, 'M'),
            size => (size >> 10, 'K'),
        };
        write!(f, "{value}{unit}")
    }
}

/// Loads what a set-up needs from memory before its first walk: PAE's PDPTE registers, natively
/// and under EPT (Intel SDM 3A 5.4.1).
///
/// A load that faults in the second stage is no error: every translation of the [`Explainer`] then
/// ends in that fault.
///
/// # Errors
/// One line, where a PDPTE is not in the memory, or is one that a processor refuses to load.
pub fn load_registers<M: Memory<Address = Spa>>(
    setup: &mut Setup,
    memory: M,
) -> Result<(), String> {
    let Some(named) = &mut setup.stage1 else { return Ok(()) };
    let (Some(cr3), AnyFormat::Pae(pae, root)) = (named.load_pdptes, &mut named.format) else {
        return Ok(());
    };
    let mut memory = Bus::new(memory);
    let regime = &setup.regime;
    *root = match &setup.stage2 {
        Some(stage2) => {
            let stage2 = Stage::<AnyFormat, Gpa, Spa>::new(stage2.format, ());
            let nobody = References::default();
            let mut guest = slat::Nested::new(&stage2, &mut memory, regime, &nobody);
            match pae.load_root(&mut guest, Gpa::new(cr3)) {
                Ok(loaded) => loaded,
                Err(LoadFailed::Memory { .. }) => return Ok(()),
                Err(LoadFailed::Reserved { index, bits }) => return Err(refused(index, bits)),
            }
        }
        None => pae.load_root(&mut memory, Spa::new(cr3)).map_err(|failed| match failed {
            LoadFailed::Memory { index, fault } => {
                format!(
                    "the image has no memory at SPA {:#x}, where PDPTE {index} lies",
                    fault.address
                )
            }
            LoadFailed::Reserved { index, bits } => refused(index, bits),
        })?,
    };
    named.load_pdptes = None;
    Ok(())
}

fn refused(index: usize, bits: u64) -> String {
    format!(
        "PDPTE {index} in memory has reserved bits {bits:#x}, which a processor refuses to load (#GP); \
         if it was loaded before they were set, give the registers: pdpte0= to pdpte3="
    )
}

/// The regime of a set-up, for callers that walk themselves.
impl AsRef<Regime> for Setup {
    fn as_ref(&self) -> &Regime {
        &self.regime
    }
}
