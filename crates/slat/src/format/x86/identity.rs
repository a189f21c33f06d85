//! The identity-map table that a processor without unrestricted guest needs: such a processor
//! enters a guest only with paging on, so that a hypervisor runs an unpaged guest on a table that
//! maps every address to itself (Intel SDM 3C 28.3.1.1 and 32).

use super::bits;

/// Fills a page directory of 32-bit paging (`CR4.PSE` set) with 1024 4 MiB pages, each mapped to
/// itself: present, writable, user, accessed and dirty.
///
/// ```
/// use slat::format::x86::identity::identity_map;
/// let mut directory = [0u32; 1024];
/// identity_map(&mut directory);
/// assert_eq!(directory[3], 3 << 22 | 0xe7);
/// ```
pub fn identity_map(directory: &mut [u32; 1024]) {
    const FLAGS: u64 = bits::P | bits::RW | bits::US | bits::A | bits::D | bits::PS;
    for (frame, entry) in (0u32..).zip(directory) {
        *entry = frame << 22 | FLAGS as u32;
    }
}
