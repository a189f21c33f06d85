//! Arm memory attributes: `MAIR_ELx` (Arm ARM D24.2), stage 2's `MemAttr` with and without
//! `HCR_EL2.FWB` and their combination (D8.6).

use core::fmt;

use crate::access::Kind;
use crate::regime::arm::State;

/// What kind of device memory: gathering, reordering, early write acknowledgement. Ordered from the
/// strictest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Device {
    /// Device-nGnRnE.
    #[expect(non_camel_case_types, reason = "the manual's name")]
    nGnRnE,
    /// Device-nGnRE.
    #[expect(non_camel_case_types, reason = "the manual's name")]
    nGnRE,
    /// Device-nGRE.
    #[expect(non_camel_case_types, reason = "the manual's name")]
    nGRE,
    /// Device-GRE.
    GRE,
}

impl Device {
    /// The type with this two-bit encoding; higher bits are ignored.
    pub const fn from_encoding(encoding: u8) -> Device {
        match encoding & 3 {
            0 => Device::nGnRnE,
            1 => Device::nGnRE,
            2 => Device::nGRE,
            _ => Device::GRE,
        }
    }
}

/// When a cache allocates a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Hints {
    /// On reads.
    pub read_allocate: bool,
    /// On writes.
    pub write_allocate: bool,
    /// The line is not worth keeping long.
    pub transient: bool,
}

impl Hints {
    /// Read- and write-allocate, not transient.
    pub const ALLOCATE: Hints =
        Hints { read_allocate: true, write_allocate: true, transient: false };
}

/// How one level of caches treats Normal memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Cache {
    /// Not cached.
    NonCacheable,
    /// Write-through.
    WriteThrough(Hints),
    /// Write-back.
    WriteBack(Hints),
}

impl Cache {
    const fn hints(self) -> Option<Hints> {
        match self {
            Cache::NonCacheable => None,
            Cache::WriteThrough(hints) | Cache::WriteBack(hints) => Some(hints),
        }
    }

    /// One nibble of a Normal attribute byte of MAIR.
    const fn from_nibble(nibble: u8) -> Cache {
        let hints = Hints {
            read_allocate: nibble & 2 != 0,
            write_allocate: nibble & 1 != 0,
            transient: nibble & 3 != 0 && nibble & 8 == 0,
        };
        match nibble & 0xf {
            4 => Cache::NonCacheable,
            nibble if nibble & 4 == 0 => Cache::WriteThrough(hints),
            _ => Cache::WriteBack(hints),
        }
    }

    const fn to_nibble(self) -> u8 {
        let (kind, hints) = match self {
            Cache::NonCacheable => return 4,
            Cache::WriteThrough(hints) => (0, hints),
            Cache::WriteBack(hints) => (4, hints),
        };
        kind | if hints.transient { 0 } else { 8 }
            | (hints.read_allocate as u8) << 1
            | hints.write_allocate as u8
    }
}

/// Who observes accesses in the same order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Shareability {
    /// Nobody else.
    Non,
    /// The inner shareable domain.
    Inner,
    /// The outer shareable domain.
    Outer,
}

impl Shareability {
    /// The domain with this encoding in `SH`. The reserved 0b01 is CONSTRAINED UNPREDICTABLE and
    /// reads as non-shareable here.
    pub const fn from_encoding(encoding: u8) -> Shareability {
        match encoding & 3 {
            2 => Shareability::Outer,
            3 => Shareability::Inner,
            _ => Shareability::Non,
        }
    }

    /// The encoding in `SH`.
    pub const fn encoding(self) -> u8 {
        match self {
            Shareability::Non => 0,
            Shareability::Outer => 2,
            Shareability::Inner => 3,
        }
    }
}

/// Normal or Device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Memory {
    /// Device memory.
    Device(Device),
    /// Normal memory.
    Normal {
        /// The outer caches.
        outer: Cache,
        /// The inner caches.
        inner: Cache,
    },
}

impl Memory {
    /// Normal, not cached.
    pub const NON_CACHEABLE: Memory =
        Memory::Normal { outer: Cache::NonCacheable, inner: Cache::NonCacheable };
    /// Normal write-back, allocating.
    pub const WRITE_BACK: Memory = Memory::Normal {
        outer: Cache::WriteBack(Hints::ALLOCATE),
        inner: Cache::WriteBack(Hints::ALLOCATE),
    };

    const fn is_write_back(self) -> bool {
        matches!(self, Memory::Normal { outer: Cache::WriteBack(_), inner: Cache::WriteBack(_) })
    }
}

/// The attributes of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Attributes {
    /// Normal or Device.
    pub memory: Memory,
    /// Who observes accesses in the same order, as programmed: [`Attributes::effective`] applies
    /// what the memory type overrides.
    pub shareability: Shareability,
    /// The XS attribute (FEAT_XS): `DSB nXS` does not wait for accesses with it.
    pub xs: bool,
    /// Allocation tags are checked (FEAT_MTE2).
    pub tagged: bool,
}

impl Attributes {
    /// Untagged memory of this type.
    pub const fn new(memory: Memory, shareability: Shareability) -> Attributes {
        Attributes { memory, shareability, xs: !memory.is_write_back(), tagged: false }
    }

    /// Attribute `index` (0 to 7) of a MAIR, with this shareability.
    ///
    /// The encodings that the manual leaves UNPREDICTABLE read as the closest defined one: device
    /// bytes by bits 3:2, Normal bytes by their nibbles.
    pub const fn from_mair(mair: u64, index: u8, shareability: Shareability) -> Attributes {
        let byte = (mair >> (8 * (index as u32 & 7))) as u8;
        let memory = match byte {
            0x00..=0x0f => Memory::Device(Device::from_encoding(byte >> 2)),
            0x40 => Memory::NON_CACHEABLE,
            0xa0 => {
                let cache = Cache::WriteThrough(Hints {
                    read_allocate: true,
                    write_allocate: false,
                    transient: false,
                });
                Memory::Normal { outer: cache, inner: cache }
            }
            0xf0 => Memory::WRITE_BACK,
            _ => Memory::Normal {
                outer: Cache::from_nibble(byte >> 4),
                inner: Cache::from_nibble(byte),
            },
        };
        let xs = match byte {
            0x00..=0x0f => byte & 1 == 0,
            0x40 | 0xa0 | 0xf0 => false,
            _ => !memory.is_write_back(),
        };
        Attributes { memory, shareability, xs, tagged: byte == 0xf0 }
    }

    /// The attribute byte that `PAR_EL1.ATTR` reports.
    pub const fn encoding(&self) -> u8 {
        const READ_ALLOCATE: u8 = 0xa;
        if self.tagged {
            return 0xf0;
        }
        match self.memory {
            Memory::Device(device) => (device as u8) << 2 | !self.xs as u8,
            Memory::Normal { outer, inner } => match (outer.to_nibble(), inner.to_nibble()) {
                (READ_ALLOCATE, inner) if !self.xs && inner & 4 == 0 => 0xa0,
                (4, 4) if !self.xs => 0x40,
                (outer, inner) => outer << 4 | inner,
            },
        }
    }

    /// The attributes as they act: device memory and non-cacheable memory are outer shareable.
    #[must_use]
    pub const fn effective(self) -> Attributes {
        let always_outer = match self.memory {
            Memory::Device(_) => true,
            Memory::Normal { outer: Cache::NonCacheable, inner: Cache::NonCacheable } => true,
            Memory::Normal { .. } => false,
        };
        let shareability = if always_outer { Shareability::Outer } else { self.shareability };
        Attributes { shareability, ..self }
    }

    /// Normal memory made non-cacheable, as `SCTLR_ELx.C`, `.I`, `HCR_EL2.CD` and `.ID` do.
    #[must_use]
    pub const fn uncached(self) -> Attributes {
        Attributes {
            memory: Memory::NON_CACHEABLE,
            shareability: Shareability::Outer,
            xs: self.xs,
            tagged: false,
        }
    }
}

/// Which caches a stage 1 has switched on (`SCTLR_ELx.C` and `.I`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Caches {
    /// Data accesses are cacheable.
    pub data: bool,
    /// Instruction fetches are cacheable.
    pub instructions: bool,
}

impl Caches {
    /// The attributes of a leaf, as these switches leave them for an access of this kind.
    /// Instructions are fetched from device memory as from non-cacheable memory.
    #[must_use]
    pub const fn cut(self, attributes: Attributes, kind: Kind) -> Attributes {
        let is_device = matches!(attributes.memory, Memory::Device(_));
        let uncached = match kind {
            Kind::Execute => is_device || !self.instructions,
            Kind::Read | Kind::Write => !is_device && !self.data,
        };
        if uncached { attributes.uncached() } else { attributes }
    }

    /// The attributes of a stage 1 that is off (the pseudocode's S1DisabledOutput).
    /// `default_cacheable` is the state where `HCR_EL2.DC` governs the regime.
    pub const fn of_disabled_stage(
        self,
        kind: Kind,
        default_cacheable: Option<&State>,
    ) -> Attributes {
        if let Some(state) = default_cacheable
            && state.default_cacheable
        {
            let memory = Attributes::new(Memory::WRITE_BACK, Shareability::Non);
            return Attributes { tagged: state.default_tagged, ..memory };
        }
        if !matches!(kind, Kind::Execute) {
            return Attributes::new(Memory::Device(Device::nGnRnE), Shareability::Outer);
        }
        let cache = if self.instructions {
            Cache::WriteThrough(Hints { write_allocate: false, ..Hints::ALLOCATE })
        } else {
            Cache::NonCacheable
        };
        Attributes::new(Memory::Normal { outer: cache, inner: cache }, Shareability::Outer)
    }
}

/// What stage 2 does to stage 1's attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Rule {
    /// The more restrictive of both (`HCR_EL2.FWB` clear, and device memory with it set).
    Combine(Memory),
    /// Normal write-back, whatever stage 1 says (`FWB`, `MemAttr` 0b110).
    ForceWriteBack,
    /// Non-cacheable unless stage 1 says device (`FWB`, `MemAttr` 0b101).
    NonCacheable,
    /// Stage 1's (`FWB`, `MemAttr` 0b111).
    Stage1,
}

/// What a stage-2 leaf says of memory attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Stage2 {
    /// What becomes of stage 1's memory type.
    pub rule: Rule,
    /// Stage 2's shareability; the wider one of both stages acts.
    pub shareability: Shareability,
    /// Stage 2 clears the XS attribute (`FnXS`).
    pub clear_xs: bool,
    /// `HCR_EL2.CD` or `.ID` makes this access non-cacheable.
    pub uncached: bool,
}

impl Stage2 {
    /// What the `MemAttr` field (bits 5:2 of a leaf) says for an access of this kind.
    ///
    /// Reserved encodings: a non-FWB cacheability of 0b00 reads as non-cacheable, the FWB encoding
    /// 0b100 as 0b101; both are among the manual's permitted choices. Instructions are fetched from
    /// device memory as from non-cacheable memory.
    pub const fn new(
        mem_attr: u8,
        shareability: Shareability,
        clear_xs: bool,
        kind: Kind,
        state: &State,
    ) -> Stage2 {
        let fetch = matches!(kind, Kind::Execute);
        let is_device = is_device(mem_attr, state);
        let rule = if fetch && is_device {
            Rule::NonCacheable
        } else if state.force_write_back {
            match mem_attr & 7 {
                0..=3 => Rule::Combine(Memory::Device(Device::from_encoding(mem_attr))),
                6 => Rule::ForceWriteBack,
                7 => Rule::Stage1,
                _ => Rule::NonCacheable,
            }
        } else if is_device {
            Rule::Combine(Memory::Device(Device::from_encoding(mem_attr)))
        } else {
            Rule::Combine(Memory::Normal {
                outer: stage2_cache(mem_attr >> 2),
                inner: stage2_cache(mem_attr),
            })
        };
        let uncached = if fetch { state.instructions_uncacheable } else { state.data_uncacheable };
        Stage2 { rule, shareability, clear_xs, uncached }
    }

    /// What both stages make of `stage1` (Arm ARM D8.6;
    /// S2CombineS1MemAttrs, AArch64.S2ApplyFWBMemAttrs).
    pub fn combined_with(&self, stage1: Attributes) -> Attributes {
        let (memory, xs) = match (self.rule, stage1.memory) {
            (Rule::Combine(Memory::Device(second)), Memory::Device(first)) => {
                (Memory::Device(first.min(second)), stage1.xs)
            }
            (Rule::Combine(device @ Memory::Device(_)), _) => (device, stage1.xs),
            (Rule::Combine(_) | Rule::NonCacheable, device @ Memory::Device(_)) => {
                (device, stage1.xs)
            }
            (
                Rule::Combine(Memory::Normal { outer, inner }),
                Memory::Normal { outer: outer1, inner: inner1 },
            ) => {
                let memory =
                    Memory::Normal { outer: weaker(outer1, outer), inner: weaker(inner1, inner) };
                (memory, stage1.xs)
            }
            (Rule::NonCacheable, Memory::Normal { .. }) => (Memory::NON_CACHEABLE, stage1.xs),
            (Rule::Stage1, memory) => (memory, stage1.xs),
            (Rule::ForceWriteBack, memory) => {
                let hints = |cache: Cache| cache.hints().unwrap_or(Hints::ALLOCATE);
                let memory = match memory {
                    Memory::Device(_) => Memory::WRITE_BACK,
                    Memory::Normal { outer, inner } => Memory::Normal {
                        outer: Cache::WriteBack(hints(outer)),
                        inner: Cache::WriteBack(hints(inner)),
                    },
                };
                (memory, false)
            }
        };
        let memory = match memory {
            Memory::Normal { .. } if self.uncached => Memory::NON_CACHEABLE,
            memory => memory,
        };
        let combined = Attributes {
            memory,
            shareability: stage1.shareability.max(self.shareability),
            xs: xs && !self.clear_xs,
            tagged: stage1.tagged && memory == Memory::WRITE_BACK,
        };
        combined.effective()
    }
}

/// Whether a stage-2 leaf with this `MemAttr` makes device memory.
pub const fn is_device(mem_attr: u8, state: &State) -> bool {
    if state.force_write_back { mem_attr & 4 == 0 } else { mem_attr & 0xc == 0 }
}

/// One two-bit cacheability of stage 2's `MemAttr`; stage 2 gives no hints.
const fn stage2_cache(encoding: u8) -> Cache {
    match encoding & 3 {
        2 => Cache::WriteThrough(Hints::ALLOCATE),
        3 => Cache::WriteBack(Hints::ALLOCATE),
        _ => Cache::NonCacheable,
    }
}

/// The less cacheable of both, with stage 1's hints.
fn weaker(first: Cache, second: Cache) -> Cache {
    let Some(hints) = first.hints() else { return Cache::NonCacheable };
    match (first, second) {
        (_, Cache::NonCacheable) => Cache::NonCacheable,
        (Cache::WriteBack(_), Cache::WriteBack(_)) => Cache::WriteBack(hints),
        _ => Cache::WriteThrough(hints),
    }
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, hints) = match self {
            Cache::NonCacheable => return f.write_str("NC"),
            Cache::WriteThrough(hints) => ("WT", hints),
            Cache::WriteBack(hints) => ("WB", hints),
        };
        f.write_str(name)?;
        f.write_str(match (hints.read_allocate, hints.write_allocate) {
            (true, true) => " RWA",
            (true, false) => " RA",
            (false, true) => " WA",
            (false, false) => " no-allocate",
        })?;
        f.write_str(if hints.transient { " transient" } else { "" })
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Memory::Device(device) => write!(f, "Device-{device:?}"),
            Memory::Normal { outer, inner } if outer == inner => write!(f, "Normal {outer}"),
            Memory::Normal { outer, inner } => write!(f, "Normal outer {outer} inner {inner}"),
        }
    }
}

impl fmt::Display for Shareability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Shareability::Non => "NSH",
            Shareability::Inner => "ISH",
            Shareability::Outer => "OSH",
        })
    }
}

impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.memory, self.shareability)?;
        f.write_str(if self.tagged { ", tagged" } else { "" })
    }
}

impl fmt::Display for Stage2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Rule::Combine(Memory::Normal { outer, inner }) => {
                let name = |cache| match cache {
                    Cache::NonCacheable => "NC",
                    Cache::WriteThrough(_) => "WT",
                    Cache::WriteBack(_) => "WB",
                };
                if name(outer) == name(inner) {
                    write!(f, "Normal {}", name(outer))?;
                } else {
                    write!(f, "Normal outer {} inner {}", name(outer), name(inner))?;
                }
            }
            Rule::Combine(device) => device.fmt(f)?,
            Rule::ForceWriteBack => f.write_str("forced write-back")?,
            Rule::NonCacheable => f.write_str("non-cacheable unless device")?,
            Rule::Stage1 => f.write_str("as stage 1")?,
        }
        write!(f, ", {}", self.shareability)
    }
}
