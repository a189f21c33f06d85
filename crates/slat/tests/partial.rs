//! Walks that begin where a cache remembers a table.

use slat::format::Path;
use slat::format::riscv::{Features, Scheme, Sv};
use slat::{
    Access, Gpa, Kind, Partial, Privilege, Regime, SliceMemory, Spa, Stage, walk, walk_from,
};

/// A cache that remembers nothing leaves the walk at the root, whose index has more bits than that of other
/// tables (RISC-V privileged, "Guest Physical Address Translation": two more).
#[test]
fn the_root_is_indexed_whole() {
    const ROOT: u64 = 0x4000;
    let (input, index) = (0x600 << 30 | 0x1234, 0x600);
    let mut bytes = vec![0; 0x8000];
    // V, R, W, X, U, A, D: 1 GiB at address 0.
    bytes[ROOT as usize + 8 * index..][..8].copy_from_slice(&0xDFu64.to_le_bytes());
    let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
    let stage = Stage::<_, Gpa, Spa>::new(Sv::stage2(Scheme::Sv39, Features::default()), ROOT);
    let (access, regime) = (Access::new(Kind::Read, Privilege::User), Regime::default());
    let input = Gpa::new(input);
    let whole = walk(&stage, &mut memory, input, &access, &regime, &()).unwrap();
    assert_eq!(whole.output.raw(), 0x1234);
    let from = Partial { level: 2, table: ROOT, path: Path::START };
    let taken_up = walk_from(&stage, &from, &mut memory, input, &access, &regime, &()).unwrap();
    assert_eq!(taken_up, whole);
}
