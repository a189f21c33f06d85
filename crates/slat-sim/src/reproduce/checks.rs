//! Acceptance checks from the literature: papers and measurements whose numbers are public.

mod caches;
mod counts;
mod memory;
mod shadow;

use super::runs::Runs;
use super::{ReproduceError, Row};

const BHARGAVA: &str = "Bhargava et al., Accelerating Two-Dimensional Page Walks for Virtualized \
    Systems, ASPLOS 2008 (abstract)";
const VMITOSIS: &str = "Panwar et al., vMitosis, ASPLOS 2021; reference data of its artifact \
    (evaluation/reference/processed/avg.csv)";
const KERNBENCH: &str = "Xiao Guangrong, kernbench with ept=1 and ept=0, June 2011; \
    http://lkml.iu.edu/hypermail/linux/kernel/1106.0/03039.html";

pub(super) fn rows(runs: &mut Runs<'_>) -> Result<Vec<Row>, ReproduceError> {
    let mut rows = vec![counts::cold_walks(), counts::agile_paging()];
    rows.extend(caches::nested_caches(runs)?);
    rows.push(memory::symmetry(runs)?);
    rows.push(memory::large_pages(runs)?);
    rows.push(caches::walk_cycles(runs)?);
    rows.push(shadow::compile(runs)?);
    rows.push(shadow::micro(runs)?);
    rows.push(shadow::io_bound(runs)?);
    rows.extend(memory::corner(runs)?);
    rows.push(counts::scattered());
    rows.push(shadow::memory(runs)?);
    Ok(rows)
}
