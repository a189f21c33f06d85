//! `slat check` speaks of today's versions of hypervisors, the presets of chosen versions: what
//! both say must agree.

use std::collections::BTreeMap;

use slat_sim::hypervisor::Hypervisor;

#[test]
fn presets_agree_with_check() {
    let today: BTreeMap<&str, bool> = slat_check::requiring_slat_on_x86().collect();
    for name in Hypervisor::names() {
        let preset = Hypervisor::bundled(name).unwrap();
        let requires = today.get(preset.product.as_str());
        let ever = preset.slat.required_since.value != "never";
        assert_eq!(requires, Some(&ever), "{name}: {}", preset.product);
        // What requires SLAT already has not come to do without.
        assert!(!preset.slat.requires.value || ever, "{name}");
    }
}

#[test]
fn every_product_of_check_has_a_preset() {
    for (product, _) in slat_check::requiring_slat_on_x86() {
        let has = |name| Hypervisor::bundled(name).unwrap().product == product;
        assert!(Hypervisor::names().any(has), "{product}");
    }
}
