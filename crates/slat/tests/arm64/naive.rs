//! A walker written the other way round: straight from the manual's pseudocode (DDI 0487, appendix J1),
//! with its level numbers, its one-bit variables and no sharing between the stages. Random machines
//! must see the same translation, attributes, abort and updated entries from both.

use proptest::prelude::*;
use slat::format::arm64::{Processor, Root, Stage1, Stage2, TranslationRegime};
use slat::memory_type::MemoryType;
use slat::regime::arm;
use slat::syndrome::{Field, arm64 as syndrome};
use slat::{
    Access, Failed, Flavor, Gpa, Gva, Kind, Privilege, Regime, Spa, Stage, Updates, translate,
};

use crate::infinite::{Infinite, mix};

const VM: u64 = 1 << 0;
const PTW: u64 = 1 << 2;
const DC: u64 = 1 << 12;
const TGE: u64 = 1 << 27;
const CD: u64 = 1 << 32;
const ID: u64 = 1 << 33;
const E2H: u64 = 1 << 34;
const FWB: u64 = 1 << 46;
const DCT: u64 = 1 << 57;

fn bits(value: u64, high: u32, low: u32) -> u64 {
    (value >> low) & (u64::MAX >> (63 - (high - low)))
}

fn bit(value: u64, index: u32) -> bool {
    bits(value, index, index) == 1
}

#[derive(Clone, Debug)]
struct Machine {
    regime: TranslationRegime,
    processor: Processor,
    tcr: u64,
    sctlr: u64,
    ttbr0: u64,
    ttbr1: u64,
    mair: u64,
    pan: bool,
    hcr: u64,
    vtcr: u64,
    vttbr: u64,
    sctlr_el2: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Code {
    AddressSize,
    Translation,
    AccessFlag,
    Permission,
}

/// What ends a walk: FaultRecord.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Fault {
    code: Code,
    level: i32,
    second: bool,
    s2fs1walk: bool,
    ipa: u64,
    write: bool,
    by: Kinds,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kinds {
    Fetch,
    Load,
    Store,
    /// The walk of stage 1, and its update of an entry.
    Walk,
    Update,
}

#[derive(Clone, Copy, Debug)]
struct Desc {
    kind: Kinds,
    el0: bool,
    /// Reads as well (of a store).
    atomic: bool,
}

/// MemAttrHints: attrs 0b00 NC, 0b10 WT, 0b11 WB.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Hints {
    attrs: u8,
    hints: u8,
    transient: bool,
}

const NC: Hints = Hints { attrs: 0, hints: 0, transient: false };

#[derive(Clone, Copy, Debug, PartialEq)]
struct Attrs {
    device: Option<u8>,
    inner: Hints,
    outer: Hints,
    /// 0b00 NSH, 0b10 OSH, 0b11 ISH.
    sh: u8,
    xs: bool,
    tagged: bool,
}

impl Attrs {
    fn device(kind: u8) -> Attrs {
        Attrs { device: Some(kind), inner: NC, outer: NC, sh: 2, xs: true, tagged: false }
    }

    fn normal(inner: Hints, outer: Hints, sh: u8) -> Attrs {
        let xs = !(inner.attrs == 3 && outer.attrs == 3);
        Attrs { device: None, inner, outer, sh, xs, tagged: false }
    }

    fn normal_nc(xs: bool) -> Attrs {
        Attrs { xs, ..Attrs::normal(NC, NC, 2) }
    }

    fn effective(self) -> Attrs {
        let outer = self.device.is_some() || self.inner.attrs == 0 && self.outer.attrs == 0;
        Attrs { sh: if outer { 2 } else { self.sh }, ..self }
    }
}

fn decode_sh(sh: u64) -> u8 {
    if sh == 1 { 0 } else { sh as u8 }
}

/// DecodeLDFAttr.
fn decode_ldf(attr: u8) -> Hints {
    if attr == 0b0100 {
        return NC;
    }
    let attrs = if attr & 0b0100 == 0 { 0b10 } else { 0b11 };
    let hints = attr & 3;
    Hints { attrs, hints, transient: hints != 0 && attr & 0b1000 == 0 }
}

/// S1DecodeMemAttrs.
fn s1_decode(attr: u8, sh: u8) -> Attrs {
    let ra = Hints { attrs: 2, hints: 2, transient: false };
    let rwa = Hints { attrs: 3, hints: 3, transient: false };
    match attr {
        0b0100_0000 => Attrs { xs: false, ..Attrs::normal(NC, NC, sh) },
        0b1010_0000 => Attrs { xs: false, ..Attrs::normal(ra, ra, sh) },
        0b1111_0000 => Attrs { tagged: true, ..Attrs::normal(rwa, rwa, sh) },
        _ if attr >> 4 == 0 => Attrs { xs: attr & 1 == 0, sh, ..Attrs::device((attr >> 2) & 3) },
        _ => Attrs::normal(decode_ldf(attr & 15), decode_ldf(attr >> 4), sh),
    }
}

/// Address size in bits that an encoded PS gives: AArch64.PhysicalAddressSize.
fn oa_size(m: &Machine, encoded: u64, granule_bits: u32) -> u32 {
    let ps = [32, 36, 40, 42, 44, 48, 52, 56][encoded as usize];
    let pa_max = u32::from(m.processor.physical_bits);
    let most = if granule_bits != 16 && !m.processor.lpa2 { pa_max.min(48) } else { pa_max };
    ps.min(most)
}

fn oa_out_of_range(m: &Machine, address: u64, encoded: u64, granule_bits: u32) -> bool {
    address >> oa_size(m, encoded, granule_bits) != 0
}

/// The parts of a descriptor that both LeafBase and NextTableBase take apart from the low bits.
fn high_address(m: &Machine, descriptor: u64, granule_bits: u32, ds: bool) -> u64 {
    if granule_bits == 16 && m.processor.physical_bits >= 52 {
        bits(descriptor, 15, 12) << 48
    } else if ds {
        bits(descriptor, 9, 8) << 50 | bits(descriptor, 49, 48) << 48
    } else {
        0
    }
}

#[derive(PartialEq)]
enum Type {
    Invalid,
    Table,
    Leaf,
}

fn descriptor_type(m: &Machine, d: u64, ds: bool, granule_bits: u32, level: i32) -> Type {
    if !bit(d, 0) {
        return Type::Invalid;
    }
    if bit(d, 1) {
        return if level == 3 { Type::Leaf } else { Type::Table };
    }
    let block = match granule_bits {
        12 => level == 2 || level == 1 || level == 0 && ds,
        14 => level == 2 || level == 1 && ds,
        _ => level == 2 || level == 1 && m.processor.physical_bits >= 52,
    };
    if block { Type::Leaf } else { Type::Invalid }
}

struct S1Params {
    granule_bits: u32,
    txsz: u64,
    tbi: bool,
    tbid: bool,
    e0pd: bool,
    hpd: bool,
    epd: bool,
    sh: u64,
    ps: u64,
    ha: bool,
    hd: bool,
    ds: bool,
}

impl Machine {
    fn has_el0(&self) -> bool {
        self.regime != TranslationRegime::El2
    }

    fn upper(&self, va: u64) -> bool {
        self.has_el0() && bit(va, 55)
    }

    fn s1_params(&self, va: u64) -> S1Params {
        let t = self.tcr;
        let p = &self.processor;
        let tg0 = [12, 16, 14, 0][bits(t, 15, 14) as usize];
        let (granule_bits, ps, ha, hd, ds, rest) = if !self.has_el0() {
            let rest = (t & 63, bit(t, 20), bit(t, 29), false, bit(t, 24), false, bits(t, 13, 12));
            (tg0, bits(t, 18, 16), bit(t, 21), bit(t, 22), bit(t, 32), rest)
        } else {
            let (granule, rest) = if self.upper(va) {
                let tg1 = [0, 14, 12, 16][bits(t, 31, 30) as usize];
                let txsz = bits(t, 21, 16);
                let (tbi, tbid, e0pd) = (bit(t, 38), bit(t, 52), bit(t, 56));
                (tg1, (txsz, tbi, tbid, e0pd, bit(t, 42), bit(t, 23), bits(t, 29, 28)))
            } else {
                let (tbi, tbid, e0pd) = (bit(t, 37), bit(t, 51), bit(t, 55));
                (tg0, (t & 63, tbi, tbid, e0pd, bit(t, 41), bit(t, 7), bits(t, 13, 12)))
            };
            (granule, bits(t, 34, 32), bit(t, 39), bit(t, 40), bit(t, 59), rest)
        };
        let (txsz, tbi, tbid, e0pd, hpd, epd, sh) = rest;
        S1Params {
            granule_bits,
            txsz,
            tbi,
            tbid: tbid && p.instruction_tags,
            e0pd: e0pd && p.e0pd,
            hpd: hpd && p.hierarchical_disable,
            epd,
            sh,
            ps,
            ha: ha && p.hardware_access_flag,
            hd: hd && p.hardware_dirty_state,
            ds: ds && granule_bits != 16 && p.lpa2,
        }
    }

    fn max_txsz(&self, granule_bits: u32) -> u64 {
        match (self.processor.small_tables, granule_bits) {
            (false, _) => 39,
            (true, 16) => 47,
            (true, _) => 48,
        }
    }

    /// AArch64.S1Translate: the IPA with its attributes.
    fn s1_translate(
        &self,
        memory: &mut Infinite,
        va: u64,
        access: Desc,
    ) -> Result<(u64, Attrs), Fault> {
        let write = access.kind == Kinds::Store && !access.atomic;
        let first = |code, level| Fault {
            code,
            level,
            second: false,
            s2fs1walk: false,
            ipa: 0,
            write,
            by: access.kind,
        };
        let w = self.s1_params(va);
        let fetch = access.kind == Kinds::Fetch;
        let addr_top = if w.tbi && !(w.tbid && fetch) { 55 } else { 63 };
        let enabled = bit(self.sctlr, 0)
            && !(self.regime == TranslationRegime::El10 && self.hcr & (DC | TGE) != 0);
        if !enabled {
            let wb = Hints { attrs: 3, hints: 3, transient: false };
            let attrs = if self.regime == TranslationRegime::El10 && self.hcr & DC != 0 {
                Attrs { tagged: self.hcr & DCT != 0, ..Attrs::normal(wb, wb, 0) }
            } else if fetch && bit(self.sctlr, 12) {
                let wt = Hints { attrs: 2, hints: 2, transient: false };
                Attrs::normal(wt, wt, 2)
            } else if fetch {
                Attrs::normal_nc(true)
            } else {
                Attrs::device(0)
            };
            let pa_max = u32::from(self.processor.physical_bits);
            if bits(va, addr_top, 0) >> pa_max != 0 {
                return Err(first(Code::AddressSize, 0));
            }
            return Ok((bits(va, 55, 0), attrs));
        }
        let min = if w.granule_bits == 16 && self.processor.large_virtual_addresses || w.ds {
            12
        } else {
            16
        };
        if w.txsz < min || w.txsz > self.max_txsz(w.granule_bits) {
            return Err(first(Code::Translation, 0));
        }
        let iasize = 64 - w.txsz as u32;
        let above: Vec<bool> = (iasize..=addr_top).map(|index| bit(va, index)).collect();
        let expected = self.upper(va);
        if above.iter().any(|&b| b != expected) {
            return Err(first(Code::Translation, 0));
        }
        if access.el0 && w.e0pd {
            return Err(first(Code::Translation, 0));
        }
        if self.has_el0() && w.epd {
            return Err(first(Code::Translation, 0));
        }

        // AArch64.S1Walk.
        let stride = w.granule_bits - 3;
        let mut level = 3 - ((iasize - 1 - w.granule_bits) / stride) as i32;
        let ttbr = if self.upper(va) { self.ttbr1 } else { self.ttbr0 };
        let lsb = (3 - level) as u32 * stride + w.granule_bits;
        let mut tsize = iasize - lsb + 3;
        let mut base;
        let wide = w.granule_bits == 16 && self.processor.physical_bits >= 52 && w.ps == 6 || w.ds;
        if wide {
            tsize = tsize.max(6);
            base = bits(ttbr, 5, 2) << 48 | bits(ttbr, 47, 6) << 6;
        } else {
            base = bits(ttbr, 47, 1) << 1;
        }
        base = base >> tsize << tsize;
        let mut address = base | bits(va, iasize - 1, lsb) << 3;
        if oa_out_of_range(self, address, w.ps, w.granule_bits) {
            return Err(first(Code::AddressSize, 0));
        }
        let mut ap_table = 0;
        let mut uxn_table = false;
        let mut pxn_table = false;
        let (descriptor, leaf_base, lsb) = loop {
            let walk = Desc { kind: Kinds::Walk, ..access };
            let at = self.through_s2(memory, address, walk)?;
            let descriptor = self.fetch(memory, at, bit(self.sctlr, 25));
            let lsb = (3 - level) as u32 * stride + w.granule_bits;
            match descriptor_type(self, descriptor, w.ds, w.granule_bits, level) {
                Type::Invalid => return Err(first(Code::Translation, level)),
                Type::Table => {
                    let low = bits(descriptor, 47, w.granule_bits) << w.granule_bits;
                    base = low | high_address(self, descriptor, w.granule_bits, w.ds);
                    if !w.hpd {
                        ap_table |= bits(descriptor, 62, 61);
                        uxn_table |= bit(descriptor, 60);
                        pxn_table |= bit(descriptor, 59);
                    }
                    let next = bits(va, lsb - 1, lsb - stride);
                    address = base | next << 3;
                    if oa_out_of_range(self, address, w.ps, w.granule_bits) {
                        return Err(first(Code::AddressSize, level));
                    }
                    level += 1;
                }
                Type::Leaf => {
                    let low = bits(descriptor, 47, lsb) << lsb;
                    let leaf = low | high_address(self, descriptor, w.granule_bits, w.ds);
                    break (descriptor, leaf, lsb);
                }
            }
        };
        if oa_out_of_range(self, leaf_base, w.ps, w.granule_bits) {
            return Err(first(Code::AddressSize, level));
        }
        if !bit(descriptor, 10) && !w.ha {
            return Err(first(Code::AccessFlag, level));
        }

        // AArch64.S1DirectBasePermissions, AArch64.S1CheckPermissions.
        let mut ap = bits(descriptor, 7, 6);
        if w.ha && w.hd && bit(descriptor, 51) {
            ap &= 1;
        }
        let wxn = bit(self.sctlr, 19);
        let (r, write, mut x);
        if self.has_el0() {
            let (mut pr, mut pw, mut ur, mut uw) = match ap {
                0 => (true, true, false, false),
                1 => (true, true, true, true),
                2 => (true, false, false, false),
                _ => (true, false, true, false),
            };
            if ap_table & 1 != 0 {
                (ur, uw) = (false, false);
            }
            if ap_table & 2 != 0 {
                (pw, uw) = (false, false);
            }
            let px = !(bit(descriptor, 53) || pxn_table || uw);
            let ux = !(bit(descriptor, 54) || uxn_table);
            if !fetch && self.pan {
                let epan = bit(self.sctlr, 57) && self.processor.enhanced_pan;
                let pan = ur || uw || epan && ux;
                (pr, pw) = (pr && !pan, pw && !pan);
            }
            (r, write, x) = if access.el0 { (ur, uw, ux) } else { (pr, pw, px) };
        } else {
            r = true;
            write = ap & 2 == 0 && ap_table & 2 == 0;
            x = !(bit(descriptor, 54) || uxn_table);
        }
        x = x && !(wxn && write);
        let allowed = match access.kind {
            Kinds::Fetch => x,
            Kinds::Store => write && (r || !access.atomic),
            _ => r,
        };
        if !allowed {
            let write = access.kind == Kinds::Store && (r || !access.atomic);
            return Err(Fault { write, ..first(Code::Permission, level) });
        }
        let mut new = descriptor;
        if w.ha {
            new |= 1 << 10;
        }
        if w.ha && w.hd && bit(descriptor, 51) && access.kind == Kinds::Store {
            new &= !(1 << 7);
        }
        if new != descriptor {
            let update = Desc { kind: Kinds::Update, ..access };
            let at = self.through_s2(memory, address, update)?;
            self.swap(memory, at, descriptor, new, bit(self.sctlr, 25));
        }
        let oa = leaf_base | bits(va, lsb - 1, 0);
        let sh = decode_sh(if w.ds { w.sh } else { bits(descriptor, 9, 8) });
        let index = bits(descriptor, 4, 2) as u32;
        let attrs = s1_decode((self.mair >> (8 * index)) as u8, sh);
        let uncached = if fetch {
            attrs.device.is_some() || !bit(self.sctlr, 12)
        } else {
            attrs.device.is_none() && !bit(self.sctlr, 2)
        };
        Ok((oa, if uncached { Attrs::normal_nc(attrs.xs) } else { attrs }))
    }

    fn fetch(&self, memory: &mut Infinite, at: u64, big: bool) -> u64 {
        let value = memory.get(at);
        if big { value.swap_bytes() } else { value }
    }

    fn swap(&self, memory: &mut Infinite, at: u64, current: u64, new: u64, big: bool) {
        let order = |value: u64| if big { value.swap_bytes() } else { value };
        assert!(memory.swap(at, order(current), order(new)));
    }

    fn through_s2(&self, memory: &mut Infinite, ipa: u64, access: Desc) -> Result<u64, Fault> {
        let walk = Attrs::normal_nc(true);
        Ok(self.s2_translate(memory, ipa, walk, access)?.0)
    }

    fn s2_enabled(&self) -> bool {
        self.hcr & (VM | DC) != 0
            && self.hcr & (E2H | TGE) != E2H | TGE
            && self.regime == TranslationRegime::El10
    }

    /// AArch64.S2Translate: the PA with the attributes of both stages.
    fn s2_translate(
        &self,
        memory: &mut Infinite,
        ipa: u64,
        s1: Attrs,
        access: Desc,
    ) -> Result<(u64, Attrs), Fault> {
        if !self.s2_enabled() {
            return Ok((ipa, s1.effective()));
        }
        let s2fs1walk = matches!(access.kind, Kinds::Walk | Kinds::Update);
        let write = access.kind == Kinds::Store && !access.atomic;
        let fault = |code, level| Fault {
            code,
            level,
            second: true,
            s2fs1walk,
            ipa,
            write,
            by: access.kind,
        };
        let v = self.vtcr;
        let granule_bits = [12u32, 16, 14, 0][bits(v, 15, 14) as usize];
        let stride = granule_bits - 3;
        let txsz = v & 63;
        let ps = bits(v, 18, 16);
        let ds = bit(v, 32) && granule_bits != 16 && self.processor.lpa2;
        let sl0 = bits(v, 7, 6);
        let sl2 = u64::from(bit(v, 33) && ds && granule_bits == 12);
        let ha = bit(v, 21) && self.processor.hardware_access_flag;
        let hd = bit(v, 22) && self.processor.hardware_dirty_state;
        let pa_max = u64::from(self.processor.physical_bits);
        let ips = if granule_bits != 16 && !ds { pa_max.min(48) } else { pa_max };
        if txsz < 64 - ips || txsz > self.max_txsz(granule_bits) {
            return Err(fault(Code::Translation, 0));
        }
        let (start, invalid) = match (granule_bits, sl2, sl0) {
            (12, 0, 0) => (2, false),
            (12, 0, 1) => (1, false),
            (12, 0, 2) => (0, pa_max < 44),
            (12, 0, _) => (3, !self.processor.small_tables),
            (12, _, 0) => (-1, false),
            (12, ..) => (0, true),
            (14, _, 0) => (3, false),
            (14, _, 1) => (2, false),
            (14, _, 2) => (1, pa_max < 42),
            (14, ..) => (0, !ds),
            (_, _, 0) => (3, false),
            (_, _, 1) => (2, false),
            (_, _, 2) => (1, pa_max < 44),
            _ => (0, true),
        };
        let iasize = 64 - txsz as u32;
        let sl_min = (3 - start) as u32 * stride + granule_bits + 1;
        let sl_max = sl_min + (stride - 1) + 4;
        if invalid || iasize < sl_min || iasize > sl_max {
            return Err(fault(Code::Translation, 0));
        }
        if ipa >> iasize != 0 {
            return Err(fault(Code::Translation, 0));
        }
        // AArch64.S2Walk.
        let mut level: i32 = start;
        let lsb = (3 - level) as u32 * stride + granule_bits;
        let mut tsize = iasize - lsb + 3;
        let mut base;
        if granule_bits == 16 && pa_max >= 52 && ps == 6 || ds {
            tsize = tsize.max(6);
            base = bits(self.vttbr, 5, 2) << 48 | bits(self.vttbr, 47, 6) << 6;
        } else {
            base = bits(self.vttbr, 47, 1) << 1;
        }
        base = base >> tsize << tsize;
        let mut address = base | bits(ipa, iasize - 1, lsb) << 3;
        if oa_out_of_range(self, address, ps, granule_bits) {
            return Err(fault(Code::AddressSize, 0));
        }
        let (descriptor, leaf_base, lsb) = loop {
            let descriptor = self.fetch(memory, address, bit(self.sctlr_el2, 25));
            let lsb = (3 - level) as u32 * stride + granule_bits;
            match descriptor_type(self, descriptor, ds, granule_bits, level) {
                Type::Invalid => return Err(fault(Code::Translation, level)),
                Type::Table => {
                    let low = bits(descriptor, 47, granule_bits) << granule_bits;
                    base = low | high_address(self, descriptor, granule_bits, ds);
                    address = base | bits(ipa, lsb - 1, lsb - stride) << 3;
                    if oa_out_of_range(self, address, ps, granule_bits) {
                        return Err(fault(Code::AddressSize, level));
                    }
                    level += 1;
                }
                Type::Leaf => {
                    let low = bits(descriptor, 47, lsb) << lsb;
                    let leaf = low | high_address(self, descriptor, granule_bits, ds);
                    break (descriptor, leaf, lsb);
                }
            }
        };
        if oa_out_of_range(self, leaf_base, ps, granule_bits) {
            return Err(fault(Code::AddressSize, level));
        }
        if !bit(descriptor, 10) && !ha {
            return Err(fault(Code::AccessFlag, level));
        }
        let fwb = self.hcr & FWB != 0;
        let mem_attr = bits(descriptor, 5, 2) as u8;
        let device = if fwb { mem_attr & 4 == 0 } else { mem_attr & 12 == 0 };
        let r = bit(descriptor, 6);
        let w = bit(descriptor, 7) || ha && hd && bit(descriptor, 51);
        let xnx = bit(descriptor, 53) && self.processor.execute_never_extension;
        let (px, ux) = match (bit(descriptor, 54), xnx) {
            (false, false) => (true, true),
            (false, true) => (false, true),
            (true, false) => (false, false),
            (true, true) => (true, false),
        };
        let ptw = self.hcr & PTW != 0 && self.hcr & TGE == 0;
        let denied = match access.kind {
            Kinds::Walk => ptw && device || !r,
            Kinds::Update => ptw && device || !r || !w,
            Kinds::Fetch => !(if access.el0 { ux } else { px }),
            Kinds::Load => !r,
            Kinds::Store => !w || access.atomic && !r,
        };
        if denied {
            let write = access.kind == Kinds::Store && (r || !access.atomic);
            return Err(Fault { write, ..fault(Code::Permission, level) });
        }
        let writes = matches!(access.kind, Kinds::Store | Kinds::Update);
        let mut new = descriptor;
        if ha {
            new |= 1 << 10;
        }
        if ha && hd && bit(descriptor, 51) && writes {
            new |= 1 << 7;
        }
        if new != descriptor {
            self.swap(memory, address, descriptor, new, bit(self.sctlr_el2, 25));
        }
        let oa = leaf_base | bits(ipa, lsb - 1, 0);

        let sh = decode_sh(if ds { bits(v, 13, 12) } else { bits(descriptor, 9, 8) });
        let fnxs = bit(descriptor, 11);
        let fetch = access.kind == Kinds::Fetch;
        let cache_off = self.hcr & if fetch { ID } else { CD } != 0;
        let wider = |a: u8, b: u8| match (a, b) {
            (2, _) | (_, 2) => 2,
            (3, _) | (_, 3) => 3,
            _ => 0,
        };
        let attrs = if fwb {
            let mut attrs = self.s2_apply_fwb(s1, mem_attr, wider(s1.sh, sh), fnxs);
            let fetch_device = fetch && attrs.device.is_some();
            if fetch_device || cache_off && attrs.device.is_none() {
                attrs = Attrs::normal_nc(attrs.xs);
            }
            attrs
        } else {
            let cache = |encoding: u8| match encoding & 3 {
                2 => Hints { attrs: 2, ..NC },
                3 => Hints { attrs: 3, ..NC },
                _ => NC,
            };
            let mut s2 = if device {
                Attrs::device(mem_attr & 3)
            } else {
                Attrs::normal(cache(mem_attr), cache(mem_attr >> 2), sh)
            };
            s2.xs = !fnxs;
            if fetch && device || cache_off && !device {
                s2 = Attrs::normal_nc(s2.xs);
            }
            self.combine(s1, s2, wider(s1.sh, sh))
        };
        Ok((oa, attrs.effective()))
    }

    /// S2MemTagType.
    fn tagged(&self, attrs: &Attrs, s1: &Attrs) -> bool {
        let rwa = Hints { attrs: 3, hints: 3, transient: false };
        s1.tagged && attrs.device.is_none() && attrs.inner == rwa && attrs.outer == rwa
    }

    /// AArch64.S2ApplyFWBMemAttrs.
    fn s2_apply_fwb(&self, s1: Attrs, mem_attr: u8, sh: u8, fnxs: bool) -> Attrs {
        let mut attrs = if mem_attr & 4 == 0 {
            let own = mem_attr & 3;
            let kind = s1.device.map_or(own, |first| first.min(own));
            Attrs { xs: s1.xs, ..Attrs::device(kind) }
        } else if mem_attr & 3 == 3 {
            s1
        } else if mem_attr & 3 == 2 {
            let force = |cache: Hints| {
                if s1.device.is_none() && cache.attrs != 0 {
                    Hints { attrs: 3, ..cache }
                } else {
                    Hints { attrs: 3, hints: 3, transient: false }
                }
            };
            Attrs { xs: false, ..Attrs::normal(force(s1.inner), force(s1.outer), 0) }
        } else if s1.device.is_some() {
            s1
        } else {
            Attrs { xs: s1.xs, ..Attrs::normal(NC, NC, 0) }
        };
        attrs.sh = sh;
        attrs.tagged = self.tagged(&attrs, &s1);
        attrs.xs &= !fnxs;
        attrs
    }

    /// S2CombineS1MemAttrs.
    fn combine(&self, s1: Attrs, s2: Attrs, sh: u8) -> Attrs {
        let hints = |first: Hints, second: Hints| {
            if first.attrs == 0 || second.attrs == 0 {
                NC
            } else {
                Hints { attrs: first.attrs.min(second.attrs), ..first }
            }
        };
        let mut attrs = match (s1.device, s2.device) {
            (Some(first), Some(second)) => Attrs::device(first.min(second)),
            (Some(first), None) => Attrs::device(first),
            (None, Some(second)) => Attrs::device(second),
            (None, None) => Attrs::normal(hints(s1.inner, s2.inner), hints(s1.outer, s2.outer), 0),
        };
        attrs.sh = sh;
        attrs.tagged = self.tagged(&attrs, &s1);
        let wb = attrs.device.is_none() && attrs.inner.attrs == 3 && attrs.outer.attrs == 3;
        attrs.xs = !wb && s1.xs && s2.xs;
        attrs
    }
}

/// EncodePARAttrs.
fn encode(attrs: &Attrs) -> u64 {
    if attrs.tagged {
        return 0xf0;
    }
    if let Some(device) = attrs.device {
        return u64::from(device) << 2 | u64::from(!attrs.xs);
    }
    let (outer, inner) = (attrs.outer, attrs.inner);
    if !attrs.xs && outer.attrs == 2 && inner.attrs == 2 && !outer.transient && outer.hints == 2 {
        return 0xa0;
    }
    if !attrs.xs && outer.attrs == 0 && inner.attrs == 0 {
        return 0x40;
    }
    let nibble = |cache: Hints| match cache.attrs {
        0 => 4,
        2 => u64::from(!cache.transient) << 3 | u64::from(cache.hints),
        _ => 4 | u64::from(!cache.transient) << 3 | u64::from(cache.hints),
    };
    nibble(outer) << 4 | nibble(inner)
}

/// EncodeLDFSC.
fn fsc(fault: &Fault) -> u64 {
    let level = fault.level as u64 & 3;
    match (fault.code, fault.level) {
        (Code::AddressSize, -1) => 0b101001,
        (Code::Translation, -1) => 0b101011,
        (Code::AddressSize, _) => level,
        (Code::Translation, _) => 0b000100 | level,
        (Code::AccessFlag, _) => 0b001000 | level,
        (Code::Permission, _) => 0b001100 | level,
    }
}

/// Draws numbers for one machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = mix(self.0);
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    fn rarely(&mut self) -> bool {
        self.below(8) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

fn machine(dice: &mut Dice) -> Machine {
    let processor = Processor {
        physical_bits: dice.pick(&[32, 36, 40, 42, 44, 48, 48, 52, 52]),
        large_virtual_addresses: !dice.rarely(),
        lpa2: !dice.rarely(),
        small_tables: !dice.rarely(),
        hardware_access_flag: !dice.rarely(),
        hardware_dirty_state: !dice.rarely(),
        execute_never_extension: !dice.rarely(),
        e0pd: !dice.rarely(),
        hierarchical_disable: !dice.rarely(),
        enhanced_pan: !dice.rarely(),
        instruction_tags: !dice.rarely(),
        bbm_level: 0,
    };
    let regime = dice.pick(&[
        TranslationRegime::El10,
        TranslationRegime::El10,
        TranslationRegime::El10,
        TranslationRegime::El2,
        TranslationRegime::El20,
    ]);
    let flags = |dice: &mut Dice, of: &[u32]| -> u64 {
        of.iter().filter(|_| dice.rarely()).fold(0, |value, bit| value | 1 << bit)
    };
    let tsz = |dice: &mut Dice| match dice.below(8) {
        0 | 1 => dice.pick(&[12, 15, 16, 24, 25]),
        2 => dice.below(64),
        _ => 12 + dice.below(37),
    };
    let (t0sz, t1sz) = (tsz(dice), tsz(dice));
    let ps = if dice.rarely() { dice.below(8) } else { dice.pick(&[5, 6, 6]) };
    let tcr = if regime == TranslationRegime::El2 {
        t0sz | dice.below(3) << 14
            | ps << 16
            | dice.below(4) << 12
            | flags(dice, &[20, 24, 29])
            | dice.below(4) << 21
            | dice.below(2) << 32
    } else {
        t0sz | t1sz << 16
            | dice.below(3) << 14
            | (1 + dice.below(3)) << 30
            | ps << 32
            | dice.below(4) << 12
            | dice.below(4) << 28
            | flags(dice, &[37, 38, 41, 42, 51, 52, 55, 56])
            | if dice.rarely() { flags(dice, &[7, 23]) } else { 0 }
            | dice.below(4) << 39
            | dice.below(2) << 59
    };
    let sctlr_on = u64::from(!(dice.rarely() && dice.rarely()));
    let sctlr =
        |dice: &mut Dice| flags(dice, &[19, 25, 57]) | dice.below(2) << 2 | dice.below(2) << 12;
    let sctlr_el1 = sctlr(dice) | sctlr_on;
    let sctlr_el2 = flags(dice, &[25]);
    let hcr = match regime {
        TranslationRegime::El10 => {
            let vm = u64::from(!dice.rarely());
            vm | flags(dice, &[32, 33, 34])
                | if dice.rarely() { flags(dice, &[12, 27, 57]) } else { 0 }
                | dice.below(2) << 2
                | dice.below(2) << 46
        }
        TranslationRegime::El2 => 0,
        TranslationRegime::El20 => E2H,
    };
    let vtcr = match dice.below(4) {
        0 => {
            let sizes = dice.below(64) | dice.below(4) << 6 | dice.below(3) << 14;
            sizes | dice.below(7) << 16 | dice.below(2) << 32 | dice.below(2) << 33
        }
        _ => {
            use slat::format::arm64::Granule;
            let granule = dice.pick(&[Granule::Four, Granule::Sixteen, Granule::SixtyFour]);
            let bits = 30 + dice.below(u64::from(processor.physical_bits) - 29) as u8;
            Stage2::control(granule, bits, &processor)
        }
    } | dice.below(4) << 21
        | dice.below(4) << 12;
    Machine {
        regime,
        processor,
        tcr,
        sctlr: sctlr_el1,
        ttbr0: dice.roll() & 0x3fff_ffff_ffff,
        ttbr1: dice.roll() & 0x3fff_ffff_ffff,
        mair: dice.roll() & if dice.rarely() { !0 } else { 0xff0c_f044_ff00_ffff },
        pan: dice.below(2) == 0,
        hcr,
        vtcr,
        vttbr: dice.roll() & 0x3fff_ffff_ffff,
        sctlr_el2,
    }
}

/// `Ok` with output and attribute encodings, or the abort's fault.
/// Output, attributes and shareability; or which stage faults, whether on a table of stage 1, the
/// status code, the IPA, and the rest of `ESR_ELx` with the bits of it that are defined.
type Seen = Result<(u64, u64, u8), (bool, bool, u64, u64, [u64; 2])>;

fn compare(seed: u64) -> (Seen, bool) {
    let mut dice = Dice(seed);
    let mut machine = machine(&mut dice);
    let widest = u32::from(machine.processor.physical_bits);
    let address_bits = dice.pick(&[28, 30, 30, 32, 36, widest]);
    let roots = (1u64 << address_bits.min(46)) - 1;
    if !dice.rarely() {
        machine.ttbr0 &= roots & !0x3f;
        machine.ttbr1 &= roots & !0x3f;
        machine.vttbr &= roots & !0x3f;
    }
    // Mostly an address in one of the halves, tagged or not.
    let lower = dice.roll() >> bits(machine.tcr, 5, 0).clamp(12, 48);
    let upper = !(dice.roll() >> bits(machine.tcr, 21, 16).clamp(12, 48));
    let va = match dice.below(32) {
        0 => dice.roll(),
        1 => dice.roll() >> dice.below(64),
        2 | 3 => bits(lower, 55, 0) | dice.roll() << 56,
        4 | 5 => bits(upper, 55, 0) | dice.roll() << 56,
        6..22 => lower,
        _ if machine.has_el0() => upper,
        _ => lower,
    };
    let kind = dice.pick(&[Kind::Read, Kind::Write, Kind::Execute]);
    let privilege = dice.pick(&[Privilege::Supervisor, Privilege::User]);
    let mut access = Access::new(kind, privilege);
    if kind != Kind::Execute && dice.rarely() {
        access = access.with_flavor(Flavor::Unprivileged);
    } else if kind == Kind::Write && dice.below(3) == 0 {
        access = access.with_flavor(Flavor::Atomic);
    }
    let memory = Infinite::new(dice.roll(), address_bits);

    let mut ours = memory.clone();
    let regime = Regime {
        arm: arm::State { pan: machine.pan, ..arm::State::new(machine.mair, machine.hcr) },
        ..Regime::default()
    };
    let stage1 =
        Stage1::new(machine.regime, machine.tcr, machine.sctlr, machine.hcr, &machine.processor)
            .unwrap();
    let s2_hcr = if machine.regime == TranslationRegime::El10 { machine.hcr } else { 0 };
    let stage2 = Stage2::new(machine.vtcr, s2_hcr, machine.sctlr_el2, &machine.processor).unwrap();
    let root = Root { ttbr0: machine.ttbr0, ttbr1: machine.ttbr1 };
    let outcome = translate(
        &Stage::<_, Gva, Gpa>::new(stage1, root).with_updates(Updates::OnSuccess),
        &Stage::<_, Gpa, Spa>::new(stage2, machine.vttbr).with_updates(Updates::OnSuccess),
        &mut ours,
        Gva::new(va),
        &access,
        &regime,
        &(),
    );
    assert!(ours.reads <= 64, "{} reads", ours.reads);
    let seen: Seen = match &outcome {
        Ok(found) => {
            let memory_type = found.memory_type(&stage1, &stage2, &regime);
            let MemoryType::Arm(attributes) = memory_type else { panic!("{memory_type:?}") };
            let sh = attributes.shareability.encoding();
            Ok((found.output().raw(), attributes.encoding().into(), sh))
        }
        Err(failed) => {
            let abort = syndrome::abort(failed, &access).unwrap();
            let second = matches!(failed, Failed::Below(_));
            let esr = abort.esr.value;
            let ipa = match abort.hpfar {
                Field::Defined(hpfar) => hpfar << 8,
                _ => 0,
            };
            let rest = [esr & !(1 << 7 | 63), abort.esr.defined];
            Err((second, bit(esr, 7), esr & 63, ipa, rest))
        }
    };

    let mut theirs = memory;
    // EL0 in a regime without it is that regime's only level.
    let el0 = machine.has_el0()
        && (privilege == Privilege::User || access.flavor == Flavor::Unprivileged);
    let kind = match kind {
        Kind::Read => Kinds::Load,
        Kind::Write => Kinds::Store,
        Kind::Execute => Kinds::Fetch,
    };
    let atomic = access.flavor == Flavor::Atomic;
    let desc = Desc { kind, el0, atomic };
    let expected = machine.s1_translate(&mut theirs, va, desc).and_then(|(ipa, attrs)| {
        let (pa, attrs) = machine.s2_translate(&mut theirs, ipa, attrs, desc)?;
        Ok((pa, encode(&attrs), attrs.sh))
    });
    let expected: Seen = expected.map_err(|fault| {
        let known = fault.second && (fault.code != Code::Permission || fault.s2fs1walk);
        let ipa = if known { fault.ipa >> 12 << 12 } else { 0 };
        // Of a walk's own read or update the instruction's kind is reported, and of an atomic's
        // update it is open.
        let write = if fault.s2fs1walk { kind == Kinds::Store && !atomic } else { fault.write };
        let class = if kind == Kinds::Fetch { 0x20 } else { 0x24 };
        let same_level = !fault.second && privilege == Privilege::Supervisor;
        let esr = (class + u64::from(same_level)) << 26 | 1 << 25 | u64::from(write) << 6;
        let open = match fault.by {
            Kinds::Update if atomic => 1 << 6,
            Kinds::Load | Kinds::Store if fault.second => 0x7ff << 14,
            _ => 0,
        };
        (fault.second, fault.s2fs1walk, fsc(&fault), ipa, [esr, !open])
    });
    assert_eq!(seen, expected, "seed {seed:#x}: {va:#x} {access:?} {machine:#x?}");
    assert_eq!(ours.stored, theirs.stored, "seed {seed:#x}: {va:#x} {access:?} {machine:#x?}");
    (seen, !ours.stored.is_empty())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100_000) })]

    #[test]
    fn random_machines(seed: u64) {
        let _ = compare(seed);
    }
}

/// The random machines reach what they are meant to reach.
#[test]
fn random_machines_reach_every_kind_of_end() {
    let mut ends = std::collections::BTreeMap::new();
    let mut updates = 0;
    for seed in 0..100_000u64 {
        let (seen, updated) = compare(mix(seed));
        updates += u32::from(updated);
        let end = match seen {
            Ok(_) => (false, false, 64),
            Err((second, s1ptw, code, ..)) => (second, s1ptw, code),
        };
        *ends.entry(end).or_insert(0) += 1;
    }
    assert!(ends[&(false, false, 64)] > 10_000, "{ends:?}");
    assert!(updates > 1_000, "{updates}");
    for code in [0b000000, 0b000100, 0b000101, 0b000111, 0b001011, 0b001111] {
        for end in [(false, false, code), (true, true, code)] {
            assert!(ends.contains_key(&end), "{end:?} of {ends:?}");
        }
    }
    for end in [(true, false, 0b001111), (true, false, 0b000111), (false, false, 0b101011)] {
        assert!(ends.contains_key(&end), "{end:?} of {ends:?}");
    }
}
