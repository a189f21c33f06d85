//! The atomics of table entries and of what guards them: the machine's, or loom's, which tries every
//! order in which threads can meet.

#[cfg(not(all(test, loom)))]
pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, fence};
#[cfg(all(test, loom))]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, fence};

/// A constructor that is `const` but under loom, whose atomics are not.
macro_rules! constructor {
    ($(#[$meta:meta])* pub fn $name:ident($($argument:ident: $kind:ty),*) -> $result:ty $body:block) => {
        #[cfg(not(all(test, loom)))]
        $(#[$meta])*
        pub const fn $name($($argument: $kind),*) -> $result $body

        #[cfg(all(test, loom))]
        $(#[$meta])*
        pub fn $name($($argument: $kind),*) -> $result $body
    };
}
pub(crate) use constructor;
