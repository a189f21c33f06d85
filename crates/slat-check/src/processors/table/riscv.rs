//! RISC-V.

use super::{Row, none};
use crate::processors::Confidence::High;

pub(super) static ROWS: &[Row] = &[
    none(
        "SiFive U54 and U74",
        2018,
        High,
        "the core's manual: RV64GC without H",
        &["u74*", "u54*", "fu540*", "fu740*", "jh7100*", "jh7110*"],
    ),
    none(
        "T-Head C906 and C910",
        2019,
        High,
        "the core's manual: no H extension",
        &["c906*", "c910*", "th1520*", "sg2042*"],
    ),
];
