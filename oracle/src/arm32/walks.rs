//! 32-bit Arm probes as `slat walk` takes them.

use slat::format::arm32::Version;

use super::layout::is_long;
use crate::arm;
use crate::probe::Probe;
use crate::reproduce::{Walk, unless};

/// The probe's accesses: that of an address translation operation, or the fetch and what follows it.
pub(super) fn walks(version: Version, probe: &Probe) -> Vec<Walk> {
    let s = &probe.state;
    let run = probe.operation == 1;
    let version = if version == Version::V7 { 7 } else { 8 };
    let (format, own) = if is_long(s) {
        ("arm-lpae", format!("ttbcr2={:#x}", s[14]))
    } else {
        ("arm-short", format!("dacr={:#x}", s[13]))
    };
    let mut stage1 = format!(
        "{format},ttbr0={:#x},ttbr1={:#x},ttbcr={:#x},sctlr={:#x},mair={:#x},{own},version={version}",
        s[5], s[6], s[4], s[3], s[7]
    );
    unless(&mut stage1, false, run && s[11] & 1 << 22 != 0, "pan");
    let stage2 = format!(
        "arm-lpae-s2,vttbr={:#x},vtcr={:#x},hcr={:#x},version={version}",
        s[8], s[9], s[10]
    );
    arm::walks(probe, |access, user, address| Walk {
        stage1: stage1.clone(),
        stage2: Some(stage2.clone()),
        access,
        user,
        address,
    })
}
