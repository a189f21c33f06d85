//! The walker beside KVM's own, by `KVM_TRANSLATE`: random 4-level tables and addresses. On a machine
//! without KVM, or in a mode that it does not keep, the test says so and passes.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use slat::format::x86::long::{Long, Processor};
use slat::format::x86::{Controls, Vendor};
use slat::{Access, Gpa, Gva, Kind, Privilege, Regime, SliceMemory, Stage, Updates, walk};
use slat_kvm::{PagingState, Translator};

const TABLES: u64 = 16;
const MEMORY: u64 = 2 << 20;
const PAGE: u64 = 4096;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// An entry of any level: mostly present, to one of the tables or anywhere, now and then a flipped bit.
fn entry(random: &mut Random) -> u64 {
    let bits = random.bits();
    let target = match bits >> 60 {
        0..=11 => (bits >> 8 & (TABLES - 1)) * PAGE,
        _ => random.bits() & 0x000F_FFFF_FFFF_F000,
    };
    let large = if bits >> 20 & 7 == 0 { 1 << 7 } else { 0 };
    let flip = if bits >> 24 & 7 == 0 { 1u64 << (bits >> 32 & 63) } else { 0 };
    (target | large | bits & 0x66 | 1) ^ flip
}

#[test]
fn kvm_translates_as_the_walker_does() {
    let kvm = match Translator::new(MEMORY) {
        Ok(kvm) => kvm,
        Err(why) => return eprintln!("skipped: no KVM to ask: {why}"),
    };
    let (mut asked, mut found, mut modes) = (0, 0, 0);
    for (round, nxe) in [(1, true), (2, false), (3, true), (4, false)] {
        let mut random = Random(round);
        let mut memory = vec![0u8; MEMORY as usize];
        for at in (0..TABLES * PAGE).step_by(8) {
            let entry = entry(&mut random);
            memory[at as usize..][..8].copy_from_slice(&entry.to_le_bytes());
            kvm.store(at, entry);
        }
        let root = (random.bits() & (TABLES - 1)) * PAGE;
        let state = PagingState {
            cr0: 0x8001_0033,
            cr3: root,
            cr4: 1 << 5,
            efer: 0x500 | if nxe { 1 << 11 } else { 0 },
        };
        match kvm.set(state) {
            Ok(true) => modes += 1,
            Ok(false) => {
                eprintln!("skipped: KVM did not keep {state:x?}");
                continue;
            }
            Err(error) => {
                eprintln!("skipped: KVM refuses {state:x?}: {error}");
                continue;
            }
        }
        let controls = Controls { nxe, ..Controls::default() };
        let processor = Processor {
            physical_bits: kvm.processor().physical_bits,
            gigabyte_pages: kvm.processor().gigabyte_pages,
            vendor: if kvm.processor().amd { Vendor::Amd } else { Vendor::Intel },
            encryption_bit: None,
        };
        let format = Long::four(controls, processor);
        let stage = Stage::<_, Gva, Gpa>::new(format, root).with_updates(Updates::OnSuccess);
        let access = Access::new(Kind::Read, Privilege::Supervisor);
        for _ in 0..4000 {
            // Canonical addresses: KVM does not look at the upper bits.
            let address = ((random.bits() << 16) as i64 >> 16) as u64;
            // KVM has set accessed bits: the walker sees the memory as it was, which says the same.
            let mut words = memory.clone();
            let mut view = SliceMemory::new(Gpa::new(0), &mut words);
            let regime = Regime::default();
            let ours = walk(&stage, &mut view, Gva::new(address), &access, &regime, &());
            let ours = ours.ok().map(|mapped| mapped.output.raw());
            let theirs = kvm.translate(address).expect("KVM on x86 has KVM_TRANSLATE");
            assert_eq!(ours, theirs, "{address:#x}, round {round}, {state:x?}");
            asked += 1;
            found += u64::from(ours.is_some());
        }
    }
    eprintln!("{asked} addresses in {modes} modes, {found} translated");
    assert!(modes == 0 || found * 20 > asked, "{found} of {asked} translated");
}
