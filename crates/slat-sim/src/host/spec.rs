//! What hosts and partitions are made of.

use super::guest::LEAST;
use super::policy::Policies;
use super::spa::{MAX_BYTES, PAGE, size};
use crate::hypervisor::Hypervisor;
use crate::preset::Processor;

/// What a host is made of.
#[derive(Clone, PartialEq, Debug)]
pub struct HostSpec {
    /// Its name.
    pub name: String,
    /// Its processor.
    pub processor: Processor,
    /// What runs on it.
    pub hypervisor: Hypervisor,
    /// Memory of each NUMA node, in bytes.
    pub nodes: Vec<u64>,
    /// Where devices are instead of memory: start and size.
    pub holes: Vec<(u64, u64)>,
    /// The hypervisor's memory for tables; `None` is a 32nd of the memory, at least 2 MiB.
    pub tables: Option<u64>,
    /// What the parent partition uses, in bytes.
    pub parent: u64,
    /// Whether the parent may page its own memory to a file.
    pub parent_paging: bool,
    /// What is off by default.
    pub policies: Policies,
}

/// What a child partition is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionSpec {
    /// Its name.
    pub name: String,
    /// Its memory in bytes, a multiple of 4 KiB.
    pub bytes: u64,
    /// Where devices are instead of memory, in guest-physical addresses: start and size.
    pub holes: Vec<(u64, u64)>,
    /// The NUMA node that its memory comes from as long as that has some.
    pub node: usize,
    /// What its guest's arbitrary numbers begin with.
    pub seed: u64,
}

/// Guest-physical memory of so many bytes around holes.
pub(super) fn ranges(bytes: u64, holes: &[(u64, u64)]) -> Result<Vec<(u64, u64)>, String> {
    if bytes < LEAST || !bytes.is_multiple_of(PAGE) || bytes > MAX_BYTES {
        return Err(format!(
            "a partition has from {} to {} of memory, a multiple of 4 KiB; this has {bytes} bytes",
            size(LEAST),
            size(MAX_BYTES)
        ));
    }
    let mut holes = holes.to_vec();
    holes.sort_unstable();
    let (mut at, mut left) = (0u64, bytes);
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (start, bytes) in holes {
        if (start | bytes) % PAGE != 0 || bytes == 0 {
            return Err("a hole begins and ends at a multiple of 4 KiB".to_owned());
        }
        if start.checked_add(bytes).is_none_or(|end| end > 2 * MAX_BYTES) {
            return Err(format!("a hole ends at {} at most", size(2 * MAX_BYTES)));
        }
        if start < LEAST || start < at {
            return Err(format!("a hole lies above {} and apart from others", size(LEAST)));
        }
        if start - at >= left {
            break;
        }
        if start > at {
            ranges.push((at, start - at));
            left -= start - at;
        }
        at = start.saturating_add(bytes);
    }
    ranges.push((at, left));
    Ok(ranges)
}
