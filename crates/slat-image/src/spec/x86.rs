//! x86 stages: paging modes from control registers, EPTP, nCR3.

use slat::Regime;
use slat::format::any::AnyFormat;
use slat::format::ept::{self, Ept};
use slat::format::flat::Flat;
use slat::format::npt::Npt;
use slat::format::x86::legacy::Legacy;
use slat::format::x86::long::{Linear, Long, Masking, Processor};
use slat::format::x86::pae::{self, Pae};
use slat::format::x86::{Controls, Vendor};
use slat::memory_type::x86::Type;

use super::{Fields, Named, Pair, Root, SpecError};

const CR0_WP: u64 = 1 << 16;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const CR4_PKE: u64 = 1 << 22;
const CR4_CET: u64 = 1 << 23;
const CR4_PKS: u64 = 1 << 24;
const CR4_LASS: u64 = 1 << 27;
const CR4_LAM_SUP: u64 = 1 << 28;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;
const EFER_UAIE: u64 = 1 << 20;

pub(super) fn stage(
    fields: &mut Fields,
    pair: &Pair,
    regime: &mut Regime,
) -> Result<Named, SpecError> {
    match fields.format.clone().as_str() {
        "ept4" => extended(fields, 3),
        "ept5" => extended(fields, 4),
        name if name.starts_with("npt") => nested(fields, name, regime),
        name => guest(fields, name, pair, regime),
    }
}

fn vendor(fields: &mut Fields, default: Vendor) -> Result<Vendor, SpecError> {
    match fields.take("vendor").as_deref() {
        None => Ok(default),
        Some("intel") => Ok(Vendor::Intel),
        Some("amd") => Ok(Vendor::Amd),
        Some(other) => Err(fields.error(format!("vendor={other}: write intel or amd"))),
    }
}

fn processor(
    fields: &mut Fields,
    default: Vendor,
    default_bits: u64,
) -> Result<Processor, SpecError> {
    let physical_bits = fields.count("maxphyaddr", 32..=52)?.unwrap_or(default_bits) as u8;
    // CPUID 80000001H:EDX[26].
    let gigabyte_pages = fields.switch("gigabyte")?.unwrap_or(true);
    let vendor = vendor(fields, default)?;
    Ok(Processor { physical_bits, gigabyte_pages, vendor, ..Processor::default() })
}

/// A root that must be a page of its own: other bits of a bare `:ROOT` are a mistake.
fn page_aligned(fields: &Fields, root: Root, physical_bits: u8) -> Result<(), SpecError> {
    match root {
        Root::Table(table) if table & 0xfff != 0 => Err(fields.error(format!(
            "the root {table:#x} is not a multiple of 4096; a whole register goes into its key"
        ))),
        Root::Table(table) => within(fields, table, physical_bits),
        Root::Register(_) => Ok(()),
    }
}

/// A root address that the processor cannot have.
fn within(fields: &Fields, root: u64, physical_bits: u8) -> Result<(), SpecError> {
    let beyond = root & (!0 << physical_bits);
    if beyond != 0 {
        return Err(fields.error(format!(
            "the root has bits {beyond:#x} beyond the {physical_bits} physical address bits"
        )));
    }
    Ok(())
}

/// A root register of 32 bits: CR3 without 64-bit mode.
fn fits_32_bits(fields: &Fields, root: Root) -> Result<(), SpecError> {
    let raw = root.raw();
    if raw >> 32 != 0 {
        return Err(fields.error(format!("the root {raw:#x} does not fit CR3's 32 bits")));
    }
    Ok(())
}

/// A page attribute table: each byte a type that a processor lets into the register (Intel SDM 3A
/// table 13-10, AMD APM 2 7.8.1).
fn attribute_table(fields: &mut Fields, key: &'static str) -> Result<Option<u64>, SpecError> {
    let Some(pat) = fields.register(key)? else { return Ok(None) };
    for (index, byte) in pat.to_le_bytes().into_iter().enumerate() {
        if Type::from_encoding(byte).is_none() {
            return Err(fields.error(format!(
                "{key}: entry {index} is {byte:#x}, which is no memory type; 0, 1, 4, 5, 6 and 7 are"
            )));
        }
    }
    Ok(Some(pat))
}

/// `EFER.NXE`, by the register or by its shorthand; set where neither is given.
fn execute_disable(fields: &mut Fields, efer: Option<u64>) -> Result<bool, SpecError> {
    let nxe = fields.switch("nxe")?;
    let by_register = efer.map(|efer| efer & EFER_NXE != 0);
    if let (Some(one), Some(other)) = (by_register, nxe)
        && one != other
    {
        return Err(fields.error("efer= and nxe= contradict each other; give one of them"));
    }
    Ok(nxe.or(by_register).unwrap_or(true))
}

fn guest(
    fields: &mut Fields,
    name: &str,
    pair: &Pair,
    regime: &mut Regime,
) -> Result<Named, SpecError> {
    let default_vendor = if pair.is_npt() { Vendor::Amd } else { Vendor::Intel };
    let cr0 = fields.register("cr0")?;
    let cr4 = fields.register("cr4")?;
    let efer = fields.register("efer")?;
    let nxe = execute_disable(fields, efer)?;
    let processor = processor(fields, default_vendor, 52)?;
    if let Some(second) = &pair.stage2
        && processor.vendor != default_vendor
    {
        let (given, owner) = match processor.vendor {
            Vendor::Intel => ("intel", "AMD"),
            Vendor::Amd => ("amd", "Intel"),
        };
        return Err(
            fields.error(format!("vendor={given} contradicts {second}, which is {owner}'s"))
        );
    }
    if let Some(pat) = attribute_table(fields, "pat")? {
        regime.x86.pat = pat;
    }
    if let Some(pkru) = fields.count("pkru", 0..=u64::from(u32::MAX))? {
        regime.x86.pkru = pkru as u32;
    }
    if let Some(pkrs) = fields.count("pkrs", 0..=u64::from(u32::MAX))? {
        regime.x86.pkrs = pkrs as u32;
    }
    regime.x86.alignment_check = fields.switch("ac")?.unwrap_or(false);
    regime.x86.cache_disabled = cr0.is_some_and(|cr0| cr0 & CR0_CD != 0);

    if efer.is_some_and(|efer| efer & EFER_UAIE != 0) {
        return Err(fields.error("efer enables upper address ignore (UAIE), which is not modelled"));
    }
    mode_agrees(fields, name, cr4, efer)?;
    let cr4_bit = |bit: u64| cr4.is_some_and(|cr4| cr4 & bit != 0);
    let controls = Controls {
        write_protect: cr0.is_none_or(|cr0| cr0 & CR0_WP != 0),
        smep: cr4_bit(CR4_SMEP),
        smap: cr4_bit(CR4_SMAP),
        nxe,
        user_keys: cr4_bit(CR4_PKE),
        supervisor_keys: cr4_bit(CR4_PKS),
        shadow_stacks: cr4_bit(CR4_CET),
    };

    let unpaged = cr0.is_some_and(|cr0| cr0 & CR0_PG == 0);
    if unpaged && efer.is_some_and(|efer| efer & EFER_LMA != 0) {
        return Err(fields.error("CR0.PG is clear, which contradicts EFER.LMA"));
    }
    let named = if name == "x86-pae" {
        physical_address_extension(fields, controls, processor, pair)?
    } else {
        radix(fields, name, controls, processor, cr4)?
    };
    if unpaged {
        // The root was asked for and checked; without paging nothing reads it.
        let format = AnyFormat::Flat(Flat::X86_UNPAGED, ());
        return Ok(Named { format, root: None, load_pdptes: None });
    }
    Ok(named)
}

/// The modes whose root is a table: 32-bit, 4-level and 5-level paging.
fn radix(
    fields: &mut Fields,
    name: &str,
    controls: Controls,
    processor: Processor,
    cr4: Option<u64>,
) -> Result<Named, SpecError> {
    let cr4_bit = |bit: u64| cr4.is_some_and(|cr4| cr4 & bit != 0);
    let root = fields.root("cr3")?;
    page_aligned(fields, root, processor.physical_bits)?;
    let raw = root.raw();
    let (format, table) = match name {
        "x86-32" => {
            fits_32_bits(fields, root)?;
            let pse = cr4.is_none_or(|cr4| cr4 & CR4_PSE != 0);
            let legacy = Legacy::new(controls, pse, processor.physical_bits);
            (AnyFormat::Legacy(legacy, raw), raw & 0xffff_f000)
        }
        _ => {
            check_cr3(fields, raw, processor)?;
            let linear = Linear {
                mask_user: Masking::from_cr3(raw),
                mask_supervisor: cr4_bit(CR4_LAM_SUP),
                separation: cr4_bit(CR4_LASS),
            };
            let long = if name == "x86-4" { Long::four } else { Long::five };
            (
                AnyFormat::Long(long(controls, processor).with_linear(linear), raw),
                raw & 0x000f_ffff_ffff_f000,
            )
        }
    };
    Ok(Named { format, root: Some((table, 4096)), load_pdptes: None })
}

/// CR3's upper bits: reserved ones cannot be loaded.
fn check_cr3(fields: &Fields, cr3: u64, processor: Processor) -> Result<(), SpecError> {
    // Bits 62:61 are LAM's, which is Intel's; bit 63 is MOV to CR3's own (no flush), never in the
    // register.
    let other = match processor.vendor {
        Vendor::Intel => 7 << 61,
        Vendor::Amd => 1 << 63,
    };
    within(fields, cr3 & !other, processor.physical_bits)
}

/// Control registers that contradict the format's name.
fn mode_agrees(
    fields: &Fields,
    name: &str,
    cr4: Option<u64>,
    efer: Option<u64>,
) -> Result<(), SpecError> {
    let bit = |register: Option<u64>, bit: u64| register.map(|value| value & bit != 0);
    let five = matches!(name, "x86-5" | "npt5");
    let long = five || matches!(name, "x86-4" | "npt4");
    let expected = [
        ("CR4.PAE", bit(cr4, CR4_PAE), !matches!(name, "x86-32" | "npt-32")),
        ("CR4.LA57", bit(cr4, CR4_LA57).filter(|_| long), five),
        ("EFER.LMA", bit(efer, EFER_LMA), long),
    ];
    for (what, is, should) in expected {
        if is.is_some_and(|is| is != should) {
            let state = if should { "clear" } else { "set" };
            return Err(fields.error(format!("{what} is {state}, which contradicts {name}")));
        }
    }
    Ok(())
}

fn physical_address_extension(
    fields: &mut Fields,
    controls: Controls,
    processor: Processor,
    pair: &Pair,
) -> Result<Named, SpecError> {
    let pae = Pae::new(controls, processor);
    let mut pdptes = [None; 4];
    for (slot, key) in pdptes.iter_mut().zip(["pdpte0", "pdpte1", "pdpte2", "pdpte3"]) {
        *slot = fields.register(key)?;
    }
    if pdptes.iter().any(Option::is_some) {
        let cr3 = fields.register("cr3")?;
        if fields.root.is_some() || cr3.is_some() {
            return Err(fields.error(
                "the root is given twice, by PDPTE registers and by CR3; give one of them",
            ));
        }
        if pair.is_npt() {
            return Err(fields.error(
                "a PAE guest under NPT has no PDPTE registers (they are read on demand): give cr3=",
            ));
        }
        let registers = pdptes.map(|pdpte| pdpte.unwrap_or(0));
        for (index, &pdpte) in registers.iter().enumerate() {
            let reserved = pae.pdpte_reserved(pdpte);
            if reserved != 0 {
                return Err(fields.error(format!(
                    "pdpte{index} has reserved bits {reserved:#x}; a processor refuses to load it"
                )));
            }
        }
        let format = AnyFormat::Pae(pae, pae::Root::Registers(registers));
        return Ok(Named { format, root: None, load_pdptes: None });
    }
    let root = fields.root("cr3")?;
    if let Root::Table(table) = root
        && table & 0x1f != 0
    {
        return Err(fields.error(format!("the root {table:#x} is not a multiple of 32")));
    }
    fits_32_bits(fields, root)?;
    let cr3 = root.raw();
    let table = cr3 & 0xffff_ffe0;
    Ok(Named {
        format: AnyFormat::Pae(pae, pae::Root::OnDemand(cr3)),
        root: Some((table, 32)),
        load_pdptes: (!pair.is_npt()).then_some(cr3),
    })
}

fn extended(fields: &mut Fields, root_level: u8) -> Result<Named, SpecError> {
    let root = fields.root("eptp")?;
    if vendor(fields, Vendor::Intel)? != Vendor::Intel {
        return Err(fields.error("EPT is Intel's: vendor=amd contradicts it"));
    }
    let physical_bits = fields.count("maxphyaddr", 32..=52)?.unwrap_or(52) as u8;
    page_aligned(fields, root, physical_bits)?;
    let ad = fields.switch("ad")?;
    let raw = root.raw();
    // IA32_VMX_EPT_VPID_CAP bits 0 and 17.
    let execute_only = fields.switch("xonly")?.unwrap_or(true);
    let gigabyte_pages = fields.switch("gigabyte")?.unwrap_or(true);
    let mut features =
        ept::Features { physical_bits, execute_only, gigabyte_pages, ..ept::Features::default() };
    if let Root::Register(eptp) = root {
        check_eptp(fields, eptp, root_level, physical_bits)?;
        features.accessed_dirty = eptp & 1 << 6 != 0;
        features.supervisor_shadow_stack = eptp & 1 << 7 != 0;
        if ad.is_some_and(|ad| ad != features.accessed_dirty) {
            return Err(fields.error("ad= contradicts bit 6 of eptp=; give one of them"));
        }
    } else {
        features.accessed_dirty = ad.unwrap_or(false);
    }
    let ept = if root_level == 3 { Ept::four(features) } else { Ept::five(features) };
    let table = raw & 0x000f_ffff_ffff_f000;
    Ok(Named { format: AnyFormat::Ept(ept, raw), root: Some((table, 4096)), load_pdptes: None })
}

/// What VM entry checks of an EPTP (Intel SDM 3C 28.2.1.1).
fn check_eptp(
    fields: &Fields,
    eptp: u64,
    root_level: u8,
    physical_bits: u8,
) -> Result<(), SpecError> {
    if !matches!(eptp & 7, 0 | 6) {
        return Err(fields.error(format!(
            "eptp: memory type {} (bits 2:0) is neither 0 (UC) nor 6 (WB)",
            eptp & 7
        )));
    }
    if eptp >> 3 & 7 != u64::from(root_level) {
        return Err(fields.error(format!(
            "eptp: bits 5:3 say {} levels, which contradicts {}",
            (eptp >> 3 & 7) + 1,
            fields.format
        )));
    }
    let reserved = eptp & (0xf00 | !0 << physical_bits);
    if reserved != 0 {
        return Err(fields.error(format!("eptp: reserved bits {reserved:#x} are set")));
    }
    Ok(())
}

fn nested(fields: &mut Fields, name: &str, regime: &mut Regime) -> Result<Named, SpecError> {
    let root = fields.root("ncr3")?;
    // KVM marks MMIO in nested tables by bit 51 where that is reserved, and only there. 48 bits are what
    // AMD's processors up to Zen 3 have: with 52 the mark would pass for a mapping.
    let processor = processor(fields, Vendor::Amd, 48)?;
    if processor.vendor != Vendor::Amd {
        return Err(fields.error("NPT is AMD's: vendor=intel contradicts it"));
    }
    let efer = fields.register("efer")?;
    let nxe = execute_disable(fields, efer)?;
    let cr4 = fields.register("cr4")?;
    mode_agrees(fields, name, cr4, efer)?;
    if let Some(hpat) = attribute_table(fields, "hpat")? {
        regime.x86.host_pat = hpat;
    }
    if matches!(name, "npt-32" | "npt-pae") {
        fits_32_bits(fields, root)?;
    }
    within(fields, root.raw(), processor.physical_bits)?;
    let raw = root.raw();
    let alignment = if name == "npt-pae" { 32 } else { 4096 };
    if let Root::Table(table) = root
        && table % alignment != 0
    {
        return Err(fields.error(format!("the root {table:#x} is not a multiple of {alignment}")));
    }
    let npt = match name {
        "npt-32" => Npt::legacy(cr4.is_none_or(|cr4| cr4 & CR4_PSE != 0), processor.physical_bits),
        "npt-pae" => Npt::pae(nxe, processor),
        "npt4" => Npt::four(nxe, processor),
        _ => Npt::five(nxe, processor),
    };
    let table = raw & 0x000f_ffff_ffff_ffff & !(alignment - 1);
    Ok(Named {
        format: AnyFormat::Npt(npt, raw),
        root: Some((table, alignment)),
        load_pdptes: None,
    })
}
