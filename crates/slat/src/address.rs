//! Address types: one a space, without casual arithmetic, never interchangeable.

use core::fmt;

/// An address of one space. Implemented by [`Gva`], [`Gpa`], [`L2Gpa`] and [`Spa`]; a caller with
/// further spaces (an I/O virtual address, say) implements it for its own type.
pub trait Address: Copy + Eq + Ord + fmt::Debug + fmt::LowerHex {
    /// The glossary's abbreviation of the space, such as `GPA`.
    const SPACE: &'static str;

    /// The address with this numerical value. Every 64-bit value is accepted: widths belong to
    /// formats, which fault on what lies outside.
    fn new(raw: u64) -> Self;

    /// The numerical value.
    fn raw(self) -> u64;
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $space:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with this numerical value.
            #[inline]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The numerical value.
            #[inline]
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// This address plus `bytes`, or `None` where that leaves the 64-bit space.
            #[inline]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// The distance in bytes from `origin` up to this address, or `None` where `origin`
            /// is the higher one.
            #[inline]
            pub const fn checked_offset_from(self, origin: Self) -> Option<u64> {
                self.0.checked_sub(origin.0)
            }

            /// The highest multiple of `alignment` that is not above this address.
            /// `alignment` is a power of two, in bytes.
            #[inline]
            pub const fn align_down(self, alignment: u64) -> Self {
                debug_assert!(alignment.is_power_of_two());
                Self(self.0 & !(alignment - 1))
            }

            /// The lowest multiple of `alignment` that is not below this address, or `None` where
            /// that leaves the 64-bit space. `alignment` is a power of two, in bytes.
            #[inline]
            pub const fn checked_align_up(self, alignment: u64) -> Option<Self> {
                debug_assert!(alignment.is_power_of_two());
                match self.0.checked_add(alignment - 1) {
                    Some(sum) => Some(Self(sum & !(alignment - 1))),
                    None => None,
                }
            }

            /// Whether this address is a multiple of `alignment` (a power of two, in bytes).
            #[inline]
            pub const fn is_aligned(self, alignment: u64) -> bool {
                debug_assert!(alignment.is_power_of_two());
                self.0 & (alignment - 1) == 0
            }
        }

        impl Address for $name {
            const SPACE: &'static str = $space;

            #[inline]
            fn new(raw: u64) -> Self {
                Self(raw)
            }

            #[inline]
            fn raw(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($space, " {:#x}"), self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address!(
    /// Guest virtual address: what a guest's stage 1 translates.
    Gva,
    "GVA"
);
address!(
    /// Guest physical address: what a guest's stage 1 yields and stage 2 translates.
    Gpa,
    "GPA"
);
address!(
    /// Guest physical address of a nested guest (L2): what the guest hypervisor's second stage
    /// translates into a [`Gpa`].
    L2Gpa,
    "L2 GPA"
);
address!(
    /// System physical address: what the memory bus sees.
    Spa,
    "SPA"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_at_the_edges() {
        assert_eq!(Gpa::new(0x1fff).align_down(0x1000), Gpa::new(0x1000));
        assert_eq!(Gpa::new(0x1001).checked_align_up(0x1000), Some(Gpa::new(0x2000)));
        assert_eq!(Gpa::new(0x1000).checked_align_up(0x1000), Some(Gpa::new(0x1000)));
        assert_eq!(Gpa::new(u64::MAX).checked_align_up(0x1000), None);
        assert_eq!(Spa::new(u64::MAX).checked_add(1), None);
        assert_eq!(Spa::new(4).checked_offset_from(Spa::new(5)), None);
        assert!(Gva::new(0x20_0000).is_aligned(1 << 21));
    }
}
