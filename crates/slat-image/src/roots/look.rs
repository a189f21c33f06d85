//! What an entry looks like: not what hardware would make of it, but whether a hypervisor would have
//! written it.

use slat::format::arm64::{Granule, Processor, Stage2};
use slat::format::ept::{Ept, Features};
use slat::format::npt::Npt;
use slat::format::x86::bits as x86;
use slat::format::x86::long;
use slat::format::{Decoded, Format};
use slat::{Reserved, Why};

use super::Kind;
use crate::image::Image;

/// What one entry looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing is there.
    Empty,
    /// Points at a table that is in the image.
    Table(u64),
    /// Translates.
    Leaf {
        /// To ordinary, cacheable memory.
        normal: bool,
    },
    /// Translates nothing, and means something to the hypervisor.
    Marked,
    /// No hypervisor writes this.
    Impossible,
}

/// Output addresses from here on are in no machine that an image comes from.
const HIGHEST_OUTPUT: u64 = 1 << 46;

/// KVM's 64-bit entry for "nothing there", on processors that can turn EPT violations into #VE: only
/// the bit that suppresses it (Linux, arch/x86/kvm/mmu/spte.h, `SHADOW_NONPRESENT_VALUE`).
const SUPPRESSED: u64 = 1 << 63;

/// Looks at entries of one kind in one image.
pub(super) struct Looker<'a> {
    image: &'a Image,
    kind: Kind,
    ept: Ept,
    npt: Npt,
    arm64: Option<Stage2>,
}

impl<'a> Looker<'a> {
    pub(super) fn new(image: &'a Image, kind: Kind) -> Looker<'a> {
        let processor = long::Processor {
            physical_bits: 48,
            vendor: slat::format::x86::Vendor::Amd,
            ..Default::default()
        };
        Looker {
            image,
            kind,
            ept: Ept::five(Features::default()),
            npt: Npt::five(true, processor),
            arm64: Stage2::plain(Granule::Four, 48, &Processor::default()).ok(),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// The table that an entry of a table of `level` points at.
    pub(super) fn table(&self, entry: u64, level: u8) -> Option<u64> {
        match self.look(entry, level) {
            Look::Table(next) => Some(next),
            _ => None,
        }
    }

    /// What `entry` looks like in a table of `level`.
    #[inline]
    pub(super) fn look(&self, entry: u64, level: u8) -> Look {
        if entry == 0 || entry == SUPPRESSED {
            return Look::Empty;
        }
        match self.kind {
            Kind::Ept => self.ept(entry, level),
            Kind::Npt => self.npt(entry, level),
            Kind::Arm64 => self.arm64(entry, level),
        }
    }

    fn table_in_image(&self, next: u64) -> Look {
        if self.image.page(next).is_some() { Look::Table(next) } else { Look::Impossible }
    }

    fn ept(&self, entry: u64, level: u8) -> Look {
        match self.ept.decode(entry, level) {
            Decoded::Table { next } => self.table_in_image(next),
            Decoded::Leaf { base, .. } if base < HIGHEST_OUTPUT => {
                // Bits 5:3: 6 is write-back (Intel SDM 3C 30.3.7).
                Look::Leaf { normal: entry >> 3 & 7 == 6 }
            }
            // What is not present is the hypervisor's own; words of any kind would pass for it,
            // unless they at least have no address, or some of the high bits that KVM uses.
            Decoded::Empty if entry & 0xfff == 0 || entry >> 60 != 0 => Look::Marked,
            // KVM's MMIO: write without read.
            Decoded::Reserved(Reserved { why: Why::WriteWithoutRead, .. }) => Look::Marked,
            _ => Look::Impossible,
        }
    }

    fn npt(&self, entry: u64, level: u8) -> Look {
        // Nested accesses are user accesses: no hypervisor clears U/S (AMD APM 2 15.25.5).
        let user = entry & x86::US != 0;
        match self.npt.decode(entry, level) {
            Decoded::Table { next } if user && entry & (x86::XD | x86::D) == 0 => {
                self.table_in_image(next)
            }
            Decoded::Leaf { base, .. } if user && entry & x86::G == 0 && base < HIGHEST_OUTPUT => {
                Look::Leaf { normal: entry & (x86::PCD | x86::PWT) == 0 }
            }
            Decoded::Empty => Look::Marked,
            // KVM's MMIO: bit 51.
            Decoded::Reserved(Reserved { why: Why::Bits, bits }) if bits & 1 << 51 != 0 => {
                Look::Marked
            }
            _ => Look::Impossible,
        }
    }

    fn arm64(&self, entry: u64, level: u8) -> Look {
        /// Access flag; what is bit 11 of a leaf in stage 1 (nG) is zero in stage 2.
        const AF: u64 = 1 << 10;
        const NOT_STAGE_2: u64 = 1 << 11;
        let Some(format) = &self.arm64 else { return Look::Impossible };
        match format.decode(entry, level) {
            // Bits 11:2 and 63:59 are ignored in a table entry, and nobody sets them.
            Decoded::Table { next } if entry & 0xffc == 0 && entry >> 59 == 0 => {
                self.table_in_image(next)
            }
            Decoded::Leaf { base, .. }
                if entry & (AF | NOT_STAGE_2) == AF
                    && entry >> 6 & 3 != 0
                    && base < HIGHEST_OUTPUT =>
            {
                // MemAttr (Arm ARM D8.6.5, D8.6.6): 0 to 3 device; 15 write-back, with FWB 5 to 7.
                match entry >> 2 & 0xf {
                    0..=3 => Look::Leaf { normal: false },
                    5..=7 | 15 => Look::Leaf { normal: true },
                    _ => Look::Impossible,
                }
            }
            Decoded::Empty => Look::Marked,
            _ => Look::Impossible,
        }
    }
}
