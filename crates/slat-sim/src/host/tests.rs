//! Hosts of every kind, and what holds on all of them.

use super::*;
use crate::hypervisor::Hypervisor;
use crate::preset::Processor;

/// A host without a parent's use of memory.
pub(crate) fn host(processor: &str, hypervisor: &str, nodes: &[u64]) -> Host {
    Host::start(HostSpec {
        name: "test".to_owned(),
        processor: Processor::bundled(processor).unwrap(),
        hypervisor: Hypervisor::bundled(hypervisor).unwrap(),
        nodes: nodes.to_vec(),
        holes: Vec::new(),
        tables: None,
        parent: 0,
        parent_paging: false,
        policies: Policies::default(),
    })
    .unwrap()
}

pub(crate) fn partition(name: &str, bytes: u64) -> PartitionSpec {
    PartitionSpec { name: name.to_owned(), bytes, holes: Vec::new(), node: 0, seed: 1 }
}

/// Hosts of every means.
pub(crate) const HOSTS: [(&str, &str); 8] = [
    ("nehalem", "kvm-2.6.26"),
    ("haswell", "kvm-3.0"),
    ("barcelona", "xen-3.2"),
    ("zen-4", "kvm-3.0"),
    ("core-2", "kvm-2.6.26"),
    ("core-2", "kvm-3.0"),
    ("vt-x-2005", "hyper-v-2008"),
    ("amd-v-2006", "virtualbox-2.0"),
];

#[test]
fn a_guest_leaves_the_same_memory_whatever_translates() {
    let mut digests = Vec::new();
    for (processor, hypervisor) in HOSTS {
        let mut host = host(processor, hypervisor, &[64 << 20]);
        host.power_on(&partition("a", 16 << 20)).unwrap();
        host.run("a", 20_000).unwrap();
        let one = host.partition("a").unwrap();
        digests.push((one.digest(&host.memory), one.translations(&host.memory)));
        let shadowed = matches!(one.translation, Translation::Shadow(_));
        assert_eq!(one.exits.of(Cause::HiddenFault) > 0, shadowed, "{processor}");
        assert_eq!(one.exits.of(Cause::TableWrite) > 0, shadowed, "{processor}");
        host.stop("a").unwrap();
        assert_eq!(host.memory.pool().used(), 0, "{processor}: every table came back");
    }
    for pair in digests.windows(2) {
        assert!(pair[0] == pair[1]);
    }
}

#[test]
fn arm_guests_run_through_stage_2() {
    for (processor, formats) in [
        ("cortex-a15", ["arm-lpae", "arm-lpae-s2"]),
        ("cortex-a57", ["arm64", "arm64-s2"]),
        ("neoverse-v2", ["arm64", "arm64-s2"]),
    ] {
        let mut host = host(processor, "kvm-3.11", &[64 << 20]);
        host.power_on(&partition("a", 16 << 20)).unwrap();
        host.run("a", 5_000).unwrap();
        let one = host.partition("a").unwrap();
        assert_eq!([one.stage1.name(), one.translation.name()], formats);
        assert_eq!(one.exits.total(), 0);
        host.stop("a").unwrap();
        assert_eq!(host.memory.pool().used(), 0);
    }
}

#[test]
fn power_on_is_refused_without_enough_memory_and_changes_nothing() {
    let mut host = host("westmere", "hyper-v-2008-r2", &[32 << 20, 32 << 20]);
    host.power_on(&partition("a", 40 << 20)).unwrap();
    let before: Vec<Extent> = host.memory.extents().collect();
    let used = host.memory.pool().used();
    let refused = host.power_on(&partition("b", 32 << 20)).unwrap_err().to_string();
    assert!(refused.contains("32 MiB") && refused.contains("22 MiB"), "{refused}");
    assert_eq!(host.memory.extents().collect::<Vec<_>>(), before);
    assert_eq!(host.memory.pool().used(), used);
    host.stop("a").unwrap();
    host.power_on(&partition("b", 32 << 20)).unwrap();
}

#[test]
fn every_page_of_a_partition_is_translated_to_where_it_lies() {
    for (processor, hypervisor) in [("nehalem", "kvm-3.0"), ("barcelona", "kvm-3.0")] {
        let mut host = host(processor, hypervisor, &[32 << 20, 32 << 20]);
        let spec = PartitionSpec {
            holes: vec![(9 << 20, 1 << 20), (12 << 20, 4096)],
            node: 1,
            ..partition("a", 20 << 20)
        };
        host.power_on(&spec).unwrap();
        let one = host.partition("a").unwrap();
        let Translation::SecondStage(tables) = &one.translation else { unreachable!() };
        for gpa in (0..24u64 << 20).step_by(PAGE as usize) {
            let found = tables.translate(host.memory.pool(), gpa);
            assert_eq!(found.map(|(spa, _)| spa), one.locate(gpa).map(|(spa, _)| spa));
            assert_eq!(one.has(gpa), one.locate(gpa).is_some(), "{gpa:#x}");
            if let Some((spa, _)) = found {
                assert_eq!(host.memory.owner(spa), Some(Owner::Partition(one.number)));
            }
        }
        assert_eq!(host.memory.node_of(one.locate(0).unwrap().0), Some(1));
    }
}

#[test]
fn a_device_is_no_memory() {
    for (processor, hypervisor) in [("nehalem", "kvm-3.0"), ("core-2", "kvm-3.0")] {
        let mut host = host(processor, hypervisor, &[64 << 20]);
        let spec = PartitionSpec { holes: vec![(10 << 20, 2 << 20)], ..partition("a", 20 << 20) };
        host.power_on(&spec).unwrap();
        let (one, memory) = host.both("a").unwrap();
        // The guest maps the device in place of its first page.
        let entry = DIRECT + one.vcpu.tables[0];
        let page = one.stage1.page(10 << 20, 0);
        one.store(memory, entry, page).unwrap();
        one.invalidate(memory, WINDOW);
        assert_eq!(one.load(memory, WINDOW + 8), Err(Trap::Mmio((10 << 20) + 8)));
        assert_eq!(one.exits.of(Cause::Mmio), 1);
    }
}

#[test]
fn dirty_pages_are_exactly_those_that_changed() {
    for (processor, hypervisor) in HOSTS {
        let mut host = host(processor, hypervisor, &[64 << 20]);
        host.power_on(&partition("a", 16 << 20)).unwrap();
        host.run("a", 3_000).unwrap();
        let (one, memory) = host.both("a").unwrap();
        one.start_log(memory).unwrap();
        for round in 0..4 {
            let before: Vec<Option<Frame>> = frames(&host);
            host.run("a", 400).unwrap();
            let after = frames(&host);
            let (one, memory) = host.both("a").unwrap();
            let dirty = one.dirty(memory).unwrap();
            let changed = before.iter().zip(&after).enumerate();
            let changed = changed.filter(|(_, (before, after))| before != after);
            for (page, _) in changed {
                let gpa = page as u64 * PAGE;
                assert!(dirty.contains(&gpa), "{processor} round {round}: {gpa:#x} is missed");
            }
            assert!(dirty.len() < 1000, "{processor}: {} pages", dirty.len());
        }
        let (one, memory) = host.both("a").unwrap();
        one.stop_log(memory).unwrap();
        host.run("a", 400).unwrap();
    }
}

fn frames(host: &Host) -> Vec<Option<Frame>> {
    let one = host.partition("a").unwrap();
    one.pages().map(|gpa| host.memory.frame(one.locate(gpa).unwrap().0).copied()).collect()
}

#[test]
fn the_parent_pages_itself_out_for_a_partition() {
    let mut spec = host("nehalem", "kvm-3.0", &[4 << 20]).spec;
    spec.nodes = vec![32 << 20];
    spec.parent = 16 << 20;
    let mut host = Host::start(spec.clone()).unwrap();
    let refused = host.power_on(&partition("a", 24 << 20)).unwrap_err().to_string();
    assert!(refused.contains("parent_paging"), "{refused}");
    spec.parent_paging = true;
    let mut host = Host::start(spec).unwrap();
    host.power_on(&partition("a", 24 << 20)).unwrap();
    assert!(host.parent.paged_out > 0);
    host.run("a", 1000).unwrap();
    for number in 0..host.parent.pages() {
        assert!(host.parent.touch(&mut host.memory, number).unwrap());
    }
    let digest = host.partition("a").unwrap().digest(&host.memory);
    for number in (0..host.parent.pages()).rev() {
        assert!(host.parent.touch(&mut host.memory, number).unwrap());
    }
    assert_eq!(host.partition("a").unwrap().digest(&host.memory), digest);
    assert_eq!(host.memory.owned(Owner::Partition(0)), 24 << 20, "a child is never paged");
}
