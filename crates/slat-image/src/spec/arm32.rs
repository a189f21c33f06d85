//! AArch32 and ARMv7 stages: short and long descriptors, Hyp mode, stage 2.

use slat::Regime;
use slat::format::any::AnyFormat;
use slat::format::arm32::{Lpae, Processor, Registers, Root, Short, Stage2, Version, sctlr, ttbcr};
use slat::regime::arm::{State, hcr};
use slat::register::Refused;

use super::arm64::{aligned, alone, roots, table_of};
use super::{Fields, Named, Pair, SpecError};

/// `SCTLR`: MMU and caches on.
const SCTLR_ON: u32 = sctlr::M | sctlr::C | sctlr::I;

/// `DACR`: every domain's permissions count.
const CLIENTS: u32 = 0x5555_5555;

pub(super) fn stage(
    fields: &mut Fields,
    pair: &Pair,
    regime: &mut Regime,
) -> Result<Named, SpecError> {
    // Taken by Pair.
    fields.take("hcr");
    let version = match fields.count("version", 7..=8)? {
        Some(7) => Version::V7,
        _ => Version::V8,
    };
    let processor = match version {
        Version::V7 => Processor::V7,
        Version::V8 => Processor::default(),
    };
    if fields.stage == 2 {
        return second(fields, pair, regime, &processor);
    }
    let hcr = pair.hcr.unwrap_or(0);
    let mair = fields.register("mair")?;
    let state = match pair.stage2.as_deref() {
        Some("arm-lpae-s2") => State::under_hyp(0, hcr),
        _ => State::new(0, hcr),
    };
    regime.arm = State { mair, ..state };
    if fields.format == "arm-short" {
        return short(fields, hcr, regime, &processor);
    }
    let httbr = fields.register("httbr")?;
    let level = fields.count("el", 1..=2)?;
    match (httbr, level) {
        (Some(_), Some(1)) => Err(fields.error("httbr= is Hyp mode's root, which is el=2")),
        (Some(_), _) | (None, Some(2)) => {
            pair.allows_el2(fields)?;
            hyp(fields, httbr, regime, &processor)
        }
        _ => lpae(fields, hcr, regime, &processor),
    }
}

/// A 32-bit register.
fn word(fields: &mut Fields, key: &'static str) -> Result<Option<u32>, SpecError> {
    Ok(fields.count(key, 0..=u32::MAX.into())?.map(|value| value as u32))
}

fn refused(fields: &Fields) -> impl Fn(Refused) -> SpecError + '_ {
    |refused| fields.error(refused.to_string())
}

fn short(
    fields: &mut Fields,
    hcr: u64,
    regime: &mut Regime,
    processor: &Processor,
) -> Result<Named, SpecError> {
    regime.arm.pan = fields.switch("pan")?.unwrap_or(false);
    let (ttbr0, ttbr1) = roots(fields, true)?;
    let registers = Registers {
        ttbcr: word(fields, "ttbcr")?.unwrap_or(0)
            | unknown(ttbr0, ttbcr::PD0)
            | unknown(ttbr1, ttbcr::PD1),
        ttbcr2: 0,
        sctlr: word(fields, "sctlr")?.unwrap_or(SCTLR_ON),
        dacr: word(fields, "dacr")?.unwrap_or(CLIENTS),
        hcr,
    };
    let format = Short::new(&registers, processor).map_err(refused(fields))?;
    let root = Root { ttbr0: ttbr0.unwrap_or_default(), ttbr1: ttbr1.unwrap_or_default() };
    let first = if ttbr0.is_some() { 0 } else { u32::MAX.into() };
    let table = table_of(&format, &root, first, regime);
    aligned(fields, table)?;
    let root_table = table.map(|table| (table, 128));
    Ok(Named { format: AnyFormat::ArmShort(format, root), root: root_table, load_pdptes: None })
}

/// A half whose root is not known cannot be walked.
fn unknown(given: Option<u64>, disable: u32) -> u32 {
    if given.is_none() { disable } else { 0 }
}

fn lpae(
    fields: &mut Fields,
    hcr: u64,
    regime: &mut Regime,
    processor: &Processor,
) -> Result<Named, SpecError> {
    regime.arm.pan = fields.switch("pan")?.unwrap_or(false);
    let (ttbr0, ttbr1) = roots(fields, true)?;
    let size = fields.count("t0sz", 0..=7)?;
    let control = match word(fields, "ttbcr")? {
        Some(value) => {
            alone(fields, "ttbcr", &[("t0sz", size.is_some())])?;
            value
        }
        // The upper half is what the lower one leaves.
        None => ttbcr::EAE | size.unwrap_or(0) as u32,
    };
    let registers = Registers {
        ttbcr: control | unknown(ttbr0, ttbcr::EPD0) | unknown(ttbr1, ttbcr::EPD1),
        ttbcr2: word(fields, "ttbcr2")?.unwrap_or(0),
        sctlr: word(fields, "sctlr")?.unwrap_or(SCTLR_ON),
        dacr: 0,
        hcr,
    };
    let format = Lpae::new(&registers, processor).map_err(refused(fields))?;
    let root = Root { ttbr0: ttbr0.unwrap_or_default(), ttbr1: ttbr1.unwrap_or_default() };
    let first = if ttbr0.is_some() { 0 } else { u32::MAX.into() };
    long(fields, format, root, first, regime)
}

fn hyp(
    fields: &mut Fields,
    httbr: Option<u64>,
    regime: &mut Regime,
    processor: &Processor,
) -> Result<Named, SpecError> {
    let root = match (fields.root, httbr) {
        (Some(_), Some(_)) => {
            let twice = "the root is given twice, by :ROOT and by httbr; give one of them";
            return Err(fields.error(twice));
        }
        (Some(root), None) | (None, Some(root)) => root,
        (None, None) => {
            return Err(fields.error("no root; write arm-lpae:0x..., or a register: httbr=0x..."));
        }
    };
    let size = fields.count("t0sz", 0..=7)?;
    let control = match word(fields, "tcr")? {
        Some(value) => {
            alone(fields, "tcr", &[("t0sz", size.is_some())])?;
            value
        }
        None => size.unwrap_or(0) as u32,
    };
    let switches = word(fields, "sctlr")?.unwrap_or(SCTLR_ON);
    let format = Lpae::hyp(control, switches, processor).map_err(refused(fields))?;
    long(fields, format, Root::from(root), 0, regime)
}

fn long(
    fields: &Fields,
    format: Lpae,
    root: Root,
    first: u64,
    regime: &Regime,
) -> Result<Named, SpecError> {
    let table = table_of(&format, &root, first, regime);
    aligned(fields, table)?;
    let root_table = table.map(|table| (table, 32));
    Ok(Named { format: AnyFormat::ArmLpae(format, root), root: root_table, load_pdptes: None })
}

fn second(
    fields: &mut Fields,
    pair: &Pair,
    regime: &mut Regime,
    processor: &Processor,
) -> Result<Named, SpecError> {
    let hcr = pair.hcr.unwrap_or(hcr::VM);
    let lacking = hcr & (hcr::FWB | hcr::DCT);
    if lacking != 0 {
        return Err(fields.error(format!(
            "hcr={hcr:#x}: HCR2 of AArch32 has no FWB and no DCT; clear {lacking:#x}"
        )));
    }
    regime.arm = State { mair: regime.arm.mair, ..State::under_hyp(0, hcr) };
    let switches = word(fields, "sctlr")?.unwrap_or(0);
    let ipa = fields.count("ipa", 25..=40)?;
    let t0sz = fields.count("t0sz", 0..=15)?;
    let sl0 = fields.count("sl0", 0..=3)?;
    let control = match word(fields, "vtcr")? {
        Some(vtcr) => {
            let given = [("ipa", ipa.is_some()), ("t0sz", t0sz.is_some()), ("sl0", sl0.is_some())];
            alone(fields, "vtcr", &given)?;
            vtcr
        }
        None => {
            if ipa.is_some() && t0sz.is_some() {
                return Err(fields.error("ipa= and t0sz= say the same; give one of them"));
            }
            // T0SZ as the register has it: four bits, signed.
            let from_field = |t0sz: u64| if t0sz < 8 { 32 - t0sz } else { 48 - t0sz };
            let vtcr = Stage2::control(ipa.or(t0sz.map(from_field)).unwrap_or(40) as u8);
            sl0.map_or(vtcr, |sl0| vtcr & !(3 << 6) | (sl0 as u32) << 6)
        }
    };
    let format = Stage2::new(control, hcr, switches, processor).map_err(refused(fields))?;
    let root = fields.root("vttbr")?.raw();
    let table = table_of(&format, &root, 0, regime);
    aligned(fields, table)?;
    let format = AnyFormat::ArmLpaeStage2(format, root);
    Ok(Named { format, root: table.map(|table| (table, 32)), load_pdptes: None })
}

#[cfg(test)]
mod tests {
    use crate::spec::Setup;

    fn error(stage1: Option<&str>, stage2: Option<&str>) -> String {
        Setup::parse(stage1, stage2).unwrap_err().to_string()
    }

    #[test]
    fn registers_and_shorthands() {
        for stage1 in [
            "arm-short:0x4000",
            "arm-short,ttbr0=0x406a,ttbr1=0x406a,ttbcr=0,sctlr=0x10c5387d,dacr=0x51,mair=0x40e040e0ff0a81a8",
            "arm-short,ttbr1=0x4000,ttbcr=1,version=7",
            "arm-lpae:0x1000",
            "arm-lpae,ttbr0=0x1000,ttbr1=0x2000,ttbcr=0xb5023500,mair=0xff440c0400",
            "arm-lpae:0x1000,t0sz=2",
            "arm-lpae,httbr=0x1000,tcr=0x80803500,version=7",
            "arm-lpae:0x1000,el=2",
        ] {
            Setup::parse(Some(stage1), None).unwrap_or_else(|why| panic!("{stage1}: {why}"));
        }
        for stage2 in [
            "arm-lpae-s2:0x40802000",
            "arm-lpae-s2,vttbr=0x1000040802000,vtcr=0x80003540,hcr=0x30835,version=7",
            "arm-lpae-s2:0x4000,ipa=32",
            "arm-lpae-s2:0x1000,t0sz=0,sl0=1",
        ] {
            Setup::parse(None, Some(stage2)).unwrap_or_else(|why| panic!("{stage2}: {why}"));
        }
        // An AArch32 guest of an AArch64 hypervisor.
        Setup::parse(Some("arm-short:0x4000"), Some("arm64-s2:0x4000,ipa=32")).unwrap();
    }

    #[test]
    fn mistakes_are_named() {
        assert!(error(Some("arm-short"), None).contains("arm-short:0x..."));
        assert!(error(Some("arm-short:0x5000"), None).contains("not aligned"));
        assert!(error(Some("arm-short:0,ttbcr=0x80000000"), None).contains("long descriptors"));
        assert!(error(Some("arm-lpae:0,ttbcr=0"), None).contains("short descriptors"));
        assert!(error(Some("arm-lpae:0,ttbcr=0x80000000,t0sz=1"), None).contains("already says"));
        assert!(error(Some("arm-lpae:0,httbr=0"), None).contains("twice"));
        assert!(error(Some("arm-lpae,httbr=0,el=1"), None).contains("el=2"));
        assert!(error(Some("arm-lpae,httbr=0,ttbr1=0"), None).contains("no key `ttbr1`"));
        assert!(error(Some("arm-short:0,version=6"), None).contains("out of range"));
        assert!(error(None, Some("arm-lpae-s2:0x1010,ipa=40")).contains("not aligned"));
        assert!(error(None, Some("arm-lpae-s2:0,vtcr=0x10")).contains("sign of T0SZ"));
        assert!(error(Some("arm64:0"), Some("arm-lpae-s2:0")).contains("cannot be"));
        for stage2 in ["arm-lpae-s2:0", "arm64-s2:0,ipa=32"] {
            assert!(error(Some("arm-lpae:0,el=2"), Some(stage2)).contains("no second stage"));
            assert!(error(Some("arm-lpae,httbr=0"), Some(stage2)).contains("no second stage"));
        }
        assert!(error(None, Some("arm-lpae-s2:0,hcr=0x400000000001")).contains("no FWB"));
    }
}
