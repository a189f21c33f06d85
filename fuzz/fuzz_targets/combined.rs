//! A guest hypervisor with arbitrary tables, which it rewrites, and a guest of its that accesses at
//! random: no panic, no endless fault, and every combined leaf says what the two stages say.
#![no_main]

use std::sync::atomic::AtomicU64;

use libfuzzer_sys::fuzz_target;
use slat::combined::{Combine, Combined, Pass, Record, Stack, Unserved};
use slat::edit::{Arena, Detached, Error, Gather, Live, Pending, Slots, Stale, Step, Tables};
use slat::format::ept::{Ept, Features};
use slat::format::npt::Npt;
use slat::format::riscv::{Features as RiscvFeatures, Scheme, Sv};
use slat::format::x86::long::Processor;
use slat::invalidate::{By, Context};
use slat::{
    Access, EntryLayout, Gpa, Kind, L2Gpa, Memory, Nested, Privilege, Regime, SliceMemory, Spa, Stage,
    Updates,
};

/// The guest hypervisor's memory: its tables are somewhere in it. The host maps it one to one by 4 KiB
/// pages, from tables behind it.
const GUEST: u64 = 16 << 12;
const HOST: u64 = GUEST;

fn run<F: Combine<Word = u64>>(
    format: F,
    leaf: u64,
    bytes: &[u8],
    records: u8,
    ops: &[(u8, u64, u64)],
) {
    let mut memory = vec![0u8; (HOST + (16 << 12)) as usize];
    // Entries that point into this memory are likelier than those that do not.
    for (to, from) in memory[..GUEST as usize].chunks_exact_mut(8).zip(bytes.chunks(8)) {
        let mut entry = [0u8; 8];
        entry[..from.len()].copy_from_slice(from);
        let near = u64::from_le_bytes(entry) & !0x000f_ffff_fffc_0000;
        to.copy_from_slice(&near.to_le_bytes());
    }
    let mut memory = SliceMemory::new(Spa::new(0), &mut memory);
    let top = format.top();
    // A G-stage root is four pages long.
    let root = HOST;
    let mut set = |at: u64, entry: u64| memory.poke(Spa::new(at), EntryLayout::LE64, entry).unwrap();
    let mut table = root;
    let mut next = root + (4 << 12);
    for level in (1..=top).rev() {
        set(table, format.table(next, level));
        table = next;
        next += 1 << 12;
    }
    for page in 0..32u64 {
        set(table + 8 * page, leaf | format.place(page << 12, 0));
    }
    let upper: Stage<F, L2Gpa, Gpa> = Stage::new(format, format.root(0));
    let host: Stage<F, Gpa, Spa> =
        Stage::new(format, format.root(root)).with_updates(Updates::OnSuccess);
    let regime = Regime::default();
    let stack = Stack {
        upper,
        upper_regime: Regime::default(),
        lower: format,
        lower_regime: Regime::default(),
    };
    let cells: Vec<AtomicU64> = (0..40 * 512).map(|_| AtomicU64::new(0)).collect();
    let arena = Arena::<u64>::new(0x100_0000, &cells).unwrap();
    let mut tables = Tables::<_, L2Gpa, Spa, _>::create(format, &arena, &arena).unwrap();
    let others = Tables::<F, L2Gpa, Spa, _>::adopt(format, 0x100_0000, &arena).unwrap();
    let mut storage = vec![Record::default(); usize::from(records)];
    let Ok(mut combined) = Combined::new(stack, &format, &mut storage) else { return };
    let (mut ranges, mut detached, mut pending) =
        ([Stale::default(); 2], [Detached::default(); 2], [Pending::default(); 2]);
    let slots = Slots {
        ranges: &mut ranges,
        detached: &mut detached,
        pending: &mut pending,
        report: |leak| panic!("{leak}"),
    };
    let whole = 1u64 << format.input_bits();
    let mut cursor =
        tables.cursor::<_, Live>(&arena, Context::All, slots, L2Gpa::new(0), whole).unwrap();
    macro_rules! settle {
        ($gather:expr) => {{
            let completed = $gather.complete(&mut By(|_: &Gather<'_>| ())).unwrap();
            let reclaim = completed.reclaim(&others).expect("nobody else walks");
            cursor.resume(reclaim.into_source(&arena).unwrap()).unwrap();
        }};
    }
    for &(verb, at, value) in ops {
        let address = L2Gpa::new(at & (whole - 1));
        let mut pass = Pass::whole(&format);
        for call in 0.. {
            assert!(call < 2000, "a call does not come to its end");
            let mut backed = Nested::new(&host, &mut memory, &regime, &());
            let kind = [Kind::Read, Kind::Write, Kind::Execute][value as usize % 3];
            let access = Access::new(kind, Privilege::User);
            let outcome = match verb % 6 {
                0..=2 => match combined.serve(&mut cursor, &mut backed, &mut (), address, &access) {
                    Ok(step) => Ok(step),
                    Err(Unserved::Edit(error)) => Err(error),
                    Err(_) => break,
                },
                3 => {
                    let page = at % GUEST & !7;
                    let entry = value & !0x000f_ffff_fffc_0000;
                    memory.poke(Spa::new(page), EntryLayout::LE64, entry).unwrap();
                    combined.guest_wrote(&mut cursor, &mut (), Gpa::new(page), 8)
                }
                4 => {
                    let page = at % 32;
                    let at = Spa::new(table + 8 * page);
                    let read = memory.read(at, EntryLayout::LE64, &access).unwrap().value;
                    // Bits 1 and 8 are W and A or the like in these formats; whatever they make.
                    memory.poke(at, EntryLayout::LE64, read ^ value & 0x382).unwrap();
                    let page = page << 12;
                    let range = Gpa::new(page)..=Gpa::new(page | 0xfff);
                    combined.host_changed(&mut cursor, &mut (), range)
                }
                _ => combined.resync(&mut cursor, &mut backed, &mut pass, 5),
            };
            match outcome {
                Ok(Step::Done) => break,
                Ok(Step::Yield) => {}
                Ok(Step::Invalidate(gather)) => settle!(gather),
                Err(Error::NoFrame { .. }) => {
                    while let Ok(Step::Invalidate(gather)) = combined.drop_all(&mut cursor, &mut ()) {
                        settle!(gather);
                    }
                }
                // Tables that change under the walk, or that lie in themselves.
                Err(Error::Frozen { .. } | Error::Refused(_) | Error::OutsideOutput { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
        if let Some(gather) = cursor.flush() {
            settle!(gather);
        }
        let mut backed = Nested::new(&host, &mut memory, &regime, &());
        combined
            .audit(cursor.tables(), &mut backed, |leaf| {
                // A walk that sets bits may change what is a leaf and a table at a time: the next
                // sync point is the guest hypervisor's invalidation then.
                assert!(verb % 6 != 5, "after a sync point: {leaf:?}");
            })
            .unwrap();
    }
    while let Ok(Step::Invalidate(gather)) = combined.drop_all(&mut cursor, &mut ()) {
        settle!(gather);
    }
    if let Some(gather) = cursor.flush() {
        settle!(gather);
    }
    drop(cursor.finish());
}

fuzz_target!(|input: (Vec<u8>, u8, Vec<(u8, u64, u64)>)| {
    let (bytes, records, ops) = input;
    let features = Features { accessed_dirty: records & 1 != 0, ..Features::default() };
    run(Ept::four(features), 0x37, &bytes, records, &ops);
    run(Npt::four(true, Processor::default()), 0x7, &bytes, records, &ops);
    let riscv = RiscvFeatures { hardware_ad: true, ..RiscvFeatures::default() };
    run(Sv::stage2(Scheme::Sv39, riscv), 0xdf, &bytes, records, &ops);
});
