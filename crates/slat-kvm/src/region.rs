//! Memory that a guest has.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

/// The largest page that the region is aligned to.
const ALIGNMENT: usize = 2 << 20;

/// A region of private memory, all zeros, at an address that is a multiple of 2 MiB.
#[derive(Debug)]
pub(crate) struct Region {
    start: NonNull<u8>,
    bytes: usize,
    mapped: (*mut libc::c_void, usize),
}

impl Region {
    /// So many bytes, a multiple of 2 MiB; in pages of 2 MiB from `large_from` on, as far as the
    /// kernel has them.
    ///
    /// # Errors
    /// Where the kernel gives no memory.
    pub(crate) fn new(bytes: usize, large_from: usize) -> io::Result<Region> {
        let length = bytes + ALIGNMENT;
        // SAFETY: an anonymous private mapping at an address that the kernel chooses.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = mapped.cast::<u8>();
        let start = start.wrapping_add(start.align_offset(ALIGNMENT));
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("no address"))?;
        let region = Region { start, bytes, mapped: (mapped, length) };
        for (from, to, advice) in
            [(0, large_from, libc::MADV_NOHUGEPAGE), (large_from, bytes, libc::MADV_HUGEPAGE)]
        {
            if from < to {
                // SAFETY: the range is part of the mapping. Advice that is not taken changes nothing
                // but sizes of pages, which are asked for afterwards.
                unsafe { libc::madvise(start.as_ptr().add(from).cast(), to - from, advice) };
            }
        }
        Ok(region)
    }

    /// Where the kernel has mapped it.
    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// How long it is.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Makes it a machine's memory from physical address 0 on. The machine must go before the region does.
    ///
    /// # Errors
    /// Where KVM does not take it.
    pub(crate) fn give_to(&self, vm: &VmFd) -> io::Result<()> {
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: self.bytes(),
            userspace_addr: self.address(),
        };
        // SAFETY: the region is mapped, and every owner of both drops the machine first; it is read and
        // written as atomics alone.
        unsafe { vm.set_user_memory_region(slot)? };
        Ok(())
    }

    fn word(&self, at: u64) -> &AtomicU64 {
        let at = at as usize;
        assert!(at.is_multiple_of(8) && at < self.bytes, "{at:#x} is not in the region");
        // SAFETY: aligned, inside the mapping, which lives as long as `self`; a guest and others may
        // change it at any time, which atomics permit.
        unsafe { &*self.start.as_ptr().add(at).cast::<AtomicU64>() }
    }

    /// Stores eight bytes at `at`, a multiple of 8.
    pub(crate) fn store(&self, at: u64, value: u64) {
        self.word(at).store(value, Ordering::Relaxed);
    }

    /// The eight bytes at `at`, a multiple of 8.
    pub(crate) fn load(&self, at: u64) -> u64 {
        self.word(at).load(Ordering::Relaxed)
    }

    /// Copies `bytes` to `at`, a multiple of 8.
    pub(crate) fn copy(&self, at: u64, bytes: &[u8]) {
        for (n, chunk) in (0..).zip(bytes.chunks(8)) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.store(at + 8 * n, u64::from_le_bytes(word));
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.mapped.0, self.mapped.1) };
    }
}
