//! Real guests under KVM: what the walkers find in their memory is what the host's pagemap said, what
//! the guests wrote is where their own addresses lead, and what KVM marks as MMIO is no mapping.
//!
//! Each check runs on the slice in `fixtures/`, and on the whole image where there is one: in the
//! directory that `SLAT_DATA` names, else in `../shared/data` beside the repository.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use slat::format::any::AnyFormat;
use slat::syndrome::arm64::iss;
use slat::syndrome::x86::{NPF_FINAL, ept_violation, nested_page_fault, page_fault_bits};
use slat::syndrome::{self, Field};
use slat::{
    Access, Cause, EntryLayout, Failed, Fault, Gpa, Gva, Kind, Memory, Privilege, Regime, Spa,
    Stage, Updates, Why, translate, walk,
};
use slat_image::spec::Setup;
use slat_image::{Image, Options};

/// What a guest xors with the GVA that it writes through, at the start of the page.
const MAGIC: u64 = u64::from_le_bytes(*b"PAGESLAT");
const PAGE: u64 = 4096;

/// A guest as the truth describes it, and the stages that its registers and its root make.
struct Guest {
    name: String,
    regime: Regime,
    stage1: Stage<AnyFormat, Gva, Gpa>,
    stage2: Stage<AnyFormat, Gpa, Spa>,
    /// GPA to SPA of every page that the host had backed.
    pages: BTreeMap<u64, u64>,
    /// Every page of its memory slots, backed or not, and whether its slot is read-only.
    slots: BTreeMap<u64, bool>,
}

fn number(value: &Value) -> u64 {
    let text = value.as_str().unwrap();
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).unwrap(),
        None => text.parse().unwrap(),
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn truth(name: &str) -> Value {
    let path = repository().join(format!("fixtures/{name}.truth.json"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn slice(name: &str) -> Image {
    Image::open(repository().join(format!("fixtures/{name}.slice"))).unwrap()
}

/// The whole image that a slice was cut from, if it is on this machine.
fn whole(name: &str) -> Option<Image> {
    let data = std::env::var_os("SLAT_DATA").map(PathBuf::from);
    let file = data.unwrap_or(repository().join("../shared/data")).join(format!("{name}.raw.zst"));
    if !file.exists() {
        eprintln!("skipped: no {} (SLAT_DATA names the directory of whole images)", file.display());
        return None;
    }
    let base = truth(name)["phys_base"].as_u64().unwrap();
    Some(Options::new().base(base).open(file).unwrap())
}

/// The guests of an image; `formats` says from the truth how each one's stages are encoded.
fn guests(
    name: &str,
    formats: impl Fn(&Value, &Value) -> (AnyFormat, AnyFormat, Regime),
) -> Vec<Guest> {
    let truth = truth(name);
    let guest = |guest: &Value| {
        let (stage1, stage2, regime) = formats(&truth, guest);
        let mut pages = BTreeMap::new();
        for run in guest["runs"].as_array().unwrap() {
            for page in 0..run[2].as_u64().unwrap() {
                pages.insert(number(&run[0]) + page * PAGE, number(&run[1]) + page * PAGE);
            }
        }
        let mut slots = BTreeMap::new();
        for slot in guest["slots"].as_array().unwrap() {
            let start = number(&slot["gpa"]);
            for gpa in (start..start + number(&slot["size"])).step_by(PAGE as usize) {
                slots.insert(gpa, slot["ro"] == 1);
            }
        }
        Guest {
            name: guest["name"].as_str().unwrap().to_owned(),
            regime,
            stage1: Stage::new(stage1, ()),
            stage2: Stage::new(stage2, ()),
            pages,
            slots,
        }
    };
    truth["vms"].as_array().unwrap().iter().map(guest).collect()
}

fn x86_guests(name: &str) -> Vec<Guest> {
    guests(name, |_, guest| {
        let state = &guest["state"];
        let [cr0, cr3, cr4, efer] = ["cr0", "cr3", "cr4", "efer"].map(|name| number(&state[name]));
        let stage1 = format!("x86-4,cr0={cr0},cr3={cr3},cr4={cr4},efer={efer}");
        let root = number(&guest["root"]);
        let stage2 = match name {
            "npt-tdp" => format!("npt4,ncr3={root}"),
            _ => format!("ept4,eptp={}", root | 0x5e),
        };
        let setup = Setup::parse(Some(&stage1), Some(&stage2)).unwrap();
        (setup.stage1.unwrap().format, setup.stage2.unwrap().format, setup.regime)
    })
}

/// The registers are those of the processor that ran A when the image was made; B's differ in the
/// root alone. A Cortex-A57 has 44 physical address bits.
fn arm_guests(name: &str) -> Vec<Guest> {
    guests(name, |truth, guest| {
        let el2 = &truth["el2_registers"]["p1.2"];
        let [vtcr, hcr] = ["VTCR_EL2", "HCR_EL2"].map(|name| number(&el2[name]));
        let state = &guest["state"];
        let [ttbr0, ttbr1, tcr, sctlr] =
            ["ttbr0", "ttbr1", "tcr", "sctlr"].map(|name| number(&state[name]));
        let vttbr = match number(&el2["VTTBR_EL2"]) {
            vttbr if guest["name"] == "A" => vttbr,
            _ => number(&guest["root"]),
        };
        assert_eq!(vttbr & 0xffff_ffff_f000, number(&guest["root"]));
        // MAIR_EL1 of both: attribute 0 Normal write-back, 1 Device.
        let stage1 = format!(
            "arm64,ttbr0={ttbr0},ttbr1={ttbr1},tcr={tcr},sctlr={sctlr},mair=0xff,maxphyaddr=44"
        );
        let stage2 = format!("arm64-s2,vttbr={vttbr},vtcr={vtcr},hcr={hcr},maxphyaddr=44");
        let setup = Setup::parse(Some(&stage1), Some(&stage2)).unwrap();
        (setup.stage1.unwrap().format, setup.stage2.unwrap().format, setup.regime)
    })
}

impl Guest {
    /// Stage 2 alone.
    fn stage2(
        &self,
        image: &Image,
        gpa: u64,
        kind: Kind,
    ) -> Result<slat::Mapped<Spa>, Failed<Gpa, slat::Outside<Spa>>> {
        let access = Access::new(kind, Privilege::Supervisor);
        walk(&self.stage2, &mut image.read_only(), Gpa::new(gpa), &access, &self.regime, &())
    }

    /// Both stages.
    fn translate(
        &self,
        image: &Image,
        gva: u64,
        kind: Kind,
    ) -> Result<slat::Translation, slat::TwoStageFailure<Gva, Gpa, slat::Outside<Spa>>> {
        let access = Access::new(kind, Privilege::Supervisor);
        let mut memory = image.read_only();
        let (stage1, stage2) = (&self.stage1, &self.stage2);
        translate(stage1, stage2, &mut memory, Gva::new(gva), &access, &self.regime, &())
    }

    /// All pages of all slots, through stage 2: the backed ones lead where the host's pagemap says
    /// and permit writes where the slot does, the others are empty.
    fn check_stage2(&self, image: &Image) {
        assert_eq!(self.pages.len(), 6160, "{}", self.name);
        let (mut in_large, mut read_only) = (0, 0);
        for (&gpa, &is_read_only) in &self.slots {
            let found = self.stage2(image, gpa + 0x123, Kind::Read);
            let Some(&spa) = self.pages.get(&gpa) else {
                let Err(Failed::Here(Fault { cause: Cause::Empty, .. })) = found else {
                    panic!("{}: {gpa:#x} has no backing, found {found:?}", self.name)
                };
                continue;
            };
            let found = found.unwrap_or_else(|fault| panic!("{}: {gpa:#x}: {fault}", self.name));
            assert_eq!(found.output.raw(), spa + 0x123, "{}: {gpa:#x}", self.name);
            in_large += u32::from(found.found.shift == 21);
            let write = self.stage2(image, gpa, Kind::Write);
            assert_eq!(write.is_err(), is_read_only, "{}: {gpa:#x}: {write:?}", self.name);
            read_only += u32::from(is_read_only);
        }
        // 7 leaves of 2 MiB, and the 64 KiB of the read-only slot.
        assert_eq!((in_large, read_only), (7 * 512, 16), "{}", self.name);
        assert!(self.pages.keys().all(|gpa| self.slots.contains_key(gpa)), "{}", self.name);
    }

    /// Every page that the guest wrote says through which GVA: both stages lead from there to it.
    fn check_content(&self, image: &Image) {
        let (mut written, mut high) = (0, 0);
        for (&gpa, &spa) in &self.pages {
            let gva = image.read_u64(spa).unwrap() ^ MAGIC;
            // 48 bits of address, sign-extended; other content decodes to anything.
            if !gva.is_multiple_of(PAGE) || !matches!(gva as i64 >> 47, 0 | -1) {
                continue;
            }
            let found = self.translate(image, gva + 0xff8, Kind::Write);
            let found = found.unwrap_or_else(|fault| panic!("{}: {gva:#x}: {fault:?}", self.name));
            assert_eq!(found.stage1.output.raw(), gpa + 0xff8, "{}: {gva:#x}", self.name);
            assert_eq!(found.output().raw(), spa + 0xff8, "{}: {gva:#x}", self.name);
            written += 1;
            high += u32::from(gva >> 63 != 0);
        }
        // The guest's program writes 2048 + 1024 + 1024 + 512 + 1024 pages, and then every seventh
        // of 1024 once more through a shuffled alias in the high half.
        assert_eq!((written, high), (5632, 147), "{}", self.name);
    }

    /// The alias in the high half: 1024 pages from `start` in an order of their own, every second not
    /// executable. Those that are, stage 2 lets execute only where `stage2_executes`.
    fn check_alias(&self, image: &Image, start: u64, target: u64, stage2_executes: bool) {
        for index in 0..1024 {
            let gpa = target + (index * 619 + 37) % 1024 * PAGE;
            for kind in [Kind::Read, Kind::Write, Kind::Execute] {
                let found = self.translate(image, start + index * PAGE, kind);
                let fault = match kind {
                    Kind::Execute if index % 2 == 1 => 1,
                    Kind::Execute if !stage2_executes => 2,
                    _ => 0,
                };
                match (fault, found) {
                    (0, Ok(found)) => {
                        assert_eq!(found.stage1.output.raw(), gpa);
                        assert_eq!(Some(&found.output().raw()), self.pages.get(&gpa));
                    }
                    (1, Err(Failed::Here(Fault { cause: Cause::Permission(_), .. }))) => {}
                    (2, Err(Failed::Below(Failed::Here(fault)))) => {
                        assert!(matches!(fault.cause, Cause::Permission(_)), "{fault:?}");
                        assert_eq!(fault.input.raw(), gpa);
                    }
                    (_, found) => panic!("{}: {index} {kind:?}: {found:?}", self.name),
                }
            }
        }
    }
}

/// The MMIO page of an x86 guest: GVA 2 GiB, GPA 0xd000_0000. `check` sees stage 2's fault.
fn check_x86_mmio(guest: &Guest, image: &Image, check: impl Fn(&Fault<Gpa>)) {
    let alone = guest.stage2(image, 0xd000_0010, Kind::Read).expect_err("MMIO is not mapped");
    let Failed::Here(alone) = alone else { panic!("{alone:?}") };
    let nested = guest.translate(image, 0x8000_0010, Kind::Read).expect_err("MMIO is not mapped");
    let Failed::Below(Failed::Here(nested)) = nested else { panic!("{nested:?}") };
    assert_eq!(nested.input, Gpa::new(0xd000_0010));
    assert_eq!((nested.entry, nested.level), (alone.entry, 0));
    check(&alone);
    check(&nested);
    // The next page has never been touched.
    let next = guest.stage2(image, 0xd000_1000, Kind::Read).expect_err("nothing is there");
    assert!(matches!(next, Failed::Here(Fault { cause: Cause::Empty, .. })), "{next:?}");
}

fn check_npt(image: &Image) {
    for guest in x86_guests("npt-tdp") {
        guest.check_stage2(image);
        guest.check_content(image);
        guest.check_alias(image, 0xffff_8000_0000_0000, 32 << 20, true);
        check_x86_mmio(&guest, image, |fault| {
            let Cause::Reserved(reserved) = fault.cause else { panic!("{fault:?}") };
            assert_eq!((reserved.why, reserved.bits), (Why::Bits, 1 << 51));
            let AnyFormat::Npt(npt, _) = &guest.stage2.format else { panic!("{fault:?}") };
            let exit_info = nested_page_fault(fault, npt);
            let expected =
                NPF_FINAL | page_fault_bits::P | page_fault_bits::U | page_fault_bits::RSVD;
            assert_eq!(exit_info, expected);
        });
    }
}

fn check_ept(image: &Image) {
    for guest in x86_guests("ept-bochs") {
        guest.check_stage2(image);
        guest.check_content(image);
        guest.check_alias(image, 0xffff_8000_0000_0000, 32 << 20, true);
        let AnyFormat::Ept(ept, _) = guest.stage2.format else { panic!() };
        check_x86_mmio(&guest, image, |fault| {
            let Cause::Reserved(reserved) = fault.cause else { panic!("{fault:?}") };
            assert_eq!(reserved.why, Why::WriteWithoutRead);
            assert_eq!(ept_violation(fault, &ept, true), None, "a misconfiguration, no violation");
        });
    }
}

fn check_arm(image: &Image) {
    for guest in arm_guests("arm-nvhe") {
        guest.check_stage2(image);
        guest.check_content(image);
        // KVM maps for execution what was executed, and nobody executed these.
        guest.check_alias(image, 0xffff_ff80_0000_0000, 0x4200_0000, false);

        // MMIO: GVA 2 GiB, GPA 0x0900_0000. KVM maps nothing there.
        let access = Access::new(Kind::Read, Privilege::Supervisor);
        let failed =
            guest.translate(image, 0x8000_0010, Kind::Read).expect_err("MMIO is not mapped");
        let Failed::Below(Failed::Here(fault)) = failed else { panic!("{failed:?}") };
        assert_eq!((fault.cause, fault.input), (Cause::Empty, Gpa::new(0x0900_0010)));
        let abort = syndrome::arm64::abort(&failed, &access).unwrap();
        assert_eq!(abort.far, Field::Defined(0x8000_0010));
        assert_eq!(abort.hpfar, Field::Defined(0x0900_0000 >> 8));
        // A read from a lower level, and a translation fault at Arm level 2 (DFSC 0b000110): the
        // read-only slot has a table for the first GiB.
        let expected = iss::DATA_ABORT << iss::EC_SHIFT | iss::IL | 0b000110;
        assert!(abort.esr.permits(expected), "{abort:x?}");
    }
}

#[test]
fn arm_slice() {
    check_arm(&slice("arm-nvhe"));
}

#[test]
fn arm_whole() {
    whole("arm-nvhe").iter().for_each(check_arm);
}

#[test]
fn npt_slice() {
    check_npt(&slice("npt-tdp"));
}

#[test]
fn npt_whole() {
    whole("npt-tdp").iter().for_each(check_npt);
}

#[test]
fn ept_slice() {
    check_ept(&slice("ept-bochs"));
}

#[test]
fn ept_whole() {
    whole("ept-bochs").iter().for_each(check_ept);
}

/// The two guests share 512 frames, at offset 64 to 66 MiB of the memory of both, and nothing else.
#[test]
fn shared_frames_are_those_of_the_shared_slot() {
    for (name, memory) in [("npt-tdp", 0), ("ept-bochs", 0), ("arm-nvhe", 1 << 30)] {
        let image = slice(name);
        let both = if name == "arm-nvhe" { arm_guests(name) } else { x86_guests(name) };
        let [a, b] = both.try_into().ok().unwrap();
        let frames = |guest: &Guest| -> BTreeMap<u64, u64> {
            let spa =
                |gpa| guest.stage2(&image, gpa, Kind::Read).ok().map(|found| found.output.raw());
            guest.slots.keys().filter_map(|&gpa| Some((spa(gpa)?, gpa))).collect()
        };
        let (a, b) = (frames(&a), frames(&b));
        let shared: Vec<_> = a.iter().filter(|(spa, _)| b.contains_key(spa)).collect();
        assert_eq!(shared.len(), 512);
        for (spa, &gpa) in shared {
            assert!((64 << 20..66 << 20).contains(&(gpa - memory)) && b[spa] == gpa, "{gpa:#x}");
        }
    }
}

/// EPT's dirty flag, cleared and then set by a walk: in the overlay, not in the image.
#[test]
fn walks_with_updates_leave_the_image_alone() {
    const DIRTY: u64 = 1 << 9;
    let image = slice("ept-bochs");
    let guest = &x86_guests("ept-bochs")[0];
    let regime = &guest.regime;
    let access = Access::new(Kind::Write, Privilege::Supervisor);
    let stage2 = guest.stage2.with_updates(Updates::AsWalked);

    // Its leaf in a level-0 table: the last entry that the walk reads.
    let gpa = Gpa::new(0x200_3000);
    let steps = slat::Steps::<4>::default();
    walk(&guest.stage2, &mut image.read_only(), gpa, &access, regime, &steps).unwrap();
    let leaf = steps.iter().last().unwrap();
    assert_eq!((leaf.level, leaf.entry & DIRTY), (0, DIRTY));
    let address = Spa::new(leaf.entry_address);
    let clean = leaf.entry & !DIRTY;

    let mut memory = image.overlay::<Spa>();
    let layout = EntryLayout::LE64;
    assert_eq!(memory.compare_exchange(address, layout, leaf.entry, clean, &access), Ok(true));
    let found = walk(&stage2, &mut memory, gpa, &access, regime, &()).unwrap();
    assert_eq!(found.output.raw(), guest.pages[&gpa.raw()]);
    assert_eq!(memory.read(address, layout, &access).unwrap().value, leaf.entry);
    assert_eq!(image.read_u64(address.raw()), Some(leaf.entry));

    // Where nothing can be stored, a walk that has to store says so.
    let mut bytes = image.page(address.raw() & !(PAGE - 1)).unwrap().to_vec();
    bytes[address.raw() as usize % 4096..][..8].copy_from_slice(&clean.to_le_bytes());
    let table = Image::from_raw(address.raw() & !(PAGE - 1), bytes).unwrap();
    let stored = table.read_only().compare_exchange(address, layout, clean, leaf.entry, &access);
    assert_eq!(stored, Err(slat::Outside { address, write: true }));
}
