//! One load, store or block fetch.

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A data read. A read-modify-write is a load followed by a store.
    Load = 0,
    /// A data write.
    Store = 1,
    /// The fetch of a block of consecutive instructions.
    Fetch = 2,
}

/// One load, store or block fetch.
///
/// The address is the first byte's. An access that crosses a page is one record: its second page
/// is the consumer's to look up ([`Access::crosses`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Access {
    /// The guest-virtual address of the first byte.
    pub va: u64,
    /// The number of the 4 KiB guest-physical page that holds the first byte, as the machine that
    /// was recorded computed it; [`Access::NO_FRAME`] where it is not known.
    pub frame: u32,
    len: u16,
    /// The virtual CPU that made the access, from 0.
    pub vcpu: u8,
    flags: u8,
}

impl Access {
    /// The frame of an access whose physical address is not known, as in user-only traces and where
    /// the reader was not asked for frames.
    pub const NO_FRAME: u32 = u32::MAX;

    const KIND: u8 = 0b011;
    const USER: u8 = 0b100;

    /// An access by vCPU 0 in user mode, its frame not known.
    ///
    /// `len` is its length in bytes; for a fetch, that of all instructions of the block.
    #[inline]
    #[must_use]
    pub fn new(kind: Kind, va: u64, len: u16) -> Self {
        Self { va, frame: Self::NO_FRAME, len, vcpu: 0, flags: kind as u8 | Self::USER }
    }

    /// The same access by virtual CPU `vcpu`.
    #[inline]
    #[must_use]
    pub fn on(self, vcpu: u8) -> Self {
        Self { vcpu, ..self }
    }

    /// The same access with user privilege, or with that of the kernel.
    #[inline]
    #[must_use]
    pub fn with_user(self, user: bool) -> Self {
        let flags = if user { self.flags | Self::USER } else { self.flags & !Self::USER };
        Self { flags, ..self }
    }

    /// The same access, its first byte in the 4 KiB guest-physical page `frame`.
    #[inline]
    #[must_use]
    pub fn with_frame(self, frame: u32) -> Self {
        Self { frame, ..self }
    }

    /// The same access at another address.
    #[inline(always)]
    pub(crate) fn at(self, va: u64) -> Self {
        Self { va, ..self }
    }

    /// What the same vCPU with the same privilege does with a data access: bit 0 of `shape` says that it is a store,
    /// bits 1..=3 the logarithm of its length.
    #[inline]
    pub(crate) fn data(self, shape: u8) -> Sort {
        let flags = self.flags & Self::USER | shape & 1;
        Sort { len: 1 << (shape >> 1 & 7), who: u16::from_le_bytes([self.vcpu, flags]) }
    }

    /// What the same vCPU with the same privilege does with a fetch of `len` bytes.
    #[inline]
    pub(crate) fn fetch(self, len: u16) -> Sort {
        let flags = self.flags & Self::USER | Kind::Fetch as u8;
        Sort { len, who: u16::from_le_bytes([self.vcpu, flags]) }
    }

    /// An access of a sort.
    #[inline(always)]
    pub(crate) fn of(Sort { len, who }: Sort, va: u64, frame: u32) -> Self {
        let [vcpu, flags] = who.to_le_bytes();
        Self { va, frame, len, vcpu, flags }
    }

    /// What the access does.
    #[inline]
    #[must_use]
    pub fn kind(self) -> Kind {
        match self.flags & Self::KIND {
            0 => Kind::Load,
            1 => Kind::Store,
            _ => Kind::Fetch,
        }
    }

    /// Its length in bytes.
    #[inline]
    #[must_use]
    pub fn len(self) -> u16 {
        self.len
    }

    /// Whether it has no length, as in traces that do not tell.
    #[inline]
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Whether it was made with user privilege (x86-64: CPL 3; AArch64: EL0).
    #[inline]
    #[must_use]
    pub fn user(self) -> bool {
        self.flags & Self::USER != 0
    }

    /// Its kind and privilege, which is what a translation depends on, in three bits: the [`Kind`] as a
    /// number, and 4 for user privilege.
    #[inline(always)]
    #[must_use]
    pub fn class(self) -> u8 {
        self.flags & (Self::KIND | Self::USER)
    }

    /// Whether it reaches into the following 4 KiB page.
    #[inline]
    #[must_use]
    pub fn crosses(self) -> bool {
        (self.va & 0xfff) + u64::from(self.len) > 0x1000
    }

    /// The guest-physical address of the first byte, where the frame is known.
    #[inline]
    #[must_use]
    pub fn gpa(self) -> Option<u64> {
        (self.frame != Self::NO_FRAME).then(|| u64::from(self.frame) << 12 | self.va & 0xfff)
    }
}

/// All of an access but where it is: apart, it is copied as one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub(crate) struct Sort {
    len: u16,
    /// The vCPU, and above it the flags.
    who: u16,
}

impl Sort {
    /// No access is of this sort.
    pub(crate) const NONE: Self = Self { len: 0, who: u16::MAX };

    /// Whether vCPU, kind and privilege are the same.
    #[inline(always)]
    pub(crate) fn is_like(self, other: Self) -> bool {
        self.who == other.who
    }

    /// The length in bytes.
    #[inline(always)]
    pub(crate) fn len(self) -> u16 {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_is_sixteen_bytes_and_keeps_what_it_is_given() {
        assert_eq!(size_of::<Access>(), 16);
        for kind in [Kind::Load, Kind::Store, Kind::Fetch] {
            let access = Access::new(kind, 0x1ff8, 8);
            assert_eq!((access.kind(), access.len(), access.user()), (kind, 8, true));
            assert!(!access.crosses() && access.gpa().is_none() && !access.is_empty());
            let access = access.on(3).with_user(false).with_frame(0x12);
            assert_eq!((access.kind(), access.vcpu, access.user()), (kind, 3, false));
            assert_eq!(access.gpa(), Some(0x12ff8));
        }
        assert!(Access::new(Kind::Load, 0x1ff9, 8).crosses());
    }
}
