//! `FORMAT[:ROOT][,key=value...]`: how a stage is named on a command line.
//!
//! ```
//! use slat_image::spec::Setup;
//! let setup = Setup::parse(Some("x86-4,cr3=0x1000"), Some("ept4:0x6905000,ad=on")).unwrap();
//! assert!(setup.stage1.is_some() && setup.stage2.is_some());
//! let refused = Setup::parse(Some("x86-7:0x1000"), None).unwrap_err();
//! assert!(refused.to_string().contains("x86-5"));
//! ```

use std::collections::BTreeMap;
use std::fmt;

use slat::Regime;
use slat::format::any::AnyFormat;

mod arm32;
mod arm64;
mod riscv;
mod x86;

/// The stages of a translation, and the state they share.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Stage 1, if one was named.
    pub stage1: Option<Named>,
    /// Stage 2, if one was named.
    pub stage2: Option<Named>,
    /// What belongs to no one stage.
    pub regime: Regime,
}

/// A stage as it was named.
#[derive(Clone, Debug)]
pub struct Named {
    /// The format with its root.
    pub format: AnyFormat,
    /// The root table's address as it will be used, where there is one to check against the image:
    /// address, alignment in bytes.
    pub root: Option<(u64, u64)>,
    /// PAE whose PDPTE registers are still to be loaded, from this CR3.
    pub load_pdptes: Option<u64>,
}

/// A stage that was named wrongly: one line that says what is wrong and what may be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError {
    stage: u8,
    text: String,
}

impl SpecError {
    fn new(stage: u8, text: impl Into<String>) -> SpecError {
        SpecError { stage, text: text.into() }
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--stage{}: {}", self.stage, self.text)
    }
}

impl std::error::Error for SpecError {}

/// The names of all stage-1 formats.
pub const STAGE1_FORMATS: &[&str] = &[
    "x86-32",
    "x86-pae",
    "x86-4",
    "x86-5",
    "arm-short",
    "arm-lpae",
    "arm64",
    "sv32",
    "sv39",
    "sv48",
    "sv57",
];

/// The names of all stage-2 formats.
pub const STAGE2_FORMATS: &[&str] = &[
    "ept4",
    "ept5",
    "npt-32",
    "npt-pae",
    "npt4",
    "npt5",
    "arm-lpae-s2",
    "arm64-s2",
    "sv32x4",
    "sv39x4",
    "sv48x4",
    "sv57x4",
];

impl Setup {
    /// Parses the two stages. At least one must be given.
    ///
    /// # Errors
    /// One line that names the stage, what is wrong, and the choices.
    pub fn parse(stage1: Option<&str>, stage2: Option<&str>) -> Result<Setup, SpecError> {
        let first = stage1.map(|text| Fields::parse(1, text)).transpose()?;
        let second = stage2.map(|text| Fields::parse(2, text)).transpose()?;
        if first.is_none() && second.is_none() {
            return Err(SpecError::new(1, "name at least one stage (--stage1, --stage2)"));
        }
        let hcr = |fields: Option<&Fields>| fields.map_or(Ok(None), |fields| fields.peek("hcr"));
        let pair = Pair {
            stage1: first.as_ref().map(|fields| fields.format.clone()),
            stage2: second.as_ref().map(|fields| fields.format.clone()),
            hcr: match (hcr(first.as_ref())?, hcr(second.as_ref())?) {
                (Some(one), Some(other)) if one != other => {
                    return Err(SpecError::new(
                        2,
                        format!("hcr={other:#x} contradicts stage 1's hcr={one:#x}; give one"),
                    ));
                }
                (one, other) => one.or(other),
            },
        };
        pair.same_architecture()?;
        let mut regime = Regime::default();
        // Stage 2 first: its vendor is stage 1's default.
        let stage2 = second.map(|fields| stage(fields, &pair, &mut regime)).transpose()?;
        let stage1 = first.map(|fields| stage(fields, &pair, &mut regime)).transpose()?;
        Ok(Setup { stage1, stage2, regime })
    }

    /// Whether MTRRs have a say in effective memory types: EPT's types take their place
    /// (Intel SDM 3C 30.3.7.2).
    pub(crate) fn mtrrs_count(&self) -> bool {
        !matches!(&self.stage2, Some(Named { format: AnyFormat::Ept(..), .. }))
    }
}

/// The formats that are named together.
struct Pair {
    stage1: Option<String>,
    stage2: Option<String>,
    /// `HCR_EL2`, which belongs to both.
    hcr: Option<u64>,
}

impl Pair {
    fn same_architecture(&self) -> Result<(), SpecError> {
        let (Some(stage1), Some(stage2)) = (&self.stage1, &self.stage2) else { return Ok(()) };
        let (one, two) = (architecture(stage1), architecture(stage2));
        // AArch32 guests run under an AArch64 hypervisor (Arm ARM G5.1).
        let mixed = matches!((one, two), ("arm", "arm64"));
        // The guest's registers are no wider than its hypervisor's (privileged manual, `hstatus.VSXL`).
        let wider = stage2 == "sv32x4" && stage1 != "sv32";
        if (one == two || mixed) && !wider {
            return Ok(());
        }
        Err(SpecError::new(2, format!("{stage2} cannot be the second stage of {stage1}")))
    }

    /// Refuses a stage 1 of EL2's own under a stage 2, which is EL1&0's alone (the pseudocode's
    /// AArch64.S1Walk and AArch32.S1Translate).
    fn allows_el2(&self, fields: &Fields) -> Result<(), SpecError> {
        match &self.stage2 {
            None => Ok(()),
            Some(stage2) => Err(fields.error(format!(
                "EL2's own stage 1 has no second stage; leave out --stage2 {stage2}, or el=2 and httbr="
            ))),
        }
    }

    fn is_npt(&self) -> bool {
        self.stage2.as_deref().is_some_and(|name| name.starts_with("npt"))
    }
}

fn architecture(format: &str) -> &'static str {
    match format.split('-').next() {
        Some("x86" | "ept4" | "ept5" | "npt" | "npt4" | "npt5") => "x86",
        Some("arm64") => "arm64",
        Some("arm") => "arm",
        _ => "riscv",
    }
}

fn stage(mut fields: Fields, pair: &Pair, regime: &mut Regime) -> Result<Named, SpecError> {
    let named = match architecture(&fields.format) {
        "x86" => x86::stage(&mut fields, pair, regime)?,
        "riscv" => riscv::stage(&mut fields, regime)?,
        "arm64" => arm64::stage(&mut fields, pair, regime)?,
        _ => arm32::stage(&mut fields, pair, regime)?,
    };
    fields.finish()?;
    Ok(named)
}

/// The parts of one specification, taken out key by key.
struct Fields {
    stage: u8,
    format: String,
    root: Option<u64>,
    values: BTreeMap<String, String>,
    /// Keys that the format asked for: the choices that an error names.
    known: Vec<&'static str>,
}

impl Fields {
    fn parse(stage: u8, text: &str) -> Result<Fields, SpecError> {
        let mut parts = text.split(',');
        let head = parts.next().unwrap_or_default();
        let (format, root) = match head.split_once(':') {
            Some((format, root)) => {
                let root = number(root).ok_or_else(|| {
                    SpecError::new(stage, format!("the root `{root}` is not a number; write 0x..."))
                })?;
                (format, Some(root))
            }
            None => (head, None),
        };
        let formats = if stage == 1 { STAGE1_FORMATS } else { STAGE2_FORMATS };
        if !formats.contains(&format) {
            let other = if stage == 1 { STAGE2_FORMATS } else { STAGE1_FORMATS };
            let hint = if other.contains(&format) {
                format!("{format} is a stage-{} format", 3 - stage)
            } else {
                format!("unknown format `{format}`")
            };
            return Err(SpecError::new(stage, format!("{hint}; choose {}", formats.join(", "))));
        }
        let mut values = BTreeMap::new();
        for part in parts {
            let Some((key, value)) = part.split_once('=') else {
                return Err(SpecError::new(stage, format!("`{part}` is not key=value")));
            };
            if values.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(SpecError::new(stage, format!("{key} is given twice")));
            }
        }
        Ok(Fields { stage, format: format.to_owned(), root, values, known: Vec::new() })
    }

    fn error(&self, text: impl Into<String>) -> SpecError {
        SpecError::new(self.stage, text)
    }

    fn take(&mut self, key: &'static str) -> Option<String> {
        self.known.push(key);
        self.values.remove(key)
    }

    /// A register's value, left to be taken.
    fn peek(&self, key: &str) -> Result<Option<u64>, SpecError> {
        let Some(text) = self.values.get(key) else { return Ok(None) };
        match number(text) {
            Some(value) => Ok(Some(value)),
            None => Err(self.error(format!("{key}={text} is not a number; write 0x..."))),
        }
    }

    /// A register's value.
    fn register(&mut self, key: &'static str) -> Result<Option<u64>, SpecError> {
        let Some(text) = self.take(key) else { return Ok(None) };
        match number(&text) {
            Some(value) => Ok(Some(value)),
            None => Err(self.error(format!("{key}={text} is not a number; write 0x..."))),
        }
    }

    /// A switch: on, off, yes, no, 1, 0.
    fn switch(&mut self, key: &'static str) -> Result<Option<bool>, SpecError> {
        let Some(text) = self.take(key) else { return Ok(None) };
        match text.as_str() {
            "on" | "yes" | "true" | "1" => Ok(Some(true)),
            "off" | "no" | "false" | "0" => Ok(Some(false)),
            _ => Err(self.error(format!("{key}={text}: write {key}=on or {key}=off"))),
        }
    }

    /// A number within `range`.
    fn count(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, SpecError> {
        match self.register(key)? {
            Some(value) if !range.contains(&value) => Err(self.error(format!(
                "{key}={value} is out of range; {} to {} exist",
                range.start(),
                range.end()
            ))),
            other => Ok(other),
        }
    }

    /// The root: exactly one of `:ROOT` and the root register `key`.
    fn root(&mut self, key: &'static str) -> Result<Root, SpecError> {
        Ok(self.root_of(&[key])?.0)
    }

    /// The root: exactly one of `:ROOT` and the root registers `keys`, and which it was (the first
    /// for `:ROOT`).
    fn root_of(&mut self, keys: &[&'static str]) -> Result<(Root, &'static str), SpecError> {
        let mut given = Vec::new();
        if let Some(table) = self.root {
            given.push((Root::Table(table), keys[0], ":ROOT"));
        }
        for &key in keys {
            if let Some(value) = self.register(key)? {
                given.push((Root::Register(value), key, key));
            }
        }
        match given[..] {
            [(root, key, _)] => Ok((root, key)),
            [] => Err(self.error(format!(
                "no root; write {}:0x..., or a register: {}",
                self.format,
                keys.iter().map(|key| format!("{key}=0x...")).collect::<Vec<_>>().join(" or ")
            ))),
            [(_, _, one), (_, _, other), ..] => Err(self.error(format!(
                "the root is given twice, by {one} and by {other}; give one of them"
            ))),
        }
    }

    /// Refuses keys that the format has not asked for.
    fn finish(mut self) -> Result<(), SpecError> {
        self.known.sort_unstable();
        match self.values.keys().next() {
            None => Ok(()),
            Some(key) => Err(self.error(format!(
                "{} has no key `{key}`; it takes {}",
                self.format,
                self.known.join(", ")
            ))),
        }
    }
}

/// How the root was given.
#[derive(Clone, Copy)]
enum Root {
    /// `:ROOT`, the address of the table.
    Table(u64),
    /// The root register's value.
    Register(u64),
}

impl Root {
    fn raw(self) -> u64 {
        match self {
            Root::Table(raw) | Root::Register(raw) => raw,
        }
    }
}

/// A number as people write them: `0x...` or decimal, with `_` between digits.
///
/// ```
/// assert_eq!(slat_image::spec::number("0xffff_8000"), Some(0xffff_8000));
/// assert_eq!(slat_image::spec::number("4096"), Some(4096));
/// assert_eq!(slat_image::spec::number("-1"), None);
/// ```
pub fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // from_str_radix takes a sign, which no address has.
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(&digits.replace('_', ""), radix).ok()
}
