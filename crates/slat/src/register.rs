//! Registers: why a value cannot be followed.
//!
//! Each format decodes its own root and control registers. A value that enables something this
//! library does not model, or that the manual reserves, is refused by name: walking on as if the
//! bit were clear would give a wrong answer.

use core::fmt;

/// A register value that was refused.
///
/// ```
/// use slat::register::{Refusal, Refused};
/// let refused = Refused {
///     register: "hgatp",
///     value: 0x7000_0000_0008_0804,
///     bits: 0xf << 60,
///     why: Refusal::Reserved("MODE 7"),
/// };
/// assert_eq!(
///     refused.to_string(),
///     "hgatp 0x7000000000080804: MODE 7 is reserved (bits 0xf000000000000000)",
/// );
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Refused {
    /// The register's name in the manual, in lower case.
    pub register: &'static str,
    /// Its value.
    pub value: u64,
    /// The field that is refused, as a mask.
    pub bits: u64,
    /// Why.
    pub why: Refusal,
}

/// Why a field of a register is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Refusal {
    /// It enables this feature, which the library does not model.
    Unmodelled(&'static str),
    /// The manual reserves this setting.
    Reserved(&'static str),
    /// The setting contradicts another one, or what the processor is said to have.
    Contradiction(&'static str),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:#x}: ", self.register, self.value)?;
        match self.why {
            Refusal::Unmodelled(feature) => write!(f, "{feature} is not modelled")?,
            Refusal::Reserved(setting) => write!(f, "{setting} is reserved")?,
            Refusal::Contradiction(what) => f.write_str(what)?,
        }
        write!(f, " (bits {:#x})", self.bits)
    }
}

impl core::error::Error for Refused {}
