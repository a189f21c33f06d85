//! x86 probes as `slat walk` takes them.

use std::fmt::Write as _;

use super::{Features, Second, cr4, layout};
use crate::probe::Probe;
use crate::reproduce::{Walk, unless};

/// The probe's accesses: the fetch, then the load or store.
pub(super) fn walks(features: &Features, probe: &Probe) -> Vec<Walk> {
    let s = &probe.state;
    let (stage1, stage2) = (first(features, probe), second(features, s[7]));
    let user = s[8] >> (32 + 5) & 3 == 3;
    let walk = |access, address| Walk {
        stage1: stage1.clone(),
        stage2: Some(stage2.clone()),
        access,
        user,
        address,
    };
    let mut walks = vec![walk("x", s[0])];
    if s[0] != s[1] {
        walks.push(walk(if layout::is_load(s) { "r" } else { "w" }, s[1]));
    }
    walks
}

/// What both stages' processors lack, as keys of either.
fn processor(features: &Features) -> String {
    let mut text = format!(",maxphyaddr={}", features.physical_bits);
    unless(&mut text, true, features.gigabyte, "gigabyte");
    text
}

fn first(features: &Features, probe: &Probe) -> String {
    let s = &probe.state;
    let pae = s[5] & cr4::PAE != 0;
    let paged = s[3] >> 31 & 1 != 0;
    let format = match (layout::is_long(s), s[5] & cr4::LA57 != 0) {
        (true, true) => "x86-5",
        (true, false) => "x86-4",
        (false, _) if pae && paged => "x86-pae",
        (false, _) => "x86-32",
    };
    let mut text = format.to_owned();
    if format == "x86-pae" && features.second == Second::Ept {
        for (i, pdpte) in s[11..15].iter().enumerate() {
            let _ = write!(text, ",pdpte{i}={pdpte:#x}");
        }
    } else {
        let _ = write!(text, ",cr3={:#x}", s[4]);
    }
    let (cr0, cr4, efer) = (s[3], s[5], s[6]);
    let _ = write!(text, ",cr0={cr0:#x},cr4={cr4:#x},efer={efer:#x}");
    let (pkru, pkrs) = (s[10] as u32, s[10] >> 32);
    for (key, keys) in [("pkru", u64::from(pkru)), ("pkrs", pkrs)] {
        if keys != 0 {
            let _ = write!(text, ",{key}={keys:#x}");
        }
    }
    unless(&mut text, false, s[9] & 1 << 18 != 0, "ac");
    text + &processor(features)
}

fn second(features: &Features, root: u64) -> String {
    match features.second {
        Second::Ept => {
            let mut text = format!("ept4,eptp={root:#x},maxphyaddr={}", features.physical_bits);
            unless(&mut text, true, features.ept_large.1, "gigabyte");
            unless(&mut text, true, features.execute_only, "xonly");
            text
        }
        Second::Npt4 => format!("npt4,ncr3={root:#x}{}", processor(features)),
        Second::Npt5 => format!("npt5,ncr3={root:#x}{}", processor(features)),
        Second::NptPae => format!("npt-pae,ncr3={root:#x}{}", processor(features)),
        Second::Npt32 => format!("npt-32,ncr3={root:#x}{}", processor(features)),
    }
}
