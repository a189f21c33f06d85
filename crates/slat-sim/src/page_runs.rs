//! For which TLBs page runs are exact.
//!
//! A simulation of TLBs alone may read page runs ([`slat_trace::compact`]) instead of every access, if the
//! hierarchy is one for which that changes nothing. [`hierarchy`] says so of a configuration.
//!
//! ```
//! use slat_mmu::array::Geometry;
//! use slat_mmu::tlb::{BankConfig, TlbConfig};
//! use slat_sim::page_runs::hierarchy;
//! use slat_trace::compact::Classes;
//!
//! let first = || vec![BankConfig::new(Geometry::lru(64, 4), &[12, 21])];
//! let second = vec![BankConfig::new(Geometry::lru(1536, 12), &[12, 21])];
//! let config =
//!     TlbConfig { fetch: first(), load: first(), second, largest: 30, ..TlbConfig::default() };
//! assert_eq!(hierarchy(&config, &[12, 21]).classes(), Ok(Classes::Split));
//! // A 1 GiB page is in no first level here: each access to it goes to the second.
//! assert!(hierarchy(&config, &[12, 30]).classes().is_err());
//! ```

use slat_mmu::tlb::{BankConfig, TlbConfig};
use slat_trace::compact::Hierarchy;

/// What page runs ask of these TLBs, when pages of `sizes` (log2, as the TLBs see them: the smaller of
/// both stages') occur.
///
/// [`Hierarchy::interventions`] is left false: whether a host acts while a guest runs is not the TLBs'.
#[must_use]
pub fn hierarchy(config: &TlbConfig, sizes: &[u8]) -> Hierarchy {
    let kept = |banks: &[BankConfig], size: u8| {
        let size = size.min(config.largest);
        banks.iter().any(|bank| {
            let mut shifts = bank.shifts.into_iter().filter(|&shift| shift != 0);
            let fits = |shift| shift == size || config.first_smashes && shift <= size;
            bank.geometry.entries > 0 && shifts.any(fits)
        })
    };
    let firsts = [Some(&config.fetch), Some(&config.load), config.store.as_ref()];
    let pass_by =
        firsts.into_iter().flatten().any(|banks| sizes.iter().any(|&size| !kept(banks, size)));
    Hierarchy {
        split_first_level: true,
        split_stores: config.store.is_some(),
        pass_by,
        // An entry that leaves the second level stays in the first, and only misses fill.
        inclusive: false,
        outer_sees_hits: false,
        shared: false,
        prefetches: false,
        interventions: false,
    }
}
