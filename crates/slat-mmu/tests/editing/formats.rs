//! Every format that can be edited, each with its attributes and a plan of invalidation.

use slat::edit::arm32::{ShortAttributes, Tex, Upper};
use slat::edit::{
    Encode, Gather, arm64 as arm_entries, ept as ept_entries, riscv as riscv_entries,
    x86 as x86_entries,
};
use slat::format::arm32::{self, Lpae, Short};
use slat::format::arm64::{Granule, Processor as ArmProcessor, Stage1, Stage2};
use slat::format::ept::{self, Ept};
use slat::format::npt::Npt;
use slat::format::riscv::{Features as RiscvFeatures, Scheme, Sv};
use slat::format::x86::Controls;
use slat::format::x86::legacy::Legacy;
use slat::format::x86::long::{Long, Processor};
use slat::format::x86::pae::Pae;
use slat::invalidate::{Context, LinearOwner, amd, arm32 as arm32_plan, arm64, intel, riscv};
use slat::memory_type::riscv::Pbmt;
use slat::memory_type::x86::Type;
use slat_mmu::checker::Checker;

use super::world::{Subject, TABLES};

pub(crate) const GUEST: u16 = 3;

pub(crate) const BROADCASTS: amd::Capabilities = amd::Capabilities {
    flush_by_asid: true,
    invlpgb: true,
    invlpgb_nested: true,
    invlpgb_most: 7,
    invpcid: true,
    global_pages: true,
    pae: false,
    most_pages: 64,
};
pub(crate) const RANGES: arm64::Capabilities = arm64::Capabilities {
    granule: Granule::Four,
    lpa2: false,
    ranges: true,
    level_hints: true,
    broadcast: true,
    global_pages: false,
    most_operations: 32,
};
pub(crate) const SVINVAL: riscv::Capabilities =
    riscv::Capabilities { svinval: true, sv32: false, global_pages: false, most_pages: 64 };

fn on_intel<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    intel::plan(gather, &intel::Capabilities::default(), 0, |step| checker.intel(&step));
}

/// Page by page, by INVPCID.
fn on_intel_by_pcid<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    let capabilities = intel::Capabilities { global_pages: false, ..Default::default() };
    intel::plan(gather, &capabilities, 0, |step| checker.intel(&step));
}

/// With PDPTEs in registers.
pub(crate) fn on_intel_pae(checker: &mut Checker<Pae>, gather: &Gather<'_>) {
    let capabilities = intel::Capabilities { pae: true, ..Default::default() };
    intel::plan(gather, &capabilities, 0, |step| checker.intel(&step));
}

pub(crate) fn on_amd_pae(checker: &mut Checker<Pae>, gather: &Gather<'_>) {
    let capabilities = amd::Capabilities { pae: true, ..BROADCASTS };
    amd::plan(gather, &capabilities, 0, |step| checker.amd(&step));
}

fn on_amd<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    amd::plan(gather, &BROADCASTS, 0, |step| checker.amd(&step));
}

/// Without broadcasts.
fn on_amd_alone<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    let capabilities = amd::Capabilities { invlpgb: false, ..BROADCASTS };
    amd::plan(gather, &capabilities, 0, |step| checker.amd(&step));
}

/// Without INVPCID either.
fn on_amd_old<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    let capabilities = amd::Capabilities { invlpgb: false, invpcid: false, ..BROADCASTS };
    amd::plan(gather, &capabilities, 0, |step| checker.amd(&step));
}

fn on_arm<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    arm64::plan(gather, &RANGES, |step| checker.arm64(&step, GUEST));
}

/// The host's own, by address and, beyond some, by ASID.
fn on_arm_host<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    arm64::plan(gather, &RANGES, |step| checker.arm64(&step, None));
}

fn on_arm_16k<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    let capabilities = arm64::Capabilities { granule: Granule::Sixteen, ..RANGES };
    arm64::plan(gather, &capabilities, |step| checker.arm64(&step, GUEST));
}

fn on_arm_64k<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    let capabilities = arm64::Capabilities { granule: Granule::SixtyFour, ..RANGES };
    arm64::plan(gather, &capabilities, |step| checker.arm64(&step, GUEST));
}

/// Address by address.
fn on_arm_by_page<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    let capabilities = arm64::Capabilities { ranges: false, level_hints: false, ..RANGES };
    arm64::plan(gather, &capabilities, |step| checker.arm64(&step, GUEST));
}

pub(crate) const AARCH32: arm32_plan::Capabilities = arm32_plan::Capabilities {
    version: arm32::Version::V8,
    short_descriptors: false,
    broadcast: true,
    global_pages: false,
    flat_stage1: false,
    branch_predictor: false,
    most_operations: 64,
};
pub(crate) const ARMV7: arm32_plan::Capabilities =
    arm32_plan::Capabilities { version: arm32::Version::V7, branch_predictor: true, ..AARCH32 };

fn on_arm32<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    arm32_plan::plan(gather, &AARCH32, |step| checker.arm32(&step, GUEST));
}

fn on_armv7<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    arm32_plan::plan(gather, &ARMV7, |step| checker.arm32(&step, GUEST));
}

/// Of guests whose stage 1 is off: by IPA, and by the virtual address that is the same.
fn on_arm32_flat<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    let capabilities = arm32_plan::Capabilities { flat_stage1: true, ..AARCH32 };
    arm32_plan::plan(gather, &capabilities, |step| checker.arm32(&step, GUEST));
}

/// Short descriptors, of which some may be global.
fn on_arm32_short<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    let capabilities =
        arm32_plan::Capabilities { short_descriptors: true, global_pages: true, ..AARCH32 };
    arm32_plan::plan(gather, &capabilities, |step| checker.arm32(&step, GUEST));
}

fn on_armv7_short<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    let capabilities = arm32_plan::Capabilities { short_descriptors: true, ..ARMV7 };
    arm32_plan::plan(gather, &capabilities, |step| checker.arm32(&step, GUEST));
}

fn on_riscv<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    riscv::plan(gather, &SVINVAL, |step| checker.riscv(&step, GUEST));
}

/// Ten bits a level, and fences that wait each for itself.
fn on_riscv_32<F: Encode>(checker: &mut Checker<F>, gather: &Gather<'_>) {
    let capabilities = riscv::Capabilities { svinval: false, sv32: true, ..SVINVAL };
    riscv::plan(gather, &capabilities, |step| checker.riscv(&step, GUEST));
}

fn ept_of(format: Ept) -> Subject<Ept> {
    let context = Context::Ept { eptp: TABLES | 0x5e };
    let types = [Type::Wb, Type::Uc];
    let types = types.map(|memory_type| ept_entries::Memory { memory_type, ignore_pat: false });
    Subject::new(format, context, |to| ept_entries::Attributes::new(to, Type::Wb), types, on_intel)
}

fn ept_features() -> ept::Features {
    ept::Features { accessed_dirty: true, ..Default::default() }
}

pub(crate) fn ept() -> Subject<Ept> {
    ept_of(Ept::four(ept_features()))
}

pub(crate) fn ept_five() -> Subject<Ept> {
    ept_of(Ept::five(ept_features())).at((1 << 48) - (2 << 20))
}

/// Write-back and uncacheable, by the PAT after reset.
const PATS: [x86_entries::Pat; 2] = [x86_entries::Pat(0), x86_entries::Pat(3)];

fn npt_of<F>(format: F) -> Subject<F>
where
    F: Encode<Attributes = x86_entries::Attributes, Memory = x86_entries::Pat>,
{
    let context = Context::Npt { asid: 5 };
    let attributes = |permissions| {
        let mut attributes = x86_entries::Attributes::new(permissions);
        attributes.user = true;
        attributes
    };
    Subject::new(format, context, attributes, PATS, on_amd)
}

pub(crate) fn npt() -> Subject<Npt> {
    npt_of(Npt::four(true, Processor::default()))
}

pub(crate) fn npt_five() -> Subject<Npt> {
    npt_of(Npt::five(true, Processor::default())).at((1 << 48) - (2 << 20))
}

pub(crate) fn npt_pae() -> Subject<Npt> {
    Subject { flush: on_amd_alone, ..npt_of(Npt::pae(true, Processor::default())) }.at_the_end()
}

pub(crate) fn npt_32() -> Subject<x86_entries::Npt32> {
    let format = x86_entries::Npt32::new(Npt::legacy(true, 40)).unwrap();
    Subject { forbids_execution: false, ..npt_of(format) }.narrow().at_the_end()
}

fn linear_of<F>(
    format: F,
    owner: LinearOwner,
    flush: fn(&mut Checker<F>, &Gather<'_>),
) -> Subject<F>
where
    F: Encode<Attributes = x86_entries::Attributes, Memory = x86_entries::Pat>,
{
    let pcid = if owner == LinearOwner::Native { 3 } else { 0 };
    Subject::new(
        format,
        Context::Linear { owner, pcid },
        |permissions| {
            let mut attributes = x86_entries::Attributes::new(permissions);
            attributes.user = true;
            attributes
        },
        PATS,
        flush,
    )
}

fn controls() -> Controls {
    Controls { write_protect: true, nxe: true, ..Controls::default() }
}

/// Stage 1 of x86, under a PCID of the host's.
pub(crate) fn x86_four() -> Subject<Long> {
    let processor = Processor { physical_bits: 46, ..Processor::default() };
    linear_of(Long::four(controls(), processor), LinearOwner::Native, on_intel)
}

/// Of the host on AMD, whatever its PCID.
pub(crate) fn x86_amd_host() -> Subject<Long> {
    linear_of(Long::four(controls(), Processor::default()), LinearOwner::Native, on_amd_alone)
}

/// Of the host on AMD without PCIDs, page by page.
pub(crate) fn x86_amd_host_by_page() -> Subject<Long> {
    let format = Long::four(controls(), Processor::default());
    let subject = linear_of(format, LinearOwner::Native, on_amd_old);
    Subject { context: Context::Linear { owner: LinearOwner::Native, pcid: 0 }, ..subject }
}

/// Of a guest on Intel, in the upper half.
pub(crate) fn x86_five() -> Subject<Long> {
    let format = Long::five(controls(), Processor::default());
    linear_of(format, LinearOwner::Vpid(4), on_intel).at_the_end()
}

/// In the upper half, page by page.
pub(crate) fn x86_by_pcid() -> Subject<Long> {
    let format = Long::four(controls(), Processor::default());
    linear_of(format, LinearOwner::Native, on_intel_by_pcid).at_the_end()
}

/// Where PDPTEs are registers: of the host, or of a guest under a VPID.
pub(crate) fn x86_pae_loaded(
    owner: LinearOwner,
    flush: fn(&mut Checker<Pae>, &Gather<'_>),
) -> Subject<Pae> {
    let subject = linear_of(Pae::new(controls(), Processor::default()), owner, flush);
    Subject { context: Context::Linear { owner, pcid: 0 }, ..subject }
}

/// Of a guest on AMD.
pub(crate) fn x86_pae() -> Subject<Pae> {
    let format = Pae::new(controls(), Processor::default());
    linear_of(format, LinearOwner::Asid(5), on_amd)
}

pub(crate) fn x86_legacy() -> Subject<Legacy> {
    let format = Legacy::new(Controls::default(), true, 40);
    let subject = linear_of(format, LinearOwner::Asid(5), on_amd_alone);
    Subject { forbids_execution: false, ..subject }.narrow().at_the_end()
}

/// Normal memory, write-back, inner-shareable.
const NORMAL: arm_entries::Memory = arm_entries::Memory { attributes: 0xf, shareability: 3 };

fn processor() -> ArmProcessor {
    ArmProcessor { physical_bits: 40, ..ArmProcessor::default() }
}

fn stage2_of<F>(format: F, flush: fn(&mut Checker<F>, &Gather<'_>)) -> Subject<F>
where
    F: Encode<Attributes = arm_entries::Stage2Attributes, Memory = arm_entries::Memory>,
{
    let attributes = |permissions| arm_entries::Stage2Attributes::new(permissions, NORMAL);
    let types = [NORMAL, arm_entries::Memory::DEVICE];
    Subject::new(format, Context::Stage2 { vmid: GUEST }, attributes, types, flush)
}

pub(crate) fn arm() -> Subject<Stage2> {
    stage2_of(Stage2::plain(Granule::Four, 39, &processor()).unwrap(), on_arm)
}

/// Concatenated roots, and hardware that says what is dirty in write permission.
pub(crate) fn arm_tracked() -> Subject<Stage2> {
    let control = Stage2::control(Granule::Four, 40, &processor()) | 3 << 21;
    let hcr = slat::regime::arm::hcr::VM;
    let format = Stage2::new(control, hcr, 0, &processor()).unwrap();
    assert!(format.sets_dirty_state());
    let attributes = |permissions: slat::Permissions| arm_entries::Stage2Attributes {
        tracked: permissions.write,
        ..arm_entries::Stage2Attributes::new(permissions, NORMAL)
    };
    Subject { attributes, ..stage2_of(format, on_arm) }.at((1 << 39) - (2 << 20))
}

pub(crate) fn arm_16k() -> Subject<Stage2> {
    stage2_of(Stage2::plain(Granule::Sixteen, 40, &processor()).unwrap(), on_arm_16k)
}

pub(crate) fn arm_64k() -> Subject<Stage2> {
    stage2_of(Stage2::plain(Granule::SixtyFour, 40, &processor()).unwrap(), on_arm_64k)
}

/// 52-bit addresses of the 4K granule, in two pieces.
pub(crate) fn arm_lpa2() -> Subject<Stage2> {
    let format = Stage2::plain(Granule::Four, 52, &ArmProcessor::default()).unwrap();
    let attributes = |permissions| {
        let memory = arm_entries::Memory { shareability: 0, ..NORMAL };
        arm_entries::Stage2Attributes::new(permissions, memory)
    };
    let types = [0xf, 1].map(|attributes| arm_entries::Memory { attributes, shareability: 0 });
    Subject { attributes, types, ..stage2_of(format, on_arm_by_page) }.at((1 << 48) - (2 << 20))
}

/// Arm's EL1&0, and both stages of AArch32 state with long descriptors.
fn stage1_of<F>(format: F, flush: fn(&mut Checker<F>, &Gather<'_>)) -> Subject<F>
where
    F: Encode<Attributes = arm_entries::Stage1Attributes, Memory = arm_entries::Memory>,
{
    let context = Context::Stage1 { asid: 3, vmid: Some(GUEST) };
    // What the indexes mean, `MAIR_EL1` says.
    let types = [0, 1].map(|attributes| arm_entries::Memory { attributes, shareability: 3 });
    Subject::new(format, context, arm_entries::Stage1Attributes::new, types, flush)
}

pub(crate) fn arm_lower() -> Subject<Stage1> {
    stage1_of(Stage1::plain(Granule::Four, 39, &processor()).unwrap(), on_arm)
}

/// The host's own, under an ASID.
pub(crate) fn arm_host() -> Subject<Stage1> {
    let context = Context::Stage1 { asid: 3, vmid: None };
    Subject { context, flush: on_arm_host, ..arm_lower() }
}

pub(crate) fn arm_upper() -> Subject<Stage1> {
    let lower = Stage1::plain(Granule::Four, 48, &processor()).unwrap();
    stage1_of(slat::format::Format::half(&lower, u64::MAX), on_arm).at_the_end()
}

fn arm32_stage2_of(
    processor: &arm32::Processor,
    flush: fn(&mut Checker<arm32::Stage2>, &Gather<'_>),
) -> Subject<arm32::Stage2> {
    let control = arm32::Stage2::control(40);
    let hcr = slat::regime::arm::hcr::VM;
    stage2_of(arm32::Stage2::new(control, hcr, 0, processor).unwrap(), flush)
}

pub(crate) fn arm32_stage2() -> Subject<arm32::Stage2> {
    arm32_stage2_of(&arm32::Processor::default(), on_arm32).at((1 << 39) - (2 << 20))
}

pub(crate) fn armv7_stage2() -> Subject<arm32::Stage2> {
    arm32_stage2_of(&arm32::Processor::V7, on_armv7)
}

/// Half of the window below 4 GiB, where virtual addresses end.
pub(crate) fn arm32_stage2_flat() -> Subject<arm32::Stage2> {
    let subject = arm32_stage2_of(&arm32::Processor::default(), on_arm32_flat);
    Subject { flat_stage1: true, ..subject }.at((1 << 32) - (2 << 20))
}

fn registers(ttbcr: u32) -> arm32::Registers {
    arm32::Registers { ttbcr, sctlr: arm32::sctlr::M, dacr: 1, ..arm32::Registers::default() }
}

pub(crate) fn arm32_long() -> Subject<Lpae> {
    let registers = registers(arm32::ttbcr::EAE);
    let format = Lpae::new(&registers, &arm32::Processor::default()).unwrap();
    stage1_of(format, on_arm32)
}

/// Everything from 2 GiB on.
pub(crate) fn arm32_long_upper() -> Subject<Upper<Lpae>> {
    let registers = registers(arm32::ttbcr::EAE | 1 << 16);
    let format = Lpae::new(&registers, &arm32::Processor::V7).unwrap();
    let subject = stage1_of(Upper::<Lpae>::new(format).unwrap(), on_armv7);
    subject.at((3 << 30) - (2 << 20))
}

/// Hyp mode's own.
pub(crate) fn arm32_hyp(version: arm32::Version) -> Subject<Lpae> {
    let (processor, flush): (_, fn(&mut Checker<Lpae>, &Gather<'_>)) = match version {
        arm32::Version::V7 => (arm32::Processor::V7, on_armv7),
        arm32::Version::V8 => (arm32::Processor::default(), on_arm32),
    };
    let htcr = 1 << 31 | 1 << 23;
    let format = Lpae::hyp(htcr, arm32::sctlr::M, &processor).unwrap();
    Subject { context: Context::El2, ..stage1_of(format, flush) }
}

fn short_of<F: Encode<Attributes = ShortAttributes, Memory = Tex>>(
    format: F,
    flush: fn(&mut Checker<F>, &Gather<'_>),
) -> Subject<F> {
    let context = Context::Stage1 { asid: 3, vmid: Some(GUEST) };
    // Write-back and device memory.
    let types = [7, 1].map(|encoding| Tex { encoding, shareable: true });
    Subject::new(format, context, ShortAttributes::new, types, flush).narrow()
}

pub(crate) fn arm32_short() -> Subject<Short> {
    let format = Short::new(&registers(0), &arm32::Processor::default()).unwrap();
    short_of(format, on_arm32_short).at((2 << 30) - (2 << 20))
}

/// Everything from 1 GiB on.
pub(crate) fn arm32_short_upper() -> Subject<Upper<Short>> {
    let format = Short::new(&registers(2), &arm32::Processor::V7).unwrap();
    short_of(Upper::<Short>::new(format).unwrap(), on_armv7_short).at(1 << 30)
}

fn riscv_features() -> RiscvFeatures {
    RiscvFeatures { hardware_ad: true, ..RiscvFeatures::default() }
}

/// The memory's own type and I/O. Sv32 has the first alone.
const PBMTS: [Pbmt; 2] = [Pbmt::Pma, Pbmt::Io];

fn g_stage_of<F>(format: F, flush: fn(&mut Checker<F>, &Gather<'_>)) -> Subject<F>
where
    F: Encode<Attributes = riscv_entries::Attributes, Memory = Pbmt>,
{
    let context = Context::GStage { vmid: GUEST };
    let attributes = |permissions| {
        let mut attributes = riscv_entries::Attributes::new(permissions);
        attributes.user = true;
        attributes
    };
    Subject::new(format, context, attributes, PBMTS, flush)
}

pub(crate) fn riscv_g() -> Subject<Sv> {
    g_stage_of(Sv::stage2(Scheme::Sv39, riscv_features()), on_riscv)
}

/// At the end of addresses that have two bits more.
pub(crate) fn riscv_g_wide(scheme: Scheme) -> Subject<Sv> {
    g_stage_of(Sv::stage2(scheme, riscv_features()), on_riscv).at_the_end()
}

pub(crate) fn riscv_g_32() -> Subject<riscv_entries::Sv32> {
    let format = riscv_entries::Sv32::new(Sv::stage2(Scheme::Sv32, riscv_features())).unwrap();
    g_stage_of(format, on_riscv_32).at_the_end()
}

fn s_stage_of<F>(
    format: F,
    vmid: Option<u16>,
    flush: fn(&mut Checker<F>, &Gather<'_>),
) -> Subject<F>
where
    F: Encode<Attributes = riscv_entries::Attributes, Memory = Pbmt>,
{
    let context = Context::SStage { asid: 3, vmid };
    Subject::new(format, context, riscv_entries::Attributes::new, PBMTS, flush)
}

/// Stage 1 of RISC-V.
pub(crate) fn riscv_s(scheme: Scheme) -> Subject<Sv> {
    s_stage_of(Sv::stage1(scheme, riscv_features()), None, on_riscv)
}

/// Of a guest, in the upper half.
pub(crate) fn riscv_s_upper(scheme: Scheme) -> Subject<Sv> {
    s_stage_of(Sv::stage1(scheme, riscv_features()), Some(GUEST), on_riscv).at_the_end()
}

pub(crate) fn riscv_s_32() -> Subject<riscv_entries::Sv32> {
    let format = riscv_entries::Sv32::new(Sv::stage1(Scheme::Sv32, riscv_features())).unwrap();
    s_stage_of(format, None, on_riscv_32).at_the_end()
}
