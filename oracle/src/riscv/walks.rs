//! RISC-V probes as `slat walk` takes them.

use super::layout::{self, ENVCFG};
use super::{HLV, HLVX, HSV};
use crate::probe::Probe;
use crate::reproduce::{Walk, unless};

/// The name of the scheme that a root register's MODE says; Bare goes by any.
fn scheme(register: u64) -> &'static str {
    match register >> 60 {
        9 => "sv48",
        10 => "sv57",
        _ => "sv39",
    }
}

/// The probe's accesses: that of HLV, HSV or HLVX, or the fetch and what follows it.
pub(super) fn walks(probe: &Probe) -> Vec<Walk> {
    let s = &probe.state;
    let menvcfg = s[8] & ENVCFG;
    let update = |text: &mut String, envcfg: u64| {
        unless(text, false, envcfg & 1 << 61 != 0, "adue");
        unless(text, true, envcfg & 1 << 62 != 0, "pbmte");
    };
    let mut stage1 = format!("{},vsatp={:#x}", scheme(s[4]), s[4]);
    unless(&mut stage1, false, s[6] & 1 << 18 != 0, "sum");
    unless(&mut stage1, false, s[6] & 1 << 19 != 0, "vsmxr");
    unless(&mut stage1, false, s[10] & 1 << 19 != 0, "mxr");
    update(&mut stage1, menvcfg & s[9]);
    let mut stage2 = format!("{}x4,hgatp={:#x}", scheme(s[3]), s[3]);
    update(&mut stage2, menvcfg);
    let run = probe.operation == 1;
    let supervisor = if run { s[5] == 1 } else { s[7] & 1 << 8 != 0 };
    let walk = |access, address| Walk {
        stage1: stage1.clone(),
        stage2: Some(stage2.clone()),
        access,
        user: !supervisor,
        address,
    };
    match probe.operation {
        HLV => vec![walk("r", s[1])],
        HSV => vec![walk("w", s[1])],
        HLVX => vec![walk("hlvx", s[1])],
        _ if s[0] == s[1] => vec![walk("x", s[0])],
        _ => vec![walk("x", s[0]), walk(if layout::is_load(s) { "r" } else { "w" }, s[1])],
    }
}
