//! Table-editing code under the stale-translation checker: every editing operation of the library on
//! every format, with the library's own plans of invalidation and with its gathers taken at their word,
//! in random order; and bugs that real hypervisors had, planted.

use proptest::prelude::*;
use slat::format::arm32::Version;
use slat::format::riscv::Scheme;
use slat::invalidate::LinearOwner;

mod flushes;
mod formats;
mod invalid;
mod loaded;
mod order;
mod plain;
mod stores;
mod world;

use formats::*;
use world::{clean, op};

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, ..ProptestConfig::default() })]

    #[test]
    fn nothing_stale_remains_and_no_freed_frame_is_reached_on_x86(
        ops in prop::collection::vec(op(), 1..16),
    ) {
        clean(ept(), &ops);
        clean(ept_five(), &ops);
        clean(npt(), &ops);
        clean(npt_five(), &ops);
        clean(npt_pae(), &ops);
        clean(npt_32(), &ops);
        clean(x86_four(), &ops);
        clean(x86_five(), &ops);
        clean(x86_by_pcid(), &ops);
        clean(x86_amd_host(), &ops);
        clean(x86_amd_host_by_page(), &ops);
        clean(x86_pae(), &ops);
        clean(x86_pae_loaded(LinearOwner::Native, on_intel_pae), &ops);
        clean(x86_pae_loaded(LinearOwner::Native, on_amd_pae), &ops);
        clean(x86_pae_loaded(LinearOwner::Vpid(4), on_intel_pae), &ops);
        clean(x86_legacy(), &ops);
    }

    #[test]
    fn nothing_stale_remains_and_no_freed_frame_is_reached_on_arm(
        ops in prop::collection::vec(op(), 1..16),
    ) {
        clean(arm(), &ops);
        clean(arm_tracked(), &ops);
        clean(arm_16k(), &ops);
        clean(arm_64k(), &ops);
        clean(arm_lpa2(), &ops);
        clean(arm_lower(), &ops);
        clean(arm_upper(), &ops);
        clean(arm_host(), &ops);
        clean(arm32_stage2(), &ops);
        clean(armv7_stage2(), &ops);
        clean(arm32_stage2_flat(), &ops);
        clean(arm32_long(), &ops);
        clean(arm32_long_upper(), &ops);
        clean(arm32_hyp(Version::V7), &ops);
        clean(arm32_hyp(Version::V8), &ops);
        clean(arm32_short(), &ops);
        clean(arm32_short_upper(), &ops);
    }

    #[test]
    fn nothing_stale_remains_and_no_freed_frame_is_reached_on_riscv(
        ops in prop::collection::vec(op(), 1..16),
    ) {
        clean(riscv_g(), &ops);
        clean(riscv_g_wide(Scheme::Sv48), &ops);
        clean(riscv_g_wide(Scheme::Sv57), &ops);
        clean(riscv_g_32(), &ops);
        clean(riscv_s(Scheme::Sv48), &ops);
        clean(riscv_s_upper(Scheme::Sv39), &ops);
        clean(riscv_s_upper(Scheme::Sv57), &ops);
        clean(riscv_s_32(), &ops);
    }
}
