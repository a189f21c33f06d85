//! Guest tables made for a trace, compacted into page runs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slat_trace::compact::{Compact, Hierarchy, RunBatch};
use slat_trace::import::Options;
use slat_trace::made_tables::{Damage, MadeTables, Pages, Policy};

fuzz_target!(|bytes: &[u8]| {
    let file = slat_fuzz::file(bytes);
    let policy = Policy { pages: Pages::Transparent, fragmentation: 20, seed: 1, memory: 1 << 28 };
    let made = MadeTables::open(&[file.path()], &Options::default(), policy, Damage::TakeWhatPrecedes);
    let Ok(source) = made else { return };
    let expected = source.counts().accesses();
    let mut compact = Compact::new(source, &Hierarchy::default()).expect("the default is served");
    let (mut runs, mut count) = (RunBatch::default(), 0);
    while compact.next(&mut runs).expect("the first pass went through") {
        count += runs.runs.iter().map(|run| run.accesses()).sum::<u64>();
    }
    assert_eq!(count, expected);
});
