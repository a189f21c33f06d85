//! AArch64 probes as `slat walk` takes them.

use slat::format::arm64::Processor;

use crate::arm;
use crate::probe::Probe;
use crate::reproduce::{Walk, unless};

/// The probe's accesses: that of an address translation operation, or the fetch and what follows it.
pub(super) fn walks(processor: &Processor, probe: &Probe) -> Vec<Walk> {
    let s = &probe.state;
    let run = probe.operation == 1;
    let lacking: Vec<&str> = [
        ("lva", processor.large_virtual_addresses),
        ("lpa2", processor.lpa2),
        ("ttst", processor.small_tables),
        ("haf", processor.hardware_access_flag),
        ("hd", processor.hardware_dirty_state),
        ("xnx", processor.execute_never_extension),
        ("e0pd", processor.e0pd),
        ("hpds", processor.hierarchical_disable),
        ("pan3", processor.enhanced_pan),
    ]
    .into_iter()
    .filter_map(|(name, is)| (!is).then_some(name))
    .collect();
    let mut features = format!(",maxphyaddr={}", processor.physical_bits);
    if !lacking.is_empty() {
        features += &format!(",without={}", lacking.join("+"));
    }
    let mut stage1 = format!(
        "arm64,ttbr0={:#x},ttbr1={:#x},tcr={:#x},sctlr={:#x},mair={:#x}{features}",
        s[5], s[6], s[4], s[3], s[7]
    );
    // AT S12E1R and its like do not look at PSTATE.PAN.
    unless(&mut stage1, false, run && s[11] & 1 << 22 != 0, "pan");
    let stage2 = format!("arm64-s2,vttbr={:#x},vtcr={:#x},hcr={:#x}{features}", s[8], s[9], s[10]);
    arm::walks(probe, |access, user, address| Walk {
        stage1: stage1.clone(),
        stage2: Some(stage2.clone()),
        access,
        user,
        address,
    })
}
