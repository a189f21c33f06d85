//! Aborts of Arm as no walk of the other tests raises them: by maintenance instructions, atomics and
//! guests in AArch32 state, and those of EL2's and Hyp mode's own stage 1.

use slat::format::Path;
use slat::format::arm32::Version;
use slat::syndrome::{Field, arm32, arm64};
use slat::{Access, Cause, Denied, Fault, Flavor, Gpa, Gva, Kind, Privilege, Purpose};

fn fault<I>(input: I, level: u8, cause: Cause, access: Access) -> Fault<I> {
    Fault {
        stage: 1,
        input,
        level,
        entry: 0,
        entry_address: 0x8000,
        path: Path::START,
        cause,
        access,
    }
}

const READ: Access = Access::new(Kind::Read, Privilege::Supervisor);
const WRITE: Access = READ.as_kind(Kind::Write);
const FETCH: Access = READ.as_kind(Kind::Execute);

/// D24.2.45: EC 0x21 and 0x25 are aborts without a change of level; the user's come from a lower one.
#[test]
fn the_class_tells_the_level_that_the_access_came_from() {
    let class = |access: Access| {
        arm64::stage1(&fault(Gva::new(0x5000), 0, Cause::Empty, access)).unwrap().esr.value >> 26
    };
    let user = |access: Access| Access { privilege: Privilege::User, ..access };
    assert_eq!([READ, WRITE, FETCH].map(class), [0x25, 0x25, 0x21]);
    assert_eq!([READ, WRITE, FETCH].map(user).map(class), [0x24, 0x24, 0x20]);
    assert_eq!(class(READ.with_flavor(Flavor::Unprivileged)), 0x25);
}

/// D24.2.45: cache maintenance and address translation instructions raise Data Aborts with CM and WnR.
#[test]
fn maintenance_aborts_are_data_aborts() {
    for access in [READ, WRITE, FETCH] {
        let first = arm64::stage1(&fault(Gva::new(0x5000), 1, Cause::Empty, access)).unwrap();
        let abort = first.by_maintenance();
        assert_eq!(abort.esr, arm64::Masked { value: 0x9600_0146, defined: !0 });
        let second = arm64::stage2(&fault(Gpa::new(0x5000), 1, Cause::Empty, access), &access);
        let abort = second.unwrap().by_maintenance();
        assert_eq!(abort.esr, arm64::Masked { value: 0x9200_0146, defined: !0 });

        let first = arm32::pl1(&fault(Gva::new(0x5000), 1, Cause::Empty, access), true).unwrap();
        let abort = first.by_maintenance();
        assert!(!abort.prefetch && abort.address == 0x5000);
        assert_eq!(abort.status, arm64::Masked { value: 0x2a06, defined: !0 });
        let short = arm32::pl1(&fault(Gva::new(0x5000), 1, Cause::AccessFlag, access), false);
        // That of instruction cache maintenance may be 0b00100, and the domain is another fault's.
        let abort = short.unwrap().by_maintenance();
        assert!(abort.status.permits(0x2803) && abort.status.permits(0x2804));
        assert!(!abort.status.permits(0x2003) && !abort.status.permits(0x0803));

        let fault = fault(Gpa::new(0x5000), 1, Cause::Empty, access);
        let second = arm32::stage2(&fault, &access, Version::V8).unwrap();
        let abort = second.by_maintenance(Version::V8);
        assert_eq!(abort.hsr, arm64::Masked { value: 0x9200_0146, defined: !0 });
        assert_eq!((abort.hifar, abort.hpfar), (Field::Undefined, Field::Defined(0x50)));
        let abort = second.by_maintenance(Version::V7);
        assert_eq!(abort.hsr, arm64::Masked { value: 0x9000_0146, defined: !arm64::iss::IL });
    }
}

/// D24.2.45, `WnR`: an atomic's fault is a read's wherever a read would have had it.
#[test]
fn an_atomic_writes_only_where_a_read_would_have_been_let_through() {
    let atomic = WRITE.with_flavor(Flavor::Atomic);
    let read_and_write = Denied::READ.with(Denied::WRITE, true);
    let causes = [
        (Cause::Empty, false),
        (Cause::AccessFlag, false),
        (Cause::Permission(Denied::READ), false),
        (Cause::Permission(read_and_write), false),
        (Cause::Permission(Denied::WRITE), true),
    ];
    for (cause, writes) in causes {
        let of = |access: Access| {
            let first = arm64::stage1(&fault(Gva::new(0x5000), 0, cause, access)).unwrap();
            let second = fault(Gpa::new(0x5000), 0, cause, access);
            let second = arm64::stage2(&second, &access).unwrap();
            assert!(first.esr.defined & second.esr.defined & arm64::iss::WNR != 0);
            [first.esr.value, second.esr.value].map(|esr| esr & arm64::iss::WNR != 0)
        };
        assert_eq!(of(atomic), [writes; 2], "{cause:?}");
        assert_eq!(of(WRITE), [true; 2], "{cause:?}");
        assert_eq!(of(READ), [false; 2], "{cause:?}");
    }
    // On the tables of stage 1 it is what the instruction did, and for the update of an atomic open.
    let on_table = |purpose, access: Access| {
        let inner = Access { purpose, origin: Some(0x77), ..READ };
        let cause = Cause::Permission(Denied::WRITE);
        arm64::stage2(&fault(Gpa::new(0x5000), 0, cause, inner), &access).unwrap().esr
    };
    let (table, update) = (Purpose::Table { level: 0 }, Purpose::Update { level: 0 });
    let s1ptw = 0x9200_008f;
    assert_eq!(on_table(table, WRITE), arm64::Masked { value: s1ptw | 0x40, defined: !0 });
    assert_eq!(on_table(table, atomic), arm64::Masked { value: s1ptw, defined: !0 });
    assert_eq!(on_table(update, atomic), arm64::Masked { value: s1ptw, defined: !0x40 });
}

/// D24.2.45, `IL`: the length of a T32 or A32 instruction, where the syndrome of one is valid.
#[test]
fn the_length_of_an_aarch32_instruction_is_open() {
    let abort = |purpose, access: Access| {
        let inner = Access { purpose, origin: Some(0x77), ..access };
        let fault = fault(Gpa::new(0x5000), 0, Cause::Empty, inner);
        arm64::stage2(&fault, &access).unwrap().of_aarch32().esr
    };
    let data = abort(Purpose::Final, READ);
    let fault = fault(Gpa::new(0x5000), 0, Cause::Empty, READ);
    let maintained = arm64::stage2(&fault, &READ).unwrap().of_aarch32().by_maintenance();
    assert_eq!(maintained.esr, arm64::Masked { value: 0x9200_0147, defined: !0 });
    assert!(data.permits(0x9181_0007) && data.permits(0x9381_0007));
    assert!(!abort(Purpose::Table { level: 1 }, READ).permits(0x9000_0087));
    assert!(!abort(Purpose::Final, FETCH).permits(0x8000_0007));
}

/// G8.2: what Hyp mode's own stage 1 raises comes from Hyp mode.
#[test]
fn hyp_modes_own_aborts() {
    let cause = Cause::Permission(Denied::WRITE);
    let abort = arm32::hyp(&fault(Gva::new(0x5004), 1, cause, WRITE), Version::V8).unwrap();
    assert_eq!(abort.hsr, arm64::Masked { value: 0x9600_004e, defined: !0 });
    assert_eq!((abort.hdfar, abort.hifar), (Field::Defined(0x5004), Field::Undefined));
    assert_eq!(abort.hpfar, Field::Undefined);
    let abort = arm32::hyp(&fault(Gva::new(0x5004), 2, Cause::Empty, FETCH), Version::V7).unwrap();
    assert_eq!(abort.hsr, arm64::Masked { value: 0x8400_0005, defined: !arm64::iss::IL });
    assert_eq!((abort.hdfar, abort.hifar), (Field::Undefined, Field::Defined(0x5004)));
}

/// AArch64.EncodeLDFSC: level -1 has codes of its own; a lost update is no fault of hardware's.
#[test]
fn status_codes_at_the_ends() {
    use slat::{Reserved, Why};
    let size = Cause::Reserved(Reserved { why: Why::AddressSize, bits: 1 << 50 });
    let par = |level, cause| {
        let fault = fault(Gva::new(0x5000), level, cause, READ);
        arm64::par_of_fault(&fault, false).map(|par| (par.value, par.defined))
    };
    let defined = (1 << 48) - 1;
    assert_eq!(par(4, size), Some((0x800 | 0b10_1001 << 1 | 1, defined)));
    assert_eq!(par(4, Cause::Empty), Some((0x800 | 0b10_1011 << 1 | 1, defined)));
    assert_eq!(par(3, size), Some((0x801, defined)));
    assert_eq!(par(0, Cause::Contended), None);
    // No permission is asked for at level -1.
    assert_eq!(par(4, Cause::Permission(Denied::WRITE)), None);
}
