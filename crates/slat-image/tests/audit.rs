//! The audit on memory of real guests under KVM: what it finds is what is known to be there, and
//! nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use slat::audit::{Finding, Ground, Owner, Policy, Rule, Summary, audit};
use slat::memory_type::StageType;
use slat::{Permissions, Spa};
use slat_image::Image;
use slat_image::spec::Setup;

const PAGE: u64 = 4096;

fn number(value: &Value) -> u64 {
    let text = value.as_str().unwrap();
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).unwrap(),
        None => text.parse().unwrap(),
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

/// Who owns what, by the host's own records: the backed runs of each guest.
struct Records {
    /// Which guests (a bit each) each frame belongs to.
    owners: BTreeMap<u64, u8>,
    guest: usize,
    /// Frames that are two guests' are declared.
    shared: bool,
    /// Guest-physical pages of read-only slots.
    read_only: BTreeSet<u64>,
    visited: BTreeSet<u64>,
    types: BTreeMap<u64, StageType>,
    tables: BTreeSet<u64>,
}

impl Ground for Records {
    fn owner(&mut self, base: u64, bytes: u64) -> Owner {
        let owners: Vec<u8> = (base..base + bytes)
            .step_by(PAGE as usize)
            .map(|frame| {
                if self.tables.contains(&frame) {
                    0x80
                } else {
                    *self.owners.get(&frame).unwrap_or(&0)
                }
            })
            .collect();
        let own = 1 << self.guest;
        if owners.contains(&0x80) {
            Owner::Tables
        } else if owners.contains(&0) {
            Owner::Nobody
        } else if owners.iter().all(|&owner| owner == own) {
            Owner::Guest
        } else if self.shared && owners.iter().all(|&owner| owner & own != 0) {
            Owner::Shared
        } else {
            Owner::Other
        }
    }

    fn first_visit(&mut self, table: u64, _: u8) -> bool {
        self.visited.insert(table)
    }

    fn other_type(&mut self, base: u64, _: u64, memory_type: StageType) -> Option<StageType> {
        let earlier = *self.types.entry(base).or_insert(memory_type);
        (earlier != memory_type).then_some(earlier)
    }

    fn most(&mut self, input: u64, _: u64, bytes: u64) -> Permissions {
        let write = self.read_only.range(input..input + bytes).next().is_none();
        Permissions { read: true, write, execute: true }
    }
}

/// The audits of both guests of a slice: tables first, by an audit that only collects them.
fn audited(
    name: &str,
    spec: impl Fn(&Value, &Value) -> String,
    shared: bool,
    policy: Policy,
) -> Vec<(Summary, Vec<Finding>)> {
    let image = Image::open(fixture(&format!("{name}.slice"))).unwrap();
    let text = std::fs::read_to_string(fixture(&format!("{name}.truth.json"))).unwrap();
    let truth: Value = serde_json::from_str(&text).unwrap();
    let guests = truth["vms"].as_array().unwrap();
    let mut owners: BTreeMap<u64, u8> = BTreeMap::new();
    for (guest, vm) in guests.iter().enumerate() {
        for run in vm["runs"].as_array().unwrap() {
            for page in 0..run[2].as_u64().unwrap() {
                *owners.entry(number(&run[1]) + page * PAGE).or_default() |= 1 << guest;
            }
        }
    }
    guests
        .iter()
        .enumerate()
        .map(|(guest, vm)| {
            let setup = Setup::parse(None, Some(&spec(&truth, vm))).unwrap();
            let stage2 = setup.stage2.unwrap();
            let read_only = vm["slots"].as_array().unwrap().iter().filter(|slot| slot["ro"] == 1);
            let read_only = read_only.flat_map(|slot| {
                let start = number(&slot["gpa"]);
                (start..start + number(&slot["size"])).step_by(PAGE as usize)
            });
            let mut records = Records {
                owners: owners.clone(),
                guest,
                shared,
                read_only: read_only.collect(),
                visited: BTreeSet::new(),
                types: BTreeMap::new(),
                tables: BTreeSet::new(),
            };
            let run = |policy: &Policy, records: &mut Records| {
                let mut findings = Vec::new();
                let summary = audit(
                    &stage2.format,
                    &(),
                    &mut image.read_only::<Spa>(),
                    &setup.regime,
                    policy,
                    records,
                    &mut |finding| findings.push(*finding),
                );
                (summary.unwrap(), findings)
            };
            let (_, findings) = run(&Policy::default(), &mut records);
            let found = findings.iter().filter(|finding| finding.rule == Rule::TableNotOwned);
            let tables = found.map(|finding| finding.entry_address).collect();
            records.tables = tables;
            records.visited.clear();
            run(&policy, &mut records)
        })
        .collect()
}

fn x86(name: &'static str) -> impl Fn(&Value, &Value) -> String {
    move |_, vm| {
        let root = number(&vm["root"]);
        match name {
            "npt-tdp" => format!("npt4,ncr3={root}"),
            _ => format!("ept4,eptp={}", root | 0x5e),
        }
    }
}

fn arm(truth: &Value, vm: &Value) -> String {
    let el2 = &truth["el2_registers"]["p1.2"];
    let [vtcr, hcr] = ["VTCR_EL2", "HCR_EL2"].map(|name| number(&el2[name]));
    format!("arm64-s2,vttbr={},vtcr={vtcr},hcr={hcr},maxphyaddr=44", number(&vm["root"]))
}

fn count(findings: &[Finding], rule: Rule) -> usize {
    findings.iter().filter(|finding| finding.rule == rule).count()
}

/// 512 frames are both guests' on purpose, 16 leaves are read-only, one entry of each x86 guest marks
/// MMIO by a reserved encoding.
#[test]
fn what_is_known_of_the_guests_is_what_is_found() {
    for name in ["npt-tdp", "ept-bochs", "arm-nvhe"] {
        for shared in [true, false] {
            let policy = Policy::default();
            let audits = match name {
                "arm-nvhe" => audited(name, arm, shared, policy),
                name => audited(name, x86(name), shared, policy),
            };
            for (guest, (summary, findings)) in audits.iter().enumerate() {
                let what = format!("{name} guest {guest}, shared {shared}: {findings:.3?}");
                assert!(summary.complete, "{what}");
                assert_eq!(summary.leaves, 2583, "{what}");
                assert_eq!(summary.bytes, 6160 * PAGE, "{what}");
                let mmio = usize::from(name != "arm-nvhe");
                assert_eq!(count(findings, Rule::Reserved), mmio, "{what}");
                // Undeclared, the shared pages are another's: 512 leaves of 4 KiB, or as many as there
                // are.
                let foreign = count(findings, Rule::ForeignFrame);
                assert_eq!(foreign > 0, !shared, "{what}");
                assert!(foreign <= 512, "{what}");
                assert_eq!(findings.len(), mmio + foreign, "{what}");
            }
        }
    }
}

/// The rules of policies that KVM does not follow find what it does.
#[test]
fn kvm_maps_large_pages_writable_and_executable() {
    let policy = Policy {
        logging: true,
        write_xor_execute: true,
        no_executable_large: true,
        ..Policy::default()
    };
    for (summary, findings) in audited("ept-bochs", x86("ept-bochs"), true, policy) {
        let both = count(&findings, Rule::WritableExecutable);
        // All but the read-only leaves.
        assert_eq!(both as u64, summary.leaves - 16);
        let large = count(&findings, Rule::ExecutableLarge);
        assert!(large > 0 && large == count(&findings, Rule::LargeWritableWhileLogging));
    }
}
