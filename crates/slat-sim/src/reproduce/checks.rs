//! Acceptance checks from the literature: papers and measurements whose numbers are public.

mod caches;
mod counts;
mod memory;
mod shadow;

use super::Make;

const BHARGAVA: &str = "Bhargava et al., Accelerating Two-Dimensional Page Walks for Virtualized \
    Systems, ASPLOS 2008 (abstract)";
const VMITOSIS: &str = "Panwar et al., vMitosis, ASPLOS 2021; reference data of its artifact \
    (evaluation/reference/processed/avg.csv)";
const KERNBENCH: &str = "Xiao Guangrong, kernbench with ept=1 and ept=0, June 2011; \
    http://lkml.iu.edu/hypermail/linux/kernel/1106.0/03039.html";

/// Which rows there are, in order.
pub(super) const ROWS: &[(&[&str], Make)] = &[
    (&["1"], |_| Ok(vec![counts::cold_walks()])),
    (&["2"], |_| Ok(vec![counts::agile_paging()])),
    (&["3a", "3b", "3c"], caches::nested_caches),
    (&["4"], |runs| Ok(vec![memory::symmetry(runs)?])),
    (&["5"], |runs| Ok(vec![memory::large_pages(runs)?])),
    (&["6"], |runs| Ok(vec![caches::walk_cycles(runs)?])),
    (&["7"], |runs| Ok(vec![shadow::compile(runs)?])),
    (&["8"], |runs| Ok(vec![shadow::micro(runs)?])),
    (&["9"], |runs| Ok(vec![shadow::io_bound(runs)?])),
    (&["10a", "10b"], |runs| Ok(memory::corner(runs)?.into())),
    (&["11"], |_| Ok(vec![counts::scattered()])),
    (&["12"], |runs| Ok(vec![shadow::memory(runs)?])),
];
