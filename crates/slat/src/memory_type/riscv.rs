//! RISC-V memory types: the PBMT field of Svpbmt, which overrides physical memory attributes
//! (privileged manual, "Svpbmt").

use core::fmt;

/// What a leaf requests in bits 62:61.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Pbmt {
    /// Nothing: the physical memory attributes stand.
    #[default]
    Pma,
    /// Non-cacheable, idempotent, weakly ordered main memory.
    Nc,
    /// Non-cacheable, non-idempotent, strongly ordered I/O.
    Io,
}

impl Pbmt {
    /// The request with this encoding; `None` for 3, which is reserved.
    pub const fn from_encoding(encoding: u8) -> Option<Pbmt> {
        Some(match encoding {
            0 => Pbmt::Pma,
            1 => Pbmt::Nc,
            2 => Pbmt::Io,
            _ => return None,
        })
    }
}

impl fmt::Display for Pbmt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Pbmt::Pma => "PMA",
            Pbmt::Nc => "NC",
            Pbmt::Io => "IO",
        })
    }
}

/// Both stages: the G-stage's request overrides the PMA, and the VS-stage's request, where it
/// makes one, overrides the result.
pub(crate) fn under_g_stage(vs: Pbmt, g: Pbmt) -> Pbmt {
    if vs == Pbmt::Pma { g } else { vs }
}
