//! The shadow pager's counts beside those of a KVM with shadow tables, of the same guest program.

mod replay;

use replay::{Phases, backing, kept, replay};

/// Every counter of every phase that the pager knows, as (where, KVM's, ours).
fn both(kvm: &Phases) -> Vec<(String, i64, i64)> {
    let large = backing(kvm).expect("large pages for all or for none");
    let model = replay(large);
    let names = |phases: &Phases| phases.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(kvm), names(&model));
    let mut all = Vec::new();
    for ((phase, kvm), (_, model)) in kvm.iter().zip(&model) {
        for (counter, modelled) in model {
            let counted = kvm.get(counter).copied().unwrap_or(0);
            all.push((format!("{phase}: {counter}"), counted, *modelled));
        }
    }
    all
}

/// First touches and pages by size are equal, and so is all else that the pager counts: stores that were
/// carried out, tables made, dropped, flooded, out of sync.
#[test]
fn the_kept_measurement_is_met_exactly() {
    let all = both(&kept());
    for (place, kvm, ours) in &all {
        assert_eq!(kvm, ours, "{place}");
    }
    let sum = |counter: &str| -> i64 {
        all.iter().filter(|(place, ..)| place.ends_with(counter)).map(|(_, kvm, _)| kvm).sum()
    };
    // The program does what it is for.
    assert!(sum(": pf_fixed") > 1600 && sum(": pf_emulate") == 5, "{all:?}");
    assert!(sum(": mmu_pte_write") > 20 && sum(": mmu_flooded") == 1);
}

/// On a machine whose KVM shadows: faults and pages exactly, stores and tables within a tenth, since the
/// host may have taken a page away meanwhile.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn this_machines_kvm_is_met() {
    let phases = match slat_kvm::count() {
        Ok(counted) if matches!(counted.paging, slat_kvm::Paging::Shadow(_)) => counted.phases,
        Ok(counted) => return eprintln!("passed over: this KVM has {:?}", counted.paging),
        Err(why) => return eprintln!("passed over: {why}"),
    };
    if backing(&phases).is_none() {
        return eprintln!("passed over: the host had large pages for some of the guest only");
    }
    // No fault is left without a cause, spurious ones included.
    for (phase, counts) in &phases {
        let of = |counter: &str| counts.get(counter).copied().unwrap_or(0);
        let named = of("pf_fixed") + of("pf_emulate") + of("pf_spurious");
        assert_eq!(of("pf_taken"), named, "{phase}");
    }
    for (place, kvm, ours) in both(&phases) {
        let exact =
            [": pf_fixed", ": pages_4k", ": pages_2m"].iter().any(|end| place.ends_with(end));
        // On one host of two, stores to large pages whose leaves have just become writable fault again,
        // 15 to 21 times for the 8 of them, and find the leaf in place. The pager has no stale
        // translations.
        if place == "store to the large ones: pf_spurious" {
            assert!((0..=4 * 8).contains(&(kvm - ours)), "{place}: KVM {kvm}, the pager {ours}");
            continue;
        }
        let near = (kvm - ours).abs() * 10 <= kvm.abs().max(ours.abs());
        assert!(if exact { kvm == ours } else { near }, "{place}: KVM {kvm}, the pager {ours}");
    }
}
