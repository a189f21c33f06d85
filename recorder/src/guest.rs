//! What the recorder can ask of the guest from inside a callback: its registers, its memory by
//! virtual address, and its physical memory through the file that backs it.

use std::collections::HashMap;
use std::ffi::{CStr, c_void};

use crate::ffi;

/// The guest's registers, by QEMU's names. Reads are of the vCPU whose callback is running.
pub(crate) struct Registers {
    handles: HashMap<String, *mut c_void>,
    buffer: *mut ffi::GArray,
}

impl Registers {
    /// Lists the registers; only inside a callback of a vCPU.
    pub(crate) fn list() -> Self {
        let mut handles = HashMap::new();
        // SAFETY: called by a vCPU's callback, as the interface asks; the array holds `len`
        // descriptors with C strings that live as long as the process.
        unsafe {
            let array = &*ffi::qemu_plugin_get_registers();
            let all = array.data.cast::<ffi::RegisterDescriptor>();
            for index in 0..array.len as usize {
                let register = &*all.add(index);
                let name = CStr::from_ptr(register.name).to_string_lossy().into_owned();
                handles.entry(name).or_insert(register.handle);
            }
            Self { handles, buffer: ffi::g_byte_array_new() }
        }
    }

    /// The handle of a register, for [`read`](Self::read).
    pub(crate) fn handle(&self, name: &str) -> Option<*mut c_void> {
        self.handles.get(name).copied()
    }

    /// The low 64 bits of a register; only inside a callback that may read registers.
    pub(crate) fn read(&self, handle: *mut c_void) -> u64 {
        let mut word = [0; 8];
        // SAFETY: the handle is one that QEMU gave; the buffer is ours alone, and QEMU appends to it
        // as many bytes as its length says afterwards.
        unsafe {
            ffi::g_byte_array_set_size(self.buffer, 0);
            ffi::qemu_plugin_read_register(handle, self.buffer);
            let read = &*self.buffer;
            let len = word.len().min(read.len as usize);
            std::ptr::copy_nonoverlapping(read.data, word.as_mut_ptr(), len);
        }
        u64::from_le_bytes(word)
    }

    /// As [`read`](Self::read), by name; 0 for a register that the machine does not have.
    pub(crate) fn get(&self, name: &str) -> u64 {
        self.handle(name).map_or(0, |handle| self.read(handle))
    }

    /// Reads the guest's memory by virtual address, as a debugger does, without side effects.
    pub(crate) fn memory<const WORDS: usize>(&self, va: u64) -> Option<[u64; WORDS]> {
        let mut words = [0; WORDS];
        // SAFETY: as for `read`; QEMU fills the buffer with the number of bytes asked for.
        unsafe {
            let found = ffi::qemu_plugin_read_memory_vaddr(va, self.buffer, WORDS * 8);
            let read = &*self.buffer;
            if !found || (read.len as usize) < WORDS * 8 {
                return None;
            }
            std::ptr::copy_nonoverlapping(read.data, words.as_mut_ptr().cast(), WORDS * 8);
        }
        Some(words)
    }
}

/// The guest's physical memory: the file behind it is mapped into this process by QEMU.
pub(crate) struct Ram {
    host: *const u8,
    len: u64,
    /// The guest-physical address of its first byte.
    start: u64,
    /// From here on there is nothing but RAM up to its end: a PC has devices below 1 MiB.
    plain: u64,
}

impl Ram {
    /// Finds the mapping of `file`, which the guest sees at the physical address `start`.
    pub(crate) fn find(file: &str, start: u64) -> Option<Self> {
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        let line = maps.lines().find(|line| {
            line.ends_with(file) && line.split(' ').nth(1).is_some_and(|mode| mode == "rw-s")
        })?;
        let (from, to) = line.split(' ').next()?.split_once('-')?;
        let from = usize::from_str_radix(from, 16).ok()?;
        let to = usize::from_str_radix(to, 16).ok()?;
        Some(Self {
            host: from as *const u8,
            len: (to - from) as u64,
            start,
            plain: start.max(1 << 20),
        })
    }

    /// Its guest-physical addresses, start..end.
    pub(crate) fn range(&self) -> std::ops::Range<u64> {
        self.start..self.start + self.len
    }

    /// The guest-physical address behind a pointer into it.
    pub(crate) fn address_of(&self, host: *const u8) -> Option<u64> {
        let offset = (host as u64).wrapping_sub(self.host as u64);
        (offset < self.len).then(|| self.start + offset)
    }

    /// Whether `gpa` is in RAM for certain, where no device is.
    #[inline]
    pub(crate) fn is_plain(&self, gpa: u64) -> bool {
        gpa >= self.plain && gpa - self.start < self.len
    }

    /// The number of the page of it that holds `gpa`, counted from its start.
    #[inline]
    pub(crate) fn page(&self, gpa: u64) -> Option<usize> {
        let offset = gpa.wrapping_sub(self.start);
        (offset < self.len).then_some((offset >> 12) as usize)
    }

    /// The number of its pages.
    pub(crate) fn pages(&self) -> usize {
        (self.len >> 12) as usize
    }

    /// The aligned word that holds `gpa`.
    #[inline]
    pub(crate) fn word(&self, gpa: u64) -> Option<u64> {
        let offset = gpa.wrapping_sub(self.start) & !7;
        if offset >= self.len {
            return None;
        }
        // SAFETY: inside the mapping, which QEMU keeps for as long as it runs, and aligned. The
        // guest's vCPUs run on this very thread, so nothing writes meanwhile but devices, to whom
        // a volatile read is as the guest's own.
        Some(unsafe { self.host.add(offset as usize).cast::<u64>().read_volatile() })
    }
}
