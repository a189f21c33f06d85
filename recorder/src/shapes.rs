//! The shape of an access: store or load, and its length.

use crate::ffi;

/// What QEMU calls the information on an access is the same for all accesses by similar
/// instructions: there are a few dozen, so that asking once for each is enough.
pub(crate) struct Shapes {
    known: [(u64, u8); SLOTS],
}

const SLOTS: usize = 256;

impl Default for Shapes {
    fn default() -> Self {
        // Of no access: the information has 32 bits.
        Self { known: [(u64::MAX, 0); SLOTS] }
    }
}

impl Shapes {
    /// Bit 0: store; bits 1..=3: the logarithm of the length in bytes.
    #[inline]
    pub(crate) fn of(&mut self, info: u32) -> u8 {
        let slot = &mut self.known[(info ^ info >> 10) as usize % SLOTS];
        if slot.0 != u64::from(info) {
            *slot = (info.into(), ask(info));
        }
        slot.1
    }
}

#[cold]
fn ask(info: u32) -> u8 {
    // SAFETY: `info` is what a memory callback was given, as the interface asks.
    let (store, log2_len) = unsafe {
        (ffi::qemu_plugin_mem_is_store(info), ffi::qemu_plugin_mem_size_shift(info) as u8)
    };
    u8::from(store) | (log2_len & 7) << 1
}
