//! AArch64 stages: the registers of a regime, or granule and sizes.

use slat::format::any::AnyFormat;
use slat::format::arm64::{self, Granule, Processor, Stage1, Stage2, TranslationRegime};
use slat::format::{Format, Start};
use slat::regime::arm::{State, hcr};
use slat::{Access, Regime};

use super::{Fields, Named, Pair, SpecError};

/// `SCTLR_ELx`: MMU and caches on.
const SCTLR_ON: u64 = 1 << 0 | 1 << 2 | 1 << 12;

pub(super) fn stage(
    fields: &mut Fields,
    pair: &Pair,
    regime: &mut Regime,
) -> Result<Named, SpecError> {
    // Taken by Pair.
    fields.take("hcr");
    if fields.stage == 1 { guest(fields, pair, regime) } else { second(fields, pair, regime) }
}

fn processor(fields: &mut Fields) -> Result<Processor, SpecError> {
    let physical_bits = fields.count("maxphyaddr", 32..=52)?.unwrap_or(52) as u8;
    let mut processor = Processor { physical_bits, ..Processor::default() };
    let Some(lacking) = fields.take("without") else { return Ok(processor) };
    for name in lacking.split('+') {
        match lacked(&mut processor, name) {
            Some(feature) => *feature = false,
            None => {
                return Err(fields.error(format!(
                    "without={name}: write one or more of {}, joined by +",
                    FEATURES.join(", ")
                )));
            }
        }
    }
    Ok(processor)
}

/// The architecture's optional features that decide how tables are read, as `without=` names them
/// (FEAT_LVA, FEAT_LPA2, FEAT_TTST, the two halves of FEAT_HAFDBS, FEAT_XNX, FEAT_E0PD, FEAT_HPDS,
/// FEAT_PAN3).
const FEATURES: [&str; 9] = ["lva", "lpa2", "ttst", "haf", "hd", "xnx", "e0pd", "hpds", "pan3"];

fn lacked<'a>(processor: &'a mut Processor, name: &str) -> Option<&'a mut bool> {
    Some(match name {
        "lva" => &mut processor.large_virtual_addresses,
        "lpa2" => &mut processor.lpa2,
        "ttst" => &mut processor.small_tables,
        "haf" => &mut processor.hardware_access_flag,
        "hd" => &mut processor.hardware_dirty_state,
        "xnx" => &mut processor.execute_never_extension,
        "e0pd" => &mut processor.e0pd,
        "hpds" => &mut processor.hierarchical_disable,
        "pan3" => &mut processor.enhanced_pan,
        _ => return None,
    })
}

fn granule(fields: &mut Fields) -> Result<Option<Granule>, SpecError> {
    match fields.take("granule").as_deref() {
        None => Ok(None),
        Some("4k" | "4K" | "4096") => Ok(Some(Granule::Four)),
        Some("16k" | "16K" | "16384") => Ok(Some(Granule::Sixteen)),
        Some("64k" | "64K" | "65536") => Ok(Some(Granule::SixtyFour)),
        Some(other) => Err(fields.error(format!("granule={other}: write 4k, 16k or 64k"))),
    }
}

/// Refuses shorthands beside the register that holds what they say.
pub(super) fn alone(
    fields: &Fields,
    register: &str,
    shorthands: &[(&str, bool)],
) -> Result<(), SpecError> {
    match shorthands.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((key, _)) => {
            Err(fields.error(format!("{register}= already says {key}=; give one of them")))
        }
    }
}

fn guest(fields: &mut Fields, pair: &Pair, regime: &mut Regime) -> Result<Named, SpecError> {
    let processor = processor(fields)?;
    let sctlr = fields.register("sctlr")?.unwrap_or(SCTLR_ON);
    let hcr = pair.hcr.unwrap_or(0);
    let mair = fields.register("mair")?;
    regime.arm = State { mair, ..State::new(0, hcr) };
    regime.arm.pan = fields.switch("pan")?.unwrap_or(false);
    let which = match (fields.count("el", 1..=2)?.unwrap_or(1), hcr & hcr::E2H != 0) {
        (1, _) => TranslationRegime::El10,
        (_, false) => TranslationRegime::El2,
        (_, true) => TranslationRegime::El20,
    };
    if which != TranslationRegime::El10 {
        pair.allows_el2(fields)?;
    }
    let has_upper = which != TranslationRegime::El2;
    let (ttbr0, ttbr1) = roots(fields, has_upper)?;

    let granule = granule(fields)?;
    let t0sz = fields.count("t0sz", 12..=48)?;
    let updates = fields.switch("ad")?;
    let tcr = match fields.register("tcr")? {
        Some(tcr) => {
            let given = [
                ("granule", granule.is_some()),
                ("t0sz", t0sz.is_some()),
                ("ad", updates.is_some()),
            ];
            alone(fields, "tcr", &given)?;
            tcr
        }
        None => control(
            has_upper,
            granule.unwrap_or(Granule::Four),
            t0sz.unwrap_or(16),
            updates.unwrap_or(false),
        ),
    };
    // A half whose root is not known cannot be walked.
    let unknown = |given: Option<u64>, bit: u32| if given.is_none() { 1u64 << bit } else { 0 };
    let tcr = if has_upper { tcr | unknown(ttbr0, 7) | unknown(ttbr1, 23) } else { tcr };
    let format = Stage1::new(which, tcr, sctlr, hcr, &processor)
        .map_err(|refused| fields.error(refused.to_string()))?;
    let root = arm64::Root { ttbr0: ttbr0.unwrap_or_default(), ttbr1: ttbr1.unwrap_or_default() };
    let address = if ttbr0.is_some() { 0 } else { u64::MAX };
    let table = table_of(&format, &root, address, regime);
    aligned(fields, table)?;
    Ok(Named {
        format: AnyFormat::Arm64(format, root),
        root: table.map(|table| (table, 64)),
        load_pdptes: None,
    })
}

/// `:ROOT` or `ttbr0`, and `ttbr1`: at least one.
pub(super) fn roots(
    fields: &mut Fields,
    has_upper: bool,
) -> Result<(Option<u64>, Option<u64>), SpecError> {
    let ttbr0 = fields.register("ttbr0")?;
    let ttbr1 = if has_upper { fields.register("ttbr1")? } else { None };
    match (fields.root, ttbr0, ttbr1) {
        (Some(_), Some(_), _) => {
            Err(fields.error("the root is given twice, by :ROOT and by ttbr0; give one of them"))
        }
        (None, None, None) => Err(fields.error(format!(
            "no root; write {}:0x..., or a register: ttbr0=0x... or ttbr1=0x...",
            fields.format
        ))),
        (root, ttbr0, ttbr1) => Ok((root.or(ttbr0), ttbr1)),
    }
}

/// The `TCR_ELx` with these sizes for both halves, 48 bits out (52 where the granule has them).
fn control(has_upper: bool, granule: Granule, tsz: u64, updates: bool) -> u64 {
    let (tg0, tg1) = match granule {
        Granule::Four => (0u64, 2u64),
        Granule::Sixteen => (2, 1),
        Granule::SixtyFour => (1, 3),
    };
    let ds = u64::from(granule != Granule::SixtyFour && tsz < 16);
    let size = if granule == Granule::SixtyFour || ds != 0 { 6u64 } else { 5 };
    let updates = if updates { 3u64 } else { 0 };
    if has_upper {
        tsz | tsz << 16 | tg0 << 14 | tg1 << 30 | size << 32 | updates << 39 | ds << 59
    } else {
        tsz | tg0 << 14 | size << 16 | updates << 21 | ds << 32
    }
}

fn second(fields: &mut Fields, pair: &Pair, regime: &mut Regime) -> Result<Named, SpecError> {
    let processor = processor(fields)?;
    let hcr = pair.hcr.unwrap_or(hcr::VM);
    regime.arm = State { mair: regime.arm.mair, ..State::new(0, hcr) };
    let sctlr = fields.register("sctlr")?.unwrap_or(0);
    let granule = granule(fields)?;
    let ipa = fields.count("ipa", 16..=52)?;
    let t0sz = fields.count("t0sz", 12..=48)?;
    let sl0 = fields.count("sl0", 0..=3)?;
    let updates = fields.switch("ad")?;
    let vtcr = match fields.register("vtcr")? {
        Some(vtcr) => {
            let given = [
                ("granule", granule.is_some()),
                ("ipa", ipa.is_some()),
                ("t0sz", t0sz.is_some()),
                ("sl0", sl0.is_some()),
                ("ad", updates.is_some()),
            ];
            alone(fields, "vtcr", &given)?;
            vtcr
        }
        None => {
            if ipa.is_some() && t0sz.is_some() {
                return Err(fields.error("ipa= and t0sz= say the same; give one of them"));
            }
            let ipa = ipa.or(t0sz.map(|t0sz| 64 - t0sz)).unwrap_or(40) as u8;
            let granule = granule.unwrap_or(Granule::Four);
            let mut vtcr = Stage2::control(granule, ipa, &processor);
            if let Some(sl0) = sl0 {
                vtcr = vtcr & !(3 << 6 | 1 << 33) | sl0 << 6;
            }
            if updates == Some(true) { vtcr | 3 << 21 } else { vtcr }
        }
    };
    let format = Stage2::new(vtcr, hcr, sctlr, &processor)
        .map_err(|refused| fields.error(refused.to_string()))?;
    let root = fields.root("vttbr")?.raw();
    let table = table_of(&format, &root, 0, regime);
    aligned(fields, table)?;
    Ok(Named {
        format: AnyFormat::Arm64Stage2(format, root),
        root: table.map(|table| (table, 64)),
        load_pdptes: None,
    })
}

/// The root table that a walk of `address` begins at; `None` where it faults before, or the stage
/// is off.
pub(super) fn table_of<F: Format>(
    format: &F,
    root: &F::Root,
    address: u64,
    regime: &Regime,
) -> Option<u64> {
    match format.begin(root, address, &Access::default(), regime) {
        Ok(Start::Table { table, .. }) => Some(table),
        _ => None,
    }
}

/// Hardware ignores root bits below the table's size; in a bare `:ROOT` they are a mistake.
pub(super) fn aligned(fields: &Fields, table: Option<u64>) -> Result<(), SpecError> {
    match (fields.root, table) {
        (Some(root), Some(table)) if root != table => Err(fields.error(format!(
            "the root {root:#x} is not aligned to its table, which would begin at {table:#x}"
        ))),
        _ => Ok(()),
    }
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
            "arm64:0x1000",
            "arm64,ttbr0=0x1000,ttbr1=0x2000,tcr=0x2b5193519,sctlr=0x30d0199d,mair=0xff",
            "arm64,ttbr1=0x2000,granule=16k,t0sz=17",
            "arm64:0x10000,granule=64k,t0sz=12,ad=on",
            "arm64:0x1000,el=2,granule=4k,t0sz=25",
            "arm64:0x1000,el=2,hcr=0x400000000",
            "arm64,ttbr0=0,sctlr=0",
        ] {
            Setup::parse(Some(stage1), None).unwrap_or_else(|why| panic!("{stage1}: {why}"));
        }
        for stage2 in [
            "arm64-s2:0x454ea000",
            "arm64-s2,vttbr=0x10000454ea000,vtcr=0x80243558,hcr=0x847c263f",
            "arm64-s2:0x10000,granule=64k,ipa=48,maxphyaddr=48",
            "arm64-s2:0x1000,t0sz=32,sl0=1,ad=on,without=xnx+lpa2",
            "arm64-s2,vttbr=0,hcr=0",
        ] {
            Setup::parse(None, Some(stage2)).unwrap_or_else(|why| panic!("{stage2}: {why}"));
        }
    }

    #[test]
    fn mistakes_are_named() {
        assert!(error(Some("arm64"), None).contains("no root"));
        assert!(error(Some("arm64:0x1000,ttbr0=0x1000"), None).contains("twice"));
        assert!(error(Some("arm64:0x1000,granule=8k"), None).contains("4k, 16k or 64k"));
        assert!(error(Some("arm64:0x1000,tcr=0x19,t0sz=25"), None).contains("already says t0sz="));
        assert!(error(Some("arm64:0x1800"), None).contains("not aligned"));
        assert!(error(Some("arm64:0x1000,without=xnx+sve"), None).contains("pan3"));
        assert!(error(Some("arm64:0x1000,tcr=0x1000000080190019"), None).contains("MTX"));
        assert!(error(Some("arm64:0x1000,el=2,ttbr1=0"), None).contains("no key `ttbr1`"));
        assert!(error(Some("arm64:0,el=2"), Some("arm64-s2:0")).contains("no second stage"));
        let hosted = "arm64:0,el=2,hcr=0x400000000";
        assert!(error(Some(hosted), Some("arm64-s2:0")).contains("no second stage"));
        assert!(error(Some("arm64:0,hcr=0x200000000000"), None).contains("NV2"));
        assert!(error(None, Some("arm64-s2:0x1000,ipa=40")).contains("not aligned"));
        assert!(error(None, Some("arm64-s2:0,ipa=40,t0sz=24")).contains("say the same"));
        assert!(error(None, Some("arm64-s2:0,vtcr=0x4080000059")).contains("FEAT_D128"));
        let (one, other) = ("arm64:0,hcr=1", "arm64-s2:0,hcr=3");
        assert!(error(Some(one), Some(other)).contains("contradicts"));
    }
}
