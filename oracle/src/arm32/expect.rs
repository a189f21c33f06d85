//! What the walker says of a 32-bit Arm probe.

use slat::format::Format;
use slat::format::arm32::{Lpae, Registers, Root, Short, Stage2};
use slat::regime::arm::State;
use slat::syndrome::arm32::{self as syndrome, Abort};
use slat::syndrome::arm64::{self as par, Masked};
use slat::{
    Access, Cause, Denied, Failed, Fault, Gpa, Gva, Kind, MemoryType, Purpose, Regime, Spa, Stage,
    TwoStageFailure, translate,
};

use super::layout::{self, is_long};
use super::{Arm32, IN_IFSR, defined};
use crate::arm::{self, Asked, Guest, Return, UNUSABLE};
use crate::contract::STATE;
use crate::lenient::{DOMAIN_FIRST, Lenient};
use crate::probe::{Expectation, Outcome, Probe, Watcher};
use crate::world::{NoRam, World};

struct Machine<'a> {
    subject: &'a Arm32,
    state: &'a [u64; STATE],
}

impl Guest for Machine<'_> {
    const STUB: u64 = layout::STUB;
    const BYTES: u64 = 4;

    fn tag(address: u64) -> u64 {
        layout::tag(address)
    }

    fn access(
        &self,
        world: &mut World,
        watcher: &Watcher,
        address: u64,
        asked: Asked,
    ) -> Result<(u64, u64), Outcome> {
        let s = self.state;
        let processor = &self.subject.features.processor;
        let short = |name| !is_long(s) && self.subject.deviates(name);
        // WXN and UWXN.
        let unread = if short("wxn-ignored-for-short") { 3 << 19 } else { 0 };
        let registers = Registers {
            ttbcr: s[4] as u32,
            ttbcr2: s[14] as u32,
            sctlr: s[3] as u32 & !unread,
            dacr: s[13] as u32,
            hcr: s[10],
        };
        let root = Root { ttbr0: s[5], ttbr1: s[6] };
        if is_long(s) {
            let format = Lpae::new(&registers, processor).map_err(|_| Outcome::REGISTERS)?;
            self.under(format, root, world, watcher, address, asked)
        } else {
            let format = Short::new(&registers, processor).map_err(|_| Outcome::REGISTERS)?;
            self.under(format, root, world, watcher, address, asked)
        }
    }

    fn vector(&self, kind: Kind, _: bool) -> u64 {
        self.state[12] + if kind == Kind::Execute { 0xC } else { 0x10 }
    }
}

impl Machine<'_> {
    fn under<F: Format<Root = Root>>(
        &self,
        format: F,
        root: Root,
        world: &mut World,
        watcher: &Watcher,
        address: u64,
        asked: Asked,
    ) -> Result<(u64, u64), Outcome> {
        let s = self.state;
        let processor = &self.subject.features.processor;
        let format2 =
            Stage2::new(s[9] as u32, s[10], 0, processor).map_err(|_| Outcome::REGISTERS)?;
        let mut regime = Regime { arm: State::new(s[7], s[10]), ..Regime::default() };
        regime.arm.pan = s[11] & 1 << 22 != 0 && !asked.at;
        let whole_address = self.subject.deviates("whole-block-address-checked");
        let whole1 = whole_address && is_long(s);
        let short = |name| (!is_long(s) && self.subject.deviates(name)).then_some(s[13] as u32);
        let lenient1 = Lenient {
            whole_address: whole1,
            domains: short("domain-checked-first"),
            managers: short("manager-needs-no-access-flag"),
            never_before_flag: short("execute-never-before-access-flag").is_some(),
            pan_fetches: self.subject.deviates("pan-forbids-fetches"),
            ..Lenient::exact(format)
        };
        let unread_execution =
            self.subject.deviates("xnx-executes-unreadable") && processor.execute_never_extension;
        let lenient2 = Lenient { whole_address, unread_execution, ..Lenient::exact(format2) };
        let stage1 = Stage::<_, Gva, Gpa>::new(lenient1, root);
        let stage2 = Stage::<_, Gpa, Spa>::new(lenient2, s[8]);
        let access = Access::new(asked.kind, asked.privilege);
        let address = Gva::new(address);
        let found = translate(&stage1, &stage2, world, address, &access, &regime, watcher);
        match found {
            Ok(found) => {
                let spa = found.output().raw();
                if !asked.at {
                    return Ok((spa, 0));
                }
                // MemAttr[1:0] of normal memory has a reserved encoding.
                let attributes2 = found.stage2.found.entry >> 2 & 15;
                if attributes2 & 3 == 0 && attributes2 != 0 {
                    return Err(UNUSABLE);
                }
                let MemoryType::Arm(mut attributes) =
                    found.memory_type(&lenient1, &lenient2, &regime)
                else {
                    return Err(UNUSABLE);
                };
                attributes.xs = true;
                let par = par::par_of_success(spa, &attributes);
                let mut value = par.value & par.defined & ((1 << 40) - 1) | par.value >> 56 << 56;
                if self.subject.deviates("device-combined-with-normal") && is_long(s) {
                    let index = found.stage1.found.entry >> 2 & 7;
                    value = arm::combined_as_device(value, s[7] >> (8 * index), attributes2);
                }
                Ok((spa, value))
            }
            Err(failed) => {
                let failed = self.deviate(failed);
                Err(if asked.at { self.par(&failed) } else { self.abort(&failed, &access) })
            }
        }
    }

    /// What the model makes of a failure.
    fn deviate(
        &self,
        failed: TwoStageFailure<Gva, Gpa, NoRam>,
    ) -> TwoStageFailure<Gva, Gpa, NoRam> {
        let mut fault = match failed {
            Failed::Here(mut fault) => {
                if matches!(fault.cause, Cause::Reserved(r) if r == DOMAIN_FIRST) {
                    fault.cause = Cause::Permission(Denied::DOMAIN);
                    if fault.entry & 3 == 1 {
                        // Reported as a page's.
                        fault.level = 0;
                        fault.path.or = fault.entry;
                    }
                }
                return Failed::Here(fault);
            }
            Failed::Below(Failed::Here(fault)) => fault,
            other => return other,
        };
        if let Purpose::Table { level } | Purpose::Update { level } = fault.access.purpose
            && self.subject.deviates("table-fault-level")
            && !(self.subject.new && is_long(self.state))
        {
            // Short descriptors have two levels, whose numbers in the manual are 1 and 2.
            fault.level = level + u8::from(!is_long(self.state));
        }
        // For short descriptors the level above stays.
        if fault.cause == Cause::Permission(Denied::TABLE_IN_DEVICE)
            && is_long(self.state)
            && self.subject.deviates("protected-walk-level")
        {
            // The manual's level 0.
            fault.level = 3;
        }
        Failed::Below(Failed::Here(fault))
    }

    fn par(&self, failed: &TwoStageFailure<Gva, Gpa, NoRam>) -> Outcome {
        match failed {
            Failed::Here(fault) if is_long(self.state) => match par::par_of_fault(fault, false) {
                Some(par) => Outcome::Stage1 { syndrome: par.value, address: 0 },
                None => UNUSABLE,
            },
            Failed::Here(fault) => match short_par(fault) {
                Some(par) => Outcome::Stage1 { syndrome: par.value, address: 0 },
                None => UNUSABLE,
            },
            Failed::Below(Failed::Here(fault)) => match par::par_of_fault(fault, true) {
                Some(par) => Outcome::Stage2 { syndrome: par.value, address: 0, origin: 0 },
                None => UNUSABLE,
            },
            Failed::Below(Failed::Below(_)) => Outcome::Bus { syndrome: 0 },
        }
    }

    fn abort(&self, failed: &TwoStageFailure<Gva, Gpa, NoRam>, access: &Access) -> Outcome {
        let version = self.subject.features.processor.version;
        if let Failed::Below(Failed::Below(_)) = failed {
            return Outcome::Bus { syndrome: 0 };
        }
        match syndrome::abort(failed, access, is_long(self.state), version) {
            None => UNUSABLE,
            Some(Abort::Pl1(abort)) => {
                let mut status = abort.status.value;
                if let Failed::Here(fault) = failed
                    && abort.prefetch
                    && !is_long(self.state)
                    && self.subject.deviates("domain-in-ifsr")
                {
                    status |= domain(fault) << 4;
                }
                let register = if abort.prefetch { IN_IFSR } else { 0 };
                Outcome::Stage1 {
                    syndrome: status & defined(status) | register,
                    address: abort.address.into(),
                }
            }
            Some(Abort::Hyp(abort)) => {
                let execute = access.kind == Kind::Execute;
                let origin = if execute { abort.hifar } else { abort.hdfar };
                Outcome::Stage2 {
                    syndrome: super::syndrome(abort.hsr.value, version),
                    address: abort.hpfar.choose().unwrap_or(0).into(),
                    origin: origin.choose().unwrap_or(0).into(),
                }
            }
        }
    }
}

/// The domain of the short descriptor of the first table that a walk met; supersections are in domain 0.
fn domain(fault: &Fault<Gva>) -> u64 {
    const SUPERSECTION: u64 = 1 << 18;
    match fault.level {
        0 => fault.path.or >> 5 & 15,
        _ if fault.entry & SUPERSECTION != 0 => 0,
        _ => fault.entry >> 5 & 15,
    }
}

/// The 64-bit PAR of a fault of short descriptors: their two levels are the manual's 1 and 2, and
/// domain faults have a status of their own (AArch32.EncodePARLD, EncodeLDFSC).
fn short_par(fault: &Fault<Gva>) -> Option<Masked> {
    let leveled = Fault { level: fault.level + 1, ..*fault };
    let par = par::par_of_fault(&leveled, false)?;
    match fault.cause {
        Cause::Permission(denied) if denied.contains(Denied::DOMAIN) => {
            let status = 0x3C | u64::from(2 - fault.level);
            Some(Masked { value: par.value & !(0x3F << 1) | status << 1, ..par })
        }
        _ => Some(par),
    }
}

pub(super) fn expect(
    subject: &Arm32,
    probe: &Probe,
    world: &mut World,
    watcher: &Watcher,
) -> Expectation {
    let state = &probe.state;
    let machine = Machine { subject, state };
    let mut expectation = arm::expect(&machine, probe, world, watcher);
    if probe.operation == 1 {
        let outcome = expectation.outcome;
        // An external abort goes to PL1's vectors; AT shows it without them.
        expectation.unusable |= matches!(outcome, Outcome::Bus { .. });
        // HVC is undefined at PL0 and goes to PL1's vectors too.
        expectation.unusable |= outcome.is_done()
            && arm::is_user(state)
            && arm::returns(&machine, world, watcher, state[12] + 4, false) != Return::Comes;
    }
    expectation
}

#[cfg(test)]
mod tests {
    use slat::Privilege;
    use slat::format::Path;

    use super::*;

    fn par(cause: Cause, level: u8) -> u64 {
        let fault = Fault {
            stage: 1,
            input: Gva::new(0x1000),
            level,
            entry: 0,
            entry_address: 0,
            path: Path { and: 0, or: 0, via: 0 },
            cause,
            access: Access::new(Kind::Read, Privilege::User),
        };
        short_par(&fault).unwrap().value
    }

    /// Arm ARM G8.2 (PAR, FST): domain faults of sections and of pages are 0b111101 and 0b111110. No model
    /// comes back from an address translation instruction that meets one.
    #[test]
    fn domain_faults_in_par() {
        const F: u64 = 1;
        let domain = Cause::Permission(Denied::DOMAIN);
        assert_eq!(par(domain, 1) & 0x37F, F | 0b11_1101 << 1);
        assert_eq!(par(domain, 0) & 0x37F, F | 0b11_1110 << 1);
        // As other faults do: translation, access flag and permission, at the manual's levels 1 and 2.
        assert_eq!(par(Cause::Empty, 1) & 0x37F, F | 0b00_0101 << 1);
        assert_eq!(par(Cause::AccessFlag, 0) & 0x37F, F | 0b00_1010 << 1);
        assert_eq!(par(Cause::Permission(Denied::WRITE), 0) & 0x37F, F | 0b00_1110 << 1);
    }
}
