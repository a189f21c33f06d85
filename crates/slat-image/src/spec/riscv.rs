//! RISC-V stages: `satp`, `vsatp`, `hgatp`, and the status bits that decide access rights.

use slat::Regime;
use slat::format::any::AnyFormat;
use slat::format::riscv::{Features, Scheme, Sv, Width, hgatp, satp, vsatp};

use super::{Fields, Named, Root, SpecError};

pub(super) fn stage(fields: &mut Fields, regime: &mut Regime) -> Result<Named, SpecError> {
    let name = fields.format.clone();
    let (scheme, width) = match name.trim_end_matches("x4") {
        "sv32" => (Scheme::Sv32, Width::Rv32),
        "sv39" => (Scheme::Sv39, Width::Rv64),
        "sv48" => (Scheme::Sv48, Width::Rv64),
        _ => (Scheme::Sv57, Width::Rv64),
    };
    let guest = fields.stage == 1;
    let every = Features::default();
    let features = Features {
        hardware_ad: fields.switch("adue")?.unwrap_or(false),
        memory_types: fields.switch("pbmte")?.unwrap_or(every.memory_types),
        ..every
    };
    type Decode = fn(u64, Width) -> Result<slat::format::riscv::Root, slat::register::Refused>;
    let (root, decode): (Root, Decode) = if guest {
        regime.riscv.sum = fields.switch("sum")?.unwrap_or(regime.riscv.sum);
        regime.riscv.mxr = fields.switch("mxr")?.unwrap_or(regime.riscv.mxr);
        regime.riscv.vsmxr = fields.switch("vsmxr")?.unwrap_or(regime.riscv.vsmxr);
        match fields.root_of(&["satp", "vsatp"])? {
            (root, "vsatp") => (root, vsatp),
            (root, _) => (root, satp),
        }
    } else {
        regime.riscv.mxr |= fields.switch("mxr")?.unwrap_or(false);
        (fields.root_of(&["hgatp"])?.0, hgatp)
    };
    let alignment = if guest { 1 << 12 } else { 1 << 14 };
    let table = match root {
        Root::Table(table) if table % alignment != 0 => {
            return Err(
                fields.error(format!("the root {table:#x} is not a multiple of {alignment}"))
            );
        }
        Root::Table(table) => table,
        Root::Register(value) => {
            let decoded = decode(value, width).map_err(|why| fields.error(why.to_string()))?;
            if decoded.scheme == Scheme::Bare {
                let sv = if guest { Sv::stage1 } else { Sv::stage2 };
                let format = AnyFormat::Sv(sv(Scheme::Bare, features), 0);
                return Ok(Named { format, root: None, load_pdptes: None });
            }
            if decoded.scheme != scheme {
                return Err(fields.error(format!(
                    "the register's MODE says {:?}, which contradicts {name}",
                    decoded.scheme
                )));
            }
            decoded.table
        }
    };
    let sv = if guest { Sv::stage1(scheme, features) } else { Sv::stage2(scheme, features) };
    Ok(Named {
        format: AnyFormat::Sv(sv, table),
        root: Some((table, alignment)),
        load_pdptes: None,
    })
}
