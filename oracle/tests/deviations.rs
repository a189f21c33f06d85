//! Deviations that show together, as models have shown them.

use slat::format::arm32::{Processor, Version};
use slat_oracle::arm32::{Arm32, Features};
use slat_oracle::contract::{Answer, STATE};
use slat_oracle::deviations::{Model, Seen};
use slat_oracle::draft::{Coverage, Draft};
use slat_oracle::engine::{Verdict, judge, names};
use slat_oracle::golden::questions;
use slat_oracle::probe::{Expectation, Outcome, Probe, Subject, Watcher, complete};
use slat_oracle::random::Random;
use slat_oracle::reproduce::Walk;
use slat_oracle::world::World;

/// A fetch that QEMU 10 lets pass from an unreadable page, then a load whose table of short descriptors lies
/// in a device: the level is that of the table, not that of tables of long descriptors. One of ten million
/// probes met both.
#[test]
fn an_unreadable_fetch_and_a_short_table_in_a_device() {
    let processor = Processor {
        version: Version::V8,
        hardware_access_flag: false,
        hierarchical_disable: true,
        execute_never_extension: true,
    };
    let features = Features { processor, pan: true };
    let subject = Arm32 { features, new: true, deviations: vec![] };
    let mut state = [0; STATE];
    let registers = [
        0xFFC0_0800,
        0x2005_108C,
        0x5566_7788,
        0xC5_187D,
        2,
        0x310_1000,
        0x610_4000,
        0x04BB_44FF_FF0A_A4AA,
        0x4310_0000,
        0x8000_3505,
        5,
        0x1D3,
        0xFFC0_0000,
        0xCD23_8879,
    ];
    state[..14].copy_from_slice(&registers);
    let words = vec![
        (0x4305_1088, 0x4305_1088_E140_0072),
        (0x4310_0080, 0x4300_073D),
        (0x4310_00C0, 0x4300_0741),
        (0x4310_1800, 0x0410_81A1),
        (0x4310_0100, 0x4310_9003),
        (0x4310_9840, 0x4310_87FF),
        (0x4310_8140, 0x0205_11FE_0000_0000),
        (0x4310_0180, 0x4310_A003),
        (0x4310_A838, 0x4310_77FF),
        (0x4310_7FF0, 0x0510_B401_0710_B001),
        (0x4310_01C0, 0x4300_07FD),
        (0x4310_B000, 0x0200_0212),
        (0x4310_0140, 0x4310_C003),
        (0x4310_C858, 0x4310_B7FF),
        (0x4310_B400, 0x0200_0232_0000_0000),
    ];
    let probe = Probe { operation: 1, state, words };
    let mut world = subject.template();
    let case = complete(&subject, &mut world, probe, &mut Vec::new()).unwrap();
    let unreadable = Outcome::Stage2 { syndrome: 0x8200_000E, address: 0, origin: 0xFFC0_0800 };
    assert_eq!(case.expected, unreadable);
    let mut see = |syndrome| {
        let outcome = Outcome::Stage2 { syndrome, address: 0x3_1010, origin: 0x2005_108C };
        let seen = Seen { outcome, words: case.compared.iter().map(|word| word.1).collect() };
        judge(Model::Qemu10Arm, &subject, &mut world, &case, &seen)
    };
    assert!(matches!(see(0x9200_008D), Verdict::Masked(_)));
    assert!(matches!(see(0x9200_008C), Verdict::Disagree));
}

/// A subject whose guest never comes back with one deviation of the model, `ENDLESS`.
struct Lost {
    subject: Box<dyn Subject>,
    is_lost: bool,
}

const ENDLESS: &str = "pdpte-reserved-ignored";

impl Subject for Lost {
    fn expect(&self, probe: &Probe, world: &mut World, watcher: &Watcher) -> Expectation {
        let expectation = self.subject.expect(probe, world, watcher);
        Expectation { endless: self.is_lost, ..expectation }
    }
    fn deviating(&self, deviations: &[&'static str]) -> Box<dyn Subject> {
        let subject = self.subject.deviating(&[]);
        Box::new(Lost { subject, is_lost: deviations.contains(&ENDLESS) })
    }
    fn template(&self) -> World {
        self.subject.template()
    }
    fn generate(&self, world: &World, random: &mut Random, coverage: &mut Coverage) -> Draft {
        self.subject.generate(world, random, coverage)
    }
    fn class(&self, probe: &Probe) -> u16 {
        self.subject.class(probe)
    }
    fn class_name(&self, class: u16) -> String {
        self.subject.class_name(class)
    }
    fn read(&self, probe: &Probe, answer: &Answer) -> Outcome {
        self.subject.read(probe, answer)
    }
    fn second_stage_bits(&self, level: u8) -> u64 {
        self.subject.second_stage_bits(level)
    }
    fn access(&self, probe: &Probe) -> &'static str {
        self.subject.access(probe)
    }
    fn optional(&self) -> &'static [(usize, u64)] {
        self.subject.optional()
    }
    fn explain(&self, probe: &Probe) -> String {
        self.subject.explain(probe)
    }
    fn walks(&self, probe: &Probe) -> Vec<Walk> {
        self.subject.walks(probe)
    }
    fn second_root(&self, probe: &Probe) -> u64 {
        self.subject.second_root(probe)
    }
    fn elf_machine(&self) -> u16 {
        self.subject.elf_machine()
    }
}

/// No answer is explained where a deviation of the model has its guest never come back, and by nothing else;
/// nor does such a deviation explain an answer.
#[test]
fn silence_is_explained_by_a_guest_that_never_comes_back() {
    let file = include_bytes!("../golden/npt-qemu7-0-max.zst");
    let (subject, cases) = questions(file, 50).unwrap();
    let lost = Lost { subject: subject.deviating(&[]), is_lost: false };
    let mut world = subject.template();
    for case in cases {
        let words: Vec<u64> = case.compared.iter().map(|&(_, _, after)| after).collect();
        let silent = Seen { outcome: Outcome::NONE, words: vec![] };
        let right = Seen { outcome: case.expected, words: words.clone() };
        let other = Seen { outcome: Outcome::Other([1, 2, 3, 4]), words };
        let mut ask = |subject: &dyn Subject, model, seen| match judge(
            model, subject, &mut world, &case, seen,
        ) {
            Verdict::Agree => "agree".to_owned(),
            Verdict::Masked(deviations) => names(&deviations),
            Verdict::Disagree => "disagree".to_owned(),
        };
        assert_eq!(ask(&lost, Model::QemuX86, &silent), ENDLESS);
        assert_eq!(ask(&lost, Model::QemuX86, &right), "agree");
        assert_eq!(ask(&lost, Model::QemuX86, &other), "disagree");
        // It is no deviation of Bochs's, and without it this guest comes back.
        assert_eq!(ask(&lost, Model::Bochs, &silent), "disagree");
        assert_eq!(ask(subject.as_ref(), Model::QemuX86, &silent), "disagree");
    }
}

/// What a walk leaves in memory is compared where the access fails as well: any bit of any word.
#[test]
fn memory_is_compared_where_the_access_fails() {
    let file = include_bytes!("../golden/ept-bochs2-0-corei7-skylake-x.zst");
    let (subject, cases) = questions(file, 300).unwrap();
    let mut world = subject.template();
    let mut compared = 0;
    for case in cases.iter().filter(|case| !case.expected.is_done()) {
        let right: Vec<u64> = case.compared.iter().map(|&(_, _, after)| after).collect();
        let mut ask = |words: Vec<u64>| {
            let seen = Seen { outcome: case.expected, words };
            judge(Model::Bochs, subject.as_ref(), &mut world, case, &seen)
        };
        assert!(matches!(ask(right.clone()), Verdict::Agree));
        // Present, accessed and dirty of the guest's entries and of EPT's, an address bit.
        for (place, bit) in
            (0..right.len()).flat_map(|place| [0, 5, 6, 8, 9, 20].map(|b| (place, b)))
        {
            let mut words = right.clone();
            words[place] ^= 1 << bit;
            assert!(matches!(ask(words), Verdict::Disagree), "bit {bit}: {:x?}", case.expected);
            compared += 1;
        }
    }
    assert!(compared > 1000, "only {compared} words");
}
