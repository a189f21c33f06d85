//! KVM's own counters of a machine or a vCPU: `KVM_GET_STATS_FD` (Linux, `Documentation/virt/kvm/api.rst`,
//! 4.133). They need no debugfs and no privilege beyond the device.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
/// Bytes of `struct kvm_stats_header`, and of `struct kvm_stats_desc` without its name.
const HEADER: usize = 24;
const DESCRIPTOR: usize = 16;

/// The counters of one machine or vCPU.
#[derive(Debug)]
pub(crate) struct Stats {
    file: File,
    /// Name and place of each counter that is one value.
    counters: Vec<(String, u64)>,
}

impl Stats {
    /// The counters of the machine or vCPU that `of` is.
    ///
    /// # Errors
    /// Where this KVM has none, or describes them as no KVM does.
    pub(crate) fn open(of: &impl AsRawFd) -> io::Result<Stats> {
        // SAFETY: the request takes no argument and returns a new descriptor or an error.
        let fd = unsafe { libc::ioctl(of.as_raw_fd(), KVM_GET_STATS_FD, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, so that nobody else closes it.
        let file = unsafe { File::from_raw_fd(fd) };
        let counters = describe(&file)?;
        Ok(Stats { file, counters })
    }

    /// Adds every counter's value to `values`.
    ///
    /// # Errors
    /// Those of the read.
    pub(crate) fn read(&self, values: &mut BTreeMap<String, u64>) -> io::Result<()> {
        for (name, at) in &self.counters {
            let mut value = [0; 8];
            self.file.read_exact_at(&mut value, *at)?;
            *values.entry(name.clone()).or_default() += u64::from_ne_bytes(value);
        }
        Ok(())
    }
}

fn describe(file: &File) -> io::Result<Vec<(String, u64)>> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
        u32::from_ne_bytes(word.unwrap_or_default())
    };
    let (name_bytes, count) = (word(&header, 4) as usize, word(&header, 8));
    let (descriptors, data) = (u64::from(word(&header, 16)), u64::from(word(&header, 20)));
    if name_bytes > 1024 || count > 4096 {
        return Err(io::Error::other("KVM's counters are described as by no KVM that is known"));
    }
    let mut counters = Vec::new();
    let mut descriptor = vec![0; DESCRIPTOR + name_bytes];
    let step = descriptor.len() as u64;
    for n in 0..u64::from(count) {
        file.read_exact_at(&mut descriptor, descriptors + n * step)?;
        let values = u16::from_ne_bytes([descriptor[6], descriptor[7]]);
        let name = descriptor[DESCRIPTOR..].split(|&byte| byte == 0).next().unwrap_or_default();
        // Histograms have more values than one.
        if values == 1 {
            let name = String::from_utf8_lossy(name).into_owned();
            counters.push((name, data + u64::from(word(&descriptor, 8))));
        }
    }
    Ok(counters)
}
